//! How many attempts with a wrong token are judged and told; the rest is noise.
//!
//! What must hold: who shows the right token is not asked here, so nobody is kept out by what others do; one source
//! that tries on does not hide the failures of others; the table is bounded.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// Failed attempts of one source: so many at once, then one for each pause.
const EACH: Rate = Rate { burst: 10, pause: Duration::from_secs(6) };
/// Failed attempts of all sources together.
const ALL: Rate = Rate { burst: 100, pause: Duration::from_millis(600) };
/// Sources that are remembered.
const SOURCES: usize = 4096;

#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: u32,
    pause: Duration,
}

/// When the last of the failures would have happened, had they come one for each pause.
#[derive(Debug, Clone, Copy)]
struct Bucket(Instant);

impl Bucket {
    /// How long until a failure may be added; zero: now.
    fn wait(self, rate: Rate, now: Instant) -> Duration {
        self.0.saturating_duration_since(now).saturating_sub(rate.pause * (rate.burst - 1))
    }

    fn add(&mut self, rate: Rate, now: Instant) {
        self.0 = self.0.max(now) + rate.pause;
    }
}

#[derive(Debug)]
struct Source {
    failures: Bucket,
    told: bool,
}

/// All failed attempts.
#[derive(Debug)]
pub(super) struct Limits {
    all: Bucket,
    all_told: bool,
    sources: HashMap<IpAddr, Source>,
}

/// Too many failed attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limited {
    /// When the next one is judged.
    pub(super) wait: Duration,
    /// True for the first one since the last that was judged: the others are not worth an event.
    pub(super) first: bool,
}

impl Limits {
    pub(super) fn new() -> Limits {
        Limits { all: Bucket(Instant::now()), all_told: false, sources: HashMap::new() }
    }

    /// Counts a failed attempt.
    ///
    /// # Errors
    /// There were too many: this one is not worth an answer of its own.
    pub(super) fn failed(&mut self, source: IpAddr) -> Result<(), Limited> {
        let now = Instant::now();
        let limited =
            |wait: Duration, told: &mut bool| Err(Limited { wait, first: !std::mem::replace(told, true) });
        if let Some(known) = self.sources.get_mut(&source) {
            let wait = known.failures.wait(EACH, now);
            if !wait.is_zero() {
                return limited(wait, &mut known.told);
            }
        }
        let wait = if self.has_room(source, now) { self.all.wait(ALL, now) } else { EACH.pause };
        if !wait.is_zero() {
            return limited(wait, &mut self.all_told);
        }
        self.all_told = false;
        self.all.add(ALL, now);
        let known = self.sources.entry(source).or_insert(Source { failures: Bucket(now), told: false });
        known.told = false;
        known.failures.add(EACH, now);
        Ok(())
    }

    /// True where `source` is remembered or can be.
    fn has_room(&mut self, source: IpAddr, now: Instant) -> bool {
        if self.sources.len() >= SOURCES && !self.sources.contains_key(&source) {
            self.sources.retain(|_, known| known.failures.0 > now);
        }
        self.sources.len() < SOURCES || self.sources.contains_key(&source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn source(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into()
    }

    #[tokio::test(start_paused = true)]
    async fn one_source_is_limited_by_itself_and_recovers() {
        let mut limits = Limits::new();
        for _ in 0..EACH.burst {
            limits.failed(source(1)).unwrap();
        }
        let limited = limits.failed(source(1)).unwrap_err();
        assert_eq!(limited, Limited { wait: EACH.pause, first: true });
        assert!(!limits.failed(source(1)).unwrap_err().first);
        limits.failed(source(2)).unwrap();
        advance(EACH.pause).await;
        limits.failed(source(1)).unwrap();
        assert!(limits.failed(source(1)).unwrap_err().first);
        advance(EACH.pause * EACH.burst).await;
        for _ in 0..EACH.burst {
            limits.failed(source(1)).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_sources_are_limited_together() {
        let mut limits = Limits::new();
        for n in 1..=ALL.burst {
            limits.failed(source(n)).unwrap();
        }
        assert_eq!(limits.failed(source(1000)), Err(Limited { wait: ALL.pause, first: true }));
        assert!(!limits.failed(source(1001)).unwrap_err().first);
        advance(ALL.pause).await;
        limits.failed(source(1000)).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_sources_are_remembered_and_old_ones_forgotten() {
        let mut limits = Limits::new();
        for n in 0..SOURCES as u32 + 10 {
            let _ = limits.failed(source(n));
            advance(ALL.pause).await;
            assert!(limits.sources.len() <= SOURCES);
        }
        assert!(limits.failed(source(99_999)).is_ok());
    }
}
