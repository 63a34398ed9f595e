//! The events of a page that stays open: asked for once, and from then on as they happen.
//!
//! What must hold: a search through a million events is done once for each page, not each second.

use std::sync::Arc;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;

use crate::appliance::admin::{Admin, AdminError};
use crate::appliance::audit::{Event, EventQuery};

/// The newest events that a question means.
pub(super) struct Followed {
    query: EventQuery,
    rows: Vec<Event>,
    news: Receiver<Arc<Event>>,
}

/// The events that `query` means now, newest first. Where `followed` has followed another question, or has missed
/// something, the store is asked.
pub(super) async fn follow<'f>(
    followed: &'f mut Option<Followed>,
    admin: &Admin,
    query: EventQuery,
) -> Result<&'f [Event], AdminError> {
    let known = followed.take().filter(|known| known.query == query);
    let known = match known.and_then(Followed::caught_up) {
        Some(known) => known,
        None => {
            // Before the question, so that nothing falls between the two.
            let news = admin.subscribe();
            Followed { rows: admin.events(&query).await?, query, news }
        }
    };
    Ok(&followed.insert(known).rows)
}

impl Followed {
    /// With what has happened since. `None`: some of it was missed.
    fn caught_up(mut self) -> Option<Followed> {
        loop {
            match self.news.try_recv() {
                Ok(event) => self.add(&event),
                Err(TryRecvError::Empty) => return Some(self),
                Err(TryRecvError::Lagged(_) | TryRecvError::Closed) => return None,
            }
        }
    }

    fn add(&mut self, event: &Event) {
        if !self.query.means(event) {
            return;
        }
        // What is saved with a change and what the audit keeps by itself are not told in the order of their numbers; and
        // what happened while the store was asked is told twice.
        if let Err(at) = self.rows.binary_search_by(|row| event.id.cmp(&row.id)) {
            self.rows.insert(at, event.clone());
            self.rows.truncate(self.query.limit as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appliance::audit::EventKind;
    use tokio::sync::broadcast;

    fn event(id: i64, subject: &str) -> Event {
        let (actor, subject, text) = ("admin".into(), subject.into(), String::new());
        Event {
            id,
            time: jiff::Timestamp::UNIX_EPOCH,
            kind: EventKind::NodeAdded,
            actor,
            subject,
            text,
            source: None,
        }
    }

    #[test]
    fn each_event_is_there_once_in_its_order_however_it_is_told() {
        let news = broadcast::Sender::new(8);
        let query = EventQuery { subject: Some("site-a".into()), limit: 3, ..EventQuery::default() };
        let rows = vec![event(7, "site-a"), event(4, "site-a/host")];
        let followed = Followed { query, rows, news: news.subscribe() };
        for told in [event(7, "site-a"), event(9, "site-a"), event(8, "site-a/host"), event(10, "site-b")] {
            news.send(Arc::new(told)).unwrap();
        }
        let followed = followed.caught_up().unwrap();
        let ids = |followed: &Followed| followed.rows.iter().map(|event| event.id).collect::<Vec<_>>();
        assert_eq!(ids(&followed), [9, 8, 7]);
        // Older than a full list's last one.
        news.send(Arc::new(event(5, "site-a"))).unwrap();
        let followed = followed.caught_up().unwrap();
        assert_eq!(ids(&followed), [9, 8, 7]);
        for id in 11..20 {
            news.send(Arc::new(event(id, "site-a"))).unwrap();
        }
        assert!(followed.caught_up().is_none(), "some were missed");
    }
}
