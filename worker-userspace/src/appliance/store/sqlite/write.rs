//! Writing: each save is one transaction.

use jiff::Timestamp;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Connection, QueryBuilder, SqliteConnection};

use super::Sqlite;
use crate::appliance::audit::{Class, Event};
use crate::appliance::records::{Cloud, Node, Worker};
use crate::appliance::store::{Change, Saved, StoreError};
use crate::tunnel::message::id_text;

/// Events of one statement: each statement is a way to the database's thread and back.
const ROWS: usize = 64;

type Query<'q> = sqlx::query::Query<'q, sqlx::Sqlite, SqliteArguments>;

impl Sqlite {
    pub(super) async fn write(
        &self,
        changes: &[Change],
        mut events: Vec<Event>,
    ) -> Result<Saved, StoreError> {
        let failed = |e| self.error(e);
        let mut connection = self.writer.acquire().await.map_err(failed)?;
        let mut save = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        let mut ids = Vec::with_capacity(changes.len());
        for change in changes {
            ids.push(self.write_one(&mut save, change).await?);
        }
        for rows in events.chunks_mut(ROWS) {
            let mut insert = QueryBuilder::<sqlx::Sqlite>::new(
                "INSERT INTO events (time, kind, class, actor, subject, text, source) ",
            );
            insert.push_values(rows.iter(), |mut row, event| {
                row.push_bind(event.time.as_microsecond())
                    .push_bind(event.kind.word())
                    .push_bind(event.kind.class().word())
                    .push_bind(&event.actor)
                    .push_bind(&event.subject)
                    .push_bind(&event.text)
                    .push_bind(event.source.map(|address| address.to_string()));
            });
            let kept = insert.push(" RETURNING id").build_query_scalar::<i64>();
            let mut ids = kept.persistent(rows.len() == ROWS).fetch_all(&mut *save).await.map_err(failed)?;
            // They rise with the rows, but RETURNING promises no order.
            ids.sort_unstable();
            rows.iter_mut().zip(ids).for_each(|(event, id)| event.id = id);
        }
        save.commit().await.map_err(failed)?;
        Ok(Saved { ids, events })
    }

    /// Writes a number that nobody reads, as a save would: to the disk. What does not differ would not be written.
    pub(super) async fn write_probe(&self) -> Result<(), StoreError> {
        let failed = |e| self.error(e);
        let mut connection = self.writer.acquire().await.map_err(failed)?;
        let mut save = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        sqlx::query("UPDATE probes SET count = count + 1").execute(&mut *save).await.map_err(failed)?;
        save.commit().await.map_err(failed)
    }

    async fn write_one(&self, save: &mut SqliteConnection, change: &Change) -> Result<i64, StoreError> {
        match change {
            Change::Worker(worker) => self.write_worker(save, worker).await,
            Change::Cloud(cloud) => self.write_cloud(save, cloud).await,
            Change::Node(node) => self.run(save, node_query(node)).await.map(|_| 0),
            Change::RemoveNode { worker, node } => {
                let query = sqlx::query("DELETE FROM nodes WHERE worker = ? AND node = ?");
                self.run(save, query.bind(worker).bind(id_text(node))).await.map(|_| 0)
            }
            Change::RemoveWorker(id) => {
                let rows = self.run(save, sqlx::query("DELETE FROM workers WHERE id = ?").bind(id)).await?;
                only(rows, || format!("worker {id}"))?;
                Ok(*id)
            }
            Change::RemoveCloud(id) => {
                let rows = self.run(save, sqlx::query("DELETE FROM clouds WHERE id = ?").bind(id)).await?;
                only(rows, || format!("cloud {id}"))?;
                Ok(*id)
            }
            Change::AdminToken(hash) => {
                let query = sqlx::query(
                    "INSERT INTO tokens (name, sha256, created) VALUES ('admin', ?, ?) \
                     ON CONFLICT (name) DO UPDATE SET sha256 = excluded.sha256, created = excluded.created",
                );
                let query = query.bind(hash.to_string()).bind(Timestamp::now().as_microsecond());
                self.run(save, query).await.map(|_| 0)
            }
        }
    }

    async fn run(&self, save: &mut SqliteConnection, query: Query<'_>) -> Result<u64, StoreError> {
        query.execute(save).await.map(|done| done.rows_affected()).map_err(|e| self.error(e))
    }

