//! The arithmetic of a wire: which packets arrive, and when.
//!
//! No clock and no device in here, so the tests below are exact. A rate is kept with a virtual clock: the wire is
//! busy until a known time, a packet's turn comes then, and what waits in the queue is the time until then.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::PathSettings;

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It arrives at this time, never before a packet that was sent earlier.
    Arrives(Instant),
    /// It is lost on the wire.
    Lost,
    /// The queue has no room for it.
    Overflows,
}

/// One direction of a wire.
pub(super) struct Link {
    settings: PathSettings,
    luck: StdRng,
    /// The wire is sending until then.
    busy_until: Instant,
    /// The latest arrival promised: a later packet does not overtake it when the delay is shortened.
    last_arrival: Instant,
}

impl Link {
    pub(super) fn new(settings: PathSettings, now: Instant) -> Link {
        let luck = StdRng::seed_from_u64(settings.seed);
        Link { settings, luck, busy_until: now, last_arrival: now }
    }

    /// Takes new settings for the packets to come.
    pub(super) fn set(&mut self, settings: PathSettings) {
        if settings == self.settings {
            return;
        }
        if settings.seed != self.settings.seed {
            self.luck = StdRng::seed_from_u64(settings.seed);
        }
        self.settings = settings;
    }

    /// Decides over a packet of `bytes` that reached the wire at `now`.
    pub(super) fn send(&mut self, bytes: usize, now: Instant) -> Fate {
        let sent = match self.settings.rate {
            None => now,
            Some(rate) => {
                let wait = self.busy_until.saturating_duration_since(now);
                // The queue is full when a wait this long stands for more bytes than it holds. A packet that
                // finds the wire idle always passes, else a small queue would mean an MTU.
                if !wait.is_zero()
                    && wait + sending_time(bytes, rate) > sending_time(self.settings.queue, rate)
                {
                    return Fate::Overflows;
                }
                now + wait + sending_time(bytes, rate)
            }
        };
        self.busy_until = sent;
        // A lost packet has used the wire all the same.
        if self.settings.loss > 0.0 && self.luck.random_bool(self.settings.loss) {
            return Fate::Lost;
        }
        self.last_arrival = self.last_arrival.max(sent + self.settings.delay);
        Fate::Arrives(self.last_arrival)
    }
}

fn sending_time(bytes: usize, rate: u64) -> Duration {
    let nanos = bytes as u128 * 8 * 1_000_000_000 / u128::from(rate);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_cable_delivers_at_once() {
        let now = Instant::now();
        let mut link = Link::new(PathSettings::default(), now);
        assert_eq!(link.send(1500, now), Fate::Arrives(now));
        assert_eq!(link.send(65_000, now + MS), Fate::Arrives(now + MS));
    }

    #[test]
    fn delay_and_rate_add_up() {
        let now = Instant::now();
        // 8 Mbit/s: a millisecond for each 1000 bytes.
        let settings = PathSettings { delay: 25 * MS, rate: Some(8_000_000), ..PathSettings::default() };
        let mut link = Link::new(settings, now);
        assert_eq!(link.send(1000, now), Fate::Arrives(now + 26 * MS));
        assert_eq!(link.send(1000, now), Fate::Arrives(now + 27 * MS));
        // The wire has been idle since 2 ms.
        assert_eq!(link.send(1000, now + 50 * MS), Fate::Arrives(now + 76 * MS));
    }

    #[test]
    fn a_full_queue_drops_the_newcomer_and_drains_at_the_rate() {
        let now = Instant::now();
        let settings = PathSettings { rate: Some(8_000_000), queue: 3000, ..PathSettings::default() };
        let mut link = Link::new(settings, now);
        for n in 1..=3 {
            assert_eq!(link.send(1000, now), Fate::Arrives(now + n * MS));
        }
        assert_eq!(link.send(1000, now), Fate::Overflows);
        assert_eq!(link.send(1000, now + MS), Fate::Arrives(now + 4 * MS));
    }

    #[test]
    fn a_queue_smaller_than_a_packet_still_passes_packets_one_by_one() {
        let now = Instant::now();
        let settings = PathSettings { rate: Some(8_000_000), queue: 10, ..PathSettings::default() };
        let mut link = Link::new(settings, now);
        assert_eq!(link.send(1000, now), Fate::Arrives(now + MS));
        assert_eq!(link.send(1000, now), Fate::Overflows);
        assert_eq!(link.send(1000, now + MS), Fate::Arrives(now + 2 * MS));
    }

    #[test]
    fn a_shorter_delay_does_not_reorder() {
        let now = Instant::now();
        let slow = PathSettings { delay: 100 * MS, ..PathSettings::default() };
        let mut link = Link::new(slow, now);
        assert_eq!(link.send(1000, now), Fate::Arrives(now + 100 * MS));
        link.set(PathSettings { delay: MS, ..slow });
        assert_eq!(link.send(1000, now), Fate::Arrives(now + 100 * MS));
        assert_eq!(link.send(1000, now + 200 * MS), Fate::Arrives(now + 201 * MS));
    }

    #[test]
    fn losses_follow_the_seed() {
        let now = Instant::now();
        let fates = |seed| {
            let mut link = Link::new(PathSettings { loss: 0.1, seed, ..PathSettings::default() }, now);
            (0..10_000).map(|_| link.send(1000, now)).collect::<Vec<_>>()
        };
        let first = fates(7);
        assert_eq!(first, fates(7));
        assert_ne!(first, fates(8));
        let lost = first.iter().filter(|fate| **fate == Fate::Lost).count();
        assert!((850..1150).contains(&lost), "{lost} of 10000 lost at 10 %");
    }

    #[test]
    fn a_loss_of_one_loses_everything() {
        let now = Instant::now();
        let mut link = Link::new(PathSettings { loss: 1.0, ..PathSettings::default() }, now);
        assert!((0..100).all(|_| link.send(1000, now) == Fate::Lost));
    }
}
