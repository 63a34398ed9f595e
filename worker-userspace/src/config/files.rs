//! Reads the files that a configuration names: certificates, private keys, worker keys, a password.
//!
//! What must hold: the daemon reads them by the very functions that check them, so that what passed the check
//! is what gets used; no file is read beyond a limit; a pipe or a device never makes a check wait; and no
//! message repeats what stands in a file.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{Error, InconsistentKeys, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

mod directory;
mod fingerprint;
mod pkcs12;

pub use directory::read_roots_directory;
pub use fingerprint::Fingerprint;

use super::fault::{Wrong, wrong};
use super::reader::{Place, Reader};
use super::{ApiKey, ApiKeySource, Environment, Key, KeyError, KeyHash, KeySource, Login, TlsFiles};

/// The largest file that is read, in bytes: a system's whole bundle of roots has a quarter of it.
const LARGEST: u64 = 1 << 20;

/// A certificate with its chain, and the private key that belongs to it.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Why a file cannot be used. The message names the file, what is wrong and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub cause: FileCause,
}

/// What is wrong with a file.
#[derive(Debug)]
pub enum FileCause {
    /// It is not there.
    Missing,
    /// Its mode, or that of a directory above it, forbids it.
    Forbidden,
    /// A directory, pipe, socket or device.
    NotAFile,
    /// More than 1 MiB: so many bytes, at least.
    TooLarge(u64),
    /// No directory.
    NotADirectory,
    /// A directory without a certificate.
    EmptyDirectory,
    /// A directory with more than so many certificates.
    ManyFiles(usize),
    /// Anything else that the kernel said.
    Unreadable(io::Error),
    /// A PEM block is cut off or is no base64.
    DamagedPem,
    /// No `CERTIFICATE` block.
    NoCertificate,
    /// A `CERTIFICATE` block that is no certificate, or not of X.509 v3; counted from 1.
    UnusableCertificate(usize),
    /// No private key.
    NoKey,
    /// A private key under a passphrase.
    EncryptedKey,
    /// More than one private key: how many.
    ManyKeys(usize),
    /// A private key that the TLS library does not take.
    UnusableKey,
    /// The private key belongs to another certificate than the one in this file.
    Mismatch(PathBuf),
    /// No PKCS#12.
    DamagedPkcs12,
    /// PKCS#12 under another password.
    WrongPassword,
    /// PKCS#12 that is encrypted in a way that the library does not know: what it says.
    UnsupportedPkcs12(String),
    /// PKCS#12 without a private key.
    NoPkcs12Key,
    /// PKCS#12 without the certificate of its private key.
    NoPkcs12Certificate,
    /// No worker key.
    NoWorkerKey(KeyError),
    /// No API key.
    NoApiKey,
    /// No password: what is there instead.
    NoPassword(&'static str),
}

impl FileCause {
    /// The cause in words: what is wrong, and what to do.
    pub(super) fn wrong(&self) -> Wrong {
        use FileCause::*;
        const PATH: &str = "correct the path";
        const COPY: &str = "copy the file again";
        match self {
            Missing => wrong("there is no such file", PATH),
            Forbidden if nix::unistd::geteuid().is_root() => wrong(
                "root may not read it without the right to pass over owners and modes, which the service does not have",
                "make root its owner, and let its owner read it",
            ),
            Forbidden => wrong("this user may not read it", "run as root, or change its owner or mode"),
            NotAFile => wrong("it is not a regular file", PATH),
            TooLarge(size) => {
                wrong(format!("it has {size} bytes, and at most {LARGEST} are read (1 MiB)"), PATH)
            }
            NotADirectory => wrong("it is not a directory", "name a directory; a single file is `ca_file`"),
            EmptyDirectory => wrong(
                "no file `*.pem`, `*.crt` or `*.cer` is in it",
                "put the certificates there, or correct the path",
            ),
            ManyFiles(most) => {
                wrong(format!("more than {most} files are in it"), "name a directory of its own")
            }
            Unreadable(error) => wrong(format!("it cannot be read, {error}"), PATH),
            DamagedPem => wrong("a PEM block in it is damaged", COPY),
            NoCertificate => {
                wrong("it holds no certificate in PEM", "name a file with a block `BEGIN CERTIFICATE`")
            }
            UnusableCertificate(n) => wrong(
                format!("certificate number {n} in it is damaged or not of X.509 v3"),
                "copy the file again, or have the certificate issued anew",
            ),
            NoKey => wrong("it holds no private key in PEM", "name a file with a block `BEGIN PRIVATE KEY`"),
            EncryptedKey => {
                wrong("its private key is encrypted", "decrypt it with `openssl pkey -in FILE -out NEWFILE`")
            }
            ManyKeys(n) => wrong(format!("it holds {n} private keys"), "leave one"),
            UnusableKey => wrong(
                "its private key is damaged or of an unknown kind",
                "use RSA of 2048 bits or more, ECDSA P-256, P-384 or P-521, or Ed25519",
            ),
            Mismatch(certificate) => wrong(
                format!("it does not belong to the certificate in {}", certificate.display()),
                "name the private key that the certificate was made for",
            ),
            DamagedPkcs12 => wrong(
                "it is no PKCS#12, or damaged",
                "copy the file again; PEM goes into `certificate` and `key`",
            ),
            WrongPassword => wrong(
                "its password is another one",
                "write the password of the PKCS#12 file into the file that `pkcs12_password_file` names",
            ),
            UnsupportedPkcs12(why) => wrong(
                format!("it is encrypted in a way that is not known here, {why}"),
                "convert it with `openssl pkcs12 -legacy -in FILE -out PEM -nodes` and \
                 `openssl pkcs12 -export -in PEM -out NEWFILE`, and remove PEM",
            ),
            NoPkcs12Key => wrong("it holds no private key", "export certificate and key together"),
            NoPkcs12Certificate => {
                wrong("it holds no certificate of its private key", "export certificate and key together")
            }
            NoWorkerKey(error) => {
                wrong("it holds no worker key", format!("{error}; write the key alone into the file"))
            }
            NoApiKey => wrong("it holds no text in UTF-8", "write the key alone into the file"),
            NoPassword(why) => {
                wrong(*why, "write the password alone into the file, on one line of at most 255 bytes")
            }
        }
    }
}

impl fmt::Display for FileCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wrong = self.wrong();
        write!(f, "{}: {}", wrong.problem, wrong.remedy)
    }
}

