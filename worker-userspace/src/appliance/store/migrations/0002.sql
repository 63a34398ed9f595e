-- Each event belongs to a class, and each class is sure of its share of all that are kept: `deed`, what people did;
-- `visit`, who came and went; `stream`.
ALTER TABLE events ADD COLUMN class TEXT NOT NULL DEFAULT 'stream';
UPDATE events SET class = 'deed' WHERE kind IN (
    'worker-added', 'worker-changed', 'worker-enabled', 'worker-disabled', 'worker-removed', 'key-shown', 'key-rotated',
    'cloud-added', 'cloud-changed', 'cloud-removed', 'node-changed', 'node-forgotten', 'stream-closed', 'login-ok',
    'logout', 'token-changed', 'save-refused', 'started', 'stopped'
);
UPDATE events SET class = 'visit' WHERE class = 'stream' AND kind NOT IN ('stream-opened', 'stream-refused');
CREATE INDEX events_class ON events (class, id);

-- How many events of each class there are: to count them would take long.
CREATE TABLE event_counts (
    class TEXT PRIMARY KEY,
    count INTEGER NOT NULL
);
INSERT INTO event_counts SELECT class, count(*) FROM events GROUP BY class;
CREATE TRIGGER event_kept AFTER INSERT ON events BEGIN
    INSERT INTO event_counts VALUES (new.class, 1) ON CONFLICT (class) DO UPDATE SET count = count + 1;
END;
CREATE TRIGGER event_removed AFTER DELETE ON events BEGIN
    UPDATE event_counts SET count = count - 1 WHERE class = old.class;
END;

-- One row, which is written to find out whether that can be done.
CREATE TABLE probes (
    count INTEGER NOT NULL
);
INSERT INTO probes VALUES (0);

PRAGMA user_version = 2;
