//! The appliance: listens for workers' websockets, knows their groups, and routes streams to them.
//!
//! | room | concern |
//! |---|---|
//! | [`endpoint`] | TCP, TLS, HTTP, the upgrade; who may have a websocket |
//! | [`strangers`] | how many may knock at once |
//! | [`records`] | what the store keeps: workers, nodes, clouds |
//! | [`roster`] | what the live registry works by, made of the records |
//! | [`registry`] | groups and their nodes; which group carries a target |
//! | [`peer`] | a worker's lane: the streams that the worker opens |

pub mod endpoint;
mod peer;
pub mod records;
pub mod registry;
pub mod roster;
mod strangers;
