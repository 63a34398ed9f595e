//! Steering: what is captured on this host, and how a captured connection leads back to what it is for.

pub mod dns;
pub mod names;
