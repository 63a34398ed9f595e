//! Paths of a host whose files lie below a directory: its links lead where they would lead there, never outside.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// As many links are followed as the kernel follows.
const LINKS: usize = 40;

/// Where a path of the host below `root` is; what is not there yet stays as it is written.
pub(super) fn resolve(root: &Path, path: &Path) -> PathBuf {
    let words = |path: &Path| -> VecDeque<OsString> {
        let components =
            path.components().filter(|part| !matches!(part, Component::RootDir | Component::Prefix(_)));
        components.map(|part| part.as_os_str().to_owned()).collect()
    };
    let (mut rest, mut found, mut links) = (words(path), PathBuf::new(), 0);
    while let Some(word) = rest.pop_front() {
        match word.to_str() {
            Some(".") => continue,
            // Above the top is the top.
            Some("..") => {
                found.pop();
                continue;
            }
            _ => {}
        }
        match fs::read_link(root.join(&found).join(&word)) {
            Ok(target) if links < LINKS => {
                links += 1;
                if target.is_absolute() {
                    found.clear();
                }
                for word in words(&target).into_iter().rev() {
                    rest.push_front(word);
                }
            }
            // A circle. No file has such a name, so that whoever opens it fails.
            Ok(_) => return root.join("\0"),
            Err(_) => found.push(word),
        }
    }
    root.join(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn no_link_leads_outside() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("etc/real")).unwrap();
        symlink("/etc/real", root.join("etc/absolute")).unwrap();
        symlink("../../../../etc/real", root.join("etc/relative")).unwrap();
        symlink("/etc/circle", root.join("etc/circle")).unwrap();
        for (path, place) in [
            ("/etc/real/a", "etc/real/a"),
            ("/etc/absolute/a", "etc/real/a"),
            ("/etc/relative/a", "etc/real/a"),
            ("/../../etc/absolute", "etc/real"),
            ("/etc/absolute/../../../x/y", "x/y"),
            ("/srv/new", "srv/new"),
        ] {
            assert_eq!(resolve(root, Path::new(path)), root.join(place), "{path}");
        }
        assert!(fs::write(resolve(root, Path::new("/etc/circle/a")), "").is_err());
    }
}
