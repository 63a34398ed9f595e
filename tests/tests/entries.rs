//! Clients that know proxies: curl, netcat, and SDKs that take a proxy from their environment, through HTTP `CONNECT`
//! and SOCKS5. None of them is captured; nothing is steered.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::traffic::Serve;
use tests::{Bytes, Command, Config, Daemon, Group, Host, Lab, Sdk, Signal, net};

const SOON: Duration = Duration::from_secs(30);
const PASSWORD: &str = "open \"sesame\":1";
/// What the group at the site owns.
const AT_SITE: [&str; 3] = ["*.corp.example", net::SITE_PREFIX4, net::SITE_PREFIX6];

/// How a client reaches an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Http,
    Http6,
    Socks,
}

impl By {
    const ALL: [By; 3] = [By::Http, By::Http6, By::Socks];

    /// As curl and others write it; SOCKS with the name left to the far end.
    fn url(self, user: &str) -> String {
        match self {
            By::Http => format!("http://{user}127.0.0.1:3128"),
            By::Http6 => format!("http://{user}[::1]:3128"),
            By::Socks => format!("socks5h://{user}127.0.0.1:1080"),
        }
    }

    fn entry(self) -> &'static str {
        if self == By::Socks { "socks" } else { "connect" }
    }
}

fn with_entries(config: Config) -> Config {
    config
        .set("proxy.http", json!(["127.0.0.1:3128", "[::1]:3128"]))
        .set("proxy.socks", json!(["127.0.0.1:1080"]))
}

/// An appliance with entries, and a worker at the site.
struct Site {
    appliance: Daemon,
    worker: Daemon,
}

impl Site {
    fn new(lab: &Lab, adjust: impl FnOnce(Config) -> Config) -> Result<Site> {
        let group = Group::new("site-a", AT_SITE)?;
        let config = with_entries(Config::new().appliance(&lab.appliance_identity()?, &[&group]));
        let appliance = lab.appliance().daemon("appliance", adjust(config))?;
        let worker =
            lab.site().daemon("worker", Config::new().worker(&group, lab.pki().ca_file(), AT_SITE))?;
        appliance.wait_for_group("site-a", SOON)?;
        Ok(Site { appliance, worker })
    }
}

/// curl's own words about one attempt.
#[derive(Debug)]
struct Curl {
    /// Its exit status: 0, 56 where `CONNECT` was refused, 97 where SOCKS5 was.
    status: Option<i32>,
    /// The status of the answer to `CONNECT`.
    connect: String,
    /// The status of the vCenter's own answer.
    answer: String,
    /// Headers and messages.
    said: String,
}

fn curl(host: &Host, lab: &Lab, proxy: &str, url: &str) -> Result<Curl> {
    let written = "%{http_connect} %{http_code}";
    let output = host
        .command("curl")
        .args(["--silent", "--show-error", "--verbose", "--output", "/dev/null", "--write-out", written])
        .args(["--max-time", "30", "--proxy", proxy])
        .arg("--cacert")
        .arg(lab.pki().ca_file())
        .arg(url)
        .output()?;
    let (connect, answer) =
        output.stdout.split_once(' ').with_context(|| format!("nothing from {output}"))?;
    Ok(Curl {
        status: output.status.code(),
        connect: connect.to_owned(),
        answer: answer.to_owned(),
        said: output.stderr,
    })
}

/// A netcat that connects through an entry; it ends its direction with its input.
fn netcat(by: By, target: &str, port: u16) -> Command {
    let (kind, proxy) = match by {
        By::Http => ("connect", "127.0.0.1:3128"),
        By::Http6 => ("connect", "[::1]:3128"),
        By::Socks => ("5", "127.0.0.1:1080"),
    };
    Command::new("nc.openbsd").args(["-N", "-X", kind, "-x", proxy, target, &port.to_string()])
}

