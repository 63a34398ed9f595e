//! Steering over time: cgroups that come and go, switching it off and on, and the process that follows.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{NAMES_LOCK, PINS_LOCK, SteerError, Steering, lock};
use crate::drain::Gate;
use crate::sockets::{Named, name};
use crate::steer::caller::{self, ScopeError, Who};
use crate::steer::kernel::Kernel;
use crate::steer::probe::Cgroup;
use crate::steer::programs::Programs;
use crate::steer::scope::{Found, Scope, Watch};

/// Where the programs are attached.
pub(super) struct Attaching {
    pub(super) programs: Arc<Programs>,
    pub(super) scope: Scope,
    pub(super) users: Vec<u32>,
    /// Also the lock that orders changes.
    pub(super) now: Mutex<Attached>,
}

#[derive(Default)]
pub(super) struct Attached {
    /// By hand.
    pub(super) off: bool,
    pub(super) found: Found,
}

impl Steering {
    /// Attaches to what is there of the captured cgroups now, and lets go of what is not. Blocks for a moment.
    fn follow_scope(&self, Attaching { programs, scope, users, now }: &Attaching) -> Result<(), SteerError> {
        let mut now = lock(now);
        let found = scope.find(false)?;
        let new: Vec<Cgroup> =
            found.captured.iter().filter(|cgroup| !now.found.captured.contains(cgroup)).cloned().collect();
        if found.excluded != now.found.excluded {
            programs.set_excluded(users, &found.excluded)?;
        }
        if !now.off {
            if !new.is_empty() {
                self.registered().extend(programs.attach(&new)?);
            }
            programs.detach_dead();
            for cgroup in &new {
                tracing::info!("captures in {}", cgroup.path.display());
            }
            let was_there = |path: &&PathBuf| !now.found.missing.contains(path);
            for path in found.missing.iter().filter(was_there) {
                tracing::info!("the cgroup {} is gone; captured as soon as it is made again", path.display());
            }
        }
        now.found = found;
        Ok(())
    }

    /// Follows the captured cgroups as they are removed and made again, for as long as it is polled.
    pub async fn keep_scope(self: Arc<Self>, mut gate: Gate) {
        let Some(attaching) = self.attaching.get() else { return };
        let watch = Watch::new(&attaching.scope);
        let mut said: Option<String> = None;
        loop {
            gate.opened().await;
            watch.arm();
            let steering = self.clone();
            let look = move || steering.attaching.get().map_or(Ok(()), |it| steering.follow_scope(it));
            let outcome = tokio::task::spawn_blocking(look).await;
            let why = match outcome {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(panicked) => Some(panicked.to_string()),
            };
            if let Some(why) = why.as_ref().filter(|why| said.as_ref() != Some(why)) {
                tracing::error!("what is captured does not follow its cgroups: {why}");
            }
            said = why;
            watch.changed().await;
        }
    }

    /// Captures nothing until it is switched on again, or captures again. False: it was so.
    ///
    /// # Errors
    /// The kernel.
    pub fn switch(&self, on: bool) -> Result<bool, SteerError> {
        let Some(Attaching { programs, now, .. }) = self.attaching.get() else { return Ok(false) };
        let mut now = lock(now);
        if now.off != on {
            return Ok(false);
        }
        match on {
            true => self.registered().extend(programs.attach(&now.found.captured)?),
            false => programs.detach_all()?,
        }
        now.off = !on;
        Ok(true)
    }

    /// Finds out about who would connect. Blocks for a moment.
    ///
    /// # Errors
    /// There is no such process or cgroup.
    pub fn scope(&self, who: &Who) -> Result<caller::Scope, ScopeError> {
        let (captured, off) = match self.attaching.get() {
            Some(attaching) => {
                let now = lock(&attaching.now);
                (now.found.captured.clone(), now.off)
            }
            None => (Vec::new(), false),
        };
        Ok(caller::Scope { off, ..caller::find(who, &captured, &*self.kernel)? })
    }

    /// True where it was switched off by hand.
    pub fn is_off(&self) -> bool {
        self.attaching.get().is_some_and(|attaching| lock(&attaching.now).off)
    }

    /// Stands still: from when this returns nothing here changes the kernel's tables of rules or the names, until
    /// [`resume`](Self::resume). The answer is what the process that follows needs to own them.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn pause(&self) -> io::Result<Vec<Named>> {
        // A change that is under way is waited for.
        let _planner = lock(&self.planner);
        let mut locks = vec![(NAMES_LOCK.to_owned(), self.names.freeze()?)];
        if let Some(pins) = self.attaching.get().and_then(|attaching| attaching.programs.pins()) {
            locks.push((PINS_LOCK.to_owned(), pins.lock()?));
        }
        Ok(locks)
    }

    /// Goes on after [`pause`](Self::pause): nobody has taken over, but whoever was to may have changed the kernel's
    /// tables.
    ///
    /// # Errors
    /// The kernel. It goes on all the same, and the next change puts right what it can.
    pub fn resume(&self) -> Result<(), SteerError> {
        self.names.thaw();
        let planner = lock(&self.planner);
        let change = self.names.change();
        let plan = self.rules.plan();
        if let Some(Attaching { programs, users, now, .. }) = self.attaching.get() {
            programs.set_excluded(users, &lock(now).found.excluded)?;
        }
        self.kernel.take_back()?;
        self.kernel.adopt_dns_ports(&self.dns_ports())?;
        let (v4, v6) = planner.synthetic;
        self.rules.table.look(&[v4.into(), v6.into()])?;
        for (id, (slot, _)) in &plan.carriers {
            let errno = lock(&self.down).contains(id).then_some(libc::EHOSTUNREACH);
            self.kernel.set_group_state(*slot, errno)?;
        }
        self.bring(&change, &plan)?;
        Ok(())
    }

    /// From now on this is the process that steers, and no other.
    ///
    /// # Errors
    /// What another process attached can't be detached.
    pub fn take_over(&self) -> Result<(), SteerError> {
        Ok(self.attaching.get().map_or(Ok(()), |attaching| attaching.programs.settle())?)
    }

    /// Leaves all that is captured to the process that follows, which steers with the same pins or not at all.
    pub fn leave(&self) {
        let followed = self.attaching.get().is_none_or(|attaching| attaching.programs.is_followed());
        match followed {
            true => self.kernel.leave(),
            false => self.kernel.detach(),
        }
    }

    fn dns_ports(&self) -> HashSet<u16> {
        let all = self.sockets.all().unwrap_or_default();
        let dns = all.iter().filter(|(found, _)| found == name::DNS);
        let bound =
            dns.filter_map(|(_, socket)| socket2::SockRef::from(socket).local_addr().ok()?.as_socket());
        bound.map(|address| address.port()).collect()
    }

    pub(super) fn registered(&self) -> MutexGuard<'_, HashSet<SocketAddr>> {
        lock(&self.registered)
    }

    /// The cgroups that are to be captured and are not there. Costs a system call for each cgroup.
    pub fn missing_cgroups(&self) -> Vec<PathBuf> {
        let Some(attaching) = self.attaching.get() else { return Vec::new() };
        let now = lock(&attaching.now);
        let dead = now.found.captured.iter().filter(|cgroup| !cgroup.is_alive()).map(|cgroup| &cgroup.path);
        dead.chain(&now.found.missing).cloned().collect()
    }
}
