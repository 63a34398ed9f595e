//! A synthetic prefix must not be somebody's network: capturing it would cut the host off from there.
//!
//! Asked of the kernel by rtnetlink, not read from `/proc/net/route`, which shows the main table only: VPNs
//! keep theirs elsewhere. Addresses are asked for as well: the route of an IPv6 address comes into the table
//! `local` only when duplicate address detection has ended, a second or more after boot brings it up.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};

use super::prefixes::Prefixes;

/// Why a synthetic prefix is refused. The message names the config key, what it overlaps and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum OverlapError {
    /// It is in use on this host.
    #[error(
        "{key} = \"{prefix}\" overlaps {used}: set {key} to a range that neither this host nor the sites use"
    )]
    Overlap {
        /// The config key.
        key: &'static str,
        /// The synthetic prefix.
        prefix: IpNet,
        /// The address or route, with its interface.
        used: String,
    },
    /// The kernel did not say what is in use.
    #[error("the host's addresses and routes can't be read through netlink: {0}")]
    Routes(#[from] io::Error),
}

/// Checks that no interface's address and no route of this network namespace, of any table, lies in a
/// synthetic prefix or around it. Default routes (also in halves, as VPNs install them) and routes that
/// discard are no overlap.
///
/// # Errors
/// When one does, or when the kernel can't be asked.
pub fn check_overlap(prefixes: &Prefixes) -> Result<(), OverlapError> {
    let mut routes = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        routes.extend(dump(libc::RTM_GETADDR, family as u8)?);
        routes.extend(dump(libc::RTM_GETROUTE, family as u8)?);
    }
    let keyed = [("steer.synthetic4", prefixes.v4().into()), ("steer.synthetic6", prefixes.v6().into())];
    for (key, prefix) in keyed {
        if let Some(route) = first_overlap(&routes, prefix) {
            return Err(OverlapError::Overlap { key, prefix, used: route.describe() });
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Route {
    to: IpNet,
    kind: u8,
    /// The index of its interface; 0 for several.
    interface: u32,
}

impl Route {
    fn describe(&self) -> String {
        let interface = match interface_name(self.interface) {
            Some(name) => format!("interface {name}"),
            None => "several interfaces".to_owned(),
        };
        match self.kind {
            libc::RTN_LOCAL if self.to.prefix_len() == self.to.max_prefix_len() => {
                format!("the address {} of {interface}", self.to.addr())
            }
            _ => format!("the route to {} through {interface}", self.to),
        }
    }
}

/// The overlapping route that tells most: an address before a route, a narrow route before a wide one.
fn first_overlap(routes: &[Route], prefix: IpNet) -> Option<&Route> {
    let leads_somewhere = |route: &&Route| {
        let discards = [libc::RTN_BLACKHOLE, libc::RTN_UNREACHABLE, libc::RTN_PROHIBIT, libc::RTN_THROW]
            .contains(&route.kind);
        // `0.0.0.0/1` and `128.0.0.0/1`, or `2000::/3`, are how VPNs and tunnels write a default route.
        let default = match route.to {
            IpNet::V4(net) => net.prefix_len() <= 1,
            IpNet::V6(net) => net.prefix_len() <= 3,
        };
        !discards && !default
    };
    let overlaps = |route: &&Route| route.to.contains(&prefix) || prefix.contains(&route.to);
    routes
        .iter()
        .filter(leads_somewhere)
        .filter(overlaps)
        .min_by_key(|route| (route.kind != libc::RTN_LOCAL, std::cmp::Reverse(route.to.prefix_len())))
}

fn interface_name(index: u32) -> Option<String> {
    let mut buffer = [0u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the IF_NAMESIZE bytes that if_indextoname(3) may write, its end included.
    let found = unsafe { libc::if_indextoname(index, buffer.as_mut_ptr().cast()) };
    if index == 0 || found.is_null() {
        return None;
    }
    let end = buffer.iter().position(|b| *b == 0).unwrap_or(buffer.len());
    Some(String::from_utf8_lossy(&buffer[..end]).into_owned())
}

const HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;

/// All addresses (`RTM_GETADDR`), or all routes of all tables (`RTM_GETROUTE`), of a family.
fn dump(what: u16, family: u8) -> io::Result<Vec<Route>> {
    let mut socket =
        Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    let mut request = Vec::with_capacity(HEADER + ROUTE_HEADER);
    request.extend(((HEADER + ROUTE_HEADER) as u32).to_ne_bytes());
    request.extend(what.to_ne_bytes());
    request.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    request.extend([0; 8]); // sequence, port
    request.push(family);
    request.extend([0; ROUTE_HEADER - 1]);
    socket.write_all(&request)?;

    let mut routes = Vec::new();
    // The kernel puts at most 32 KiB of a dump into one message.
    let mut buffer = vec![0; 65536];
    loop {
        let length = socket.read(&mut buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if parse(&buffer[..length], &mut routes)? {
            return Ok(routes);
        }
    }
}

/// Adds the addresses and routes of one netlink datagram; true at the dump's end.
fn parse(mut datagram: &[u8], routes: &mut Vec<Route>) -> io::Result<bool> {
    while !datagram.is_empty() {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "a netlink message is malformed");
        let length = read_u32(datagram, 0).ok_or_else(bad)? as usize;
        let message = datagram.get(HEADER..length).ok_or_else(bad)?;
        let kind = read_u16(datagram, 4).ok_or_else(bad)?;
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let code = read_u32(message, 0).ok_or_else(bad)? as i32;
                return Err(io::Error::from_raw_os_error(-code));
            }
            _ if kind == libc::RTM_NEWADDR => routes.extend(parse_address(message)),
            _ if kind == libc::RTM_NEWROUTE => routes.extend(parse_route(message)),
            _ => {}
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// One `ifaddrmsg` with its attributes, as the route to that address alone; `None` for families that have no
/// IP addresses.
fn parse_address(message: &[u8]) -> Option<Route> {
    let (family, interface) = (*message.first()?, read_u32(message, 4)?);
    let (mut address, mut own) = (None, None);
    for (kind, value) in attributes(message.get(ADDRESS_HEADER..)?) {
        match kind {
            // The peer's on a point-to-point link, else the same as the other.
            libc::IFA_ADDRESS => address = ip(family, value),
            libc::IFA_LOCAL => own = ip(family, value),
            _ => {}
        }
    }
    Some(Route { to: own.or(address)?.into(), kind: libc::RTN_LOCAL, interface })
}

/// One `rtmsg` with its attributes; `None` for families that have no IP addresses.
fn parse_route(message: &[u8]) -> Option<Route> {
    let (family, length, kind) = (*message.first()?, *message.get(1)?, *message.get(7)?);
    let mut to = match i32::from(family) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut interface = 0;
    for (kind, value) in attributes(message.get(ROUTE_HEADER..)?) {
        match kind {
            libc::RTA_DST => to = ip(family, value)?,
            libc::RTA_OIF => interface = read_u32(value, 0)?,
            _ => {}
        }
    }
    Some(Route { to: IpNet::new(to, length).ok()?, kind, interface })
}

fn ip(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        libc::AF_INET6 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}

/// The attributes behind a message's own header: kind and value; ends at the first that is malformed.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (usize::from(read_u16(bytes, 0)?), read_u16(bytes, 2)?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route(to: &str, kind: u8) -> Route {
        Route { to: to.parse().unwrap(), kind, interface: 0 }
    }

    #[test]
    fn what_leads_into_the_prefix_or_around_it_is_an_overlap() {
        for (to, kind, prefix, expected) in [
            ("0.0.0.0/0", libc::RTN_UNICAST, "240.64.0.0/16", false),
            ("128.0.0.0/1", libc::RTN_UNICAST, "240.64.0.0/16", false),
            ("::/0", libc::RTN_UNICAST, "2001:2::/48", false),
            ("2000::/3", libc::RTN_UNICAST, "2001:2::/48", false),
            ("240.0.0.0/4", libc::RTN_UNICAST, "240.64.0.0/16", true),
            ("240.0.0.0/4", libc::RTN_BLACKHOLE, "240.64.0.0/16", false),
            ("2001::/16", libc::RTN_UNREACHABLE, "2001:2::/48", false),
            ("240.64.8.0/24", libc::RTN_UNICAST, "240.64.0.0/16", true),
            ("240.64.8.1/32", libc::RTN_LOCAL, "240.64.0.0/16", true),
            ("240.65.0.0/16", libc::RTN_UNICAST, "240.64.0.0/16", false),
            ("2001:2:0:9::/64", libc::RTN_UNICAST, "2001:2::/48", true),
            ("240.64.0.0/16", libc::RTN_UNICAST, "2001:2::/48", false),
        ] {
            let found = first_overlap(&[route(to, kind)], prefix.parse().unwrap()).is_some();
            assert_eq!(found, expected, "{to} kind {kind} against {prefix}");
        }
    }

    #[test]
    fn an_address_is_named_before_the_route_that_comes_with_it() {
        let routes = [route("240.0.0.0/4", libc::RTN_UNICAST), route("240.64.1.1/32", libc::RTN_LOCAL)];
        let found = first_overlap(&routes, "240.64.0.0/16".parse().unwrap()).unwrap();
        assert!(found.describe().starts_with("the address 240.64.1.1 of"), "{}", found.describe());
        assert!(routes[0].describe().starts_with("the route to 240.0.0.0/4 through"));
    }

    /// Every host that runs this has a loopback interface that is up.
    #[test]
    fn the_kernels_routes_have_the_loopback_address_in_them() {
        let routes = dump(libc::RTM_GETROUTE, libc::AF_INET as u8).unwrap();
        let found = first_overlap(&routes, "127.0.0.1/32".parse().unwrap()).unwrap();
        assert_eq!(found.describe(), "the address 127.0.0.1 of interface lo");
    }

    #[test]
    fn the_kernels_error_is_passed_on() {
        let mut message = Vec::new();
        message.extend(20u32.to_ne_bytes());
        message.extend((libc::NLMSG_ERROR as u16).to_ne_bytes());
        message.extend([0; 10]);
        message.extend((-libc::EPERM).to_ne_bytes());
        let error = parse(&message, &mut Vec::new()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }

    proptest! {
        #[test]
        fn no_datagram_panics_or_loops(bytes in prop::collection::vec(any::<u8>(), 0..200), length in 0u32..80) {
            let _ = parse(&bytes, &mut Vec::new());
            let mut framed = bytes;
            for kind in [libc::RTM_NEWADDR, libc::RTM_NEWROUTE] {
                if framed.len() >= 6 {
                    framed[..4].copy_from_slice(&length.to_ne_bytes());
                    framed[4..6].copy_from_slice(&kind.to_ne_bytes());
                }
                let _ = parse(&framed, &mut Vec::new());
            }
        }
    }
}
