//! From the administrator's patterns to the tables that the programs read.
//!
//! The kernel finds the longest prefix that covers an address, and only that. So every prefix's entry also
//! holds the ports of the wider prefixes around it, behind its own, and names work alike: an exact name, then the
//! suffixes around it. What must hold: for every address or name and every port, the first range of the entry belongs to
//! the pattern that [`Pattern::specificity`] calls the most specific of those that match.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::iter;
use std::net::IpAddr;
use std::num::NonZeroU32;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use worker_common::{Addr, Entry, PortRule, Synthetic, limits};

use crate::target::{HostPattern, Name, Pattern, PortRange};

/// What is known of a synthetic address without a name: there is nowhere to go.
pub const NO_NAME: Entry = Entry { default: Entry::REFUSE, len: 0, ranges: [PortRule::NONE; limits::RANGES] };

/// A pattern, and who carries what it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The rule's number; comes back in flow records and events.
    pub number: NonZeroU32,
    /// The number of the worker group.
    pub group: u16,
    /// What it matches.
    pub pattern: Pattern,
}

/// All rules, ready for the kernel. Of two that are equally specific the first counts.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    prefixes: HashMap<IpNet, Entry>,
    nets: Nets,
    names: Names,
}

/// Why rules cannot be given to the kernel. Each names a pattern and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// Too many port ranges.
    #[error(
        "proxy host {pattern} has, together with the wider ones around it ({wider}), {count} port ranges, and the kernel's \
         table holds {limit}: join neighbouring ranges, or leave the ports out"
    )]
    TooManyRanges {
        /// The narrowest pattern.
        pattern: String,
        /// The others.
        wider: String,
        /// How many ranges they have.
        count: usize,
        /// How many there can be.
        limit: usize,
    },
    /// Loopback.
    #[error(
        "proxy host {pattern} is this host itself, and connections within a host are never steered: write the \
         address that clients elsewhere use"
    )]
    Local {
        /// The pattern.
        pattern: String,
    },
    /// Inside the synthetic prefixes.
    #[error(
        "proxy host {pattern} lies in the synthetic prefix {synthetic}, whose addresses stand for names: choose \
         another synthetic prefix"
    )]
    Synthetic {
        /// The pattern.
        pattern: String,
        /// The prefix.
        synthetic: IpNet,
    },
    /// Too many networks.
    #[error(
        "the proxy hosts name {count} {family} networks and addresses, and the kernel's table holds {limit}: join \
         neighbouring ones"
    )]
    TooManyPrefixes {
        /// IPv4 or IPv6.
        family: &'static str,
        /// How many there are.
        count: usize,
        /// How many there can be.
        limit: usize,
    },
    /// Too many groups.
    #[error(
        "{count} workers carry proxy hosts, and the kernel's table holds {limit}: give the proxy hosts of some to \
         others, or disable some"
    )]
    TooManyGroups {
        /// How many there are.
        count: usize,
        /// How many there can be.
        limit: usize,
    },
}

