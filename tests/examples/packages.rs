//! The packages, as an administrator meets them: `cargo xtask package --test`.
//!
//! Two hosts are booted, the appliance's and the one at the site. On each: install, edit, `dworker reconfigure`, and the
//! main job works; then a change, an upgrade and a crash, under a connection that is open; then remove and purge.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tests::traffic::{Connect, Order, Report, Serve};
use tests::{Booted, Bytes, Command, Lab, bpf, net};

const SOON: Duration = Duration::from_secs(30);
/// How soon a daemon that crashed serves again, as a development build on a busy machine. How soon it may at most is a test of
/// the lab's.
const RETURN: Duration = Duration::from_secs(3);
/// How long a stop takes at most where nothing is open.
const STOP: Duration = Duration::from_secs(2);
const ECHO: &str = "echo.corp.example";
const SLICE: &str = "appliance.slice";
const SERVICE: &str = "dworker.service";
const CONFIGURATION: &str = "/etc/dworker/dworker.toml";
const TEMPLATE: &str = "/usr/share/dworker/dworker.toml";
const DROP_IN: &str = "/etc/systemd/system/dworker.service.d/10-reconfigure.conf";
/// More than fits into all buffers on the way.
const LARGE: u64 = 64 << 20;
/// Where its port says how much it sends.
const SOURCE: u16 = 4;

fn main() -> Result<()> {
    let [system, deb, newer, rpm] = &std::env::args_os().skip(1).map(PathBuf::from).collect::<Vec<_>>()[..]
    else {
        bail!("the system to boot, the package, a newer one, and the directory of the rpm's scripts");
    };
    let lab = Lab::new()?;
    let tool = std::env::current_exe()?.parent().context("no directory")?.with_file_name("lab-tool");
    let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7)?;
    let _source = lab.vcenter().serve(Serve::Source { seed: 3, length: LARGE }, net::ECHO, SOURCE)?;
    let shown = [deb.as_path(), newer, rpm, &tool];
    let appliance = Machine { booted: lab.appliance().boot(system, &shown)?, deb, newer };
    let site = Machine { booted: lab.site().boot(system, &shown)?, deb, newer };
    let outcome = trial(&lab, &appliance, &site);
    if outcome.is_err() {
        eprintln!("=== appliance\n{}\n=== site\n{}", appliance.booted.journal(), site.booted.journal());
        eprintln!("{}", lab.logs());
    }
    outcome?;
    appliance.booted.stop()?;
    site.booted.stop()
}

