//! The files that a configuration names, and its own.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use dworker::config::{Config, FileCause, KeySource, TlsFiles, read_roots};

use super::{KEY, key, run, said};

#[test]
fn named_files_that_are_wrong_are_told_what_is_wrong() {
    let dir = tempfile::tempdir().expect("a directory");
    let _listener = fill(dir.path());
    let path = dir.path().join("dworker.toml");
    let name = dir.path().to_str().expect("UTF-8");
    without_override(|| {
        run(include_str!("files.txt"), |text| {
            fs::write(&path, text.replace("{dir}", name)).expect("the configuration");
            fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("its mode");
            said(Config::load(&path))
                .replace(path.to_str().expect("UTF-8"), "dworker.toml")
                .replace(name, "{dir}")
        });
    });
}

/// Makes the files that `files.txt` names.
fn fill(dir: &Path) -> UnixListener {
    let write = |name: &str, mode: u32, bytes: &[u8]| {
        fs::write(dir.join(name), bytes).expect(name);
        fs::set_permissions(dir.join(name), Permissions::from_mode(mode)).expect(name);
    };
    let made = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    let (good, other) = (made("appliance.example"), made("other.example"));
    let (certificate, key) = (good.cert.pem(), good.signing_key.serialize_pem());
    write("good.crt", 0o644, certificate.as_bytes());
    // As `openssl req -x509` makes it unless told otherwise.
    let mut authority = rcgen::CertificateParams::new(["appliance.example".to_owned()]).expect("a name");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = authority.self_signed(&good.signing_key).expect("a certificate");
    write("authority.crt", 0o644, authority.pem().as_bytes());
    write("good.key", 0o600, key.as_bytes());
    write("good.der", 0o600, &good.signing_key.serialize_der());
    write("group.key", 0o640, key.as_bytes());
    write("other.key", 0o600, other.signing_key.serialize_pem().as_bytes());
    write("chain.crt", 0o644, format!("{certificate}{}", other.cert.pem()).as_bytes());
    write("two.key", 0o600, format!("{key}{}", other.signing_key.serialize_pem()).as_bytes());
    write("forbidden.crt", 0o000, certificate.as_bytes());
    write("text.pem", 0o600, b"hunter2\n");
    write("damaged-block.pem", 0o600, key.replace("-----END PRIVATE KEY-----", "").as_bytes());
    let nothing = "-----BEGIN CERTIFICATE-----\naHVudGVyMg==\n-----END CERTIFICATE-----\n";
    write("damaged-second.crt", 0o644, format!("{certificate}{nothing}").as_bytes());
    write("damaged.key", 0o600, nothing.replace("CERTIFICATE", "PRIVATE KEY").as_bytes());
    write("encrypted.key", 0o600, nothing.replace("CERTIFICATE", "ENCRYPTED PRIVATE KEY").as_bytes());
    write("v1.crt", 0o644, include_bytes!("v1.crt"));
    write("large.crt", 0o644, &vec![b'\n'; (1 << 20) + 1]);
    write("worker.key", 0o600, format!("{KEY}\n").as_bytes());
    write("group-worker.key", 0o640, format!("  {KEY}\r\n").as_bytes());
    write("empty.password", 0o600, b"\n");
    write("two.password", 0o600, b"hunter2\nhunter2\n");
    write("long.password", 0o600, "hunter2".repeat(40).as_bytes());
    write("latin1.password", 0o600, b"hunter2\xfc\n");
    write("group.password", 0o640, b" hunter2 \r\n");
    write("cut-worker.key", 0o600, &KEY.as_bytes()[..40]);
    write("empty.apikey", 0o600, b" \n");
    write("group.apikey", 0o644, b"hunter2\n");
    fs::create_dir(dir.join("ca.d")).expect("a directory");
    write("ca.d/a.crt", 0o644, certificate.as_bytes());
    write("ca.d/b.pem", 0o644, b"hunter2\n");
    write("tls.password", 0o644, b"correct horse\n");
    for (certificate, file, mode, password) in [
        ("good.crt", "tls.p12", 0o644, "file:tls.password"),
        ("authority.crt", "authority.p12", 0o600, "pass:"),
    ] {
        let made = Command::new("openssl")
            .args(["pkcs12", "-export", "-inkey", "good.key"])
            .args(["-in", certificate, "-out", file, "-passout", password])
            .current_dir(dir)
            .status();
        assert!(made.expect("Debian's openssl").success());
        fs::set_permissions(dir.join(file), Permissions::from_mode(mode)).expect("its mode");
    }
    symlink("loop", dir.join("loop")).expect("a link");
    nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    UnixListener::bind(dir.join("socket")).expect("a socket")
}

