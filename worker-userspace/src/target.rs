//! What a connection is for ([`Target`]), what an administrator writes to mean it ([`Pattern`]), and what is not for a
//! proxy ([`NoProxy`]).

mod claims;
mod map;
mod no_proxy;

pub use claims::Claims;
pub use map::PatternMap;
pub use no_proxy::{Exempt, NoProxy};

use std::borrow::Borrow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;

/// A DNS name: lower case, no trailing dot, letters, digits, `-`, `_` and dots, at most 253 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True where this name lies below `suffix` (`a.b.example` below `b.example`; not the suffix itself).
    pub fn is_below(&self, suffix: &Name) -> bool {
        let (name, suffix) = (self.as_str(), suffix.as_str());
        name.len() > suffix.len() + 1
            && name.ends_with(suffix)
            && name.as_bytes()[name.len() - suffix.len() - 1] == b'.'
    }
}

/// So that maps with names for keys can be asked with a part of another name.
impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Name, TargetError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let bad = |why| TargetError::Name { text: text.to_owned(), why };
        if !name.is_ascii() {
            return Err(bad("it is not ASCII: write an internationalised name in its xn-- form"));
        }
        if name.is_empty() || name.len() > 253 {
            return Err(bad("a name has 1 to 253 characters"));
        }
        for label in name.split('.') {
            if label.is_empty() || label.len() > 63 {
                return Err(bad("each part between dots has 1 to 63 characters"));
            }
            if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
                return Err(bad("a name has letters, digits, '-', '_' and dots only"));
            }
            if label.starts_with('-') || label.ends_with('-') {
                return Err(bad("a part of a name does not begin or end with '-'"));
            }
        }
        // A resolver takes `1.2.3` and `10.1` for addresses; so a name ends in a part with a letter.
        if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
            return Err(bad("it ends in a number, so it is neither a name nor a whole IPv4 address"));
        }
        Ok(Name(name.to_ascii_lowercase().into()))
    }
}

/// A host as an application asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// By name; it is resolved at the worker.
    Name(Name),
    /// By address; v4-mapped IPv6 is normalised to IPv4.
    Addr(IpAddr),
}

impl Host {
    /// A host by address, with v4-mapped IPv6 normalised.
    pub fn addr(addr: IpAddr) -> Host {
        Host::Addr(addr.to_canonical())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => name.fmt(f),
            Host::Addr(addr) => addr.fmt(f),
        }
    }
}

impl FromStr for Host {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Host, TargetError> {
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        match bare.parse::<IpAddr>() {
            Ok(addr) => Ok(Host::addr(addr)),
            Err(_) => text.parse().map(Host::Name),
        }
    }
}

/// Where one connection goes: a host and a TCP port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Name or address.
    pub host: Host,
    /// TCP port, never 0.
    pub port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Addr(addr) => SocketAddr::new(*addr, self.port).fmt(f),
        }
    }
}

/// The host part of a [`Pattern`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// Exactly this name.
    Name(Name),
    /// `*.suffix`: every name below the suffix, not the suffix itself.
    Suffix(Name),
    /// An address (full prefix length) or a network.
    Net(IpNet),
}

/// The pattern that means exactly this host.
impl From<&Host> for HostPattern {
    fn from(host: &Host) -> HostPattern {
        match host {
            Host::Name(name) => HostPattern::Name(name.clone()),
            Host::Addr(addr) => HostPattern::Net((*addr).into()),
        }
    }
}

/// A proxy host: a target pattern as an administrator writes it.
///
/// `vcenter.corp.example`, `*.corp.example:443`, `10.20.0.0/16:443,902,8000-8010`, `[2001:db8::/32]:443`.
/// No ports means all ports.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    /// Which hosts.
    pub host: HostPattern,
    /// Which ports; empty means all. Sorted and without overlap.
    pub ports: Vec<PortRange>,
}

/// Ports from `.0` to `.1`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange(pub u16, pub u16);

impl PortRange {
    /// The range as the standard library writes it.
    pub fn range(self) -> RangeInclusive<u16> {
        self.0..=self.1
    }
}

impl Pattern {
    /// True where a connection to `target` is meant by this pattern.
    pub fn matches(&self, target: &Target) -> bool {
        self.covers_host(&target.host) && self.covers_port(target.port)
    }

    /// True where some port of `host` is meant by this pattern.
    pub fn covers_host(&self, host: &Host) -> bool {
        match (&self.host, host) {
            (HostPattern::Name(pattern), Host::Name(name)) => pattern == name,
            (HostPattern::Suffix(suffix), Host::Name(name)) => name.is_below(suffix),
            (HostPattern::Net(net), Host::Addr(addr)) => net.contains(addr),
            _ => false,
        }
    }