impl TlsFiles {
    /// Reads the identity and makes sure that the key belongs to the certificate.
    ///
    /// # Errors
    /// A file cannot be read, or is not what it should be.
    pub fn read(&self) -> Result<Identity, FileError> {
        match self {
            TlsFiles::Pem { certificate, key: path } => {
                let certificates = read_chain(certificate)?;
                let key = read_private_key(path)?;
                belongs(certificate, &certificates, path, key.signer)?;
                Ok((certificates, key.der))
            }
            TlsFiles::Pkcs12 { file, password_file } => {
                let password = password_file.as_deref().map(read_password).transpose()?;
                let (identity, _) = pkcs12::read(file, password.as_ref().map(|(password, _)| password))?;
                Ok(identity)
            }
        }
    }

    /// All of them.
    pub fn paths(&self) -> Vec<&Path> {
        match self {
            TlsFiles::Pem { certificate, key } => vec![certificate, key],
            TlsFiles::Pkcs12 { file, password_file } => {
                [Some(file.as_path()), password_file.as_deref()].into_iter().flatten().collect()
            }
        }
    }
}

impl KeySource {
    /// The key itself, read anew where it stands in a file.
    ///
    /// # Errors
    /// The file cannot be read, or holds no worker key.
    pub fn read(&self) -> Result<Key, FileError> {
        match self {
            KeySource::Inline(key) => Ok(key.clone()),
            KeySource::File(path) => read_worker_key(path).map(|(key, _)| key),
        }
    }
}

impl ApiKeySource {
    /// The key itself, read anew where it stands in a file.
    ///
    /// # Errors
    /// The file cannot be read, or holds nothing.
    pub fn read(&self) -> Result<ApiKey, FileError> {
        match self {
            ApiKeySource::Inline(key) => Ok(key.clone()),
            ApiKeySource::File(path) => read_api_key(path).map(|(key, _)| key),
        }
    }
}

/// A password. No `Debug` shows it.
#[derive(Clone)]
pub struct Password(Box<str>);

impl Password {
    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// A password that stood elsewhere than in a file of its own.
    pub(super) fn inline(text: String) -> Password {
        Password(text.into())
    }
}

