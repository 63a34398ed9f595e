//! A stream as others see it, who neither copy it nor drive its lane: they count what waits in it, and may end it.

use std::fmt;
use std::sync::{Arc, Weak};

use super::{Shared, State};
use crate::refusal::Refusal;
use crate::tunnel::frame::Type;

/// What waits in a stream at this end, and what may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    /// Bytes that the peer may have on the way to here: the stream's credit.
    pub window: u32,
    /// Bytes that arrived and did not move on.
    pub held: u64,
    /// Bytes that wait to be sent to the peer.
    pub queued: usize,
}

/// Resets a stream whose handle another task holds; that one finds it failed. Does not keep it alive.
#[derive(Clone)]
pub struct Cutter(Weak<Shared>);

impl Cutter {
    pub(super) fn of(stream: &Arc<Shared>) -> Cutter {
        Cutter(Arc::downgrade(stream))
    }

    /// As [`Stream::reset`](super::Stream::reset), where the stream is still there.
    pub fn reset(&self, refusal: Refusal) {
        if let Some(shared) = self.0.upgrade() {
            shared.end(Type::Reset, refusal);
        }
    }

    /// What waits in the stream, where it is still there.
    pub fn account(&self) -> Option<Account> {
        let shared = self.0.upgrade()?;
        let State { window, pending, .. } = &*shared.state();
        Some(Account { window: window.window(), held: window.held(), queued: pending.bytes() })
    }
}

impl fmt::Debug for Cutter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cutter")
    }
}
