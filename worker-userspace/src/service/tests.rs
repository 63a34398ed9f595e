use super::*;
use crate::config::Environment;

const WORKER: &str = "appliance_url = \"https://appliance.example\"\n\
                      worker_key = \"dwk_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaA\"\n";
const APPLIANCE: &str =
    "[appliance]\nlisten = [\"0.0.0.0:443\"]\ninsecure_plaintext = true\n[steer]\ncgroups = [\"a.slice\"]\n";
const FILE: &str = "/etc/dworker/dworker.toml";

/// Does nothing but remember, and lets the host change as the steps say.
struct Fake {
    found: Found,
    done: Vec<Step>,
    /// The service does not start.
    fails: Option<Fails>,
}

#[derive(Clone, Copy)]
enum Fails {
    /// With this in its drop-in.
    With(&'static str),
    /// With the configuration that is there, whatever the unit is.
    Always,
}

/// A file of root's.
fn roots(mode: u32) -> Access {
    Access { uid: 0, mode }
}

impl Executor for Fake {
    fn carry_out(&mut self, step: &Step) -> Result<(), HostError> {
        self.done.push(step.clone());
        let found = &mut self.found;
        match step {
            Step::Directory { path, mode, .. } => drop(found.modes.insert(path.clone(), roots(*mode))),
            Step::Mode { path, to, .. } => drop(found.modes.insert(path.clone(), roots(*to))),
            Step::Remove { path, .. } => {
                assert_eq!(path, Path::new(DROP_IN));
                found.drop_in = None;
            }
            Step::Write { path, after, .. } if path == Path::new(UNIT) => found.unit = Some(after.clone()),
            Step::Write { path, after, .. } => {
                assert_eq!(path, Path::new(DROP_IN));
                found.drop_in = Some(after.clone());
            }
            Step::Manage { action, .. } => {
                let stamp = found.drop_in.as_ref().and_then(|text| {
                    text.lines()
                        .find_map(|line| line.strip_prefix("Environment=DWORKER_UNIT=").map(str::to_owned))
                });
                if let Action::Enable = action {
                    found.enabled = true;
                }
                let text = found.drop_in.clone().unwrap_or_default();
                if matches!(action, Action::Start | Action::Restart)
                    && match self.fails {
                        Some(Fails::With(bad)) => text.contains(bad),
                        Some(Fails::Always) => true,
                        None => false,
                    }
                {
                    found.service.as_mut().expect("systemd").active = false;
                    return Err(HostError::Failed {
                        command: "systemctl".into(),
                        said: "it does not start".into(),
                    });
                }
                let service = found.service.as_mut().expect("systemd");
                match action {
                    Action::ReadUnits => service.stale = false,
                    Action::Enable => {}
                    Action::Start | Action::Restart => {
                        let named =
                            text.lines().find_map(|line| Some(line.split_once("reload --socket ")?.1));
                        service.socket = Some(named.unwrap_or(DEFAULT_SOCKET).into());
                        (service.active, service.settings, service.news) = (true, stamp, Ok(Vec::new()));
                    }
                    Action::Reload => service.news = Ok(Vec::new()),
                }
            }
        }
        Ok(())
    }
}

fn wanted(text: &str) -> Wanted {
    let loaded = Config::parse_in(text, FILE, &Environment::default()).unwrap();
    Wanted::of(&loaded, Path::new("/usr/bin/dworker"), Some(Path::new(FILE)), false)
}

/// A host where a package has just been installed.
fn installed() -> Found {
    let modes = [(FILE.into(), roots(0o600))].into();
    let (packaged, service) = (Some("[Service]\n".into()), Some(Service::idle()));
    Found { packaged, service, modes, systemd: Some(252), ..Found::default() }
}

impl Service {
    fn idle() -> Service {
        Service {
            active: false,
            pid: None,
            stale: false,
            settings: None,
            environment: Vec::new(),
            socket: None,
            news: Ok(Vec::new()),
        }
    }
}

/// The actions of a plan.
fn actions(plan: &Plan) -> Vec<Action> {
    let action = |step: &Step| match step {
        Step::Manage { action, .. } => Some(*action),
        _ => None,
    };
    plan.steps.iter().filter_map(action).collect()
}

/// Carries a plan out and asserts that there is nothing left to do.
fn settle(wanted: &Wanted, found: Found) -> Found {
    let mut fake = Fake { found, done: Vec::new(), fails: None };
    let first = plan(wanted, &fake.found);
    assert_eq!(first.faults, [""; 0]);
    first.steps.iter().for_each(|step| fake.carry_out(step).unwrap());
    assert_eq!(fake.done, first.steps);
    assert_eq!(plan(wanted, &fake.found).steps, [], "a second run has nothing to do");
    fake.found
}

#[test]
fn a_fresh_package_is_started_and_then_nothing_is_left_to_do() {
    let wanted = wanted(WORKER);
    let first = plan(&wanted, &installed());
    assert_eq!(actions(&first), [Action::ReadUnits, Action::Enable, Action::Start]);
    assert!(first.notes.is_empty(), "{:?}", first.notes);
    let found = settle(&wanted, installed());
    assert_eq!(found.unit, None, "the package's unit does");
}

#[test]
fn without_a_package_the_unit_is_written_and_kept_up() {
    let wanted = wanted(WORKER);
    let found = settle(&wanted, Found { packaged: None, ..installed() });
    let unit = found.unit.clone().unwrap();
    assert!(unit.contains("ExecStart=/usr/bin/dworker run"), "{unit}");
    // An earlier version's.
    let old = Found { unit: Some(unit.replace("WatchdogSec=30s", "WatchdogSec=60s")), ..found.clone() };
    assert_eq!(actions(&plan(&wanted, &old)), [Action::ReadUnits], "the daemon runs under this one");
    let old = settle(&wanted, old);
    assert_eq!(old.unit.as_deref(), Some(&*unit));
    // An administrator's own is left alone.
    let own = Found { unit: Some("[Service]\nExecStart=/x\n".into()), ..found };
    let plan = plan(&wanted, &own);
    assert!(plan.notes[0].contains("left as it is"), "{:?}", plan.notes);
    assert!(
        !plan.steps.iter().any(|step| matches!(step, Step::Write { path, .. } if path == Path::new(UNIT)))
    );
}

#[test]
fn a_change_is_reloaded_where_that_does_and_restarted_only_where_not() {
    let worker = wanted(WORKER);
    let running = settle(&worker, installed());
    let changed = |change: &dyn Fn(&mut Found)| {
        let mut found = running.clone();
        change(&mut found);
        let plan = plan(&worker, &found);
        settle(&worker, found);
        actions(&plan)
    };
    let service = |found: &mut Found, change: &dyn Fn(&mut Service)| change(found.service.as_mut().unwrap());
    assert_eq!(changed(&|_| {}), []);
    assert_eq!(
        changed(&|found| service(found, &|s| s.news = Ok(vec!["changed: lanes".into()]))),
        [Action::Reload]
    );
    assert_eq!(changed(&|found| service(found, &|s| s.active = false)), [Action::Start]);
    assert_eq!(changed(&|found| service(found, &|s| s.stale = true)), [Action::ReadUnits]);
    assert_eq!(changed(&|found| found.enabled = false), [Action::Enable]);
    // What only a start brings into force.
    let restart = [Action::ReadUnits, Action::Restart];
    assert_eq!(changed(&|found| found.packaged = Some("[Service]\nNoNewPrivileges=yes\n".into())), restart);
    assert_eq!(
        changed(&|found| found.others = vec!["[Service]\nEnvironment=DWORKER_LANES=4\n".into()]),
        restart
    );
    let credential = |mark: &'static str| {
        move |found: &mut Found| {
            found.credentials = [("worker_key".to_owned(), mark.to_owned())].into();
        }
    };
    assert_eq!(changed(&credential("one")), restart);
    assert_eq!(changed(&|found| found.handed = vec!["/etc/default/dworker 12 3 4.5".into()]), restart);
    // A stop may take longer: systemd only has to know.
    let patient = wanted(&format!("drain = \"60s\"\n{WORKER}"));
    let mut found = running.clone();
    found.service.as_mut().unwrap().news = Ok(vec!["changed: drain".into()]);
    assert_eq!(actions(&plan(&patient, &found)), [Action::ReadUnits, Action::Reload]);
    let found = settle(&patient, found);
    assert!(found.drop_in.unwrap().contains("\nTimeoutStopSec=80s\n"));
}

