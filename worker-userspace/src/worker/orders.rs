//! What the appliance tells this worker, on whichever lane: its role, and what it may dial.
//!
//! What must hold: the newest counts, whichever lane brings it first, and what an outdated lane still says
//! changes nothing. Epochs are an appliance's own: of one run of it they only rise, and another run, which may
//! count from anywhere, is known by its session and taken over from as soon as it has a lane.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::egress::dial::Dialler;
use crate::tunnel::lane::Told;
use crate::tunnel::message::{Capabilities, Hello, Id};

/// The state of one worker.
#[derive(Debug)]
pub(super) struct Orders {
    dialler: Arc<Dialler>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The run of the appliance that is obeyed.
    session: Option<Id>,
    /// What it has told.
    heard: Told,
    /// What holds: of what it has not told yet, what the run before it told.
    holds: Told,
}

impl Orders {
    pub(super) fn new(dialler: Arc<Dialler>) -> Orders {
        Orders { dialler, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lane to the appliance is up.
    pub(super) fn greeted(&self, welcome: &Hello) {
        let mut state = self.lock();
        if state.session.replace(welcome.session) == Some(welcome.session) {
            return;
        }
        state.heard = Told::default();
        // Who does not know of it will never tell.
        if !welcome.capabilities.has(Capabilities::ROLE) {
            state.holds.role = None;
        }
        if !welcome.capabilities.has(Capabilities::POLICY) && state.holds.policy.take().is_some() {
            tracing::warn!(peer = %welcome.name, "this appliance sends no proxy hosts: `egress.allow` alone decides");
            self.dialler.push(None);
        }
    }

    /// A lane has brought news. When this returns, what is dialled is judged by it.
    pub(super) fn told(&self, welcome: &Hello, told: &Told) {
        let mut state = self.lock();
        if state.session != Some(welcome.session) {
            return;
        }
        if let Some(role) = told.role
            && state.heard.role.is_none_or(|known| known.epoch < role.epoch)
        {
            if state.holds.role.is_none_or(|known| known.role != role.role) {
                tracing::info!(epoch = role.epoch, "this worker is {} now", role.role.word());
            }
            (state.heard.role, state.holds.role) = (Some(role), Some(role));
        }
        if let Some(policy) = &told.policy
            && state.heard.policy.as_ref().is_none_or(|known| known.epoch < policy.epoch)
        {
            if state.holds.policy.as_ref().is_none_or(|known| known.patterns != policy.patterns) {
                let count = policy.patterns.len();
                tracing::info!(
                    epoch = policy.epoch,
                    count,
                    "the appliance says which proxy hosts this worker has"
                );
            }
            if let Some(first) = policy.unknown.first() {
                let count = policy.unknown.len();
                tracing::warn!(count, %first, "proxy hosts of a form that this version does not know are left out: update this worker");
            }
            self.dialler.push(Some(&policy.patterns));
            (state.heard.policy, state.holds.policy) = (Some(policy.clone()), Some(policy.clone()));
        }
    }

    /// What holds now.
    pub(super) fn hold(&self) -> Told {
        self.lock().holds.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::egress::policy::Policy;
    use crate::target::Target;
    use crate::tunnel::message::{Role, RoleIs};
    use crate::tunnel::policy::Pushed;

    fn orders() -> Orders {
        Orders::new(Arc::new(Dialler::new(Policy::new(None, &[]), Duration::from_secs(1))))
    }

    /// An appliance's run that knows this much.
    fn run(session: u8, capabilities: Capabilities) -> Hello {
        Hello { session: [session; 16], capabilities, ..Hello::sample() }
    }

    fn policy(epoch: u64, host: &str) -> Told {
        let pushed = Pushed { epoch, patterns: vec![host.parse().unwrap()], unknown: vec![] };
        Told { role: None, policy: Some(Arc::new(pushed)) }
    }

    fn role(epoch: u64, role: Role) -> Told {
        Told { role: Some(RoleIs { epoch, role }), policy: None }
    }

    /// The host that may be dialled, of those that the tests push.
    fn allowed(orders: &Orders) -> Vec<&'static str> {
        let judge = |host: &&str| {
            let target = Target { host: host.parse().unwrap(), port: 443 };
            orders.dialler.policy().check_target(&target).is_ok()
        };
        ["a.example", "b.example", "c.example"].into_iter().filter(judge).collect()
    }

    #[test]
    fn the_newest_counts_whichever_lane_brings_it() {
        let (orders, peer) = (orders(), run(1, Capabilities::OURS));
        orders.greeted(&peer);
        assert!(allowed(&orders).is_empty());
        for (told, holds) in [
            (policy(5, "a.example"), "a.example"),
            (policy(7, "b.example"), "b.example"),
            (policy(6, "a.example"), "b.example"),
            (policy(7, "c.example"), "b.example"),
        ] {
            orders.told(&peer, &told);
            assert_eq!(allowed(&orders), [holds], "{told:?}");
        }
        for (told, holds) in [
            (role(2, Role::Primary), Role::Primary),
            (role(3, Role::Standby), Role::Standby),
            (role(2, Role::Primary), Role::Standby),
        ] {
            orders.told(&peer, &told);
            assert_eq!(orders.hold().role.unwrap().role, holds, "{told:?}");
        }
        // Another lane of the same run is no new start.
        orders.greeted(&peer);
        orders.told(&peer, &policy(6, "a.example"));
        assert_eq!(allowed(&orders), ["b.example"]);
    }

    #[test]
    fn an_appliance_that_was_restarted_counts_anew() {
        let orders = orders();
        let (old, new) = (run(1, Capabilities::OURS), run(2, Capabilities::OURS));
        orders.greeted(&old);
        orders.told(&old, &policy(100, "a.example"));
        orders.told(&old, &role(100, Role::Standby));
        orders.greeted(&new);
        // What is known holds until the new one has told.
        assert_eq!(allowed(&orders), ["a.example"]);
        assert_eq!(orders.hold().role.unwrap().role, Role::Standby);
        orders.told(&new, &policy(1, "b.example"));
        orders.told(&new, &role(1, Role::Primary));
        assert_eq!(allowed(&orders), ["b.example"]);
        assert_eq!(orders.hold().role.unwrap().role, Role::Primary);
        // A lane of the old run that is still up is not heard.
        orders.told(&old, &policy(101, "c.example"));
        orders.told(&old, &role(101, Role::Standby));
        assert_eq!(allowed(&orders), ["b.example"]);
        assert_eq!(orders.hold().role.unwrap().role, Role::Primary);
    }

    #[test]
    fn an_appliance_that_tells_nothing_leaves_it_to_the_workers_own_file() {
        let orders = orders();
        let new = run(1, Capabilities::OURS);
        orders.greeted(&new);
        orders.told(&new, &policy(1, "a.example"));
        orders.told(&new, &role(1, Role::Primary));
        orders.greeted(&run(2, Capabilities::default()));
        assert!(orders.hold().role.is_none() && orders.hold().policy.is_none());
        assert!(allowed(&orders).is_empty());
    }
}
