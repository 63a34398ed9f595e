//! The lab: real hosts in network namespaces, and real software on them.
//!
//! ```text
//!            elsewhere (direct.example, the appliance's resolver)
//!                │
//!  appliance ─ router ─ site ─ vcenter (vcenter.corp.example, the site's resolver)
//!                    ▲
//!                    └ refuses every new connection towards the site
//! ```
//!
//! A [`Lab`] is one such world with a name of its own, so that tests may run at the same time.
//! What must hold:
//!
//! - Nothing outside the lab changes: no route, no firewall rule, no cgroup that the lab did not make.
//! - Everything is undone when the [`Lab`] is dropped, after a panic too; what a killed program left
//!   behind is removed by the next one ([`sweep()`]).
//! - Nothing waits by sleeping, nothing is skipped: what is missing is an error that names its remedy.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let lab = tests::Lab::new()?;
//! let answer = lab.appliance().command("getent").args(["ahosts", "direct.example"]).check()?;
//! assert!(answer.contains("10.77.4.10"));
//! # Ok(()) }
//! ```

pub mod api;
mod artifacts;
pub mod ask;
mod booted;
pub mod bpf;
mod bytes;
mod capture;
mod cgroup;
mod clients;
mod command;
mod config;
mod daemon;
mod dnsmasq;
mod failing;
mod host;
mod label;
mod life;
mod link;
pub mod load;
pub mod net;
mod netns;
mod path;
mod pki;
mod process;
mod proxies;
mod require;
mod service;
mod sweep;
mod topology;
pub mod traffic;
mod tunnel;
mod vsphere;

pub use booted::Booted;
pub use bytes::{Bytes, Hash};
pub use cgroup::Cgroup;
pub use clients::{Sdk, api_judge, go_no_proxy, musl_resolve, prepare};
pub use command::{Command, Output};
pub use config::{APPLIANCE_URL, Config, Group, worker_key};
pub use daemon::{Daemon, program};
pub use dnsmasq::{Query, Resolver};
pub use failing::{Failing, shown};
pub use host::Host;
pub use net::Dual;
pub use netns::Namespace;
pub use nix::sys::signal::Signal;
pub use path::{Path, PathSettings, PathStats};
pub use pki::{Identity, Pki, Validity};
pub use process::Process;
pub use proxies::{Door, HttpProxy, PROXY_LOGIN, PROXY_NAME, PROXY_PASSWORD, ProxyKind};
pub use service::Service;
pub use sweep::{Swept, sweep};
pub use topology::Lab;
pub use tunnel::Tunnel;
pub use vsphere::{VCENTER_URL, Vsphere};
