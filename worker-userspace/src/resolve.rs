//! The system's resolver (`getaddrinfo`): `/etc/hosts`, search domains and nsswitch mean here what they mean to every
//! other program of the worker's host.
//!
//! What must hold: a look-up takes a thread until the system's resolver answers, whoever still waits; so there are not too
//! many at once, whoever asks for a name that is looked up already waits for the same answer, and a name that was not found
//! is not asked for again at once.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dns_lookup::{AddrInfoHints, LookupErrorKind, SockType, getaddrinfo};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use crate::connect;
use crate::refusal::{Code, Refusal};
use crate::target::Name;

/// Look-ups under way at once; each takes a thread.
const LOOKUPS: usize = 128;
/// How long it is remembered that a name was not found.
const FAILED: Duration = Duration::from_secs(2);
/// Answers that are remembered at once.
const REMEMBERED: usize = 4096;

type Answer = Result<Vec<IpAddr>, Refusal>;

/// Asks; blocks.
type Ask = Arc<dyn Fn(&Name) -> Answer + Send + Sync>;

/// Look-ups. Clones are the same.
#[derive(Clone)]
pub struct Resolver {
    pub(crate) places: Arc<Semaphore>,
    /// How long an answer with addresses is good for others.
    kept: Duration,
    known: Arc<Mutex<HashMap<Name, Known>>>,
    ask: Ask,
}

/// A look-up that is under way, or its answer.
#[derive(Debug)]
struct Known {
    progress: watch::Sender<Progress>,
    /// Until when it is good, once it is there.
    ends: Option<Instant>,
}

#[derive(Debug, Clone)]
enum Progress {
    /// For a place.
    Waiting,
    Asked,
    Done(Answer),
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resolver({} free)", self.places.available_permits())
    }
}

impl Default for Resolver {
    fn default() -> Resolver {
        Resolver::keeping(Duration::ZERO)
    }
}

impl Resolver {
    /// One that gives an answer to others for this long, too.
    pub fn keeping(kept: Duration) -> Resolver {
        Resolver::asking(kept, Arc::new(system))
    }

    fn asking(kept: Duration, ask: Ask) -> Resolver {
        Resolver { places: Arc::new(Semaphore::new(LOOKUPS)), kept, known: Arc::default(), ask }
    }

    /// The addresses of a name. Waits for a place until `until`, and from then on at most `patience` for the answer.
    ///
    /// # Errors
    /// [`Code::Limit`] where there was no place, so that nobody was asked; else what the resolver said, or that it
    /// said nothing.
    pub async fn look_up(&self, name: &Name, until: Instant, patience: Duration) -> Answer {
        let mut watched = self.watch(name);
        let begun = timeout_at(until, watched.wait_for(|now| !matches!(now, Progress::Waiting))).await;
        match begun.map(|begun| begun.map(drop)) {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(failed(name, &"the look-up has ended without an answer")),
            Err(_) => {
                let text = format!(
                    "resolving {name}: {LOOKUPS} other look-ups are under way, and none has ended in time: check this host's DNS"
                );
                return Err(Refusal::new(Code::Limit, text));
            }
        }
        let done = watched.wait_for(|now| matches!(now, Progress::Done(_)));
        match timeout_at(until.min(Instant::now() + patience), done).await {
            Ok(Ok(now)) => match &*now {
                Progress::Done(answer) => answer.clone(),
                Progress::Waiting | Progress::Asked => Err(failed(name, &"there is no answer")),
            },
            Ok(Err(_)) => Err(failed(name, &"the look-up has ended without an answer")),
            Err(_) => Err(failed(name, &format_args!("no answer within {patience:?}"))),
        }
    }

    /// The look-up of this name: the one that is under way, or a new one.
    fn watch(&self, name: &Name) -> watch::Receiver<Progress> {
        let mut known = lock(&self.known);
        let now = Instant::now();
        let good = |known: &Known| known.ends.is_none_or(|ends| now < ends);
        if let Some(found) = known.get(name).filter(|found| good(found)) {
            return found.progress.subscribe();
        }
        if known.len() >= REMEMBERED {
            known.retain(|_, known| good(known));
        }
        let (progress, watched) = watch::channel(Progress::Waiting);
        known.insert(name.clone(), Known { progress: progress.clone(), ends: None });
        drop(known);
        tokio::spawn(self.clone().run(name.clone(), progress));
        watched
    }

