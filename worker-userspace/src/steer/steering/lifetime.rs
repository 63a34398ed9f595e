//! Steering over time: cgroups that come and go, switching it off and on, and the process that follows.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{SteerError, Steering, lock};
use crate::drain::Gate;
use crate::sockets::{Named, name};
use crate::steer::caller::{self, ScopeError, Who};
use crate::steer::kernel::{Kernel, KernelError};
use crate::steer::probe::Cgroup;
use crate::steer::programs::Programs;
use crate::steer::scope::{Found, Scope, Watch};

/// Where the programs are attached.
pub(super) struct Attaching {
    pub(super) programs: Arc<Programs>,
    pub(super) scope: Scope,
    pub(super) users: Vec<u32>,
    /// No other process serves until this one takes over.
    pub(super) alone: bool,
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
    /// Captures from now on, where it is not switched off. Call it last of all: now everything is there that a captured
    /// connection leads to.
    ///
    /// # Errors
    /// Nothing is captured then, but by the process before this one.
    pub fn capture(&self) -> Result<(), SteerError> {
        let Some(Attaching { programs, alone, now, .. }) = self.attaching.get() else { return Ok(()) };
        let now = lock(now);
        let cgroups = if now.off { &[][..] } else { &now.found.captured };
        let attached = programs.attach(cgroups).and_then(|source| {
            self.registered().extend(source);
            match (*alone, now.off) {
                (true, false) => programs.settle(),
                (true, true) => programs.settle().and_then(|()| programs.put_away()),
                (false, _) => Ok(()),
            }
        });
        // What it has attached would outlive this process.
        Ok(attached.inspect_err(|_| self.kernel.detach())?)
    }

    /// Attaches to what is there of the captured cgroups now, and lets go of what is not. Blocks for a moment.
    fn follow_scope(
        &self,
        Attaching { programs, scope, users, now, .. }: &Attaching,
    ) -> Result<(), SteerError> {
        let mut now = lock(now);
        if self.is_standing() {
            return Err(SteerError::Standing);
        }
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
                // What has changed is looked at when it goes on.
                Ok(Err(SteerError::Standing)) => continue,
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
    /// The kernel; or it [stands still](Self::pause).
    pub fn switch(&self, on: bool) -> Result<bool, SteerError> {
        let Some(Attaching { programs, now, .. }) = self.attaching.get() else { return Ok(false) };
        let mut now = lock(now);
        if self.is_standing() {
            return Err(SteerError::Standing);
        }
        if now.off != on {
            return Ok(false);
        }
        match on {
            true => match programs.attach(&now.found.captured) {
                Ok(source) => self.registered().extend(source),
                Err(error) => {
                    // It stays off, with all that this means.
                    let _ = programs.put_away();
                    return Err(error.into());
                }
            },
            false => programs.put_away()?,
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

    /// True while another process takes over, or has.
    pub(super) fn is_standing(&self) -> bool {
        self.standing.load(Ordering::Relaxed)
    }

    /// Stands still: from when this returns nothing here changes the kernel's tables, the names or what is attached, until
    /// [`resume`](Self::resume). The answer is what the process that follows needs to own them, and whether capturing is
    /// switched off by hand.
    ///
    /// # Errors
    /// No descriptor is left. It stands still all the same.
    pub fn pause(&self) -> io::Result<(Vec<Named>, bool)> {
        // A change that is under way is waited for.
        let _planner = lock(&self.planner);
        let now = self.attaching.get().map(|attaching| lock(&attaching.now));
        self.standing.store(true, Ordering::Relaxed);
        let mut locks = vec![(name::NAMES_LOCK.to_owned(), self.names.freeze()?)];
        if let Some(pins) = self.attaching.get().and_then(|attaching| attaching.programs.pins()) {
            locks.push((name::PINS_LOCK.to_owned(), pins.lock()?));
        }
        Ok((locks, now.is_some_and(|now| now.off)))
    }

    /// Goes on after [`pause`](Self::pause): nobody has taken over, but whoever was to may have changed the kernel's
    /// tables. The answer is what could not be taken back; it goes on all the same, and the next change puts right what it
    /// can.
    pub fn resume(&self) -> Vec<SteerError> {
        self.names.thaw();
        let planner = lock(&self.planner);
        let now = self.attaching.get().map(|attaching| lock(&attaching.now));
        self.standing.store(false, Ordering::Relaxed);
        let change = self.names.change();
        let plan = self.rules.plan();
        let mut errors: Vec<SteerError> = Vec::new();
        let mut note = |done: Result<(), KernelError>| errors.extend(done.err().map(SteerError::from));
        let mut put_away = Ok(());
        // First what decides for all connections: which addresses are synthetic, where the forwarder is, what is attached.
        let (v4, v6) = planner.synthetic;
        note(self.kernel.set_synthetic(v4, v6));
        note(self.kernel.take_back());
        if let Some((Attaching { programs, users, .. }, now)) = self.attaching.get().zip(now) {
            note(programs.set_excluded(users, &now.found.excluded));
            if now.off {
                // What the one that was to follow has pinned.
                put_away = programs.put_away();
            }
        }
        let ports = self.sockets.ports(name::DNS);
        match self.kernel.adopt_dns_ports(&ports) {
            Ok(known) => ports.difference(&known).for_each(|port| note(self.kernel.offer_dns_port(*port))),
            Err(error) => note(Err(error)),
        }
        note(self.rules.table.look(&[v4.into(), v6.into()]));
        for (id, (slot, _)) in &plan.carriers {
            let errno = lock(&self.down).contains(id).then_some(libc::EHOSTUNREACH);
            note(self.kernel.set_group_state(*slot, errno));
        }
        note(self.bring(&change, &plan).map(drop));
        errors.extend(put_away.err().map(SteerError::from));
        errors
    }

    /// From now on this is the process that steers, and no other.
    ///
    /// # Errors
    /// What another process attached can't be detached.
    pub fn take_over(&self) -> Result<(), SteerError> {
        let Some(Attaching { programs, now, .. }) = self.attaching.get() else { return Ok(()) };
        let now = lock(now);
        programs.settle()?;
        if now.off {
            programs.put_away()?;
        }
        Ok(())
    }

    /// Leaves all that is captured to the process that follows, which steers with the same pins or not at all.
    pub fn leave(&self) {
        let followed = self.attaching.get().map_or(Ok(true), |attaching| attaching.programs.is_followed());
        match followed {
            Ok(true) => self.kernel.leave(),
            Ok(false) => self.kernel.detach(),
            Err(why) => {
                tracing::error!("what is attached is left as it is: {why}");
                self.kernel.leave();
            }
        }
        self.names.leave();
        if let Some(pins) = self.attaching.get().and_then(|attaching| attaching.programs.pins()) {
            pins.leave();
        }
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
