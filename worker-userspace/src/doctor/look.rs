//! Seeing what there is.
//!
//! | file | what |
//! |---|---|
//! | `look/system.rs` | processes, mounts, disks, ports |
//! | `look/names.rs` | files and resolvers that names are looked up by |
//! | `look/kernel.rs` | what is attached; sends the canaries |
//! | `look/reach.rs` | the appliance, through a proxy where one leads there |

mod kernel;
mod names;
mod reach;
mod system;

use std::net::SocketAddr;
use std::path::Path;

use crate::config::Config;
use crate::inspect::status::{CertificateStatus, Status};
use crate::tunnel::tls::Listener;
use crate::tunnel::tls::expiry::Expiry;
use crate::tunnel::tls::listener;

use super::facts::{Facts, Hooks};

pub use system::in_the_way;

/// Looks at all that no daemon need be asked for.
pub async fn host(config: &Config, status: Option<&Status>, facts: &mut Facts) {
    let root = Path::new("/");
    facts.system = system::look(root, config, status);
    facts.names = names::look(root, config, status, facts.system.elsewhere).await;
    let expiry = Expiry::default();
    if let Some(worker) = &config.worker {
        facts.appliance = Some(reach::dial(worker, &expiry).await);
    }
    if let Some(files) = config.appliance.as_ref().and_then(listener::Files::of) {
        // Files that can't be used are the configuration's faults.
        let _ = Listener::read(&files, &expiry);
    }
    facts.certificates = CertificateStatus::all(&expiry);
    for other in status.iter().flat_map(|status| &status.tls) {
        // What a daemon was shown once may be another one by now; its files may not have been taken.
        let known = |mine: &CertificateStatus| {
            mine.source == other.source
                && (matches!(mine.source.as_str(), "appliance" | "proxy")
                    || (&mine.subject, mine.not_after) == (&other.subject, other.not_after))
        };
        if !facts.certificates.iter().any(known) {
            facts.certificates.push(other.clone());
        }
    }
}

/// The addresses on which a process listens.
pub fn listeners(pid: u32) -> Vec<SocketAddr> {
    system::listeners_of(Path::new(&format!("/proc/{pid}")))
}

/// Looks at what is attached, and sends the canaries. Blocks for as long as they sing.
pub fn hooks(config: &Config, status: Option<&Status>, elsewhere: bool) -> Option<Hooks> {
    kernel::look(Path::new("/"), config, status, elsewhere)
}

/// What a second status says of that: what the programs counted meanwhile, and which of the cgroups the daemon has found by
/// now, as it finds those that are made again.
pub fn again(hooks: &mut Hooks, before: &Status, after: &Status) {
    let counters =
        |status: &Status| status.steer.as_ref().map(|steer| steer.counters.clone()).unwrap_or_default();
    let before = counters(before);
    let rise = |(word, n): (String, u64)| {
        let was = before.get(&word).copied().unwrap_or(0);
        (word, n.saturating_sub(was))
    };
    hooks.counted = Some(counters(after).into_iter().map(rise).collect());
    if let Some(steer) = &after.steer {
        hooks.uncaptured.retain(|path| !kernel::is_captured(steer, path));
    }
}
