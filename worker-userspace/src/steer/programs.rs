//! The real kernel: the programs of `worker-ebpf`, loaded and attached.
//!
//! Programs are attached through links. With [`Pins`] these outlive a process that is killed, and so do the maps: what
//! it captured stays captured, and the next daemon adopts it. Without, as in tests, they end with the process.
//! What must hold: nothing is captured before there is a way back, so the hooks that undo a rewrite are attached
//! before those that make one; nobody is unsteered while one daemon follows another.

mod maps;
mod used;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use socket2::{Domain, Protocol, Socket, Type};
use worker_common::{MAPS, mark};

use super::kernel::{LinkStatus, ProgramStatus};
use super::pins::{Pins, PinsError};
use super::probe::{self, Cgroup, Features, ProbeError};
use maps::Maps;

/// The programs, compiled by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("BPF_OBJECT"));

/// A program, as the kernel and bpftool name it.
struct Hook {
    name: &'static str,
    attach_type: &'static str,
    /// Without it steering works, but an application that asks sees the forwarder's address.
    optional: bool,
}

const fn hook(name: &'static str, attach_type: &'static str) -> Hook {
    Hook { name, attach_type, optional: false }
}

/// All programs in the order in which they are attached: the ways back first.
const HOOKS: [Hook; 9] = [
    hook("dw_sock_ops", "cgroup_sock_ops"),
    hook("dw_recvmsg4", "cgroup_udp4_recvmsg"),
    hook("dw_recvmsg6", "cgroup_udp6_recvmsg"),
    // From 5.8 on.
    Hook { optional: true, ..hook("dw_getpeername4", "cgroup_inet4_getpeername") },
    Hook { optional: true, ..hook("dw_getpeername6", "cgroup_inet6_getpeername") },
    hook("dw_sendmsg4", "cgroup_udp4_sendmsg"),
    hook("dw_sendmsg6", "cgroup_udp6_sendmsg"),
    hook("dw_connect4", "cgroup_inet4_connect"),
    hook("dw_connect6", "cgroup_inet6_connect"),
];

/// The programs in the kernel. Dropping it detaches and unloads them, unless it was [left](super::kernel::Kernel::leave).
pub struct Programs {
    attached: Mutex<Attached>,
    maps: Maps,
    pins: Option<Pins>,
    left: AtomicBool,
    /// Set where we are captured ourselves.
    own: Mutex<Option<Own>>,
}

/// What the programs know us by.
struct Own {
    /// Our process id in the initial pid namespace.
    id: u32,
    /// Tells whoever asks that we live.
    _note: Option<File>,
}

struct Attached {
    /// Before `ebpf`, so that programs are detached before their maps go.
    links: Vec<Attachment>,
    ebpf: Ebpf,
    /// The programs are not loaded, and nothing is pinned: switched off.
    away: bool,
}

struct Attachment {
    program: &'static str,
    cgroup: Cgroup,
    link: FdLink,
}

/// Why the programs could not be loaded or attached.
#[derive(Debug, thiserror::Error)]
pub enum ProgramsError {
    /// The machine lacks something.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// A map could not be made.
    #[error("making the programs' maps: {0}")]
    Maps(#[source] Box<aya::EbpfError>),
    /// The object in this binary is not the one that this source belongs to.
    #[error("the programs in this binary lack {what}: run `cargo xtask build-ebpf` and build it again")]
    Stale {
        /// What is missing, or does not fit.
        what: String,
    },
    /// The kernel has no such hook.
    #[error(
        "the kernel has no hook {attach_type}, and steering needs it: this takes Linux 5.10 with CONFIG_CGROUP_BPF and CONFIG_INET"
    )]
    NoHook {
        /// bpftool's word for the hook.
        attach_type: &'static str,
    },
    /// The kernel does not let us.
    #[error(
        "the kernel does not allow loading {program}: {source}; is this process in a user namespace, or under seccomp?"
    )]
    NotAllowed {
        /// The program.
        program: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The verifier does not accept a program.
    #[error("the kernel's verifier rejects {program}: {source}\n{log}")]
    Rejected {
        /// The program.
        program: &'static str,
        /// The kernel's answer.
        source: io::Error,
        /// The end of the verifier's log.
        log: String,
    },
    /// Loading failed otherwise.
    #[error("loading {program}: {source}")]
    Load {
        /// The program.
        program: &'static str,
        /// aya's answer.
        source: Box<ProgramError>,
    },
    /// Attaching failed.
    #[error(
        "attaching {program} to {cgroup}: {source}; does another program claim this cgroup for itself (`bpftool cgroup tree`)?"
    )]
    Attach {
        /// The program.
        program: &'static str,
        /// The directory of the cgroup.
        cgroup: String,
        /// aya's answer.
        source: Box<ProgramError>,
    },
    /// The daemon could not tell the programs its process id.
    #[error(
        "connecting to our own listener at 127.0.0.1:{port}, which tells the programs who we are: {source}"
    )]
    Register {
        /// The listener's port.
        port: u16,
        /// How it failed.
        source: io::Error,
    },
    /// They can't outlive this process.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A map could not be written.
    #[error(transparent)]
    Kernel(#[from] super::kernel::KernelError),
}

