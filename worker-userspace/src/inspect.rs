//! What `dworker status` shows, and how.
//!
//! | room | concern |
//! |---|---|
//! | [`ledger`] | the connections, open and ended |
//! | [`status`] | the records that the roles fill |
//! | [`api`] | the routes that every daemon has |
//! | [`metrics`] | what Prometheus reads: which metrics there are, and their text |
//! | [`control`] | the socket between `dworker status` and the daemon |
//! | [`monitor`] | what happens, as it happens |
//! | [`objects`] | parts of the status, one kind of thing at a time |
//! | [`why`] | what would happen to a connection, and why |
//! | [`finding`] | what `dworker doctor` has found |
//! | [`probe`] | what a daemon says when it tries its proxy hosts |
//! | [`print`] | the records as text, in bpftool's manner |
//! | [`schema`] | the JSON schema of all that commands print as JSON |

pub mod api;
pub mod control;
pub mod finding;
pub mod ledger;
pub mod metrics;
pub mod monitor;
pub mod objects;
pub mod print;
pub mod probe;
pub mod schema;
pub mod status;
pub mod why;