#[test]
fn a_run_that_was_cut_short_is_made_up_for() {
    let wanted = wanted(WORKER);
    let whole = plan(&wanted, &installed()).steps;
    for done in 0..whole.len() {
        let mut fake = Fake { found: installed(), done: Vec::new(), fails: None };
        whole[..done].iter().for_each(|step| fake.carry_out(step).unwrap());
        let found = settle(&wanted, fake.found);
        assert!(found.enabled && found.service.unwrap().active, "cut after {done} steps");
    }
    // Also where it was cut between the files and the restart that they need.
    let running = settle(&wanted, installed());
    let changed = Found { packaged: Some("[Service]\nUMask=0007\n".into()), ..running };
    let steps = plan(&wanted, &changed).steps;
    let mut fake = Fake { found: changed, done: Vec::new(), fails: None };
    fake.carry_out(&steps[0]).unwrap();
    assert_eq!(actions(&plan(&wanted, &fake.found)), [Action::Restart]);
}

#[test]
fn roles_that_are_not_there_have_no_capabilities() {
    let drop_in = |text: &str| settle(&wanted(text), installed()).drop_in.unwrap();
    let worker = drop_in(WORKER);
    assert!(worker.contains("\nCapabilityBoundingSet=~CAP_BPF CAP_PERFMON CAP_NET_ADMIN\n"), "{worker}");
    assert!(worker.contains("\nCapabilityBoundingSet=~CAP_NET_BIND_SERVICE\n"), "{worker}");
    let entry = drop_in(&format!("{WORKER}[proxy]\nhttp = [\"127.0.0.1:80\"]\n"));
    assert!(!entry.contains("~CAP_NET_BIND_SERVICE"), "{entry}");
    let appliance = drop_in(APPLIANCE);
    assert!(!appliance.contains("Capability"));
    // The slice that is captured is there first.
    assert!(
        appliance.contains("[Unit]\n# ") && appliance.contains("\nWants=a.slice\nAfter=a.slice\n"),
        "{appliance}"
    );
    let others = drop_in(
        &APPLIANCE.replace("\"a.slice\"", "\"system.slice/a.service\", \"/\", \"a.slice/a-b.slice\""),
    );
    assert!(others.contains("\nWants=a-b.slice\n"), "{others}");
}

