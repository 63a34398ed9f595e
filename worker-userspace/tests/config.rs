//! Configurations, right and wrong.
//!
//! `tests/config/*.toml` are right, and must mean exactly what is written here. `tests/config/*.txt` are lists
//! of wrong ones, each with every line that must be said about it, no more and no less.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dworker::config::{
    ApiKeySource, Appliance, ApplianceUrl, ClientCertificates, Config, Egress, Families, FileCause, Group,
    Key, KeySource, Loaded, LogFormat, Login, Metrics, PasswordSource, Proxy, ProxyLogin, Steer, TlsFiles,
    Upstream, User, Worker, WorkerUrl, read_roots,
};
use dworker::target::{Exempt, NoProxy, Pattern};
use proptest::prelude::*;

const KEY: &str = "dwk_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG";
/// Parts of secrets that stand in the lists of wrong configurations; no line may show one.
const SECRETS: [&str; 3] = ["456789abcdefghij", "hunter2", "battery"];

/// One wrong configuration.
struct Case {
    title: String,
    text: String,
    expected: String,
}

/// Takes a list apart: `=== title`, the file, `---`, the lines.
fn cases(list: &str) -> Vec<Case> {
    let cases: Vec<Case> = list
        .split("\n=== ")
        .skip(1)
        .map(|case| {
            let (title, rest) = case.split_once('\n').expect("a line behind the title");
            let rest = format!("\n{rest}\n");
            let (text, expected) =
                rest.split_once("\n---\n").unwrap_or_else(|| panic!("no `---` in {title:?}"));
            Case {
                title: title.to_owned(),
                text: text.trim_start_matches('\n').to_owned() + "\n",
                expected: expected.trim().to_owned(),
            }
        })
        .collect();
    assert!(!cases.is_empty(), "a list without cases");
    cases
}

/// What is said about a configuration, faults or warnings.
fn said(result: Result<Loaded, dworker::config::Faults>) -> String {
    match result {
        Err(faults) => faults.to_string(),
        Ok(loaded) => loaded.warnings.iter().map(|w| format!("warning: {w}")).collect::<Vec<_>>().join("\n"),
    }
}

fn parsed(text: &str) -> String {
    said(Config::parse(text, "dworker.toml"))
}

/// Runs a list and reports all cases that differ, each as the list would have to say it.
fn run(list: &str, mut said_about: impl FnMut(&str) -> String) {
    let mut wrong = String::new();
    for case in cases(list) {
        let said = said_about(&case.text);
        for secret in SECRETS {
            assert!(!said.contains(secret), "{}: a secret in {said:?}", case.title);
        }
        if said != case.expected {
            wrong += &format!("\n=== {}\n{}---\n{said}\n", case.title, case.text);
        }
    }
    assert!(wrong.is_empty(), "these cases differ; now they are:{wrong}");
}

#[test]
fn wrong_files_are_told_what_is_wrong() {
    run(include_str!("config/whole-file.txt"), parsed);
}

#[test]
fn wrong_workers_are_told_what_is_wrong() {
    run(include_str!("config/worker.txt"), parsed);
}

#[test]
fn wrong_hosts_are_told_what_is_wrong() {
    run(include_str!("config/hosts.txt"), parsed);
}

#[test]
fn wrong_appliances_are_told_what_is_wrong() {
    run(include_str!("config/appliance.txt"), parsed);
}

#[test]
fn wrong_steering_is_told_what_is_wrong() {
    run(include_str!("config/steer.txt"), parsed);
}

#[test]
fn wrong_proxies_are_told_what_is_wrong() {
    run(include_str!("config/proxy.txt"), parsed);
}

#[test]
fn wrong_telemetry_is_told_what_is_wrong() {
    run(include_str!("config/metrics.txt"), parsed);
}

#[test]
fn wrong_files_of_the_older_product_are_told_what_is_wrong() {
    let list = include_str!("config/ruby.txt");
    run(list, |text| said(Config::parse(text, "morpheus-worker.rb")));
    let cases = cases(list);
    assert!(cases.len() >= 30, "{}", cases.len());
    for case in cases {
        assert_eq!(case.expected.lines().count(), 1, "{}: more or less than one error", case.title);
    }
}

