//! The addresses of the lab. [`Lab`](crate::Lab) says who reaches whom.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 address and its IPv6 twin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dual {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Dual {
    /// Host `host` of network `network`.
    pub(crate) const fn at(network: u8, host: u8) -> Dual {
        let low = ((host / 100) as u16 * 256) + (host / 10 % 10) as u16 * 16 + (host % 10) as u16;
        Dual {
            v4: Ipv4Addr::new(10, 77, network, host),
            // The same digits as in the IPv4 address: 10.77.3.66 and fd77:0:0:3::66.
            v6: Ipv6Addr::new(0xfd77, 0, 0, network as u16, 0, 0, 0, low),
        }
    }

    /// Both, IPv4 first.
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

impl fmt::Display for Dual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.v4, self.v6)
    }
}

/// The appliance host, `appliance.example`.
pub const APPLIANCE: Dual = Dual::at(1, 10);
/// The site host, where the worker runs, on the network to the router.
pub const SITE: Dual = Dual::at(2, 10);
/// The router on the site's network, `proxy.corp.example`: where the lab's proxies are.
pub const PROXY: Dual = Dual::at(2, 1);
/// The router on the network elsewhere: where its proxies connect from.
pub const ROUTER_ELSEWHERE: Dual = Dual::at(4, 1);
/// The site host on the vCenter's network, `site.corp.example`.
pub const SITE_INSIDE: Dual = Dual::at(3, 1);
/// `vcenter.corp.example`.
pub const VCENTER: Dual = Dual::at(3, 10);
/// `refused.corp.example`: nothing listens there.
pub const REFUSED: Dual = Dual::at(3, 20);
/// `echo.corp.example` and `*.wild.corp.example`: for servers of the tests' own.
pub const ECHO: Dual = Dual::at(3, 30);
/// The site's resolver, on the vCenter's network.
pub const SITE_RESOLVER: Dual = Dual::at(3, 53);
/// `silent.corp.example`: every packet to it is dropped, so that connects time out.
pub const SILENT: Dual = Dual::at(3, 66);
/// `unreachable.corp.example`: answered with ICMP host unreachable.
pub const UNREACHABLE: Dual = Dual::at(3, 67);
/// `direct.example`: reachable from the appliance without any worker.
pub const DIRECT: Dual = Dual::at(4, 10);
/// The appliance's resolver, on the network elsewhere.
pub const APPLIANCE_RESOLVER: Dual = Dual::at(4, 53);
/// `direct2.example`: a second direct destination, for rules on one of two.
pub const DIRECT2: Dual = Dual::at(4, 20);

/// The vCenter's IPv4 network.
pub const SITE_PREFIX4: &str = "10.77.3.0/24";
/// The vCenter's IPv6 network.
pub const SITE_PREFIX6: &str = "fd77:0:0:3::/64";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twins_show_the_same_digits() {
        assert_eq!(SILENT.to_string(), "10.77.3.66 fd77:0:0:3::66");
        assert_eq!(Dual::at(3, 253).to_string(), "10.77.3.253 fd77:0:0:3::253");
    }
}
