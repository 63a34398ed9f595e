//! Which names are proxy hosts, and the synthetic addresses that stand for them, for ever.
//!
//! What must hold:
//! - A name keeps its addresses over restarts and changes of the patterns, and an address is never given to a
//!   second name: JVMs and daemons keep what they were answered for as long as they run.
//! - When [`Names::lookup`] returns addresses, they are on the disk and their rule is in the kernel: the
//!   application may connect the moment the answer reaches it.
//!
//! Look-ups of names that have addresses take a read lock and a few hash look-ups. A name's first look-up
//! writes to the disk: call it where blocking is allowed.

mod file;
mod hosts;
mod overlap;
mod patterns;
mod prefixes;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use file::FileError;
pub use hosts::hosts_conflicts;
pub use overlap::{OverlapError, check_overlap};
pub use patterns::{PatternIndex, Standing};
pub use prefixes::{PrefixError, Prefixes, Synthetic};

use crate::target::{Name, Pattern};
use file::NameFile;

/// What must happen before an address leaves: its rule goes into the kernel.
pub trait NameRules: Send + Sync {
    /// Connections to `addresses` are from now on for `name`, on the ports of `patterns` (all that cover the
    /// name, the most specific first). Empty: the name is no proxy host any more, or not yet again; its rule
    /// goes. Called again for every known name at start and when the patterns are replaced.
    ///
    /// # Errors
    /// When the rule is not in force. The name is then answered SERVFAIL, and the next question tries again.
    fn on_assigned(&self, name: &Name, addresses: Synthetic, patterns: &[Pattern]) -> io::Result<()>;
}

/// Why a name has no address. Messages name the file or prefix and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// The file of names can't be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// All addresses are given.
    #[error(
        "{name} gets no synthetic address: all {capacity} addresses of steer.synthetic4 = \"{prefix}\" are given, and \
         they are never taken back; see {path} for what took them (a wildcard with too many names below it?)"
    )]
    Full {
        /// The name without an address.
        name: Name,
        /// How many names there are.
        capacity: u32,
        /// The IPv4 prefix.
        prefix: ipnet::Ipv4Net,
        /// The file of names.
        path: PathBuf,
    },
    /// The disk did not take the name.
    #[error("{name} gets no synthetic address: {path} can't be written: {source}")]
    Write {
        /// The name without an address.
        name: Name,
        /// The file of names.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel did not take the rule.
    #[error("the rule of {name} can't be installed ({others} others neither): {source}")]
    Rule {
        /// The name.
        name: Name,
        /// How many other names have the same trouble.
        others: usize,
        /// What the system said.
        source: io::Error,
    },
}

/// What a synthetic address leads back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reverse {
    /// The address lies in no synthetic prefix.
    Outside,
    /// It lies in one and is given to no name.
    Unassigned,
    /// It was given to this name, which may be no proxy host any more.
    Name(Name),
}

/// The proxy hosts' names and their addresses. One per daemon; shared by reference.
pub struct Names {
    prefixes: Prefixes,
    rules: Arc<dyn NameRules>,
    table: RwLock<Table>,
    /// Also the lock that orders all changes: whoever changes the table or the kernel's rules holds it.
    file: Mutex<NameFile>,
    full: AtomicBool,
}

#[derive(Default)]
struct Table {
    patterns: PatternIndex,
    /// The name with index 1 first.
    entries: Vec<Entry>,
    by_name: HashMap<Name, u32>,
}

struct Entry {
    name: Name,
    /// The patterns that the kernel has for this name; `None` while it may have others.
    told: Option<Vec<Pattern>>,
}

impl Names {
    /// Opens `<state_dir>/names`, or creates it. No name is a proxy host before [`set_patterns`](Self::set_patterns).
    ///
    /// # Errors
    /// When the file can't be opened, is damaged, was made for other prefixes or is in use by another daemon.
    pub fn open(
        state_dir: &Path,
        prefixes: Prefixes,
        rules: Arc<dyn NameRules>,
    ) -> Result<Names, NamesError> {
        let (file, names) = NameFile::open(&state_dir.join("names"), prefixes)?;
        let by_name = (1..).zip(&names).map(|(index, name)| (name.clone(), index)).collect();
        let entries = names.into_iter().map(|name| Entry { name, told: None }).collect();
        let table = Table { patterns: PatternIndex::default(), entries, by_name };
        Ok(Names { prefixes, rules, table: table.into(), file: file.into(), full: AtomicBool::new(false) })
    }