    async fn run(self, name: Name, progress: watch::Sender<Progress>) {
        let place = loop {
            tokio::select! {
                biased;
                place = self.places.clone().acquire_owned() => break place,
                () = progress.closed() => {
                    let mut known = lock(&self.known);
                    // Nobody waits, and nobody can have come since.
                    if progress.receiver_count() == 0 {
                        known.remove(&name);
                        return;
                    }
                }
            }
        };
        progress.send_replace(Progress::Asked);
        let (ask, asked) = (self.ask.clone(), name.clone());
        let looked_up = tokio::task::spawn_blocking(move || {
            // Held until the thread is done, even where nobody waits for it any more.
            let _place = place;
            ask(&asked)
        });
        let answer = looked_up.await.unwrap_or_else(|error| Err(failed(&name, &error)));
        let kept = if answer.is_ok() { self.kept } else { FAILED };
        let mut known = lock(&self.known);
        progress.send_replace(Progress::Done(answer));
        match known.len() {
            _ if kept.is_zero() => drop(known.remove(&name)),
            // So many names that are not there: then each is asked for.
            REMEMBERED.. => drop(known.remove(&name)),
            _ => {
                if let Some(known) = known.get_mut(&name) {
                    known.ends = Some(Instant::now() + kept);
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(name: &Name, what: &dyn fmt::Display) -> Refusal {
    Refusal::new(Code::ResolveFailed, format!("resolving {name}: {what}"))
}

/// Asks the system's resolver.
fn system(name: &Name) -> Answer {
    let hints = AddrInfoHints { socktype: SockType::Stream.into(), ..AddrInfoHints::default() };
    let found = getaddrinfo(Some(name.as_str()), None, Some(hints)).map_err(|error| match error.kind() {
        LookupErrorKind::NoName | LookupErrorKind::NoData => {
            Refusal::new(Code::NameNotFound, format!("{name}: the worker's resolver knows no such name"))
        }
        _ => failed(name, &io::Error::from(error)),
    })?;
    let addresses: io::Result<Vec<IpAddr>> =
        found.map(|found| found.map(|found| found.sockaddr.ip())).collect();
    Ok(connect::interleaved(addresses.map_err(|error| failed(name, &error))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    const SOON: Duration = Duration::from_secs(30);

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn addresses() -> Vec<IpAddr> {
        vec!["10.77.0.1".parse().unwrap()]
    }

    #[tokio::test]
    async fn who_asks_for_the_same_name_waits_for_the_same_answer() {
        let (answer, answers) = mpsc::channel();
        let (answers, asked) = (Mutex::new(answers), Arc::new(AtomicUsize::new(0)));
        let counted = asked.clone();
        let resolver = Resolver::asking(
            Duration::ZERO,
            Arc::new(move |_| {
                counted.fetch_add(1, Ordering::Relaxed);
                lock(&answers).recv().expect("an answer")
            }),
        );
        let until = Instant::now() + SOON;
        // Many more than there are places, and whoever is impatient leaves the thread to the others.
        for _ in 0..2 * LOOKUPS {
            let impatient = resolver.look_up(&name("a.example"), until, Duration::ZERO).await.unwrap_err();
            assert_eq!(impatient.code, Code::ResolveFailed, "{impatient}");
        }
        let other = tokio::spawn({
            let resolver = resolver.clone();
            async move { resolver.look_up(&name("a.example"), until, SOON).await }
        });
        let wanted = name("a.example");
        let same = resolver.look_up(&wanted, until, SOON);
        answer.send(Ok(addresses())).unwrap();
        assert_eq!(same.await.unwrap(), addresses());
        assert_eq!(other.await.unwrap().unwrap(), addresses());
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        // What was found is the system's to remember.
        answer.send(Ok(addresses())).unwrap();
        resolver.look_up(&name("a.example"), until, SOON).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        assert_eq!(lock(&resolver.known).len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_found_is_not_asked_for_again_at_once_and_what_is_kept_neither() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let kept = Duration::from_secs(5);
        let resolver = Resolver::asking(
            kept,
            Arc::new(move |asked| {
                counted.fetch_add(1, Ordering::Relaxed);
                match asked.as_str() {
                    "proxy.example" => Ok(addresses()),
                    _ => Err(Refusal::new(Code::NameNotFound, "no such name".to_owned())),
                }
            }),
        );
        for (text, remembered) in [("proxy.example", kept), ("none.example", FAILED)] {
            let before = asked.load(Ordering::Relaxed);
            let look_up = async || resolver.look_up(&name(text), Instant::now() + SOON, SOON).await.is_ok();
            let found = look_up().await;
            assert_eq!(found, text == "proxy.example");
            tokio::time::advance(remembered - Duration::from_millis(1)).await;
            assert_eq!(look_up().await, found);
            assert_eq!(asked.load(Ordering::Relaxed), before + 1, "{text}");
            tokio::time::advance(Duration::from_millis(2)).await;
            assert_eq!(look_up().await, found);
            assert_eq!(asked.load(Ordering::Relaxed), before + 2, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_there_is_no_place_nobody_is_asked_and_nothing_is_left() {
        let resolver = Resolver::asking(Duration::ZERO, Arc::new(|_| unreachable!("nobody is asked")));
        let all = LOOKUPS.try_into().unwrap();
        let _taken = resolver.places.clone().acquire_many_owned(all).await.unwrap();
        let until = Instant::now() + SOON;
        let refusal = resolver.look_up(&name("a.example"), until, SOON).await.unwrap_err();
        assert_eq!(refusal.code, Code::Limit, "{refusal}");
        tokio::time::timeout(SOON, async {
            while !lock(&resolver.known).is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("nobody waits for it any more");
    }
}