impl PartialEq for Password {
    fn eq(&self, other: &Password) -> bool {
        KeyHash::of(&self.0) == KeyHash::of(&other.0)
    }
}

impl Eq for Password {}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(***)")
    }
}

impl Login {
    /// The password, read anew: 1 to 255 bytes, what SOCKS5 can carry.
    ///
    /// # Errors
    /// The file cannot be read, or holds no password.
    pub fn read(&self) -> Result<Password, FileError> {
        read_password(&self.password_file).map(|(password, _)| password)
    }
}

/// The certificates of a PEM file, at least one, each of them fit to be trusted as a root: also those of
/// X.509 v1, which old authorities have.
///
/// # Errors
/// The file cannot be read, or is not what it should be.
pub fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    read_certificates(path, |_, der| is_root(der))
}

/// A certificate and its chain: the first is for a server, the others lead to a root or are one.
fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    read_certificates(path, |i, der| is_certificate(der) || (i > 0 && is_root(der)))
}

fn is_certificate(der: &CertificateDer<'static>) -> bool {
    ParsedCertificate::try_from(der).is_ok()
}

/// True for what an authority signs with. Who is shown one as an end's own does not take it.
fn is_authoritys(der: &CertificateDer<'static>) -> bool {
    x509_parser::parse_x509_certificate(der).is_ok_and(|(_, certificate)| certificate.is_ca())
}

fn is_root(der: &CertificateDer<'static>) -> bool {
    RootCertStore::empty().add(der.clone()).is_ok()
}

fn read_certificates(
    path: &Path,
    is_usable: impl Fn(usize, &CertificateDer<'static>) -> bool,
) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let about = |cause| FileError { path: path.to_owned(), cause };
    let (bytes, _) = read_file(path).map_err(about)?;
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|_| about(FileCause::DamagedPem))?;
    if certificates.is_empty() {
        return Err(about(FileCause::NoCertificate));
    }
    match certificates.iter().enumerate().position(|(i, der)| !is_usable(i, der)) {
        Some(i) => Err(about(FileCause::UnusableCertificate(i + 1))),
        None => Ok(certificates),
    }
}

/// A private key that the TLS library takes.
struct PrivateKey {
    der: PrivateKeyDer<'static>,
    signer: Arc<dyn SigningKey>,
    /// The file's mode.
    mode: u32,
}

/// The one private key of a PEM file.
fn read_private_key(path: &Path) -> Result<PrivateKey, FileError> {
    let about = |cause| FileError { path: path.to_owned(), cause };
    let (bytes, mode) = read_file(path).map_err(about)?;
    // PKCS#8 says so in the block's title, the older formats in a header below it.
    let encrypted = [&b"ENCRYPTED PRIVATE KEY"[..], b"Proc-Type: 4,ENCRYPTED"];
    if encrypted.iter().any(|sign| bytes.windows(sign.len()).any(|window| window == *sign)) {
        return Err(about(FileCause::EncryptedKey));
    }
    let mut keys: Vec<PrivateKeyDer<'static>> = PrivateKeyDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|_| about(FileCause::DamagedPem))?;
    let der = match (keys.pop(), keys.len()) {
        (None, _) => return Err(about(FileCause::NoKey)),
        (Some(key), 0) => key,
        (Some(_), others) => return Err(about(FileCause::ManyKeys(others + 1))),
    };
    let signer = aws_lc_rs::sign::any_supported_type(&der).map_err(|_| about(FileCause::UnusableKey))?;
    Ok(PrivateKey { der, signer, mode })
}

/// Makes sure that a private key belongs to the first certificate.
fn belongs(
    certificate: &Path,
    certificates: &[CertificateDer<'static>],
    path: &Path,
    signer: Arc<dyn SigningKey>,
) -> Result<(), FileError> {
    match CertifiedKey::new(certificates.to_vec(), signer).keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(()),
        Err(_) => {
            Err(FileError { path: path.to_owned(), cause: FileCause::Mismatch(certificate.to_owned()) })
        }
    }
}

/// The worker key that stands alone in a file, and the file's mode.
fn read_worker_key(path: &Path) -> Result<(Key, u32), FileError> {
    let about = |cause| FileError { path: path.to_owned(), cause };
    let (bytes, mode) = read_file(path).map_err(about)?;
    // What is no UTF-8 is no key either, and says so: no key has a replacement character.
    let key = String::from_utf8_lossy(&bytes).trim().parse().map_err(|e| about(FileCause::NoWorkerKey(e)))?;
    Ok((key, mode))
}