    async fn write_worker(&self, save: &mut SqliteConnection, worker: &Worker) -> Result<i64, StoreError> {
        let previous = worker.previous_key;
        let sql = match worker.id {
            0 => {
                "INSERT INTO workers (name, description, enabled, may_open, origin, key_sha256, previous_key_sha256, \
                 previous_key_until, rotated, changed, changed_by, revision, created) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13) RETURNING id"
            }
            _ => {
                "UPDATE workers SET name = ?1, description = ?2, enabled = ?3, may_open = ?4, origin = ?5, \
                 key_sha256 = ?6, previous_key_sha256 = ?7, previous_key_until = ?8, rotated = ?9, changed = ?10, \
                 changed_by = ?11, revision = ?12, created = ?13 WHERE id = ?14 AND revision = ?12 - 1 RETURNING id"
            }
        };
        let query = sqlx::query_scalar(sql)
            .bind(&worker.name)
            .bind(&worker.description)
            .bind(worker.enabled)
            .bind(worker.may_open)
            .bind(worker.origin.word())
            .bind(worker.key.to_string())
            .bind(previous.map(|(hash, _)| hash.to_string()))
            .bind(previous.map(|(_, until)| until.as_microsecond()))
            .bind(worker.rotated.map(Timestamp::as_microsecond))
            .bind(worker.changed.as_microsecond())
            .bind(&worker.changed_by)
            .bind(worker.revision)
            .bind(worker.created.as_microsecond());
        let query = if worker.id == 0 { query } else { query.bind(worker.id) };
        let id: Option<i64> = query.fetch_optional(&mut *save).await.map_err(|e| self.error(e))?;
        let id = id.ok_or_else(|| StoreError::Raced { what: format!("worker {}", worker.name) })?;
        self.run(save, sqlx::query("DELETE FROM proxy_hosts WHERE worker = ?").bind(id)).await?;
        for (position, pattern) in (0i64..).zip(&worker.proxy_hosts) {
            let query = sqlx::query("INSERT INTO proxy_hosts (worker, position, pattern) VALUES (?, ?, ?)");
            self.run(save, query.bind(id).bind(position).bind(pattern.to_string())).await?;
        }
        Ok(id)
    }

    async fn write_cloud(&self, save: &mut SqliteConnection, cloud: &Cloud) -> Result<i64, StoreError> {
        let sql = match cloud.id {
            0 => {
                "INSERT INTO clouds (name, type, api_url, worker, changed, changed_by, revision, created) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) RETURNING id"
            }
            _ => {
                "UPDATE clouds SET name = ?1, type = ?2, api_url = ?3, worker = ?4, changed = ?5, changed_by = ?6, \
                 revision = ?7, created = ?8 WHERE id = ?9 AND revision = ?7 - 1 RETURNING id"
            }
        };
        let query = sqlx::query_scalar(sql)
            .bind(&cloud.name)
            .bind(cloud.kind.word())
            .bind(cloud.api_url.as_str())
            .bind(cloud.worker)
            .bind(cloud.changed.as_microsecond())
            .bind(&cloud.changed_by)
            .bind(cloud.revision)
            .bind(cloud.created.as_microsecond());
        let query = if cloud.id == 0 { query } else { query.bind(cloud.id) };
        let id: Option<i64> = query.fetch_optional(save).await.map_err(|e| self.error(e))?;
        id.ok_or_else(|| StoreError::Raced { what: format!("cloud {}", cloud.name) })
    }

    pub(super) async fn remove_events(
        &self,
        before: Timestamp,
        keep: u64,
        step: u32,
    ) -> Result<u64, StoreError> {
        let failed = |e| self.error(e);
        let mut connection = self.writer.acquire().await.map_err(failed)?;
        let keep = i64::try_from(keep).unwrap_or(i64::MAX);
        let mut removed = 0;
        // The largest class gives, down to its share; where that is not enough another one is the largest.
        while removed < u64::from(step) {
            let over: Option<(String, i64)> = sqlx::query_as(
                "SELECT class, min(count - ?1 / ?2, (SELECT sum(count) FROM event_counts) - ?1) \
                 FROM event_counts ORDER BY count DESC LIMIT 1",
            )
            .bind(keep)
            .bind(Class::ALL.len() as i64)
            .fetch_optional(&mut *connection)
            .await
            .map_err(failed)?;
            let Some((class, over)) = over.filter(|(_, over)| *over > 0) else { break };
            let oldest = sqlx::query(
                "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE class = ?1 ORDER BY id LIMIT ?2)",
            );
            let oldest = oldest.bind(class).bind(over.min(i64::from(step) - removed as i64));
            match self.run(&mut connection, oldest).await? {
                // The counts are wrong: somebody edited the file by hand.
                0 => break,
                some => removed += some,
            }
        }
        let old = sqlx::query(
            "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE time < ?1 ORDER BY time LIMIT ?2)",
        );
        let left = u64::from(step).saturating_sub(removed);
        let old = old.bind(before.as_microsecond()).bind(i64::try_from(left).unwrap_or(0));
        Ok(removed + self.run(&mut connection, old).await?)
    }
}

/// One row, or somebody else was faster.
fn only(rows: u64, what: impl Fn() -> String) -> Result<(), StoreError> {
    if rows == 1 { Ok(()) } else { Err(StoreError::Raced { what: what() }) }
}

fn node_query(node: &Node) -> Query<'_> {
    sqlx::query(
        "INSERT INTO nodes (worker, node, host_name, software, address, priority, first_seen, last_seen) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (worker, node) DO UPDATE SET host_name = excluded.host_name, \
         software = excluded.software, address = excluded.address, priority = excluded.priority, \
         first_seen = excluded.first_seen, last_seen = excluded.last_seen",
    )
    .bind(node.worker)
    .bind(id_text(&node.id))
    .bind(&node.host_name)
    .bind(&node.software)
    .bind(node.address.to_string())
    .bind(node.priority)
    .bind(node.first_seen.as_microsecond())
    .bind(node.last_seen.as_microsecond())
}
