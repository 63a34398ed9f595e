//! Reads each section, then judges what they say together.
//!
//! What must hold: every value is read before roles are judged, so that a wrong value and a wrong combination
//! are reported in one run.

use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use toml::de::DeTable;

use super::fault::wrong;
use super::files::Named;
use super::reader::{Place, Reader, Table, Value, bare};
use super::schema::{EGRESS, STEER, TOP, WORKER};
use super::values::{self, LIST_HOSTS};
use super::{
    ApiKey, ApiKeySource, Config, Egress, Families, Key, KeySource, LogFormat, Steer, TlsFiles, User, Worker,
    appliance, metrics, proxy, upstream, url,
};
use crate::target::{HostPattern, Pattern};

/// The keys that make a role which carries streams.
const CARRIERS: [&str; 4] = ["appliance_url", "worker_key", "worker_key_file", "appliance"];
/// The kernel's `sun_path` without its closing NUL.
const LONGEST_SOCKET: usize = 107;
const DRAIN: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
const RELOAD_DRAIN: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(7 * 24 * 3600);
const CONNECT_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(120);
const LIST_USERS: &str = "list users by name or number, as in [\"backup\", 1000]";
const DOWN_FOR: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(60);
const LIST_ALLOWED: &str =
    "list what this worker may dial, as in [\"10.20.0.0/16\"], or remove it to leave that to the appliance";

/// Reads the whole document. The result counts only where `r` finishes without faults.
pub(super) fn read<'d>(r: &mut Reader<'d>, document: &'d DeTable<'d>) -> (Config, Named) {
    let top = r.top(document);
    let mut named = Named::default();
    let state_dir = top.get_or_default("state_dir").and_then(|v| r.path(&v));
    let control_socket = top.get_or_default("control_socket").and_then(|v| {
        let path = r.path(&v)?;
        if path.as_os_str().len() > LONGEST_SOCKET {
            let problem = format!("longer than a socket's path may be, {LONGEST_SOCKET} bytes");
            r.fault(&v.place, wrong(problem, "choose a shorter path"));
        }
        Some(path)
    });
    let drain = top.get_or_default("drain").and_then(|v| r.duration(&v, DRAIN));
    let reload_drain = top.get_or_default("reload_drain").and_then(|v| r.duration(&v, RELOAD_DRAIN));
    let log = top.get_or_default("log").and_then(|v| r.parsed(&v, values::log_filter));

    let log_format = top.get_or_default("log_format").and_then(|v| {
        r.parsed(&v, |text| match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(wrong("neither of the two", "write \"text\" or \"json\"")),
        })
    });
    let metrics = metrics::read(r, &top);

    let worker_set = WORKER.iter().any(|key| top.get(key).is_some());
    let worker = worker(r, &top, &mut named);
    let appliance_set = top.get("appliance");
    let (appliance, carried) = match &appliance_set {
        Some(value) => appliance::read(r, value, &mut named),
        None => (None, Vec::new()),
    };
    let steer_set = top.get("steer");
    let proxy_set = top.get("proxy");
    for (value, does) in [(&steer_set, "captures"), (&proxy_set, "accepts")] {
        if let Some(value) = value
            && !worker_set
            && appliance_set.is_none()
            && !r.meant(&CARRIERS)
        {
            let remedy = "add an [appliance], or `appliance_url` and `worker_key` for a worker";
            r.fault(&value.place, wrong(format!("nothing is here to carry what it {does}"), remedy));
        }
    }
    let steer = steer_set.as_ref().and_then(|v| steer(r, v, appliance_set.is_some(), &carried));
    let proxy = proxy_set.as_ref().and_then(|v| proxy::read(r, v, &mut named));
    let strays = worker_only(&top).next().is_some();
    let meant = strays || r.meant(&CARRIERS) || r.meant(&["steer", "proxy"]);
    let set = worker_set || [&appliance_set, &steer_set, &proxy_set].into_iter().any(Option::is_some);
    if !set && !meant {
        let remedy = "set `appliance_url` and `worker_key` for a worker, or write an [appliance] section";
        r.fault(&Place::file(), wrong("no role is configured", remedy));
    }
    let config = Config {
        // What is missing here is a fault already.
        state_dir: state_dir.unwrap_or_default(),
        control_socket: control_socket.unwrap_or_default(),
        drain: drain.unwrap_or_default(),
        reload_drain: reload_drain.unwrap_or_default(),
        log: log.unwrap_or_default(),
        log_format: log_format.unwrap_or_default(),
        metrics,
        worker,
        appliance,
        steer,
        proxy,
    };
    (config, named)
}

