//! The world: who is where, and who reaches whom.
//!
//! ```text
//!   appliance ──10.77.1── router ──10.77.2── site ──10.77.3── vcenter
//!                            └─────10.77.4── elsewhere
//! ```
//!
//! All networks are IPv4 and IPv6 (`fd77:0:0:N::/64` beside `10.77.N.0/24`). What must hold, and is
//! tested in `tests/lab.rs`:
//!
//! - The router refuses every new connection towards the site; the site may only open TCP to port 443.
//! - The router knows no way to the vCenter's network: from the appliance it is unreachable.
//! - The appliance's resolver knows no name of the site; the site's resolver knows them all.

use std::net::IpAddr;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::bpf::{self, Pinned};
use crate::cgroup::Cgroup;
use crate::dnsmasq::Resolver;
use crate::host::Host;
use crate::label::Label;
use crate::link::{End, addresses, cable};
use crate::net::{self, Dual};
use crate::path::{Path, PathSettings};
use crate::pki::{Identity, Pki, Validity};
use crate::{require, sweep};

/// What the appliance's resolver knows.
const APPLIANCE_RECORDS: &[(&str, Dual)] = &[
    ("appliance.example", net::APPLIANCE),
    ("direct.example", net::DIRECT),
    ("direct2.example", net::DIRECT2),
];

/// What the site's resolver knows.
const SITE_RECORDS: &[(&str, Dual)] = &[
    ("appliance.example", net::APPLIANCE),
    ("site.corp.example", net::SITE_INSIDE),
    ("proxy.corp.example", net::PROXY),
    ("vcenter.corp.example", net::VCENTER),
    ("refused.corp.example", net::REFUSED),
    ("echo.corp.example", net::ECHO),
    ("a.wild.corp.example", net::ECHO),
    ("b.wild.corp.example", net::ECHO),
    ("silent.corp.example", net::SILENT),
    ("unreachable.corp.example", net::UNREACHABLE),
];

/// Names of the site with one address only, in dnsmasq's words.
const SITE_SINGLES: &str = "host-record=vc4only.corp.example,10.77.3.10\n\
                            host-record=vc6only.corp.example,fd77:0:0:3::10\n";

/// What the router lets through. Rejected with a reset, so that nobody has to wait for a timeout.
const ROUTER_RULES: &str = "
table inet dwlab {
  chain forward {
    type filter hook forward priority filter; policy accept;
    ct state established,related accept
    iifname to-site tcp dport 443 accept
    iifname to-site jump refuse
    oifname to-site jump refuse
  }
  chain refuse {
    counter
    meta l4proto tcp reject with tcp reset
    reject with icmpx admin-prohibited
  }
}";

/// One whole world. Dropping it ends every process in it and removes all of it.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: processes, the path, hosts, the cgroup above theirs, files.
    appliance_resolver: Resolver,
    site_resolver: Resolver,
    path: Option<Path>,
    appliance: Host,
    router: Host,
    elsewhere: Host,
    site: Host,
    vcenter: Host,
    pki: Pki,
    _cgroup: Cgroup,
    _pinned: Pinned,
    directory: TempDir,
}

impl Lab {
    /// Builds the world, after sweeping what dead programs left.
    ///
    /// # Errors
    ///
    /// When not root, when a tool is missing (the message names the package), or when the kernel
    /// lacks network namespaces, veth, nftables or cgroup v2.
    pub fn new() -> Result<Lab> {
        Lab::build(None)
    }

    /// As [`Lab::new`], with a delay, a rate and a loss between the router and the site: everything between the
    /// appliance and the site crosses it. [`Lab::path`] changes them later.
    ///
    /// # Errors
    ///
    /// As [`Lab::new`], and when the settings are wrong or the kernel lacks TUN devices.
    pub fn with_path(settings: PathSettings) -> Result<Lab> {
        Lab::build(Some(settings))
    }

    fn build(path: Option<PathSettings>) -> Result<Lab> {
        require::root()?;
        sweep::sweep_once().context("sweeping what an earlier run left")?;
        let label = Label::next().to_string();
        let directory = tempfile::Builder::new().prefix(&format!("{label}-")).tempdir()?;
        let pinned = Pinned::mount(directory.path().join(bpf::PINNED))?;
        let cgroup = Cgroup::create(&label)?;
        let host = |name| {
            Host::create(name, &label, &cgroup, directory.path())
                .with_context(|| format!("making the {name} host"))
        };
        let (appliance, router, elsewhere) = (host("appliance")?, host("router")?, host("elsewhere")?);
        let (site, vcenter) = (host("site")?, host("vcenter")?);

        join(&appliance, "eth0", &[net::APPLIANCE], &router, "to-appliance", &[Dual::at(1, 1)])?;
        let path = match path {
            None => join(&site, "eth0", &[net::SITE], &router, "to-site", &[Dual::at(2, 1)]).map(|()| None),
            Some(settings) => along(settings, &router, &site).map(Some),
        }?;
        join(
            &elsewhere,
            "eth0",
            &[net::DIRECT, net::DIRECT2, net::APPLIANCE_RESOLVER],
            &router,
            "to-elsewhere",
            &[Dual::at(4, 1)],
        )?;
        join(
            &vcenter,
            "eth0",
            &[net::VCENTER, net::REFUSED, net::ECHO, net::SITE_RESOLVER, net::SILENT, net::UNREACHABLE],
            &site,
            "inside",
            &[net::SITE_INSIDE],
        )?;
        for (host, gateway) in [
            (&appliance, Dual::at(1, 1)),
            (&site, Dual::at(2, 1)),
            (&elsewhere, Dual::at(4, 1)),
            (&vcenter, net::SITE_INSIDE),
        ] {
            let [v4, v6] = gateway.both();
            host.netns().ip(&format!("route add default via {v4}\nroute add default via {v6}"))?;
        }
        router.netns().sysctl("net/ipv4/ip_forward", "1")?;
        router.netns().sysctl("net/ipv6/conf/all/forwarding", "1")?;
        router.netns().nft(ROUTER_RULES)?;
        vcenter.netns().nft(&vcenter_rules())?;

        let appliance_resolver = Resolver::start(&elsewhere, net::APPLIANCE_RESOLVER, APPLIANCE_RECORDS, "")?;
        let site_resolver = Resolver::start(&vcenter, net::SITE_RESOLVER, SITE_RECORDS, SITE_SINGLES)?;
        for host in [&appliance, &router, &elsewhere] {
            host.set_resolv_conf(&resolv_conf(net::APPLIANCE_RESOLVER))?;
        }
        for host in [&site, &vcenter] {
            host.set_resolv_conf(&resolv_conf(net::SITE_RESOLVER))?;
        }
        Ok(Lab {
            appliance_resolver,
            site_resolver,
            path,
            appliance,
            router,
            elsewhere,
            site,
            vcenter,
            pki: Pki::create(&directory.path().join("pki"))?,
            _cgroup: cgroup,
            _pinned: pinned,
            directory,
        })
    }

