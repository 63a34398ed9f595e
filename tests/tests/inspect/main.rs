//! What a daemon says of itself and of connections, to commands: `status OBJECT`, `why`, `monitor` and `doctor`.

mod doctor;
mod monitor;
mod objects;
mod schema;
mod why;