    /// True where `port` is among the pattern's ports.
    pub fn covers_port(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|r| r.range().contains(&port))
    }

    /// True where the two mean some target with equal right, so that only one owner may have both: the same hosts,
    /// and either all ports in both, or one that both list.
    pub fn rivals(&self, other: &Pattern) -> bool {
        let meets = |a: &PortRange| other.ports.iter().any(|b| a.0 <= b.1 && b.0 <= a.1);
        self.host == other.host
            && match (self.ports.is_empty(), other.ports.is_empty()) {
                (true, true) => true,
                (false, false) => self.ports.iter().any(meets),
                // Listed ports come before all ports.
                _ => false,
            }
    }

    /// Orders patterns that match one target: the greatest is the most specific. Exact names before
    /// suffixes, longer before shorter, listed ports before all ports.
    pub fn specificity(&self) -> (u16, bool) {
        let host = match &self.host {
            HostPattern::Name(_) => u16::MAX,
            HostPattern::Suffix(suffix) => suffix.as_str().len() as u16,
            HostPattern::Net(net) => u16::from(net.prefix_len()),
        };
        (host, !self.ports.is_empty())
    }
}

impl From<&Target> for Pattern {
    /// What means this target alone.
    fn from(target: &Target) -> Pattern {
        Pattern { host: (&target.host).into(), ports: vec![PortRange(target.port, target.port)] }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracket = !self.ports.is_empty();
        match &self.host {
            HostPattern::Name(name) => write!(f, "{name}")?,
            HostPattern::Suffix(suffix) => write!(f, "*.{suffix}")?,
            HostPattern::Net(net) => {
                let full = net.prefix_len() == net.max_prefix_len();
                let text = if full { net.addr().to_string() } else { net.to_string() };
                match net {
                    IpNet::V6(_) if bracket => write!(f, "[{text}]")?,
                    _ => f.write_str(&text)?,
                }
            }
        }
        for (i, PortRange(low, high)) in self.ports.iter().enumerate() {
            f.write_str(if i == 0 { ":" } else { "," })?;
            if low == high { write!(f, "{low}")? } else { write!(f, "{low}-{high}")? }
        }
        Ok(())
    }
}

/// Why a text is no name, host or pattern. The message names the text and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not a name.
    #[error("{text:?} is not a host name: {why}")]
    Name {
        /// What was written.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Not a pattern.
    #[error("{text:?} is not a proxy host: {why}")]
    Pattern {
        /// What was written.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// Not an entry of `no_proxy`.
    #[error("{text:?} is nothing that `no_proxy` can have: {why}")]
    Exempt {
        /// What was written.
        text: String,
        /// What is wrong with it.
        why: String,
    },
}

impl FromStr for Pattern {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Pattern, TargetError> {
        let bad = |why: String| TargetError::Pattern { text: text.to_owned(), why };
        if text.contains("://") {
            return Err(bad(
                "it is a URL; write only its host and port, as in `vcenter.corp.example:443`".into()
            ));
        }
        let (host, ports) = split_ports(text).map_err(&bad)?;
        let host = if let Some(suffix) = host.strip_prefix("*.") {
            HostPattern::Suffix(suffix.parse()?)
        } else if host == "*" {
            return Err(bad("all is written as the two networks `0.0.0.0/0` and `::/0`".into()));
        } else if host.contains('*') {
            return Err(bad(
                "a wildcard stands only at the front and before a dot, as in `*.corp.example`".into()
            ));
        } else if let Some((addr, length)) = host.split_once('/') {
            let net: IpNet = format!("{addr}/{length}")
                .parse()
                .map_err(|_| bad("a network is written `10.20.0.0/16` or `2001:db8::/32`".into()))?;
            if net.trunc() != net {
                return Err(bad(format!("bits are set behind the prefix; the network is `{}`", net.trunc())));
            }
            HostPattern::Net(canonical(net))
        } else {
            match host.parse::<IpAddr>() {
                Ok(addr) => HostPattern::Net(addr.to_canonical().into()),
                Err(_) => HostPattern::Name(host.parse()?),
            }
        };
        Ok(Pattern { host, ports: parse_ports(ports).map_err(bad)? })
    }
}

/// The IPv4 network that a v4-mapped one stands for: hosts are normalised, so the mapped one would match nothing.
fn canonical(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    v4.and_then(|(addr, length)| IpNet::new(addr.into(), length).ok()).unwrap_or(net)
}

/// Splits `host[:ports]`, where an IPv6 host stands bare without ports or in brackets.
fn split_ports(text: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("the bracket `[` is not closed")?;
        return match after.strip_prefix(':') {
            Some(ports) => Ok((host, Some(ports))),
            None if after.is_empty() => Ok((host, None)),
            None => Err(format!("{after:?} stands behind `]`; only `:port` may")),
        };
    }
    match text.split_once(':') {
        Some((_, rest)) if rest.contains(':') => Ok((text, None)),
        Some((host, ports)) => Ok((host, Some(ports))),
        None => Ok((text, None)),
    }
}

