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
}

impl Executor for Fake {
    fn carry_out(&mut self, step: &Step) -> Result<(), HostError> {
        self.done.push(step.clone());
        let found = &mut self.found;
        match step {
            Step::Directory { path, mode, .. } => drop(found.modes.insert(path.clone(), *mode)),
            Step::Mode { path, to, .. } => drop(found.modes.insert(path.clone(), *to)),
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
                let service = found.service.as_mut().expect("systemd");
                match action {
                    Action::ReadUnits => service.stale = false,
                    Action::Enable => {}
                    Action::Start | Action::Restart => {
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
    let modes = [(FILE.into(), 0o600)].into();
    Found { packaged: Some("[Service]\n".into()), service: Some(Service::idle()), modes, ..Found::default() }
}

impl Service {
    fn idle() -> Service {
        Service { active: false, stale: false, settings: None, environment: Vec::new(), news: Ok(Vec::new()) }
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
    let mut fake = Fake { found, done: Vec::new() };
    let first = plan(wanted, &fake.found);
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
    assert_eq!(changed(&|found| service(found, &|s| s.news = Err("no answer".into()))), [Action::Restart]);
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
        let mut fake = Fake { found: installed(), done: Vec::new() };
        whole[..done].iter().for_each(|step| fake.carry_out(step).unwrap());
        let found = settle(&wanted, fake.found);
        assert!(found.enabled && found.service.unwrap().active, "cut after {done} steps");
    }
    // Also where it was cut between the files and the restart that they need.
    let running = settle(&wanted, installed());
    let changed = Found { packaged: Some("[Service]\nUMask=0007\n".into()), ..running };
    let steps = plan(&wanted, &changed).steps;
    let mut fake = Fake { found: changed, done: Vec::new() };
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
    assert_eq!(found.modes[Path::new("/srv/dworker")], 0o700);
    assert_eq!(found.modes[Path::new("/srv/run")], 0o755);
    let drop_in = found.drop_in.unwrap();
    for line in [
        "ReadWritePaths=/srv/dworker",
        "ReadWritePaths=/srv/run",
        "ProtectHome=read-only",
        "ExecReload=/usr/bin/dworker reload --socket /srv/run/c.sock",
    ] {
        assert!(drop_in.lines().any(|found| found == line), "{line}\n{drop_in}");
    }
    assert!(!drop_in.contains("PrivateTmp"));
}

#[test]
fn a_secret_is_the_owners_alone_and_credentials_are_loaded() {
    let wanted = wanted(WORKER);
    let mut found = installed();
    found.modes = [(FILE.into(), 0o644), (CREDENTIALS.into(), 0o755)].into();
    found.credentials = [("apikey".into(), "1".into()), ("api_key".into(), "1".into())].into();
    let plan = plan(&wanted, &found);
    assert!(
        plan.notes[0].contains("nothing takes api_key") && plan.notes[0].contains("worker_key"),
        "{:?}",
        plan.notes
    );
    let found = settle(&wanted, found);
    assert_eq!(found.modes.values().collect::<Vec<_>>(), [&0o700, &0o600]);
    assert!(found.drop_in.unwrap().contains("\nLoadCredential=apikey:/etc/dworker/credentials/apikey\n"));
    // No secret, no change.
    let open = Found { modes: [(FILE.into(), 0o644)].into(), ..installed() };
    assert_eq!(settle(&super::tests::wanted(APPLIANCE), open).modes[Path::new(FILE)], 0o644);
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