fn trial(lab: &Lab, appliance: &Machine<'_>, site: &Machine<'_>) -> Result<()> {
    say("install");
    appliance.install()?;
    site.install()?;
    say("the appliance is configured");
    let identity = lab.appliance_identity()?;
    for (file, name) in [(&identity.certificate, "tls.crt"), (&identity.key, "tls.key")] {
        fs::copy(file, appliance.booted.path(&format!("/etc/dworker/{name}")))?;
    }
    appliance.uncomment(&[
        ("[appliance]", "[appliance]"),
        ("listen", "listen = [\"0.0.0.0:443\"]"),
        ("certificate", "certificate = \"/etc/dworker/tls.crt\""),
        ("key", "key = \"/etc/dworker/tls.key\""),
        ("[steer]", "[steer]"),
        ("cgroups", "cgroups = [\"appliance.slice\"]"),
    ])?;
    appliance.reconfigure(&["write", "enable", "start"])?;
    let add = ["worker", "add", "site-b", "--proxy-hosts", "*.corp.example", "-j"];
    let added: Value = appliance.dworker(&add).output()?.json()?;
    let key = added["key"].as_str().with_context(|| format!("no key: {added}"))?;

    say("two lines at the site");
    // An authority that this host trusts, as any other that signs an appliance's certificate.
    fs::copy(lab.pki().ca_file(), site.booted.path("/usr/local/share/ca-certificates/lab.crt"))?;
    site.booted.command("update-ca-certificates").check()?;
    site.uncomment(&[
        ("appliance_url", "appliance_url = \"https://appliance.example\""),
        ("worker_key", &format!("worker_key = \"{key}\"")),
    ])?;
    let dry = site.dworker(&["reconfigure", "--dry-run"]).check()?;
    ensure!(dry.contains("would start dworker.service") && dry.contains("\n+[Service]\n"), "{dry}");
    ensure!(!site.is_active()? && !site.booted.path(DROP_IN).exists(), "a dry run has done something");
    site.reconfigure(&["write", "enable", "start"])?;
    appliance.wait_for_worker()?;

    say("the main job");
    appliance.works()?;
    ensure!(bpf::attached(&appliance.booted.cgroup(SLICE))?.len() >= 9, "nothing is attached");
    // With the capabilities that the unit leaves it.
    let status: Value = appliance.dworker(&["status", "-j"]).output()?.json()?;
    let programs = status["steer"]["programs"].as_array().map_or(0, Vec::len);
    ensure!(programs >= 9, "the daemon can't see its own programs: {}", status["steer"]);
    let mut loaded: BTreeSet<u64> = appliance.programs()?;
    let outside = appliance.connect(&Connect::to(ECHO, 7), "system.slice", "outside")?;
    ensure!(outside.failure.is_some(), "what is not captured reaches the site: {outside:?}");

    say("a change is reloaded, and cuts nothing");
    let held = Held::begin(appliance)?;
    // Whose process it is can't be seen by the service itself.
    let client = appliance.booted.property("held.service", "MainPID")?;
    let why = appliance.dworker(&["why", &format!("{ECHO}:{SOURCE}"), "--pid", &client]).check()?;
    ensure!(why.starts_with("steered to group site-b") && why.contains(&format!("[{client}]")), "{why}");
    let pids = [appliance.pid()?, site.pid()?];
    site.uncomment(&[("lanes", "lanes = 3")])?;
    site.reconfigure(&["reload"])?;
    appliance.uncomment(&[("drain", "drain = \"15s\"")])?;
    appliance.reconfigure(&["change", "reload"])?;
    ensure!(appliance.pid()? != pids[0] && site.pid()? != pids[1], "nobody has taken over");
    appliance.wait_for_worker()?;
    appliance.works()?;

    loaded.extend(appliance.programs()?);
    say("an upgrade cuts nothing");
    let pids = [appliance.pid()?, site.pid()?];
    for machine in [appliance, site] {
        let before = fs::read_to_string(machine.booted.path(CONFIGURATION))?;
        machine.apt(&["install", &machine.shown(machine.newer)])?;
        ensure!(machine.is_active()?, "the upgrade has stopped it");
        // Nobody was asked about the configuration, which is another one in the package.
        let template = fs::read_to_string(machine.booted.path(TEMPLATE))?;
        ensure!(template.ends_with("\n# Of a later version.\n"), "the template is the old one");
        ensure!(
            fs::read_to_string(machine.booted.path(CONFIGURATION))? == before,
            "the configuration was changed"
        );
        // Nothing is left to do.
        machine.reconfigure(&[])?;
    }
    ensure!(appliance.pid()? != pids[0] && site.pid()? != pids[1], "the old version serves on");
    appliance.wait_for_worker()?;
    appliance.works()?;
    held.finish()?;
    // Those that were replaced are gone with what was open.
    for machine in [appliance, site] {
        machine.booted.wait("one process", SOON, || Ok(machine.processes()? == 1))?;
    }
    loaded.extend(appliance.programs()?);

    say("a crash is made up for");
    let pid = appliance.pid()?;
    ensure!(
        appliance.booted.property(SERVICE, "NFileDescriptorStore")?.parse::<u32>()? > 2,
        "no socket is kept"
    );
    appliance.booted.kill9(&pid)?;
    let took = appliance
        .booted
        .wait("active again", SOON, || Ok(appliance.pid()? != pid && appliance.is_active()?))?;
    ensure!(took < RETURN, "it is back after {took:?} only");
    appliance.works()?;

    say("a role more is restarted");
    site.append("[proxy]\nhttp = [\"127.0.0.1:80\"]\n")?;
    site.reconfigure(&["change", "restart"])?;
    appliance.wait_for_worker()?;

    say("another control socket, in a directory that no boot keeps");
    site.uncomment(&[("control_socket", "control_socket = \"/run/another/control.sock\"")])?;
    // It is asked where it still listens, and a second time where it does by then.
    site.reconfigure(&["change", "restart"])?;
    ensure!(site.booted.path("/run/another/control.sock").exists(), "no socket");
    appliance.wait_for_worker()?;

    say("what the service could not do is told, and it goes on");
    let before = fs::read_to_string(site.booted.path(CONFIGURATION))?;
    let pid = site.pid()?;
    site.uncomment(&[("control_socket", "control_socket = \"/run/control.sock\"")])?;
    let refused = site.dworker(&["reconfigure"]).output()?;
    ensure!(
        refused.status.code() == Some(2) && refused.stderr.contains("of its own below /run"),
        "{refused}"
    );
    fs::write(site.booted.path(CONFIGURATION), &before)?;
    // Somebody else's, whom root without its right to pass over modes can't read.
    let own = |owner: &str| site.booted.command("chown").args([owner, CONFIGURATION]).check();
    own("nobody")?;
    let refused = site.dworker(&["reconfigure"]).output()?;
    ensure!(refused.status.code() == Some(2) && refused.stderr.contains("make root its owner"), "{refused}");
    own("root")?;
    ensure!(site.pid()? == pid, "it was touched all the same");

    let before = fs::read_to_string(appliance.booted.path(CONFIGURATION))?;
    let pid = appliance.pid()?;
    appliance.uncomment(&[
        ("control_socket", "control_socket = \"/run/third/control.sock\""),
        ("exclude_users", "exclude_users = [\"nobody-at-all\"]"),
    ])?;
    // What only a start would find, and that is due.
    let refused = appliance.dworker(&["reconfigure"]).output()?;
    ensure!(
        refused.status.code() == Some(2) && refused.stderr.contains("has no user nobody-at-all"),
        "{refused}"
    );
    ensure!(appliance.pid()? == pid && appliance.is_active()?, "it was stopped all the same");
    fs::write(appliance.booted.path(CONFIGURATION), &before)?;
    appliance.reconfigure(&[])?;

    say("what is wrong is told, and the service goes on");
    let before = fs::read_to_string(site.booted.path(CONFIGURATION))?;
    site.append("htp = []\n")?;
    let pid = site.pid()?;
    let wrong = site.dworker(&["reconfigure"]).output()?;
    ensure!(wrong.status.code() == Some(2) && wrong.stderr.contains("did you mean `http`?"), "{wrong}");
    ensure!(site.pid()? == pid, "it was touched all the same");
    fs::write(site.booted.path(CONFIGURATION), before)?;

    say("a stop of who has nothing open is quick");
    loaded.extend(appliance.programs()?);
    for machine in [appliance, site] {
        let started = Instant::now();
        machine.booted.command("systemctl").args(["stop", SERVICE]).check()?;
        ensure!(started.elapsed() < STOP, "it takes {:?}", started.elapsed());
        machine.booted.command("systemctl").args(["start", SERVICE]).check()?;
    }
    loaded.extend(appliance.programs()?);

    say("the rpm's scripts do what they say");
    let script = |name: &str, left: &str| {
        let path = format!("/opt/lab/rpm/{name}");
        site.booted.command("sh").args(["-e", &path, left]).check()
    };
    let pid = site.pid()?;
    ensure!(script("post", "1")?.contains("dworker reconfigure"), "nobody is told what to do next");
    script("preun", "1")?;
    script("postun", "1")?;
    ensure!(site.is_active()? && site.booted.path(DROP_IN).exists(), "an upgrade has stopped it");
    let reloaded = site.pid()?;
    script("post", "2")?;
    ensure!(site.is_active()? && site.pid()? != reloaded && pid != site.pid()?, "the old version serves on");
    script("preun", "0")?;
    ensure!(!site.is_active()?, "it is not stopped");
    let said = script("postun", "0")?;
    ensure!(said.contains("this stays: /var/lib/dworker"), "{said}");
    ensure!(!site.booted.path(DROP_IN).exists(), "{DROP_IN} is left");

    say("remove and purge leave nothing");
    for machine in [appliance, site] {
        machine.apt(&["remove", "dworker"])?;
        ensure!(!machine.is_active()?, "it is not stopped");
        // In the whole kernel: the cgroup itself may be gone.
        let left: BTreeSet<u64> = bpf::programs()?.intersection(&loaded).copied().collect();
        ensure!(left.is_empty(), "programs are left: {left:?}");
        for gone in ["/usr/bin/dworker", "/run/dworker", "/sys/fs/bpf/dworker"] {
            ensure!(!machine.booted.path(gone).exists(), "{gone} is left");
        }
        ensure!(machine.booted.path("/var/lib/dworker/node-id").exists(), "the state is gone before a purge");
        machine.apt(&["purge", "dworker"])?;
    }
    // Keys that an administrator put there are an administrator's.
    for name in ["tls.crt", "tls.key"] {
        fs::remove_file(appliance.booted.path(&format!("/etc/dworker/{name}")))?;
    }
    fs::remove_dir(appliance.booted.path("/etc/dworker")).context("more is left in /etc/dworker")?;
    for machine in [appliance, site] {
        let find =
            ["/", "-xdev", "-name", "*dworker*", "-not", "-path", "/opt/lab/*", "-not", "-path", "/proc/*"];
        let left = machine.booted.command("find").args(find).check()?;
        ensure!(left.is_empty(), "left after the purge:\n{left}");
        let failed =
            machine.booted.command("systemctl").args(["--failed", "--quiet", "--no-legend"]).check()?;
        ensure!(failed.is_empty(), "units have failed: {failed}");
    }
    Ok(())
}