fn parse_ports(text: Option<&str>) -> Result<Vec<PortRange>, String> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let port = |p: &str| match p.trim().parse::<u16>() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(format!("{p:?} is not a port; ports are 1 to 65535, as in `:443,8000-8010`")),
    };
    let mut ranges = Vec::new();
    for part in text.split(',') {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high) = (port(low)?, port(high)?);
        if low > high {
            return Err(format!("the port range {part:?} runs backwards; write `{high}-{low}`"));
        }
        ranges.push(PortRange(low, high));
    }
    ranges.sort();
    let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if u32::from(range.0) <= u32::from(last.1) + 1 => last.1 = last.1.max(range.1),
            _ => merged.push(range),
        }
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    fn target(host: &str, port: u16) -> Target {
        Target { host: host.parse().unwrap(), port }
    }

    #[test]
    fn patterns_mean_what_they_say() {
        for (text, host, port, expected) in [
            ("vcenter.corp.example", "VCenter.corp.example.", 443, true),
            ("vcenter.corp.example", "x.vcenter.corp.example", 443, false),
            ("*.corp.example", "a.b.corp.example", 1, true),
            ("*.corp.example", "corp.example", 1, false),
            ("*.corp.example", "xcorp.example", 1, false),
            ("*.corp.example:443", "a.corp.example", 80, false),
            ("10.20.0.0/16", "10.20.255.1", 9, true),
            ("::ffff:10.20.0.0/112", "10.20.255.1", 9, true),
            ("::/80", "10.20.255.1", 9, false),
            ("10.20.0.0/16", "10.21.0.1", 9, false),
            ("10.20.0.1:443,8000-8010", "10.20.0.1", 8005, true),
            ("10.20.0.1:443,8000-8010", "10.20.0.1", 8011, false),
            ("10.20.0.1", "::ffff:10.20.0.1", 1, true),
            ("2001:db8::/32", "2001:db8::1", 1, true),
            ("[2001:db8::1]:443", "2001:db8::1", 443, true),
            ("[2001:db8::1]:443", "[2001:db8::1]", 444, false),
            ("10.20.0.1", "vcenter.corp.example", 443, false),
        ] {
            assert_eq!(pattern(text).matches(&target(host, port)), expected, "{text} against {host}:{port}");
        }
    }

    #[test]
    fn wrong_patterns_name_themselves_and_the_remedy() {
        for (text, says) in [
            ("https://vcenter.corp.example/sdk", "URL"),
            ("vcenter.corp.example:70000", "1 to 65535"),
            ("vcenter.corp.example:0", "1 to 65535"),
            ("vcenter.corp.example:", "1 to 65535"),
            ("10.20.0.1/16", "10.20.0.0/16"),
            ("10.20.0.0/33", "network"),
            ("10.20.300.1", "ends in a number"),
            ("v*.corp.example", "wildcard"),
            ("*", "`0.0.0.0/0` and `::/0`"),
            ("*:443", "`0.0.0.0/0` and `::/0`"),
            ("zürich.example", "xn--"),
            ("a..b", "between dots"),
            ("-a.example", "begin or end"),
            ("host name", "letters, digits"),
            ("[2001:db8::1", "not closed"),
            ("x:20-10", "backwards"),
            ("", "1 to 253"),
        ] {
            let error = text.parse::<Pattern>().expect_err(text).to_string();
            assert!(error.contains(says), "{text:?} gave {error:?}, without {says:?}");
            assert!(
                error.contains(&format!("{text:?}")) || text.contains(':') || text.starts_with('*'),
                "{error}"
            );
        }
    }

    #[test]
    fn the_most_specific_pattern_is_the_greatest() {
        let ordered = ["*.example", "*.corp.example", "vc.corp.example", "vc.corp.example:443"];
        for pair in ordered.windows(2) {
            assert!(pattern(pair[0]).specificity() < pattern(pair[1]).specificity(), "{pair:?}");
        }
        assert!(pattern("10.0.0.0/8:443").specificity() < pattern("10.1.0.0/16").specificity());
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same(text in "(\\*\\.)?[a-z]{1,8}\\.[a-z]{2,5}(:[1-9][0-9]{0,3}(,[1-9][0-9]{0,3}){0,3})?") {
            let parsed = pattern(&text);
            prop_assert_eq!(pattern(&parsed.to_string()), parsed);
        }

        #[test]
        fn networks_print_and_parse(addr: std::net::Ipv6Addr, length in 0u8..=128, port in 1u16..) {
            let net = canonical(IpNet::new(addr.into(), length).unwrap().trunc());
            let parsed = Pattern { host: HostPattern::Net(net), ports: vec![PortRange(port, port)] };
            prop_assert_eq!(pattern(&parsed.to_string()), parsed);
        }

        #[test]
        fn nothing_that_is_typed_panics(text in ".{0,40}") {
            let _ = text.parse::<Pattern>();
        }
    }
}