impl Programs {
    /// Loads the programs, attached to nothing yet, with the maps that are pinned, and pins those that are not. Without
    /// pins all ends with this process.
    ///
    /// # Errors
    /// One cause, with its remedy.
    pub fn load(pins: Option<Pins>) -> Result<Programs, ProgramsError> {
        let Features { set_retval, mptcp } = probe::features()?;
        let (set_retval, mptcp) = (u8::from(set_retval), u8::from(mptcp));
        let mut loader = EbpfLoader::new();
        for (map, pins) in MAPS.iter().zip(pins.iter().cycle()) {
            loader.map_pin_path(map.name, pins.map(map));
        }
        let mut ebpf = loader
            // No program looks into the kernel's own types, so its BTF need not be read, nor be there.
            .btf(None)
            .override_global("HAVE_SET_RETVAL", &set_retval, true)
            .override_global("HAVE_MPTCP", &mptcp, true)
            .load(OBJECT)
            .map_err(|error| ProgramsError::Maps(Box::new(error)))?;
        let maps = Maps::take(&mut ebpf)?;
        load_all(&mut ebpf)?;
        let attached = Mutex::new(Attached { links: Vec::new(), ebpf, away: false });
        Ok(Programs { attached, maps, pins, left: AtomicBool::new(false), own: Mutex::default() })
    }

    /// What outlives this process.
    pub fn pins(&self) -> Option<&Pins> {
        self.pins.as_ref()
    }

    /// Attaches the programs to these cgroups, where they are not attached to them already; from now on connections
    /// are captured there. What a daemon before this one attached stays so, until [`settle`](Self::settle).
    ///
    /// Call it when [`Kernel::set_listeners`](super::kernel::Kernel::set_listeners) was told the listeners and all of
    /// them are marked and listening: the daemon connects to its own listener once, so that the programs know it
    /// should it be inside one of the cgroups. That connection carries no flow record; its source is returned.
    ///
    /// # Errors
    /// Nothing stays attached then.
    pub fn attach(&self, cgroups: &[Cgroup]) -> Result<Option<SocketAddr>, ProgramsError> {
        let mut attached = self.lock();
        if !cgroups.is_empty() {
            self.bring_back(&mut attached)?;
        }
        let links = attached.attach(cgroups, self.pins.as_ref());
        let outcome = links.and_then(|links| Ok((links, self.register()?)));
        match outcome {
            Ok((links, source)) => {
                attached.links.extend(links);
                Ok(source)
            }
            Err(error) => {
                self.unpin(cgroups.iter().filter(|cgroup| !attached.has(cgroup)));
                Err(error)
            }
        }
    }

    /// Detaches what other daemons attached, and removes what else they left: from now on these programs are the only
    /// ones. What is attached has its names then, though another daemon may have removed them.
    ///
    /// # Errors
    /// A name can't be made or removed.
    pub fn settle(&self) -> Result<(), ProgramsError> {
        self.name_all()?;
        self.own_pins()
    }

