//! Whether the kernel's tables can hold what a roster says: judged before it is saved, where the appliance steers.
//!
//! Without it a save would succeed, and steering would go on with the rules from before.

use ipnet::{Ipv4Net, Ipv6Net};

use super::admin::Check;
use super::roster::Roster;
use crate::steer::rules;

/// Judges rosters for a host that steers.
#[derive(Debug, Clone, Copy)]
pub struct Steerable {
    synthetic: (Ipv4Net, Ipv6Net),
}

impl Steerable {
    /// For a host with these synthetic prefixes.
    pub fn new(synthetic4: Ipv4Net, synthetic6: Ipv6Net) -> Steerable {
        Steerable { synthetic: (synthetic4, synthetic6) }
    }
}

impl Check for Steerable {
    fn check(&self, roster: &Roster) -> Result<(), Vec<String>> {
        let groups = roster.groups.iter().map(|group| group.proxy_hosts.as_slice());
        rules::check(groups, self.synthetic)
            .map_err(|faults| faults.iter().map(ToString::to_string).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appliance::roster::Group;

    #[test]
    fn what_can_not_be_steered_is_not_saved() {
        let judge = |hosts: &[&str]| {
            let group = Group {
                id: 1,
                name: "site".into(),
                keys: Vec::new(),
                proxy_hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
                may_open: false,
                nodes: Vec::new(),
            };
            let prefixes = ("240.64.0.0/16".parse().unwrap(), "2001:2::/48".parse().unwrap());
            Steerable::new(prefixes.0, prefixes.1).check(&Roster { groups: vec![group], ..Roster::default() })
        };
        assert_eq!(judge(&["vc.example", "10.0.0.0/8"]), Ok(()));
        let faults = judge(&["vc.example", "127.0.0.1", "2001:2::1"]).unwrap_err();
        assert!(
            faults.len() == 2 && faults[0].contains("127.0.0.1") && faults[1].contains("2001:2::/48"),
            "{faults:?}"
        );
    }
}
