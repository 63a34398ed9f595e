//! Which targets are not for a proxy: `no_proxy`, as curl, Go and dworker read it.
//!
//! `docs/proxy.md` has the three side by side, and a test keeps that table true. Names are compared as they are
//! written, never resolved.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::{
    Host, HostPattern, Name, Pattern, PatternMap, Target, TargetError, canonical, parse_ports, split_ports,
};

/// How an entry is written.
const FORM: &str =
    "write a name, `.suffix`, an address, a network or `*`, as in `vcenter.corp.example`, `10.20.0.0/16`";

/// One entry of a `no_proxy` list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Exempt {
    /// `*`: all targets.
    All,
    /// A name, which has all names below it here; or, as ever, names below a suffix, an address or a network.
    Some(Pattern),
}

impl FromStr for Exempt {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Exempt, TargetError> {
        let bad = |why: &str| TargetError::Exempt { text: text.to_owned(), why: why.to_owned() };
        if text == "*" {
            return Ok(Exempt::All);
        }
        if text.contains("://") {
            return Err(bad("it is a URL; write only its host"));
        }
        let (host, ports) = split_ports(text).map_err(|why| bad(&why))?;
        let ports = parse_ports(ports).map_err(|why| bad(&why))?;
        let suffix = host.strip_prefix('*').unwrap_or(host).strip_prefix('.');
        let net = host.split_once('/').map(|_| host.parse::<IpNet>());
        let host = match (suffix, net) {
            (Some(suffix), _) => HostPattern::Suffix(suffix.parse()?),
            (None, Some(Ok(net))) => HostPattern::Net(canonical(net.trunc())),
            (None, Some(Err(_))) => {
                return Err(bad("a network is written `10.20.0.0/16` or `2001:db8::/32`"));
            }
            (None, None) if host.contains('*') => {
                return Err(bad(
                    "a `*` stands alone or in front of a dot; for addresses write `10.20.0.0/16`",
                ));
            }
            (None, None) => match host.parse::<IpAddr>() {
                Ok(addr) => HostPattern::Net(addr.to_canonical().into()),
                Err(_) if host.is_empty() => return Err(bad(FORM)),
                Err(_) => HostPattern::Name(host.parse()?),
            },
        };
        Ok(Exempt::Some(Pattern { host, ports }))
    }
}

impl fmt::Display for Exempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exempt::All => f.write_str("*"),
            Exempt::Some(pattern) => pattern.fmt(f),
        }
    }
}

/// The targets that are dialled without the proxy. An empty list still has this host itself: through a proxy its
/// own addresses would mean the proxy's host.
#[derive(Debug, Clone, Default)]
pub struct NoProxy {
    listed: Vec<Exempt>,
    /// The place of the entry that exempts all.
    all: Option<usize>,
    /// With the places of their entries.
    patterns: PatternMap<usize>,
}

impl NoProxy {
    /// The entries of a text, parted by commas or white space.
    pub fn split(text: &str) -> impl Iterator<Item = &str> {
        text.split(|c: char| c == ',' || c.is_whitespace()).filter(|entry| !entry.is_empty())
    }

    /// The entries, as they were written.
    pub fn listed(&self) -> &[Exempt] {
        &self.listed
    }

    /// True where `target` is dialled without the proxy.
    pub fn exempts(&self, target: &Target) -> bool {
        is_own(&target.host) || self.entry_for(target).is_some()
    }

    /// The entry that means `target`, the most specific of several. This host itself needs none.
    pub fn entry_for(&self, target: &Target) -> Option<&Exempt> {
        let found = self.patterns.find(target).map(|(_, place)| *place).or(self.all)?;
        self.listed.get(found)
    }
}

impl FromIterator<Exempt> for NoProxy {
    fn from_iter<I: IntoIterator<Item = Exempt>>(entries: I) -> NoProxy {
        let mut list = NoProxy::default();
        for (place, entry) in entries.into_iter().enumerate() {
            match &entry {
                Exempt::All => list.all = Some(place),
                Exempt::Some(pattern) => {
                    if let HostPattern::Name(name) = &pattern.host {
                        let host = HostPattern::Suffix(name.clone());
                        list.patterns.insert(Pattern { host, ports: pattern.ports.clone() }, place);
                    }
                    list.patterns.insert(pattern.clone(), place);
                }
            }
            list.listed.push(entry);
        }
        list
    }
}

impl PartialEq for NoProxy {
    fn eq(&self, other: &NoProxy) -> bool {
        self.listed == other.listed
    }
}

impl Eq for NoProxy {}

/// What only this host itself can reach: its loopback and its links.
fn is_own(host: &Host) -> bool {
    match host {
        Host::Name(name) => is_localhost(name),
        Host::Addr(IpAddr::V4(addr)) => addr.is_loopback() || addr.is_link_local() || addr.is_unspecified(),
        Host::Addr(IpAddr::V6(addr)) => {
            addr.is_loopback() || addr.is_unicast_link_local() || addr.is_unspecified()
        }
    }
}