/// Runs `test` where a file's mode counts for root too: in a thread without the capabilities that override it.
fn without_override(test: impl FnOnce() + Send) {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`, which has two [`Data`].
    const VERSION: u32 = 0x2008_0522;
    /// `CAP_DAC_OVERRIDE` and `CAP_DAC_READ_SEARCH`.
    const OVERRIDE: u32 = 1 << 1 | 1 << 2;
    let drop_override = || {
        let mut header = Header { version: VERSION, pid: 0 };
        let mut data = [Data::default(); 2];
        // SAFETY: the kernel writes two `Data` for version 3; pid 0 is this thread.
        let got = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
        assert_eq!(got, 0, "capget: {}", std::io::Error::last_os_error());
        data[0].effective &= !OVERRIDE;
        // SAFETY: as above; the kernel only reads.
        let set = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
        assert_eq!(set, 0, "capset: {}", std::io::Error::last_os_error());
    };
    let run = || {
        drop_override();
        test();
    };
    if let Err(panic) = std::thread::scope(|scope| scope.spawn(run).join()) {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn files_that_cannot_be_read_at_all() {
    let dir = tempfile::tempdir().expect("a directory");
    let name = dir.path().to_str().expect("UTF-8").to_owned();
    let load = |file: &str| said(Config::load(&dir.path().join(file))).replace(&name, "DIR");
    assert_eq!(load("missing.toml"), "DIR/missing.toml: there is no such file: correct the path");
    assert_eq!(load(""), "DIR/: it is not a regular file: correct the path");

    fs::write(dir.path().join("large.toml"), vec![b'#'; 10 << 20]).expect("10 MiB");
    assert_eq!(
        load("large.toml"),
        "DIR/large.toml: it has 10485760 bytes, and at most 1048576 are read (1 MiB): correct the path"
    );

    fs::write(dir.path().join("latin1.toml"), b"log = \"info\"\n# Z\xfcrich\n").expect("latin1");
    assert_eq!(load("latin1.toml"), "DIR/latin1.toml:2: not UTF-8: save the file in UTF-8");

    nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    assert_eq!(load("pipe"), "DIR/pipe: it is not a regular file: correct the path");
}

#[test]
fn what_passed_the_check_is_what_gets_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let _listener = fill(dir.path());
    let at = |name: &str| dir.path().join(name);
    let files = |key: &str| TlsFiles::Pem { certificate: at("chain.crt"), key: at(key) };
    let good = files("good.key");
    let (certificates, _) = good.read().expect("an identity");
    assert_eq!(certificates, read_roots(&at("chain.crt")).expect("certificates"));
    assert_eq!(certificates.len(), 2);
    let error = files("other.key").read().expect_err("another key");
    assert_eq!(error.path, at("other.key"));
    assert!(
        matches!(error.cause, FileCause::Mismatch(ref certificate) if *certificate == at("chain.crt")),
        "{error}"
    );
    assert_eq!(KeySource::File(at("group-worker.key")).read().expect("a key"), key());
    assert_eq!(KeySource::Inline(key()).read().expect("a key"), key());
    let error = KeySource::File(at("cut-worker.key")).read().expect_err("half a key");
    let path = at("cut-worker.key");
    let says = "it holds no worker key: it has 40 characters; a worker key has 47; write the key alone into the file";
    assert_eq!(error.to_string(), format!("{}: {says}", path.display()));
}
