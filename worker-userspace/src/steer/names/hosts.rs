//! `/etc/hosts` answers before DNS, so a proxy host's name that stands there never reaches us. Its address
//! does: it is installed as a rule that leads to the name.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::patterns::{PatternIndex, Standing};
use crate::target::Name;

/// The addresses that the hosts file at `path` gives to names that `index` covers, in the file's order and
/// without repetition. An address with two such names stands there twice. Left out are loopback addresses
/// (they mean this host) and unspecified ones (they mean "block this name"). No file is an empty one.
///
/// # Errors
/// When the file is there and can't be read.
pub fn hosts_conflicts(path: &Path, index: &PatternIndex) -> io::Result<Vec<(IpAddr, Name)>> {
    let mut seen = HashSet::new();
    let foreign =
        hosts_entries(path)?.into_iter().filter(|(addr, _)| !addr.is_loopback() && !addr.is_unspecified());
    let ours = foreign.filter_map(|(addr, name)| match index.standing(name.as_str()) {
        Standing::ProxyHost(name) => Some((addr, name)),
        _ => None,
    });
    Ok(ours.filter(|entry| seen.insert(entry.clone())).collect())
}

/// The addresses that the hosts file at `path` gives to `name`, in the file's order. No file is an empty one.
///
/// # Errors
/// When the file is there and can't be read.
pub fn hosts_addresses(path: &Path, name: &Name) -> io::Result<Vec<IpAddr>> {
    let mut seen = HashSet::new();
    let its = hosts_entries(path)?.into_iter().filter(|(_, named)| named == name).map(|(addr, _)| addr);
    Ok(its.filter(|addr| seen.insert(*addr)).collect())
}

/// What the hosts file at `path` says, in its order. No file is an empty one.
///
/// # Errors
/// When the file is there and can't be read.
pub fn hosts_entries(path: &Path) -> io::Result<Vec<(IpAddr, Name)>> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read?,
    };
    let mut entries = Vec::new();
    for line in String::from_utf8_lossy(&bytes).lines() {
        let mut fields = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
        let Some(addr) = fields.next().and_then(|field| field.parse::<IpAddr>().ok()) else { continue };
        let names = fields.filter_map(|field| field.parse::<Name>().ok());
        entries.extend(names.map(|name| (addr.to_canonical(), name)));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hosts_file_that_are_proxy_hosts_come_with_their_addresses() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        let patterns =
            ["vcenter.corp.example:443", "*.lab.example", "10.0.0.0/8"].map(|p| p.parse().unwrap());
        let index = PatternIndex::new(&patterns);
        std::fs::write(
            &path,
            b"127.0.0.1 localhost vcenter.corp.example\n\
             ::1 vcenter.corp.example\n\
             0.0.0.0 vcenter.corp.example\n\
             # 10.0.0.9 vcenter.corp.example\n\
             \t10.20.0.5\tVCenter.Corp.Example. vcenter  # the real one\n\
             ::ffff:10.20.0.5 vcenter.corp.example\n\
             2001:db8::5 vcenter.corp.example a.lab.example\n\
             10.20.0.6 lab.example other.example\n\
             not-an-address vcenter.corp.example\n\
             10.20.0.7 a.lab.example b.lab.example\xff",
        )
        .unwrap();
        let found: Vec<String> = hosts_conflicts(&path, &index)
            .unwrap()
            .iter()
            .map(|(addr, name)| format!("{addr} {name}"))
            .collect();
        assert_eq!(
            found,
            [
                "10.20.0.5 vcenter.corp.example",
                "2001:db8::5 vcenter.corp.example",
                "2001:db8::5 a.lab.example",
                "10.20.0.7 a.lab.example",
            ]
        );
    }

    #[test]
    fn no_file_is_an_empty_one_and_an_unreadable_one_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let index = PatternIndex::default();
        assert!(hosts_conflicts(&directory.path().join("none"), &index).unwrap().is_empty());
        assert!(hosts_conflicts(directory.path(), &index).is_err());
    }
}
