//! The appliance: listens for workers' websockets, knows their groups, and routes streams to them.
//!
//! | room | concern |
//! |---|---|
//! | [`endpoint`] | TCP, TLS, HTTP, the upgrade; who may have a websocket |
//! | [`strangers`] | how many may knock at once |
//! | [`registry`] | groups and their nodes; which group carries a target |
//! | [`peer`] | a worker's lane: the streams that the worker opens |

pub mod endpoint;
mod peer;
pub mod registry;
mod strangers;
