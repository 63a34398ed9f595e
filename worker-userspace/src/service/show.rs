//! Steps for people: one line each, and the difference where a file is written.

use std::fmt;

use similar::TextDiff;

use super::{Action, NAME, Plan, Step};

/// Lines around a change.
const AROUND: usize = 3;

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::ReadUnits => f.write_str("have systemd read its units"),
            Action::Enable => write!(f, "enable {NAME}"),
            Action::Start => write!(f, "start {NAME}"),
            Action::Reload => write!(f, "reload {NAME}"),
            Action::Restart => write!(f, "restart {NAME}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Directory { path, mode, why } => write!(f, "make {}, mode {mode:o}: {why}", path.display()),
            Step::Mode { path, from, to, why } => {
                write!(f, "set the mode of {} from {:o} to {to:o}", path.display(), from.mode & 0o7777)?;
                match from.uid {
                    0 => write!(f, ": {why}"),
                    uid => write!(f, ", and its owner from user {uid} to root: {why}"),
                }
            }
            Step::Write { path, before, why, .. } => {
                let verb = if before.is_some() { "change" } else { "write" };
                write!(f, "{verb} {}: {why}", path.display())
            }
            Step::Remove { path, why } => write!(f, "remove {}: {why}", path.display()),
            Step::Manage { action, why } => write!(f, "{action}: {why}"),
        }
    }
}

impl Step {
    /// What a write changes, as `diff -u` has it; nothing for other steps.
    pub fn difference(&self) -> String {
        let Step::Write { path, before, after, .. } = self else { return String::new() };
        let old = if before.is_some() { path.display().to_string() } else { "/dev/null".into() };
        let diff = TextDiff::from_lines(before.as_deref().unwrap_or_default(), after);
        diff.unified_diff().context_radius(AROUND).header(&old, &path.display().to_string()).to_string()
    }
}

/// All that would be done.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "would {step}")?;
            f.write_str(&step.difference())?;
        }
        Ok(())
    }
}
