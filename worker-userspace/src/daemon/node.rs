//! Who this node is: an id that stays the same over restarts, a name for people, and a directory that is its own.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::sockets::{Sockets, name};
use crate::tunnel::message::{Id, id_text, parse_id};

/// Makes the state directory where it is missing, and takes it for this process until the result is closed: two daemons with
/// one id would be one node to their appliance. `None`: another process has it.
///
/// # Errors
/// The directory can't be made, opened or locked.
pub(super) fn take(state_dir: &Path, sockets: &Sockets) -> io::Result<Option<File>> {
    fs::create_dir_all(state_dir)?;
    sockets.lock(name::STATE_LOCK, File::open(state_dir)?)
}

/// The node's id from `<state_dir>/node-id`; made at the first start.
///
/// # Errors
/// The file can't be read or written, or holds something else.
pub(super) fn id(state_dir: &Path) -> io::Result<Id> {
    let path = state_dir.join("node-id");
    match fs::read_to_string(&path) {
        Ok(text) => parse_id(text.trim()).ok_or_else(|| {
            let what =
                format!("{}: not 32 hexadecimal digits: remove it, and a new one is made", path.display());
            io::Error::new(io::ErrorKind::InvalidData, what)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id: Id = rand::random();
            // Whole or not at all, whenever the power fails.
            let fresh = state_dir.join("node-id.new");
            let mut file = File::create(&fresh)?;
            writeln!(file, "{}", id_text(&id))?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            File::open(state_dir)?.sync_all()?;
            Ok(id)
        }
        Err(error) => Err(error),
    }
}

/// The host's name, for people.
pub(super) fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "unnamed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_taken_by_one_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let state_dir = directory.path().join("state");
        let taken = take(&state_dir, &Sockets::default()).unwrap();
        assert!(taken.is_some());
        assert!(take(&state_dir, &Sockets::default()).unwrap().is_none());
        drop(taken);
        assert!(take(&state_dir, &Sockets::default()).unwrap().is_some());
    }

    #[test]
    fn an_id_is_made_once_and_a_damaged_file_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let first = id(directory.path()).unwrap();
        assert_eq!(id(directory.path()).unwrap(), first);
        fs::write(directory.path().join("node-id"), "rubbish").unwrap();
        assert!(id(directory.path()).unwrap_err().to_string().contains("remove it"));
        assert_eq!(fs::read_to_string(directory.path().join("node-id")).unwrap(), "rubbish");
    }
}
