//! What is logged, changed while the daemon runs.
//!
//! The log is one for the process, and so is this.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{EnvFilter, parsed};

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// The filter that holds.
    pub filter: String,
    /// The one that comes back by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<String>,
    /// When it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

type Set = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

struct State {
    now: Filter,
    /// Counts the changes: who puts a filter back must not undo a later one.
    changes: u64,
    set: Set,
}

static STATE: OnceLock<Mutex<State>> = OnceLock::new();

/// The log has begun with `filter`; `set` replaces it.
pub(super) fn begin(filter: &str, set: Set) {
    let now = Filter { filter: filter.to_owned(), then: None, until: None };
    let _ = STATE.set(Mutex::new(State { now, changes: 0, set }));
}

fn state() -> Option<MutexGuard<'static, State>> {
    STATE.get().map(|state| state.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What is logged now; `None` before the log has begun.
pub fn filter() -> Option<Filter> {
    state().map(|state| state.now.clone())
}

/// Logs by another filter, for a while or for good. The number is for [`put_filter_back`].
///
/// # Errors
/// The filter does not parse, or the log has not begun.
pub fn change_filter(filter: &str, lasts: Option<Duration>) -> Result<(Filter, u64), String> {
    let Some(mut state) = state() else { return Err("there is no log".into()) };
    state.change(filter, lasts)
}

/// Puts back what was logged before the change of this number, where that was for a while and none came after it.
/// The answer is what is logged from now on.
pub fn put_filter_back(change: u64) -> Option<String> {
    state()?.put_back(change)
}

impl State {
    fn change(&mut self, filter: &str, lasts: Option<Duration>) -> Result<(Filter, u64), String> {
        let until = lasts.map(|lasts| Timestamp::now() + lasts);
        (self.set)(parsed(filter).map_err(|error| error.to_string())?)?;
        // Of two that are for a while, the second leads back to what was before the first.
        let lasting = self.now.then.take().unwrap_or_else(|| std::mem::take(&mut self.now.filter));
        self.now = Filter { filter: filter.to_owned(), then: until.map(|_| lasting), until };
        self.changes += 1;
        Ok((self.now.clone(), self.changes))
    }

    fn put_back(&mut self, change: u64) -> Option<String> {
        if self.changes != change {
            return None;
        }
        let filter = self.now.then.clone()?;
        self.change(&filter, None).ok()?;
        Some(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn what_is_for_a_while_leads_back_to_what_was_for_good() {
        let set = Arc::new(Mutex::new(Vec::new()));
        let seen = set.clone();
        let mut state = State {
            now: Filter { filter: "info".into(), then: None, until: None },
            changes: 0,
            set: Box::new(move |filter| {
                seen.lock().unwrap().push(filter.to_string());
                Ok(())
            }),
        };
        let minute = Some(Duration::from_secs(60));
        let (debug, first) = state.change("debug", minute).unwrap();
        assert_eq!((debug.filter.as_str(), debug.then.as_deref()), ("debug", Some("info")));
        assert!(debug.until.is_some_and(|until| until > Timestamp::now()));
        let (trace, second) = state.change("trace", minute).unwrap();
        assert_eq!((trace.filter.as_str(), trace.then.as_deref()), ("trace", Some("info")));
        assert_eq!(state.put_back(first), None, "another came after it");
        assert_eq!(state.put_back(second).as_deref(), Some("info"));
        assert_eq!(state.put_back(second), None, "it is back already");
        let (warn, third) = state.change("warn", None).unwrap();
        assert_eq!((warn.then, warn.until), (None, None));
        assert_eq!(state.put_back(third), None, "it was for good");
        assert!(state.change("dworker=loud", None).unwrap_err().contains("log = \"dworker=loud\""));
        assert_eq!(state.now.filter, "warn", "a wrong one changes nothing");
        assert_eq!(*set.lock().unwrap(), ["debug", "trace", "info", "warn"]);
    }
}