fn say(what: &str) {
    eprintln!("packages: {what}");
}

/// A host with a package.
struct Machine<'p> {
    booted: Booted,
    deb: &'p Path,
    newer: &'p Path,
}

impl Machine<'_> {
    /// Where it sees a file.
    fn shown(&self, path: &Path) -> String {
        format!("/opt/lab/{}", path.file_name().unwrap_or_default().to_string_lossy())
    }

    fn dworker(&self, arguments: &[&str]) -> Command {
        self.booted.command("dworker").args(arguments)
    }

    fn apt(&self, arguments: &[&str]) -> Result<String> {
        self.booted.command("apt-get").args(["--yes", "-qq"]).args(arguments).check()
    }

    /// Installs the package; until it is configured nothing runs.
    fn install(&self) -> Result<()> {
        let said = self.apt(&["install", &self.shown(self.deb)])?;
        ensure!(said.contains("dworker reconfigure"), "nobody is told what to do next:\n{said}");
        ensure!(!self.is_active()?, "it was started without a configuration");
        let mode = self.booted.command("stat").args(["--format=%a", CONFIGURATION]).check()?;
        ensure!(mode.trim() == "600", "{CONFIGURATION} has mode {mode}");
        let early = self.dworker(&["reconfigure"]).output()?;
        ensure!(early.status.code() == Some(2) && early.stderr.contains("appliance_url"), "{early}");
        ensure!(
            !self.booted.path(DROP_IN).exists() && !self.is_active()?,
            "a wrong configuration has done something"
        );
        Ok(())
    }

    /// Takes the `#` in front of keys away and gives them values, as one does with an editor.
    fn uncomment(&self, lines: &[(&str, &str)]) -> Result<()> {
        let path = self.booted.path(CONFIGURATION);
        let mut text = fs::read_to_string(&path)?;
        for (key, line) in lines {
            let is_key = |found: &&str| {
                let found = found.trim_start_matches('#');
                found == *key || found.starts_with(&format!("{key} = "))
            };
            let found =
                text.lines().find(is_key).with_context(|| format!("no {key} in {CONFIGURATION}"))?.to_owned();
            text = text.replacen(&format!("{found}\n"), &format!("{line}\n"), 1);
        }
        fs::write(&path, text).context("editing the configuration")
    }

    fn append(&self, lines: &str) -> Result<()> {
        let path = self.booted.path(CONFIGURATION);
        let text = fs::read_to_string(&path)?;
        fs::write(&path, text + lines).context("editing the configuration")
    }

    /// Does just these kinds of steps, but for systemd's reading of units, and a second time nothing.
    fn reconfigure(&self, wanted: &[&str]) -> Result<()> {
        let said = self.dworker(&["reconfigure"]).check()?;
        let steps = said.lines().filter(|line| !line.starts_with("have ") && !line.starts_with("nothing"));
        let steps: Vec<&str> = steps.filter_map(|line| line.split(' ').next()).collect();
        ensure!(steps == wanted, "wanted {wanted:?}:\n{said}");
        ensure!(self.is_active()?, "it does not run after:\n{said}");
        let again = self.dworker(&["reconfigure"]).check()?;
        ensure!(again.starts_with("nothing to do"), "a second time:\n{again}");
        Ok(())
    }

    fn is_active(&self) -> Result<bool> {
        Ok(self.booted.property(SERVICE, "ActiveState")? == "active")
    }

    /// How many processes the service has.
    fn processes(&self) -> Result<usize> {
        let path = self.booted.cgroup("system.slice").join(SERVICE).join("cgroup.procs");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(text.lines().count())
    }

    /// The programs that the daemon has in the kernel now, by their ids.
    fn programs(&self) -> Result<BTreeSet<u64>> {
        let status: Value = self.dworker(&["status", "-j"]).output()?.json()?;
        let programs = status["steer"]["programs"].as_array().context("no programs")?;
        let ids: BTreeSet<u64> = programs.iter().filter_map(|program| program["id"].as_u64()).collect();
        ensure!(ids.len() >= 9 && ids.is_subset(&bpf::programs()?), "the kernel does not know {ids:?}");
        Ok(ids)
    }

    fn pid(&self) -> Result<String> {
        self.booted.property(SERVICE, "MainPID")
    }

    /// Waits until the worker takes streams.
    fn wait_for_worker(&self) -> Result<()> {
        let up = || {
            let output = self.dworker(&["status", "-j"]).output()?;
            let status: Value = output.json().unwrap_or_default();
            Ok(status["appliance"]["groups"][0]["up"] == true)
        };
        self.booted.wait("a worker is connected", SOON, up).map(drop)
    }

    fn connect(&self, connect: &Connect, slice: &str, unit: &str) -> Result<Report> {
        let output = self.booted.in_slice(slice, unit).args(inside(connect)?).output()?;
        let mut reports = Report::read(&output.stdout)?;
        reports.pop().with_context(|| format!("no report: {output}"))
    }

    /// A captured client has its bytes echoed by the site.
    fn works(&self) -> Result<()> {
        let report = self.connect(&Connect::to(ECHO, 7).send(1000), SLICE, "echo")?;
        report.assert_echo(1, 1000, "an echo from the site");
        Ok(())
    }
}

