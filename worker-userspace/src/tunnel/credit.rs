//! Flow control: how much a peer may have on the way to us, per stream, by absolute offsets as in QUIC.
//!
//! A window starts at [`INITIAL`] and follows the stream: twice what it delivers in one round trip, so
//! that a long path is filled and a slow reader keeps little. Growth is paid from one budget for the
//! process; where it is used up, streams keep the window that they have.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Window of a new stream, in bytes.
pub const INITIAL: u32 = 256 * 1024;
/// The largest window, in bytes.
pub const LARGEST: u32 = 16 * 1024 * 1024;

/// No window takes more than this part of what it leaves of the budget: a stream that is idle or stalled keeps
/// what it took, because its peer may use it at any time, and those that come later must get something.
const PART: usize = 32;

/// Bytes by which all windows of the process together may exceed their initial size.
#[derive(Debug)]
pub struct Budget {
    left: AtomicUsize,
}

impl Budget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> Budget {
        Budget { left: AtomicUsize::new(bytes) }
    }

    /// Takes up to `wanted` bytes and says how many it got.
    fn take(&self, wanted: u32) -> u32 {
        let mut got = 0;
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            got = left.min(wanted as usize);
            (got > 0).then(|| left - got)
        });
        got as u32
    }

    fn give_back(&self, bytes: u32) {
        self.left.fetch_add(bytes as usize, Ordering::Relaxed);
    }

    /// Bytes not taken.
    pub fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }
}

/// The peer sent more than it was allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{over} bytes beyond the stream's credit")]
pub struct OverCredit {
    /// By how much.
    pub over: u64,
}

/// The receiving end's account of one stream.
#[derive(Debug)]
pub struct ReceiveWindow {
    window: u32,
    /// Absolute offset up to which the peer may send, as it was told.
    granted: u64,
    received: u64,
    consumed: u64,
    /// When `granted` was last moved, and `consumed` then.
    last: Option<(Instant, u64)>,
}

impl ReceiveWindow {
    /// The window of a new stream; the peer knows of [`INITIAL`] bytes.
    pub fn new() -> ReceiveWindow {
        ReceiveWindow { window: INITIAL, granted: INITIAL.into(), received: 0, consumed: 0, last: None }
    }

    /// Counts bytes that arrived.
    pub fn on_received(&mut self, n: usize) -> Result<(), OverCredit> {
        self.received += n as u64;
        match self.received.checked_sub(self.granted) {
            Some(over) if over > 0 => Err(OverCredit { over }),
            _ => Ok(()),
        }
    }

    /// Counts bytes that moved on. True where [`grant`](Self::grant) is due: half the window is used.
    pub fn on_consumed(&mut self, n: usize) -> bool {
        self.consumed += n as u64;
        self.granted - self.consumed <= u64::from(self.window / 2)
    }

    /// Moves the offset that the peer may send up to and returns it, after fitting the window to what
    /// the stream delivered since the last time.
    pub fn grant(&mut self, now: Instant, round_trip: Duration, budget: &Budget) -> u64 {
        if let Some((then, before)) = self.last {
            let elapsed = now.saturating_duration_since(then).max(Duration::from_micros(1));
            let delivered = (self.consumed - before) as f64;
            let wanted = 2.0 * delivered * round_trip.as_secs_f64() / elapsed.as_secs_f64();
            let wanted = (wanted.min(f64::from(LARGEST)) as u32).max(INITIAL);
            if wanted > self.window {
                // At most doubled at once: one burst is no rate.
                let more = wanted.min(self.window.saturating_mul(2)) - self.window;
                let part = (budget.left() / PART).saturating_sub((self.window - INITIAL) as usize);
                self.window += budget.take(more.min(part.try_into().unwrap_or(u32::MAX)));
            } else if wanted <= self.window / 2 {
                let less = (self.window / 2).min(self.window - INITIAL);
                self.window -= less;
                budget.give_back(less);
            }
        }
        self.last = Some((now, self.consumed));
        self.granted = self.granted.max(self.consumed + u64::from(self.window));
        self.granted
    }

    /// Bytes that arrived and did not move on.
    pub fn held(&self) -> u64 {
        self.received - self.consumed
    }

    /// The window, in bytes.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// Gives what the window took back to the budget; called when the stream ends.
    pub fn release(&mut self, budget: &Budget) {
        budget.give_back(self.window - INITIAL);
        self.window = INITIAL;
    }
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self::new()
    }
}

/// The sending end's account of one stream.
#[derive(Debug)]
pub struct SendCredit {
    sent: u64,
    limit: u64,
}

