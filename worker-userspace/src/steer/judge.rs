//! What the kernel would do with a connection: its own tables, judged by the very code that the programs run.

use std::net::SocketAddr;
use std::time::Duration;

use worker_common::decision::{Path, Transport, path};
use worker_common::{Addr, Config, Dest, Entry, Verdict, World, decide};

use super::kernel::{Kernel, KernelError};

/// What the programs ask of who connects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caller {
    /// It is the daemon itself.
    pub own: bool,
    /// Its user, or a cgroup around it, is excluded.
    pub excluded: bool,
    /// It lives in another network namespace than the listeners.
    pub foreign_netns: bool,
}

/// What would become of a connection.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// By which questions it is judged.
    pub path: Path,
    /// The answer, where the rules decide.
    pub verdict: Option<Verdict>,
    /// What the kernel has for its address.
    pub entry: Option<Entry>,
    /// The errno of its target that was down a moment ago, and how long that holds.
    pub down: Option<(i32, Duration)>,
}

/// Judges a TCP connection to `target`. `entry` stands in for what the kernel has for its address, where that comes with
/// a name's first question only.
///
/// # Errors
/// A map can't be read.
pub fn judge(
    kernel: &dyn Kernel,
    caller: Caller,
    target: SocketAddr,
    entry: Option<Entry>,
) -> Result<Judged, KernelError> {
    let dest = Dest::from(target);
    let config = kernel.config();
    let path = path(Transport::Stream, &dest, &config.synthetic);
    let entry = match entry {
        Some(entry) => Some(entry),
        None => kernel.entry(target.ip())?,
    };
    let rule = entry.as_ref().and_then(|entry| entry.rule(dest.port));
    let group_errno = rule.map_or(Ok(0), |rule| kernel.group_state(rule.group))?;
    let down = kernel.down(target)?;
    let tables = Tables { config, entry: entry.as_ref(), group_errno, down, caller };
    let verdict = (path == Path::Rules).then(|| decide(&tables, &dest));
    Ok(Judged { path, verdict, entry, down })
}

/// What the kernel has for one connection.
struct Tables<'a> {
    config: Config,
    entry: Option<&'a Entry>,
    group_errno: i32,
    down: Option<(i32, Duration)>,
    caller: Caller,
}

impl World for Tables<'_> {
    fn entry(&self, _: &Addr) -> Option<&Entry> {
        self.entry
    }

    fn own(&self) -> bool {
        self.caller.own
    }

    fn excluded(&self) -> bool {
        self.caller.excluded
    }

    fn foreign_netns(&self) -> bool {
        self.caller.foreign_netns
    }

    fn bound(&self) -> bool {
        // To what interface a socket will be bound nobody knows before.
        false
    }

    fn group_errno(&self, _: u16) -> u32 {
        self.group_errno.unsigned_abs()
    }

    fn down_errno(&self, _: &Dest) -> u32 {
        self.down.map_or(0, |(errno, _)| errno.unsigned_abs())
    }

    fn listening(&self, addr: &Addr) -> bool {
        // Who answers this has the listener.
        self.config.listener(addr) != 0
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::num::NonZeroU32;
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::*;
    use crate::steer::fake::FakeKernel;
    use crate::steer::rules::{Rule, Rules};

    proptest! {
        /// What is answered before is what happens then.
        #[test]
        fn what_is_foreseen_happens(
            host in prop::sample::select(vec![
                "198.51.100.7", "198.51.100.8", "203.0.113.1", "240.64.0.1", "240.64.0.2", "127.0.0.1", "::1", "2001:db8::7", "2001:2::1",
            ]),
            port in prop::sample::select(vec![443_u16, 80, 53]),
            listening in any::<bool>(),
            group in prop::sample::select(vec![None, Some(libc::ENETUNREACH)]),
            down in prop::sample::select(vec![None, Some(libc::ETIMEDOUT)]),
            own in any::<bool>(),
            excluded in any::<bool>(),
        ) {
            let kernel = FakeKernel::default();
            let synthetic = ("240.64.0.0/16".parse().unwrap(), "2001:2::/48".parse().unwrap());
            kernel.set_synthetic(synthetic.0, synthetic.1).unwrap();
            let rule = |number, pattern: &str| Rule {
                number: NonZeroU32::new(number).unwrap(),
                group: 5,
                pattern: pattern.parse().unwrap(),
            };
            let rules =
                Rules::new(&[rule(1, "198.51.100.0/29:443"), rule(2, "vc.example:443"), rule(3, "2001:db8::/64")], synthetic).unwrap();
            for (net, entry) in rules.prefixes() {
                kernel.put_rules(*net, entry).unwrap();
            }
            let named: SocketAddr = "240.64.0.1:443".parse().unwrap();
            kernel.put_rules(named.ip().into(), &rules.for_name(&"vc.example".parse().unwrap()).unwrap()).unwrap();
            let listeners = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("[::1]:0").unwrap()];
            if listening {
                let [v4, v6] = listeners.each_ref().map(|listener| listener.local_addr().unwrap().port());
                kernel.set_listeners(v4, v6).unwrap();
                listeners.iter().for_each(|listener| kernel.mark_listener(listener.as_fd()).unwrap());
            }
            let target = SocketAddr::new(host.parse().unwrap(), port);
            kernel.set_group_state(5, group).unwrap();
            if let Some(errno) = down {
                kernel.set_down(target, errno, Duration::from_secs(60)).unwrap();
            }
            kernel.set_own(own);
            // The fake kernel's caller is root.
            kernel.set_excluded(if excluded { &[0] } else { &[] }, &[]).unwrap();
            let caller = Caller { own, excluded, foreign_netns: false };
            let foreseen = judge(&kernel, caller, target, None).unwrap();
            if let Some(verdict) = foreseen.verdict {
                prop_assert_eq!(verdict, kernel.judge(target));
            }
            prop_assert_eq!(foreseen.verdict.is_some(), foreseen.path == Path::Rules);
        }
    }
}
