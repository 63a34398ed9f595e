//! Pictures of the web page: `cargo xtask screenshots [DIRECTORY]`.
//!
//! A lab with five workers at work, as an administrator meets them on some day: two nodes and one that carries on, one that is
//! down, one that has not come yet, one that is switched off. What the pictures show is real; only the traffic is
//! there for them.

#[path = "../tests/page/browser.rs"]
#[allow(dead_code, reason = "the pictures need less of it than the tests")]
mod browser;
#[path = "../tests/page/house.rs"]
#[allow(dead_code, reason = "as above")]
mod house;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use browser::{Browser, SOON, Screen, drive};
use house::{House, ORIGIN, add_cloud, add_worker, worker_config};
use tests::{Config, Host, Lab, Process, Sdk, VCENTER_URL, net};

/// How long there is traffic before the pictures: as long as a plot goes back.
const TRAFFIC: Duration = Duration::from_secs(155);
/// The largest picture.
const LARGEST: u64 = 150_000;

/// Answers each request of eight bytes, a number, with so many bytes.
const SERVER: &str = r#"
import socket, socketserver, struct, sys
class Answer(socketserver.BaseRequestHandler):
    def handle(self):
        while head := self.request.recv(8, socket.MSG_WAITALL):
            up, down = struct.unpack(">II", head)
            self.request.recv(up, socket.MSG_WAITALL)
            self.request.sendall(bytes(down))
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
server = Server((sys.argv[1], int(sys.argv[2])), Answer)
print("serving", flush=True)
server.serve_forever()
"#;

/// Asks for more and for less, as a manager does that polls and now and then copies.
const CLIENT: &str = r#"
import math, random, socket, struct, sys, time
host, port, size, name = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
open("/proc/self/comm", "w").write(name)
chance = random.Random(name)
server = socket.create_connection((host, port))
print("connected", flush=True)
began, burst = time.monotonic(), 0
while True:
    now = time.monotonic() - began
    if burst < now and chance.random() < 0.012: burst = now + 4 + 8 * chance.random()
    rate = size * (1 + 0.5 * math.sin(now / 11) + 0.2 * chance.random() + (2.2 if now < burst else 0))
    down, up = int(rate * 0.2), int(rate * 0.2 / 7)
    server.sendall(struct.pack(">II", up, down) + bytes(up))
    while down: down -= len(server.recv(min(down, 1 << 16)))
    time.sleep(0.2)
"#;

fn main() -> Result<()> {
    let directory = std::env::args_os().nth(1).map(PathBuf::from).context("the directory to write to")?;
    std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let lab = Lab::new()?;
    let _vsphere = lab.vsphere()?;
    let house = House::new(&lab)?;
    lab.explain(|| {
        drive(&lab, lab.elsewhere(), ORIGIN, |browser| {
            browser.open("/")?;
            browser.find("#token")?;
            pictures(browser, &directory, "sign-in", "/sign-in")?;
            house.sign_in(browser)?;
            pictures(browser, &directory, "first-steps", "/workers")?;
            let _at_work = furnish(&lab, &house, browser, &directory)?;
            eprintln!("waiting {TRAFFIC:?}: the plots shall be full");
            std::thread::sleep(TRAFFIC);
            stir(&lab, browser)?;
            for (name, path) in [
                ("workers", "/workers"),
                ("worker", "/workers/1"),
                ("worker-form", "/workers/1/edit"),
                ("clouds", "/clouds"),
                ("cloud-form", "/clouds/1/edit"),
                ("connections", "/connections"),
                ("events", "/events"),
            ] {
                pictures(browser, &directory, name, path)?;
            }
            Ok(())
        })
    })
}

/// What is at work while the pictures are taken.
struct AtWork {
    _processes: Vec<Process>,
}

