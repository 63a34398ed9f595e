//! Reading: rows become records, or the store is damaged.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;

use jiff::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row};

use super::Sqlite;
use crate::appliance::audit::{Event, EventKind, EventQuery};
use crate::appliance::records::{Cloud, Node, Origin, Worker};
use crate::appliance::store::{Snapshot, StoreError};
use crate::config::ApiUrl;
use crate::target::Pattern;
use crate::tunnel::message::parse_id;

impl Sqlite {
    pub(super) async fn read_all(&self) -> Result<Snapshot, StoreError> {
        let failed = |e| self.error(e);
        // One transaction, so that all tables are of one moment.
        let mut read = self.readers.begin().await.map_err(failed)?;
        let mut hosts: HashMap<i64, Vec<Pattern>> = HashMap::new();
        let rows = sqlx::query("SELECT worker, pattern FROM proxy_hosts ORDER BY worker, position");
        for row in rows.fetch_all(&mut *read).await.map_err(failed)? {
            let row = self.fields("proxy_hosts of worker", &row);
            hosts.entry(row.get("worker")?).or_default().push(row.parsed("pattern")?);
        }
        let mut snapshot = Snapshot::default();
        let rows = sqlx::query("SELECT * FROM workers ORDER BY id");
        for row in rows.fetch_all(&mut *read).await.map_err(failed)? {
            let row = self.fields("worker", &row);
            let id = row.get("id")?;
            snapshot.workers.push(worker(&row, hosts.remove(&id).unwrap_or_default())?);
        }
        let rows = sqlx::query("SELECT * FROM nodes ORDER BY worker, first_seen, node");
        for row in rows.fetch_all(&mut *read).await.map_err(failed)? {
            snapshot.nodes.push(node(&self.fields("node of worker", &row))?);
        }
        let rows = sqlx::query("SELECT * FROM clouds ORDER BY id");
        for row in rows.fetch_all(&mut *read).await.map_err(failed)? {
            snapshot.clouds.push(cloud(&self.fields("cloud", &row))?);
        }
        let token = sqlx::query("SELECT sha256 FROM tokens WHERE name = 'admin'");
        if let Some(row) = token.fetch_optional(&mut *read).await.map_err(failed)? {
            snapshot.admin_token = Some(self.fields("admin token", &row).parsed("sha256")?);
        }
        Ok(snapshot)
    }

    pub(super) async fn read_events(&self, query: &EventQuery) -> Result<Vec<Event>, StoreError> {
        let mut sql: QueryBuilder<sqlx::Sqlite> = QueryBuilder::new("SELECT * FROM events WHERE id < ");
        sql.push_bind(query.before.unwrap_or(i64::MAX));
        if !query.kinds.is_empty() {
            sql.push(" AND kind IN (");
            let mut list = sql.separated(", ");
            for kind in &query.kinds {
                list.push_bind(kind.word());
            }
            sql.push(")");
        }
        if let Some(subject) = &query.subject {
            // `0` is the character behind `/`: what lies below the subject, by the index.
            sql.push(" AND (subject = ").push_bind(subject.as_str());
            sql.push(" OR (subject >= ").push_bind(format!("{subject}/"));
            sql.push(" AND subject < ").push_bind(format!("{subject}0")).push("))");
        }
        if let Some(since) = query.since {
            sql.push(" AND time >= ").push_bind(since.as_microsecond());
        }
        if let Some(until) = query.until {
            sql.push(" AND time < ").push_bind(until.as_microsecond());
        }
        if let Some(text) = &query.text {
            let like = format!("%{}%", text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_"));
            for (i, column) in ["text", "subject", "actor", "source"].into_iter().enumerate() {
                sql.push(if i == 0 { " AND (" } else { " OR " }).push(column).push(" LIKE ");
                sql.push_bind(like.clone()).push(" ESCAPE '\\'");
            }
            sql.push(")");
        }
        sql.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(query.limit.min(EventQuery::MOST)));
        let rows = sql.build().fetch_all(&self.readers).await.map_err(|e| self.error(e))?;
        rows.iter().map(|row| event(&self.fields("event", row))).collect()
    }