impl SendCredit {
    /// A new stream's credit, as the peer announced it.
    pub fn new(limit: u32) -> SendCredit {
        SendCredit { sent: 0, limit: limit.into() }
    }

    /// Bytes that may be sent now.
    pub fn available(&self) -> usize {
        usize::try_from(self.limit - self.sent).unwrap_or(usize::MAX)
    }

    /// Counts bytes that are sent; at most [`available`](Self::available).
    pub fn spend(&mut self, n: usize) {
        debug_assert!(n <= self.available());
        self.sent += n as u64;
    }

    /// The peer allows more. Offsets never move back: an older one changes nothing.
    pub fn raise(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Delivers as fast as the window allows over `round_trip` for `trips` round trips.
    fn deliver(window: &mut ReceiveWindow, budget: &Budget, round_trip: Duration, trips: u32) {
        let mut now = Instant::now();
        for _ in 0..trips {
            now += round_trip / 2;
            let n = (window.granted - window.received) as usize;
            window.on_received(n).unwrap();
            if window.on_consumed(n) {
                window.grant(now, round_trip, budget);
            }
        }
    }

    #[tokio::test]
    async fn a_long_path_is_filled_and_a_quiet_stream_gives_back() {
        let budget = Budget::new(1 << 30);
        let mut window = ReceiveWindow::new();
        deliver(&mut window, &budget, Duration::from_millis(60), 40);
        assert_eq!(window.window(), LARGEST);
        assert_eq!(budget.left(), (1 << 30) - (LARGEST - INITIAL) as usize);
        let mut now = Instant::now() + Duration::from_secs(3600);
        for _ in 0..40 {
            now += Duration::from_secs(10);
            let n = (window.granted - window.received) as usize;
            window.on_received(n).unwrap();
            window.on_consumed(n);
            window.grant(now, Duration::from_millis(1), &budget);
        }
        assert_eq!(window.window(), INITIAL);
        assert_eq!(budget.left(), 1 << 30);
    }

    #[tokio::test]
    async fn the_budget_bounds_growth_and_gets_all_back() {
        let budget = Budget::new(300_000);
        let mut windows: Vec<_> = (0..10).map(|_| ReceiveWindow::new()).collect();
        for window in &mut windows {
            deliver(window, &budget, Duration::from_millis(100), 20);
        }
        assert!(budget.left() < 250_000);
        let extra: usize = windows.iter().map(|w| (w.window() - INITIAL) as usize).sum();
        assert_eq!(extra, 300_000 - budget.left());
        windows.iter_mut().for_each(|w| w.release(&budget));
        assert_eq!(budget.left(), 300_000);
    }

    /// A window that was grown is kept while its stream is idle or stalled: its peer may use it at any time.
    #[tokio::test]
    async fn who_came_first_leaves_something_to_who_comes_later() {
        let budget = Budget::new(512 * 1024 * 1024);
        let mut idle: Vec<_> = (0..64).map(|_| ReceiveWindow::new()).collect();
        idle.iter_mut().for_each(|window| deliver(window, &budget, Duration::from_millis(60), 40));
        let mut late = ReceiveWindow::new();
        deliver(&mut late, &budget, Duration::from_millis(60), 40);
        assert!(late.window() >= 4 * INITIAL, "{} bytes", late.window());
        assert!(idle[0].window() >= LARGEST / 2, "{} bytes", idle[0].window());
    }

    #[test]
    fn one_byte_too_many_is_noticed() {
        let mut window = ReceiveWindow::new();
        window.on_received(INITIAL as usize).unwrap();
        assert_eq!(window.on_received(1), Err(OverCredit { over: 1 }));
    }

    proptest! {
        #[test]
        fn an_obedient_sender_is_never_over_credit(steps in vec((1usize..400_000, 1usize..400_000, 1u64..50), 1..200)) {
            let budget = Budget::new(1 << 22);
            let (mut window, mut credit) = (ReceiveWindow::new(), SendCredit::new(INITIAL));
            let mut now = Instant::now();
            for (send, consume, pause) in steps {
                now += Duration::from_millis(pause);
                let send = send.min(credit.available());
                credit.spend(send);
                prop_assert!(window.on_received(send).is_ok());
                let consume = consume.min(window.held() as usize);
                if window.on_consumed(consume) {
                    credit.raise(window.grant(now, Duration::from_millis(20), &budget));
                }
                prop_assert!(window.held() <= u64::from(LARGEST));
                // What arrived can always move on, so credit is never stuck at zero.
                prop_assert!(window.held() > 0 || credit.available() > 0);
            }
        }
    }
}
