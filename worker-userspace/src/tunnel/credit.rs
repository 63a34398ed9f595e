//! Flow control: how much a peer may have on the way to us, per stream, by absolute offsets as in QUIC.
//!
//! A stream starts with [`INITIAL`], is given more with the first answer, and then follows what it delivers: twice
//! that of one round trip, and at least that of [`SELDOM`], so that a long path is filled and a slow reader keeps little.
//!
//! What must hold: all that peers may send is paid from one budget for the process, from a stream's first byte
//! on. Half of the budget is kept for streams that are opened: however much those that are there have taken,
//! thousands can be added, and when even that is used up, a stream is refused and nothing else suffers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// What every stream has, in bytes: a peer may send this much on a stream that it opens, before any answer. What
/// clients say before they are answered seldom is more.
pub const INITIAL: u32 = 32 * 1024;
/// Window of a stream that is in use, where the budget has it, in bytes.
pub const USUAL: u32 = 256 * 1024;
/// The largest window, in bytes.
pub const LARGEST: u32 = 32 * 1024 * 1024;

/// A window lasts at least so long, as fast as its stream delivers: to grant costs as much as some packets do, so that a
/// fast stream on a short path is granted a quarter of it each millisecond, not each packet.
const SELDOM: Duration = Duration::from_millis(4);

/// What is granted is so much more than three quarters of a window at most.
const ABOUT: u32 = 1024;

/// No window takes more than this part of what it leaves of the budget: a stream that is idle or stalled keeps
/// what it took, because its peer may use it at any time, and those that come later must get something.
const PART: usize = 32;
/// The same for a stream that has not shown that it needs more.
const QUIET_PART: usize = 2048;

/// Bytes that the peers of this process may have on the way to it, all streams together.
#[derive(Debug)]
pub struct Budget {
    left: AtomicUsize,
    /// What growth leaves to streams that are opened.
    kept: usize,
}

