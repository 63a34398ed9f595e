//! The new process's side of a reload: prepare, wait for what the old process has, take over, serve.
//!
//! What must hold: until it is told to go, it does nothing that the old one could not take back; what keeps it from
//! serving it tells the old one, which goes on as if nothing had been.

use std::io;
use std::panic::resume_unwind;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};

use super::StartError;
use super::channel::{Channel, Message};
use crate::config::{Config, Steer};
use crate::drain::Gate;
use crate::sockets::Sockets;
use crate::steer::programs::Programs;
use crate::steer::steering::{Inherited, SteerError, Steering};
use crate::tunnel::tls::listener;

/// How long the old process may take to stand still.
const STANDSTILL: Duration = Duration::from_secs(30);
/// How long it may take to let this one go.
const GO: Duration = Duration::from_secs(10);

/// The old process, as the one that takes over from it sees it.
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
}

/// What the old process has handed on.
#[derive(Debug, Default)]
pub struct Inheritance {
    /// Its sockets and locks; or those from the service manager.
    pub sockets: Sockets,
    /// Steering is switched off by hand.
    pub off: bool,
    /// The programs, loaded while the old process served.
    programs: Option<Programs>,
    /// Or on their way into the kernel.
    loading: Option<JoinHandle<Result<Programs, SteerError>>>,
    /// It waits for this process to be ready.
    pub(super) predecessor: Option<Predecessor>,
}

impl Inheritance {
    /// Of a process that takes over from none: what the service manager has passed, if anything.
    pub fn of_manager() -> Inheritance {
        Inheritance { sockets: Sockets::of_manager(), ..Inheritance::default() }
    }

    /// Begins to load the programs, where they are not loaded: the kernel takes a moment for it, and all else of a start is
    /// made meanwhile.
    pub(super) fn load(&mut self, steer: &Steer) {
        if self.programs.is_none() {
            let steer = steer.clone();
            self.loading = Some(spawn_blocking(move || Steering::load_ahead(&steer)));
        }
    }

    /// What steering takes of it.
    ///
    /// # Errors
    /// What keeps the programs from being loaded.
    pub(super) async fn steering(&mut self, gate: Gate) -> Result<Inherited, SteerError> {
        let programs = match self.loading.take() {
            Some(loading) => Some(loading.await.unwrap_or_else(|panic| resume_unwind(panic.into_panic()))?),
            None => self.programs.take(),
        };
        Ok(Inherited {
            sockets: self.sockets.clone(),
            gate,
            off: self.off,
            programs,
            follows: self.predecessor.is_some(),
        })
    }

    /// Waits until nothing of it is under way any more, and gives up the programs.
    pub(super) async fn let_go(&mut self) {
        if let Some(loading) = self.loading.take() {
            // What it has made goes with it.
            let _ = loading.await;
        }
        self.programs = None;
    }
}

impl Predecessor {
    /// The process from which this one was started to take over, if there is one.
    pub fn find() -> Option<Predecessor> {
        Channel::inherited().map(|channel| Predecessor { channel })
    }

    /// Tells it why this process can't serve. It goes on.
    pub fn failed(&self, why: &str) {
        // It may have given up already.
        let _ = self.channel.send(&Message::Failed(why.to_owned()), &[]);
    }

    /// Looks at what only a start would find wrong otherwise, then has the old process stand still and hand on what it
    /// has.
    ///
    /// # Errors
    /// A file, or the old process is gone.
    pub fn inherit(self, config: &Config) -> Result<Inheritance, StartError> {
        if let Some(files) = config.appliance.as_ref().and_then(listener::Files::of) {
            files.check().inspect_err(|error| self.failed(&error.to_string()))?;
        }
        let ahead = config.steer.as_ref().map(Steering::load_ahead).transpose();
        let programs = ahead.inspect_err(|error| self.failed(&format!("steer: {error}")))?;
        let gone =
            |source| StartError::System { doing: "taking over from the process before this one", source };
        self.channel.send(&Message::Prepared { pid: std::process::id() }, &[]).map_err(gone)?;
        let mut all = Vec::new();
        loop {
            match self.channel.receive(STANDSTILL).map_err(gone)? {
                (Message::Descriptors(_), some) => all.extend(some),
                (Message::TakeOver { off }, _) => {
                    let sockets = Sockets::new(all);
                    return Ok(Inheritance {
                        sockets,
                        off,
                        programs,
                        loading: None,
                        predecessor: Some(self),
                    });
                }
                (other, _) => {
                    return Err(gone(io::Error::other(format!("it said {other:?}"))));
                }
            }
        }
    }

    /// Says that this process could serve, and waits to be told to. An old process that dies now has nothing against it.
    ///
    /// # Errors
    /// The old process has given up on this one.
    pub(super) fn ready(&self) -> io::Result<()> {
        let gone = |kind| {
            matches!(
                kind,
                io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            )
        };
        match self.channel.send(&Message::Ready, &[]).and_then(|()| self.channel.receive(GO)) {
            Ok((Message::Go, _)) => Ok(()),
            Ok((other, _)) => Err(io::Error::other(format!("it said {other:?}"))),
            Err(error) if gone(error.kind()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Says that this process serves.
    pub(super) fn serving(&self) {
        // It may be gone by now.
        let _ = self.channel.send(&Message::Serving, &[]);
    }
}
