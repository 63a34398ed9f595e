//! Records that the kernel programs and the daemon share, and the pure steering decision.
//!
//! Both sides compile this crate: `worker-ebpf` for BPF without `std`, the daemon with the feature
//! `userspace`. What must hold: every record is `repr(C)` without padding (asserted at compile time, since
//! the kernel compares keys byte by byte and the verifier refuses to copy bytes that were never written),
//! and [`decision::decide`] is the only place that knows in which order a connection is judged.
#![cfg_attr(not(test), no_std)]

pub mod addr;
pub mod decision;
pub mod records;

pub use addr::{Addr, Dest};
pub use decision::{Verdict, World, decide};
pub use records::{
    Config, Counter, DownUntil, Entry, Event, Flow, FlowKey, Layout, MAPS, PortRule, Reason, Synthetic,
    limits, mark,
};
