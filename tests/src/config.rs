//! The configuration file of a daemon in the lab, written by a program.
//!
//! The values are the common case; [`Config::set`] and [`Config::unset`] change any key, so that a
//! test says only what it is about.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cgroup::Cgroup;
use crate::net;
use crate::pki::Identity;

/// Where the workers dial to.
pub const APPLIANCE_URL: &str = "https://appliance.example:443";

/// A group of workers: what the appliance knows of it and the key that its workers present.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The key, in the clear.
    pub key: String,
    /// The targets that it owns.
    pub proxy_hosts: Vec<String>,
    /// Whether its workers may open streams to other groups' proxy hosts.
    pub may_open: bool,
}

impl Group {
    /// A group with a new random key that owns these targets and may open nothing.
    pub fn new<S: Into<String>>(name: &str, proxy_hosts: impl IntoIterator<Item = S>) -> Result<Group> {
        let proxy_hosts = proxy_hosts.into_iter().map(Into::into).collect();
        Ok(Group { name: name.to_owned(), key: worker_key()?, proxy_hosts, may_open: false })
    }

    /// Lets its workers open streams to other groups' proxy hosts.
    pub fn may_open(mut self) -> Group {
        self.may_open = true;
        self
    }

    /// The hash of its key, as the appliance's configuration has it.
    pub fn key_sha256(&self) -> String {
        Sha256::digest(&self.key).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.insert("name".into(), json!(self.name));
        table.insert("key_sha256".into(), json!(self.key_sha256()));
        table.insert("proxy_hosts".into(), json!(self.proxy_hosts));
        if self.may_open {
            table.insert("may_open".into(), json!(true));
        }
        table
    }
}

/// A new worker key: `dwk_` and 32 random bytes in base64url, which are 43 characters.
pub fn worker_key() -> Result<String> {
    let mut random = [0; 43];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .context("reading /dev/urandom")?;
    // The last character carries four bits only; its other two are zero.
    random[42] &= 0b111100;
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let characters = random.iter().map(|byte| ALPHABET[usize::from(byte % 64)] as char);
    Ok(format!("dwk_{}", characters.collect::<String>()))
}

type Table = BTreeMap<String, Value>;

/// A configuration that grows role by role.
#[derive(Debug, Clone, Default)]
pub struct Config {
    top: Table,
    tables: BTreeMap<String, Table>,
    groups: Vec<Table>,
}

impl Config {
    /// No role yet; a drain of ten seconds.
    pub fn new() -> Config {
        Config::default().set("drain", "10s")
    }

    /// Adds the appliance role, on port 443 of the appliance host's addresses.
    pub fn appliance(mut self, identity: &Identity, groups: &[&Group]) -> Config {
        let listen = net::APPLIANCE.both().map(|address| std::net::SocketAddr::new(address, 443).to_string());
        self.groups.extend(groups.iter().map(|group| group.table()));
        self.set("appliance.listen", json!(listen))
            .set("appliance.certificate", text(&identity.certificate))
            .set("appliance.key", text(&identity.key))
    }

    /// Adds the worker role: a worker of `group` that trusts `ca_file` and may dial `allow`.
    pub fn worker<S: Into<String>>(
        self,
        group: &Group,
        ca_file: &Path,
        allow: impl IntoIterator<Item = S>,
    ) -> Config {
        let allow: Vec<String> = allow.into_iter().map(Into::into).collect();
        self.set("appliance_url", APPLIANCE_URL)
            .set("worker_key", group.key.as_str())
            .set("ca_file", text(ca_file))
            .set("egress.allow", json!(allow))
    }

    /// Adds steering of what runs in these cgroups. On a host without the appliance role also say what to
    /// capture: `.set("steer.proxy_hosts", ["vcenter.corp.example"])`.
    pub fn steer(self, cgroups: &[&Cgroup]) -> Config {
        let paths: Vec<String> = cgroups.iter().map(|cgroup| text(cgroup.path())).collect();
        self.set("steer.cgroups", json!(paths))
    }

    /// Sets a key, `key` at the top or `table.key`: `steer.synthetic4`, `appliance.listen`.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Config {
        match key.rsplit_once('.') {
            None => self.top.insert(key.to_owned(), value.into()),
            Some((table, key)) => {
                self.tables.entry(table.to_owned()).or_default().insert(key.to_owned(), value.into())
            }
        };
        self
    }

    /// Whether it has the steering role.
    pub(crate) fn steers(&self) -> bool {
        self.tables.contains_key("steer")
    }

    /// Takes a key out.
    pub fn unset(mut self, key: &str) -> Config {
        match key.rsplit_once('.') {
            None => self.top.remove(key),
            Some((table, key)) => self.tables.get_mut(table).and_then(|table| table.remove(key)),
        };
        self
    }

    /// The file's text.
    pub fn to_toml(&self) -> String {
        let mut toml = String::new();
        let mut put = |header: &str, table: &Table| {
            toml.push_str(header);
            for (key, value) in table {
                // A JSON string, number, boolean or list of these is TOML as it is.
                let _ = writeln!(toml, "{key} = {value}");
            }
        };
        put("", &self.top);
        for (name, table) in &self.tables {
            put(&format!("\n[{name}]\n"), table);
        }
        for group in &self.groups {
            put("\n[[appliance.groups]]\n", group);
        }
        toml
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_shape_and_their_hash() -> Result<()> {
        let group = Group { key: "abc".into(), ..Group::new("site-a", ["*.corp.example"])? };
        // The example of FIPS 180-2.
        assert_eq!(group.key_sha256(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let key = worker_key()?;
        assert_eq!(key.len(), 4 + 43);
        assert!(
            key.starts_with("dwk_")
                && key[4..].chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
        );
        assert_ne!(key, worker_key()?);
        Ok(())
    }

    #[test]
    fn the_text_has_tables_and_groups_in_their_places() {
        let group = Group {
            name: "site-a".into(),
            key: "k".into(),
            proxy_hosts: vec!["vcenter.corp.example".into(), "10.77.3.0/24".into()],
            may_open: false,
        };
        let identity = Identity { certificate: "/c.pem".into(), key: "/c.key".into() };
        let config = Config::new()
            .appliance(&identity, &[&group])
            .set("steer.synthetic4", "240.64.0.0/16")
            .set("lanes", 2)
            .set("gone", true)
            .unset("gone");
        let expected = format!(
            r#"drain = "10s"
lanes = 2

[appliance]
certificate = "/c.pem"
key = "/c.key"
listen = ["10.77.1.10:443","[fd77:0:0:1::10]:443"]

[steer]
synthetic4 = "240.64.0.0/16"

[[appliance.groups]]
key_sha256 = "{}"
name = "site-a"
proxy_hosts = ["vcenter.corp.example","10.77.3.0/24"]
"#,
            group.key_sha256()
        );
        assert_eq!(config.to_toml(), expected);
    }
}