/// Judges what would be steered, before it is saved: `groups` are the proxy hosts of each worker. Needs no kernel.
///
/// # Errors
/// All there are; with any of them [`Steering::update`](super::steering::Steering::update) would change nothing.
pub fn check<'a>(
    groups: impl IntoIterator<Item = &'a [Pattern]>,
    synthetic: (Ipv4Net, Ipv6Net),
) -> Result<(), Vec<RulesError>> {
    let carrying: Vec<_> = groups.into_iter().filter(|patterns| !patterns.is_empty()).collect();
    let rule = |pattern: &Pattern| Rule { number: NonZeroU32::MIN, group: 0, pattern: pattern.clone() };
    let rules: Vec<Rule> = carrying.iter().copied().flatten().map(rule).collect();
    let mut errors = Rules::new(&rules, synthetic).err().unwrap_or_default();
    if carrying.len() > limits::GROUPS {
        errors.push(RulesError::TooManyGroups { count: carrying.len(), limit: limits::GROUPS });
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Rules by the host part of their pattern, within one host part those with ports first.
type ByHost<K> = HashMap<K, Vec<Rule>>;

/// The rules whose patterns are networks and addresses.
#[derive(Debug, Clone, Default)]
struct Nets {
    rules: ByHost<IpNet>,
    /// The lengths of their prefixes: who looks for wider ones need not try all 129.
    lengths4: BTreeSet<u8>,
    lengths6: BTreeSet<u8>,
}

/// The rules whose patterns are names.
#[derive(Debug, Clone, Default)]
struct Names {
    exact: ByHost<Box<str>>,
    suffixes: ByHost<Box<str>>,
}

impl Rules {
    /// Prepares rules for a kernel with these synthetic prefixes.
    ///
    /// # Errors
    /// All there are, in the order of the rules.
    pub fn new(rules: &[Rule], synthetic: (Ipv4Net, Ipv6Net)) -> Result<Rules, Vec<RulesError>> {
        Rules::with(rules, synthetic, false)
    }

    /// As [`Rules::new`]; `closed`: connections to addresses are refused, too, while no daemon is there.
    ///
    /// # Errors
    /// As [`Rules::new`].
    pub fn with(
        rules: &[Rule],
        synthetic: (Ipv4Net, Ipv6Net),
        closed: bool,
    ) -> Result<Rules, Vec<RulesError>> {
        let flags = if closed { PortRule::FAIL_CLOSED } else { 0 };
        let mut errors = Vec::new();
        let (mut nets, mut names) = (Nets::default(), Names::default());
        for rule in rules {
            match &rule.pattern.host {
                HostPattern::Net(net) => nets.add(canonical(*net), rule),
                HostPattern::Name(name) => add(&mut names.exact, name.as_str().into(), rule),
                HostPattern::Suffix(suffix) => add(&mut names.suffixes, suffix.as_str().into(), rule),
            }
        }
        let mut prefixes = HashMap::with_capacity(nets.rules.len());
        let mut done = HashSet::with_capacity(rules.len());
        for Rule { pattern, .. } in rules {
            if !done.insert(&pattern.host) {
                continue;
            }
            let entry = match &pattern.host {
                HostPattern::Net(net) => may_be_steered(pattern, canonical(*net), synthetic)
                    .and_then(|()| entry(Entry::DIRECT, flags, nets.around(canonical(*net))))
                    .map(|entry| {
                        prefixes.insert(canonical(*net), entry);
                    }),
                // A name's entry is made when the name gets its address; that it can be made is seen here, for the
                // names below a suffix too: what matches them is what matches the suffix.
                HostPattern::Name(name) => names.entry(name).map(drop),
                HostPattern::Suffix(suffix) => names.suffix_entry(suffix).map(drop),
            };
            errors.extend(entry.err());
        }
        let v4 = prefixes.keys().filter(|net| matches!(net, IpNet::V4(_))).count();
        for (family, count) in [("IPv4", v4), ("IPv6", prefixes.len() - v4)] {
            if count > limits::PREFIXES {
                errors.push(RulesError::TooManyPrefixes { family, count, limit: limits::PREFIXES });
            }
        }
        if errors.is_empty() { Ok(Rules { prefixes, nets, names }) } else { Err(errors) }
    }

    /// The prefixes that rules name, for [`Kernel::put_rules`](super::kernel::Kernel::put_rules).
    pub fn prefixes(&self) -> &HashMap<IpNet, Entry> {
        &self.prefixes
    }

    /// What the kernel must know of a real address that `/etc/hosts` gives to `name`: the ports of the name's rules,
    /// behind them those of the prefixes around the address; other ports go direct. `None` when no rule matches the
    /// name.
    ///
    /// # Errors
    /// [`RulesError::TooManyRanges`] when all these are too many.
    pub fn for_hosts_entry(&self, name: &Name, address: IpAddr) -> Result<Option<Entry>, RulesError> {
        let Some(named) = self.for_name(name) else { return Ok(None) };
        let around = self.nets.covering(address.to_canonical().into()).next();
        let around = around.and_then(|net| self.prefixes.get_key_value(&net));
        let mut ranges = used(&named).to_vec();
        ranges.extend(around.iter().flat_map(|(_, entry)| used(entry)));
        match Entry::new(Entry::DIRECT, &ranges) {
            Some(entry) => Ok(Some(entry)),
            None => Err(RulesError::TooManyRanges {
                pattern: name.to_string(),
                wider: around.map(|(net, _)| net.to_string()).unwrap_or_default(),
                count: ranges.len(),
                limit: limits::RANGES,
            }),
        }
    }

    /// What the kernel must know of the synthetic address of `name`; `None` when no rule matches the name.
    pub fn for_name(&self, name: &Name) -> Option<Entry> {
        // An error cannot be: it would have been one of `Rules::new`.
        self.names.entry(name).ok().filter(|entry| entry.len > 0)
    }
}

impl Names {
    fn entry(&self, name: &Name) -> Result<Entry, RulesError> {
        let name = name.as_str();
        let exact = self.exact.get(name).into_iter().flatten();
        entry(Entry::REFUSE, PortRule::FAIL_CLOSED, exact.chain(self.around(parent(name))))
    }

    fn suffix_entry(&self, suffix: &Name) -> Result<Entry, RulesError> {
        entry(Entry::REFUSE, PortRule::FAIL_CLOSED, self.around(Some(suffix.as_str())))
    }

    /// The rules for `suffix` and for the suffixes around it, from long to short.
    fn around<'a>(&'a self, suffix: Option<&'a str>) -> impl Iterator<Item = &'a Rule> {
        iter::successors(suffix, |suffix| parent(suffix))
            .filter_map(|suffix| self.suffixes.get(suffix))
            .flatten()
    }
}

impl Nets {
    fn add(&mut self, net: IpNet, rule: &Rule) {
        match net {
            IpNet::V4(_) => &mut self.lengths4,
            IpNet::V6(_) => &mut self.lengths6,
        }
        .insert(net.prefix_len());
        add(&mut self.rules, net, rule);
    }

    /// Those of the networks that cover all of `net`, from long prefixes to short.
    fn covering(&self, net: IpNet) -> impl Iterator<Item = IpNet> {
        let lengths = match net {
            IpNet::V4(_) => &self.lengths4,
            IpNet::V6(_) => &self.lengths6,
        };
        let wider = lengths.range(..=net.prefix_len()).rev();
        let wider = wider.filter_map(move |length| IpNet::new(net.addr(), *length).ok());
        wider.map(|net| net.trunc()).filter(|net| self.rules.contains_key(net))
    }

    /// The rules for `net` and for the networks around it, from long prefixes to short.
    fn around(&self, net: IpNet) -> impl Iterator<Item = &Rule> {
        self.covering(net).filter_map(|net| self.rules.get(&net)).flatten()
    }
}

fn parent(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, parent)| parent)
}