#[test]
fn what_the_unit_would_hide_is_shown() {
    let text = format!(
        "state_dir = \"/srv/dworker\"\ncontrol_socket = \"/srv/run/c.sock\"\nca_file = \"/root/ca.pem\"\n{WORKER}"
    );
    let wanted = wanted(&text);
    let found = settle(&wanted, installed());
    assert_eq!(found.modes[Path::new("/srv/dworker")], roots(0o700));
    assert_eq!(found.modes[Path::new("/srv/run")], roots(0o755));
    let drop_in = found.drop_in.unwrap();
    for line in [
        "ReadWritePaths=/srv/dworker",
        "ReadWritePaths=/srv/run",
        "RequiresMountsFor=/srv/dworker",
        "ProtectHome=read-only",
        "ExecReload=/usr/bin/dworker reload --socket /srv/run/c.sock",
    ] {
        assert!(drop_in.lines().any(|found| found == line), "{line}\n{drop_in}");
    }
    assert!(!drop_in.contains("PrivateTmp"));
}

#[test]
fn a_reload_asks_where_the_daemon_listens() {
    let with = |socket: &str| wanted(&format!("control_socket = {socket:?}\n{WORKER}"));
    // Also in the directory of the default.
    let running = settle(&with("/run/dworker/a.sock"), installed());
    let asks = "\nExecReload=/usr/bin/dworker reload --socket /run/dworker/a.sock\n";
    assert!(running.drop_in.as_ref().unwrap().contains(asks), "{running:?}");
    // At another one nobody listens before a restart.
    let mut found = running.clone();
    found.service.as_mut().unwrap().news = Ok(vec!["changed: control_socket".into()]);
    let moved = with("/run/dworker/b.sock");
    assert_eq!(actions(&plan(&moved, &found)), [Action::ReadUnits, Action::Restart]);
    settle(&moved, found);
    let home = settle(&with(DEFAULT_SOCKET), running);
    assert!(!home.drop_in.unwrap().contains("ExecReload"));
}