/// RFC 6761, 6.3.
fn is_localhost(name: &Name) -> bool {
    name.as_str() == "localhost" || name.as_str().ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(text: &str) -> NoProxy {
        NoProxy::split(text).map(|entry| entry.parse::<Exempt>().unwrap_or_else(|e| panic!("{e}"))).collect()
    }

    fn target(host: &str, port: u16) -> Target {
        Target { host: host.parse().unwrap(), port }
    }

    // What matches stands in `docs/proxy.md`, which `tests/tests/no_proxy.rs` reads.

    #[test]
    fn what_is_no_entry_says_why() {
        for (text, says) in [
            ("http://a.example", "URL"),
            ("10.20.*", "10.20.0.0/16"),
            ("v*.example", "`*` stands alone"),
            ("*:443", "`*` stands alone"),
            ("10.20.0.0/33", "a network is written"),
            ("a.example/24", "a network is written"),
            ("[::1", "not closed"),
            (":443", "write a name"),
            ("a.example:0", "1 to 65535"),
            ("a..b", "between dots"),
            (".", "1 to 253"),
            ("*.", "1 to 253"),
            ("10.0.0.300", "ends in a number"),
            ("z\u{fc}rich.example", "xn--"),
        ] {
            let error = text.parse::<Exempt>().expect_err(text).to_string();
            assert!(error.contains(says), "{text:?} gave {error:?}, without {says:?}");
        }
    }

    #[test]
    fn a_list_is_parted_by_commas_and_white_space() {
        let listed = list(" a.example,, b.example\t10.0.0.0/8,\n");
        assert_eq!(
            listed.listed().iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["a.example", "b.example", "10.0.0.0/8"]
        );
        assert!(listed.exempts(&target("x.b.example", 1)) && !listed.exempts(&target("c.example", 1)));
        assert!(!list("").exempts(&target("a.example", 1)));
        let entry = |list: &NoProxy, host| list.entry_for(&target(host, 1)).map(ToString::to_string);
        assert_eq!(entry(&listed, "x.b.example").as_deref(), Some("b.example"));
        assert_eq!(entry(&listed, "10.1.2.3").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(entry(&list("*, b.example"), "b.example").as_deref(), Some("b.example"));
        assert_eq!(entry(&list("b.example, *"), "c.example").as_deref(), Some("*"));
        let own = target("localhost", 1);
        assert!(list("").exempts(&own) && list("").entry_for(&own).is_none());
    }

    /// What an entry means, by text alone: the rules of `docs/proxy.md` once more, without maps and patterns.
    fn plainly(entry: &str, host: &str) -> bool {
        let host = format!(".{host}");
        match entry.strip_prefix('*').unwrap_or(entry) {
            "" => true,
            suffix if suffix.starts_with('.') => host != suffix && host.ends_with(suffix),
            name => host == format!(".{name}") || host.ends_with(&format!(".{name}")),
        }
    }

    proptest! {
        #[test]
        fn names_match_by_whole_parts(
            entries in proptest::collection::vec("(\\*|\\.|\\*\\.)?", 1..4)
                .prop_flat_map(|fronts| fronts.into_iter().map(|front| match front.as_str() {
                    "*" => Just("*".to_owned()).boxed(),
                    _ => "([ab]\\.){0,2}[ab]".prop_map(move |name| format!("{front}{name}")).boxed(),
                }).collect::<Vec<_>>()),
            host in "([ab]\\.){0,3}[ab]",
            shout: bool,
            port: u16,
        ) {
            let expected = entries.iter().any(|entry| plainly(entry, &host));
            let text = entries.join(",");
            let text = if shout { text.to_uppercase() } else { text };
            let asked = Target { host: format!("{host}.").parse().unwrap(), port };
            prop_assert_eq!(list(&text).exempts(&asked), expected, "{} against {}", text, host);
        }

        #[test]
        fn an_address_matches_its_networks_alone(a: [u8; 4], b: [u8; 4], length in 0u8..=32, mapped: bool) {
            let bits = |addr: [u8; 4]| u32::from_be_bytes(addr).checked_shr(32 - u32::from(length)).unwrap_or(0);
            let [a4, b4] = [IpAddr::from(a), IpAddr::from(b)];
            prop_assume!(!is_own(&Host::Addr(b4)));
            let entry = match mapped {
                true => format!("::ffff:{a4}/{}", length + 96),
                false => format!("{a4}/{length}"),
            };
            let asked = Target { host: Host::addr(b4), port: 443 };
            prop_assert_eq!(list(&entry).exempts(&asked), bits(a) == bits(b), "{} against {}", entry, b4);
        }

        #[test]
        fn what_is_printed_means_the_same(text in "(\\*?\\.)?[a-z]{1,4}(\\.[a-z]{1,4}){0,2}(:[1-9][0-9]{0,3})?") {
            let entry: Exempt = text.parse().unwrap();
            prop_assert_eq!(entry.to_string().parse::<Exempt>().unwrap(), entry);
        }

        #[test]
        fn nothing_that_is_typed_panics(text in ".{0,40}") {
            NoProxy::split(&text).for_each(|entry| drop(entry.parse::<Exempt>()));
        }
    }
}