    /// Replaces the patterns and tells the kernel of every known name that they cover (what a rule says may
    /// have changed, too), and of every one that they cover no more; at start, of every known name. From the
    /// first moment on, names follow the new patterns. Blocks.
    ///
    /// # Errors
    /// When rules can't be installed: names the first. The patterns hold nevertheless; those names are
    /// answered SERVFAIL until a later question's try succeeds.
    pub fn set_patterns<'a>(
        &self,
        patterns: impl IntoIterator<Item = &'a Pattern>,
    ) -> Result<(), NamesError> {
        let index = PatternIndex::new(patterns);
        let _changes = self.changes();
        let work: Vec<(u32, Name, Vec<Pattern>)> = {
            let table = self.read();
            let entries = (1..).zip(&table.entries);
            let covering = entries.map(|(i, entry)| (i, entry, index.covering(entry.name.as_str())));
            let told = covering
                .filter(|(_, entry, covering)| !covering.is_empty() || entry.told.as_ref() != Some(covering));
            told.map(|(i, entry, covering)| (i, entry.name.clone(), covering)).collect()
        };
        {
            let mut table = self.write();
            table.patterns = index;
            for (index, _, covering) in &work {
                let entry = &mut table.entries[*index as usize - 1];
                // With the same patterns, the rule that is there serves until its successor replaces it.
                entry.told.take_if(|told| told != covering);
            }
        }
        let (mut told, mut failed) = (Vec::new(), Vec::new());
        for (index, name, covering) in work {
            match self.tell(index, &name, &covering) {
                Ok(()) => told.push((index, covering)),
                Err(source) => failed.push((name, source)),
            }
        }
        let mut table = self.write();
        for (index, covering) in told {
            table.entries[index as usize - 1].told = Some(covering);
        }
        for (name, _) in &failed {
            if let Some(index) = table.by_name.get(name).copied() {
                table.entries[index as usize - 1].told = None;
            }
        }
        let others = failed.len().saturating_sub(1);
        match failed.into_iter().next() {
            None => Ok(()),
            Some((name, source)) => Err(NamesError::Rule { name, others, source }),
        }
    }

    /// The addresses of `name`, where a pattern covers it; a name's first look-up assigns them, for ever.
    /// Blocks on the disk then: see [`assigned`](Self::assigned).
    ///
    /// # Errors
    /// When the prefix is full (logged once, loudly), the disk did not take the name, or the kernel its rule.
    pub fn lookup(&self, name: &Name) -> Result<Option<Synthetic>, NamesError> {
        if let Some(addresses) = self.assigned(name) {
            return Ok(Some(addresses));
        }
        let mut file = self.changes();
        let (known, covering) = {
            let table = self.read();
            (table.by_name.get(name).copied(), table.patterns.covering(name.as_str()))
        };
        if covering.is_empty() {
            return Ok(None);
        }
        let index = match known {
            Some(index) => index,
            None => self.assign(&mut file, name)?,
        };
        // Another thread may have been faster, while this one waited for the lock.
        if self.read().entries[index as usize - 1].told.as_ref() != Some(&covering) {
            let rule = |source| NamesError::Rule { name: name.clone(), others: 0, source };
            self.tell(index, name, &covering).map_err(rule)?;
            self.write().entries[index as usize - 1].told = Some(covering);
        }
        Ok(self.prefixes.at(index))
    }

    /// The addresses of `name`, where a pattern covers it and an answer may leave at once. Never blocks long.
    pub fn assigned(&self, name: &Name) -> Option<Synthetic> {
        let table = self.read();
        let index = *table.by_name.get(name)?;
        let told = table.entries[index as usize - 1].told.as_ref()?;
        if told.is_empty() { None } else { self.prefixes.at(index) }
    }

    /// What the name in a question is to us; see [`PatternIndex::standing`] for how it is written.
    pub fn standing(&self, name: &str) -> Standing {
        self.read().patterns.standing(name)
    }

    /// The name that was given `addr`.
    pub fn name_of(&self, addr: IpAddr) -> Option<Name> {
        let index = self.prefixes.index_of(addr)?;
        self.read().entries.get(index as usize - 1).map(|entry| entry.name.clone())
    }

    /// What `addr` leads back to.
    pub fn reverse(&self, addr: IpAddr) -> Reverse {
        match self.name_of(addr) {
            Some(name) => Reverse::Name(name),
            None if self.contains(addr) => Reverse::Unassigned,
            None => Reverse::Outside,
        }
    }

    /// True where `addr` lies in a synthetic prefix, given to a name or not.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.prefixes.contains(addr)
    }

    /// The prefixes that the addresses come from.
    pub fn prefixes(&self) -> Prefixes {
        self.prefixes
    }

    /// Every name that ever had an address, in the order of the index; proxy host or not.
    pub fn all(&self) -> Vec<(Name, Synthetic)> {
        let table = self.read();
        let entries = (1..).zip(&table.entries);
        entries.filter_map(|(i, entry)| Some((entry.name.clone(), self.prefixes.at(i)?))).collect()
    }

    fn assign(&self, file: &mut NameFile, name: &Name) -> Result<u32, NamesError> {
        let index = self.read().entries.len() as u32 + 1;
        if self.prefixes.at(index).is_none() {
            let (capacity, prefix) = (self.prefixes.capacity(), self.prefixes.v4());
            let error =
                NamesError::Full { name: name.clone(), capacity, prefix, path: file.path().to_owned() };
            if !self.full.swap(true, Ordering::Relaxed) {
                tracing::error!("{error}; from now on every new name fails, and this is not logged again");
            }
            return Err(error);
        }
        let path = file.path().to_owned();
        file.append(index, name).map_err(|source| NamesError::Write { name: name.clone(), path, source })?;
        let mut table = self.write();
        table.entries.push(Entry { name: name.clone(), told: None });
        table.by_name.insert(name.clone(), index);
        Ok(index)
    }

    fn tell(&self, index: u32, name: &Name, covering: &[Pattern]) -> io::Result<()> {
        let addresses = self.prefixes.at(index).ok_or_else(|| io::Error::other("index beyond the prefix"))?;
        self.rules.on_assigned(name, addresses, covering)
    }

    // A panic elsewhere leaves no half-made change behind: entries are pushed whole and `told` says less, not
    // more, than the kernel has. So a poisoned lock is as good as another.
    fn changes(&self) -> MutexGuard<'_, NameFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
