//! The file that keeps names and their addresses for ever: `<state_dir>/names`.
//!
//! ```text
//! dworker names 1 240.64.0.0/16 2001:2::/48
//! 1 vcenter.corp.example 240.64.0.1 2001:2::1
//! 2 esx1.corp.example 240.64.0.2 2001:2::2
//! ```
//!
//! A header with the format's version and the prefixes, then a line per name in the order of their index;
//! lines are only ever appended. The addresses follow from the index; they stand there for people, and so
//! that a whole line can be told from one that a crash cut off.
//!
//! What must hold: [`NameFile::append`] returns only when the line is on the disk, because the address is
//! answered after that and applications keep it for as long as they run. So a line that a crash left in
//! pieces was never answered and may go; anything else that doesn't read is an error, never discarded.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::prefixes::Prefixes;
use crate::sockets::{Sockets, name};
use crate::target::Name;

const MAGIC: &str = "dworker names ";
const VERSION: &str = "1";

/// No line is longer: two addresses, an index and a name of 253 bytes.
const LONGEST_LINE: usize = 512;

/// Why the names can't be read or kept. Messages name the file and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be opened, created, read or repaired.
    #[error("{path}: {action}: {source}; the directory must exist and belong to the daemon")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{path} is in use by another dworker; stop that one, or give this one another state_dir")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// Its header is of another program or of a newer version.
    #[error(
        "{path}, line 1: {found:?} is not the header of a names file of version {VERSION}; \
         if a newer dworker wrote it, run that one; else restore the file from a backup"
    )]
    Header {
        /// The file.
        path: PathBuf,
        /// Its first line.
        found: String,
    },
    /// It was made for other prefixes.
    #[error(
        "{path} was made for the synthetic prefixes {found}, and the configuration says {configured}: applications \
         keep the addresses that they were answered for as long as they run, so set steer.synthetic4 and \
         steer.synthetic6 back; or stop those applications, move the file away and start again"
    )]
    Prefixes {
        /// The file.
        path: PathBuf,
        /// The prefixes in the file.
        found: String,
        /// The prefixes in the configuration.
        configured: String,
    },
    /// A line is not what was written there.
    #[error(
        "{path}, line {line}: {found:?} is damaged: {why}; restore the file from a backup; or stop the applications \
         that were answered addresses from it, move it away and start again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What stands there.
        found: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// Where the file is.
pub fn file_in(state_dir: &Path) -> PathBuf {
    state_dir.join("names")
}

/// True where a daemon with this state directory has steered: it made the file, which stays.
pub fn has_steered(state_dir: &Path) -> bool {
    file_in(state_dir).exists()
}

/// Looks at the file without opening it for more, and says how many names are in it: as [`NameFile::open`] would, which
/// may repair what this leaves alone. No file is one without names.
///
/// # Errors
/// It can't be read, is damaged, or was made for other prefixes.
pub fn check_file(path: &Path, prefixes: Prefixes) -> Result<usize, FileError> {
    let mut bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        read => read.map_err(|source| FileError::Io { path: path.to_owned(), action: "read it", source })?,
    };
    // A torn last line was never answered.
    bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
    if bytes.is_empty() {
        return Ok(0);
    }
    let header = format!("{MAGIC}{VERSION} {} {}", prefixes.v4(), prefixes.v6());
    let mut names = NameFile { file: None, path: path.to_owned(), prefixes, end: 0, torn: false };
    names.load(&bytes, &header).map(|names| names.len())
}

/// The open and locked file.
#[derive(Debug)]
pub(super) struct NameFile {
    /// `None`: it was left to another process.
    file: Option<File>,
    path: PathBuf,
    prefixes: Prefixes,
    /// The length of what is known to be on the disk.
    end: u64,
    /// Bytes of a failed append stand behind `end`.
    torn: bool,
}

