//! `dworker status OBJECT`: what it says of programs, maps and links is what bpftool says, and all of it is what the
//! committed schema says.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::traffic::{Connect, Serve};
use tests::{Command, Config, Group, Lab, Output, net};

use crate::monitor::{await_event, monitor};
use crate::schema::judge;

const SOON: Duration = Duration::from_secs(30);

fn status(lab: &Lab, args: &[&str]) -> Result<Output> {
    let host = lab.appliance();
    host.dworker(["status"])?.args(args).arg("--socket").arg(host.socket("appliance")).output()
}

/// The things of a kind.
fn all(lab: &Lab, object: &str) -> Result<Vec<Value>> {
    let found = status(lab, &[object, "-j"])?.json()?;
    Ok(found.as_array().with_context(|| format!("no list of {object}: {found}"))?.clone())
}

fn bpftool(args: &[&str]) -> Result<Value> {
    Command::new("bpftool").arg("-j").args(args).output()?.json()
}

/// Programs, maps and links; each as bpftool has it, too.
fn as_bpftool_says(lab: &Lab) -> Result<[Vec<Value>; 3]> {
    let (progs, maps, links) = (all(lab, "prog")?, all(lab, "map")?, all(lab, "link")?);
    assert_eq!((progs.len(), links.len()), (9, 9));
    for prog in &progs {
        let id = prog["id"].to_string();
        let known = bpftool(&["prog", "show", "id", &id])?;
        // The kernel keeps 15 characters of a name.
        let name = prog["name"].as_str().context("no name")?;
        assert_eq!(known["name"], name[..name.len().min(15)], "{known}");
        for field in ["id", "type", "tag", "map_ids"] {
            assert_eq!(prog[field], known[field], "{field} of {prog} and {known}");
        }
        assert_eq!(status(lab, &["prog", &id, "-j"])?.json()?["name"], prog["name"]);
    }
    for map in &maps {
        let id = map["id"].to_string();
        let known = bpftool(&["map", "show", "id", &id])?;
        for (field, of) in [
            ("id", "id"),
            ("name", "name"),
            ("type", "type"),
            ("key_size", "bytes_key"),
            ("value_size", "bytes_value"),
            ("max_entries", "max_entries"),
        ] {
            assert_eq!(map[field], known[of], "{field} of {map} and {known}");
        }
        if let Some(entries) = map["entries"].as_u64() {
            let dumped = bpftool(&["map", "dump", "id", &id])?;
            assert_eq!(dumped.as_array().map(Vec::len), Some(entries as usize), "{map}: {dumped}");
        }
    }
    for link in &links {
        let known = bpftool(&["link", "show", "id", &link["id"].to_string()])?;
        for field in ["id", "type", "prog_id", "cgroup_id"] {
            assert_eq!(link[field], known[field], "{field} of {link} and {known}");
        }
    }
    Ok([progs, maps, links])
}

