//! The web page, in a real browser on a host that reaches the appliance as an administrator's machine does.

mod browser;
mod house;
mod looks;

use std::time::Duration;

use anyhow::{Context, Result};
use browser::{Browser, SOON, drive};
use house::{House, ORIGIN, add_cloud, add_worker, worker_config};
use serde_json::json;
use tests::traffic::{Connect, Report, Serve};
use tests::{Lab, Sdk, VCENTER_URL, net};
use thirtyfour::Key;

const MACHINES: &str =
    "DC0_C0_RP0_VM0 poweredOn\nDC0_C0_RP0_VM1 poweredOn\nDC0_H0_VM0 poweredOn\nDC0_H0_VM1 poweredOn\n";

/// The page has asked for nothing that it may not have, and no script of it has failed.
fn no_complaints(browser: &Browser, expected: &[&str]) -> Result<()> {
    let complaints = browser.complaints()?;
    let unexpected: Vec<_> =
        complaints.iter().filter(|text| !expected.iter().any(|known| text.contains(known))).collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
    Ok(())
}

#[test]
fn from_an_empty_directory_to_virtual_machines_in_the_page_alone() -> Result<()> {
    let lab = Lab::new()?;
    let _vsphere = lab.vsphere()?;
    let house = House::new(&lab)?;
    let list = || lab.appliance().captured(lab.sdk(Sdk::PyVmomi, ["list"])?).output();
    lab.explain(|| {
        assert!(!list()?.status.success(), "nothing carries it yet");
        drive(&lab, lab.elsewhere(), ORIGIN, |browser| {
            browser.open("/")?;
            assert_eq!(browser.path()?, "/sign-in?next=%2F");
            browser.fill("#token", "dwa_wrong")?;
            browser.press(Key::Enter)?;
            browser.find_text(".wrong", "This is not the admin token")?;
            browser.fill("#token", &house.token)?;
            browser.press(Key::Enter)?;
            browser.find_text("h2", "No worker yet")?;

            // What is wrong is said beside the field, and what was typed stays.
            browser.click("a", "Add the first worker")?;
            browser.fill("#name", "Site A")?;
            browser.fill("#description", "<script>document.title = 'taken'</script>")?;
            browser.press(Key::Enter)?;
            browser.find_text("#name-wrong", "not a worker's name")?;
            browser.click("#wrongs a", "Site A")?;
            assert_eq!(browser.script("return document.activeElement.id", vec![])?, "name");
            browser.fill("#name", "site-a")?;
            browser.click("button", "Save changes")?;
            browser.find_text("h1", "site-a is added")?;

            // The key is shown once; what is copied is what is shown.
            let key = browser.text("#worker-key")?;
            let lines = browser.text("#worker-configuration")?;
            assert!(lines.contains(&key), "{lines}");
            let permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"];
            browser.devtools("Browser.grantPermissions", json!({"permissions": permissions}))?;
            browser.click("button", "Copy")?;
            browser.find_text("button", "Copied")?;
            let copied = browser.script("return navigator.clipboard.readText()", vec![])?;
            assert_eq!(copied, key.as_str());
            browser.click("a", "show the worker")?;
            browser.find_text(".title", "Waiting for a node")?;
            let shown =
                browser.script("return document.documentElement.outerHTML.includes('dwk_')", vec![])?;
            assert_eq!(shown, false);

            // The page shows the worker's node by itself.
            let mut worker = lab.site().daemon("worker", worker_config(&lab, &lines)?)?;
            browser.find_text(".title", "Up")?;
            browser.find_text("tbody tr", "Primary")?;
            assert_eq!(browser.script("return document.title", vec![])?, "site-a · dworker");

            // A cloud makes the proxy host; an unchanged SDK is there at once.
            browser.click("nav a", "Clouds")?;
            browser.click("a", "Add the first cloud")?;
            add_cloud(browser, "Lab vCenter", "VMware vCenter", VCENTER_URL, "site-a")?;
            browser.find_text("tbody tr", "carried as vcenter.corp.example:443")?;
            house.wait_for_rule("vcenter.corp.example:443")?;
            assert_eq!(list()?.check()?, MACHINES);

            browser.click("nav a", "Connections")?;
            let row = browser.find_text("tbody tr", "vcenter.corp.example:443")?;
            let row = browser.text_of(&row)?;
            for part in ["python", "captured", "site-a", "KiB"] {
                assert!(row.contains(part), "{part} is not in {row}");
            }
            // A client that has ended in order may be gone before the server's last bytes, the goodbye of TLS, are
            // there: only then the kernel calls its reset a broken pipe.
            assert!(row.contains("closed") || row.contains("Broken pipe"), "{row}");
            browser.click("nav a", "Events")?;
            for (kind, about) in [
                ("Worker added", "site-a"),
                ("Key shown", "site-a"),
                ("Cloud added", "Lab vCenter"),
                ("Login ok", ""),
            ] {
                let row = browser.text_of(&browser.find_text("tbody tr", kind)?)?;
                assert!(row.contains(about) && row.contains("admin (browser)"), "{row}");
            }

            // What ends is shown, too.
            browser.click("nav a", "Workers")?;
            browser.find_text("tbody tr", "1 primary")?;
            worker.stop(Duration::from_secs(30))?;
            browser.find_text("tbody tr", "Down")?;
            browser.find_text("tbody tr", "1 offline")?;
            no_complaints(browser, &["401 (Unauthorized)", "422 (Unprocessable"])
        })
    })
}

