//! A certificate authority of the lab's own, and certificates good and bad.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// A certificate authority with its files.
#[derive(Debug)]
pub struct Pki {
    authority: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
    certificate: PathBuf,
}

/// A certificate and its private key, as PEM files.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// The private key, readable by root only.
    pub key: PathBuf,
}

/// When a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// From long ago until long after.
    Current,
    /// It ended in 2001.
    Expired,
    /// It begins in 4000.
    NotYet,
    /// It ends in ten days and a half.
    Ending,
}

impl Pki {
    /// Makes an authority whose files are in `directory`. A second one is an authority that nobody trusts.
    pub fn create(directory: &Path) -> Result<Pki> {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "dworker lab");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let certificate = directory.join("ca.pem");
        write(&certificate, &authority.pem())?;
        Ok(Pki { authority, directory: directory.to_owned(), certificate })
    }

    /// The authority's certificate: what `ca_file` takes.
    pub fn ca_file(&self) -> &Path {
        &self.certificate
    }

    /// A certificate for names and addresses; the files are called after the first.
    pub fn issue(&self, names: &[&str], validity: Validity) -> Result<Identity> {
        let first = names.first().context("a certificate needs a name")?;
        let mut params =
            CertificateParams::new(names.iter().map(|name| name.to_string()).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, *first);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        match validity {
            Validity::Current => {}
            Validity::Expired => params.not_after = date_time_ymd(2001, 1, 1),
            Validity::Ending => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).context("reading the clock")?;
                params.not_after =
                    date_time_ymd(1970, 1, 1) + now + Duration::from_secs((10 * 24 + 12) * 3600);
            }
            Validity::NotYet => params.not_before = date_time_ymd(4000, 1, 1),
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?;
        let stem = format!("{}-{validity:?}", first.replace('*', "any"));
        let identity = Identity {
            certificate: self.directory.join(format!("{stem}.pem")),
            key: self.directory.join(format!("{stem}.key")),
        };
        write(&identity.certificate, &certificate.pem())?;
        write(&identity.key, &key.serialize_pem())?;
        Ok(identity)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protecting {}", path.display()))
}
