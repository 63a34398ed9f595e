//! The worker's end of a stream: dials the target, under the worker's own policy.

pub mod dial;
pub mod policy;
