//! Certificates that are wrong, and that are replaced, while the daemons go on.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use tests::{Config, Group, Lab, Pki, Validity};

const SOON: Duration = Duration::from_secs(60);

/// The names of the certificate that `status` has under this source.
fn names(status: &Value, source: &str) -> Vec<String> {
    let certificates = status["tls"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = certificates.iter().find(|certificate| certificate["source"] == source);
    let names = found.and_then(|certificate| certificate["names"].as_array());
    names.into_iter().flatten().filter_map(|name| Some(name.as_str()?.to_owned())).collect()
}

#[test]
fn certificates_are_replaced_while_daemons_run() -> Result<()> {
    let lab = Lab::new()?;
    let group = Group::new("site-a", ["echo.corp.example"])?;
    let identity = lab.appliance_identity()?;
    let appliance = lab.appliance().daemon("appliance", Config::new().appliance(&identity, &[&group]))?;
    // An authority of the same name that nobody knows.
    let other = Pki::create(&lab.site().directory().join("other"))?;
    let trusted = lab.site().directory().join("trusted.pem");
    fs::copy(other.ca_file(), &trusted)?;
    let config = Config::new().worker(&group, &trusted, ["echo.corp.example"]);
    let worker = lab.site().daemon("worker", config)?;
    lab.explain(|| {
        let status =
            worker.wait_for_status("a problem", SOON, |status| status["worker"]["problem"].is_string())?;
        let problem = status["worker"]["problem"].as_str().unwrap_or_default();
        for part in [
            "TLS with appliance.example: certificate 1 of 1 (subject CN=appliance.example, issuer ",
            "names appliance.example, valid from ",
            "`ca_file` or `ca_dir`",
        ] {
            assert!(problem.contains(part), "no {part:?} in {problem:?}");
        }
        assert!(worker.log().contains(problem), "{}", worker.log());

        // What it trusts is read for each dial.
        fs::copy(lab.pki().ca_file(), &trusted)?;
        let connected =
            worker.wait_for_status("its uplink", SOON, |status| status["worker"]["connected"] == true)?;
        assert_eq!(names(&connected, "appliance"), ["appliance.example"]);
        let since = |status: &Value| status["appliance"]["groups"][0]["nodes"][0]["since"].clone();
        let before = appliance.wait_for_group("site-a", SOON).and_then(|_| appliance.status())?;
        assert_eq!(names(&before, "appliance.certificate"), ["appliance.example"]);
        let plain = appliance.status_with(lab.appliance(), &[])?.to_string();
        assert!(
            plain.contains("certificate appliance.certificate 1: CN=appliance.example  names "),
            "{plain}"
        );

        // Into the same files.
        lab.pki().issue(&["appliance.example", "renewed.example"], Validity::Current)?;
        let renewed = ["appliance.example", "renewed.example"];
        let after = appliance.wait_for_status("the new certificate", SOON, |status| {
            names(status, "appliance.certificate") == renewed
        })?;
        assert_eq!(since(&after), since(&before), "what was open went on");
        appliance
            .wait_for_line("the TLS files have changed; now in use: subject CN=appliance.example", SOON)?;

        fs::write(&identity.key, "no key")?;
        appliance.wait_for_line("can't be used; those from before stay in use: ", SOON)?;
        assert_eq!(names(&appliance.status()?, "appliance.certificate"), renewed);
        // It is served on: who is told that nobody knows its key has come through TLS.
        let unknown = Group::new("unknown", ["a.example"])?;
        let config = Config::new().worker(&unknown, lab.pki().ca_file(), ["a.example"]);
        lab.elsewhere().daemon("worker", config)?.wait_for_line("(401)", SOON)?;
        Ok(())
    })
}
