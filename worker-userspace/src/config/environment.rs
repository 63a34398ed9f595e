//! What a process was given beside its file: variables, systemd's credentials, and the host's name.
//!
//! What must hold: it is read from the process once, and handed on; a variable of ours that means nothing is a fault, as
//! an unknown key of the file is one.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::fault::{Wrong, wrong};
use super::meant::nearest;
use super::schema::{Key, Kind, SECTIONS, Section, TOP, join};
use crate::target::Name;

/// What all variables of ours begin with.
const PREFIX: &str = "DWORKER_";
/// The variable that tells a service under which settings it was started.
pub const UNIT_VARIABLE: &str = "DWORKER_UNIT";
/// Those that the command line itself reads, or that the service is known by.
const OTHERS: [&str; 2] = ["DWORKER_TOKEN", UNIT_VARIABLE];
/// Those of the older product's container, and what they set.
const OLDER: [(&str, &str); 3] =
    [("MORPHEUS_KEY", "apikey"), ("MORPHEUS_URL", "appliance_url"), ("MORPHEUS_WORKER_KEY", "worker_key")];
/// Those that many programs obey, and what they set where nothing else does. The first of two counts, as with curl.
const CONVENTIONS: [(&str, &str); 4] = [
    ("https_proxy", "proxy_address"),
    ("HTTPS_PROXY", "proxy_address"),
    ("no_proxy", "no_proxy"),
    ("NO_PROXY", "no_proxy"),
];

/// A process's environment.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, OsString>,
    host: Option<String>,
}

/// A key that a variable sets.
pub(super) struct Assignment<'e> {
    pub(super) variable: &'e str,
    pub(super) section: &'static Section,
    pub(super) key: &'static Key,
    pub(super) text: &'e str,
}

impl Environment {
    /// This process's own.
    pub fn of_process() -> Environment {
        let variables =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        Environment { variables: variables.collect(), host }
    }

    /// One of these variables, on a host of this name.
    pub fn new<N: Into<String>, V: Into<OsString>>(
        host: &str,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Environment {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
        Environment { variables: variables.collect(), host: Some(host.to_owned()) }
    }

    /// True where a variable sets a key, rightly or not.
    pub fn configures(&self) -> bool {
        let (assignments, faults) = self.assignments();
        !assignments.is_empty() || !faults.is_empty()
    }

    /// Each key that a variable sets, once, and each variable that is wrong. An empty variable is one that is not set.
    pub(super) fn assignments(&self) -> (Vec<Assignment<'_>>, Vec<(&str, Wrong)>) {
        let mut faults = Vec::new();
        let mut assignments: Vec<Assignment<'_>> = Vec::new();
        // In order, so that ours come before those of the older product.
        for (variable, value) in &self.variables {
            let older = || OLDER.iter().find(|(name, _)| name == variable);
            let (section, key) = match (variable.strip_prefix(PREFIX), older()) {
                (Some(_), _) if OTHERS.contains(&variable.as_str()) || value.is_empty() => continue,
                (Some(name), _) => match find(name) {
                    Ok(found) => found,
                    Err(wrong) => {
                        faults.push((variable.as_str(), wrong));
                        continue;
                    }
                },
                (None, Some((_, key))) if !value.is_empty() => match TOP.key(key) {
                    Some(key) => (&TOP, key),
                    None => continue,
                },
                (None, _) => continue,
            };
            let Some(text) = value.to_str() else {
                faults.push((variable.as_str(), wrong("not UTF-8", "write it in UTF-8")));
                continue;
            };
            if !assignments.iter().any(|earlier| std::ptr::eq(earlier.key, key)) {
                assignments.push(Assignment { variable, section, key, text });
            }
        }
        (assignments, faults)
    }

    /// What the variables say that many programs obey, as far as there are keys for it.
    pub(super) fn conventions(&self) -> impl Iterator<Item = (&'static str, &'static Key, &str)> {
        CONVENTIONS.iter().filter_map(|(variable, key)| {
            let text = self.variables.get(*variable)?.to_str().filter(|text| !text.trim().is_empty())?;
            Some((*variable, TOP.key(key)?, text))
        })
    }

    /// The path of a credential that systemd has handed to this process.
    pub(super) fn credential(&self, name: &str) -> Option<String> {
        let path = PathBuf::from(self.credentials()?).join(name);
        path.exists().then(|| path.to_str().map(str::to_owned)).flatten()
    }

    /// True where a path is that of a credential: systemd itself guards those.
    pub(super) fn is_credential(&self, path: &Path) -> bool {
        self.credentials().is_some_and(|directory| path.starts_with(directory))
    }

    fn credentials(&self) -> Option<&OsStr> {
        self.variables.get("CREDENTIALS_DIRECTORY").map(OsString::as_os_str).filter(|path| !path.is_empty())
    }

    /// The URL of this host, where its name can stand in one.
    pub(super) fn worker_url(&self) -> Option<String> {
        let host: Name = self.host.as_ref()?.parse().ok()?;
        Some(format!("https://{host}"))
    }
}

/// The variable of a key.
pub(super) fn variable(section: &Section, key: &Key) -> String {
    format!("{PREFIX}{}", join(section.path, key.name).replace('.', "_").to_ascii_uppercase())
}

/// All keys that a variable can set: those that stand once, and hold no sections.
fn settable() -> impl Iterator<Item = (&'static Section, &'static Key)> {
    let once = SECTIONS.into_iter().filter(|section| !section.path.contains("[]"));
    let keys = once.flat_map(|section| section.keys.iter().map(move |key| (section, key)));
    keys.filter(|(_, key)| !matches!(key.kind, Kind::Section(_) | Kind::Sections(_)))
}

/// The key that `DWORKER_<name>` sets.
fn find(name: &str) -> Result<(&'static Section, &'static Key), Wrong> {
    let mut names = Vec::new();
    for (section, key) in settable() {
        let variable = variable(section, key);
        if variable.strip_prefix(PREFIX) == Some(name) {
            return Ok((section, key));
        }
        names.push(variable[PREFIX.len()..].to_ascii_lowercase());
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let remedy = match nearest(&names, name) {
        Some(near) => format!("did you mean `{PREFIX}{}`?", near.to_ascii_uppercase()),
        None => format!(
            "unset it, or write it as `{PREFIX}KEY` or `{PREFIX}SECTION_KEY`, as in `DWORKER_STEER_CGROUPS`"
        ),
    };
    Err(wrong("unknown variable", remedy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_keys_have_one_variable() {
        let mut seen = HashSet::new();
        for (section, key) in settable() {
            let variable = variable(section, key);
            assert!(seen.insert(variable.clone()) && !OTHERS.contains(&variable.as_str()), "{variable}");
        }
        assert!(seen.contains("DWORKER_APPLIANCE_URL") && seen.contains("DWORKER_STEER_CGROUPS"));
    }

    #[test]
    fn the_older_variables_have_keys() {
        for (variable, key) in OLDER {
            assert!(TOP.key(key).is_some(), "{variable}");
        }
    }
}
