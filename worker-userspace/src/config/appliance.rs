//! Reads `[appliance]` and its groups.
//!
//! What must hold: no two groups carry one host on one port by the same pattern, because a stream would then
//! have two owners of equal right; and no two share a name or a key.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::fault::{quote, wrong};
use super::files::Named;
use super::reader::{Place, Reader, Table, Value, bare};
use super::schema::{APPLIANCE, GROUP};
use super::values::{self, LIST_HOSTS};
use super::{Appliance, Group, KeyHash, TlsFiles};
use crate::target::{Claims, Pattern};

const FAILBACK: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
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
    let tls = tls(r, &table, named);
    let failback = table.get_or_default("failback").and_then(|v| r.duration(&v, FAILBACK));
    let events_age = table.get_or_default("events_age").and_then(|v| r.duration(&v, EVENTS_AGE));
    let events_max = table.get_or_default("events_max").and_then(|v| r.number(&v, EVENTS_MAX));
    let (groups, carried) = groups(r, &table);
    let appliance = Appliance {
        listen: bare(listen),
        tls,
        groups,
        // What is missing here is a fault already.
        failback: failback.unwrap_or_default(),
        events_age: events_age.unwrap_or_default(),
        events_max: events_max.unwrap_or_default(),
    };
    (Some(appliance), carried)
}

/// The files of the TLS identity; `None` in plaintext, or where a fault is reported.
fn tls<'d>(r: &mut Reader<'d>, table: &Table<'d>, named: &mut Named) -> Option<TlsFiles> {
    let insecure = table.get("insecure_plaintext");
    let plaintext = insecure.as_ref().and_then(|v| r.flag(v)).unwrap_or(false);
    let file = |r: &mut Reader<'d>, name: &str, what: &str| {
        let value = table.get(name);
        let path = value.as_ref().and_then(|v| r.path(v).map(|path| (v.place.clone(), path)));
        match value {
            Some(value) if plaintext => {
                let problem = "`insecure_plaintext = true` asks for no TLS, and this is a part of TLS";
                r.fault(&value.place, wrong(problem, "remove one of the two"));
            }
            None if !plaintext => {
                let remedy = format!(
                    "write the path of {what} in PEM, or, in a lab, `insecure_plaintext = true` in [appliance]"
                );
                r.missing(&table.missing(name), wrong("missing", remedy));
            }
            _ => {}
        }
        path
    };
    named.certificate = file(r, "certificate", "the certificate and its chain");
    named.key = file(r, "key", "the private key");
    if let (Some(insecure), true) = (&insecure, plaintext) {
        let problem = "worker keys and everything carried go over the network in the clear";
        r.warn(&insecure.place, wrong(problem, "use it in a lab only"));
    }
    match (plaintext, &named.certificate, &named.key) {
        (false, Some((_, certificate)), Some((_, key))) => {
            Some(TlsFiles { certificate: certificate.clone(), key: key.clone() })
        }
        _ => None,
    }
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
