//! The real kernel: the programs of `worker-ebpf`, loaded and attached.
//!
//! Programs are attached through links. With [`Pins`] these outlive a process that is killed, and so do the maps: what
//! it captured stays captured, and the next daemon adopts it. Without, as in tests, they end with the process.
//! What must hold: nothing is captured before there is a way back, so the hooks that undo a rewrite are attached
//! before those that make one; nobody is unsteered while one daemon follows another.

mod maps;

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use socket2::{Domain, Protocol, Socket, Type};
use worker_common::mark;

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
    /// Our process id in the initial pid namespace, where we are captured.
    own: Mutex<Option<u32>>,
}

struct Attached {
    /// Before `ebpf`, so that programs are detached before their maps go.
    links: Vec<Attachment>,
    ebpf: Ebpf,
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
        for (name, pins) in maps::NAMES.iter().zip(pins.iter().cycle()) {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf = loader
            // No program looks into the kernel's own types, so its BTF need not be read, nor be there.
            .btf(None)
            .override_global("HAVE_SET_RETVAL", &set_retval, true)
            .override_global("HAVE_MPTCP", &mptcp, true)
            .load(OBJECT)
            .map_err(|error| ProgramsError::Maps(Box::new(error)))?;
        let maps = Maps::take(&mut ebpf)?;
        for hook in &HOOKS {
            match load(program(&mut ebpf, hook.name)?, hook) {
                Err(ProgramsError::NoHook { attach_type }) if hook.optional => {
                    tracing::warn!(
                        attach_type,
                        "the kernel has no such hook; applications see the forwarder's address"
                    );
                }
                loaded => loaded?,
            }
        }
        let attached = Mutex::new(Attached { links: Vec::new(), ebpf });
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
        let Some(pins) = &self.pins else { return Ok(()) };
        let mut attached = self.lock();
        for Attachment { program, cgroup, link } in std::mem::take(&mut attached.links) {
            let path = pins.link(cgroup.id, program);
            let link = match path.exists() {
                true => link,
                false => match link.pin(&path) {
                    Ok(pinned) => pinned.into(),
                    Err(error) => {
                        let (cgroup, source) =
                            (cgroup.path.display().to_string(), ProgramError::from_link(error));
                        return Err(ProgramsError::Attach { program, cgroup, source: Box::new(source) });
                    }
                },
            };
            attached.links.push(Attachment { program, cgroup, link });
        }
        Ok(pins.own()?)
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
    pub fn is_followed(&self) -> bool {
        self.pins.as_ref().is_some_and(Pins::has_other_owner)
    }

    /// Detaches all that this process attached. Maps stay, for the next [`attach`](Self::attach).
    ///
    /// # Errors
    /// A link's name can't be removed.
    pub fn detach_all(&self) -> Result<(), ProgramsError> {
        self.lock().links.clear();
        Ok(self.pins.as_ref().map_or(Ok(()), Pins::remove_own_links)?)
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
        let before = self.maps.daemons()?;
        let register = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            self.maps.mark(&socket, mark::REGISTER)?;
            socket.connect(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into())?;
            Ok(socket.local_addr()?.as_socket())
        };
        let source = register().map_err(|source| ProgramsError::Register { port, source })?;
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        *own = own.or(self.maps.daemons()?.difference(&before).next().copied());
        Ok(source)
    }

    /// Forgets the daemons before this one: none of them runs any more.
    ///
    /// # Errors
    /// When the map can't be written.
    pub fn forget_predecessors(&self) -> Result<(), ProgramsError> {
        Ok(self.maps.forget_daemons(self.maps.daemons()?)?)
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
            let Some(program) = attached.ebpf.program(hook.name).filter(|program| program.fd().is_ok())
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
                map_ids: info.map_ids().map_err(io::Error::other)?.unwrap_or_default(),
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
        let own = *self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.maps.forget_daemons(own) {
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
            let failed = |program, source| ProgramsError::Attach {
                program,
                cgroup: cgroup.path.display().to_string(),
                source: Box::new(source),
            };
            let directory = File::open(&cgroup.path)
                .map_err(|error| failed(HOOKS[0].name, ProgramError::IOError(error)))?;
            for hook in &HOOKS {
                let program = program(&mut self.ebpf, hook.name)?;
                if program.fd().is_err() {
                    // A hook that this kernel lacks.
                    continue;
                }
                let mut link = attach(program, &directory).map_err(|error| failed(hook.name, error))?;
                if let Some(pins) = pins {
                    let pinned = link.pin(pins.link(cgroup.id, hook.name));
                    link = pinned.map_err(|error| failed(hook.name, ProgramError::from_link(error)))?.into();
                }
                links.push(Attachment { program: hook.name, cgroup: cgroup.clone(), link });
            }
        }
        Ok(links)
    }
}

impl Attachment {
    fn status(&self) -> Result<LinkStatus, LinkError> {
        let (cgroup, alive) = (self.cgroup.path.clone(), self.cgroup.is_alive());
        Ok(LinkStatus { id: self.link.info()?.id(), cgroup, cgroup_id: self.cgroup.id, alive })
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, ProgramsError> {
    ebpf.program_mut(name).ok_or_else(|| ProgramsError::Stale { what: format!("the program {name}") })
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
