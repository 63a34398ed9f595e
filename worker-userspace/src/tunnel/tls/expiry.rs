//! Certificates that end soon: written down where they are read or seen, told at once and then daily.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval};

use super::certificate::Facts;
use crate::drain::Drain;

/// Days before its end from which on a certificate is warned of.
pub const SOON: i64 = 30;
/// How often it is told.
const AGAIN: Duration = Duration::from_secs(24 * 3600);
/// Certificates of one source that are kept, those that end first: a bundle of roots may have hundreds.
const MOST: usize = 20;

type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// All certificates that this daemon depends on. Clones are the same.
#[derive(Clone)]
pub struct Expiry {
    clock: Clock,
    noted: Arc<Mutex<BTreeMap<Source, Vec<Noted>>>>,
}

/// Where a certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The appliance's own, and the rest of its chain.
    Appliance,
    /// Who signs the client certificates that an appliance takes.
    ClientAuthorities,
    /// What the appliance showed a worker when it was last dialled.
    Dialled,
    /// What the proxy showed a worker, likewise.
    Proxy,
    /// What a worker trusts, of its `ca_file`.
    AuthoritiesFile,
    /// The same of its `ca_dir`.
    AuthoritiesDirectory,
    /// What a worker shows.
    Client,
}

/// A certificate of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// Its number there, from 1 on.
    pub number: usize,
    /// What it says.
    pub facts: Facts,
}

impl Source {
    /// The key that it stands under, or who showed it.
    pub fn word(self) -> &'static str {
        match self {
            Source::Appliance => "appliance.certificate",
            Source::ClientAuthorities => "appliance.client_ca_file",
            Source::Dialled => "appliance",
            Source::Proxy => "proxy",
            Source::AuthoritiesFile => "ca_file",
            Source::AuthoritiesDirectory => "ca_dir",
            Source::Client => "client_certificate",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Source::Appliance => "renew it and replace the files; no restart is needed",
            Source::Dialled => "have it renewed at the appliance, if it was not since this worker dialled",
            Source::Proxy => "have it renewed at the proxy, if it was not since this worker dialled",
            Source::Client => "renew it and replace the files; the next dial takes them",
            Source::ClientAuthorities | Source::AuthoritiesFile | Source::AuthoritiesDirectory => {
                "add the certificate that follows it, and remove this one when nothing needs it"
            }
        }
    }
}

impl Default for Expiry {
    fn default() -> Expiry {
        Expiry::by(Timestamp::now)
    }
}

impl fmt::Debug for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expiry").field("noted", &self.noted).finish_non_exhaustive()
    }
}

impl Expiry {
    /// One that goes by this clock.
    pub fn by(clock: impl Fn() -> Timestamp + Send + Sync + 'static) -> Expiry {
        Expiry { clock: Arc::new(clock), noted: Arc::default() }
    }

    /// What its clock says.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    fn noted(&self) -> MutexGuard<'_, BTreeMap<Source, Vec<Noted>>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what a source has now, and tells where that is news.
    pub fn note(&self, source: Source, facts: Vec<Facts>) {
        let mut list: Vec<Noted> = (1..).zip(facts).map(|(number, facts)| Noted { number, facts }).collect();
        if list.len() > MOST {
            list.sort_by_key(|noted| (noted.facts.not_after, noted.number));
            list.truncate(MOST);
        }
        let lines = lines(source, &list, self.now());
        let before = self.noted().insert(source, list.clone());
        if before.as_ref() != Some(&list) {
            tell(&lines);
        }
    }

    /// All of them.
    pub fn report(&self) -> Vec<(Source, Noted)> {
        let noted = self.noted();
        noted.iter().flat_map(|(source, list)| list.iter().map(|noted| (*source, noted.clone()))).collect()
    }

    /// A line for each that has ended or ends within [`SOON`] days.
    pub fn warnings(&self) -> Vec<String> {
        let now = self.now();
        self.noted().iter().flat_map(|(source, list)| lines(*source, list, now)).collect()
    }

    /// Tells them daily.
    pub async fn run(self, drain: Drain) {
        let mut days = interval(AGAIN);
        days.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What is there at the start was told when it was noted.
        days.tick().await;
        loop {
            tokio::select! {
                _ = days.tick() => tell(&self.warnings()),
                () = drain.stopping() => return,
            }
        }
    }
}

fn tell(lines: &[String]) {
    for line in lines {
        tracing::warn!("{line}");
    }
}

fn lines(source: Source, list: &[Noted], now: Timestamp) -> Vec<String> {
    let soon = list.iter().filter(|noted| noted.facts.days_left(now) < SOON);
    soon.map(|Noted { number, facts }| {
        let days = facts.days_left(now);
        let when = match days {
            ..0 => "has expired".to_owned(),
            0 => "expires today".to_owned(),
            1 => "expires in 1 day".to_owned(),
            _ => format!("expires in {days} days"),
        };
        format!("{}: certificate {number} {when} ({facts}): {}", source.word(), source.remedy())
    })
    .collect()
}
