//! The appliance: listens for workers' websockets, knows their groups, and routes streams to them.
//!
//! | room | concern |
//! |---|---|
//! | [`endpoint`] | TCP, TLS, HTTP, the upgrade; who may have a websocket |
//! | [`sparse`] | what happens again and again, as counts |
//! | [`strangers`] | how many may knock at once |
//! | [`login`] | the admin token, sessions of browsers |
//! | [`records`] | what the store keeps: workers, nodes, clouds |
//! | [`store`] | where they are kept: SQLite |
//! | [`admin`] | every change of them: judged, saved, published |
//! | [`audit`] | events: who did what, what happened to whom |
//! | [`api`] | the JSON API |
//! | [`roster`] | what the live registry works by, made of the records |
//! | [`registry`] | groups and their nodes; which group carries a target |
//! | [`steerable`] | whether the kernel can hold a roster |
//! | [`page`] | the web page |
//! | [`watch`] | what happens by itself, as events |
//! | [`peer`] | a worker's lane: the streams that the worker opens |

pub mod admin;
pub mod api;
pub mod audit;
pub mod endpoint;
pub mod login;
pub mod page;
mod peer;
pub mod records;
pub mod registry;
pub mod roster;
mod sparse;
pub mod steerable;
pub mod store;
mod strangers;
pub mod watch;
