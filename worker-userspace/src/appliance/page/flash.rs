//! What an action has to say on the page that it leads to: kept until that page is asked for, and not for long.
//!
//! What must hold: a new key is given out once, to the session that made it, and is gone from memory soon in any
//! case.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::layout::Flash;
use super::worker_form::NewKey;

/// What is not asked for is forgotten after this time.
const KEPT: Duration = Duration::from_secs(60);
/// What may wait at once; one more takes the place of the oldest.
const MOST: usize = 64;

/// What waits.
enum Waiting {
    Flash(Flash),
    Key(NewKey),
}

struct Entry {
    /// The session's CSRF word: each session has its own.
    session: String,
    path: String,
    until: Instant,
    waiting: Waiting,
}

/// What waits for pages.
#[derive(Default)]
pub(super) struct Flashes(Mutex<Vec<Entry>>);

impl Flashes {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        entries.retain(|entry| now < entry.until);
        entries
    }

    fn put(&self, session: &str, path: &str, waiting: Waiting) {
        let mut entries = self.entries();
        entries.retain(|entry| entry.session != session || entry.path != path);
        if entries.len() >= MOST {
            entries.remove(0);
        }
        let (session, path) = (session.to_owned(), path.to_owned());
        entries.push(Entry { session, path, until: Instant::now() + KEPT, waiting });
    }

    /// Takes out what is kept for a page and is of the kind that `of` is for.
    fn take<T>(&self, session: &str, path: &str, of: impl Fn(&Waiting) -> Option<T>) -> Option<T> {
        let mut entries = self.entries();
        let mine = |entry: &Entry| entry.session == session && entry.path == path;
        let (at, found) = entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| mine(entry))
            .find_map(|(at, entry)| of(&entry.waiting).map(|found| (at, found)))?;
        entries.remove(at);
        Some(found)
    }

    /// Keeps words for a page.
    pub(super) fn say(&self, session: &str, path: &str, flash: Flash) {
        self.put(session, path, Waiting::Flash(flash));
    }

    /// The words for a page.
    pub(super) fn said(&self, session: &str, path: &str) -> Option<Flash> {
        self.take(session, path, |waiting| match waiting {
            Waiting::Flash(flash) => Some(flash.clone()),
            Waiting::Key(_) => None,
        })
    }

    /// Keeps a key for its page.
    pub(super) fn show(&self, session: &str, path: &str, key: NewKey) {
        self.put(session, path, Waiting::Key(key));
    }

    /// The key for a page.
    pub(super) fn shown(&self, session: &str, path: &str) -> Option<NewKey> {
        self.take(session, path, |waiting| match waiting {
            Waiting::Key(key) => Some(key.clone()),
            Waiting::Flash(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn flash(done: &str) -> Flash {
        Flash { done: done.into(), warnings: Vec::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_given_out_once_to_its_session_and_not_late() {
        let flashes = Flashes::default();
        let key = super::super::samples::key();
        flashes.show("one", "/workers/1/key", key.clone());
        assert_eq!(flashes.shown("another", "/workers/1/key"), None);
        assert_eq!(flashes.shown("one", "/workers/2/key"), None);
        assert_eq!(flashes.said("one", "/workers/1/key"), None, "a key is no flash");
        assert_eq!(flashes.shown("one", "/workers/1/key"), Some(key.clone()));
        assert_eq!(flashes.shown("one", "/workers/1/key"), None);
        flashes.show("one", "/workers/1/key", key);
        advance(KEPT).await;
        assert_eq!(flashes.shown("one", "/workers/1/key"), None);
        assert!(flashes.entries().is_empty(), "it is gone from memory");
    }

    #[tokio::test(start_paused = true)]
    async fn words_wait_for_their_page_and_only_so_many() {
        let flashes = Flashes::default();
        flashes.say("one", "/workers", flash("old"));
        flashes.say("one", "/workers", flash("new"));
        assert_eq!(flashes.said("one", "/workers"), Some(flash("new")));
        for n in 0..=MOST {
            flashes.say("one", &format!("/{n}"), flash("x"));
        }
        assert_eq!(flashes.entries().len(), MOST);
        assert_eq!(flashes.said("one", "/0"), None);
        assert!(flashes.said("one", "/64").is_some());
    }
}
