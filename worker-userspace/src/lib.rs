//! dworker, as a library: `main.rs` only parses the command line and dispatches.
//!
//! The modules are floors; each knows only the floors below it. `ARCHITECTURE.md` follows one
//! connection through them.
//!
//! | floor | rooms |
//! |---|---|
//! | 4 | [`daemon`] |
//! | 3 | [`appliance`], [`worker`], [`entry`], [`doctor`] |
//! | 2 | [`steer`], [`egress`], [`route`], [`splice`], [`carry`], [`service`] |
//! | 1 | [`accept`], [`config`], [`tunnel`], [`inspect`], [`telemetry`], [`drain`], [`sockets`], [`notify`], [`connect`], [`resolve`], [`upstream`], [`web`], [`target`], [`refusal`] |

pub mod accept;
pub mod appliance;
mod basic;
pub mod carry;
pub mod config;
pub mod connect;
pub mod daemon;
pub mod doctor;
pub mod drain;
pub mod egress;
pub mod entry;
pub mod inspect;
pub mod memory;
pub mod notify;
pub mod refusal;
pub mod resolve;
pub mod route;
pub mod service;
pub mod sockets;
pub mod splice;
pub mod steer;
pub mod target;
pub mod telemetry;
pub mod threads;
pub mod tunnel;
pub mod upstream;
pub mod web;
pub mod worker;
