//! What a lane has moved lately: how much the kernel is to keep unsent of it, and how long a stream's turn is.

use std::time::Duration;

use tokio::time::Instant;

use crate::tunnel::lane::{BATCH, TURN};
use crate::tunnel::stream::LITTLE;
use crate::tunnel::transport;

/// It is fitted to the rate with each tick, and after so many bytes, but not sooner than this.
const BYTES: u64 = 4 * 1024 * 1024;
const SOON: Duration = Duration::from_millis(20);

pub(super) struct Pace {
    fitted: Instant,
    /// Payload bytes sent by then.
    sent: u64,
    unsent: u32,
    /// What is left of the turn of the first that is ready.
    rest: Option<usize>,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Pace {
        Pace { fitted: now, sent: 0, unsent: transport::unsent(0.0, Duration::ZERO), rest: None }
    }

    /// True where so much was sent that it is to be fitted before the next tick. Costs no look at a clock.
    pub(super) fn is_due(&self, sent: u64) -> bool {
        sent - self.sent > BYTES
    }

    /// Bytes that the next stream may send while others wait: the faster the lane, the less time they take.
    pub(super) fn turn(&mut self) -> usize {
        self.rest.take().unwrap_or((self.unsent as usize / 8).clamp(TURN, BATCH))
    }

    /// True where the end of a message cut a turn short: the next message begins with the rest of it. Else that might be the same
    /// stream's each time.
    pub(super) fn goes_on(&mut self, turn: usize, taken: usize) -> bool {
        self.rest = turn.checked_sub(taken).filter(|rest| *rest > LITTLE);
        self.rest.is_some()
    }

    /// How much the kernel is to keep unsent from now on, where that is not as before.
    pub(super) fn fit(&mut self, sent: u64, round_trip: Duration) -> Option<u32> {
        let elapsed = self.fitted.elapsed();
        if elapsed < SOON {
            return None;
        }
        self.fitted += elapsed;
        let before = std::mem::replace(&mut self.sent, sent);
        let unsent = transport::unsent((sent - before) as f64 / elapsed.as_secs_f64(), round_trip);
        (std::mem::replace(&mut self.unsent, unsent) != unsent).then_some(unsent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_fast_lane_has_more_unsent_and_an_idle_one_little_again() {
        let mut pace = Pace::new(Instant::now());
        let mut sent = 0;
        let mut after = async |rate: u64, time: Duration, round_trip: Duration| {
            tokio::time::advance(time).await;
            sent += rate * time.as_millis() as u64 / 1000;
            let fitted = (pace.is_due(sent), pace.fit(sent, round_trip));
            assert!((TURN..=BATCH).contains(&pace.turn()));
            assert!(pace.turn() == TURN || rate > 32_000_000, "{rate}");
            fitted
        };
        let soon = Duration::from_millis(100);
        let (near, far) = (Duration::from_millis(1), Duration::from_millis(60));
        assert_eq!(after(1_000_000, soon, near).await, (false, None), "as little as before");
        assert_eq!(after(100_000_000, soon, near).await, (true, Some(400_000)));
        assert_eq!(after(100_000_000, soon, near).await, (true, None));
        assert_eq!(after(100_000_000, soon, far).await, (true, Some(1_500_000)), "a quarter of the way");
        assert_eq!(after(10_000_000_000, soon, near).await, (true, Some(2 * 1024 * 1024)), "there is an end");
        assert_eq!(
            after(10_000_000_000, Duration::from_millis(1), near).await,
            (true, None),
            "too soon to tell"
        );
        assert_eq!(after(0, Duration::from_secs(1), near).await.1, Some(128 * 1024));
    }
}