/// The words that run a client inside.
fn inside(connect: &Connect) -> Result<Vec<String>> {
    Ok(vec!["/opt/lab/lab-tool".into(), "connect".into(), serde_json::to_string(connect)?])
}

/// A transfer that waits until its application is told to read on.
struct Held<'m> {
    machine: &'m Machine<'m>,
    process: tests::Process,
}

impl<'m> Held<'m> {
    fn begin(machine: &'m Machine<'m>) -> Result<Held<'m>> {
        let client = Connect::to(ECHO, SOURCE).send(1000).order(Order::ReadFirst).stall();
        let process = machine.booted.in_slice(SLICE, "held").args(inside(&client)?).spawn()?;
        process.wait_for_line("stalled", SOON)?;
        Ok(Held { machine, process })
    }

    /// The whole of it arrives.
    fn finish(mut self) -> Result<()> {
        let kill = ["kill", "--signal=USR1", "--kill-whom=main", "held.service"];
        self.machine.booted.command("systemctl").args(kill).check()?;
        ensure!(self.process.wait(SOON)?.success(), "{}", self.process.stderr());
        let report = Report::read(&self.process.stdout())?.pop().context("no report")?;
        ensure!((report.received, report.end.as_str()) == (LARGE, "eof"), "it was cut: {report:?}");
        ensure!(report.received_sha256 == Bytes::new(3, LARGE).sha256(), "other bytes have come");
        ensure!(report.sent == 1000 && report.send_failure.is_none(), "{report:?}");
        Ok(())
    }
}