    /// As [`settle`](Self::settle), against a daemon that was to follow: what it left goes, whatever can't be named.
    pub(super) fn take_back_pins(&self) -> Result<(), ProgramsError> {
        let named = self.name_all();
        self.own_pins().and(named)
    }

    fn name_all(&self) -> Result<(), ProgramsError> {
        self.pins.as_ref().map_or(Ok(()), |pins| self.lock().name_all(pins))
    }

    fn own_pins(&self) -> Result<(), ProgramsError> {
        let Some(pins) = &self.pins else { return Ok(()) };
        pins.own()?;
        self.forget_ended(pins)
    }

    /// Forgets the daemons that have ended: another process may get the id of one, and would go where it wants.
    fn forget_ended(&self, pins: &Pins) -> Result<(), ProgramsError> {
        for daemon in self.maps.daemons()? {
            if !pins.is_alive(daemon)? {
                self.maps.forget_daemon(daemon)?;
            }
        }
        Ok(())
    }

    /// Lets go of the cgroups that were removed since: nobody is captured there any more.
    pub fn detach_dead(&self) {
        let mut attached = self.lock();
        let (alive, dead): (Vec<_>, Vec<_>) =
            std::mem::take(&mut attached.links).into_iter().partition(|link| link.cgroup.is_alive());
        attached.links = alive;
        self.unpin(dead.iter().map(|link| &link.cgroup));
    }

    /// True where another daemon has settled with the same pins.
    ///
    /// # Errors
    /// It can't be seen: then one may have.
    pub fn is_followed(&self) -> Result<bool, ProgramsError> {
        Ok(self.pins.as_ref().map_or(Ok(false), Pins::has_other_owner)?)
    }

    /// Detaches and unloads the programs, and removes all that would outlive this process. The maps stay with it, for
    /// the next [`attach`](Self::attach).
    ///
    /// # Errors
    /// A name can't be removed: then all else is done all the same.
    pub fn put_away(&self) -> Result<(), ProgramsError> {
        let mut attached = self.lock();
        attached.links.clear();
        let removed = self.pins.as_ref().map_or(Ok(()), Pins::put_away);
        for hook in &HOOKS {
            // One that this kernel lacks was never loaded.
            let _ = match program(&mut attached.ebpf, hook.name)? {
                Program::CgroupSockAddr(program) => program.unload(),
                Program::SockOps(program) => program.unload(),
                _ => Ok(()),
            };
        }
        attached.away = true;
        Ok(removed?)
    }

    /// Undoes [`put_away`](Self::put_away), where that was done.
    fn bring_back(&self, attached: &mut Attached) -> Result<(), ProgramsError> {
        if attached.away {
            load_all(&mut attached.ebpf)?;
            self.pins.as_ref().map_or(Ok(()), |pins| self.maps.pin(pins))?;
            attached.away = false;
        }
        Ok(())
    }