/// The keys of the top that only a worker has.
fn worker_only<'t, 'd>(top: &'t Table<'d>) -> impl Iterator<Item = Value<'d>> + use<'t, 'd> {
    TOP.keys.iter().filter(|key| key.of_worker).filter_map(|key| top.get(key.name))
}

fn worker<'d>(r: &mut Reader<'d>, top: &Table<'d>, named: &mut Named) -> Option<Worker> {
    let url = top.get("appliance_url");
    let inline = top.get("worker_key");
    let file = top.get("worker_key_file");
    let insecure = top.get("insecure_plaintext");

    let insecure_set = insecure.as_ref().and_then(|v| r.flag(v)).unwrap_or(false);
    let own_url = top.get("worker_url").and_then(|v| r.parsed(&v, url::worker));
    let api_key = api_key(r, top, named);
    let appliance =
        url.as_ref().and_then(|v| r.parsed(v, |text| url::parse(text, insecure_set, url::Plaintext::KEY)));
    let key = inline.as_ref().and_then(|v| {
        named.inline.push(v.place.clone());
        r.parsed(v, |text| {
            text.parse::<Key>()
                .map_err(|e| wrong("not a worker key", format!("{e}; paste it as it was first shown")))
        })
    });
    let key_file = file
        .as_ref()
        .and_then(|v| r.path(v).inspect(|path| named.worker_key = Some((v.place.clone(), path.clone()))));
    let ca_file = top
        .get("ca_file")
        .and_then(|v| r.path(&v).inspect(|path| named.roots = Some((v.place.clone(), path.clone()))));
    let ca_dir = top.get("ca_dir").and_then(|v| {
        r.path(&v).inspect(|path| named.roots_directory = Some((v.place.clone(), path.clone())))
    });
    let identity = identity(r, top, named);
    let lanes = top.get_or_default("lanes").and_then(|v| r.number(&v, 1..=8));
    let upstream = upstream::read(r, top, named);
    // A worker's document always has it.
    let egress = top.get("egress").and_then(|v| r.section(&v, &EGRESS)).map(|table| egress(r, &table));

    let set =
        [&url, &inline, &file].into_iter().flatten().map(|v| &v.place).min_by_key(|place| place.offset());
    let Some(set) = set else {
        const REMEDY: &str = "add `appliance_url` and `worker_key`, or remove it";
        // Where one of the keys that make a worker is there in another form, that is all there is to say.
        for stray in worker_only(top).filter(|_| !r.meant(&WORKER)).collect::<Vec<_>>() {
            // The one that an appliance has too, in its own section.
            let moved = insecure.as_ref().is_some_and(|v| v.place.offset() == stray.place.offset());
            let remedy = match moved && top.get("appliance").is_some() {
                true => "for the appliance's own, move it to [appliance]",
                false => REMEDY,
            };
            r.fault(&stray.place, wrong("only a worker has it, and none is configured", remedy));
        }
        return None;
    };
    if url.is_none() {
        let remedy = "add the appliance's URL, as in \"https://appliance.example\"";
        r.missing(&set.missing("appliance_url"), wrong("missing, and a worker key is set", remedy));
    }
    match (&inline, &file) {
        (None, None) => {
            let remedy = "add `worker_key`, or `worker_key_file` with the path of a file that holds it";
            r.missing(&set.missing("worker_key"), wrong("missing, and `appliance_url` is set", remedy));
        }
        (Some(inline), Some(file)) => {
            let problem = format!("`worker_key`{} is set too", r.line(&inline.place));
            r.fault(&file.place, wrong(problem, "keep one of the two"));
        }
        _ => {}
    }
    if let (Some(insecure), true) = (&insecure, insecure_set) {
        let problem = "the worker key and everything carried go over the network in the clear";
        r.warn(&insecure.place, wrong(problem, "use it in a lab only"));
    }
    let key = key.map(KeySource::Inline).or(key_file.map(KeySource::File));
    Some(Worker {
        url: own_url,
        appliance: appliance?,
        api_key,
        key: key?,
        ca_file,
        ca_dir,
        identity,
        lanes: lanes?,
        upstream,
        egress: egress?,
    })
}

