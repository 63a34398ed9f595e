//! Removing what a killed program left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::Result;

use crate::label::{Label, is_alive};
use crate::{bpf, cgroup, netns};

/// The paths of what a sweep removed.
#[derive(Debug, Default)]
pub struct Swept(pub Vec<PathBuf>);

/// Removes the namespaces, cgroups, processes and directories of labs whose program is dead.
///
/// # Errors
///
/// When a cgroup cannot be emptied, or when there is no cgroup v2.
pub fn sweep() -> Result<Swept> {
    sweep_where(|owner| !is_alive(owner))
}

/// The sweep before the first lab of this process. A name with our own id is then a leftover of a
/// dead process that had the same id.
pub(crate) fn sweep_once() -> Result<()> {
    static FIRST: Once = Once::new();
    let mut result = Ok(());
    FIRST.call_once(|| {
        result = sweep_where(|owner| owner == std::process::id() || !is_alive(owner)).map(drop);
    });
    result
}

fn sweep_where(dead: impl Fn(u32) -> bool) -> Result<Swept> {
    let mut swept = Swept::default();
    let leftovers = |directory: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let left =
            entries.filter(|entry| Label::owner(&entry.file_name().to_string_lossy()).is_some_and(&dead));
        left.map(|entry| entry.path()).collect()
    };
    for path in leftovers(&cgroup::root()?) {
        cgroup::remove(&path)?;
        swept.0.push(path);
    }
    for path in leftovers(Path::new(netns::DIRECTORY)) {
        netns::remove(&path);
        swept.0.push(path);
    }
    for path in leftovers(&std::env::temp_dir()) {
        bpf::unmount(&path.join(bpf::PINNED));
        // Ignored: another sweep may have been faster.
        let _ = fs::remove_dir_all(&path);
        swept.0.push(path);
    }
    Ok(swept)
}
