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
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use file::{FileError, check_file, file_in, has_steered};
pub use hosts::{hosts_addresses, hosts_conflicts, hosts_entries};
pub use overlap::{OverlapError, check_overlap};
pub use patterns::{PatternIndex, Standing};
pub use prefixes::{PrefixError, Prefixes, Synthetic};

use crate::sockets::Sockets;
use crate::target::Name;
use file::NameFile;

/// What must happen before an address leaves: its rule goes into the kernel.
pub trait NameRules: Send + Sync {
    /// Connections to `addresses` are from now on for `name`, which is a proxy host.
    ///
    /// # Errors
    /// When the rule is not in force. The name is then answered SERVFAIL, and the next question tries again.
    fn on_assigned(&self, name: &Name, addresses: Synthetic) -> io::Result<()>;
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
    /// Another process takes over.
    #[error("{name} gets no synthetic address from this process: another one takes over")]
    Frozen {
        /// The name.
        name: Name,
    },
    /// The kernel did not take the rule.
    #[error("the rule of {name} can't be installed: {source}")]
    Rule {
        /// The name.
        name: Name,
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
    /// The file is another process's.
    frozen: AtomicBool,
}

#[derive(Default)]
struct Table {
    patterns: Arc<PatternIndex>,
    /// The name with index 1 first.
    entries: Vec<Entry>,
    by_name: HashMap<Name, u32>,
}

struct Entry {
    name: Name,
    /// A proxy host whose rule the kernel has: an answer may leave.
    steered: bool,
}

impl Names {
    /// Opens `<state_dir>/names`, or creates it. No name is a proxy host before a [`change`](Self::change).
    ///
    /// # Errors
    /// When the file can't be opened, is damaged, was made for other prefixes or is in use by another daemon.
    pub fn open(
        state_dir: &Path,
        prefixes: Prefixes,
        rules: Arc<dyn NameRules>,
    ) -> Result<Names, NamesError> {
        Names::adopt(state_dir, prefixes, rules, &Sockets::default())
    }

    /// As [`Names::open`], with the file that the process before this one [hands on](Names::freeze).
    ///
    /// # Errors
    /// As [`Names::open`].
    pub fn adopt(
        state_dir: &Path,
        prefixes: Prefixes,
        rules: Arc<dyn NameRules>,
        sockets: &Sockets,
    ) -> Result<Names, NamesError> {
        let (file, names) = NameFile::open(&file_in(state_dir), prefixes, sockets)?;
        let by_name = (1..).zip(&names).map(|(index, name)| (name.clone(), index)).collect();
        let entries = names.into_iter().map(|name| Entry { name, steered: false }).collect();
        let table = Table { entries, by_name, ..Table::default() };
        let (full, frozen) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Names { prefixes, rules, table: table.into(), file: file.into(), full, frozen })
    }

    /// Begins to change which names are proxy hosts. Until the result is dropped, no name gets its first address.
    pub fn change(&self) -> Change<'_> {
        Change { names: self, _file: self.changes() }
    }

    /// Hands the file on: from when this returns no name gets its first address here, until [`thaw`](Self::thaw).
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn freeze(&self) -> io::Result<OwnedFd> {
        let file = self.changes();
        self.frozen.store(true, Ordering::Relaxed);
        file.hand_on()
    }

    /// The file is ours again: nobody has written to it.
    pub fn thaw(&self) {
        self.frozen.store(false, Ordering::Relaxed);
    }

    /// Leaves the file for ever to the process that it was [handed on](Self::freeze) to: a third one may follow that one
    /// while this one lets its connections end.
    pub fn leave(&self) {
        let mut file = self.changes();
        self.frozen.store(true, Ordering::Relaxed);
        file.leave();
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
        if self.frozen.load(Ordering::Relaxed) {
            return Err(NamesError::Frozen { name: name.clone() });
        }
        let (known, covered) = {
            let table = self.read();
            (table.by_name.get(name).copied(), table.patterns.covers(name.as_str()))
        };
        if !covered {
            return Ok(None);
        }
        let index = match known {
            Some(index) => index,
            None => self.assign(&mut file, name)?,
        };
        let Some(addresses) = self.prefixes.at(index) else { return Ok(None) };
        // Another thread may have been faster, while this one waited for the lock.
        if !self.read().entries[index as usize - 1].steered {
            let rule = |source| NamesError::Rule { name: name.clone(), source };
            self.rules.on_assigned(name, addresses).map_err(rule)?;
            self.write().entries[index as usize - 1].steered = true;
        }
        Ok(Some(addresses))
    }

    /// The addresses of `name`, where a pattern covers it and an answer may leave at once. Never blocks long.
    pub fn assigned(&self, name: &Name) -> Option<Synthetic> {
        let table = self.read();
        let index = *table.by_name.get(name)?;
        let steered = table.entries[index as usize - 1].steered;
        steered.then(|| self.prefixes.at(index)).flatten()
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

    /// How many names ever had an address.
    pub fn count(&self) -> usize {
        self.read().entries.len()
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
        table.entries.push(Entry { name: name.clone(), steered: false });
        table.by_name.insert(name.clone(), index);
        Ok(index)
    }

    // A panic elsewhere leaves no half-made change behind: entries are pushed whole and `steered` says less, not
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

/// A change of which names are proxy hosts; begun by [`Names::change`].
///
/// It is made in two steps, so that no name that is a proxy host before and after is without its rule or its answer:
/// [`set`](Self::set) puts the rules of known names into the kernel before they count, then the rules of those that are
/// no proxy hosts any more are removed.
pub struct Change<'a> {
    names: &'a Names,
    _file: MutexGuard<'a, NameFile>,
}

impl Change<'_> {
    /// From now on the names that `patterns` cover are proxy hosts, and no others. Before that `steer` is asked of every
    /// name that ever had an address: it puts the name's rule into the kernel, or says that it is no proxy host.
    ///
    /// # Errors
    /// The first of `steer`; nothing is set then.
    pub fn set<E>(
        &self,
        patterns: Arc<PatternIndex>,
        mut steer: impl FnMut(&Name, Synthetic) -> Result<bool, E>,
    ) -> Result<(), E> {
        // Nobody else changes the entries meanwhile, and answers need not wait for all this.
        let known = self.names.all();
        let steered: Vec<bool> =
            known.iter().map(|(name, addresses)| steer(name, *addresses)).collect::<Result<_, E>>()?;
        let mut table = self.names.write();
        table.patterns = patterns;
        for (entry, steered) in table.entries.iter_mut().zip(steered) {
            entry.steered = steered;
        }
        Ok(())
    }

    /// Nobody knows any more which rules the kernel has: each name's next question puts its own there.
    pub fn distrust(&self) {
        self.names.write().entries.iter_mut().for_each(|entry| entry.steered = false);
    }
}

#[cfg(test)]
mod tests;