fn furnish(lab: &Lab, house: &House, browser: &Browser, directory: &Path) -> Result<AtWork> {
    let mut processes = Vec::new();
    let (_, berlin) = add_worker(
        browser,
        "berlin-dc1",
        "Rack 12, looked after by the platform team",
        "*.corp.example, 10.77.3.0/24, esx-mgmt.berlin.example:443,902",
    )?;
    pictures_here(browser, directory, "worker-key")?;
    let (_, lisbon) =
        add_worker(browser, "lisbon-edge", "Edge site behind LTE", "direct.example:8443, 10.60.0.0/16")?;
    let (_, oslo) = add_worker(browser, "oslo-lab", "", "10.40.0.0/16")?;
    add_worker(browser, "porto-dc2", "Comes in autumn", "vcenter.porto.example")?;
    add_worker(browser, "vienna-old", "Kept until its last tenant has moved", "prism.vienna.example:9440")?;
    browser.open("/workers/5")?;
    browser.click("a", "Disable")?;
    browser.click("dialog button", "Disable")?;
    browser.find_text(".title", "Disabled")?;

    for (host, name, lines) in [
        (lab.site(), "worker-b1", &berlin),
        (lab.site(), "worker-b2", &berlin),
        (lab.elsewhere(), "edge-1", &lisbon),
    ] {
        processes.push(worker(lab, host, name, lines)?);
        let group = if lines == &berlin { "berlin-dc1" } else { "lisbon-edge" };
        house.appliance.wait_for_group(group, SOON)?;
    }
    for (name, lines, path) in [("edge-2", &lisbon, "/workers/2"), ("oslo-1", &oslo, "/workers/3")] {
        let mut process = worker(lab, lab.elsewhere(), name, lines)?;
        browser.open(path)?;
        browser.find_text("tbody tr", name)?;
        process.stop(SOON)?;
    }

    add_cloud(browser, "Berlin production", "VMware vCenter", VCENTER_URL, "berlin-dc1")?;
    add_cloud(browser, "Lisbon edge", "VMware vCenter", "https://vc.lisbon.example", "lisbon-edge")?;
    add_cloud(browser, "Oslo lab", "XenServer", "https://xen-pool.oslo.example", "oslo-lab")?;
    add_cloud(browser, "Public OpenStack", "OpenStack", "https://keystone.cloud.example:5000/v3", "None")?;
    add_cloud(browser, "Vienna Nutanix", "Nutanix", "https://prism.vienna.example:9440", "vienna-old")?;
    for pattern in ["vcenter.corp.example:443", "xen-pool.oslo.example:443", "direct.example:8443"] {
        house.wait_for_rule(pattern)?;
    }

    for (host, at, port) in [(lab.vcenter(), net::ECHO, "902"), (lab.elsewhere(), net::DIRECT, "8443")] {
        let server = host.command("python3").args(["-c", SERVER, &at.v4.to_string(), port]).spawn()?;
        server.wait_for_line("serving", SOON)?;
        processes.push(server);
    }
    for (host, port, size, name) in [
        ("echo.corp.example", "902", "2400000", "java"),
        ("a.wild.corp.example", "902", "300000", "python3"),
        ("10.77.3.30", "902", "60000", "govc"),
        ("direct.example", "8443", "90000", "java"),
        ("direct.example", "8443", "7000", "terraform"),
    ] {
        let client = tests::Command::new("python3").args(["-c", CLIENT, host, port, size, name]);
        let client = lab.appliance().captured(client).spawn()?;
        client.wait_for_line("connected", SOON)?;
        processes.push(client);
    }
    Ok(AtWork { _processes: processes })
}

/// Has some more happen, good and bad: that belongs to the pictures, too.
fn stir(lab: &Lab, browser: &Browser) -> Result<()> {
    lab.appliance().captured(lab.sdk(Sdk::Go, ["list"])?).check()?;
    for (host, port) in [("xen-pool.oslo.example", "443"), ("refused.corp.example", "444")] {
        let refused = tests::Command::new("python3").args(["-c", CLIENT, host, port, "1", "curl"]);
        lab.appliance().captured(refused).output()?;
    }
    browser.open("/workers/3/rotate")?;
    browser.click("button", "Make a new key")?;
    browser.find_text("h1", "oslo-lab has a new key")?;
    browser.open("/workers/new")?;
    browser.fill("#name", "berlin-dc1")?;
    browser.click("button", "Save changes")?;
    browser.find("#wrongs")?;
    lab.appliance().captured(lab.sdk(Sdk::PyVmomi, ["list"])?).check().map(drop)
}

/// A worker on a host with this name.
fn worker(lab: &Lab, host: &Host, name: &str, lines: &str) -> Result<Process> {
    let config: Config = worker_config(lab, lines)?;
    let file = host.configure(name, config)?;
    let run = host.dworker(["run", "--config"])?.arg(&file).to_shell();
    let script = format!("echo {name} > /proc/sys/kernel/hostname && exec {run}");
    let process = host.command("unshare").args(["--uts", "sh", "-c", &script]).spawn()?;
    process.wait_for_line("ready", SOON)?;
    Ok(process)
}

/// Pictures of a page in each theme on each screen.
fn pictures(browser: &Browser, directory: &Path, name: &str, path: &str) -> Result<()> {
    for (screen, screen_name) in [(Screen::Desktop, "desktop"), (Screen::Phone, "phone")] {
        for theme in ["light", "dark"] {
            browser.screen(screen)?;
            browser.prefer(theme)?;
            browser.open(path)?;
            browser.find("h1")?;
            live(browser)?;
            save(browser, &directory.join(format!("{name}-{screen_name}-{theme}.png")))?;
        }
    }
    browser.screen(Screen::Desktop)
}

/// The same of a page that can't be asked for again.
fn pictures_here(browser: &Browser, directory: &Path, name: &str) -> Result<()> {
    for (screen, screen_name) in [(Screen::Desktop, "desktop"), (Screen::Phone, "phone")] {
        for theme in ["light", "dark"] {
            browser.screen(screen)?;
            browser.prefer(theme)?;
            save(browser, &directory.join(format!("{name}-{screen_name}-{theme}.png")))?;
        }
    }
    browser.screen(Screen::Desktop)
}

/// Waits until a page that is live is so.
fn live(browser: &Browser) -> Result<()> {
    browser.until("being live", |browser| {
        let script = "const e = document.querySelector('#live-state'); return !e || e.textContent === 'Live' && !e.hidden";
        Ok(browser.script(script, vec![])? == true)
    })
}

/// Saves what the window shows, with no more colours than one sees.
fn save(browser: &Browser, file: &Path) -> Result<()> {
    std::fs::write(file, browser.picture()?).with_context(|| format!("writing {}", file.display()))?;
    let quality = ["--force", "--ext", ".png", "--speed", "1", "--strip", "--quality", "80-100"];
    tests::Command::new("pngquant").args(quality).arg(file).check()?;
    let size = file.metadata()?.len();
    ensure!(size <= LARGEST, "{}: {size} bytes are more than {LARGEST}", file.display());
    Ok(())
}
