//! Browsers that are signed in.
//!
//! What must hold: a session's secret is kept as a hash; it ends after half an hour without a request and after
//! twelve hours in any case; there are only so many.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rand::rand_core::OsError;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::config::secret;

/// A session that is not used ends after this time.
const IDLE: Duration = Duration::from_secs(30 * 60);
/// Every session ends after this time.
const LONGEST: Duration = Duration::from_secs(12 * 3600);
/// Sessions at once; one more ends the one that was not used for longest.
const MOST: usize = 64;

/// A browser that is signed in.
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    /// Hash of its secret.
    id: [u8; 32],
    csrf: Arc<str>,
    ends: Instant,
}

impl Session {
    /// What the header `X-CSRF-Token`, or the form field `csrf`, of its requests must say.
    pub fn csrf(&self) -> &str {
        &self.csrf
    }

    /// How long it lasts at most from now.
    pub fn lasts(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session(***)")
    }
}

#[derive(Debug)]
struct Entry {
    session: Session,
    used: Instant,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Sessions(HashMap<[u8; 32], Entry>);

impl Sessions {
    /// A new session, with its secret.
    pub(super) fn begin(&mut self) -> Result<(Session, String), OsError> {
        let (cookie, csrf) = (secret("")?, secret("")?);
        let now = Instant::now();
        self.sweep(now);
        if self.0.len() >= MOST
            && let Some(idlest) = self.0.iter().min_by_key(|(_, entry)| entry.used).map(|(id, _)| *id)
        {
            self.0.remove(&idlest);
        }
        let session = Session { id: hash(&cookie), csrf: csrf.into(), ends: now + LONGEST };
        self.0.insert(session.id, Entry { session: session.clone(), used: now });
        Ok((session, cookie))
    }

    /// The session with this secret; `used`: this is a use of it.
    pub(super) fn find(&mut self, cookie: &str, used: bool) -> Option<Session> {
        let now = Instant::now();
        self.sweep(now);
        let entry = self.0.get_mut(&hash(cookie))?;
        if used {
            entry.used = now;
        }
        Some(entry.session.clone())
    }

    /// True while it lasts.
    pub(super) fn lasts(&mut self, session: &Session) -> bool {
        self.sweep(Instant::now());
        self.0.contains_key(&session.id)
    }

    /// Ends one.
    pub(super) fn end(&mut self, session: &Session) {
        self.0.remove(&session.id);
    }

    /// Ends all.
    pub(super) fn end_all(&mut self) {
        self.0.clear();
    }

    fn sweep(&mut self, now: Instant) {
        self.0.retain(|_, entry| now < entry.session.ends && now < entry.used + IDLE);
    }
}

fn hash(cookie: &str) -> [u8; 32] {
    Sha256::digest(cookie.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_when_it_is_idle_and_in_any_case() {
        let mut sessions = Sessions::default();
        let (session, cookie) = sessions.begin().unwrap();
        assert!(!format!("{session:?}{sessions:?}").contains(&*session.csrf));
        for _ in 0..24 {
            advance(IDLE - Duration::from_secs(1)).await;
            assert_eq!(sessions.find(&cookie, true), Some(session.clone()));
        }
        // Almost twelve hours, in use all the time.
        advance(Duration::from_secs(60)).await;
        assert_eq!(sessions.find(&cookie, true), None);

        let (session, cookie) = sessions.begin().unwrap();
        advance(IDLE / 2).await;
        assert!(sessions.lasts(&session));
        assert!(sessions.find(&cookie, false).is_some(), "what is not used is found");
        advance(IDLE / 2).await;
        assert_eq!(sessions.find(&cookie, true), None, "but does not last longer for it");
        assert!(sessions.find("", true).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn one_too_many_ends_the_idlest_and_a_sign_out_its_own_only() {
        let mut sessions = Sessions::default();
        let mut begun = Vec::new();
        for _ in 0..MOST {
            begun.push(sessions.begin().unwrap());
            advance(Duration::from_secs(1)).await;
        }
        assert!(sessions.find(&begun[0].1, true).is_some());
        sessions.begin().unwrap();
        assert!(sessions.find(&begun[0].1, true).is_some());
        assert!(sessions.find(&begun[1].1, true).is_none());
        sessions.end(&begun[2].0);
        assert!(!sessions.lasts(&begun[2].0) && sessions.lasts(&begun[3].0));
        sessions.end_all();
        assert!(!sessions.lasts(&begun[3].0));
    }
}