/// The key of a VDI gateway: of any form, since the older product takes any where there is no gateway.
fn api_key<'d>(r: &mut Reader<'d>, top: &Table<'d>, named: &mut Named) -> Option<ApiKeySource> {
    let (inline, file) = (top.get("apikey"), top.get("apikey_file"));
    if let (Some(inline), Some(file)) = (&inline, &file) {
        let problem = format!("`apikey`{} is set too", r.line(&inline.place));
        r.fault(&file.place, wrong(problem, "keep one of the two"));
    }
    let inline = inline.and_then(|v| r.parsed(&v, |text| Ok(ApiKeySource::Inline(ApiKey::new(text)))));
    let file = file.and_then(|v| {
        let path = r.path(&v)?;
        named.api_key = Some((v.place, path.clone()));
        Some(ApiKeySource::File(path))
    });
    inline.or(file)
}

/// A worker's certificate and key; `None` where there is none, or where a fault is reported.
fn identity<'d>(r: &mut Reader<'d>, top: &Table<'d>, named: &mut Named) -> Option<TlsFiles> {
    let keys = ["client_certificate", "client_key"];
    let [certificate, key] = keys.map(|name| top.get(name));
    let remedy = "a client certificate and its private key go together: set both or none";
    match (&certificate, &key) {
        (Some(set), None) => r.missing(&set.place.missing("client_key"), wrong("missing", remedy)),
        (None, Some(set)) => r.missing(&set.place.missing("client_certificate"), wrong("missing", remedy)),
        _ => {}
    }
    let mut path = |v: &Value<'d>| r.path(v).map(|path| (v.place.clone(), path));
    named.client_certificate = certificate.as_ref().and_then(&mut path);
    named.client_key = key.as_ref().and_then(&mut path);
    let ((_, certificate), (_, key)) = named.client_certificate.clone().zip(named.client_key.clone())?;
    Some(TlsFiles::Pem { certificate, key })
}

fn egress<'d>(r: &mut Reader<'d>, table: &Table<'d>) -> Egress {
    let allow = table.get("allow").map(|v| r.filled(&v, values::pattern, LIST_ALLOWED));
    let deny = table.get_or_default("deny").map(|v| r.list(&v, values::pattern, LIST_HOSTS));
    let connect_timeout =
        table.get_or_default("connect_timeout").and_then(|v| r.duration(&v, CONNECT_TIMEOUT));
    Egress {
        allow: allow.map(bare),
        deny: bare(deny.unwrap_or_default()),
        connect_timeout: connect_timeout.unwrap_or_default(),
    }
}

