//! What is looked at by several at once, made once a second for all of them.
//!
//! What must hold: nobody gets what is older than their question, nor than the last second's beginning; nobody waits
//! for another's browser; there are only as many views as there are streams.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use maud::Markup;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::connections::Which;
use super::data::{event_list, events_asked, recent};
use super::follow::{Followed, follow};
use super::{Page, clouds, connections, events, worker, workers};
use crate::appliance::admin::AdminError;
use crate::appliance::audit::EventKind;

/// How often the content is made anew.
const TICK: Duration = Duration::from_secs(1);

/// What is looked at: a path, and of its query what counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Shown {
    Workers { query: String, page: usize },
    Worker(i64),
    Clouds { query: String, page: usize },
    Connections { query: String, which: Which, before: Option<u64> },
    Events { query: String, kind: Option<EventKind> },
}

/// All that are looked at.
#[derive(Default)]
pub(super) struct Views(Mutex<HashMap<Shown, Weak<View>>>);

impl Views {
    /// The view of `shown`: the same for all who look at it now.
    pub(super) fn of(&self, shown: Shown) -> Arc<View> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(view) = open.get(&shown).and_then(Weak::upgrade) {
            return view;
        }
        // Those that nobody looks at any more.
        open.retain(|_, view| view.strong_count() > 0);
        let view = Arc::new(View { shown: shown.clone(), begun: Instant::now(), made: Default::default() });
        open.insert(shown, Arc::downgrade(&view));
        view
    }
}

/// Something that is looked at.
pub(super) struct View {
    shown: Shown,
    begun: Instant,
    made: tokio::sync::Mutex<Made>,
}

/// What was made last.
#[derive(Default)]
struct Made {
    /// When that began.
    at: Option<Instant>,
    content: Content,
    html: Arc<str>,
    followed: Option<Followed>,
}

/// What there is to see.
#[derive(Debug, Clone, Default)]
pub(super) enum Content {
    /// This: the same text for as long as nothing changes, with [`Page::mark`] for each session's word against forgery.
    Html(Arc<str>),
    /// It is there no more.
    Gone,
    /// It can't be read now, so it stays as it was.
    #[default]
    Unknown,
}

impl View {
    /// Ticks each second, at the same time for all who look: the first of them makes what the others get.
    pub(super) fn ticks(&self) -> Interval {
        let next = self.begun.elapsed().as_secs() as u32 + 1;
        let mut ticks = interval_at(self.begun + TICK * next, TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        ticks
    }

    /// What there is to see, not older than `since`.
    pub(super) async fn content(&self, page: &Page, since: Instant) -> Content {
        let mut made = self.made.lock().await;
        if made.at.is_none_or(|at| at < since) {
            let at = Instant::now();
            made.content = match page.live_part(&self.shown, &mut made.followed).await {
                Ok(html) => {
                    if html.0 != *made.html {
                        made.html = html.0.into();
                    }
                    Content::Html(made.html.clone())
                }
                Err(AdminError::NotFound { .. }) => Content::Gone,
                Err(error) => {
                    tracing::warn!("a page is not up to date: {error}");
                    Content::Unknown
                }
            };
            made.at = Some(at);
        }
        made.content.clone()
    }
}

impl Page {
    /// The live part of a page.
    async fn live_part(&self, shown: &Shown, followed: &mut Option<Followed>) -> Result<Markup, AdminError> {
        Ok(match shown {
            Shown::Workers { query, page } => workers::live_list(&self.workers(query, *page)),
            Shown::Worker(id) => {
                let record = self.record(*id)?;
                let events = follow(followed, &self.admin, recent(&record)).await?;
                worker::live_detail(&self.mark, &self.detail(&record, events.to_vec()))
            }
            Shown::Clouds { query, page } => clouds::live_list(&self.clouds(query, *page)),
            Shown::Connections { query, which, before } => {
                connections::live_list(&self.connections(query, *which, *before))
            }
            Shown::Events { query, kind } => {
                let events = follow(followed, &self.admin, events_asked(query, *kind, None)).await?;
                events::live_list(&event_list(query, *kind, None, events.to_vec()))
            }
        })
    }
}
