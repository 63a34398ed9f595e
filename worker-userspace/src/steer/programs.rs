//! The real kernel: the programs of `worker-ebpf`, loaded and attached.
//!
//! Programs are attached through links that this process holds and nobody else: however it ends, the kernel
//! detaches them, and no application is left with a rewritten address and nobody behind it.
//! What must hold: nothing is captured before there is a way back, so the hooks that undo a rewrite are attached
//! before those that make one.

mod maps;

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use socket2::{Domain, Protocol, Socket, Type};
use worker_common::mark;

use super::kernel::{LinkStatus, ProgramStatus};
use super::probe::{self, Cgroup, Features, ProbeError};
use maps::Maps;

/// The programs, compiled by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("DWORKER_BPF_OBJECT"));

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

/// The programs in the kernel. Dropping it detaches and unloads them.
pub struct Programs {
    attached: Mutex<Attached>,
    maps: Maps,
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
    /// A map could not be written.
    #[error(transparent)]
    Kernel(#[from] super::kernel::KernelError),
}

impl Programs {
    /// Loads the programs, attached to nothing yet.
    ///
    /// # Errors
    /// One cause, with its remedy.
    pub fn load() -> Result<Programs, ProgramsError> {
        let Features { set_retval, mptcp } = probe::features()?;
        let (set_retval, mptcp) = (u8::from(set_retval), u8::from(mptcp));
        let mut ebpf = EbpfLoader::new()
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
        Ok(Programs { attached: Mutex::new(Attached { links: Vec::new(), ebpf }), maps })
    }

    /// Attaches the programs to these cgroups; from now on connections are captured there.
    ///
    /// Call it when [`Kernel::set_listeners`](super::kernel::Kernel::set_listeners) was told the listeners and all of
    /// them are marked and listening: the daemon connects to its own listener once, so that the programs know it
    /// should it be inside one of the cgroups. That connection carries no flow record; its source is returned.
    ///
    /// # Errors
    /// Nothing stays attached then.
    pub fn attach(&self, cgroups: &[Cgroup]) -> Result<Option<SocketAddr>, ProgramsError> {
        let links = self.lock().attach(cgroups)?;
        let source = self.register()?;
        self.lock().links.extend(links);
        Ok(source)
    }

    /// Tells the programs our process id, in case we are inside a captured cgroup. They see it themselves in this
    /// connect(), whatever pid namespace we are in; if they do not see it, we are not captured.
    fn register(&self) -> Result<Option<SocketAddr>, ProgramsError> {
        let port = self.maps.listener4();
        let register = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            self.maps.mark(&socket, mark::REGISTER)?;
            socket.connect(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into())?;
            Ok(socket.local_addr()?.as_socket())
        };
        register().map_err(|source| ProgramsError::Register { port, source })
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

impl Attached {
    fn attach(&mut self, cgroups: &[Cgroup]) -> Result<Vec<Attachment>, ProgramsError> {
        let mut links = Vec::with_capacity(cgroups.len() * HOOKS.len());
        for cgroup in cgroups {
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
                let link = attach(program, &directory).map_err(|error| failed(hook.name, error))?;
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
            program.take_link(id)?.try_into().map_err(ProgramError::from_link)
        }
        Program::SockOps(program) => {
            let id = program.attach(directory, MODE)?;
            program.take_link(id)?.try_into().map_err(ProgramError::from_link)
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// A link that is none, as an error of the program that it belongs to.
trait FromLink {
    fn from_link(error: LinkError) -> Self;
}

impl FromLink for ProgramError {
    fn from_link(error: LinkError) -> Self {
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
