//! What single values mean: log filters, addresses, proxy hosts, cgroups, synthetic networks.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tracing_subscriber::EnvFilter;

use super::fault::{SECRETS, Wrong, quote, wrong};
use super::meant::nearest;
use crate::target::Pattern;

/// How a list of proxy hosts is written.
pub(super) const LIST_HOSTS: &str =
    "list proxy hosts, as in [\"vcenter.corp.example:443\", \"10.20.0.0/16\"]";

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(first: u16, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), length))
}

/// Where no synthetic address can lie: the kernel treats these apart before it looks at a route.
const RESERVED: [(IpNet, &str); 8] = [
    (v4(0, 0, 0, 0, 8), "which means this host"),
    (v4(127, 0, 0, 0, 8), "which is loopback"),
    (v4(169, 254, 0, 0, 16), "which is link-local"),
    (v4(224, 0, 0, 0, 4), "which is multicast"),
    (v4(255, 255, 255, 255, 32), "which is broadcast"),
    (v6(0, 8), "which holds loopback and IPv4 written as IPv6"),
    (v6(0xfe80, 10), "which is link-local"),
    (v6(0xff00, 8), "which is multicast"),
];

/// True where two networks have an address in common.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// A network for synthetic addresses, of `example`'s family.
pub(super) fn synthetic<N>(text: &str, example: &str, lengths: RangeInclusive<u8>) -> Result<N, Wrong>
where
    N: FromStr + Copy + Into<IpNet>,
{
    let parsed: N = text.parse().map_err(|_| {
        let problem = match text.parse::<IpNet>() {
            Ok(_) => "a network of the other address family",
            Err(_) => "not a network",
        };
        wrong(problem, format!("write it as in \"{example}\""))
    })?;
    let net: IpNet = parsed.into();
    if net.trunc() != net {
        return Err(wrong("bits are set behind the prefix", format!("write \"{}\"", net.trunc())));
    }
    if !lengths.contains(&net.prefix_len()) {
        let (low, high) = (lengths.start(), lengths.end());
        let problem = format!("the prefix length is not between {low} and {high}");
        return Err(wrong(problem, format!("write it as in \"{example}\"")));
    }
    match RESERVED.iter().find(|(reserved, _)| overlap(reserved, &net)) {
        Some((reserved, what)) => {
            let remedy = format!("choose a network that nobody uses, as \"{example}\"");
            Err(wrong(format!("it overlaps {reserved}, {what}"), remedy))
        }
        None => Ok(parsed),
    }
}

/// A proxy host, or what egress may dial.
pub(crate) fn pattern(text: &str) -> Result<Pattern, Wrong> {
    // The parser's message would repeat a part of a password, and a key or a token has the form of a name.
    if SECRETS.iter().any(|begin| text.contains(begin)) {
        return Err(wrong("a key or token where a host belongs", "remove it here"));
    }
    if text.contains('@') {
        return Err(wrong(
            "not a proxy host",
            "a user stands in front of it; write only the host and its ports",
        ));
    }
    if text.contains(char::is_control) {
        return Err(wrong(
            "not a proxy host",
            "it has more than one line; write each host as a text of its own",
        ));
    }
    Ok(text.parse()?)
}

/// An address and a port to listen on. `examples` are two, as they would be written.
pub(super) fn listener(text: &str, examples: [&str; 2]) -> Result<SocketAddr, Wrong> {
    let [first, second] = examples;
    let form = format!("write \"ADDRESS:PORT\", as in \"{first}\" or \"{second}\"");
    match text.parse::<SocketAddr>() {
        Ok(addr) if addr.port() == 0 => Err(wrong("port 0 would be another one at each start", form)),
        Ok(addr) => Ok(addr),
        Err(_) => Err(wrong("not an address and a port", form)),
    }
}

/// A cgroup: an absolute directory, or one below the cgroup v2 root.
pub(super) fn cgroup(text: &str) -> Result<PathBuf, Wrong> {
    let plain = |c| matches!(c, Component::RootDir | Component::Normal(_));
    match !text.is_empty() && !text.contains('\0') && Path::new(text).components().all(plain) {
        true => Ok(PathBuf::from(text)),
        false => Err(wrong(
            "not a cgroup",
            "write its directory, as in \"/sys/fs/cgroup/system.slice/app.service\" or \"system.slice/app.service\"",
        )),
    }
}

/// A group's name: short enough and plain enough for paths, URLs and metrics.
pub(crate) fn group_name(text: &str) -> Result<String, Wrong> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    match (1..=63).contains(&text.len()) && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => Err(wrong("not a group name", "write 1 to 63 of a-z, 0-9 and `-`")),
    }
}

/// True for what is taken for the number of a worker or a cloud, wherever a number or a name may stand.
pub(crate) fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// A log filter. `tracing` takes a word that is no level for a target and logs all of it, so that `inof` would
/// silence everything else without a word; such a word is refused.
pub(super) fn log_filter(text: &str) -> Result<String, Wrong> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for part in text.split(',') {
        let whole = part.contains(['=', '[']) || LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part));
        if !whole {
            let remedy = match nearest(&LEVELS, part) {
                Some(level) => format!("did you mean `{level}`?"),
                None => format!("write one of {}; with a target, `dworker=debug`", LEVELS.join(", ")),
            };
            return Err(wrong(format!("{} is no level", quote(part)), remedy));
        }
    }
    let no_filter = || wrong("not a log filter", "write \"info\", or as in \"warn,dworker=debug\"");
    // tracing-subscriber 0.3.23 panics on some texts that are not ASCII (` A\u{1f300}=`); no target is such.
    if !text.is_ascii() {
        return Err(no_filter());
    }
    EnvFilter::builder().parse(text).map(|_| text.to_owned()).map_err(|_| no_filter())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}", filter in "[a-z=,\\[\\]{}\" /*+(]{0,24}") {
            let _ = (synthetic::<Ipv4Net>(&text, "", 8..=28), pattern(&text), listener(&text, [""; 2]), cgroup(&text));
            let _ = (group_name(&text), log_filter(&text), log_filter(&filter));
        }
    }

    #[test]
    fn a_filter_that_tracing_panics_on_is_refused() {
        assert_eq!(log_filter(" A\u{1f300}=").map_err(|w| w.problem), Err("not a log filter".into()));
    }

    #[test]
    fn filters_that_tracing_takes_are_taken() {
        for filter in ["info", "WARN", "warn,dworker=debug", "dworker[stream{id=7}]=trace", "off"] {
            assert_eq!(log_filter(filter), Ok(filter.to_owned()));
        }
    }
}
