//! The registry in a SQLite file, `<state_dir>/registry.db`.
//!
//! What must hold: one connection writes, each save in one transaction that is on disk before it is answered
//! (WAL, `synchronous = FULL`); only the owner may read the file; SQL is fixed text, and values are bound.

mod read;
#[cfg(test)]
mod tests;
mod write;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, SqliteConnection, raw_sql};

use super::{Change, Pending, Saved, Snapshot, Store, StoreError};
use crate::appliance::audit::{Event, EventQuery};
use crate::web::layers::DEADLINE;

/// The file's name in the state directory.
pub const FILE: &str = "registry.db";
/// What tells our files from others' (`PRAGMA application_id`): `dwkr`.
const APPLICATION: i64 = 0x6477_6b72;
/// The schema's steps; step `n` makes schema `n + 1`. A step that was released is never edited.
const STEPS: &[&str] = &[include_str!("migrations/0001.sql"), include_str!("migrations/0002.sql")];
/// How long a statement waits for another process that has the file locked.
const BUSY: Duration = Duration::from_secs(3);
/// How long a save or a search waits for a connection.
const ACQUIRE: Duration = Duration::from_secs(4);
/// So that who asks for a change hears within the time of a request that it can't be saved.
const _: () = assert!(ACQUIRE.as_millis() + BUSY.as_millis() < DEADLINE.as_millis());
/// Connections that read events, so that a long search does not hold up a save.
const READERS: u32 = 2;

/// A registry in a file.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    /// One connection: SQLite has one writer.
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Sqlite {
    /// Opens `registry.db` in a directory, or makes it there, and brings an older schema up to date.
    ///
    /// # Errors
    /// The file can't be made or opened, is not ours, is damaged, or was made by a newer version. Nothing is
    /// changed then.
    pub async fn open(state_dir: &Path) -> Result<Sqlite, StoreError> {
        let path = state_dir.join(FILE);
        prepare(&path).map_err(|source| StoreError::File { path: path.clone(), source })?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .busy_timeout(BUSY)
            .synchronous(SqliteSynchronous::Full);
        let pool = |most| {
            let pool = SqlitePoolOptions::new().max_connections(most).acquire_timeout(ACQUIRE);
            let pool = pool.max_lifetime(None).idle_timeout(None).test_before_acquire(false);
            pool.after_release(|connection, _| Box::pin(is_free(connection)))
        };
        let writer = pool(1).connect_lazy_with(options.clone());
        let readers = pool(READERS).connect_lazy_with(options.read_only(true));
        let store = Sqlite { path, writer, readers };
        match store.prepare_schema().await {
            Ok(()) => Ok(store),
            Err(error) => {
                store.close().await;
                Err(error)
            }
        }
    }

    async fn prepare_schema(&self) -> Result<(), StoreError> {
        let mut connection = self.writer.acquire().await.map_err(|e| self.error(e))?;
        let mut schema = self.judge(&mut connection).await?;
        let failed = |e| self.error(e);
        // Not before the file is known to be ours: it stays in the file.
        raw_sql("PRAGMA journal_mode = WAL; PRAGMA journal_size_limit = 16777216")
            .execute(&mut *connection)
            .await
            .map_err(failed)?;
        while let Some(step) = usize::try_from(schema).ok().and_then(|at| STEPS.get(at)) {
            let mut step_alone = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
            raw_sql(*step).execute(&mut *step_alone).await.map_err(failed)?;
            step_alone.commit().await.map_err(failed)?;
            schema += 1;
        }
        self.check_tables(&mut connection).await
    }

    /// The file's schema; 0 where it is new.
    async fn judge(&self, connection: &mut SqliteConnection) -> Result<i64, StoreError> {
        let number = async |connection: &mut SqliteConnection, sql: &'static str| {
            sqlx::query_scalar::<_, i64>(sql).fetch_one(connection).await.map_err(|e| self.error(e))
        };
        let application = number(connection, "PRAGMA application_id").await?;
        let schema = number(connection, "PRAGMA user_version").await?;
        let tables = number(connection, "SELECT count(*) FROM sqlite_master").await?;
        let known = STEPS.len() as i64;
        match (application, schema) {
            (0, 0) if tables == 0 => Ok(0),
            (APPLICATION, found) if found > known => {
                Err(StoreError::Newer { path: self.path.clone(), found, known })
            }
            (APPLICATION, 1..) => Ok(schema),
            _ => Err(StoreError::Foreign {
                path: self.path.clone(),
                what: format!("it is an SQLite database of another program (application_id {application})"),
            }),
        }
    }

    /// Looks for damage in all tables but the events, of which there may be a million.
    async fn check_tables(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        for check in [
            "PRAGMA quick_check(workers)",
            "PRAGMA quick_check(proxy_hosts)",
            "PRAGMA quick_check(nodes)",
            "PRAGMA quick_check(clouds)",
            "PRAGMA quick_check(tokens)",
            "PRAGMA quick_check(event_counts)",
            "PRAGMA quick_check(probes)",
        ] {
            let said: Vec<String> =
                sqlx::query_scalar(check).fetch_all(&mut *connection).await.map_err(|e| self.error(e))?;
            if said != ["ok"] {
                let what = said.into_iter().next().unwrap_or_default();
                return Err(StoreError::Damaged { path: self.path.clone(), what });
            }
        }
        Ok(())
    }

    /// What an error of the database means for who asked.
    fn error(&self, source: sqlx::Error) -> StoreError {
        let path = self.path.clone();
        // The primary code is in the lowest byte.
        let code =
            source.as_database_error().and_then(|e| e.code()?.parse::<i32>().ok()).map(|code| code & 0xff);
        let what = || source.as_database_error().map_or_else(String::new, |e| e.message().to_owned());
        match code {
            Some(libsqlite::BUSY | libsqlite::LOCKED) => StoreError::Busy { path },
            Some(libsqlite::FULL) => StoreError::Full { path },
            Some(libsqlite::CORRUPT) => StoreError::Damaged { path, what: what() },
            Some(libsqlite::NOTADB) => StoreError::Foreign { path, what: what() },
            _ => StoreError::Database { path, source },
        }
    }

    /// A record that makes no sense: somebody edited the file by hand.
    fn nonsense(&self, table: &str, id: impl std::fmt::Display, what: impl std::fmt::Display) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), what: format!("{table} {id}: {what}") }
    }
}

