//! Whether an appliance is ready: anybody may ask, and only who administers it hears why it is not.

use std::time::Instant;

use anyhow::Result;
use serde_json::{Value, json};
use tests::{Cgroup, Lab};

use super::{House, SOON};

#[test]
fn who_is_not_ready_tells_strangers_which_part_and_administrators_why() -> Result<()> {
    let lab = Lab::new()?;
    let cgroup: Cgroup = lab.appliance().cgroup().child("short-lived")?;
    let path = cgroup.path().display().to_string();
    let house = House::with(&lab, |config| config.steer(&[&cgroup]))?;
    lab.explain(|| {
        let ask = |headers: &[&str]| -> Result<(u16, Value)> {
            let mut curl = house.admin.curl("GET", "/readyz");
            for header in headers {
                curl = curl.args(["--header", header]);
            }
            let answer = house.admin.answer(curl)?;
            Ok((answer.status, answer.json()?))
        };
        let ready = json!({ "ready": true, "reasons": [] });
        assert_eq!(ask(&[])?, (200, ready));
        drop(cgroup);
        let started = Instant::now();
        let told = loop {
            let (status, told) = ask(&[])?;
            if status == 503 {
                break told;
            }
            assert!(started.elapsed() < SOON, "it still says that it is ready");
        };
        assert_eq!(told, json!({ "ready": false, "reasons": ["steering"] }));
        let whole = json!({
            "ready": false,
            "reasons": [format!("nothing is captured in {path}: there is no such cgroup")],
        });
        assert_eq!(ask(&[&format!("Authorization: Bearer {}", house.admin.token)])?, (503, whole.clone()));
        // Who comes with a credential that does not work is answered as a stranger, and told as elsewhere.
        assert_eq!(ask(&["Authorization: Bearer dwa_wrong"])?, (503, told.clone()));
        house.admin.event("login-failed", "a wrong admin token", SOON)?;
        assert_eq!(ask(&["Cookie: __Host-dworker=AAAA"])?, (503, told));
        let curl = lab.appliance().command("curl").args(["--silent", "--unix-socket"]);
        let curl = curl.arg(lab.appliance().socket("appliance")).arg("http://localhost/readyz");
        assert_eq!(serde_json::from_str::<Value>(&curl.check()?)?, whole);
        Ok(())
    })
}
