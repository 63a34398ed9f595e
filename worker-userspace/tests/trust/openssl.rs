//! Keys and certificates as administrators make them: with Debian's openssl.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use dworker::config::TlsFiles;

/// A directory with what openssl made.
pub(crate) struct Made {
    dir: tempfile::TempDir,
}

/// How a certificate is made.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// Its files' name, and the `CN` unless `cn` says another.
    pub(crate) name: &'a str,
    pub(crate) cn: Option<&'a str>,
    /// Who signs it; `None`: itself.
    pub(crate) by: Option<&'a str>,
    /// Lines of its extensions.
    pub(crate) extensions: &'a str,
    /// `YYYYMMDDHHMMSSZ`.
    pub(crate) from: &'a str,
    pub(crate) to: &'a str,
}

pub(crate) const CA: &str = "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\n";
pub(crate) const SERVER: &str =
    "basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName=DNS:localhost\n";
pub(crate) const CLIENT: &str = "basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth\n";

impl Asked<'_> {
    pub(crate) const fn now(name: &str) -> Asked<'_> {
        Asked { name, cn: None, by: None, extensions: CA, from: "20200101000000Z", to: "20900101000000Z" }
    }
}

impl Made {
    pub(crate) fn new() -> Made {
        Made { dir: tempfile::tempdir().expect("a directory") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect(name);
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect(name);
        path
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect(name)
    }

    /// Runs openssl in the directory.
    pub(crate) fn openssl(&self, arguments: &[&str]) {
        let ran = Command::new("openssl").args(arguments).current_dir(self.dir.path()).output();
        let ran = ran.expect("Debian's openssl");
        assert!(ran.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    }

    /// `NAME.crt` and `NAME.key`.
    pub(crate) fn certificate(&self, asked: Asked<'_>) -> TlsFiles {
        let Asked { name, cn, by, extensions, from, to } = asked;
        let [key, request, certificate, lines] =
            ["key", "csr", "crt", "ext"].map(|ending| format!("{name}.{ending}"));
        let subject = format!("/CN={}", cn.unwrap_or(name));
        self.openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &key]);
        self.openssl(&["req", "-new", "-key", &key, "-subj", &subject, "-out", &request]);
        self.write(&lines, extensions);
        // `openssl ca` is the one that takes both dates in every version of openssl 3.
        self.write("index.txt", "");
        self.write("ca.conf", "[ca]\ndefault_ca=a\n[a]\ndatabase=index.txt\nnew_certs_dir=.\npolicy=p\nrand_serial=yes\n[p]\ncommonName=supplied\n");
        let issuer = by.unwrap_or(name);
        let (issuer_key, issuer_certificate) = (format!("{issuer}.key"), format!("{issuer}.crt"));
        let mut arguments = vec![
            "ca",
            "-batch",
            "-config",
            "ca.conf",
            "-md",
            "sha256",
            "-rand_serial",
            "-notext",
            "-startdate",
            from,
            "-enddate",
            to,
            "-extfile",
            &lines,
            "-in",
            &request,
            "-out",
            &certificate,
            "-keyfile",
            &issuer_key,
        ];
        match by {
            Some(_) => arguments.extend(["-cert", &issuer_certificate]),
            None => arguments.push("-selfsign"),
        }
        self.openssl(&arguments);
        self.files(&certificate, &key)
    }

    pub(crate) fn files(&self, certificate: &str, key: &str) -> TlsFiles {
        TlsFiles::Pem { certificate: self.path(certificate), key: self.path(key) }
    }

    /// A file of several others.
    pub(crate) fn join(&self, to: &str, from: &[&str]) -> PathBuf {
        self.write(to, from.iter().map(|name| self.read(name)).collect::<String>())
    }
}

/// Puts one file in the place of another, as a tool that renews certificates does.
pub(crate) fn replace(from: &Path, to: &Path) {
    let new = to.with_extension("new");
    fs::copy(from, &new).expect("a copy");
    fs::rename(new, to).expect("the new file");
}
