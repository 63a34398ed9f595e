//! A directory of trusted certificates.

use std::fs;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;

use super::{FileCause, FileError, because, read_roots};

/// Files of a directory that are read: a system's whole store has a third of it.
const MOST: usize = 1000;

/// The certificates of all files `*.pem`, `*.crt` and `*.cer` of a directory, each once, and which files were left out.
/// One that can't be used is no reason to do without the others: many hands put files there.
///
/// # Errors
/// The directory can't be read, has too many files, or holds no certificate at all.
pub fn read_roots_directory(
    path: &Path,
) -> Result<(Vec<CertificateDer<'static>>, Vec<FileError>), FileError> {
    let about = |cause| FileError { path: path.to_owned(), cause };
    let listed = fs::read_dir(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotADirectory => about(FileCause::NotADirectory),
        _ => about(because(error)),
    })?;
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in listed {
        let file = entry.map_err(|error| about(because(error)))?.path();
        let ending = file.extension().and_then(|ending| ending.to_str());
        if ending.is_some_and(|ending| ["pem", "crt", "cer"].contains(&ending)) {
            files.push(file);
        }
        if files.len() > MOST {
            return Err(about(FileCause::ManyFiles(MOST)));
        }
    }
    files.sort();
    let mut roots: Vec<CertificateDer<'static>> = Vec::new();
    let mut faults = Vec::new();
    for file in files {
        match read_roots(&file) {
            Ok(found) => {
                for root in found {
                    if !roots.contains(&root) {
                        roots.push(root);
                    }
                }
            }
            Err(fault) => faults.push(fault),
        }
    }
    match (roots.is_empty(), faults.pop()) {
        (false, last) => {
            faults.extend(last);
            Ok((roots, faults))
        }
        (true, Some(fault)) => Err(fault),
        (true, None) => Err(about(FileCause::EmptyDirectory)),
    }
}