impl Budget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> Budget {
        Budget { left: AtomicUsize::new(bytes), kept: bytes / 2 }
    }

    /// Takes all of `bytes`, or nothing.
    fn take(&self, bytes: u32) -> bool {
        let less = |left: usize| left.checked_sub(bytes as usize);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    /// Takes up to `wanted` bytes of what windows may grow by, and says how many it got.
    fn grow(&self, wanted: u32) -> u32 {
        let mut got = 0;
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            got = left.saturating_sub(self.kept).min(wanted as usize);
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

    /// The most that one window may have now, if it may have this part of what windows may grow by.
    fn share(&self, part: usize) -> u32 {
        let more = self.left().saturating_sub(self.kept) / part;
        INITIAL.saturating_add(more.try_into().unwrap_or(u32::MAX))
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

/// What a stream has that has not shown that it needs more.
fn usual(budget: &Budget) -> u32 {
    USUAL.min(budget.share(QUIET_PART))
}

impl ReceiveWindow {
    /// The window of a new stream, [`INITIAL`] bytes; `None` where the budget has not that much.
    pub fn new(budget: &Budget) -> Option<ReceiveWindow> {
        budget.take(INITIAL).then(|| Self::of(INITIAL))
    }

    /// The window of a stream that is refused: nothing may come.
    pub fn closed() -> ReceiveWindow {
        Self::of(0)
    }

    fn of(window: u32) -> ReceiveWindow {
        ReceiveWindow { window, granted: window.into(), received: 0, consumed: 0, last: None }
    }

    /// Gives a stream that has done nothing yet what it may have beforehand, so that it need not wait for it. Returns
    /// the offset that the peer may send up to, where it changed.
    pub fn lift(&mut self, budget: &Budget) -> Option<u64> {
        let more = usual(budget).saturating_sub(self.window);
        let more = budget.grow(more);
        self.window += more;
        let limit = self.consumed + u64::from(self.window);
        let more = limit > self.granted;
        self.granted = self.granted.max(limit);
        more.then_some(limit)
    }

    /// Counts bytes that arrived.
    pub fn on_received(&mut self, n: usize) -> Result<(), OverCredit> {
        let received = self.received + n as u64;
        if received > self.granted {
            return Err(OverCredit { over: received - self.granted });
        }
        self.received = received;
        Ok(())
    }

    /// Counts bytes that moved on. True where [`grant`](Self::grant) is due: about a quarter of the window is used, which
    /// of the usual one is the largest piece that is sent.
    pub fn on_consumed(&mut self, n: usize) -> bool {
        self.consumed += n as u64;
        self.granted - self.consumed <= u64::from(self.window - self.window / 4 + ABOUT)
    }

    /// Moves the offset that the peer may send up to and returns it, after fitting the window to what
    /// the stream delivered since the last time.
    pub fn grant(&mut self, now: Instant, round_trip: Duration, budget: &Budget) -> u64 {
        let (most, usual) = (budget.share(PART), usual(budget));
        let wanted = match self.last {
            None => usual,
            Some((then, before)) => {
                let elapsed = now.saturating_duration_since(then).max(Duration::from_micros(1));
                let delivered = (self.consumed - before) as f64;
                let ahead = (2 * round_trip).max(SELDOM);
                let wanted = delivered * ahead.as_secs_f64() / elapsed.as_secs_f64();
                (wanted.min(f64::from(LARGEST)) as u32).max(usual)
            }
        };
        if wanted > self.window {
            // At most doubled at once: one burst is no rate.
            let step = self.window.saturating_mul(2).max(USUAL);
            self.window += budget.grow(wanted.min(step).min(most).min(LARGEST).saturating_sub(self.window));
        } else if wanted <= self.window / 2 {
            // The peer may still use the rest of it.
            let less = (self.window / 4).saturating_sub(ABOUT).min(self.window.saturating_sub(INITIAL));
            self.window -= less;
            budget.give_back(less);
        }
        self.last = Some((now, self.consumed));
        self.granted = self.granted.max(self.consumed + u64::from(self.window));
        self.granted
    }

    /// Bytes that arrived and did not move on.
    pub fn held(&self) -> u64 {
        self.received - self.consumed
    }

    /// Bytes that ever arrived.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The window, in bytes.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// Gives what the window took back to the budget; called when the stream ends.
    pub fn release(&mut self, budget: &Budget) {
        budget.give_back(std::mem::take(&mut self.window));
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

    const MIB: usize = 1024 * 1024;

    fn window(budget: &Budget) -> ReceiveWindow {
        ReceiveWindow::new(budget).expect("the budget has it")
    }

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

    /// Delivers a little now and then.
    fn trickle(window: &mut ReceiveWindow, budget: &Budget) {
        let mut now = Instant::now() + Duration::from_secs(3600);
        for _ in 0..40 {
            now += Duration::from_secs(10);
            let n = (window.granted - window.received) as usize;
            window.on_received(n).unwrap();
            window.on_consumed(n);
            window.grant(now, Duration::from_millis(1), budget);
        }
    }

    #[tokio::test]
    async fn a_long_path_is_filled_and_a_quiet_stream_gives_back() {
        let budget = Budget::new(4096 * MIB);
        let mut window = window(&budget);
        assert_eq!(window.lift(&budget), Some(USUAL.into()));
        assert_eq!(window.lift(&budget), None);
        deliver(&mut window, &budget, Duration::from_millis(60), 40);
        assert_eq!(window.window(), LARGEST);
        assert_eq!(budget.left(), 4096 * MIB - LARGEST as usize);
        trickle(&mut window, &budget);
        assert!((USUAL..2 * USUAL).contains(&window.window()), "{} bytes", window.window());
        window.release(&budget);
        assert_eq!(budget.left(), 4096 * MIB);
    }

    /// Whatever those do that came first, and however fast they are, new streams find what they need.
    #[tokio::test]
    async fn half_of_the_budget_is_kept_for_streams_that_are_opened() {
        let budget = Budget::new(64 * MIB);
        let mut greedy: Vec<_> = (0..100).map(|_| window(&budget)).collect();
        for _ in 0..20 {
            for window in &mut greedy {
                window.lift(&budget);
                deliver(window, &budget, Duration::from_millis(100), 20);
            }
        }
        assert!(budget.left() >= 32 * MIB);
        let taken: usize = greedy.iter().map(|window| window.window() as usize).sum();
        assert_eq!(taken + budget.left(), 64 * MIB);
        let more = 32 * MIB / INITIAL as usize;
        let mut late: Vec<_> = (0..more).map(|_| window(&budget)).collect();
        late.extend(std::iter::from_fn(|| ReceiveWindow::new(&budget)));
        assert!(budget.left() < INITIAL as usize);
        assert!(late.iter_mut().all(|window| window.lift(&budget).is_none()));
        greedy.iter_mut().chain(&mut late).for_each(|window| window.release(&budget));
        assert_eq!(budget.left(), 64 * MIB);
    }

    /// Connections that are kept open and seldom used must not leave others without.
    #[tokio::test]
    async fn where_there_is_little_a_quiet_stream_makes_do_with_less() {
        let budget = Budget::new(64 * MIB);
        let mut quiet: Vec<_> = (0..500).map(|_| window(&budget)).collect();
        for window in &mut quiet {
            window.lift(&budget);
            deliver(window, &budget, Duration::from_millis(1), 3);
        }
        let before = budget.left();
        quiet.iter_mut().for_each(|window| trickle(window, &budget));
        assert!(budget.left() > before + 4 * MIB, "{} and then {} bytes", before, budget.left());
        let mut busy = window(&budget);
        deliver(&mut busy, &budget, Duration::from_millis(60), 40);
        assert!(busy.window() > USUAL, "{} bytes", busy.window());
    }

    /// A window that was grown is kept while its stream is idle or stalled: its peer may use it at any time.
    #[tokio::test]
    async fn who_came_first_leaves_something_to_who_comes_later() {
        let budget = Budget::new(1024 * MIB);
        let mut idle: Vec<_> = (0..64).map(|_| window(&budget)).collect();
        idle.iter_mut().for_each(|window| deliver(window, &budget, Duration::from_millis(60), 40));
        let mut late = window(&budget);
        deliver(&mut late, &budget, Duration::from_millis(60), 40);
        assert!(late.window() >= 4 * USUAL, "{} bytes", late.window());
        assert!(idle[0].window() >= LARGEST / 3, "{} bytes", idle[0].window());
    }

    #[test]
    fn one_byte_too_many_is_noticed() {
        let mut window = window(&Budget::new(MIB));
        window.on_received(INITIAL as usize).unwrap();
        assert_eq!(window.on_received(1), Err(OverCredit { over: 1 }));
        assert_eq!(ReceiveWindow::closed().on_received(1), Err(OverCredit { over: 1 }));
    }

    proptest! {
        #[test]
        fn an_obedient_sender_is_never_over_credit(
            steps in vec((1usize..400_000, 1usize..400_000, 1u64..50, 0u8..20), 1..200),
            size in 18u32..26,
        ) {
            let all = 1 << size;
            let budget = Budget::new(all);
            let (mut window, mut credit) = (window(&budget), SendCredit::new(INITIAL));
            let mut now = Instant::now();
            for (send, consume, pause, lift) in steps {
                now += Duration::from_millis(pause);
                let send = send.min(credit.available());
                credit.spend(send);
                prop_assert!(window.on_received(send).is_ok());
                let consume = consume.min(window.held() as usize);
                if window.on_consumed(consume) {
                    credit.raise(window.grant(now, Duration::from_millis(20), &budget));
                }
                if lift == 0 && let Some(limit) = window.lift(&budget) {
                    credit.raise(limit);
                }
                // Nothing may come that is not paid for.
                prop_assert!(window.granted - window.consumed <= u64::from(window.window()));
                prop_assert_eq!(window.window() as usize + budget.left(), all);
                // What arrived can always move on, so credit is never stuck at zero.
                prop_assert!(window.held() > 0 || credit.available() > 0);
            }
        }
    }
}