#[test]
fn a_secret_is_the_owners_alone_and_credentials_are_loaded() {
    let wanted = wanted(WORKER);
    let mut found = installed();
    found.modes = [(FILE.into(), roots(0o644)), (CREDENTIALS.into(), roots(0o755))].into();
    found.credentials = [("apikey".into(), "1".into()), ("api_key".into(), "1".into())].into();
    let plan = plan(&wanted, &found);
    assert!(
        plan.notes[0].contains("nothing takes api_key") && plan.notes[0].contains("worker_key"),
        "{:?}",
        plan.notes
    );
    let found = settle(&wanted, found);
    assert_eq!(found.modes.values().collect::<Vec<_>>(), [&roots(0o700), &roots(0o600)]);
    assert!(found.drop_in.unwrap().contains("\nLoadCredential=apikey:/etc/dworker/credentials/apikey\n"));
    // No secret, no change.
    let open = Found { modes: [(FILE.into(), roots(0o644))].into(), ..installed() };
    assert_eq!(settle(&super::tests::wanted(APPLIANCE), open).modes[Path::new(FILE)], roots(0o644));
}

#[test]
fn a_plan_shows_what_it_would_change() {
    let running = settle(&wanted(WORKER), installed());
    let shown = plan(&wanted(&format!("drain = \"60s\"\n{WORKER}")), &running).to_string();
    let expected = "would change /etc/systemd/system/dworker.service.d/10-reconfigure.conf: what the configuration adds \
                    to the unit\n--- /etc/systemd/system/dworker.service.d/10-reconfigure.conf\n\
                    +++ /etc/systemd/system/dworker.service.d/10-reconfigure.conf\n@@ ";
    assert!(shown.starts_with(expected), "{shown}");
    let taken_out = shown.lines().filter(|line| line.starts_with('-') && !line.starts_with("---"));
    assert!(shown.contains("\n+TimeoutStopSec=80s\n") && taken_out.count() == 0, "{shown}");
    assert!(shown.ends_with("would have systemd read its units: its files have changed\n"), "{shown}");
    let fresh = plan(&wanted(WORKER), &installed()).to_string();
    assert!(fresh.contains("\n--- /dev/null\n"), "{fresh}");
}

#[test]
fn below_a_root_nothing_is_started() {
    let found = Found { service: None, ..installed() };
    let plan = plan(&wanted(WORKER), &found);
    assert_eq!(actions(&plan), [Action::Enable]);
    assert!(plan.notes[0].contains("nothing is started"), "{:?}", plan.notes);
}

#[test]
fn an_older_systemd_gets_only_what_it_takes() {
    let under = |systemd: Option<u32>, text: &str| {
        let found = settle(&wanted(text), Found { systemd, ..installed() });
        let drop_in = found.drop_in.unwrap();
        let lines: Vec<String> = drop_in.lines().map(str::to_owned).collect();
        move |line: &str| lines.iter().any(|found| found == line)
    };
    let (admin, filter) = ("CapabilityBoundingSet=CAP_SYS_ADMIN", "SystemCallFilter=@system-service");
    // Amazon Linux 2, Ubuntu 18.04: an allow list that names a group which they do not know allows nothing.
    for systemd in [Some(219), Some(237), None] {
        let has = under(systemd, APPLIANCE);
        assert!(has(admin) && !has(filter) && !has("SystemCallFilter=bpf"), "{systemd:?}");
        assert!(!under(systemd, WORKER)(admin), "{systemd:?}");
        assert_eq!(has("StartLimitInterval=0"), systemd == Some(219));
    }
    let has = under(Some(245), APPLIANCE);
    assert!(has(admin) && has(filter) && has("SystemCallFilter=bpf"));
    let has = under(Some(252), APPLIANCE);
    assert!(!has(admin) && has(filter) && !has("RestartSteps=20"));
    assert!(!under(Some(252), WORKER)("SystemCallFilter=bpf") && under(Some(254), WORKER)("RestartSteps=20"));
    // An older one makes no StateDirectory=.
    assert_eq!(
        settle(&wanted(WORKER), Found { systemd: Some(219), ..installed() }).modes[Path::new(OWN[0])],
        roots(0o700)
    );
    let mut found = Found { systemd: Some(245), ..installed() };
    found.credentials = [("worker_key".into(), "1".into())].into();
    assert!(plan(&wanted(WORKER), &found).faults[0].contains("worker_key_file"));
    found.systemd = Some(247);
    settle(&wanted(WORKER), found);
}