/// The ranges of an entry.
pub(super) fn used(entry: &Entry) -> &[PortRule] {
    &entry.ranges[..(entry.len as usize).min(limits::RANGES)]
}

fn add<K: std::hash::Hash + Eq>(rules: &mut ByHost<K>, host: K, rule: &Rule) {
    let same = rules.entry(host).or_default();
    let all_ports = |rule: &Rule| rule.pattern.ports.is_empty();
    // Behind those that are as specific: the first counts.
    let place = same.partition_point(|other| all_ports(other) <= all_ports(rule));
    same.insert(place, rule.clone());
}

/// The entry for rules that all match, most specific first.
fn entry<'a>(default: u32, flags: u16, rules: impl Iterator<Item = &'a Rule>) -> Result<Entry, RulesError> {
    // Port 0 is none: no target has it, and the tunnel can't name it.
    const ALL: &[PortRange] = &[PortRange(1, u16::MAX)];
    let mut ranges: Vec<PortRule> = Vec::new();
    let mut patterns = Vec::new();
    for Rule { number, group, pattern } in rules {
        let ports = if pattern.ports.is_empty() { ALL } else { &pattern.ports };
        // Where a range hides another, the other is never reached.
        let hidden =
            |&&PortRange(low, high): &&PortRange| !ranges.iter().any(|r| r.low <= low && high <= r.high);
        let visible: Vec<_> = ports
            .iter()
            .filter(hidden)
            .map(|&PortRange(low, high)| PortRule { low, high, rule: number.get(), group: *group, flags })
            .collect();
        if !visible.is_empty() {
            patterns.push(pattern);
            ranges.extend(visible);
        }
    }
    Entry::new(default, &ranges).ok_or_else(|| RulesError::TooManyRanges {
        pattern: patterns[0].to_string(),
        wider: match &patterns[1..] {
            [] => "there are none".to_owned(),
            wider => wider.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        },
        count: ranges.len(),
        limit: limits::RANGES,
    })
}

fn may_be_steered(pattern: &Pattern, net: IpNet, synthetic: (Ipv4Net, Ipv6Net)) -> Result<(), RulesError> {
    let pattern = pattern.to_string();
    if Addr::from(net.network()).is_local() && Addr::from(net.broadcast()).is_local() {
        return Err(RulesError::Local { pattern });
    }
    // A wider network may well contain the synthetic addresses: their entries do not inherit.
    match [IpNet::from(synthetic.0), IpNet::from(synthetic.1)]
        .into_iter()
        .find(|prefix| prefix.contains(&net))
    {
        Some(synthetic) => Err(RulesError::Synthetic { pattern, synthetic }),
        None => Ok(()),
    }
}

/// A network as the kernel's tables have it: v4-mapped IPv6 is IPv4, no bits behind the prefix.
pub fn canonical(net: IpNet) -> IpNet {
    const MAPPED: u8 = 96;
    match (net.network(), net.prefix_len().checked_sub(MAPPED)) {
        (IpAddr::V6(network), Some(length)) => match network.to_ipv4_mapped() {
            Some(v4) => Ipv4Net::new(v4, length).map_or(net.trunc(), IpNet::from),
            None => net.trunc(),
        },
        _ => net.trunc(),
    }
}

/// The synthetic prefixes as the programs compare them.
pub fn synthetic(v4: Ipv4Net, v6: Ipv6Net) -> Synthetic {
    let words = |addr: IpAddr| Addr::from(addr);
    Synthetic {
        net4: words(v4.network().into()).v4_word(),
        mask4: words(v4.netmask().into()).v4_word(),
        net6: words(v6.network().into()).words,
        mask6: words(v6.netmask().into()).words,
    }
}

#[cfg(test)]
mod tests;
