//! What `dworker status` shows, and how.
//!
//! | room | concern |
//! |---|---|
//! | [`ledger`] | the connections, open and ended |
//! | [`status`] | the records that the roles fill |
//! | [`api`] | the routes that every daemon has |
//! | [`metrics`] | what Prometheus reads: which metrics there are, and their text |
//! | [`control`] | the socket between `dworker status` and the daemon |
//! | [`print`] | the records as text, in bpftool's manner |

pub mod api;
pub mod control;
pub mod ledger;
pub mod metrics;
pub mod print;
pub mod status;