#[test]
fn what_the_service_could_not_do_is_told_beforehand() {
    let fault = |text: &str, found: Found| {
        let faults = plan(&wanted(text), &found).faults;
        assert!(faults.len() < 2, "{faults:?}");
        faults.into_iter().next().unwrap_or_default()
    };
    let told = |lines: &str| fault(&format!("{lines}\n{WORKER}"), installed());
    for socket in ["/run/c.sock", "/var/run/c.sock", "/tmp/x/c.sock", "/dev/shm/c.sock"] {
        assert!(told(&format!("control_socket = {socket:?}")).contains("of its own below /run"), "{socket}");
    }
    for state in ["/run/x", "/tmp/x", "/dev/shm/x"] {
        assert!(told(&format!("state_dir = {state:?}")).contains("at the next boot"), "{state}");
    }
    let steer = format!("{WORKER}[steer]\ncgroups = [\"a.slice\"]\nproxy_hosts = [\"a.example\"]\n");
    assert!(fault(&format!("{steer}pins = \"/mnt/bpf/x\"\n"), installed()).contains("/sys/fs/bpf only"));
    assert_eq!(fault(&format!("{steer}pins = \"/sys/fs/bpf/x/y\"\n"), installed()), "");
    // Below /run the directory is systemd's to make.
    let text = format!("control_socket = \"/run/x/c.sock\"\n{WORKER}");
    let found = settle(&wanted(&text), installed());
    let drop_in = found.drop_in.clone().unwrap();
    assert!(drop_in.contains("\nRuntimeDirectory=x\n") && !drop_in.contains("ReadWritePaths"), "{drop_in}");
    assert!(!found.modes.contains_key(Path::new("/run/x")));
    assert!(fault(&text, Found { foreign_runtime: true, ..installed() }).contains("files of others"));
    let unwritable = vec![("/var/lib/dworker".into(), "denied".into())];
    assert!(fault(WORKER, Found { unwritable, ..installed() }).contains("chown -R root:"));
    // A program of somebody's own is not that of a root service.
    let bare = || Found { packaged: None, ..installed() };
    let anothers = || Some("user 1000 may change /usr/bin".to_owned());
    assert!(fault(WORKER, Found { program: anothers(), ..bare() }).contains("/usr/local/bin"));
    assert_eq!(
        fault(WORKER, Found { program: anothers(), ..installed() }),
        "",
        "the package's unit names its own"
    );
    let mut home = wanted(WORKER);
    home.program = "/home/a/target/release/dworker".into();
    assert!(plan(&home, &bare()).faults[0].contains("sees nothing of /home"));
}

#[test]
fn a_daemon_that_cannot_be_asked_is_restarted_only_on_demand() {
    let mut wanted = wanted(WORKER);
    let mut found = settle(&wanted, installed());
    found.service.as_mut().unwrap().news = Err("it can't be asked: no answer".into());
    let faults = plan(&wanted, &found).faults;
    assert!(faults[0].contains("no answer") && faults[0].contains("--restart"), "{faults:?}");
    wanted.restart = true;
    assert_eq!(actions(&plan(&wanted, &found)), [Action::Restart]);
    settle(&wanted, found);
}

