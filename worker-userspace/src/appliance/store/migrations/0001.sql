-- The registry. Times are microseconds since 1970, UTC. Booleans are 0 and 1. Ids are never used again.
CREATE TABLE workers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL,
    enabled INTEGER NOT NULL,
    may_open INTEGER NOT NULL,
    origin TEXT NOT NULL,
    key_sha256 TEXT NOT NULL,
    previous_key_sha256 TEXT,
    previous_key_until INTEGER,
    created INTEGER NOT NULL,
    rotated INTEGER,
    changed INTEGER NOT NULL,
    changed_by TEXT NOT NULL,
    revision INTEGER NOT NULL,
    CHECK ((previous_key_sha256 IS NULL) = (previous_key_until IS NULL))
);

-- In the order in which they were written.
CREATE TABLE proxy_hosts (
    worker INTEGER NOT NULL REFERENCES workers (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    pattern TEXT NOT NULL,
    PRIMARY KEY (worker, position)
);

CREATE TABLE nodes (
    worker INTEGER NOT NULL REFERENCES workers (id) ON DELETE CASCADE,
    node TEXT NOT NULL,
    host_name TEXT NOT NULL,
    software TEXT NOT NULL,
    address TEXT NOT NULL,
    priority INTEGER,
    first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL,
    PRIMARY KEY (worker, node)
);

CREATE TABLE clouds (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL,
    api_url TEXT NOT NULL,
    worker INTEGER REFERENCES workers (id),
    created INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    changed_by TEXT NOT NULL,
    revision INTEGER NOT NULL
);
CREATE INDEX clouds_worker ON clouds (worker);

CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time INTEGER NOT NULL,
    kind TEXT NOT NULL,
    actor TEXT NOT NULL,
    subject TEXT NOT NULL,
    text TEXT NOT NULL,
    source TEXT
);
CREATE INDEX events_time ON events (time);
CREATE INDEX events_kind ON events (kind, id);
CREATE INDEX events_subject ON events (subject, id);

-- Hashes of secrets that are not workers' keys.
CREATE TABLE tokens (
    name TEXT PRIMARY KEY,
    sha256 TEXT NOT NULL,
    created INTEGER NOT NULL
);

PRAGMA application_id = 0x64776b72;
PRAGMA user_version = 1;
