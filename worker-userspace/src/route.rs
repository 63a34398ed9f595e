//! Who carries a target.
//!
//! Entries ask a [`Router`] for a stream and don't know what stands behind it: on an appliance its
//! registry of worker groups, on a worker's host the session with the appliance.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::refusal::{Code, Refusal};
use crate::target::Target;
use crate::threads::Home;
use crate::tunnel::credit;
use crate::tunnel::message::Open;
use crate::tunnel::stream::Stream;

/// How long a connection waits for a worker that is not connected: one that is just restarted is back by then.
pub const GRACE: Duration = Duration::from_secs(3);

/// What an entry asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where to.
    pub target: Target,
    /// How long the dial at the far end may take.
    pub deadline: Duration,
    /// Joins the log lines of all ends.
    pub trace: u64,
}

impl From<&Request> for Open {
    fn from(request: &Request) -> Open {
        Open {
            target: request.target.clone(),
            deadline: request.deadline,
            // The lane grants more where there is more.
            credit: credit::INITIAL,
            trace: request.trace,
        }
    }
}

/// A stream on its way to a target; the far end may not have dialled yet.
#[derive(Debug)]
pub struct Opened {
    /// The stream.
    pub stream: Stream,
    /// Who carries it, for people: `group/node`.
    pub carrier: String,
}

/// Chooses who carries a target, and opens a stream there.
pub trait Router: Send + Sync + 'static {
    /// Opens a stream without waiting for the far end's dial.
    ///
    /// # Errors
    /// No route, no worker, or a limit.
    fn open(&self, request: &Request) -> Result<Opened, Refusal>;

    /// Where the socket of a connection to `target` had best live.
    fn home(&self, _target: &Target) -> Home {
        None
    }

    /// Counts changes of who is connected: where nobody was, it may pay to ask again.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// Opens a stream; where no worker is connected, waits a moment ([`GRACE`]) for one.
///
/// # Errors
/// What the router refused it with, at last.
pub async fn open_or_wait(router: &dyn Router, request: &Request) -> Result<Opened, Refusal> {
    let until = Instant::now() + GRACE;
    let mut changes = router.changes();
    loop {
        changes.mark_unchanged();
        match router.open(request) {
            Err(refusal) if refusal.code == Code::NoWorker => {
                if !matches!(timeout_at(until, changes.changed()).await, Ok(Ok(()))) {
                    return Err(refusal);
                }
            }
            other => return other,
        }
    }
}