    fn unpin<'c>(&self, cgroups: impl Iterator<Item = &'c Cgroup>) {
        let Some(pins) = &self.pins else { return };
        for cgroup in cgroups {
            for hook in &HOOKS {
                // It may never have been there.
                let _ = std::fs::remove_file(pins.link(cgroup.id, hook.name));
            }
        }
    }

    /// Detaches all that this process attached; and leaves nothing, where no other daemon's programs are attached.
    fn let_go(&self) {
        self.lock().links.clear();
        if let Some(pins) = &self.pins
            && let Err(error) = pins.remove_own()
        {
            tracing::error!("not all is detached: {error}; `dworker steer off` tries again");
        }
    }

    /// Tells the programs our process id, in case we are inside a captured cgroup. They see it themselves in this
    /// connect(), whatever pid namespace we are in; if they do not see it, we are not captured.
    fn register(&self) -> Result<Option<SocketAddr>, ProgramsError> {
        let port = self.maps.listener4();
        let register = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            self.maps.mark(&socket, mark::REGISTER)?;
            socket.connect(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into())?;
            Ok((socket.local_addr()?.as_socket(), self.maps.registered(&socket)?))
        };
        let (source, id) = register().map_err(|source| ProgramsError::Register { port, source })?;
        let mut own = self.own();
        if let (None, Some(id)) = (&*own, id) {
            let note = self.pins.as_ref().map(|pins| pins.note_alive(id)).transpose()?;
            *own = Some(Own { id, _note: note.flatten() });
        }
        Ok(source)
    }

    fn own(&self) -> MutexGuard<'_, Option<Own>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Attached> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For `status`.
    fn status(&self) -> io::Result<Vec<ProgramStatus>> {
        let attached = self.lock();
        let mut all = Vec::with_capacity(HOOKS.len());
        for hook in &HOOKS {
            // A hook that this kernel lacks is not loaded.
            let Some((program, Ok(descriptor))) =
                attached.ebpf.program(hook.name).map(|program| (program, program.fd()))
            else {
                continue;
            };
            let info = program.info().map_err(io::Error::other)?;
            let links = attached.links.iter().filter(|attachment| attachment.program == hook.name);
            all.push(ProgramStatus {
                name: hook.name,
                id: info.id(),
                kind: if hook.name == "dw_sock_ops" { "sock_ops" } else { "cgroup_sock_addr" },
                tag: info.tag(),
                map_ids: used::map_ids(descriptor)?,
                attach_type: hook.attach_type,
                run_time: info.run_time(),
                run_count: info.run_count(),
                links: links.map(Attachment::status).collect::<Result<_, _>>().map_err(io::Error::other)?,
            });
        }
        Ok(all)
    }
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Programs").finish_non_exhaustive()
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let own = self.own().take();
        if let Some(Err(error)) = own.map(|own| self.maps.forget_daemon(own.id)) {
            tracing::warn!("{error}");
        }
        if !self.left.load(Ordering::Relaxed) {
            self.let_go();
        }
    }
}

impl Attached {
    fn has(&self, cgroup: &Cgroup) -> bool {
        self.links.iter().any(|link| link.cgroup.id == cgroup.id)
    }

    fn attach(&mut self, cgroups: &[Cgroup], pins: Option<&Pins>) -> Result<Vec<Attachment>, ProgramsError> {
        let mut links: Vec<Attachment> = Vec::with_capacity(cgroups.len() * HOOKS.len());
        for cgroup in cgroups {
            if self.has(cgroup) || links.iter().any(|link| link.cgroup.id == cgroup.id) {
                continue;
            }
            for hook in &HOOKS {
                links.extend(self.attach_one(hook, cgroup, pins)?);
            }
        }
        Ok(links)
    }

    /// Attaches a program, with a name where there are pins. `None`: this kernel lacks the hook.
    fn attach_one(
        &mut self,
        hook: &Hook,
        cgroup: &Cgroup,
        pins: Option<&Pins>,
    ) -> Result<Option<Attachment>, ProgramsError> {
        let failed = |source| ProgramsError::Attach {
            program: hook.name,
            cgroup: cgroup.path.display().to_string(),
            source: Box::new(source),
        };
        let program = program(&mut self.ebpf, hook.name)?;
        if program.fd().is_err() {
            return Ok(None);
        }
        let directory = File::open(&cgroup.path).map_err(|error| failed(ProgramError::IOError(error)))?;
        let mut link = attach(program, &directory).map_err(failed)?;
        if let Some(pins) = pins {
            let pinned = link.pin(pins.link(cgroup.id, hook.name));
            link = pinned.map_err(|error| failed(ProgramError::from_link(error)))?.into();
        }
        Ok(Some(Attachment { program: hook.name, cgroup: cgroup.clone(), link }))
    }