/// Primary result codes of SQLite, which promises not to change them.
mod libsqlite {
    pub(super) const BUSY: i32 = 5;
    pub(super) const LOCKED: i32 = 6;
    pub(super) const CORRUPT: i32 = 11;
    pub(super) const FULL: i32 = 13;
    pub(super) const NOTADB: i32 = 26;
}

/// Whether a connection that was given back may be used again. A full disk makes SQLite roll back by itself; then
/// there is nothing that COMMIT or ROLLBACK could end, and sqlx takes the transaction for open for ever.
async fn is_free(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    // A rollback that was begun where a save was dropped is behind us after this.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

/// Makes the file where it is missing, for its owner alone. SQLite gives its other files the same mode.
fn prepare(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            file.sync_all()?;
            if let Some(directory) = path.parent() {
                File::open(directory)?.sync_all()?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
                fs::set_permissions(path, Permissions::from_mode(0o600))?;
            }
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

impl Store for Sqlite {
    fn load(&self) -> Pending<'_, Snapshot> {
        Box::pin(self.read_all())
    }

    fn save<'a>(&'a self, changes: &'a [Change], events: Vec<Event>) -> Pending<'a, Saved> {
        Box::pin(self.write(changes, events))
    }

    fn events<'a>(&'a self, query: &'a EventQuery) -> Pending<'a, Vec<Event>> {
        Box::pin(self.read_events(query))
    }

    fn prune(&self, before: Timestamp, keep: u64, step: u32) -> Pending<'_, u64> {
        Box::pin(self.remove_events(before, keep, step))
    }

    fn probe(&self) -> Pending<'_, ()> {
        Box::pin(self.write_probe())
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            self.readers.close().await;
            self.writer.close().await;
        })
    }
}