#[test]
fn wrong_ways_through_a_proxy_are_told_what_is_wrong() {
    run(include_str!("config/upstream.txt"), |text| {
        let worker =
            "appliance_url = \"https://appliance.example\"\nworker_key_file = \"/etc/dworker/worker.key\"\n";
        said(Config::parse(&format!("{worker}{text}"), "dworker.toml"))
    });
}

#[test]
fn named_files_that_are_wrong_are_told_what_is_wrong() {
    let dir = tempfile::tempdir().expect("a directory");
    let _listener = fill(dir.path());
    let path = dir.path().join("dworker.toml");
    let name = dir.path().to_str().expect("UTF-8");
    without_override(|| {
        run(include_str!("config/files.txt"), |text| {
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
    write("v1.crt", 0o644, include_bytes!("config/v1.crt"));
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
    assert_eq!(load("large.toml"), "DIR/large.toml: it is larger than 1 MiB: correct the path");

    fs::write(dir.path().join("latin1.toml"), b"log = \"info\"\n# Z\xfcrich\n").expect("latin1");
    assert_eq!(load("latin1.toml"), "DIR/latin1.toml:2: not UTF-8: save the file in UTF-8");

    nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    assert_eq!(load("pipe"), "DIR/pipe: it is not a regular file: correct the path");
}

#[test]
fn a_file_in_windows_manner_is_read_too() {
    let text = format!("\u{feff}{}", include_str!("config/worker.toml").replace('\n', "\r\n"));
    assert_eq!(
        Config::parse(&text, "dworker.toml"),
        Config::parse(include_str!("config/worker.toml"), "dworker.toml")
    );
    let faults = said(Config::parse(&text.replace("lanes = 8", "lanes = 9"), "dworker.toml"));
    assert_eq!(
        faults,
        "dworker.toml:8: lanes = 9: not between 1 and 8: write a number from 1 to 8, without quotes"
    );
}

#[test]
fn more_than_a_hundred_faults_are_counted() {
    let text: String = (0..250).map(|i| format!("colour{i} = 1\n")).collect();
    let faults = said(Config::parse(&text, "dworker.toml"));
    assert_eq!(faults.lines().count(), 101);
    assert_eq!(faults.lines().last(), Some("and 151 more faults: correct these first"));
    let text: String = (0..250).map(|i| format!("colour{i}\n")).collect();
    assert_eq!(said(Config::parse(&text, "dworker.toml")).lines().count(), 101);
}

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| text.parse().expect(text)).collect()
}

fn no_proxy(texts: &[&str]) -> NoProxy {
    texts.iter().map(|text| text.parse::<Exempt>().expect(text)).collect()
}

fn key() -> Key {
    KEY.parse().expect("a key")
}

#[test]
fn an_appliance_means_what_it_says() {
    let loaded = Config::parse(include_str!("config/appliance.toml"), "dworker.toml").expect("a good file");
    let expected = Config {
        state_dir: "/srv/dworker/state".into(),
        control_socket: "/srv/dworker/control.sock".into(),
        drain: Duration::from_secs(30),
        reload_drain: Duration::from_secs(8 * 3600),
        log: "warn,dworker=debug".into(),
        log_format: LogFormat::Json,
        metrics: Metrics { listen: vec!["127.0.0.1:9999".parse().unwrap(), "[::1]:9999".parse().unwrap()] },
        worker: None,
        appliance: Some(Appliance {
            listen: vec!["0.0.0.0:8443".parse().unwrap(), "[::]:8443".parse().unwrap()],
            tls: Some(TlsFiles::Pem {
                certificate: "/etc/dworker/tls.crt".into(),
                key: "/etc/dworker/tls.key".into(),
            }),
            clients: Some(ClientCertificates {
                ca_file: "/etc/dworker/workers-ca.pem".into(),
                required: false,
            }),
            groups: vec![
                Group {
                    name: "site-a".into(),
                    key: key().hash(),
                    proxy_hosts: patterns(&["vcenter.corp.example:443", "*.corp.example", "10.20.0.0/16"]),
                    may_open: true,
                },
                Group {
                    name: "site-b".into(),
                    key: "7f1e2c9b6f0b6d6a1c2f3e4d5c6b7a8990817263544536271809fedcba987654".parse().unwrap(),
                    proxy_hosts: patterns(&["[2001:db8::/32]:443,8000-8010", "vcenter.corp.example:902"]),
                    may_open: false,
                },
            ],
            failback: Duration::from_secs(90),
            events_age: Duration::from_secs(30 * 24 * 3600),
            events_max: 50_000,
        }),
        steer: Some(Steer {
            cgroups: vec!["/sys/fs/cgroup/system.slice/app.service".into(), "user.slice".into()],
            proxy_hosts: vec![],
            synthetic4: "100.64.0.0/10".parse().unwrap(),
            synthetic6: "fd00:1::/64".parse().unwrap(),
            families: Families { ipv4: true, ipv6: true },
            down_for: Duration::from_millis(500),
            exclude_cgroups: vec!["user.slice/user-0.slice".into()],
            exclude_users: vec![User::Name("backup".into()), User::Id(1000)],
            addresses_closed: true,
            pins: "/sys/fs/bpf/other".into(),
        }),
        proxy: None,
    };
    assert_eq!((loaded.config, loaded.warnings), (expected, vec![]));
}

#[test]
fn a_worker_means_what_it_says() {
    let loaded = Config::parse(include_str!("config/worker.toml"), "dworker.toml").expect("a good file");
    let expected = Config {
        state_dir: "/var/lib/dworker".into(),
        control_socket: "/run/dworker/control.sock".into(),
        drain: Duration::from_secs(10),
        reload_drain: Duration::from_secs(3600),
        log: "info".into(),
        log_format: LogFormat::Text,
        metrics: Metrics { listen: vec![Metrics::ADDRESS] },
        worker: Some(Worker {
            url: Some(WorkerUrl { host: "worker.example".parse().unwrap(), port: 8443 }),
            api_key: Some(ApiKeySource::File("/etc/dworker/apikey".into())),
            appliance: ApplianceUrl {
                host: "appliance.example".parse().unwrap(),
                port: 8443,
                plaintext: false,
            },
            key: KeySource::File("/etc/dworker/worker.key".into()),
            ca_file: Some("/etc/dworker/ca.pem".into()),
            ca_dir: Some("/etc/dworker/ca.d".into()),
            identity: Some(TlsFiles::Pem {
                certificate: "/etc/dworker/worker.crt".into(),
                key: "/etc/dworker/worker-tls.key".into(),
            }),
            lanes: 8,
            upstream: Some(Upstream {
                tls: true,
                host: "proxy.example".parse().unwrap(),
                port: 443,
                login: Some(ProxyLogin {
                    user: "worker@site".into(),
                    password: PasswordSource::File("/etc/dworker/upstream.password".into()),
                }),
                no_proxy: no_proxy(&["vcenter.corp.example", "*.lab.example:443", "10.20.0.0/16"]),
            }),
            egress: Egress {
                allow: Some(patterns(&["vcenter.corp.example:443", "10.20.0.0/16"])),
                deny: patterns(&["10.20.0.1"]),
                connect_timeout: Duration::from_secs(120),
            },
        }),
        appliance: None,
        steer: Some(Steer {
            cgroups: vec!["system.slice/backup.service".into()],
            proxy_hosts: patterns(&["appliance-side.example", "10.99.0.0/24:22"]),
            synthetic4: "240.64.0.0/16".parse().unwrap(),
            synthetic6: "2001:2::/48".parse().unwrap(),
            families: Families { ipv4: false, ipv6: true },
            down_for: Duration::from_secs(2),
            exclude_cgroups: vec![],
            exclude_users: vec![],
            addresses_closed: false,
            pins: "/sys/fs/bpf/dworker".into(),
        }),
        proxy: Some(Proxy {
            http: vec!["127.0.0.1:3128".parse().unwrap(), "[::1]:3128".parse().unwrap()],
            socks: vec!["127.0.0.1:1080".parse().unwrap()],
            login: Some(Login { user: "backup".into(), password_file: "/etc/dworker/proxy.password".into() }),
        }),
    };
    assert_eq!((loaded.config, loaded.warnings), (expected, vec![]));
}

#[test]
fn an_appliance_may_have_its_identity_in_one_file() {
    let text = include_str!("config/pkcs12.toml");
    let appliance = |text: &str| {
        let loaded = Config::parse(text, "dworker.toml").expect("a good file");
        loaded.config.appliance.expect("an appliance")
    };
    let whole = appliance(text);
    let file = || "/etc/dworker/tls.p12".into();
    let password_file = Some("/etc/dworker/tls.password".into());
    assert_eq!(whole.tls, Some(TlsFiles::Pkcs12 { file: file(), password_file }));
    let ca_file = "/etc/dworker/workers-ca.pem".into();
    assert_eq!(whole.clients, Some(ClientCertificates { ca_file, required: true }));
    let alone: String = text.lines().take(4).map(|line| format!("{line}\n")).collect();
    let alone = appliance(&alone);
    assert_eq!(alone.tls, Some(TlsFiles::Pkcs12 { file: file(), password_file: None }));
    assert_eq!(alone.clients, None);
}

#[test]
fn a_worker_may_leave_what_it_dials_to_its_appliance() {
    let worker = |egress: &str| {
        let top =
            "appliance_url = \"https://appliance.example\"\nworker_key_file = \"/etc/dworker/worker.key\"\n";
        Config::parse(&format!("{top}{egress}"), "dworker.toml")
            .expect("a good file")
            .config
            .worker
            .expect("a worker")
    };
    let default = Egress { allow: None, deny: vec![], connect_timeout: Duration::from_secs(10) };
    assert_eq!(worker("").egress, default);
    assert_eq!(worker("[egress]\n").egress, default);
    let deny = patterns(&["10.20.0.1"]);
    assert_eq!(worker("[egress]\ndeny = [\"10.20.0.1\"]\n").egress, Egress { deny, ..default });
}

#[test]
fn a_lab_means_what_it_says_and_is_warned() {
    let loaded = Config::parse(include_str!("config/lab.toml"), "lab.toml").expect("a good file");
    let worker = loaded.config.worker.as_ref().expect("a worker");
    // Its password can be read, and nothing else makes one.
    let upstream = worker.upstream.as_ref().expect("a proxy");
    assert_eq!(upstream.to_string(), "http://***@[2001:db8::1]:3128");
    assert_eq!(upstream.no_proxy, no_proxy(&["*.corp.example", "10.0.0.1", "*"]));
    let login = upstream.login.as_ref().expect("a user");
    assert_eq!(
        (login.user.as_str(), login.password.read().expect("a password").reveal()),
        ("lab", "hunter2")
    );
    assert!(!format!("{loaded:?}").contains("hunter2"));
    let expected = Config {
        state_dir: "/var/lib/dworker".into(),
        control_socket: "/run/dworker/control.sock".into(),
        drain: Duration::from_secs(10),
        reload_drain: Duration::from_secs(3600),
        log: "info".into(),
        log_format: LogFormat::Text,
        metrics: Metrics { listen: vec![Metrics::ADDRESS] },
        worker: Some(Worker {
            url: None,
            api_key: loaded.config.worker.as_ref().and_then(|worker| worker.api_key.clone()),
            appliance: ApplianceUrl { host: "10.0.0.1".parse().unwrap(), port: 80, plaintext: true },
            key: KeySource::Inline(key()),
            ca_file: None,
            ca_dir: None,
            identity: None,
            lanes: 2,
            upstream: worker.upstream.clone(),
            egress: Egress {
                allow: Some(patterns(&["10.20.0.0/16"])),
                deny: vec![],
                connect_timeout: Duration::from_secs(10),
            },
        }),
        appliance: Some(Appliance {
            listen: vec!["10.0.0.1:80".parse().unwrap()],
            tls: None,
            clients: None,
            groups: vec![Group {
                name: "lab".into(),
                key: key().hash(),
                proxy_hosts: patterns(&["10.20.0.0/16"]),
                may_open: false,
            }],
            failback: Duration::from_secs(60),
            events_age: Duration::from_secs(90 * 24 * 3600),
            events_max: 1_000_000,
        }),
        steer: Some(Steer {
            cgroups: vec!["lab".into()],
            proxy_hosts: vec![],
            synthetic4: "240.64.0.0/16".parse().unwrap(),
            synthetic6: "2001:2::/48".parse().unwrap(),
            families: Families { ipv4: true, ipv6: false },
            down_for: Duration::from_secs(2),
            exclude_cgroups: vec![],
            exclude_users: vec![],
            addresses_closed: false,
            pins: "/sys/fs/bpf/dworker".into(),
        }),
        proxy: Some(Proxy { http: vec!["10.0.0.1:3128".parse().unwrap()], socks: vec![], login: None }),
    };
    assert_eq!(loaded.config, expected);
    let shown = format!("{loaded:?}");
    assert!(!shown.contains(SECRETS[0]) && !shown.contains("FOR THIS"), "a key in {shown}");
    let Some(ApiKeySource::Inline(api_key)) = loaded.config.worker.and_then(|worker| worker.api_key) else {
        panic!("no API key")
    };
    assert_eq!(api_key.reveal(), "API KEY FOR THIS GATEWAY");
    let warned: Vec<(Option<usize>, &str)> =
        loaded.warnings.iter().map(|w| (w.line, w.key.as_str())).collect();
    let expected = [(5, "insecure_plaintext"), (14, "appliance.insecure_plaintext"), (25, "proxy.http")];
    assert_eq!(warned, expected.map(|(line, key)| (Some(line), key)));
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

/// What configurations are made of, so that random texts come near to meaning something.
fn soup() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "[appliance]\n",
        "[[appliance.groups]]\n",
        "[egress]\n",
        "[steer]\n",
        "[",
        "]",
        "{",
        "}",
        "\"",
        "\"\"\"",
        "'",
        "\n",
        "\r\n",
        " = ",
        "=",
        ",",
        ".",
        "#",
        "log",
        "drain",
        "lanes",
        "allow",
        "deny",
        "cgroups",
        "groups",
        "key",
        "listen",
        "families",
        "name",
        "proxy_hosts",
        "appliance_url",
        "appliance",
        "steer",
        "egress",
        "key_sha256",
        "worker_key",
        "proxy_address",
        "no_proxy",
        "\"http://u:p@a:1\"",
        "\"10s\"",
        "\"https://a\"",
        "[\"10.0.0.0/8\"]",
        "true",
        "0x10",
        "1e5",
        "inf",
        "2026-01-01",
        "99999999999999999999",
        "\\u0000",
        "\u{feff}",
        "é",
        "\u{202e}",
        "\0",
    ]);
    prop::collection::vec(prop_oneof![4 => word.prop_map(str::to_owned), 1 => "\\PC{0,8}"], 0..40)
        .prop_map(|words| words.concat())
}

