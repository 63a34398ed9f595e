//! The events of a page that stays open: asked for once, and from then on as they happen.
//!
//! What must hold: a search through a million events is done once for each page, not each second.

use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;

use super::Page;
use super::data::EVENTS;
use super::events::List;
use crate::appliance::admin::AdminError;
use crate::appliance::audit::{Event, EventKind};

/// The newest events of a kind, with a text.
pub(super) struct Followed {
    query: String,
    kind: Option<EventKind>,
    state: Mutex<Option<State>>,
}

struct State {
    list: List,
    news: Receiver<Arc<Event>>,
}

impl Followed {
    pub(super) fn new(query: String, kind: Option<EventKind>) -> Followed {
        Followed { query, kind, state: Mutex::default() }
    }

    /// The list of this moment.
    pub(super) async fn list(&self, page: &Page) -> Result<List, AdminError> {
        let mut state = self.state.lock().await;
        let known = match state.take() {
            Some(mut known) => known.is_whole(self).then_some(known),
            None => None,
        };
        let known = match known {
            Some(known) => known,
            None => {
                // Before the question, so that nothing falls between the two.
                let news = page.admin.subscribe();
                State { list: page.events(&self.query, self.kind, None).await?, news }
            }
        };
        Ok(state.insert(known).list.clone())
    }

    fn means(&self, event: &Event) -> bool {
        let needle = self.query.trim().to_ascii_lowercase();
        let has = |text: &str| text.to_ascii_lowercase().contains(&needle);
        self.kind.is_none_or(|kind| kind == event.kind)
            && (has(&event.actor)
                || has(&event.subject)
                || has(&event.text)
                || event.source.is_some_and(|source| has(&source.to_string())))
    }
}

impl State {
    /// Takes in what has happened since. False: some of it was missed, so it has to be asked for.
    fn is_whole(&mut self, followed: &Followed) -> bool {
        loop {
            match self.news.try_recv() {
                Ok(event) => self.add(&event, followed),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Lagged(_) | TryRecvError::Closed) => return false,
            }
        }
    }

    fn add(&mut self, event: &Event, followed: &Followed) {
        let rows = &mut self.list.rows;
        if !followed.means(event) || rows.first().is_some_and(|newest| newest.id >= event.id) {
            return;
        }
        rows.insert(0, event.clone());
        self.list.more |= rows.len() > EVENTS;
        rows.truncate(EVENTS);
    }
}
