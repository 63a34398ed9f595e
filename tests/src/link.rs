//! Cables between namespaces.

use std::net::IpAddr;

use anyhow::Result;

use crate::netns::Namespace;
use crate::require::tool;

/// One end of a cable: a namespace and the name of its interface there.
#[derive(Clone, Copy)]
pub(crate) struct End<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) interface: &'a str,
}

/// Joins two namespaces. The interfaces are made where they belong: none appears outside.
pub(crate) fn cable(a: End<'_>, b: End<'_>) -> Result<()> {
    let add = format!(
        "link add name {} netns {} type veth peer name {} netns {}",
        a.interface,
        a.namespace.name(),
        b.interface,
        b.namespace.name()
    );
    tool("ip", &["-batch", "-"], &add)?;
    for end in [a, b] {
        end.namespace.ip(&format!("link set {} up", end.interface))?;
    }
    Ok(())
}

/// Gives an interface addresses, IPv4 as /24 and IPv6 as /64, usable at once.
pub(crate) fn addresses(end: End<'_>, list: &[IpAddr]) -> Result<()> {
    let batch: String = list
        .iter()
        .map(|address| match address {
            IpAddr::V4(a) => format!("addr add {a}/24 dev {}\n", end.interface),
            IpAddr::V6(a) => format!("addr add {a}/64 dev {} nodad\n", end.interface),
        })
        .collect();
    end.namespace.ip(&batch)
}
