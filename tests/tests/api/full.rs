//! A disk that is full: what is refused then did not happen, and all works again once there is room.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tests::Lab;

use super::{House, SOON};

/// An appliance whose state directory is a file system of its own, of 1 MiB. It is in the daemon's mount namespace
/// alone; the path leads there.
fn small(lab: &Lab) -> Result<(House<'_>, PathBuf)> {
    let state = lab.appliance().directory().join("appliance-state");
    let house = std::thread::scope(|scope| {
        let start = || {
            fs::create_dir_all(&state)?;
            // This thread's, and of what it starts.
            unshare(CloneFlags::CLONE_NEWNS)?;
            let nothing = None::<&str>;
            mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing)?;
            mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), Some("size=1m"))?;
            House::new(lab)
        };
        scope.spawn(start).join().expect("no panic")
    })?;
    let root = format!("/proc/{}/root", house.appliance.process().pid());
    let there = Path::new(&root).join(state.strip_prefix("/").context("a relative path")?);
    Ok((house, there))
}

/// Takes all the room that there is.
fn fill(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("filler");
    let mut file = File::create(&path)?;
    for size in [4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    Ok(path)
}

#[test]
fn a_full_disk_refuses_changes_until_there_is_room_again() -> Result<()> {
    let lab = Lab::new()?;
    let (house, state) = small(&lab)?;
    lab.explain(|| {
        let admin = &house.admin;
        house.add("before", &[])?;
        for round in 0..2 {
            let filler = fill(&state)?;
            // What the log of SQLite has room for is saved still.
            let mut saved = Vec::new();
            let refused = loop {
                let name = format!("full-{round}-{}", saved.len());
                let body = json!({ "name": name, "description": "x".repeat(400) });
                let answer = admin.post("/api/v1/workers", &body)?;
                match answer.status {
                    201 => saved.push(name),
                    _ => break answer,
                }
                assert!(saved.len() < 2000, "the disk is not full");
            };
            let problem = refused.problem(503)?;
            assert!(
                problem["detail"].to_string().contains("no space is left on its file system: make room"),
                "{problem}"
            );
            assert_eq!(wait_for(&house, 503)?["ready"], false);
            let why = wait_for(&house, 503)?["reasons"][0].to_string();
            assert!(why.contains("the registry: ") && why.contains("no space is left"), "{why}");

            fs::remove_file(filler)?;
            assert_eq!(wait_for(&house, 200)?, json!({ "ready": true, "reasons": [] }));
            house.add(&format!("after-{round}"), &[])?;
            let there: Vec<Value> = admin.all("/api/v1/workers")?;
            let names: Vec<&str> = there.iter().filter_map(|worker| worker["name"].as_str()).collect();
            let full = names.iter().filter(|name| name.starts_with(&format!("full-{round}-"))).count();
            assert_eq!(full, saved.len(), "what was refused did not happen: {names:?}");
            // They would fill it by themselves.
            for name in saved {
                admin.delete(&format!("/api/v1/workers/{name}"))?;
            }
        }
        // What the audit's own writer had to keep meanwhile was not lost: each refusal is an event.
        for round in 0..2 {
            admin.event("save-refused", &format!("full-{round}-"), SOON)?;
        }
        Ok(())
    })
}

/// Asks whether it is ready until that is answered with `status`.
fn wait_for(house: &House<'_>, status: u16) -> Result<Value> {
    let started = Instant::now();
    loop {
        let answer = house.admin.send("GET", "/readyz", None, &[])?;
        if answer.status == status {
            return answer.json();
        }
        if started.elapsed() > SOON {
            bail!("no {status} but {}: {}", answer.status, answer.body);
        }
    }
}
