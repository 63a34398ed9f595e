//! What a daemon says of itself and of connections, to commands: `status OBJECT`, `why` and `monitor`.

mod monitor;
mod objects;
mod schema;
mod why;