    fn fields<'r>(&'r self, table: &'static str, row: &'r SqliteRow) -> Fields<'r> {
        Fields { store: self, table, row }
    }
}

fn worker(row: &Fields<'_>, proxy_hosts: Vec<Pattern>) -> Result<Worker, StoreError> {
    let previous: Option<String> = row.get("previous_key_sha256")?;
    let previous_key = match previous {
        None => None,
        Some(_) => Some((row.parsed("previous_key_sha256")?, row.time("previous_key_until")?)),
    };
    let origin: String = row.get("origin")?;
    let origin = [Origin::File, Origin::Registry].into_iter().find(|o| o.word() == origin);
    let rotated: Option<i64> = row.get("rotated")?;
    Ok(Worker {
        id: row.get("id")?,
        name: row.get("name")?,
        description: row.get("description")?,
        proxy_hosts,
        enabled: row.get("enabled")?,
        may_open: row.get("may_open")?,
        origin: origin.ok_or_else(|| row.wrong("origin", "neither `file` nor `registry`"))?,
        key: row.parsed("key_sha256")?,
        previous_key,
        created: row.time("created")?,
        rotated: rotated.map(|_| row.time("rotated")).transpose()?,
        changed: row.time("changed")?,
        changed_by: row.get("changed_by")?,
        revision: row.get("revision")?,
    })
}

fn node(row: &Fields<'_>) -> Result<Node, StoreError> {
    let id: String = row.get("node")?;
    Ok(Node {
        worker: row.get("worker")?,
        id: parse_id(&id).ok_or_else(|| row.wrong("node", "not 32 hexadecimal digits"))?,
        host_name: row.get("host_name")?,
        software: row.get("software")?,
        address: row.parsed("address")?,
        priority: row.get("priority")?,
        first_seen: row.time("first_seen")?,
        last_seen: row.time("last_seen")?,
    })
}

fn cloud(row: &Fields<'_>) -> Result<Cloud, StoreError> {
    let api_url: String = row.get("api_url")?;
    Ok(Cloud {
        id: row.get("id")?,
        name: row.get("name")?,
        kind: row.parsed("type")?,
        api_url: ApiUrl::parse(&api_url).map_err(|wrong| row.wrong("api_url", wrong.problem))?,
        worker: row.get("worker")?,
        created: row.time("created")?,
        changed: row.time("changed")?,
        changed_by: row.get("changed_by")?,
        revision: row.get("revision")?,
    })
}

fn event(row: &Fields<'_>) -> Result<Event, StoreError> {
    let kind: String = row.get("kind")?;
    let source: Option<String> = row.get("source")?;
    Ok(Event {
        id: row.get("id")?,
        time: row.time("time")?,
        // A newer version with the same schema may have written it.
        kind: kind.parse().unwrap_or(EventKind::Other),
        actor: row.get("actor")?,
        subject: row.get("subject")?,
        text: row.get("text")?,
        source: source.and_then(|address| address.parse().ok()),
    })
}

/// A row, and how to name it where it makes no sense. Its first column says which it is.
struct Fields<'r> {
    store: &'r Sqlite,
    table: &'static str,
    row: &'r SqliteRow,
}

impl<'r> Fields<'r> {
    fn get<T>(&self, column: &str) -> Result<T, StoreError>
    where
        T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
    {
        self.row.try_get(column).map_err(|e| self.wrong(column, e))
    }

    fn parsed<T: FromStr<Err: Display>>(&self, column: &str) -> Result<T, StoreError> {
        let text: String = self.get(column)?;
        text.parse().map_err(|e| self.wrong(column, e))
    }

    fn time(&self, column: &str) -> Result<Timestamp, StoreError> {
        Timestamp::from_microsecond(self.get(column)?).map_err(|e| self.wrong(column, e))
    }

    fn wrong(&self, column: &str, what: impl Display) -> StoreError {
        let id: i64 = self.row.try_get(0).unwrap_or_default();
        self.store.nonsense(self.table, id, format_args!("{column}: {what}"))
    }
}