fn steer<'d>(
    r: &mut Reader<'d>,
    value: &Value<'d>,
    appliance: bool,
    carried: &[(Place, Pattern)],
) -> Option<Steer> {
    let table = r.section(value, &STEER)?;
    const CGROUPS: &str = "list the cgroups to capture, as in [\"system.slice/app.service\"]";
    let cgroups = r.required(&table, "cgroups", "missing", CGROUPS);
    let cgroups = cgroups.map(|v| r.filled(&v, values::cgroup, CGROUPS));
    const EXCLUDED: &str = "list cgroups that are not captured, as in [\"system.slice/backup.service\"]";
    let exclude_cgroups =
        table.get_or_default("exclude_cgroups").map(|v| r.list(&v, values::cgroup, EXCLUDED));
    let exclude_users = table.get_or_default("exclude_users").map(|v| r.list_of(&v, user, LIST_USERS));
    let closed = table.get_or_default("addresses_without_daemon").and_then(|v| {
        r.parsed(&v, |text| match text {
            "open" => Ok(false),
            "closed" => Ok(true),
            _ => Err(wrong(
                "neither of the two",
                "write \"open\" to let them go direct, or \"closed\" to refuse them",
            )),
        })
    });
    let pins = table.get_or_default("pins").and_then(|v| r.path(&v));
    let hosts = table.get("proxy_hosts");
    match &hosts {
        Some(hosts) if appliance => {
            let problem = "on an appliance the groups say what is captured";
            r.fault(
                &hosts.place,
                wrong(problem, "remove it, and list each host under its [[appliance.groups]]"),
            );
        }
        None if !appliance => r.missing(&table.missing("proxy_hosts"), wrong("missing", LIST_HOSTS)),
        _ => {}
    }
    let hosts = hosts.map(|v| r.filled(&v, values::pattern, LIST_HOSTS)).unwrap_or_default();
    let synthetic4 = table.get_or_default("synthetic4");
    let synthetic4: Option<Ipv4Net> =
        synthetic4.and_then(|v| r.parsed(&v, |t| values::synthetic(t, "240.64.0.0/16", 8..=28)));
    let synthetic6 = table.get_or_default("synthetic6");
    let synthetic6: Option<Ipv6Net> =
        synthetic6.and_then(|v| r.parsed(&v, |t| values::synthetic(t, "2001:2::/48", 32..=112)));
    let synthetic = [synthetic4.map(IpNet::V4), synthetic6.map(IpNet::V6)];
    for (place, pattern) in carried.iter().chain(&hosts) {
        let HostPattern::Net(net) = &pattern.host else { continue };
        // A wider network is no fault: the synthetic one is more specific, and what is left is real.
        if let Some(synthetic) = synthetic.iter().flatten().find(|s| s.contains(net)) {
            let problem = format!("it lies in the synthetic network {synthetic}, where no real host is");
            r.fault(place, wrong(problem, "name the host, or move the synthetic network"));
        }
    }
    let families = table.get_or_default("families").and_then(|v| families(r, &v));
    let down_for = table.get_or_default("down_for").and_then(|v| r.duration(&v, DOWN_FOR));
    Some(Steer {
        cgroups: bare(cgroups?),
        exclude_cgroups: bare(exclude_cgroups.unwrap_or_default()),
        exclude_users: bare(exclude_users.unwrap_or_default()),
        proxy_hosts: bare(hosts),
        synthetic4: synthetic4?,
        synthetic6: synthetic6?,
        families: families?,
        down_for: down_for?,
        addresses_closed: closed?,
        pins: pins?,
    })
}

/// A user by name, or by number without quotes.
fn user<'d>(r: &mut Reader<'d>, value: &Value<'d>) -> Option<User> {
    if value.value.is_integer() {
        return r.number(value, 0..=u32::MAX - 1).map(User::Id);
    }
    let plain = |c: char| c.is_ascii_graphic() && !":/,".contains(c);
    r.parsed(value, |text| match text.parse() {
        // A variable's list has texts only.
        Ok(id) => Ok(User::Id(id)),
        Err(_) if !text.is_empty() && text.len() <= 255 && text.chars().all(plain) => {
            Ok(User::Name(text.to_owned()))
        }
        Err(_) => Err(wrong("not a user's name", LIST_USERS)),
    })
}

fn families<'d>(r: &mut Reader<'d>, value: &Value<'d>) -> Option<Families> {
    const REMEDY: &str = "write [\"ipv4\"], [\"ipv6\"] or [\"ipv4\", \"ipv6\"]";
    let listed = r.filled(
        value,
        |text| match text {
            "ipv4" | "ipv6" => Ok(text),
            _ => Err(wrong("not an address family", REMEDY)),
        },
        REMEDY,
    );
    let has = |family| listed.iter().any(|(_, listed)| *listed == family);
    Some(Families { ipv4: has("ipv4"), ipv6: has("ipv6") })
}