impl NameFile {
    /// Opens or creates the file, locks it against other processes and reads the names, the first with index 1.
    pub(super) fn open(
        path: &Path,
        prefixes: Prefixes,
        sockets: &Sockets,
    ) -> Result<(NameFile, Vec<Name>), FileError> {
        let io = |action| move |source| FileError::Io { path: path.to_owned(), action, source };
        let opened =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let opened = opened.map_err(io("open or create it"))?;
        let locked = sockets.lock(name::NAMES_LOCK, opened).map_err(io("lock it"))?;
        let mut file = locked.ok_or_else(|| FileError::Locked { path: path.to_owned() })?;
        // The process before this one may have read it.
        file.rewind().map_err(io("read it"))?;
        let mode = file.metadata().map_err(io("read its mode"))?.permissions().mode();
        if mode & 0o077 != 0 {
            file.set_permissions(PermissionsExt::from_mode(0o600)).map_err(io("set its mode to 0600"))?;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io("read it"))?;

        let mut names = NameFile { file: Some(file), path: path.to_owned(), prefixes, end: 0, torn: false };
        let header = format!("{MAGIC}{VERSION} {} {}\n", prefixes.v4(), prefixes.v6());
        // Also after a crash at the very first start: then the header is there in part, or as zeros.
        let cut = header.as_bytes().starts_with(&bytes) || bytes.iter().all(|b| *b == 0);
        if bytes.len() < header.len() && cut {
            names.create(&header).map_err(io("write its header"))?;
            return Ok((names, Vec::new()));
        }
        let found = names.load(&bytes, header.trim_end())?;
        Ok((names, found))
    }

    /// The file with its lock, for the process that follows.
    pub(super) fn hand_on(&self) -> io::Result<OwnedFd> {
        Ok(self.file()?.try_clone()?.into())
    }

    /// Leaves the file to the process that follows: closed and not unlocked, since the lock is that one's, too.
    pub(super) fn leave(&mut self) {
        self.file = None;
    }