    /// The management host: `[appliance]`, `[steer]` and the SDKs run here.
    pub fn appliance(&self) -> &Host {
        &self.appliance
    }

    /// The host at the remote site: the worker runs here. On both networks of the site.
    pub fn site(&self) -> &Host {
        &self.site
    }

    /// The host of the vCenter, which only the site host reaches.
    pub fn vcenter(&self) -> &Host {
        &self.vcenter
    }

    /// The router, with the interfaces `to-appliance`, `to-site` and `to-elsewhere`.
    pub fn router(&self) -> &Host {
        &self.router
    }

    /// A host that the appliance reaches directly.
    pub fn elsewhere(&self) -> &Host {
        &self.elsewhere
    }

    /// The resolver of the appliance, the router and elsewhere.
    pub fn appliance_resolver(&self) -> &Resolver {
        &self.appliance_resolver
    }

    /// The resolver of the site and the vCenter's host.
    pub fn site_resolver(&self) -> &Resolver {
        &self.site_resolver
    }

    /// The authority that issued the certificates of the appliance and the vCenter.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// A new certificate for `appliance.example`.
    pub fn appliance_identity(&self) -> Result<Identity> {
        self.pki.issue(&["appliance.example"], Validity::Current)
    }

    /// The path from the router (first) to the site (second), where the lab was made [with one](Lab::with_path).
    pub fn path(&self) -> Option<&Path> {
        self.path.as_ref()
    }

    /// A directory for the test's own files, gone with the lab.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// All hosts.
    pub fn hosts(&self) -> [&Host; 5] {
        [&self.appliance, &self.router, &self.elsewhere, &self.site, &self.vcenter]
    }

    /// Runs a part of a test and shows every log when it fails. After a panic they are shown anyway.
    pub fn explain<T>(&self, test: impl FnOnce() -> Result<T>) -> Result<T> {
        test().inspect_err(|_| eprintln!("{}", self.logs()))
    }

    /// The last lines of every log of every host.
    pub fn logs(&self) -> String {
        self.hosts().map(|host| format!("=== {}\n{}", host.name(), host.logs())).concat()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// Joins two hosts by a cable and gives both ends their addresses.
fn join(a: &Host, a_name: &str, a_list: &[Dual], b: &Host, b_name: &str, b_list: &[Dual]) -> Result<()> {
    let a = End { namespace: a.netns(), interface: a_name };
    let b = End { namespace: b.netns(), interface: b_name };
    cable(a, b)?;
    address([(a, a_list), (b, b_list)])
}

/// Joins the router and the site as [`join`] does, by a path.
fn along(settings: PathSettings, router: &Host, site: &Host) -> Result<Path> {
    let router = End { namespace: router.netns(), interface: "to-site" };
    let site = End { namespace: site.netns(), interface: "eth0" };
    let path = Path::join(router, site, settings)?;
    address([(router, &[Dual::at(2, 1)]), (site, &[net::SITE])])?;
    Ok(path)
}

fn address(ends: [(End<'_>, &[Dual]); 2]) -> Result<()> {
    for (end, list) in ends {
        let flat: Vec<IpAddr> = list.iter().flat_map(|dual| dual.both()).collect();
        addresses(end, &flat)?;
    }
    Ok(())
}

/// Makes two addresses misbehave, each in its way.
fn vcenter_rules() -> String {
    let Dual { v4: silent4, v6: silent6 } = net::SILENT;
    let Dual { v4: unreachable4, v6: unreachable6 } = net::UNREACHABLE;
    format!(
        "table inet dwlab {{
  chain input {{
    type filter hook input priority filter; policy accept;
    ip daddr {silent4} drop
    ip6 daddr {silent6} meta l4proto tcp drop
    ip daddr {unreachable4} reject with icmp host-unreachable
    ip6 daddr {unreachable6} meta l4proto tcp reject with icmpv6 addr-unreachable
  }}
}}"
    )
}

/// The timeout is short: a query that gets no answer here is a fault, not a slow network.
fn resolv_conf(resolver: Dual) -> String {
    format!("nameserver {}\noptions timeout:2 attempts:2\n", resolver.v4)
}
