//! What `dworker status` shows, and how.
//!
//! | room | concern |
//! |---|---|
//! | [`ledger`] | the connections, open and ended |
//! | [`status`] | the records that the roles fill |
//! | [`api`] | the routes that every daemon has |
//! | [`control`] | the socket between `dworker status` and the daemon |
//! | [`print`] | the records as text, in bpftool's manner |

pub mod api;
pub mod control;
pub mod ledger;
pub mod print;
pub mod status;