/// The API key that stands alone in a file, and the file's mode.
fn read_api_key(path: &Path) -> Result<(ApiKey, u32), FileError> {
    let about = |cause| FileError { path: path.to_owned(), cause };
    let (bytes, mode) = read_file(path).map_err(about)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| about(FileCause::NoApiKey))?.trim();
    if text.is_empty() {
        return Err(about(FileCause::NoApiKey));
    }
    Ok((ApiKey::new(text), mode))
}

/// The password that stands alone in a file, and the file's mode.
pub(super) fn read_password(path: &Path) -> Result<(Password, u32), FileError> {
    let about = |cause| FileError { path: path.to_owned(), cause };
    let (bytes, mode) = read_file(path).map_err(about)?;
    let text =
        String::from_utf8(bytes).map_err(|_| about(FileCause::NoPassword("it holds no text in UTF-8")))?;
    // Spaces may belong to it, the line's end does not.
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let why = match line {
        "" => "it is empty",
        _ if line.contains(char::is_control) => "it holds control characters or more than one line",
        _ if line.len() > 255 => "it holds more than 255 bytes",
        _ => return Ok((Password(line.into()), mode)),
    };
    Err(about(FileCause::NoPassword(why)))
}

/// A regular file's bytes and its mode.
pub(super) fn read_file(path: &Path) -> Result<(Vec<u8>, u32), FileCause> {
    // NONBLOCK: opening a pipe that nobody writes to would wait for ever. Regular files do not care.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(because)?;
    let metadata = file.metadata().map_err(because)?;
    if !metadata.is_file() {
        return Err(FileCause::NotAFile);
    }
    let mut bytes = Vec::new();
    // One byte beyond the limit tells, also where the file grows while it is read.
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(because)?;
    let read = bytes.len() as u64;
    match read > LARGEST {
        true => Err(FileCause::TooLarge(read.max(metadata.len()))),
        false => Ok((bytes, metadata.mode())),
    }
}

fn because(error: io::Error) -> FileCause {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FileCause::Missing,
        io::ErrorKind::PermissionDenied => FileCause::Forbidden,
        // A socket cannot be opened at all.
        _ if error.raw_os_error() == Some(libc::ENXIO) => FileCause::NotAFile,
        _ => FileCause::Unreadable(error),
    }
}

/// The files that a configuration names, and where it names them.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// The appliance's certificate and its chain.
    pub(super) certificate: Option<(Place, PathBuf)>,
    /// The private key of that certificate.
    pub(super) key: Option<(Place, PathBuf)>,
    /// The same in PKCS#12.
    pub(super) pkcs12: Option<(Place, PathBuf)>,
    /// The file that holds its password.
    pub(super) pkcs12_password: Option<(Place, PathBuf)>,
    /// Who signs the client certificates that an appliance takes.
    pub(super) client_roots: Option<(Place, PathBuf)>,
    /// Certificates that a worker trusts beside the system's roots.
    pub(super) roots: Option<(Place, PathBuf)>,
    /// A directory of them.
    pub(super) roots_directory: Option<(Place, PathBuf)>,
    /// A worker's certificate and its chain.
    pub(super) client_certificate: Option<(Place, PathBuf)>,
    /// The private key of that certificate.
    pub(super) client_key: Option<(Place, PathBuf)>,
    /// The file that holds a worker's key.
    pub(super) worker_key: Option<(Place, PathBuf)>,
    /// The file that holds the key of a VDI gateway.
    pub(super) api_key: Option<(Place, PathBuf)>,
    /// The files that hold passwords: that of the entries, and that for the proxy.
    pub(super) passwords: Vec<(Place, PathBuf)>,
    /// Where the configuration itself holds secrets: the worker's key, the proxy's password.
    pub(super) inline: Vec<Place>,
}

