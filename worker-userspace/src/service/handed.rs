//! What the service is handed beside its file: variables and credentials, as its unit and what administrators add to that
//! say it; not those of this shell.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::host::{Host, HostError, failed, run};
use super::{CREDENTIALS, VARIABLE};

/// Where systemd looks for a credential that has no path.
const STORES: [&str; 3] = ["/etc/credstore", "/run/credstore", "/usr/lib/credstore"];
/// Copies of credentials are kept here, in memory, while they are checked.
const COPIES: &str = "/run";
/// What their directories are called, before the process that made them.
const NAME: &str = "dworker-reconfigure.";

/// What a service is handed. Dropping it removes the copies.
#[derive(Debug, Default)]
pub struct Handed {
    /// Variables.
    pub variables: Vec<(String, String)>,
    /// The files that they and credentials come from, each with what tells it from the one that was there before; but those
    /// in [`CREDENTIALS`].
    pub marks: Vec<String>,
    copies: Option<PathBuf>,
}

/// Where a credential comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Text(String),
    /// systemd decrypts it.
    Encrypted(PathBuf),
    EncryptedText(String),
}

impl Handed {
    /// Where the copies of credentials are.
    pub(super) fn copies(&self) -> Option<&Path> {
        self.copies.as_deref()
    }

    /// Of a unit's texts, in their order, and the credentials that `reconfigure` hands on.
    ///
    /// # Errors
    /// Something of it can't be read, or not be decrypted.
    pub(super) fn of(host: &Host, texts: &[String]) -> Result<Handed, HostError> {
        let files = files_of_variables(texts);
        let mut handed = Handed::default();
        let mut sources = BTreeMap::new();
        for path in host.list(Path::new(CREDENTIALS))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            sources.insert(name, Source::File(path));
        }
        sources.extend(sources_of(host, texts));
        // Before they are read: one that is replaced meanwhile is another one the next time.
        for path in files.iter().chain(sources.values().filter_map(Source::path)) {
            if path.parent() != Some(Path::new(CREDENTIALS)) {
                handed.marks.extend(host.mark(path)?.map(|mark| format!("{} {mark}", path.display())));
            }
        }
        for path in &files {
            // Where one must be there and is not, systemd says so.
            handed.variables.extend(host.text(path)?.iter().flat_map(|text| assignments(text)));
        }
        handed.variables.retain(|(name, _)| name != VARIABLE);
        if sources.is_empty() {
            return Ok(handed);
        }
        let directory = match host.is_here() {
            true => Path::new(COPIES).to_owned(),
            false => std::env::temp_dir(),
        };
        let directory = directory.join(format!("{NAME}{}", std::process::id()));
        if host.is_here() {
            sweep(Path::new(COPIES));
        }
        DirBuilder::new().mode(0o700).create(&directory).map_err(failed("making", &directory))?;
        handed.variables.push(("CREDENTIALS_DIRECTORY".into(), directory.display().to_string()));
        handed.copies = Some(directory.clone());
        for (name, source) in sources {
            // Below a root nobody reads them: they only have to be there.
            let bytes = if host.is_here() { source.bytes(host, &name)? } else { Vec::new() };
            let copy = directory.join(&name);
            let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&copy);
            written.and_then(|mut file| file.write_all(&bytes)).map_err(failed("writing", &copy))?;
        }
        Ok(handed)
    }
}

/// Removes what runs that were killed have left.
fn sweep(copies: &Path) {
    for entry in fs::read_dir(copies).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(NAME)?.parse::<u32>().ok());
        let lives = |owner: u32| owner != std::process::id() && Path::new(&format!("/proc/{owner}")).exists();
        if owner.is_some_and(|owner| !lives(owner)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        if let Some(copies) = &self.copies {
            let _ = fs::remove_dir_all(copies);
        }
    }
}

impl Source {
    fn path(&self) -> Option<&PathBuf> {
        match self {
            Source::File(path) | Source::Encrypted(path) => Some(path),
            Source::Text(_) | Source::EncryptedText(_) => None,
        }
    }

    fn bytes(&self, host: &Host, name: &str) -> Result<Vec<u8>, HostError> {
        let decrypted = |path: &Path| {
            let mut decrypt = Command::new("systemd-creds");
            run(decrypt.arg("decrypt").arg(format!("--name={name}")).arg(path).arg("-"))
                .map(String::into_bytes)
        };
        match self {
            Source::File(path) => fs::read(host.at(path)).map_err(failed("reading", path)),
            Source::Text(text) => Ok(text.clone().into_bytes()),
            Source::Encrypted(path) => decrypted(path),
            Source::EncryptedText(text) => {
                let file = tempfile_of(text).map_err(failed("writing", Path::new(COPIES)))?;
                let bytes = decrypted(&file);
                let _ = fs::remove_file(&file);
                bytes
            }
        }
    }
}

