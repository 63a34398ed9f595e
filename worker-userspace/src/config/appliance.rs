//! Reads `[appliance]` and its groups.
//!
//! What must hold: no two groups carry one host on one port by the same pattern, because a stream would then
//! have two owners of equal right; and no two share a name or a key.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::fault::{quote, wrong};
use super::files::Named;
use super::reader::{Place, Reader, Table, Value, bare};
use super::schema::{APPLIANCE, GROUP};
use super::values::{self, LIST_HOSTS};
use super::{Appliance, ClientCertificates, Group, KeyHash, TlsFiles};
use crate::target::{Claims, Pattern};

const FAILBACK: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
const NO_TLS: &str = "`insecure_plaintext = true` asks for no TLS, and this is a part of TLS";
const DAY: Duration = Duration::from_secs(24 * 3600);
const EVENTS_AGE: RangeInclusive<Duration> = DAY..=Duration::from_secs(3650 * 24 * 3600);
const EVENTS_MAX: RangeInclusive<u64> = 1_000..=10_000_000;

/// Reads `[appliance]`; the second value is what its groups carry.
pub(super) fn read<'d>(
    r: &mut Reader<'d>,
    value: &Value<'d>,
    named: &mut Named,
) -> (Option<Appliance>, Vec<(Place, Pattern)>) {
    let Some(table) = r.section(value, &APPLIANCE) else { return (None, Vec::new()) };
    const LISTEN: &str = "write where to listen, as in [\"0.0.0.0:443\", \"[::]:443\"]";
    let listen = r.required(&table, "listen", "missing", LISTEN);
    let listener = |text| values::listener(text, ["0.0.0.0:443", "[::]:443"]);
    let listen = listen.map(|v| r.one_or_more(&v, listener, LISTEN)).unwrap_or_default();
    let insecure = table.get("insecure_plaintext");
    let plaintext = insecure.as_ref().and_then(|v| r.flag(v)).unwrap_or(false);
    if let (Some(insecure), true) = (&insecure, plaintext) {
        let problem = "worker keys and everything carried go over the network in the clear";
        r.warn(&insecure.place, wrong(problem, "use it in a lab only"));
    }
    let tls = tls(r, &table, plaintext, named);
    let clients = clients(r, &table, plaintext, named);
    let failback = table.get_or_default("failback").and_then(|v| r.duration(&v, FAILBACK));
    let events_age = table.get_or_default("events_age").and_then(|v| r.duration(&v, EVENTS_AGE));
    let events_max = table.get_or_default("events_max").and_then(|v| r.number(&v, EVENTS_MAX));
    let (groups, carried) = groups(r, &table);
    let appliance = Appliance {
        listen: bare(listen),
        tls,
        clients,
        groups,
        // What is missing here is a fault already.
        failback: failback.unwrap_or_default(),
        events_age: events_age.unwrap_or_default(),
        events_max: events_max.unwrap_or_default(),
    };
    (Some(appliance), carried)
}

/// The files of the TLS identity; `None` in plaintext, or where a fault is reported.
fn tls<'d>(r: &mut Reader<'d>, table: &Table<'d>, plaintext: bool, named: &mut Named) -> Option<TlsFiles> {
    let mut file = |name: &str| {
        let value = table.get(name)?;
        let path = r.path(&value).map(|path| (value.place.clone(), path));
        if plaintext {
            r.fault(&value.place, wrong(NO_TLS, "remove one of the two"));
        }
        path
    };
    named.certificate = file("certificate");
    named.key = file("key");
    named.pkcs12 = file("pkcs12");
    named.pkcs12_password = file("pkcs12_password_file");
    let pkcs12 = table.get("pkcs12");
    match &pkcs12 {
        Some(pkcs12) => {
            for name in ["certificate", "key"] {
                if let Some(value) = table.get(name) {
                    let problem = format!("`pkcs12`{} holds certificate and key", r.line(&pkcs12.place));
                    r.fault(&value.place, wrong(problem, "remove one of the two"));
                }
            }
        }
        None => {
            if let Some(value) = table.get("pkcs12_password_file") {
                let problem = "there is no `pkcs12` that it is for";
                r.fault(&value.place, wrong(problem, "add `pkcs12`, or remove it"));
            }
            for (name, what) in [("certificate", "the certificate and its chain"), ("key", "the private key")]
            {
                if !plaintext && table.get(name).is_none() {
                    let remedy = format!(
                        "write the path of {what} in PEM, or, in a lab, `insecure_plaintext = true` in [appliance]"
                    );
                    r.missing(&table.missing(name), wrong("missing", remedy));
                }
            }
        }
    }
    let path = |file: &Option<(Place, PathBuf)>| file.as_ref().map(|(_, path)| path.clone());
    match (plaintext, path(&named.pkcs12), path(&named.certificate), path(&named.key)) {
        (false, Some(file), ..) => {
            Some(TlsFiles::Pkcs12 { file, password_file: path(&named.pkcs12_password) })
        }
        (false, None, Some(certificate), Some(key)) => Some(TlsFiles::Pem { certificate, key }),
        _ => None,
    }
}

