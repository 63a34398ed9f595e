//! PKCS#12 and directories of certificates.

use std::fs;

use dworker::config::{FileCause, TlsFiles, read_roots_directory};

use crate::openssl::{Asked, Made, SERVER};

fn chain() -> Made {
    let made = Made::new();
    made.certificate(Asked::now("root"));
    made.certificate(Asked { by: Some("root"), ..Asked::now("between") });
    made.certificate(Asked { by: Some("between"), extensions: SERVER, ..Asked::now("leaf") });
    // The other way round, so that the chain must be put in order.
    made.join("rest.crt", &["root.crt", "between.crt"]);
    made
}

fn export(made: &Made, to: &str, more: &[&str]) {
    let mut arguments = vec![
        "pkcs12",
        "-export",
        "-in",
        "leaf.crt",
        "-inkey",
        "leaf.key",
        "-certfile",
        "rest.crt",
        "-out",
        to,
    ];
    arguments.extend(more);
    made.openssl(&arguments);
}

fn pkcs12(made: &Made, file: &str, password: Option<&str>) -> TlsFiles {
    let password_file = password.map(|password| made.write("password", format!("{password}\n")));
    TlsFiles::Pkcs12 { file: made.path(file), password_file }
}

#[test]
fn pkcs12_of_new_and_old_tools_is_what_the_pem_files_are() {
    let made = chain();
    let whole = made.join("whole.crt", &["leaf.crt", "between.crt", "root.crt"]);
    let (expected, _) = TlsFiles::Pem { certificate: whole, key: made.path("leaf.key") }.read().expect("PEM");
    let triple_des = ["-keypbe", "PBE-SHA1-3DES", "-certpbe", "PBE-SHA1-3DES", "-macalg", "sha1"];
    for (kind, more) in [
        ("openssl 3", &[][..]),
        ("AES-128", &["-keypbe", "AES-128-CBC", "-certpbe", "AES-128-CBC", "-macalg", "sha512"]),
        ("openssl 1, RC2 and 3DES", &["-legacy"]),
        ("3DES", &triple_des),
        ("no encryption of certificates", &["-certpbe", "NONE"]),
    ] {
        for password in ["correct horse", "Pässwort"] {
            let pass = format!("pass:{password}");
            export(&made, "leaf.p12", &[more, &["-passout", &pass]].concat());
            let read = pkcs12(&made, "leaf.p12", Some(password)).read();
            let (certificates, _) = read.unwrap_or_else(|error| panic!("{kind}: {error}"));
            assert_eq!(certificates, expected, "{kind}");
        }
    }
    export(&made, "leaf.p12", &["-passout", "pass:"]);
    assert_eq!(pkcs12(&made, "leaf.p12", None).read().expect("an empty password").0, expected);
}

#[test]
fn pkcs12_that_cannot_be_used_says_what_to_do() {
    let made = chain();
    let cause = |file: &str, password| pkcs12(&made, file, password).read().expect_err(file).cause;
    for more in [&[][..], &["-legacy"]] {
        export(&made, "leaf.p12", &[more, &["-passout", "pass:right"]].concat());
        for password in [Some("wrong"), None] {
            let wrong = cause("leaf.p12", password);
            assert!(matches!(wrong, FileCause::WrongPassword), "{wrong}");
            assert!(wrong.to_string().contains("pkcs12_password_file"), "{wrong}");
        }
    }
    assert!(matches!(cause("leaf.crt", None), FileCause::DamagedPkcs12));
    made.openssl(&[
        "pkcs12",
        "-export",
        "-nokeys",
        "-in",
        "leaf.crt",
        "-out",
        "public.p12",
        "-passout",
        "pass:right",
    ]);
    assert!(matches!(cause("public.p12", Some("right")), FileCause::NoPkcs12Key));
    made.openssl(&[
        "pkcs12",
        "-export",
        "-nocerts",
        "-inkey",
        "leaf.key",
        "-out",
        "secret.p12",
        "-passout",
        "pass:right",
    ]);
    assert!(matches!(cause("secret.p12", Some("right")), FileCause::NoPkcs12Certificate));
    let rc4 = ["-legacy", "-keypbe", "PBE-SHA1-RC4-128", "-certpbe", "PBE-SHA1-RC4-128"];
    export(&made, "rc4.p12", &[&rc4[..], &["-passout", "pass:right"]].concat());
    let unknown = cause("rc4.p12", Some("right"));
    assert!(unknown.to_string().contains("openssl pkcs12 -legacy -in FILE"), "{unknown}");
}

#[test]
fn a_broken_file_in_a_directory_of_certificates_is_left_out_by_name() {
    let made = chain();
    let dir = made.path("ca.d");
    assert!(matches!(read_roots_directory(&dir).expect_err("none").cause, FileCause::Missing));
    fs::create_dir(&dir).expect("a directory");
    assert!(matches!(read_roots_directory(&dir).expect_err("none").cause, FileCause::EmptyDirectory));
    fs::write(dir.join("README"), "not read").expect("a file");
    fs::write(dir.join("broken.pem"), "-----BEGIN CERTIFICATE-----\n").expect("a file");
    let only = read_roots_directory(&dir).expect_err("nothing usable");
    assert_eq!(only.path, dir.join("broken.pem"));
    fs::copy(made.path("root.crt"), dir.join("root.crt")).expect("a copy");
    fs::copy(made.path("rest.crt"), dir.join("rest.pem")).expect("a copy");
    let (roots, left_out) = read_roots_directory(&dir).expect("two certificates");
    assert_eq!(roots.len(), 2, "each once");
    assert_eq!(left_out.iter().map(|fault| &fault.path).collect::<Vec<_>>(), [&dir.join("broken.pem")]);
    let file = read_roots_directory(&dir.join("root.crt")).expect_err("a file");
    assert!(matches!(file.cause, FileCause::NotADirectory), "{file}");
}
