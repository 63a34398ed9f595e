//! Two workers with one key, while an application makes two hundred connections a second.
//!
//! The workers stand on two hosts that both reach the targets, on `elsewhere`: the primary at the site, so that it
//! can be cut off from all others, the standby beside the targets.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::load::{Kind, Load, Outcome, now};
use tests::traffic::{Serve, Server};
use tests::{Config, Daemon, Group, Lab, net};

const SOON: Duration = Duration::from_secs(30);
const RATE: u32 = 200;
/// Two seconds of it.
const SOME: usize = 2 * RATE as usize;
/// Every kind of connection is there again after this long.
const BACK: Duration = Duration::from_secs(6);
/// What a connection may take where nothing is lost. The machine may be busy.
const PROMPT: Duration = Duration::from_secs(3);
/// The site lets out port 443 only.
const ECHO: (&str, u16) = ("direct.example", 443);
const SOURCE: (&str, u16) = ("direct2.example", 443);

struct Pair {
    appliance: Daemon,
    primary: Daemon,
    _standby: Daemon,
    /// The nodes' ids.
    ids: [String; 2],
    echo: Server,
    _source: Server,
}

impl Pair {
    fn new(lab: &Lab) -> Result<Pair> {
        lab.site_resolver()
            .add("host-record=direct.example,10.77.4.10\nhost-record=direct2.example,10.77.4.20\n")?;
        let hosts = [ECHO, SOURCE].map(|(host, port)| format!("{host}:{port}"));
        let group = Group::new("site-a", hosts.clone())?;
        let config = Config::new()
            .appliance(&lab.appliance_identity()?, &[&group])
            .set("appliance.failback", "2s")
            .steer(&[lab.appliance().cgroup()]);
        let appliance = lab.appliance().daemon("appliance", config)?;
        let worker = || Config::new().worker(&group, lab.pki().ca_file(), hosts.clone());
        // Who came first is primary.
        let primary = lab.site().daemon("primary", worker())?;
        let first = carrying(&appliance, |nodes| nodes.len() == 1)?;
        let standby = lab.elsewhere().daemon("standby", worker())?;
        let status = appliance.wait_for_status("both workers", SOON, |status| nodes(status).len() == 2)?;
        let ids = nodes(&status).iter().filter_map(|node| node["id"].as_str().map(str::to_owned));
        let second = ids.into_iter().find(|id| *id != first).context("a second node")?;
        Ok(Pair {
            appliance,
            primary,
            _standby: standby,
            ids: [first, second],
            echo: lab.elsewhere().serve(Serve::Echo, net::DIRECT, ECHO.1)?,
            _source: lab.elsewhere().serve(
                Serve::Source { seed: 1, length: 1000 },
                net::DIRECT2,
                SOURCE.1,
            )?,
        })
    }

    /// Waits until node `n` is primary.
    fn wait_until_primary(&self, n: usize) -> Result<()> {
        carrying(&self.appliance, |nodes| nodes[0]["id"] == self.ids[n].as_str()).map(drop)
    }

    fn load(&self, lab: &Lab, rate: u32, held: u32) -> Result<tests::load::Running> {
        let [echo, source] = [ECHO, SOURCE].map(|(host, port)| (host.to_owned(), port));
        Load { echo, source, rate, held, pause: 100 }.captured(lab.appliance())
    }

    /// How many connections the target has had from each worker.
    fn served(&self) -> [usize; 2] {
        let from = self.echo.accepted_from();
        let by_primary = from.iter().filter(|ip| net::SITE.both().contains(ip)).count();
        [by_primary, from.len() - by_primary]
    }
}

fn nodes(status: &Value) -> &[Value] {
    status["appliance"]["groups"][0]["nodes"].as_array().map_or(&[], Vec::as_slice)
}

/// The id of the primary, once `wanted` holds for the nodes.
fn carrying(appliance: &Daemon, wanted: impl Fn(&[Value]) -> bool) -> Result<String> {
    let is_so = |status: &Value| {
        let nodes = nodes(status);
        nodes.first().is_some_and(|node| node["role"] == "primary") && wanted(nodes)
    };
    let status = appliance.wait_for_status("a primary", SOON, is_so)?;
    nodes(&status)[0]["id"].as_str().map(str::to_owned).context("an id")
}

fn micros(time: Duration) -> u64 {
    time.as_micros().try_into().unwrap_or(u64::MAX)
}

fn failed(outcomes: &[Outcome]) -> Vec<&Outcome> {
    outcomes.iter().filter(|outcome| outcome.failure.is_some()).collect()
}