#[test]
fn a_service_that_does_not_start_with_what_is_new_runs_with_what_was() {
    let running = settle(&wanted(WORKER), installed());
    let changed = wanted(&format!("state_dir = \"/srv/x\"\n{WORKER}"));
    let mut fake = Fake { found: running.clone(), done: Vec::new(), fails: Some(Fails::With("/srv/x")) };
    let plan = plan(&changed, &running);
    let error = carry_out(&plan, &mut fake, |_| {}).unwrap_err().to_string();
    assert!(
        error.contains("does not start") && error.contains("is put back, and the service runs so"),
        "{error}"
    );
    assert_eq!((&fake.found.drop_in, &fake.found.service), (&running.drop_in, &running.service));
    // It is the configuration, which nobody puts back.
    fake.fails = Some(Fails::Always);
    let error = carry_out(&plan, &mut fake, |_| {}).unwrap_err().to_string();
    assert!(
        error.contains("does not run as before either") && error.contains("run `dworker reconfigure`"),
        "{error}"
    );
    assert!(!fake.found.service.unwrap().active && fake.found.drop_in == running.drop_in);
}

#[test]
fn a_daemon_that_runs_is_not_stopped_for_what_would_not_start() {
    let mut found = settle(&wanted(WORKER), installed());
    found.unfit = vec!["proxy.http = 127.0.0.1:80: Address already in use".into()];
    let news = |found: &mut Found| found.service.as_mut().unwrap().news = Ok(vec!["changed: lanes".into()]);
    // Without a restart it is not stopped.
    assert_eq!(plan(&wanted(WORKER), &found).faults, [""; 0]);
    news(&mut found);
    let reload = plan(&wanted(WORKER), &found);
    assert_eq!((actions(&reload), reload.faults), (vec![Action::Reload], vec![]));
    let restart = plan(&wanted(&format!("state_dir = \"/srv/x\"\n{WORKER}")), &found);
    assert_eq!(restart.faults.len(), 1);
    assert!(restart.faults[0].ends_with("proxy.http = 127.0.0.1:80: Address already in use"), "{restart:?}");
    // One that does not run is started: what it says is told then.
    found.service.as_mut().unwrap().active = false;
    assert_eq!(plan(&wanted(WORKER), &found).faults, [""; 0]);
}

#[test]
fn a_configuration_of_anothers_becomes_roots_with_its_mode() {
    let theirs = |mode| Found { modes: [(FILE.into(), Access { uid: 1000, mode })].into(), ..installed() };
    let steps = plan(&wanted(WORKER), &theirs(0o644)).to_string();
    assert!(steps.contains("from 644 to 600, and its owner from user 1000 to root"), "{steps}");
    for mode in [0o644, 0o600] {
        assert_eq!(settle(&wanted(WORKER), theirs(mode)).modes[Path::new(FILE)], roots(0o600));
    }
}

#[test]
fn only_slices_of_the_system_are_wanted_by_name() {
    for (cgroup, name) in [
        ("a.slice", Some("a.slice")),
        ("/sys/fs/cgroup/a.slice/a-b.slice", Some("a-b.slice")),
        ("/sys/fs/cgroup/unified/a.slice", Some("a.slice")),
        ("/", None),
        ("a-b.slice", None),
        ("a.slice/b.slice", None),
        ("machine.slice/x.scope/payload/system.slice", None),
        ("user.slice/user-1000.slice/user@1000.service/app.slice", None),
        ("user.slice/user-1000.slice", Some("user-1000.slice")),
    ] {
        assert_eq!(slice(Path::new(cgroup)).as_deref(), name, "{cgroup}");
    }
}

#[test]
fn the_unit_and_the_defaults_agree() {
    let config = Config::parse_in(WORKER, FILE, &Environment::default()).unwrap().config;
    assert_eq!(config.state_dir, Path::new(OWN[0]));
    assert!(config.control_socket.starts_with(OWN[1]));
    assert_eq!(config.drain, settings::DRAIN);
    let unit = settings::unit(Path::new("/usr/bin/dworker"));
    let stop = (settings::DRAIN + settings::STOP).as_secs();
    for line in ["StateDirectory=dworker", "RuntimeDirectory=dworker", &format!("TimeoutStopSec={stop}s")] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
}
