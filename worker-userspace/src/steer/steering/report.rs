//! What the log and `status` say of steering.

use std::collections::HashMap;
use std::net::IpAddr;

use super::{Steering, lock};
use crate::inspect::ledger::Process;
use crate::inspect::monitor::{Happening, What};
use crate::inspect::status::{
    LinkStatus, MapStatus, NameStatus, ProgramStatus, RefusedStatus, RuleStatus, SteerStatus,
};
use crate::steer::dns::Counts;
use crate::steer::kernel::{self, Counter, Refused};
use crate::steer::names::Synthetic;
use crate::steer::rules::Rule;
use crate::target::{Host, Name, Target};

/// Refusals of the kernel that `status` remembers.
const REMEMBERED: usize = 64;
/// Names that `status` lists.
const LISTED: usize = 1024;

/// What steering counts, at one moment.
#[derive(Debug, Clone)]
pub struct Counted {
    /// The programs in the kernel.
    pub programs: Vec<kernel::ProgramStatus>,
    /// What they counted.
    pub counters: Vec<(Counter, u64)>,
    /// What the DNS server counted.
    pub dns: Counts,
    /// Rules that hold.
    pub rules: usize,
    /// Names that have addresses.
    pub names: usize,
}

impl Steering {
    /// What is counted, without names and texts. What the kernel does not tell is left out.
    pub fn counted(&self) -> Counted {
        Counted {
            programs: self.kernel.programs().unwrap_or_default(),
            counters: self.kernel.counters().unwrap_or_default(),
            dns: self.dns.snapshot(),
            rules: self.rules.plan().rules.len(),
            names: self.names.count(),
        }
    }

    /// Logs a refusal, and remembers it.
    pub(super) fn note(&self, event: &Refused) {
        let canary = self.names.prefixes().canary();
        if [IpAddr::from(canary.v4), canary.v6.into()].contains(&event.target.ip()) {
            // No application's: `dworker doctor` looks whether it is refused.
            return;
        }
        let name = self.names.name_of(event.target.ip()).map(|name| name.to_string());
        let (target, process, reason) =
            (event.target, event.process.to_string(), event.reason.counter().word().to_owned());
        let shown = name.clone().unwrap_or_default();
        if let Some(hub) = self.hub.get() {
            hub.tell(|| happening(event, name.as_deref()));
        }
        match event.errno {
            Some(errno) => {
                tracing::warn!(%target, name = %shown, %process, errno, "refused in connect(): {reason}")
            }
            None => {
                tracing::warn!(%target, name = %shown, %process, "went direct although a rule names it: {reason}")
            }
        }
        let mut refused = lock(&self.refused);
        refused.truncate(REMEMBERED - 1);
        refused.push_front(RefusedStatus { target, name, process, reason, errno: event.errno });
    }

    fn maps(&self) -> Vec<MapStatus> {
        let maps = self.kernel.maps().unwrap_or_else(|error| {
            tracing::warn!("the maps can't be read: {error}");
            Vec::new()
        });
        let [v4, v6] = self.rules.table.count();
        let counted = |mut found: MapStatus| {
            // The synthetic prefixes have an entry of their own each.
            match found.name.as_str() {
                "RULES4" => found.entries = Some(v4 as u64 + 1),
                "RULES6" => found.entries = Some(v6 as u64 + 1),
                _ => {}
            }
            found
        };
        maps.into_iter().map(map).map(counted).collect()
    }

    /// What `status` shows; the name that is `wanted`, by its address too, is among those that are listed.
    pub fn status(&self, wanted: Option<&str>) -> SteerStatus {
        let programs = self.kernel.programs().unwrap_or_else(|error| {
            tracing::warn!("the programs can't be read: {error}");
            Vec::new()
        });
        let counters = self.kernel.counters().unwrap_or_default();
        let resolvers = self.kernel.resolvers().unwrap_or_default();
        let counts = self.dns.snapshot();
        let dns = [
            ("queries", counts.queries),
            ("answered", counts.answered),
            ("forwarded", counts.forwarded),
            ("stripped", counts.stripped),
            ("failed", counts.failed),
            ("dropped", counts.dropped),
        ];
        let plan = self.rules.plan();
        let carriers: HashMap<u16, &str> =
            plan.carriers.values().map(|(slot, name)| (*slot, name.as_str())).collect();
        let rule = |rule: &Rule| RuleStatus {
            id: rule.number.get(),
            pattern: rule.pattern.to_string(),
            carrier: carriers.get(&rule.group).copied().unwrap_or_default().to_owned(),
        };
        let named = |(name, addresses): (Name, Synthetic)| NameStatus {
            name: name.to_string(),
            addresses: [addresses.v4.into(), addresses.v6.into()],
        };
        let all = self.names.all();
        let total = all.len();
        let looked_at = if wanted.is_some() { usize::MAX } else { LISTED };
        let names: Vec<NameStatus> = (all.into_iter().take(looked_at).map(named).enumerate())
            .filter(|(at, name)| *at < LISTED || wanted.is_some_and(|wanted| name.is_called(wanted)))
            .map(|(_, name)| name)
            .collect();
        SteerStatus {
            listeners: self.listeners.clone(),
            programs: programs.into_iter().map(program).collect(),
            maps: self.maps(),
            problem: lock(&self.problem).clone(),
            off: self.is_off(),
            rules: plan.rules.iter().map(rule).collect(),
            more_names: (total - names.len()) as u64,
            names,
            resolvers: resolvers.into_iter().map(|(addr, port)| (addr.to_string(), port)).collect(),
            counters: counters.into_iter().map(|(counter, n)| (counter.word().to_owned(), n)).collect(),
            dns: dns.into_iter().map(|(what, n)| (what.to_owned(), n)).collect(),
            refused: lock(&self.refused).iter().cloned().collect(),
        }
    }
}

fn map(map: kernel::MapStatus) -> MapStatus {
    MapStatus {
        id: map.id,
        name: map.name,
        kind: map.kind.to_owned(),
        key_size: map.key_size,
        value_size: map.value_size,
        entries: map.entries.map(|n| n as u64),
        max_entries: map.max_entries,
    }
}

fn program(program: kernel::ProgramStatus) -> ProgramStatus {
    let link = |link: kernel::LinkStatus| LinkStatus {
        id: link.id,
        cgroup: link.cgroup,
        cgroup_id: link.cgroup_id,
        alive: link.alive,
    };
    ProgramStatus {
        id: program.id,
        name: program.name.to_owned(),
        kind: program.kind.to_owned(),
        tag: format!("{:016x}", program.tag),
        map_ids: program.map_ids,
        attach_type: program.attach_type.to_owned(),
        run_time_ns: program.run_time.as_nanos() as u64,
        run_cnt: program.run_count,
        links: program.links.into_iter().map(link).collect(),
    }
}

fn happening(event: &Refused, name: Option<&str>) -> Happening {
    let kind = if event.errno.is_some() { What::Refused } else { What::Direct };
    let host = name.map_or_else(
        || Host::addr(event.target.ip()),
        |name| match name.parse() {
            Ok(name) => Host::Name(name),
            Err(_) => Host::addr(event.target.ip()),
        },
    );
    Happening {
        target: Some(Target { host, port: event.target.port() }.to_string()),
        original: Some(event.target),
        process: Some(Process {
            pid: event.process.id,
            uid: event.process.uid,
            comm: event.process.command.clone(),
            cgroup_id: event.cgroup,
        }),
        reason: Some(event.reason.counter().word().to_owned()),
        errno: event.errno,
        ..Happening::new(kind)
    }
}
