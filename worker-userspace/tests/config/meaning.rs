//! Right ones, and exactly what they mean.

use std::time::Duration;

use dworker::config::{
    ApiKeySource, Appliance, ApplianceUrl, ClientCertificates, Config, Egress, Families, Group, KeySource,
    LogFormat, Login, Metrics, PasswordSource, Proxy, ProxyLogin, Steer, TlsFiles, Upstream, User, Worker,
    WorkerUrl,
};
use dworker::target::{Exempt, NoProxy, Pattern};

use super::{SECRETS, key};

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| text.parse().expect(text)).collect()
}

fn no_proxy(texts: &[&str]) -> NoProxy {
    texts.iter().map(|text| text.parse::<Exempt>().expect(text)).collect()
}

/// What holds of a configuration that says nothing.
fn defaults() -> Config {
    Config {
        state_dir: "/var/lib/dworker".into(),
        control_socket: "/run/dworker/control.sock".into(),
        drain: Duration::from_secs(10),
        reload_drain: Duration::from_secs(3600),
        log: "info".into(),
        log_format: LogFormat::Text,
        metrics: Metrics { listen: vec![Metrics::ADDRESS] },
        worker: None,
        appliance: None,
        steer: None,
        proxy: None,
    }
}

#[test]
fn an_appliance_means_what_it_says() {
    let loaded = Config::parse(include_str!("appliance.toml"), "dworker.toml").expect("a good file");
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
    let loaded = Config::parse(include_str!("worker.toml"), "dworker.toml").expect("a good file");
    let expected = Config {
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
        ..defaults()
    };
    assert_eq!((loaded.config, loaded.warnings), (expected, vec![]));
}

#[test]
fn an_appliance_may_have_its_identity_in_one_file() {
    let text = include_str!("pkcs12.toml");
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
    let loaded = Config::parse(include_str!("lab.toml"), "lab.toml").expect("a good file");
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
        ..defaults()
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