#[test]
fn curl_reaches_the_vcenter_by_name_and_by_address() -> Result<()> {
    let lab = Lab::new()?;
    let _vsphere = lab.vsphere()?;
    let site = Site::new(&lab, |config| config)?;
    lab.explain(|| {
        let host = lab.appliance();
        let status = site.appliance.status()?;
        assert_eq!(
            status["proxy"],
            json!({"http": ["127.0.0.1:3128", "[::1]:3128"], "socks": ["127.0.0.1:1080"]})
        );
        let mut id = 0;
        for by in By::ALL {
            let addresses = net::VCENTER.both().map(|address| match address.is_ipv6() {
                true => format!("[{address}]"),
                false => address.to_string(),
            });
            for target in ["vcenter.corp.example", &addresses[0], &addresses[1]] {
                let tried = curl(host, &lab, &by.url(""), &format!("https://{target}/about"))?;
                assert_eq!(
                    (tried.status, tried.answer.as_str()),
                    (Some(0), "200"),
                    "{by:?} {target}: {tried:?}"
                );
                assert_eq!(tried.connect, if by == By::Socks { "000" } else { "200" });
                id += 1;
                let flow = site.appliance.ended_flow(id, SOON)?;
                // curl does not wait for the farewell of the vCenter's TLS, which may then be answered with a reset.
                let state = flow["state"].as_str().unwrap_or_default();
                assert!(["closed", "reset"].contains(&state) && flow["entry"] == by.entry(), "{flow:#}");
                assert_eq!(flow["target"], format!("{target}:443"));
                let source = flow["source"].as_str().unwrap_or_default();
                assert!(
                    source.starts_with(if by == By::Http6 { "[::1]:" } else { "127.0.0.1:" }),
                    "{flow:#}"
                );
                let dialled = site.worker.ended_flow(id, SOON)?;
                for same in ["target", "trace", "dialled"] {
                    assert_eq!(flow[same], dialled[same], "{same}");
                }
            }
        }
        // A client that resolves the name by itself asks in vain; the appliance's resolver is asked by nobody else.
        let local = curl(host, &lab, "socks5://127.0.0.1:1080", "https://vcenter.corp.example/about")?;
        assert_eq!(local.status, Some(97), "{local:?}");
        let asked = lab.appliance_resolver().queries().into_iter().filter(|q| q.name.contains("vcenter"));
        assert!(asked.count() <= 2, "A and AAAA of the last one");
        Ok(())
    })
}

#[test]
fn sdks_that_take_a_proxy_from_their_environment_list_the_machines() -> Result<()> {
    let lab = Lab::new()?;
    let _vsphere = lab.vsphere()?;
    let site = Site::new(&lab, |config| config)?;
    lab.explain(|| {
        let go = lab.sdk(Sdk::Go, ["list"])?;
        let java = lab.sdk(Sdk::Java, ["list"])?;
        for command in [
            go.clone().env("HTTPS_PROXY", "http://127.0.0.1:3128"),
            go.env("HTTPS_PROXY", "socks5://127.0.0.1:1080"),
            java.env("JAVA_TOOL_OPTIONS", "-Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=3128"),
        ] {
            let title = command.to_string();
            let listed = lab.appliance().uncaptured(command).check()?;
            assert_eq!(
                listed.lines().filter(|line| line.ends_with(" poweredOn")).count(),
                4,
                "{title}: {listed}"
            );
        }
        let flows = site.appliance.flows()?;
        let count = |entry: &str| flows.iter().filter(|flow| flow["entry"] == entry).count();
        assert!(count("connect") >= 2 && count("socks") >= 1, "{flows:#?}");
        Ok(())
    })
}

#[test]
fn every_byte_and_each_end_goes_through() -> Result<()> {
    const LENGTH: u64 = 20_000_003;
    let lab = Lab::new()?;
    let _hash = lab.vcenter().serve(Serve::Hash, net::ECHO, 7001)?;
    let _source = lab.vcenter().serve(Serve::Source { seed: 5, length: LENGTH }, net::ECHO, 7002)?;
    let echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7003)?;
    let _site = Site::new(&lab, |config| config)?;
    lab.explain(|| {
        let host = lab.appliance();
        let (name, file) = ("echo.corp.example", host.directory().join("bulk"));
        std::io::copy(&mut Bytes::new(9, LENGTH), &mut fs::File::create(&file)?)?;
        let shell = |script: String| host.command("sh").args(["-c", &script]).check();
        for (by, round) in By::ALL.into_iter().zip(1..) {
            let nc = |port| netcat(by, name, port).to_shell();
            // The answer is about all that was sent, and comes behind its end.
            let hash = shell(format!("{} < {}", nc(7001), file.display()))?;
            assert_eq!(hash, Bytes::new(9, LENGTH).sha256(), "{by:?}, up");
            let hash = shell(format!("{} < /dev/null | sha256sum", nc(7002)))?;
            assert_eq!(hash.trim_end_matches(" -\n").trim(), Bytes::new(5, LENGTH).sha256(), "{by:?}, down");
            let hash = shell(format!("{} < {} | sha256sum", nc(7003), file.display()))?;
            assert_eq!(hash.trim_end_matches(" -\n").trim(), Bytes::new(9, LENGTH).sha256(), "{by:?}, both");
            let seen = echo.wait_for_reports(round, SOON)?;
            assert_eq!((seen[round - 1].received, seen[round - 1].end.as_str()), (LENGTH, "eof"), "{by:?}");
        }
        Ok(())
    })
}

