//! The vSphere side is real, and its clients work where nothing is in the way: on the site itself.

use anyhow::Result;
use tests::{Lab, Sdk, VCENTER_URL, musl_resolve};

/// The simulator's inventory.
const MACHINES: [&str; 4] = ["DC0_C0_RP0_VM0", "DC0_C0_RP0_VM1", "DC0_H0_VM0", "DC0_H0_VM1"];

fn all_on() -> String {
    MACHINES.map(|name| format!("{name} poweredOn\n")).concat()
}

#[test]
fn every_sdk_lists_and_powers_machines_from_the_site() -> Result<()> {
    let lab = Lab::new()?;
    let _vsphere = lab.vsphere()?;
    for (sdk, machine) in Sdk::ALL.into_iter().zip(MACHINES) {
        let run = |args: &[&str]| lab.site().uncaptured(lab.sdk(sdk, args)?).check();
        assert_eq!(run(&["list"])?, all_on(), "{sdk:?}");
        let off = all_on().replace(&format!("{machine} poweredOn"), &format!("{machine} poweredOff"));
        assert_eq!(run(&["poweroff", machine])?, off, "{sdk:?}");
        let machines = lab.virtual_machines()?;
        assert!(machines.contains(&(machine.to_owned(), "poweredOff".to_owned())), "{sdk:?}: {machines:?}");
        assert_eq!(run(&["poweron", machine])?, all_on(), "{sdk:?}");
    }
    assert!(lab.site_resolver().was_asked("vcenter.corp.example"));
    Ok(())
}

#[test]
fn every_sdk_fails_with_a_reason() -> Result<()> {
    let lab = Lab::new()?;
    let _vsphere = lab.vsphere()?;
    lab.site_resolver().add("host-record=alias.example,10.77.3.10")?;
    for sdk in Sdk::ALL {
        let fails = |url: &str, args: &[&str], on_site: bool| -> Result<String> {
            let host = if on_site { lab.site() } else { lab.appliance() };
            let output = host.uncaptured(lab.sdk_at(sdk, url, args)?).output()?;
            assert!(!output.status.success(), "{output}");
            assert!(!output.stderr.trim().is_empty(), "{sdk:?} says nothing");
            Ok(output.stderr)
        };
        let unknown = fails(VCENTER_URL, &["poweroff", "no-such-machine"], true)?;
        assert!(unknown.contains("no virtual machine no-such-machine"), "{sdk:?}: {unknown}");
        // The certificate does not hold for this name, though the server is the same.
        let wrong = fails("https://alias.example", &["list"], true)?;
        assert!(
            wrong.to_lowercase().contains("certificate") && wrong.contains("alias.example"),
            "{sdk:?}: {wrong}"
        );
        // From the appliance nothing works yet: that is what the tunnel is for.
        fails(VCENTER_URL, &["list"], false)?;
        fails("https://10.77.3.10", &["list"], false)?;
    }
    Ok(())
}

#[test]
fn every_sdk_reaches_the_vcenter_by_address() -> Result<()> {
    let lab = Lab::new()?;
    let _vsphere = lab.vsphere()?;
    for sdk in Sdk::ALL {
        for url in ["https://10.77.3.10", "https://[fd77:0:0:3::10]", "https://vc6only.corp.example"] {
            let listed = lab.site().uncaptured(lab.sdk_at(sdk, url, ["list"])?).check()?;
            assert_eq!(listed, all_on(), "{sdk:?} by {url}");
        }
    }
    Ok(())
}

#[test]
fn the_musl_resolver_answers_as_the_hosts_resolver_does() -> Result<()> {
    let lab = Lab::new()?;
    let found = lab.site().uncaptured(musl_resolve("vcenter.corp.example")?).check()?;
    let mut lines: Vec<&str> = found.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["10.77.3.10", "fd77:0:0:3::10"]);
    let unknown = lab.appliance().uncaptured(musl_resolve("vcenter.corp.example")?).output()?;
    assert_eq!(unknown.status.code(), Some(1), "{unknown}");
    Ok(())
}
