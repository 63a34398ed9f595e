//! The older product's own file and its container's variables start a worker that connects, to a real appliance.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use tests::{APPLIANCE_URL, Config, Daemon, Group, Lab, Process};

const SOON: Duration = Duration::from_secs(30);
/// The block as the older product's manual has it.
const BLOCK: &str = include_str!("../../worker-userspace/tests/config/morpheus-worker.rb");
/// Where nobody listens: what `no_proxy` names must not go there.
const NOBODY: &str = "http://127.0.0.1:9";

/// The block with its values filled in, and nothing else changed.
fn filled(key: &str, no_proxy: &str) -> String {
    let values = [
        ("https://gateway_worker_url", "https://worker.site.example"),
        ("https://morpheus_appliance_url", APPLIANCE_URL),
        ("DISTRIBUTED WORKER KEY", key),
        ("http://proxy.address:1234", NOBODY),
        ("vcenter.example.com,192.168.xx.xx", no_proxy),
    ];
    values.iter().fold(BLOCK.to_owned(), |file, (template, value)| {
        assert_eq!(file.matches(&format!("= '{template}'")).count(), 1, "{template}");
        file.replace(&format!("= '{template}'"), &format!("= '{value}'"))
    })
}

/// An appliance with one group, and what its workers need beside the block: where they may write, and the lab's own CA.
struct House {
    lab: Lab,
    appliance: Daemon,
    group: Group,
}

impl House {
    fn new() -> Result<House> {
        let lab = Lab::new()?;
        let group = Group::new("site-a", ["10.77.3.0/24"])?;
        let config = Config::new().appliance(&lab.appliance_identity()?, &[&group]);
        Ok(House { appliance: lab.appliance().daemon("appliance", config)?, group, lab })
    }

    fn worker(&self, name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Process> {
        let path = |suffix: &str| self.lab.site().directory().join(format!("{name}{suffix}"));
        let mut command = self.lab.site().dworker(["run"])?.args(arguments);
        for (variable, path) in [
            ("DWORKER_STATE_DIR", path("-state")),
            ("DWORKER_CONTROL_SOCKET", self.lab.site().socket(name)),
            ("DWORKER_CA_FILE", self.lab.pki().ca_file().to_owned()),
        ] {
            command = command.env(variable, path);
        }
        for (variable, value) in variables {
            command = command.env(variable, value);
        }
        command.spawn()
    }

    fn write(&self, text: &str) -> Result<PathBuf> {
        let file = self.lab.site().directory().join("morpheus-worker.rb");
        fs::write(&file, text)?;
        Ok(file)
    }
}

#[test]
fn the_older_products_block_starts_a_worker_that_connects() -> Result<()> {
    let house = House::new()?;
    house.lab.explain(|| {
        let file = house.write(&filled(&house.group.key, "appliance.example,192.168.0.0/16"))?;
        let name = file.display().to_string();
        let worker = house.worker("older", &["--config", &name], &[])?;
        worker.wait_for_line(&format!("configuration: {name}"), SOON)?;
        worker.wait_for_line("ready", SOON)?;
        house.appliance.wait_for_group("site-a", SOON)?;
        assert!(!worker.stderr().contains(&house.group.key), "a key in the log");
        Ok(())
    })
}

#[test]
fn the_older_products_proxy_is_where_the_worker_goes() -> Result<()> {
    let house = House::new()?;
    house.lab.explain(|| {
        let file = house.write(&filled(&house.group.key, "vcenter.corp.example"))?;
        let worker = house.worker("older", &["--config", &file.display().to_string()], &[])?;
        // Nobody listens there, and nothing goes past it.
        worker.wait_for_line("127.0.0.1:9", SOON)?;
        let status = house.appliance.status()?;
        assert_eq!(status["appliance"]["groups"][0]["nodes"].as_array().map(Vec::len), Some(0), "{status:#}");
        Ok(())
    })
}

#[test]
fn variables_alone_start_a_worker_that_connects() -> Result<()> {
    let house = House::new()?;
    house.lab.explain(|| {
        let variables = [
            ("MORPHEUS_URL", APPLIANCE_URL),
            ("MORPHEUS_WORKER_KEY", &house.group.key),
            ("MORPHEUS_KEY", "any"),
        ];
        let worker = house.worker("container", &[], &variables)?;
        worker.wait_for_line("configuration: environment", SOON)?;
        house.appliance.wait_for_group("site-a", SOON)?;
        assert!(!worker.stderr().contains(&house.group.key), "a key in the log");
        Ok(())
    })
}
