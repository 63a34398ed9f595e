//! What is to be steered, worked out in full before anything is touched.
//!
//! What must hold: a pattern keeps its number for as long as it is steered, whoever carries it, so that what is not
//! changed need not be written again; and no number is given to a second pattern, because the kernel's records of
//! connections, its events and people's notes outlive the rule.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use worker_common::{Entry, limits};

use super::slots::Slots;
use super::{Carrier, SteerError};
use crate::steer::names::{PatternIndex, hosts_conflicts};
use crate::steer::rules::{Rule, Rules, RulesError};
use crate::target::{Host, Name, Pattern};

/// What is steered, by whom it is carried, and what follows from it.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// In the order of the carriers.
    pub(super) rules: Vec<Rule>,
    /// Who carries, by their ids: their place in the kernel, and their name.
    pub(super) carriers: HashMap<i64, (u16, String)>,
    /// Which names are proxy hosts.
    pub(super) patterns: Arc<PatternIndex>,
    tables: Rules,
    /// Addresses that `/etc/hosts` gives to proxy hosts: such names are never asked of DNS.
    hosts: HashMap<IpAddr, (Name, Entry)>,
    /// The other proxy hosts that it gives such an address to.
    hidden: HashSet<(IpAddr, Name)>,
}

/// Where plans come from.
pub(super) struct Planner {
    /// The synthetic prefixes.
    pub(super) synthetic: (Ipv4Net, Ipv6Net),
    /// Connections to addresses are refused while no daemon is there.
    pub(super) closed: bool,
    /// Where names are found before DNS is asked.
    pub(super) hosts: Box<Path>,
    /// The places of carriers in the kernel.
    pub(super) slots: Slots,
    /// The number of the next rule.
    pub(super) next: NonZeroU32,
}

impl Planner {
    /// Works out what steering for `carriers` takes, where `before` is what is steered now.
    ///
    /// # Errors
    /// What makes it impossible.
    pub(super) fn plan(&mut self, carriers: Vec<Carrier>, before: &Plan) -> Result<Plan, SteerError> {
        let numbers: HashMap<Pattern, NonZeroU32> =
            before.rules.iter().map(|rule| (rule.pattern.clone(), rule.number)).collect();
        let taken: HashSet<NonZeroU32> = numbers.values().copied().collect();
        let carriers: Vec<Carrier> = carriers.into_iter().filter(|c| !c.proxy_hosts.is_empty()).collect();
        let count = carriers.len();
        let (mut rules, mut placed, mut seen) = (Vec::new(), HashMap::with_capacity(count), HashSet::new());
        for Carrier { id, name, proxy_hosts } in carriers {
            let Some(group) = self.slots.take(id) else {
                return Err(SteerError::Rules(vec![RulesError::TooManyGroups {
                    count,
                    limit: limits::GROUPS,
                }]));
            };
            placed.insert(id, (group, name));
            for pattern in proxy_hosts {
                // Of two that are equally specific the first counts: the second would never be reached.
                if seen.insert(pattern.clone()) {
                    let number = numbers.get(&pattern).copied();
                    let number = number.unwrap_or_else(|| self.number(&taken));
                    rules.push(Rule { number, group, pattern });
                }
            }
        }
        let tables = Rules::with(&rules, self.synthetic, self.closed).map_err(SteerError::Rules)?;
        let patterns = Arc::new(PatternIndex::new(rules.iter().map(|rule| &rule.pattern)));
        let mut plan = Plan { rules, carriers: placed, patterns, tables, ..Plan::default() };
        let found = hosts_conflicts(&self.hosts, &plan.patterns).map_err(|source| self.hosts(source))?;
        plan.add_hosts(found, self.synthetic, before)?;
        Ok(plan)
    }

    /// A number for a new rule. After four thousand million of them they begin again: whatever had one then is gone.
    fn number(&mut self, taken: &HashSet<NonZeroU32>) -> NonZeroU32 {
        loop {
            let number = self.next;
            self.next = number.checked_add(1).unwrap_or(NonZeroU32::MIN);
            if !taken.contains(&number) {
                return number;
            }
        }
    }

    fn hosts(&self, source: io::Error) -> SteerError {
        SteerError::Hosts { path: self.hosts.clone(), source }
    }
}

impl Plan {
    fn add_hosts(
        &mut self,
        found: Vec<(IpAddr, Name)>,
        synthetic: (Ipv4Net, Ipv6Net),
        before: &Plan,
    ) -> Result<(), SteerError> {
        for (address, name) in found {
            // A name's own synthetic address, or another's: they have their rules.
            let net = IpNet::from(address);
            if IpNet::from(synthetic.0).contains(&net) || IpNet::from(synthetic.1).contains(&net) {
                continue;
            }
            let entry = self.tables.for_hosts_entry(&name, address);
            let Some(entry) = entry.map_err(|error| SteerError::Rules(vec![error]))? else { continue };
            // What was so before has been said.
            let is_news = |first: &Name| before.hosts.get(&address).is_none_or(|(before, _)| before != first);
            if let Some((first, _)) = self.hosts.get(&address) {
                let hidden = (address, name);
                if is_news(first) || !before.hidden.contains(&hidden) {
                    let name = &hidden.1;
                    tracing::warn!(%address, %name, %first, "/etc/hosts gives one address to two proxy hosts; the first counts");
                }
                self.hidden.insert(hidden);
                continue;
            }
            if is_news(&name) {
                tracing::info!(%address, %name, "/etc/hosts answers for a proxy host; its address is steered to the name");
            }
            self.hosts.insert(address, (name, entry));
        }
        Ok(())
    }

    /// The entries for real addresses. Those of names come with the names' synthetic addresses.
    pub(super) fn entries(&self) -> impl Iterator<Item = (IpNet, &Entry)> {
        let hidden =
            |net: &IpNet| net.prefix_len() == net.max_prefix_len() && self.hosts.contains_key(&net.addr());
        let prefixes = self.tables.prefixes().iter().map(|(net, entry)| (*net, entry));
        let hosts = self.hosts.iter().map(|(address, (_, entry))| (IpNet::from(*address), entry));
        prefixes.filter(move |(net, _)| !hidden(net)).chain(hosts)
    }

    /// The entry for the synthetic addresses of `name`; `None` where it is no proxy host.
    pub(super) fn for_name(&self, name: &Name) -> Option<Entry> {
        self.tables.for_name(name)
    }

    /// What a connection to a real address is for. `/etc/hosts` may give to a name what a rule for addresses has, too,
    /// for other ports.
    pub(super) fn host_at(&self, address: IpAddr, port: u16) -> Host {
        match self.hosts.get(&address) {
            Some((name, _)) if self.for_name(name).is_some_and(|entry| entry.rule(port).is_some()) => {
                Host::Name(name.clone())
            }
            _ => Host::addr(address),
        }
    }
}