/// Faults are one line each, of bounded length, and name the file.
fn check_lines(said: &str) -> Result<(), TestCaseError> {
    for line in said.lines() {
        let named = line.starts_with("dworker.toml:") || line.starts_with("warning: dworker.toml:");
        prop_assert!(named || line.ends_with("more faults: correct these first"), "{line:?}");
        prop_assert!(!line.contains(char::is_control), "{line:?}");
        prop_assert!(line.chars().count() < 2_000, "{line:?}");
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_text_panics(text in prop_oneof![any::<String>(), soup()]) {
        let result = Config::parse(&text, "dworker.toml");
        prop_assert!(result.is_ok() || !said(result.clone()).is_empty());
        check_lines(&said(result))?;
    }

    #[test]
    fn a_good_file_that_was_damaged_shows_no_secret(
        which in 0usize..3, at: prop::sample::Index, cut in 0usize..60, insert in soup(), paste: bool,
    ) {
        let files =
            [include_str!("config/appliance.toml"), include_str!("config/worker.toml"), include_str!("config/lab.toml")];
        let text: Vec<char> = files[which].chars().collect();
        let at = at.index(text.len());
        let paste = if paste { KEY } else { "" };
        let (head, tail) = (&text[..at], &text[(at + cut).min(text.len())..]);
        let damaged: String = head.iter().copied().chain(paste.chars()).chain(insert.chars()).chain(tail.iter().copied()).collect();
        let said = said(Config::parse(&damaged, "dworker.toml"));
        // Half a key without its `dwk_` looks like any other word; a whole one never shows.
        prop_assert!(!said.contains(&KEY["dwk_".len()..]), "{said}");
        check_lines(&said)?;
    }
}
