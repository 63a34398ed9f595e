//! The lab keeps its promises: who reaches whom, who knows which name, and that nothing stays behind.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use tests::{Dual, Host, Lab, net};

const SOON: Duration = Duration::from_secs(10);

/// Connects from one host; the address is the whole of the way, no resolver is asked.
fn connect(from: &Host, to: IpAddr, port: u16, within: Duration) -> Result<std::io::Result<TcpStream>> {
    from.within(|| TcpStream::connect_timeout(&SocketAddr::new(to, port), within))
}

fn listen(on: &Host, at: IpAddr, port: u16) -> Result<TcpListener> {
    Ok(on.within(|| TcpListener::bind((at, port)))??)
}

fn kind(result: std::io::Result<TcpStream>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

#[test]
fn the_router_lets_the_worker_out_and_nobody_in() -> Result<()> {
    let lab = Lab::new()?;
    for (appliance, site) in net::APPLIANCE.both().into_iter().zip(net::SITE.both()) {
        let _tunnel = listen(lab.appliance(), appliance, 443)?;
        let _other = listen(lab.appliance(), appliance, 8080)?;
        let _inbound = listen(lab.site(), site, 443)?;
        connect(lab.site(), appliance, 443, SOON)??;
        let refused = Some(ErrorKind::ConnectionRefused);
        assert_eq!(kind(connect(lab.site(), appliance, 8080, SOON)?), refused, "only 443 may leave the site");
        assert_eq!(kind(connect(lab.appliance(), site, 443, SOON)?), refused, "the site is closed");
        assert_eq!(kind(connect(lab.elsewhere(), site, 443, SOON)?), refused, "the site is closed");
        assert_eq!(kind(connect(lab.router(), site, 443, SOON)?), None, "the listener is there");
    }
    Ok(())
}

#[test]
fn only_the_site_reaches_the_vcenter_network() -> Result<()> {
    let lab = Lab::new()?;
    for address in net::VCENTER.both() {
        let _vcenter = listen(lab.vcenter(), address, 443)?;
        connect(lab.site(), address, 443, SOON)??;
        let from_outside = kind(connect(lab.appliance(), address, 443, SOON)?);
        assert_eq!(from_outside, Some(ErrorKind::NetworkUnreachable), "{address}");
    }
    Ok(())
}

#[test]
fn the_appliance_goes_elsewhere_directly() -> Result<()> {
    let lab = Lab::new()?;
    for (direct, appliance) in net::DIRECT.both().into_iter().zip(net::APPLIANCE.both()) {
        let server = listen(lab.elsewhere(), direct, 80)?;
        let _client = connect(lab.appliance(), direct, 80, SOON)??;
        assert_eq!(server.accept()?.1.ip(), appliance, "routed, not translated");
    }
    Ok(())
}

#[test]
fn bad_targets_fail_each_in_its_way() -> Result<()> {
    let lab = Lab::new()?;
    let failure = |to: Dual, within| -> Result<Vec<Option<ErrorKind>>> {
        to.both().into_iter().map(|address| Ok(kind(connect(lab.site(), address, 443, within)?))).collect()
    };
    assert_eq!(failure(net::REFUSED, SOON)?, [Some(ErrorKind::ConnectionRefused); 2]);
    assert_eq!(failure(net::UNREACHABLE, SOON)?, [Some(ErrorKind::HostUnreachable); 2]);
    assert_eq!(failure(net::SILENT, Duration::from_millis(300))?, [Some(ErrorKind::TimedOut); 2]);
    Ok(())
}

#[test]
fn each_side_knows_its_own_names_and_logs_the_questions() -> Result<()> {
    let lab = Lab::new()?;
    let ahosts = |host: &Host, name: &str| host.command("getent").args(["ahosts", name]).output();
    for (host, name, addresses) in [
        (lab.appliance(), "direct.example", net::DIRECT),
        (lab.appliance(), "appliance.example", net::APPLIANCE),
        (lab.site(), "appliance.example", net::APPLIANCE),
        (lab.site(), "vcenter.corp.example", net::VCENTER),
        (lab.site(), "echo.corp.example", net::ECHO),
    ] {
        let answer = ahosts(host, name)?.check()?;
        for address in addresses.both() {
            assert!(answer.contains(&address.to_string()), "{name} on {}: {answer}", host.name());
        }
    }
    assert_eq!(ahosts(lab.appliance(), "vcenter.corp.example")?.status.code(), Some(2), "getent: not found");
    assert!(lab.appliance_resolver().was_asked("vcenter.corp.example"));

    let dig = |host: &Host, name: &str, kind: &str| host.command("dig").args([name, kind]).check();
    assert!(dig(lab.appliance(), "vcenter.corp.example", "A")?.contains("status: NXDOMAIN"));
    let nodata = dig(lab.site(), "vc6only.corp.example", "A")?;
    assert!(nodata.contains("status: NOERROR") && nodata.contains("ANSWER: 0"), "{nodata}");
    assert!(dig(lab.site(), "vc6only.corp.example", "AAAA")?.contains("fd77:0:0:3::10"));
    let asked = lab.site_resolver().queries();
    let last = asked.last().expect("dig asked");
    assert_eq!((last.name.as_str(), last.kind.as_str()), ("vc6only.corp.example", "AAAA"));
    assert_eq!(last.from, IpAddr::V4(net::SITE_INSIDE.v4));

    // A large answer is cut over UDP and whole over TCP; the resolver listens on IPv6 too.
    let record = |letter: char| format!("txt-record=big.corp.example,{}\n", letter.to_string().repeat(200));
    lab.site_resolver().add(&('a'..='p').map(record).collect::<String>())?;
    let big = |how: &str| {
        lab.site().command("dig").args(["@fd77:0:0:3::53", "big.corp.example", "TXT", how]).check()
    };
    let cut = big("+ignore")?;
    assert!(cut.contains("flags: qr aa tc rd") && !cut.contains("aaaa"), "{cut}");
    assert!(big("+tcp")?.contains(&"a".repeat(200)));

    lab.site_resolver().add("host-record=late.corp.example,10.77.3.10")?;
    assert!(ahosts(lab.site(), "late.corp.example")?.check()?.contains("10.77.3.10"));
    assert!(lab.site_resolver().was_asked("vc6only.corp.example"), "a restart forgets no question");
    Ok(())
}

#[test]
fn a_captured_process_is_in_the_cgroup_and_sees_its_hosts_files() -> Result<()> {
    let lab = Lab::new()?;
    let host = lab.appliance();
    let cgroup = host.cgroup().path().file_name().expect("a name").to_string_lossy().into_owned();
    let captured = host.captured(tests::Command::new("cat").arg("/proc/self/cgroup")).check()?;
    assert!(captured.contains(&format!("/{cgroup}\n")), "{captured}");
    assert!(!host.command("cat").arg("/proc/self/cgroup").check()?.contains(&format!("/{cgroup}\n")));
    assert!(host.command("cat").arg("/etc/resolv.conf").check()?.contains("nameserver 10.77.4.53"));
    assert!(
        !std::fs::read_to_string("/etc/resolv.conf")?.contains("10.77.4.53"),
        "the machine's own is untouched"
    );
    // cgroupfs must be visible, or steering could not be attached from a host of the lab.
    assert!(host.command("ls").arg(host.cgroup().path()).check()?.contains("cgroup.procs"));
    let name = |host: &Host| host.command("uname").arg("-n").check();
    assert_eq!([name(host)?, name(lab.site())?], ["appliance\n", "site\n"], "each has its own name");
    let environment = host.command("env").check()?;
    assert!(!environment.to_lowercase().contains("proxy"), "{environment}");
    Ok(())
}

#[test]
fn the_scripts_for_people_enter_a_host_as_its_processes_do() -> Result<()> {
    let lab = Lab::new()?;
    let host = lab.appliance();
    let look = "cat /etc/resolv.conf /proc/self/cgroup; ip -brief address show eth0; uname -n";
    let run = |script: PathBuf| tests::Command::new("sh").arg(script).args(["sh", "-c", look]).check();
    let outside = run(host.enter())?;
    assert!(outside.contains("nameserver 10.77.4.53") && outside.contains("10.77.1.10/24"), "{outside}");
    assert!(!outside.contains("dwlab-"), "{outside}");
    let inside = run(host.enter_captured())?;
    assert!(inside.contains("10.77.1.10/24") && inside.contains("/appliance\n"), "{inside}");
    assert!(outside.ends_with("\nappliance\n") && inside.ends_with("\nappliance\n"), "{outside}{inside}");
    Ok(())
}

#[test]
fn the_next_run_sweeps_what_a_killed_one_left() -> Result<()> {
    let tool = env!("CARGO_BIN_EXE_lab-tool");
    let mut killed = tests::Command::new(tool).arg("lab").spawn()?;
    killed.wait_for_line("the lab is up", SOON)?;
    let mark = format!("dwlab-{}-", killed.pid());
    let script = killed.wait_for_line("appliance: sh ", SOON)?.replace("appliance: sh ", "");
    let stray =
        tests::Command::new("sh").arg(script).args(["sh", "-c", "echo in; exec sleep 1000"]).spawn()?;
    stray.wait_for_line("in", SOON)?;
    let traces = || -> Result<Vec<String>> {
        let cgroups = Lab::new()?.appliance().cgroup().path().ancestors().nth(2).map(PathBuf::from);
        let places = [Some("/run/netns".into()), Some(std::env::temp_dir()), cgroups];
        let entries = places.into_iter().flatten().flat_map(std::fs::read_dir).flatten().flatten();
        let names = entries.map(|entry| entry.path().display().to_string());
        Ok(names.filter(|name| name.contains(&mark)).collect())
    };
    assert_eq!(traces()?.len(), 5 + 1 + 1, "five hosts, a cgroup, a directory: {:?}", traces()?);
    tests::sweep()?;
    assert_eq!(traces()?.len(), 7, "a lab whose program runs is left alone");
    killed.kill9()?;
    assert!(stray.is_running(), "an orphan of the killed program");
    assert_eq!(traces()?.len(), 7, "a killed program cannot clean up");
    let swept = tests::sweep()?;
    assert_eq!(
        swept.0.iter().filter(|path| path.display().to_string().contains(&mark)).count(),
        7,
        "{swept:?}"
    );
    assert_eq!(traces()?, Vec::<String>::new());
    assert!(!stray.is_running(), "the orphan lives");
    Ok(())
}

#[test]
fn a_lab_kept_for_a_person_goes_when_told() -> Result<()> {
    let mut kept = tests::Command::new(env!("CARGO_BIN_EXE_lab-tool")).arg("lab").spawn()?;
    let script = kept.wait_for_line("appliance: sh ", SOON)?.replace("appliance: sh ", "");
    kept.wait_for_line("the lab is up", SOON)?;
    assert!(PathBuf::from(&script).exists());
    assert!(kept.stop(SOON)?.success(), "SIGTERM is the way to end it");
    assert!(!PathBuf::from(script).exists());
    Ok(())
}

#[test]
fn without_root_it_says_what_to_do() -> Result<()> {
    // A copy: the build directory may be readable to root only. By cp: had this process the file open for
    // writing, a fork of another test could keep it so, and exec would find it busy.
    let directory = tempfile::tempdir()?;
    let tool = directory.path().join("lab-tool");
    tests::Command::new("cp").arg(env!("CARGO_BIN_EXE_lab-tool")).arg(&tool).check()?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
    let output = std::process::Command::new(tool).arg("lab").uid(65534).current_dir("/").output()?;
    assert!(!output.status.success());
    let message = String::from_utf8(output.stderr)?;
    assert!(message.contains("run as root: sudo cargo xtask test"), "{message}");
    Ok(())
}

#[test]
fn a_process_is_watched_and_ended_with_all_that_it_started() -> Result<()> {
    let lab = Lab::new()?;
    let shell = |script: &str| lab.site().command("sh").args(["-c", script]);
    let mut process = shell("echo begin; sleep 1000 & echo child $!; wait").spawn()?;
    let child = process.wait_for_line("child ", SOON)?.replace("child ", "");
    assert!(process.is_running());
    assert!(process.wait_for_line("never", Duration::from_millis(50)).is_err());
    process.kill9()?;
    assert!(!process.is_running());
    let deadline = Instant::now() + SOON;
    while is_running(&child) {
        assert!(Instant::now() < deadline, "the child {child} lives");
        std::thread::yield_now();
    }

    let failed = shell("echo out; echo err >&2; exit 7").output()?;
    assert_eq!(
        (failed.status.code(), failed.stdout.as_str(), failed.stderr.as_str()),
        (Some(7), "out\n", "err\n")
    );
    let error = failed.check().expect_err("status 7 is a failure").to_string();
    assert!(error.contains("exit status: 7") && error.contains("err"), "{error}");
    assert_eq!(shell("cat").input("fed").check()?, "fed");
    let late = shell("sleep 1000").deadline(Duration::from_millis(100)).output();
    assert!(late.is_err_and(|error| error.to_string().contains("did not end")));
    let missing = lab.site().command("dwlab-no-such-tool").output().map(|_| ());
    assert!(missing.is_err_and(|error| error.to_string().contains("apt-get install")));
    Ok(())
}

#[test]
fn nothing_stays_after_a_drop_or_a_panic() -> Result<()> {
    for panics in [false, true] {
        let mut traces = Traces::default();
        let outcome = catch_unwind(AssertUnwindSafe(|| -> Result<()> {
            let lab = Lab::new()?;
            // Both are left running and unowned: a panic in a test would do the same.
            let script = "setsid sleep 1000 & echo $!; exec sleep 1000";
            let sleepers = [
                lab.appliance().captured(tests::Command::new("sh").args(["-c", script])),
                lab.vcenter().command("sh").args(["-c", script]),
            ];
            for sleeper in sleepers {
                let process = sleeper.spawn()?;
                traces.pids.push(process.wait_for("a number", SOON, |line| line.parse::<u32>().is_ok())?);
                std::mem::forget(process);
            }
            traces.paths.push(lab.directory().to_owned());
            for host in lab.hosts() {
                traces.paths.extend([host.netns().path().to_owned(), host.cgroup().path().to_owned()]);
            }
            traces.paths.extend(lab.appliance().cgroup().path().parent().map(PathBuf::from));
            assert_eq!(traces.left(), traces.all(), "all of it is there while the lab is");
            assert!(!panics, "as a failing test does");
            Ok(())
        }));
        assert_eq!(outcome.is_err(), panics);
        if let Ok(result) = outcome {
            result?;
        }
        assert_eq!(traces.left(), Vec::<String>::new(), "left behind, panic: {panics}");
    }
    Ok(())
}

/// What a lab makes, to look whether it is still there.
#[derive(Default)]
struct Traces {
    pids: Vec<String>,
    paths: Vec<PathBuf>,
}

impl Traces {
    fn all(&self) -> Vec<String> {
        self.pids.iter().cloned().chain(self.paths.iter().map(|p| p.display().to_string())).collect()
    }

    fn left(&self) -> Vec<String> {
        let is_there = |trace: &String| {
            if trace.starts_with('/') { PathBuf::from(trace).exists() } else { is_running(trace) }
        };
        self.all().into_iter().filter(is_there).collect()
    }
}

/// Whether a process runs; one that has ended but was not waited for does not.
fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