#[test]
fn what_cannot_be_reached_is_told_with_its_reason() -> Result<()> {
    let lab = Lab::new()?;
    // Reachable from the appliance itself, and no proxy host.
    let direct = lab.elsewhere().serve(Serve::Echo, net::DIRECT, 8000)?;
    let mut site = Site::new(&lab, |config| config)?;
    lab.explain(|| {
        let host = lab.appliance();
        let refused = [
            ("refused.corp.example:1", "502", "connection_refused", "(5)"),
            ("nobody.corp.example:443", "502", "dns_error", "(4)"),
            ("direct.example:8000", "403", "destination_not_found", "(2)"),
            ("127.0.0.1:3128", "403", "destination_not_found", "(2)"),
        ];
        for (target, status, error, reply) in refused {
            for by in [By::Http, By::Socks] {
                let tried = curl(host, &lab, &by.url(""), &format!("https://{target}/"))?;
                match by {
                    By::Socks => {
                        assert_eq!(tried.status, Some(97), "{target}: {tried:?}");
                        assert!(tried.said.contains(reply), "{target}: {tried:?}");
                    }
                    _ => {
                        assert_eq!(
                            (tried.status, tried.connect.as_str()),
                            (Some(56), status),
                            "{target}: {tried:?}"
                        );
                        let cause = format!("dworker; error={error}; details=");
                        assert!(tried.said.contains(&cause), "{target}: {tried:?}");
                    }
                }
            }
        }
        assert_eq!(direct.accepted(), 0, "it was dialled from the appliance");
        site.worker.stop(SOON)?;
        let tried = curl(host, &lab, &By::Http.url(""), "https://vcenter.corp.example/")?;
        assert_eq!(tried.connect, "503", "{tried:?}");
        assert!(tried.said.contains("error=destination_unavailable"), "{tried:?}");
        let plain = curl(host, &lab, &By::Http.url(""), "http://vcenter.corp.example/")?;
        assert_eq!((plain.status, plain.answer.as_str()), (Some(0), "405"), "{plain:?}");
        Ok(())
    })
}

#[test]
fn without_the_password_nobody_gets_through() -> Result<()> {
    let lab = Lab::new()?;
    let _vsphere = lab.vsphere()?;
    let file = lab.appliance().directory().join("proxy.password");
    fs::write(&file, format!("{PASSWORD}\n"))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let site = Site::new(&lab, |config| {
        config.set("proxy.user", "backup").set("proxy.password_file", file.display().to_string())
    })?;
    lab.explain(|| {
        let host = lab.appliance();
        let url = "https://vcenter.corp.example/about";
        for by in By::ALL {
            for user in ["", "backup:wrong@", "backup@", "other:open%20%22sesame%22%3A1@"] {
                let tried = curl(host, &lab, &by.url(user), url)?;
                match by {
                    By::Socks => assert_eq!(tried.status, Some(97), "{user}: {tried:?}"),
                    _ => assert_eq!(
                        (tried.status, tried.connect.as_str()),
                        (Some(56), "407"),
                        "{user}: {tried:?}"
                    ),
                }
            }
        }
        assert_eq!(site.appliance.status()?["flows"]["total"], 0, "a stranger got that far");
        for (by, id) in By::ALL.into_iter().zip(1..) {
            let tried = curl(host, &lab, &by.url("backup:open%20%22sesame%22%3A1@"), url)?;
            assert_eq!((tried.status, tried.answer.as_str()), (Some(0), "200"), "{tried:?}");
            assert_eq!(site.appliance.ended_flow(id, SOON)?["user"], "backup");
        }
        let (status, log) = (site.appliance.status()?, site.appliance.log());
        assert_eq!(status["proxy"]["user"], "backup");
        assert!(log.contains("wrong user or password"), "{log}");
        assert!(!log.contains("sesame") && !status.to_string().contains("sesame"), "{log}");
        Ok(())
    })
}

