//! What `dworker status` shows, and how: records that every role fills, the control socket, the printing.

pub mod ledger;
