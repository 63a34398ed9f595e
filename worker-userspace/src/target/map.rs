//! Many patterns, one look-up: finds the most specific pattern that matches a target.
//!
//! A look-up costs a few hash probes, whatever the number of patterns: one for an exact name, one for each
//! label of a suffix, one for each prefix length in use.

use std::collections::HashMap;

use ipnet::IpNet;

use super::{Host, HostPattern, Name, Pattern, Target};

/// Patterns by their host part; those of one host part stand together.
type ByHost<K, T> = HashMap<K, Vec<(Pattern, T)>>;

/// Patterns with a value each.
#[derive(Debug, Clone)]
pub struct PatternMap<T> {
    names: ByHost<Name, T>,
    suffixes: ByHost<Name, T>,
    /// By prefix length, the longest first; IPv4 and IPv6 do not meet, since the nets differ.
    nets: Vec<(u8, ByHost<IpNet, T>)>,
}

impl<T> Default for PatternMap<T> {
    fn default() -> Self {
        PatternMap { names: HashMap::new(), suffixes: HashMap::new(), nets: Vec::new() }
    }
}

impl<T> PatternMap<T> {
    /// Adds a pattern.
    pub fn insert(&mut self, pattern: Pattern, value: T) {
        let bucket = match &pattern.host {
            HostPattern::Name(name) => self.names.entry(name.clone()).or_default(),
            HostPattern::Suffix(suffix) => self.suffixes.entry(suffix.clone()).or_default(),
            HostPattern::Net(net) => {
                let length = net.prefix_len();
                let at = match self.nets.binary_search_by(|(other, _)| length.cmp(other)) {
                    Ok(at) => at,
                    Err(at) => {
                        self.nets.insert(at, (length, HashMap::new()));
                        at
                    }
                };
                self.nets[at].1.entry(*net).or_default()
            }
        };
        // Listed ports before all ports.
        let at = match pattern.ports.is_empty() {
            true => bucket.len(),
            false => bucket.partition_point(|(other, _)| !other.ports.is_empty()),
        };
        bucket.insert(at, (pattern, value));
    }

    /// True where some pattern is an address or a network.
    pub fn has_networks(&self) -> bool {
        !self.nets.is_empty()
    }

    /// All entries whose host part covers `host`, the most specific first.
    pub fn covering<'m, 'h>(
        &'m self,
        host: &'h Host,
    ) -> impl Iterator<Item = &'m (Pattern, T)> + use<'m, 'h, T> {
        let (name, addr) = match host {
            Host::Name(name) => (Some(name), None),
            Host::Addr(addr) => (None, Some(*addr)),
        };
        let exact = name.and_then(|name| self.names.get(name));
        let below = name.into_iter().flat_map(|name| {
            let parents = name.as_str().match_indices('.').map(|(at, _)| &name.as_str()[at + 1..]);
            parents.filter_map(|suffix| self.suffixes.get(suffix))
        });
        let nets = addr.into_iter().flat_map(|addr| {
            self.nets
                .iter()
                .filter_map(move |(length, nets)| nets.get(&IpNet::new(addr, *length).ok()?.trunc()))
        });
        exact.into_iter().chain(below).chain(nets).flatten()
    }

    /// The most specific entry that matches `target`.
    pub fn find(&self, target: &Target) -> Option<&(Pattern, T)> {
        self.covering(&target.host).find(|(pattern, _)| pattern.covers_port(target.port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn host() -> impl Strategy<Value = Host> {
        prop_oneof![
            "([ab]\\.){0,3}[ab]".prop_map(|name| Host::Name(name.parse().unwrap())),
            (0u8..4, 0u8..4).prop_map(|(a, b)| Host::Addr(IpAddr::V4(Ipv4Addr::new(10, 0, a, b)))),
        ]
    }

    fn pattern() -> impl Strategy<Value = Pattern> {
        let host = prop_oneof![
            "([ab]\\.){0,3}[ab]".prop_map(|name| HostPattern::Name(name.parse().unwrap())),
            "([ab]\\.){0,2}[ab]".prop_map(|name| HostPattern::Suffix(name.parse().unwrap())),
            (0u8..4, 0u8..4, 8u8..=32).prop_map(|(a, b, length)| {
                HostPattern::Net(IpNet::new(Ipv4Addr::new(10, 0, a, b).into(), length).unwrap().trunc())
            }),
        ];
        let ports = prop_oneof![Just(vec![]), (1u16..4).prop_map(|p| vec![super::super::PortRange(p, p)])];
        (host, ports).prop_map(|(host, ports)| Pattern { host, ports })
    }

    proptest! {
        #[test]
        fn the_map_agrees_with_a_search(patterns in vec(pattern(), 0..40), host in host(), port in 1u16..4) {
            let target = Target { host, port };
            let mut map = PatternMap::default();
            for pattern in &patterns {
                map.insert(pattern.clone(), ());
            }
            let best = patterns.iter().filter(|p| p.matches(&target)).map(Pattern::specificity).max();
            prop_assert_eq!(map.find(&target).map(|(p, ())| p.specificity()), best);
        }
    }
}