#[test]
fn a_connection_is_found_while_one_types_and_closed_by_hand() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab)?;
    let _stall = lab.vcenter().serve(Serve::Stall, net::ECHO, 7000)?;
    lab.explain(|| {
        drive(&lab, lab.elsewhere(), ORIGIN, |browser| {
            house.sign_in(browser)?;
            let (_, lines) = add_worker(browser, "site-a", "", "*.corp.example")?;
            let _worker = lab.site().daemon("worker", worker_config(&lab, &lines)?)?;
            house.wait_for_rule("*.corp.example")?;
            house.appliance.wait_for_group("site-a", SOON)?;
            let client = Connect::to("echo.corp.example", 7000).stall().command()?;
            let mut client = lab.appliance().captured(client).spawn()?;
            client.wait_for_line("stalled", SOON)?;

            browser.open("/connections")?;
            browser.find_text("tbody tr", "echo.corp.example:7000")?;
            browser.fill("#q", "no such thing")?;
            browser.find_text("h2", "Nothing found")?;
            assert_eq!(browser.path()?, "/connections?q=no+such+thing");
            browser.fill("#q", "ECHO")?;
            browser.find_text("tbody tr", "open")?;

            browser.click("tbody a", "Close")?;
            browser.find_text("dialog h1", "Close this connection?")?;
            assert_eq!(browser.path()?, "/connections?q=ECHO", "the question is a dialog");
            browser.press(Key::Escape)?;
            browser.gone("dialog[open]")?;
            assert!(client.is_running());
            browser.click("tbody a", "Close")?;
            browser.click("dialog button", "Close the connection")?;
            browser.find_text(".note", "The connection to echo.corp.example:7000 is closed.")?;
            browser.find_text("tbody tr", "closed by")?;
            client.signal(tests::Signal::SIGUSR1)?;
            client.wait(SOON)?;
            let report = Report::read(&client.stdout())?.pop().context("a report")?;
            assert_eq!(report.end, "ECONNRESET", "{report:?}");
            no_complaints(browser, &[])
        })
    })
}

#[test]
fn all_of_it_works_without_javascript() -> Result<()> {
    let lab = Lab::new()?;
    let house = House::new(&lab)?;
    lab.explain(|| {
        drive(&lab, lab.elsewhere(), ORIGIN, |browser| {
            browser.devtools("Emulation.setScriptExecutionDisabled", json!({"value": true}))?;
            house.sign_in(browser)?;
            let (key, _) = add_worker(browser, "site-a", "Behind the hill", "10.77.3.0/24")?;
            assert!(key.starts_with("dwk_"));
            browser.open("/workers/1/key")?;
            browser.find_text(".note", "The key was shown already")?;
            browser.click("a", "Edit")?;
            browser.fill("#description", "In the valley")?;
            browser.click("button", "Save changes")?;
            browser.find_text(".head", "In the valley")?;
            browser.click("a", "Rotate key")?;
            browser.choose("#grace", "15 minutes")?;
            browser.click("button", "Make a new key")?;
            browser.find_text("h1", "site-a has a new key")?;
            assert_ne!(browser.text("#worker-key")?, key);
            browser.open("/workers?q=valley")?;
            browser.click("tbody a", "site-a")?;
            browser.click("a", "Disable")?;
            browser.click("button", "Disable")?;
            browser.find_text(".title", "Disabled")?;
            browser.click("button", "Enable")?;
            browser.find_text(".title", "Waiting")?;
            browser.click("a", "Remove")?;
            browser.click("a", "Cancel")?;
            browser.click("a", "Remove")?;
            browser.click("button", "Remove the worker")?;
            browser.find_text(".note", "site-a is removed.")?;
            browser.click("button", "Sign out")?;
            browser.find_text(".note", "You are signed out.")?;
            Ok(())
        })
    })
}