    /// Has all that is attached have its names, which another daemon may have removed. A link that has lost its name is
    /// given up only for a new one beside it: what can't be named stays attached for as long as this process lives.
    fn name_all(&mut self, pins: &Pins) -> Result<(), ProgramsError> {
        let mut outcome = Ok(());
        for at in 0..self.links.len() {
            let Attachment { program, ref cgroup, .. } = self.links[at];
            let hook = HOOKS.iter().find(|hook| hook.name == program);
            let (Some(hook), cgroup) = (hook, cgroup.clone()) else { continue };
            if !cgroup.is_alive() || pins.link(cgroup.id, program).exists() {
                continue;
            }
            match self.attach_one(hook, &cgroup, Some(pins)) {
                Ok(Some(fresh)) => self.links[at] = fresh,
                Ok(None) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }
}

impl Attachment {
    fn status(&self) -> Result<LinkStatus, LinkError> {
        let (cgroup, alive) = (self.cgroup.path.clone(), self.cgroup.is_alive());
        Ok(LinkStatus { id: self.link.info()?.id(), cgroup, cgroup_id: self.cgroup.id, alive })
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, ProgramsError> {
    ebpf.program_mut(name).ok_or_else(|| stale(name))
}

fn stale(name: &str) -> ProgramsError {
    ProgramsError::Stale { what: format!("the program {name}") }
}

/// Loads all programs that this kernel has the hooks for. At once: the verifier takes tens of milliseconds for some, and a
/// host waits for it after a crash.
fn load_all(ebpf: &mut Ebpf) -> Result<(), ProgramsError> {
    let mut programs: HashMap<_, _> = ebpf.programs_mut().collect();
    let mut missing = Vec::new();
    for hook in &HOOKS {
        let program = programs.remove(hook.name).ok_or_else(|| stale(hook.name))?;
        if program.fd().is_err() {
            missing.push((hook, program));
        }
    }
    let outcomes: Vec<_> = thread::scope(|scope| {
        let load = |(hook, program)| (hook, scope.spawn(move || load(program, hook)));
        let loading: Vec<_> = missing.into_iter().map(load).collect();
        loading.into_iter().map(|(hook, thread)| (hook, thread.join())).collect()
    });
    for (hook, outcome) in outcomes {
        match outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
            Err(ProgramsError::NoHook { attach_type }) if hook.optional => {
                tracing::warn!(
                    attach_type,
                    "the kernel has no such hook; applications see the forwarder's address"
                );
            }
            loaded => loaded?,
        }
    }
    Ok(())
}

fn load(program: &mut Program, hook: &Hook) -> Result<(), ProgramsError> {
    let loaded = match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        _ => return Err(ProgramsError::Stale { what: format!("the type of {}", hook.name) }),
    };
    let (source, log) = match loaded {
        Ok(()) => return Ok(()),
        Err(ProgramError::LoadError { io_error, verifier_log }) => (io_error, verifier_log.to_string()),
        Err(source) => return Err(ProgramsError::Load { program: hook.name, source: Box::new(source) }),
    };
    Err(match source.raw_os_error() {
        // The verifier was not even asked: the kernel does not know the hook.
        Some(libc::EINVAL) if log.trim().is_empty() => {
            ProgramsError::NoHook { attach_type: hook.attach_type }
        }
        Some(libc::EPERM) if log.trim().is_empty() => {
            ProgramsError::NotAllowed { program: hook.name, source }
        }
        _ => ProgramsError::Rejected { program: hook.name, source, log: tail(&log) },
    })
}

/// The end of a verifier's log: it names the instruction that was rejected.
fn tail(log: &str) -> String {
    const LINES: usize = 40;
    let lines: Vec<_> = log.trim_end().lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

fn attach(program: &mut Program, directory: &File) -> Result<FdLink, ProgramError> {
    // Since 5.7 this makes a link, and links always share a cgroup with other programs.
    const MODE: CgroupAttachMode = CgroupAttachMode::Single;
    match program {
        Program::CgroupSockAddr(program) => {
            let id = program.attach(directory, MODE)?;
            program.take_link(id)?.try_into().map_err(|error: LinkError| ProgramError::from_link(error))
        }
        Program::SockOps(program) => {
            let id = program.attach(directory, MODE)?;
            program.take_link(id)?.try_into().map_err(|error: LinkError| ProgramError::from_link(error))
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// A link that is none, as an error of the program that it belongs to.
trait FromLink {
    fn from_link(error: impl std::error::Error + Send + Sync + 'static) -> Self;
}

impl FromLink for ProgramError {
    fn from_link(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        ProgramError::IOError(io::Error::other(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_verifier_log_is_kept() {
        let log: String = (0..100).map(|line| format!("{line}\n")).collect();
        assert!(tail(&log).starts_with("60\n") && tail(&log).ends_with("\n99"));
        assert_eq!(tail("one\n"), "one");
        assert_eq!(tail(""), "");
    }
}