#[test]
fn a_killed_primary_costs_the_streams_that_were_open_and_no_new_connection() -> Result<()> {
    let lab = Lab::new()?;
    let mut pair = Pair::new(&lab)?;
    lab.explain(|| {
        let load = pair.load(&lab, RATE, 0)?;
        let lost = pair.load(&lab, 0, 10)?;
        load.wait_for_more(SOME, SOON)?;
        let [by_primary, by_standby] = pair.served();
        assert!(by_primary > 0 && by_standby == 0, "{by_primary} and {by_standby}");

        let killed = now();
        pair.primary.kill9()?;
        let gone = now();
        load.wait_for_more(SOME, SOON)?;
        pair.wait_until_primary(1)?;
        assert!(pair.served()[1] > 0);
        // These are on the standby, and stay there.
        let kept = pair.load(&lab, 0, 10)?;

        pair.primary.start()?;
        pair.wait_until_primary(0)?;
        let [before, _] = pair.served();
        load.wait_for_more(SOME, SOON)?;
        assert!(pair.served()[0] > before, "new streams do not go to the primary again");

        let lost = lost.stop()?;
        for outcome in &lost {
            let prompt = (killed..gone + 1_000_000).contains(&outcome.ended);
            assert!(outcome.failure.is_some() && prompt, "{outcome:?}, killed at {killed}");
        }
        assert_eq!(failed(&kept.stop()?), Vec::<&Outcome>::new(), "fail-back cuts nothing");
        let outcomes = load.stop()?;
        assert!(outcomes.len() >= 3 * SOME);
        for outcome in failed(&outcomes) {
            assert!(
                outcome.started <= gone && outcome.ended >= killed,
                "{outcome:?} was not open while the primary was killed, from {killed} to {gone}"
            );
        }
        eprintln!("{} connections, {} failed", outcomes.len(), failed(&outcomes).len());
        let slow: Vec<_> = outcomes.iter().filter(|outcome| outcome.took() > PROMPT).collect();
        assert!(slow.is_empty(), "{slow:?}");
        Ok(())
    })
}

#[test]
fn a_primary_that_is_cut_off_is_replaced_within_six_seconds() -> Result<()> {
    let lab = Lab::new()?;
    let pair = Pair::new(&lab)?;
    lab.explain(|| {
        let load = pair.load(&lab, RATE, 0)?;
        load.wait_for_more(SOME, SOON)?;
        let hole = now();
        // Not a packet in or out, and nobody is told.
        lab.site().netns().nft(
            "table inet hole {
               chain in { type filter hook input priority -10; policy drop; }
               chain out { type filter hook output priority -10; policy drop; }
             }",
        )?;
        let dark = now();
        pair.wait_until_primary(1)?;
        let kept = pair.load(&lab, 0, 10)?;
        load.wait_for_more(SOME, SOON)?;

        let healed = now();
        lab.site().netns().nft("delete table inet hole")?;
        pair.wait_until_primary(0)?;
        let [before, _] = pair.served();
        load.wait_for_more(SOME, SOON)?;
        assert!(pair.served()[0] > before, "new streams do not go to the primary again");

        assert_eq!(failed(&kept.stop()?), Vec::<&Outcome>::new(), "fail-back cuts nothing");
        let outcomes = load.stop()?;
        let (back, prompt) = (dark + micros(BACK), micros(PROMPT));
        for outcome in &outcomes {
            let Outcome { kind, started, ended, ref failure } = *outcome;
            let fine = match failure {
                // What was open then is lost; and what a plain client has said may have reached the target, so that
                // it is not said again.
                Some(_) => {
                    (started <= dark && ended >= hole)
                        || (kind == Kind::Plain && (dark..back).contains(&started))
                }
                None => ended <= started.max(back) + prompt && (started < back || ended <= started + prompt),
            };
            assert!(fine, "{outcome:?}, cut off from {hole} to {dark}, back at {back}, healed at {healed}");
        }
        let last = outcomes.iter().filter(|outcome| outcome.started > dark && outcome.failure.is_some());
        let last = last.map(|outcome| outcome.ended).max().unwrap_or(dark);
        let gap = Duration::from_micros(last - dark);
        eprintln!(
            "{} connections, {} failed, the last {gap:?} after the cut",
            outcomes.len(),
            failed(&outcomes).len()
        );
        let asked_again = outcomes
            .iter()
            .filter(|outcome| (dark..back).contains(&outcome.started) && outcome.failure.is_none());
        assert!(asked_again.count() > SOME, "nothing was asked again of the standby");
        Ok(())
    })
}