/// The client certificates that are taken; `None` where none is, or where a fault is reported.
fn clients<'d>(
    r: &mut Reader<'d>,
    table: &Table<'d>,
    plaintext: bool,
    named: &mut Named,
) -> Option<ClientCertificates> {
    const REMEDY: &str = "write \"optional\" or \"required\"";
    let required = table.get("client_certificates").map(|v| {
        let required = r.parsed(&v, |text| match text {
            "required" => Ok(true),
            "optional" => Ok(false),
            _ => Err(wrong("not how client certificates are asked for", REMEDY)),
        });
        (v, required)
    });
    let Some(file) = table.get("client_ca_file") else {
        if let Some((value, _)) = required {
            let problem = "nobody is named who signs them";
            r.fault(
                &value.place,
                wrong(problem, "add `client_ca_file` with the CA's certificate, or remove it"),
            );
        }
        return None;
    };
    if plaintext {
        r.fault(&file.place, wrong(NO_TLS, "remove one of the two"));
    }
    let ca_file = r.path(&file)?;
    named.client_roots = Some((file.place.clone(), ca_file.clone()));
    let required = required.map_or(Some(true), |(_, required)| required)?;
    Some(ClientCertificates { ca_file, required })
}

fn groups<'d>(r: &mut Reader<'d>, table: &Table<'d>) -> (Vec<Group>, Vec<(Place, Pattern)>) {
    const HASH: &str = "write what `dworker key hash` prints for the worker key";
    let tables = table.get("groups").map(|v| r.sections(&v, &GROUP)).unwrap_or_default();
    let mut names: HashMap<String, Place> = HashMap::new();
    let mut keys: HashMap<String, Place> = HashMap::new();
    // Each by the group's number and how a fault names it.
    let mut owners: Claims<(usize, String)> = Claims::default();
    let mut groups = Vec::new();
    let mut carried = Vec::new();
    for (i, table) in tables.into_iter().enumerate() {
        let name = r.required(&table, "name", "missing", "write a name, as in \"site-a\"");
        let name = name.and_then(|v| Some((r.parsed(&v, values::group_name)?, v.place)));
        let label = match &name {
            Some((name, place)) => {
                once(r, &mut names, name.clone(), place, "name");
                // A warning, since to the registry another name is another worker.
                if values::is_number(name) {
                    let problem = "digits alone are taken for a worker's number by commands and the API";
                    r.warn(place, wrong(problem, format!("name it as in \"site-{name}\"")));
                }
                format!("group {}", quote(name))
            }
            None => format!("group {i}"),
        };
        let key = r.required(&table, "key_sha256", "missing", HASH);
        let key = key.and_then(|v| {
            let hash = r.parsed(&v, |text| {
                text.parse::<KeyHash>().map_err(|e| wrong("not the SHA-256 of a key", format!("{e}; {HASH}")))
            })?;
            once(r, &mut keys, hash.to_string(), &v.place, "key");
            Some(hash)
        });
        let hosts = r.required(&table, "proxy_hosts", "missing", LIST_HOSTS);
        let hosts = hosts.map(|v| r.filled(&v, values::pattern, LIST_HOSTS)).unwrap_or_default();
        for (place, pattern) in &hosts {
            let owner = (i, format!("{label}{}", r.line(place)));
            if let Some((_, (_, other))) = owners.claim(pattern.clone(), owner, |a, b| a.0 == b.0) {
                let problem = format!("{label} and {other} both carry it");
                r.fault(place, wrong(problem, "leave it to one of them, or give each its own ports"));
            }
        }
        let may_open = table.get("may_open").and_then(|v| r.flag(&v)).unwrap_or(false);
        carried.extend(hosts.iter().cloned());
        if let (Some((name, _)), Some(key)) = (name, key) {
            groups.push(Group { name, key, proxy_hosts: bare(hosts), may_open });
        }
    }
    (groups, carried)
}

/// Reports what two groups have both, and must not.
fn once(r: &mut Reader<'_>, seen: &mut HashMap<String, Place>, item: String, place: &Place, what: &str) {
    match seen.get(&item) {
        Some(first) => {
            let problem = format!("another group{} has the same {what}", r.line(first));
            r.fault(place, wrong(problem, format!("give each group its own {what}")));
        }
        None => drop(seen.insert(item, place.clone())),
    }
}
