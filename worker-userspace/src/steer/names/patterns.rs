//! Which names are proxy hosts, found by hash maps so that 10,000 patterns cost what ten do.
//!
//! What must hold: [`PatternIndex::standing`] never calls a name foreign that a pattern covers, however it
//! is spelt, because a foreign name is forwarded and a proxy host's name must not leave the host.

use std::collections::HashSet;

use crate::target::{HostPattern, Name, Pattern};

/// The names in patterns. Networks are left out: addresses need no DNS.
#[derive(Debug, Default)]
pub struct PatternIndex {
    exact: HashSet<Name>,
    suffix: HashSet<Name>,
}

/// What a name in a question is to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// No proxy host: the resolver that was asked answers.
    Foreign,
    /// A proxy host.
    ProxyHost(Name),
    /// It says something about proxy hosts and is none itself: a service label in front of one
    /// (`_443._tcp.vcenter.corp.example`), or a text below a wildcard that no host can be named. It has no
    /// records, and asking a resolver would tell it the name.
    About,
    /// A proxy host's whole name with a search domain behind it (`vc.corp.example.branch.example`). It does not
    /// exist: a resolver library then asks for the name itself, or has done so before. A resolver that was asked
    /// would learn the name.
    SearchExpansion,
}

impl PatternIndex {
    /// Indexes `patterns`.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a Pattern>) -> PatternIndex {
        let mut index = PatternIndex::default();
        for pattern in patterns {
            match &pattern.host {
                HostPattern::Name(name) => index.exact.insert(name.clone()),
                HostPattern::Suffix(name) => index.suffix.insert(name.clone()),
                HostPattern::Net(_) => false,
            };
        }
        index
    }

    /// True where a pattern covers `name` on some port. `name` is in lower case, without a trailing dot.
    pub fn covers(&self, name: &str) -> bool {
        self.exact.contains(name) || parents(name).any(|parent| self.suffix.contains(parent))
    }

    /// What `name` is to us. It is in lower case, without a trailing dot, and may have bytes that no host
    /// name has, escaped as `\DDD`.
    pub fn standing(&self, name: &str) -> Standing {
        if self.exact.contains(name) {
            // An exact pattern was made from a `Name`, so this parses.
            return name.parse().map_or(Standing::About, Standing::ProxyHost);
        }
        if !self.covers(name) {
            let host = after_service_labels(name);
            return match host != name && self.covers(host) {
                true => Standing::About,
                false if self.is_search_expansion(host, |_| true) => Standing::SearchExpansion,
                false => Standing::Foreign,
            };
        }
        if self.is_search_expansion(name, |domain| self.suffix.contains(domain)) {
            return Standing::SearchExpansion;
        }
        match name.parse() {
            Ok(host) if after_service_labels(name) == name => Standing::ProxyHost(host),
            _ => Standing::About,
        }
    }

    /// Resolver libraries append search domains: glibc where a name lacks the type that was asked for, musl and
    /// Kubernetes' `ndots:5` even before the name itself. What they ask is told by what is left without the domain
    /// (one that `may_be_domain` accepts): a name that is covered by itself, by a pattern with enough labels to be a
    /// whole name. Below `*.corp.example`, `vc.site1` may well be a host's, whoever else has a `*.site1`.
    fn is_search_expansion(&self, name: &str, may_be_domain: impl Fn(&str) -> bool) -> bool {
        parents(name).filter(|domain| may_be_domain(domain)).any(|domain| {
            let rest = &name[..name.len() - domain.len() - 1];
            let dots = |text: &str| text.bytes().filter(|b| *b == b'.').count();
            (self.exact.contains(rest) && dots(rest) >= 2)
                || parents(rest).any(|parent| self.suffix.contains(parent) && dots(parent) >= 1)
        })
    }
}

/// The names above `name`, nearest first: `b.c` and `c` for `a.b.c`.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').map(|(dot, _)| &name[dot + 1..])
}