    fn file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::Error::other("it is another process's"))
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends the line of `name` and returns when it is on the disk.
    ///
    /// # Errors
    /// When the disk is full or fails. The line then counts as not written: the next append takes its place.
    pub(super) fn append(&mut self, index: u32, name: &Name) -> io::Result<()> {
        let line = self.line(index, name)? + "\n";
        if self.torn {
            self.file()?.set_len(self.end)?;
            self.torn = false;
        }
        let file = self.file()?;
        let written = file.write_all_at(line.as_bytes(), self.end).and_then(|()| file.sync_data());
        match written {
            Ok(()) => self.end += line.len() as u64,
            Err(_) => self.torn = file.set_len(self.end).is_err(),
        }
        written
    }

    fn line(&self, index: u32, name: &Name) -> io::Result<String> {
        let addresses = self.prefixes.at(index).ok_or_else(|| io::Error::other("index beyond the prefix"))?;
        Ok(format!("{index} {name} {} {}", addresses.v4, addresses.v6))
    }

    fn create(&mut self, header: &str) -> io::Result<()> {
        let file = self.file()?;
        file.set_len(0)?;
        file.write_all_at(header.as_bytes(), 0)?;
        file.sync_all()?;
        // The file's entry in its directory, without which its content is worth nothing.
        if let Some(directory) = self.path.parent() {
            File::open(if directory.as_os_str().is_empty() { Path::new(".") } else { directory })?
                .sync_all()?;
        }
        self.end = header.len() as u64;
        Ok(())
    }

    fn load(&mut self, bytes: &[u8], header: &str) -> Result<Vec<Name>, FileError> {
        let mut names: Vec<Name> = Vec::new();
        for (i, chunk) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
            let line = chunk.strip_suffix(b"\n").unwrap_or(chunk);
            let text = String::from_utf8_lossy(line).into_owned();
            if i == 0 {
                self.check_header(&text, header)?;
                self.end = chunk.len() as u64;
                if chunk.len() == line.len() {
                    self.repair(names.len(), "its header's line end is missing", Some(b"\n"))?;
                }
                continue;
            }
            let index = names.len() as u32 + 1;
            match self.parse(index, &text) {
                Ok(name) => names.push(name),
                Err(why) => {
                    let last = self.end as usize + chunk.len() == bytes.len();
                    let torn = chunk.len() == line.len() || line.contains(&0);
                    if !(last && torn && chunk.len() <= LONGEST_LINE) {
                        let (path, found) = (self.path.clone(), text.chars().take(80).collect());
                        return Err(FileError::Damaged { path, line: i + 1, found, why });
                    }
                    self.repair(
                        names.len(),
                        "a crash cut off its last line, which no answer was made from",
                        None,
                    )?;
                    break;
                }
            }
            self.end += chunk.len() as u64;
            if chunk.len() == line.len() {
                self.repair(names.len(), "its last line's end is missing", Some(b"\n"))?;
            }
        }
        let mut seen = std::collections::HashMap::with_capacity(names.len());
        for (i, name) in names.iter().enumerate() {
            if seen.insert(name, i).is_some() {
                let why = "the name stands there twice";
                let (path, found) = (self.path.clone(), name.to_string());
                return Err(FileError::Damaged { path, line: i + 2, found, why });
            }
        }
        Ok(names)
    }

    fn check_header(&self, found: &str, header: &str) -> Result<(), FileError> {
        let path = || self.path.clone();
        let version = format!("{MAGIC}{VERSION} ");
        if found == header {
            Ok(())
        } else if let Some(prefixes) = found.strip_prefix(&version).filter(|text| text.contains('/')) {
            let configured = header[version.len()..].to_owned();
            Err(FileError::Prefixes { path: path(), found: prefixes.to_owned(), configured })
        } else {
            Err(FileError::Header { path: path(), found: found.chars().take(80).collect() })
        }
    }

    fn parse(&self, index: u32, text: &str) -> Result<Name, &'static str> {
        let mut fields = text.split(' ');
        if fields.next() != Some(index.to_string().as_str()) {
            return Err("it does not begin with the index that follows the line above");
        }
        let name: Name =
            fields.next().unwrap_or_default().parse().map_err(|_| "its second field is not a name")?;
        match self.line(index, &name) {
            Ok(line) if line == text => Ok(name),
            Ok(_) => Err("its addresses are not those of its index"),
            Err(_) => Err("its index lies beyond the prefix"),
        }
    }

    /// Cuts the file at `self.end`, or appends `missing` there, and says so in the log.
    fn repair(&mut self, kept: usize, what: &'static str, missing: Option<&[u8]>) -> Result<(), FileError> {
        tracing::warn!(path = %self.path.display(), names = kept, "repaired the file of names: {what}");
        let at = self.end;
        self.end += missing.map_or(0, |bytes| bytes.len() as u64);
        let repair = || {
            let file = self.file()?;
            match missing {
                Some(bytes) => file.write_all_at(bytes, at)?,
                None => file.set_len(at)?,
            }
            file.sync_data()
        };
        repair().map_err(|source| FileError::Io { path: self.path.clone(), action: "repair it", source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that fails in the middle of a line, and fails to take it back: no later name may suffer.
    #[test]
    fn an_append_that_fails_half_way_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("names");
        let name = |text: &str| text.parse::<Name>().unwrap();
        let (mut names, _) = NameFile::open(&path, Prefixes::default(), &Sockets::default()).unwrap();
        names.append(1, &name("a.example")).unwrap();

        let read_only = File::open(&path).unwrap();
        let working = names.file.replace(read_only).unwrap();
        names.append(2, &name("a-long-name-that-did-not-make-it.example")).unwrap_err();
        let line = b"2 a-long-name-that-did-not-make-it.example 240.64.0.2 2001:2::2\n";
        working.write_all_at(line, names.end).unwrap();
        names.append(2, &name("b.example")).unwrap_err();

        names.file = Some(working);
        names.append(2, &name("c.example")).unwrap();
        drop(names);
        let (_, found) = NameFile::open(&path, Prefixes::default(), &Sockets::default()).unwrap();
        assert_eq!(found, [name("a.example"), name("c.example")]);
    }
}