#[test]
fn ids_are_the_kernels_and_answers_are_as_the_schema_says() -> Result<()> {
    let lab = Lab::new()?;
    let _server = lab.vcenter().serve(Serve::Stall, net::ECHO, 7001)?;
    let hosts = ["echo.corp.example:7001", net::SITE_PREFIX4, net::SITE_PREFIX6];
    let tunnel = lab.tunnel(hosts, hosts)?;
    lab.explain(|| {
        let client =
            lab.appliance().captured(Connect::to("echo.corp.example", 7001).stall().command()?).spawn()?;
        client.wait_for_line("stalled", SOON)?;
        let flow = tunnel.appliance.wait_for_flow("echo.corp.example:7001", "open", SOON)?;

        let mut answers = vec![("Status", tunnel.appliance.status()?), ("Status", tunnel.worker.status()?)];
        for (object, definition) in [
            ("prog", "ProgramStatus"),
            ("map", "MapStatus"),
            ("link", "Link"),
            ("rule", "RuleStatus"),
            ("flow", "Connection"),
            ("dns", "Dns"),
            ("tunnel", "Tunnel"),
            ("stream", "Stream"),
        ] {
            let found = all(&lab, object)?;
            assert!(!found.is_empty(), "no {object}");
            answers.extend(found.into_iter().map(|one| (definition, one)));
        }
        judge(&answers)?;

        let [_, maps, _] = as_bpftool_says(&lab)?;
        let counted =
            |name: &str| maps.iter().any(|map| map["name"] == name && map["entries"].as_u64() > Some(1));
        assert!(counted("RULES4") && counted("RULES6"), "{maps:#?}");

        // By id and by name, for people, and where there is none.
        let text = status(&lab, &["tunnel", "site-a/site"])?.check()?;
        assert!(text.starts_with("site-a/site: up  primary  peer [fd77:0:0:2::10]:"), "{text}");
        assert!(text.contains("\tlane 0  up  rtt "), "{text}");
        let text = status(&lab, &["dns", "ECHO.corp.example"])?.check()?;
        assert_eq!(text, "echo.corp.example: 240.64.0.1  2001:2::1\n");
        let stream = &all(&lab, "stream")?[0];
        assert_eq!((&stream["flow"], &stream["target"]), (&flow["id"], &flow["target"]));
        let key = stream["key"].as_str().context("no key")?;
        assert!(key.starts_with("site-a/site/"), "{key}");
        let text = status(&lab, &["stream", key])?.check()?;
        assert!(text.starts_with(&format!("{key}: echo.corp.example:7001  open  flow ")), "{text}");
        let none = status(&lab, &["prog", "4294967295"])?;
        assert_eq!(none.status.code(), Some(3), "{none}");
        assert!(none.stderr.contains("there is no prog \"4294967295\": `dworker status prog`"), "{none}");
        let wrong = status(&lab, &["progs"])?;
        assert!(wrong.status.code() == Some(2) && wrong.stderr.contains("prog, map, link"), "{wrong}");
        Ok(())
    })
}

#[test]
fn what_lives_on_through_a_reload_keeps_its_ids() -> Result<()> {
    let lab = Lab::new()?;
    let (host, group) = (lab.appliance(), Group::new("site-a", ["*.corp.example", net::SITE_PREFIX4])?);
    let config = Config::new().appliance(&lab.appliance_identity()?, &[&group]).steer(&[host.cgroup()]);
    let service = host.service("appliance", config)?;
    let worker = Config::new().worker(&group, lab.pki().ca_file(), ["*.corp.example", net::SITE_PREFIX4]);
    let _worker = lab.site().daemon("worker", worker)?;
    lab.explain(|| {
        let _echo = lab.vcenter().serve(Serve::Echo, net::ECHO, 7001)?;
        let up = |status: &Value| status["appliance"]["groups"][0]["up"] == true;
        service.wait_for_status("a worker", up)?;
        Connect::to("echo.corp.example", 7001).send(10).once(host)?.assert_echo(1, 10, "before");
        let watching = monitor(host, &["-j", "--kind", "steered"])?;
        let before = as_bpftool_says(&lab)?;
        service.reload(host)?.check()?;
        watching.wait_for_line("another process is the daemon now", SOON)?;
        let after = as_bpftool_says(&lab)?;
        let ids = |all: &[Value]| all.iter().map(|one| one["id"].as_u64()).collect::<BTreeSet<_>>();
        // What belongs to the program file alone (`.rodata` and its like) is loaded anew.
        let pinned = |all: &[Value]| {
            all.iter()
                .filter(|map| !map["name"].as_str().is_some_and(|name| name.starts_with('.')))
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(&pinned(&before[1])), ids(&pinned(&after[1])), "{after:#?}");
        assert!(pinned(&after[1]).len() >= 16, "{after:#?}");
        for one in [0, 2] {
            assert!(ids(&before[one]).is_disjoint(&ids(&after[one])), "{before:#?} {after:#?}");
        }
        service.wait_for_status("a worker", up)?;
        Connect::to("echo.corp.example", 7001).send(10).once(host)?.assert_echo(1, 10, "after");
        let event = await_event(&watching, "steered", "echo.corp.example:7001")?;
        assert_eq!(event["process"]["comm"], "lab-tool", "{event:#}");
        Ok(())
    })
}
