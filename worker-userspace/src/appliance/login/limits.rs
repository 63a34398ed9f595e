//! How often somebody may come with a token that does not work.
//!
//! What must hold: one source that tries on does not keep others out, and many sources do not keep those out
//! that have been let in before; the table is bounded.

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
/// How long it counts that a source was let in.
const TRUST: Duration = Duration::from_secs(24 * 3600);

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
    trusted_until: Option<Instant>,
    told: bool,
}

impl Source {
    fn is_trusted(&self, now: Instant) -> bool {
        self.trusted_until.is_some_and(|until| now < until)
    }
}

/// All attempts.
#[derive(Debug)]
pub(super) struct Limits {
    all: Bucket,
    all_told: bool,
    sources: HashMap<IpAddr, Source>,
}

/// Too many attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limited {
    /// When the next one may be made.
    pub(super) wait: Duration,
    /// True for the first refusal since the last attempt: the others are not worth an event.
    pub(super) first: bool,
}

impl Limits {
    pub(super) fn new() -> Limits {
        Limits { all: Bucket(Instant::now()), all_told: false, sources: HashMap::new() }
    }

    /// Counts an attempt that is `right` or not.
    ///
    /// # Errors
    /// There were too many; whether this one is right is not to be told.
    pub(super) fn attempt(&mut self, source: IpAddr, right: bool) -> Result<(), Limited> {
        let now = Instant::now();
        let known = self.sources.get_mut(&source);
        if let Some(known) = known {
            let wait = known.failures.wait(EACH, now);
            if !wait.is_zero() {
                let first = !std::mem::replace(&mut known.told, true);
                return Err(Limited { wait, first });
            }
        }
        if !self.sources.get(&source).is_some_and(|known| known.is_trusted(now)) {
            let full = !self.has_room(source, now);
            let wait = if full { EACH.pause } else { self.all.wait(ALL, now) };
            if !wait.is_zero() {
                let first = !std::mem::replace(&mut self.all_told, true);
                return Err(Limited { wait, first });
            }
        }
        self.all_told = false;
        let known = self.sources.entry(source).or_insert(Source {
            failures: Bucket(now),
            trusted_until: None,
            told: false,
        });
        known.told = false;
        match right {
            true => known.trusted_until = Some(now + TRUST),
            false => {
                known.failures.add(EACH, now);
                self.all.add(ALL, now);
            }
        }
        Ok(())
    }

    /// True where `source` is remembered or can be.
    fn has_room(&mut self, source: IpAddr, now: Instant) -> bool {
        if self.sources.len() >= SOURCES && !self.sources.contains_key(&source) {
            self.sources.retain(|_, known| known.failures.0 > now || known.is_trusted(now));
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
            limits.attempt(source(1), false).unwrap();
        }
        let limited = limits.attempt(source(1), true).unwrap_err();
        assert_eq!(limited, Limited { wait: EACH.pause, first: true });
        assert!(!limits.attempt(source(1), false).unwrap_err().first);
        limits.attempt(source(2), true).unwrap();
        advance(EACH.pause).await;
        limits.attempt(source(1), false).unwrap();
        assert!(limits.attempt(source(1), false).unwrap_err().first);
        advance(EACH.pause * EACH.burst).await;
        for _ in 0..EACH.burst {
            limits.attempt(source(1), false).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_sources_are_limited_together_but_for_those_that_were_let_in() {
        let mut limits = Limits::new();
        limits.attempt(source(0), true).unwrap();
        for n in 1..=ALL.burst {
            limits.attempt(source(n), false).unwrap();
        }
        assert!(limits.attempt(source(1000), true).is_err());
        limits.attempt(source(0), true).unwrap();
        advance(TRUST).await;
        limits.attempt(source(1000), true).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_sources_are_remembered_and_old_ones_forgotten() {
        let mut limits = Limits::new();
        for n in 0..SOURCES as u32 + 10 {
            let _ = limits.attempt(source(n), false);
            advance(ALL.pause).await;
            assert!(limits.sources.len() <= SOURCES);
        }
        assert!(limits.attempt(source(99_999), true).is_ok());
    }
}
