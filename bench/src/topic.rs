//! What is measured. Each topic makes its world, runs its rounds and adds to the results.

mod bulk;
mod growth;
mod hooks;
mod idle;
mod path;
mod small;
mod stalled;
mod steered;

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::carrier::{self, Carrier, Peer, Way};
use crate::load::{Load, Seen, What};
use crate::processes;
use crate::profile::Profile;
use crate::results::{Better, Results};

/// How much is measured, and of whom.
pub(crate) struct Plan {
    /// Rounds of each measure; carriers take turns in each.
    pub(crate) rounds: usize,
    /// How long each of them counts.
    pub(crate) time: Duration,
    /// Who is measured where a topic compares carriers.
    pub(crate) carriers: Vec<String>,
    /// Those that the command line names.
    pub(crate) peers: Vec<Peer>,
    /// Whether to look where the time goes.
    pub(crate) profile: Option<Profile>,
}

impl Plan {
    /// A load of the usual length.
    fn load(&self, carrier: &Carrier<'_>, what: What) -> Load {
        Load { to: carrier.to, what, warm: Duration::from_millis(400), time: self.time }
    }

    /// Runs a load through a carrier, and says how many seconds of CPU that used meanwhile.
    fn run(&self, title: &str, carrier: &Carrier<'_>, what: What) -> Result<(Seen, f64)> {
        let pids = carrier.pids();
        let running = carrier.place.start(self.load(carrier, what))?;
        let profiling = match &self.profile {
            Some(profile) if !pids.is_empty() => Some(profile.start(title, carrier, self.time)?),
            _ => None,
        };
        let before = processes::cpu(&pids);
        let seen = running.end()?;
        let used = processes::cpu(&pids) - before;
        profiling.map(|profiling| profiling.end()).transpose()?;
        moved(title, carrier, &seen)?;
        Ok((seen, used))
    }

    /// Measures each of them once; who fails is left out from then on.
    fn round<'a>(
        &self,
        carriers: &mut Vec<Carrier<'a>>,
        results: &mut Results,
        measure: impl Fn(&Carrier<'a>, &mut Results) -> Result<()>,
    ) -> Result<()> {
        for carrier in std::mem::take(carriers) {
            let outcome = measure(&carrier, results);
            if self.or_left_out(&carrier.name, outcome, results)?.is_some() {
                carriers.push(carrier);
            }
        }
        Ok(())
    }

    /// Adds what one connection or message cost both ends together, where somebody carries.
    fn cost(&self, results: &mut Results, measure: &str, carrier: &Carrier<'_>, seen: &Seen, used: f64) {
        if !carrier.ends.is_empty() {
            let each = used / (seen.rate * self.time.as_secs_f64());
            results.add(measure, "µs", Better::Less, &carrier.name, each * 1e6);
        }
    }

    /// Starts one of the carriers.
    fn start<'a>(
        &self,
        name: &str,
        lab: &tests::Lab,
        way: Way<'a>,
        results: &mut Results,
    ) -> Result<Option<Carrier<'a>>> {
        let carrier = carrier::start(name, &self.peers, lab, way);
        self.or_left_out(name, carrier, results)
    }

    /// What came of one of the carriers. Whatever dworker is compared with is left out where it fails, and that is said.
    fn or_left_out<T>(&self, name: &str, outcome: Result<T>, results: &mut Results) -> Result<Option<T>> {
        match outcome {
            Err(error) if name != carrier::OURS => {
                results.leave_out(name, &error);
                Ok(None)
            }
            outcome => outcome.map(Some),
        }
    }

    /// Starts all of them on a host.
    fn start_all<'a>(
        &self,
        lab: &tests::Lab,
        host: &'a tests::Host,
        results: &mut Results,
    ) -> Result<Vec<Carrier<'a>>> {
        let start = |name: &String| self.start(name, lab, Way::within(host), results).transpose();
        self.carriers.iter().filter_map(start).collect()
    }
}

/// What failed in part, or did nothing, is not a measure.
fn moved(title: &str, carrier: &Carrier<'_>, seen: &Seen) -> Result<()> {
    ensure!(seen.rate > 0.0, "{}: {title}: nothing moved", carrier.name);
    ensure!(seen.failures == 0, "{}: {title}: {} failed", carrier.name, seen.failures);
    Ok(())
}

/// A topic's name, what it measures, and how.
pub(crate) struct Topic {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) run: fn(&Plan, &mut Results) -> Result<()>,
}

/// All topics, in the order in which they run.
pub(crate) const ALL: [Topic; 13] = [
    Topic { name: "bulk", what: "bytes a second and what they cost, 1 and 8 streams", run: bulk::bulk },
    Topic { name: "relay", what: "bytes a second between two workers", run: bulk::relay },
    Topic { name: "connects", what: "short connections, 16 at a time", run: small::connects },
    Topic { name: "requests", what: "messages on 16 connections, also beside bulk", run: small::requests },
    Topic { name: "stalled", what: "what streams that nobody reads cost the others", run: stalled::stalled },
    Topic { name: "idle", what: "memory of idle streams and daemons, and their start", run: idle::idle },
    Topic {
        name: "steered",
        what: "connections led to a forwarder, also by nftables REDIRECT and redsocks",
        run: steered::steered,
    },
    Topic { name: "hooks", what: "the programs in the kernel", run: hooks::hooks },
    Topic { name: "long", what: "50 ms of round trip: the first byte, and 1 Gbit/s", run: path::long },
    Topic { name: "loss", what: "8 streams where 1 of 100 packets is lost", run: path::loss },
    Topic { name: "streams", what: "messages and memory with 1 to 10,000 streams", run: growth::streams },
    Topic {
        name: "rules",
        what: "connections and the programs' time with 1 to 10,000 rules",
        run: growth::rules,
    },
    Topic { name: "workers", what: "memory of an appliance with 1 to 2,000 workers", run: growth::workers },
];