#[test]
fn a_workers_host_has_entries_over_its_uplink() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = lab.elsewhere().serve(Serve::Hash, net::DIRECT, 8000)?;
    let hq = Group::new("hq", ["direct.example:8000"])?;
    let (may, may_not) = (Group::new("site-a", AT_SITE)?.may_open(), Group::new("site-b", ["b.example"])?);
    let config = Config::new().appliance(&lab.appliance_identity()?, &[&hq, &may, &may_not]);
    let appliance = lab.appliance().daemon("appliance", config)?;
    let ca = lab.pki().ca_file();
    let _hq = lab.elsewhere().daemon("worker", Config::new().worker(&hq, ca, ["direct.example:8000"]))?;
    let site = lab.site().daemon("worker", with_entries(Config::new().worker(&may, ca, AT_SITE)))?;
    let denied = Config::new().worker(&may_not, ca, AT_SITE).set("proxy.http", "127.0.0.1:3129");
    let denied = lab.site().daemon("denied", denied)?;
    for daemon in [&site, &denied] {
        daemon.wait_for_status("its uplink", SOON, |status| status["worker"]["connected"] == true)?;
    }
    appliance.wait_for_group("hq", SOON)?;
    lab.explain(|| {
        for by in By::ALL {
            let said =
                lab.site().uncaptured(netcat(by, "direct.example", 8000).input("a question")).check()?;
            let expected = Command::new("sha256sum").input("a question").check()?;
            assert_eq!(said, expected.trim_end_matches(" -\n").trim(), "{by:?}");
        }
        let refused = curl(lab.site(), &lab, &By::Http.url(""), "https://vcenter.elsewhere.example/")?;
        assert_eq!(refused.connect, "403", "{refused:?}");
        let refused = curl(lab.site(), &lab, "http://127.0.0.1:3129", "https://direct.example:8000/")?;
        assert_eq!(refused.connect, "403", "{refused:?}");
        assert!(
            refused.said.contains("destination_ip_prohibited") && refused.said.contains("may_open"),
            "{refused:?}"
        );
        Ok(())
    })
}

/// What a captured application, and clients that know proxies, had asked of a worker that falls silent, the next one
/// does: nobody notices more than the time that it takes to be sure.
#[test]
fn what_a_silent_worker_was_asked_for_is_done_by_the_standby() -> Result<()> {
    let lab = Lab::new()?;
    let _vsphere = lab.vsphere()?;
    let tunnel = lab.tunnel_with(AT_SITE, AT_SITE, with_entries)?;
    let config = Config::new().worker(&tunnel.group, lab.pki().ca_file(), AT_SITE);
    let standby = lab.site().daemon("standby", config)?;
    let both = |status: &Value| status["appliance"]["groups"][0]["nodes"].as_array().map(Vec::len) == Some(2);
    tunnel.appliance.wait_for_status("two nodes", SOON, both)?;
    lab.explain(|| {
        let host = lab.appliance();
        tunnel.worker.process().signal(Signal::SIGSTOP)?;
        let started = Instant::now();
        let curl = |proxy: &str| {
            let ca = lab.pki().ca_file();
            let command =
                Command::new("curl").args(["--silent", "--show-error", "--max-time", "30", "--proxy", proxy]);
            command.arg("--cacert").arg(ca).args([
                "--output",
                "/dev/null",
                "https://vcenter.corp.example/about",
            ])
        };
        let mut clients = vec![
            host.captured(curl("")).spawn()?,
            host.uncaptured(curl(&By::Http.url(""))).spawn()?,
            host.uncaptured(curl(&By::Socks.url(""))).spawn()?,
        ];
        for client in &mut clients {
            let status = client.wait(SOON)?;
            assert!(status.success(), "{status}: {}", client.stderr());
        }
        assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
        tunnel.worker.process().signal(Signal::SIGCONT)?;
        for id in 1..=3 {
            let flow = tunnel.appliance.ended_flow(id, SOON)?;
            // Once, or twice where the other lane of the silent worker was tried in between.
            assert!(flow["retries"].as_u64().is_some_and(|retries| retries <= 2), "{flow:#}");
        }
        assert_eq!(standby.status()?["flows"]["total"], 3);
        Ok(())
    })
}

#[test]
fn an_entry_that_cannot_listen_says_which() -> Result<()> {
    let lab = Lab::new()?;
    let host = lab.appliance();
    let taken = host.within(|| std::net::TcpListener::bind("127.0.0.1:1080"))??;
    let group = Group::new("site-a", AT_SITE)?;
    let config = with_entries(Config::new().appliance(&lab.appliance_identity()?, &[&group]));
    let file = host.configure("appliance", config)?;
    let output = host.dworker(["run", "--config"])?.arg(&file).output()?;
    assert!(!output.status.success());
    assert!(output.stderr.contains("proxy.socks = 127.0.0.1:1080: Address already in use"), "{output}");
    drop(taken);
    Ok(())
}
