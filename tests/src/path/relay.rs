//! The thread that carries the packets of one direction from a device to the other, each at its time.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::prctl::set_timerslack;
use nix::sys::time::TimeSpec;

use super::link::{Fate, Link};
use super::tun::{LARGEST, Tun, on_the_wire};
use super::{PathSettings, PathStats};

/// Bytes on the wire of one direction at a time; 25 ms at 20 Gbit/s. What comes on top overflows.
const HELD: usize = 64 << 20;
/// Packets read in a row before those that are due get their turn.
const BATCH: usize = 32;

/// What the thread and the [`Relaying`] share.
struct Shared {
    settings: Mutex<PathSettings>,
    stop: EventFd,
    packets: AtomicU64,
    bytes: AtomicU64,
    lost: AtomicU64,
    overflowed: AtomicU64,
    refused: AtomicU64,
}

/// A running relay. Dropping it ends the thread.
pub(super) struct Relaying {
    shared: Arc<Shared>,
    name: String,
    thread: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

/// The thread's own side.
pub(super) struct Relay {
    from: Arc<Tun>,
    to: Arc<Tun>,
    shared: Arc<Shared>,
    link: Link,
    wire: VecDeque<InFlight>,
    held: usize,
}

struct InFlight {
    due: Instant,
    packet: Box<[u8]>,
}

impl Relay {
    pub(super) fn start(from: Arc<Tun>, to: Arc<Tun>, settings: PathSettings) -> Result<Relaying> {
        let name = format!("{} to {}", from.name(), to.name());
        let shared = Arc::new(Shared {
            settings: Mutex::new(settings),
            stop: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let link = Link::new(settings, Instant::now());
        let relay = Relay { from, to, shared: shared.clone(), link, wire: VecDeque::new(), held: 0 };
        let thread = thread::Builder::new().name(name.clone()).spawn(|| relay.run())?;
        Ok(Relaying { shared, name, thread: Mutex::new(Some(thread)) })
    }

    fn run(mut self) -> io::Result<()> {
        // The default slack of 50 µs would be added to every wait.
        set_timerslack(1)?;
        let mut buffer = vec![0; LARGEST];
        loop {
            self.deliver_due();
            if self.wait()? {
                return Ok(());
            }
            let settings = *lock(&self.shared.settings);
            self.link.set(settings);
            for _ in 0..BATCH {
                let Some(length) = self.from.receive(&mut buffer)? else { break };
                self.accept(&buffer[..length]);
            }
        }
    }

    /// Waits for a packet or for the next to be due. True when it is time to end.
    fn wait(&self) -> io::Result<bool> {
        let timeout =
            self.wire.front().map(|next| TimeSpec::from(next.due.saturating_duration_since(Instant::now())));
        let mut polled = [
            PollFd::new(self.from.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.shared.stop.as_fd(), PollFlags::POLLIN),
        ];
        match ppoll(&mut polled, timeout, None) {
            Ok(_) => Ok(polled[1].any().unwrap_or(false)),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn accept(&mut self, packet: &[u8]) {
        let (packets, bytes) = on_the_wire(packet);
        let fate = if self.held + packet.len() > HELD {
            Fate::Overflows
        } else {
            self.link.send(bytes as usize, Instant::now())
        };
        match fate {
            Fate::Arrives(due) => {
                self.held += packet.len();
                self.wire.push_back(InFlight { due, packet: packet.into() });
            }
            Fate::Lost => add(&self.shared.lost, packets),
            Fate::Overflows => add(&self.shared.overflowed, packets),
        }
    }

    fn deliver_due(&mut self) {
        let mut now = Instant::now();
        while let Some(next) = self.wire.pop_front_if(|next| next.due <= now) {
            self.held -= next.packet.len();
            let (packets, bytes) = on_the_wire(&next.packet);
            match self.to.deliver(&next.packet) {
                Ok(()) => {
                    add(&self.shared.packets, packets);
                    add(&self.shared.bytes, bytes);
                }
                Err(_) => add(&self.shared.refused, packets),
            }
            now = Instant::now();
        }
    }
}

impl Relaying {
    pub(super) fn set(&self, settings: PathSettings) -> Result<()> {
        self.alive()?;
        *lock(&self.shared.settings) = settings;
        Ok(())
    }

    pub(super) fn stats(&self) -> Result<PathStats> {
        self.alive()?;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Ok(PathStats {
            packets: read(&self.shared.packets),
            bytes: read(&self.shared.bytes),
            lost: read(&self.shared.lost),
            overflowed: read(&self.shared.overflowed),
            refused: read(&self.shared.refused),
        })
    }

    /// An error where the thread has ended although nobody asked it to.
    fn alive(&self) -> Result<()> {
        let mut thread = lock(&self.thread);
        let why = match thread.take_if(|thread| thread.is_finished()).map(JoinHandle::join) {
            None if thread.is_some() => return Ok(()),
            None => "its end was reported before".to_owned(),
            Some(Ok(Ok(()))) => "it was told to".to_owned(),
            Some(Ok(Err(error))) => error.to_string(),
            Some(Err(_)) => "it panicked".to_owned(),
        };
        bail!("the relay {} ended early: {why}", self.name)
    }
}

impl Drop for Relaying {
    fn drop(&mut self) {
        // An eventfd refuses only a count near 2^64, so the thread always learns of it.
        if self.shared.stop.write(1).is_ok()
            && let Some(thread) = lock(&self.thread).take()
        {
            // Its result matters to `alive`; the path is going away now.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Relaying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relaying").field("name", &self.name).finish_non_exhaustive()
    }
}

fn add(count: &AtomicU64, n: u64) {
    count.fetch_add(n, Ordering::Relaxed);
}

/// Each lock guards a value that is whole at every moment, so a panic elsewhere leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
