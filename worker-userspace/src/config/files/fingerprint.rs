//! Whether files have changed.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::{FileCause, read_file};

/// What stands in several files, as a hash: by content, since a time of change may stay the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Reads the files. One that can't be read counts as such.
    pub fn of<'p>(paths: impl IntoIterator<Item = &'p Path>) -> Fingerprint {
        let mut hash = Sha256::new();
        for path in paths {
            match read_file(path) {
                Ok((bytes, _)) => {
                    hash.update((bytes.len() as u64).to_be_bytes());
                    hash.update(&bytes);
                }
                Err(FileCause::Missing) => hash.update(u64::MAX.to_be_bytes()),
                Err(_) => hash.update((u64::MAX - 1).to_be_bytes()),
            }
        }
        Fingerprint(hash.finalize().into())
    }
}
