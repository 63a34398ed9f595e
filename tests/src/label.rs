//! Names for what the lab makes: `dwlab-PID-SEQUENCE-part`.
//!
//! The process id says who must clean up, and lets the next run sweep what a dead one left.

use std::fmt;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

const PREFIX: &str = "dwlab-";

/// The name of one lab, unique on this machine while its process lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    pid: u32,
    sequence: u32,
}

impl Label {
    /// The next unused label of this process.
    pub(crate) fn next() -> Label {
        static SEQUENCE: AtomicU32 = AtomicU32::new(0);
        Label { pid: std::process::id(), sequence: SEQUENCE.fetch_add(1, Ordering::Relaxed) }
    }

    /// The process that made something of this name; `None` when the name is not a lab's.
    pub(crate) fn owner(name: &str) -> Option<u32> {
        name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}", self.pid, self.sequence)
    }
}

/// Whether a process of this id runs. One that nobody has waited for yet has ended all the same.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything, a parenthesis too.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_read_back_from_every_name() {
        let label = Label::next();
        assert_eq!(Label::owner(&label.to_string()), Some(std::process::id()));
        assert_eq!(Label::owner(&format!("{label}-appliance")), Some(std::process::id()));
        assert_ne!(Label::next(), label);
    }

    #[test]
    fn a_zombie_is_dead() -> anyhow::Result<()> {
        assert!(is_alive(std::process::id()));
        let mut child = std::process::Command::new("true").spawn()?;
        let life = crate::life::Life::of(child.id())?;
        assert!(life.ends_within(std::time::Duration::from_secs(10)));
        assert!(!is_alive(child.id()), "nobody has waited for it yet");
        child.wait()?;
        assert!(!is_alive(child.id()));
        Ok(())
    }

    #[test]
    fn names_of_others_have_no_owner() {
        for name in ["docker0", "dwlab", "dwlab-", "dwlab-x-1", "my-dwlab-12-1"] {
            assert_eq!(Label::owner(name), None, "{name}");
        }
    }
}
