//! Steering: what is captured on this host, and how a captured connection leads back to what it is for.
//!
//! | room | what it knows |
//! |---|---|
//! | [`kernel`] | what steering asks of the kernel: the trait behind which everything that needs root is hidden |
//! | [`attached`] | which programs a cgroup has, whoever attached them |
//! | [`probe`] | what this machine has: cgroup v2, capabilities, helpers |
//! | [`pins`] | what of steering outlives the daemon, and is adopted by the next one |
//! | [`programs`] | the real kernel: loads and attaches `worker-ebpf`, reads and writes its maps |
//! | [`rules`] | from the administrator's patterns to the tables that the programs read |
//! | [`names`] | which synthetic address stands for which name, for ever |
//! | [`dns`] | answers for the resolvers that applications ask |
//! | `scope` | which cgroups are captured, now |
//! | [`caller`] | who connects: process, cgroup, network namespace |
//! | [`judge`] | what the kernel would do with a connection |
//! | [`steering`] | all of this together, in the order of a start |

pub mod attached;
pub mod caller;
pub mod dns;
#[cfg(test)]
pub(crate) mod fake;
pub mod judge;
pub mod kernel;
pub mod names;
pub mod pins;
pub mod probe;
pub mod programs;
pub mod rules;
mod scope;
pub mod steering;