/// `name` without the labels in front that begin with `_` (RFC 8552: they name a service, not a host).
fn after_service_labels(name: &str) -> &str {
    let mut rest = name;
    while rest.starts_with('_') {
        match rest.split_once('.') {
            Some((_, behind)) => rest = behind,
            None => break,
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{Host, Target};
    use proptest::prelude::*;

    fn index(patterns: &[&str]) -> PatternIndex {
        let patterns: Vec<Pattern> = patterns.iter().map(|p| p.parse().unwrap()).collect();
        PatternIndex::new(&patterns)
    }

    #[test]
    fn a_name_stands_as_the_patterns_say() {
        let index = index(&["vcenter.corp.example", "*.lab.example:443", "10.0.0.0/8", "_odd.one.example"]);
        let host = |text: &str| Standing::ProxyHost(text.parse().unwrap());
        for (name, expected) in [
            ("vcenter.corp.example", host("vcenter.corp.example")),
            ("a.b.lab.example", host("a.b.lab.example")),
            ("_odd.one.example", host("_odd.one.example")),
            ("lab.example", Standing::Foreign),
            ("xlab.example", Standing::Foreign),
            ("corp.example", Standing::Foreign),
            ("", Standing::Foreign),
            ("x.vcenter.corp.example", Standing::Foreign),
            ("_443._tcp.vcenter.corp.example", Standing::About),
            ("_8443._https.a.lab.example", Standing::About),
            ("_ldap._tcp.lab.example", Standing::About),
            ("_tcp.corp.example", Standing::Foreign),
            ("_tcp", Standing::Foreign),
            ("-x.lab.example", Standing::About),
            ("a\\032b.lab.example", Standing::About),
            // The escaped dot is part of a label: this name lies below `example` only.
            ("x\\046lab.example", Standing::Foreign),
            ("vc.lab.example.lab.example", Standing::SearchExpansion),
            ("vcenter.corp.example.lab.example", Standing::SearchExpansion),
            ("_443._tcp.vc.lab.example.lab.example", Standing::SearchExpansion),
            ("vcenter.corp.example.corp.example", Standing::SearchExpansion),
            ("vcenter.corp.example.svc.cluster.local", Standing::SearchExpansion),
            ("_443._tcp.vcenter.corp.example.branch", Standing::SearchExpansion),
            ("vc.lab.example.branch", Standing::SearchExpansion),
            ("lab.example.branch", Standing::Foreign),
            ("vcenter.corp.branch.example", Standing::Foreign),
        ] {
            assert_eq!(index.standing(name), expected, "{name}");
        }
    }

    #[test]
    fn a_short_pattern_makes_no_host_below_a_wildcard_a_search_expansion() {
        let index = index(&["vcenter", "vc.site1", "*.site2", "*.corp.example"]);
        for name in ["vcenter.corp.example", "vc.site1.corp.example", "vc.site2.corp.example"] {
            assert_eq!(index.standing(name), Standing::ProxyHost(name.parse().unwrap()));
        }
    }

    proptest! {
        /// The index agrees with `Pattern::matches`, on an alphabet so small that names meet often.
        #[test]
        fn the_index_agrees_with_the_patterns(
            patterns in prop::collection::vec("(\\*\\.)?[ab](\\.[ab]){0,3}", 0..6),
            name in "[ab](\\.[ab]){0,5}",
        ) {
            let patterns: Vec<Pattern> = patterns.iter().map(|p| p.parse().unwrap()).collect();
            let index = PatternIndex::new(&patterns);
            let target = Target { host: Host::Name(name.parse().unwrap()), port: 443 };
            let expected = patterns.iter().any(|p| p.matches(&target));
            prop_assert_eq!(index.covers(&name), expected);
            let matches = |name: &str| {
                let target = Target { host: Host::Name(name.parse().unwrap()), port: 443 };
                patterns.iter().any(|p| p.matches(&target))
            };
            match index.standing(&name) {
                Standing::ProxyHost(_) => prop_assert!(expected),
                // Then it begins with the name of a proxy host.
                Standing::SearchExpansion => {
                    prop_assert!(name.match_indices('.').any(|(dot, _)| matches(&name[..dot])));
                }
                Standing::Foreign => prop_assert!(!expected),
                Standing::About => prop_assert!(false, "no service labels here"),
            }
        }
    }
}
