//! What a reload would bring: whether what this process was started with is still what is there.
//!
//! What must hold: the daemon judges it itself, in its own environment and with its own credentials, by the values that
//! it runs with; so no stamp elsewhere can be wrong. No value is told, since some are secrets.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{self, Config, Effective, Fingerprint, Loaded};

/// A program is the same file, or it is another.
type Program = Option<(u64, u64)>;

/// What a reload would bring, in words; empty: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// One line for each thing that has changed.
    pub news: Vec<String>,
}

/// What this process was started with.
#[derive(Debug)]
pub struct Beginning {
    program: Program,
    /// The configuration that was named; none: the one that is found.
    named: Option<PathBuf>,
    config: Config,
    effective: Effective,
    secrets: Fingerprint,
}

impl Beginning {
    /// Of this process, which has read `loaded`. Call it at the start.
    pub fn of(named: Option<PathBuf>, loaded: &Loaded) -> Beginning {
        Beginning {
            program: identity(Path::new("/proc/self/exe")),
            named,
            secrets: Fingerprint::of(loaded.config.read_once()),
            config: loaded.config.clone(),
            effective: loaded.effective.clone(),
        }
    }

    /// What has changed since; `program` is what a reload would start.
    pub fn news(&self, program: &Path) -> News {
        let mut news = Vec::new();
        // Where there is none it can't be started, and the reload will say so.
        if identity(program).is_some_and(|now| self.program != Some(now)) {
            news.push("the program is another".to_owned());
        }
        match config::read(self.named.as_deref()) {
            Err(_) => news.push("the configuration has faults".to_owned()),
            Ok((_, loaded)) => news.extend(self.changed(&loaded)),
        }
        News { news }
    }

    fn changed(&self, loaded: &Loaded) -> Option<String> {
        let changed = self.effective.differing(&loaded.effective);
        match changed.as_slice() {
            [] if self.config != loaded.config => {
                Some("a secret in the configuration has changed".to_owned())
            }
            [] if self.secrets != Fingerprint::of(loaded.config.read_once()) => {
                Some("a secret's file has changed".to_owned())
            }
            [] => None,
            keys => Some(format!("changed: {}", keys.join(", "))),
        }
    }
}

fn identity(program: &Path) -> Program {
    fs::metadata(program).ok().map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: &str = "appliance_url = \"https://appliance.example\"\n";

    #[test]
    fn what_has_changed_is_named_and_secrets_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let (file, key) = (directory.path().join("dworker.toml"), directory.path().join("key"));
        let write = |lines: &str| fs::write(&file, format!("{WORKER}{lines}")).unwrap();
        let keys = [1, 2].map(|_| config::Key::generate().unwrap().reveal().to_owned());
        fs::write(&key, &keys[0]).unwrap();
        let by_file = format!("worker_key_file = \"{}\"\n", key.display());
        write(&by_file);
        let program = std::env::current_exe().unwrap();
        let begin = || Beginning::of(Some(file.clone()), &config::read(Some(&file)).unwrap().1);
        let beginning = begin();
        let news = |beginning: &Beginning| beginning.news(&program).news;
        assert!(news(&beginning).is_empty());

        write(&format!("{by_file}# a comment\nlanes = 4\ndrain = \"20s\"\n"));
        assert_eq!(news(&beginning), ["changed: drain, lanes"]);
        write("");
        assert_eq!(news(&beginning), ["the configuration has faults"]);
        write(&by_file);
        fs::write(&key, &keys[1]).unwrap();
        assert_eq!(news(&beginning), ["a secret's file has changed"]);

        write(&format!("worker_key = \"{}\"\n", keys[0]));
        let beginning = begin();
        assert!(news(&beginning).is_empty());
        write(&format!("worker_key = \"{}\"\n", keys[1]));
        assert_eq!(news(&beginning), ["a secret in the configuration has changed"]);

        let other = directory.path().join("dworker");
        fs::copy("/bin/true", &other).unwrap();
        let beginning = begin();
        assert_eq!(beginning.news(&other).news, ["the program is another"]);
        assert!(beginning.news(&directory.path().join("missing")).news.is_empty());
    }
}