/// A file with what is encrypted, which is no secret.
fn tempfile_of(text: &str) -> io::Result<PathBuf> {
    let path = Path::new(COPIES).join(format!("{NAME}{}.cred", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(text.as_bytes())?;
    Ok(path)
}

/// The settings of a unit's texts, continued lines joined, in their order.
fn settings(texts: &[String]) -> impl Iterator<Item = (String, String)> + '_ {
    texts.iter().flat_map(|text| {
        let joined = text.replace("\\\n", " ");
        let lines = joined.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
        let pairs = lines.filter_map(|line| line.split_once('='));
        pairs
            .map(|(key, value)| (key.trim_end().to_owned(), value.trim_start().to_owned()))
            .collect::<Vec<_>>()
    })
}

fn sources_of(host: &Host, texts: &[String]) -> BTreeMap<String, Source> {
    let mut sources = BTreeMap::new();
    for (key, value) in settings(texts) {
        let Some((name, rest)) =
            value.split_once(':').or(Some((value.as_str(), ""))).filter(|(name, _)| !name.is_empty())
        else {
            continue;
        };
        let path = || match rest {
            "" => STORES
                .map(|store| Path::new(store).join(name))
                .into_iter()
                .find(|path| host.at(path).exists()),
            path => Some(path.into()),
        };
        let source = match key.as_str() {
            "LoadCredential" => path().map(Source::File),
            "LoadCredentialEncrypted" => path().map(Source::Encrypted),
            "SetCredential" => Some(Source::Text(unescaped(rest))),
            "SetCredentialEncrypted" => Some(Source::EncryptedText(rest.replace(' ', ""))),
            _ => None,
        };
        // systemd hands on nothing where an optional one is not there.
        if let Some(source) = source
            && source.path().is_none_or(|path| host.at(path).exists())
        {
            sources.insert(name.to_owned(), source);
        }
    }
    sources
}

/// A text with C's escapes, of which these are used for texts of one line.
fn unescaped(text: &str) -> String {
    text.replace("\\n", "\n").replace("\\t", "\t").replace("\\\\", "\\").replace("%%", "%")
}

fn files_of_variables(texts: &[String]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for (_, value) in settings(texts).filter(|(key, _)| key == "EnvironmentFile") {
        match value.as_str() {
            "" => files.clear(),
            path => files.push(path.strip_prefix('-').unwrap_or(path).trim_matches('"').into()),
        }
    }
    files
}

/// A file of variables, as systemd reads it: without expansion, in quotes or not.
fn assignments(text: &str) -> Vec<(String, String)> {
    let joined = text.replace("\\\n", "");
    let lines = joined.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    let plain = |value: &str| match value.chars().next() {
        Some(quote @ ('"' | '\'')) if value.len() > 1 && value.ends_with(quote) => {
            value[1..value.len() - 1].to_owned()
        }
        _ => value.to_owned(),
    };
    lines
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.trim().into(), plain(value.trim())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_left_that_was_killed_is_removed_and_anothers_is_not() {
        let copies = tempfile::tempdir().unwrap();
        let [dead, living, other] = ["dworker-reconfigure.4294967295", "dworker-reconfigure.1", "dworker"]
            .map(|name| copies.path().join(name));
        for path in [&dead, &living, &other] {
            fs::create_dir(path).unwrap();
        }
        sweep(copies.path());
        assert!(!dead.exists() && living.exists() && other.exists());
    }

    #[test]
    fn what_a_unit_hands_on_is_handed_to_the_check() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(Some(root.path()));
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("etc/credstore")).unwrap();
        fs::create_dir_all(at("etc/dworker/credentials")).unwrap();
        for file in ["etc/credstore/client_key", "etc/key.cred", "etc/dworker/credentials/apikey"] {
            fs::write(at(file), "").unwrap();
        }
        fs::write(at("etc/default"), "# none\nDWORKER_LANES=4\nDWORKER_LOG='debug'\nDWORKER_UNIT=x\n")
            .unwrap();
        let texts = [
            "[Service]\n#LoadCredential=no:/no\nEnvironmentFile=-/etc/default\nEnvironmentFile=-/etc/gone\n",
            "[Service]\nLoadCredentialEncrypted=worker_key:/etc/key.cred\nLoadCredential=client_key\n\
             LoadCredential=gone:/gone\nSetCredential=proxy_password:a\\nb\n",
        ];
        let texts = texts.map(str::to_owned);
        let sources = sources_of(&host, &texts);
        let expected = [
            ("client_key", Source::File("/etc/credstore/client_key".into())),
            ("proxy_password", Source::Text("a\nb".into())),
            ("worker_key", Source::Encrypted("/etc/key.cred".into())),
        ];
        assert_eq!(sources, expected.map(|(name, source)| (name.to_owned(), source)).into());
        let handed = Handed::of(&host, &texts).unwrap();
        let value = |name: &str| Some(&handed.variables.iter().find(|(found, _)| found == name)?.1);
        assert_eq!(
            (value("DWORKER_LANES"), value("DWORKER_LOG")),
            (Some(&"4".into()), Some(&"debug".into()))
        );
        assert_eq!(value("DWORKER_UNIT"), None);
        let copies = PathBuf::from(value("CREDENTIALS_DIRECTORY").unwrap());
        assert!(copies.join("worker_key").exists() && copies.join("apikey").exists());
        // Those in the directory of credentials have marks of their own.
        let marked: Vec<_> = handed.marks.iter().filter_map(|mark| mark.split(' ').next()).collect();
        assert_eq!(marked, ["/etc/default", "/etc/credstore/client_key", "/etc/key.cred"]);
        drop(handed);
        assert!(!copies.exists());
    }
}