/// Reports each named file that cannot be used, and each secret that others may read. `mode` is that of the
/// configuration file.
pub(super) fn check(r: &mut Reader<'_>, named: &Named, mode: u32, environment: &Environment) {
    for (place, path) in [&named.roots, &named.client_roots].into_iter().flatten() {
        usable(r, place, read_roots(path));
    }
    if let Some((place, path)) = &named.roots_directory
        && let Some((_, left_out)) = usable(r, place, read_roots_directory(path))
    {
        for FileError { path, cause } in left_out {
            let Wrong { problem, remedy } = cause.wrong();
            r.warn(place, wrong(format!("{} is left out: {problem}", path.display()), remedy));
        }
    }
    let mut check = Check { r, environment };
    if let Some((place, path)) = &named.worker_key {
        check.secret(place, path, read_worker_key(path));
    }
    if let Some((place, path)) = &named.api_key {
        check.secret(place, path, read_api_key(path));
    }
    for (place, path) in &named.passwords {
        check.secret(place, path, read_password(path));
    }
    check.pair(named.certificate.as_ref(), named.key.as_ref(), &APPLIANCE);
    check.pair(named.client_certificate.as_ref(), named.client_key.as_ref(), &WORKER);
    if let Some((place, path)) = &named.pkcs12 {
        let password = named.pkcs12_password.as_ref();
        let password = password.map(|(place, path)| check.secret(place, path, read_password(path)));
        // What the password was for can't be judged without it.
        if password != Some(None)
            && let Some((chain, _)) =
                check.secret(place, path, pkcs12::read(path, password.flatten().as_ref()))
        {
            judge_own(check.r, place, &chain, &APPLIANCE);
        }
    }
    for place in named.inline.iter().filter(|place| r.is_in_file(place)).collect::<Vec<_>>() {
        private(r, place, mode);
    }
}

/// Checks files that hold secrets.
struct Check<'c, 'd> {
    r: &'c mut Reader<'d>,
    environment: &'c Environment,
}

impl Check<'_, '_> {
    /// What was read of a secret's file, whose mode comes with it.
    fn secret<T>(&mut self, place: &Place, path: &Path, read: Result<(T, u32), FileError>) -> Option<T> {
        let (secret, mode) = usable(self.r, place, read)?;
        // systemd guards its credentials by access lists, which show as a mode that seems too wide.
        if !self.environment.is_credential(path) {
            private(self.r, place, mode);
        }
        Some(secret)
    }

    /// A certificate's and a private key's files, each as far as it is named.
    fn pair(&mut self, certificate: Option<&(Place, PathBuf)>, key: Option<&(Place, PathBuf)>, ends: &Ends) {
        let certificates = certificate.and_then(|(place, path)| {
            let certificates = usable(self.r, place, read_chain(path))?;
            judge_own(self.r, place, &certificates, ends);
            Some((path, certificates))
        });
        let Some((place, path)) = key else { return };
        let Some(signer) = self.secret(place, path, read_private_key(path).map(|key| (key.signer, key.mode)))
        else {
            return;
        };
        if let Some((certificate, certificates)) = certificates {
            usable(self.r, place, belongs(certificate, &certificates, path, signer));
        }
    }
}

/// Who has a certificate, and who does not take an unfit one.
struct Ends {
    needs: &'static str,
    refuses: &'static str,
}

const APPLIANCE: Ends =
    Ends { needs: "the appliance's name as `subjectAltName`", refuses: "no worker and no command takes" };
const WORKER: Ends = Ends { needs: "`extendedKeyUsage = clientAuth`", refuses: "no appliance takes" };

/// Warns where the first certificate of a chain is not for an end of a connection.
fn judge_own(r: &mut Reader<'_>, place: &Place, chain: &[CertificateDer<'static>], ends: &Ends) {
    if chain.first().is_some_and(is_authoritys) {
        let Ends { needs, refuses } = ends;
        let problem = format!("it is a CA's own certificate (`CA:TRUE`), which {refuses}");
        let remedy = format!("make one with `CA:FALSE` and {needs}, signed by that CA");
        r.warn(place, wrong(problem, remedy));
    }
}

fn usable<T>(r: &mut Reader<'_>, place: &Place, result: Result<T, FileError>) -> Option<T> {
    result.map_err(|error| r.fault(place, error.cause.wrong())).ok()
}

/// Warns where others than the owner may read a secret.
fn private(r: &mut Reader<'_>, place: &Place, mode: u32) {
    if mode & 0o044 != 0 {
        let problem =
            format!("others than its owner may read this secret's file, mode {:04o}", mode & 0o7777);
        r.warn(place, wrong(problem, "set the mode with `chmod 600`"));
    }
}
