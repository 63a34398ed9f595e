//! Which keys there are: their names, what they are, what they mean, and what holds where nobody sets them.
//!
//! What must hold: all that is said of keys in general is said here once. The reader takes its defaults from here, the
//! variables of the environment and the older product's file have their names from here, and so do the commented file and
//! `dworker config show`.

use std::collections::HashMap;
use std::sync::LazyLock;

use toml::de::DeValue;

use super::fault::{quote, shorten};

/// Where the kernel keeps what outlives the daemon, where the configuration does not say it.
pub const PINS: &str = "/sys/fs/bpf/dworker";

/// Where commands ask, where the configuration does not say it.
pub const SOCKET: &str = "/run/dworker/control.sock";

/// One section of the file and its keys.
#[derive(Debug)]
pub(super) struct Section {
    /// How its header is written; empty for the top of the file.
    pub(super) header: &'static str,
    /// What stands in front of its keys.
    pub(super) path: &'static str,
    /// What it is about, for the commented file.
    pub(super) about: &'static str,
    /// The keys that may stand in it.
    pub(super) keys: &'static [Key],
}

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// What its values are.
    pub(super) kind: Kind,
    /// What it means, for the commented file.
    pub(super) about: &'static str,
    /// What holds where nobody sets it, as TOML.
    pub(super) default: Option<&'static str>,
    /// A value that has sense, as TOML; the default where there is one.
    pub(super) example: &'static str,
    /// The systemd credential that it is the path of, where neither it nor what it stands for is set.
    pub(super) credential: Option<&'static str>,
    /// Only a worker has it.
    pub(super) of_worker: bool,
    /// How its values are shown.
    shown: Shown,
}

/// How values of a key are shown, in faults and by `dworker config show`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// As they are, but for what is masked in all texts.
    Plain,
    /// Not at all: they are secrets.
    Never,
    /// Where they are absolute paths: what is no path of a secret may be the secret itself.
    Path,
    /// Without a colon: Basic writes the password behind one.
    User,
    /// A proxy's URL, without user and password.
    ProxyUrl,
}

/// What a key's values are, and so how a text that comes from elsewhere becomes one.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Text,
    Number,
    Flag,
    /// Texts.
    List,
    /// Texts, or one text that has them all.
    Words,
    /// A section that stands once.
    Section(&'static Section),
    /// Sections that stand as often as wanted.
    Sections(&'static Section),
}

impl Key {
    const fn new(name: &'static str, kind: Kind, about: &'static str) -> Key {
        Key {
            name,
            kind,
            about,
            default: None,
            example: "",
            credential: None,
            of_worker: false,
            shown: Shown::Plain,
        }
    }

    /// With a default.
    const fn or(self, default: &'static str) -> Key {
        Key { default: Some(default), example: default, ..self }
    }

    /// With an example, where there is no default or a list of one says more.
    const fn such_as(self, example: &'static str) -> Key {
        Key { example, ..self }
    }

    /// With the name of a credential: it is the path of a secret.
    const fn credential(self, name: &'static str) -> Key {
        Key { credential: Some(name), shown: Shown::Path, ..self }
    }

    /// That only a worker has, so that it is a fault elsewhere.
    const fn of_worker(self) -> Key {
        Key { of_worker: true, ..self }
    }

    /// Whose values are not shown as they are.
    const fn shown(self, shown: Shown) -> Key {
        Key { shown, ..self }
    }

    /// What is shown instead of a value: `***`, or a text; none where it is shown itself.
    pub(super) fn instead(&self, value: &DeValue<'_>) -> Option<String> {
        let hidden = || Some("***".to_owned());
        match (self.shown, value.as_str()) {
            (Shown::Plain, _) => None,
            (Shown::Path, Some(path)) if path.starts_with('/') => None,
            (Shown::User, Some(user)) if !user.contains(':') => None,
            (Shown::ProxyUrl, Some(url)) => Some(super::upstream::shown(url)),
            _ => hidden(),
        }
    }

    /// The value that holds where nobody sets it.
    pub(super) fn default(&self) -> Option<&'static DeValue<'static>> {
        static PARSED: LazyLock<HashMap<&'static str, DeValue<'static>>> = LazyLock::new(|| {
            let keys = SECTIONS.into_iter().flat_map(|section| section.keys);
            let texts = keys.filter_map(|key| key.default);
            texts.filter_map(|text| Some((text, DeValue::parse(text).ok()?.into_inner()))).collect()
        });
        PARSED.get(self.default?)
    }
}

const fn text(name: &'static str, about: &'static str) -> Key {
    Key::new(name, Kind::Text, about)
}

const fn number(name: &'static str, about: &'static str) -> Key {
    Key::new(name, Kind::Number, about)
}

/// All flags are off where nobody sets them.
const fn flag(name: &'static str, about: &'static str) -> Key {
    Key::new(name, Kind::Flag, about).or("false")
}

const fn list(name: &'static str, about: &'static str) -> Key {
    Key::new(name, Kind::List, about)
}

const fn words(name: &'static str, about: &'static str) -> Key {
    Key::new(name, Kind::Words, about)
}

const fn section(name: &'static str, section: &'static Section) -> Key {
    Key::new(name, Kind::Section(section), "")
}

const fn sections(name: &'static str, section: &'static Section) -> Key {
    Key::new(name, Kind::Sections(section), "")
}

/// What stands above the first header.
pub(super) static TOP: Section = Section {
    header: "",
    path: "",
    about: "",
    keys: &[
        text("state_dir", "What survives a restart").or("\"/var/lib/dworker\""),
        text("control_socket", "The socket that `dworker status` and its like ask, at most 107 bytes long")
            .or("\"/run/dworker/control.sock\""),
        text("drain", "How long a stop waits for open connections, at most 1h; 0s cuts at once")
            .or("\"10s\""),
        text("reload_drain", "How long connections may go on in the process before a reload, at most 7d")
            .or("\"1h\""),
        text("log", "error, warn, info, debug, trace, or a filter such as dworker::tunnel=debug,info")
            .or("\"info\""),
        text("log_format", "text or json: one line, or one object, for each event").or("\"text\""),
        text(
            "worker_url",
            "Where the appliance reaches this worker on port 443; else https:// and this host's name",
        )
        .such_as("\"https://worker.example\"")
        .of_worker(),
        text("appliance_url", "The appliance, as this worker reaches it")
            .such_as("\"https://appliance.example\""),
        text("apikey", "The key of a VDI gateway: kept for later, any value is taken and none is needed")
            .such_as("\"API KEY FOR THIS GATEWAY\"")
            .shown(Shown::Never)
            .of_worker(),
        text("apikey_file", "The file that holds it, instead of `apikey`")
            .such_as("\"/etc/dworker/apikey\"")
            .credential("apikey")
            .of_worker(),
        text("worker_key", "The worker's key: dwk_ and 43 characters")
            .such_as("\"dwk_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG\"")
            .shown(Shown::Never),
        text("worker_key_file", "The file that holds it alone, mode 600, instead of `worker_key`")
            .such_as("\"/etc/dworker/worker.key\"")
            .credential("worker_key"),
        text("ca_file", "Certificates in PEM that are trusted beside the system's")
            .such_as("\"/etc/dworker/ca.pem\"")
            .of_worker(),
        text(
            "ca_dir",
            "A directory of such files, *.pem, *.crt and *.cer, which are read anew for each dial",
        )
        .such_as("\"/etc/dworker/ca.d\"")
        .of_worker(),
        text(
            "client_certificate",
            "What the worker shows an appliance that asks for it, with its chain, in PEM",
        )
        .such_as("\"/etc/dworker/worker.crt\"")
        .of_worker(),
        text("client_key", "The private key of it, in PEM, mode 600")
            .such_as("\"/etc/dworker/worker-tls.key\"")
            .credential("client_key")
            .of_worker(),
        number("lanes", "Websockets of a session, 1 to 8").or("2").of_worker(),
        text(
            "proxy_address",
            "The HTTP proxy on the way to the appliance and to targets, with user:password@ where it asks",
        )
        .such_as("\"http://proxy.example:3128\"")
        .shown(Shown::ProxyUrl)
        .of_worker(),
        text("proxy_address_password_file", "The file that holds the user's password alone, mode 600")
            .such_as("\"/etc/dworker/upstream.password\"")
            .credential("proxy_address_password")
            .of_worker(),
        words(
            "no_proxy",
            "What is reached without it: names, .suffixes, addresses, networks, with ports, or *",
        )
        .such_as("\"vcenter.corp.example, .lab.example, 10.20.0.0/16\"")
        .of_worker(),
        flag("insecure_plaintext", "No TLS to the appliance, whose URL is http:// then: in a lab only")
            .of_worker(),
        section("egress", &EGRESS).of_worker(),
        section("appliance", &APPLIANCE),
        section("steer", &STEER),
        section("proxy", &PROXY),
        section("metrics", &METRICS),
    ],
};

/// What a worker may dial.
pub(super) static EGRESS: Section = Section {
    header: "[egress]",
    path: "egress",
    about: "What the worker itself says of what it dials",
    keys: &[
        list("allow", "Of the proxy hosts that the appliance lists, only these; else all of them")
            .such_as("[\"*.corp.example\", \"10.20.0.0/16:443\"]"),
        list("deny", "What it never dials").or("[]"),
        text("connect_timeout", "How long it tries, 100ms to 2m").or("\"10s\""),
    ],
};

/// The appliance role.
pub(super) static APPLIANCE: Section = Section {
    header: "[appliance]",
    path: "appliance",
    about: "The appliance: where workers arrive, and which of them stand in this file",
    keys: &[
        list("listen", "Addresses and ports").such_as("[\"0.0.0.0:443\", \"[::]:443\"]"),
        text("certificate", "The certificate and its chain, in PEM").such_as("\"/etc/dworker/tls.crt\""),
        text("key", "The private key of it, in PEM, mode 600")
            .such_as("\"/etc/dworker/tls.key\"")
            .credential("appliance_key"),
        text("pkcs12", "Certificate, chain and private key in one PKCS#12 file instead, mode 600")
            .such_as("\"/etc/dworker/tls.p12\""),
        text("pkcs12_password_file", "The file that holds its password alone, mode 600; else it has none")
            .such_as("\"/etc/dworker/tls.password\"")
            .credential("appliance_pkcs12_password"),
        text("client_ca_file", "Who signs workers' client certificates, in PEM; else workers are asked for none")
            .such_as("\"/etc/dworker/workers-ca.pem\""),
        text(
            "client_certificates",
            "Beside client_ca_file: whether a worker must show one, required (also where this is not set) or optional",
        )
        .such_as("\"required\""),
        flag("insecure_plaintext", "No TLS: in a lab only"),
        text(
            "failback",
            "How long a worker that was lost must be up before it is primary again, at most 1h; doubled with each loss",
        )
        .or("\"60s\""),
        text("events_age", "How long events are kept, 1d to 3650d").or("\"90d\""),
        number("events_max", "How many events are kept, 1000 to 10000000").or("1000000"),
        sections("groups", &GROUP),
    ],
};

/// One group of workers.
pub(super) static GROUP: Section = Section {
    header: "[[appliance.groups]]",
    path: "appliance.groups[]",
    about: "The workers that share a key; one section for each such group",
    keys: &[
        text("name", "1 to 63 of a-z, 0-9 and -").such_as("\"site-a\""),
        text("key_sha256", "What `dworker key hash` prints for their key")
            .such_as("\"f333873adc6c2a0578de5b5ec0ed501d3cfc4906ea185c5fdc71bfa66fa058b9\"")
            .shown(Shown::Never),
        list(
            "proxy_hosts",
            "What they carry: names, *.suffixes, addresses and networks, with ports where not all are meant",
        )
        .such_as("[\"vcenter.corp.example:443,902\", \"*.lab.example\", \"10.20.0.0/16\"]"),
        flag("may_open", "They may open connections to other groups' proxy hosts"),
    ],
};

/// The steering role.
pub(super) static STEER: Section = Section {
    header: "[steer]",
    path: "steer",
    about: "Capturing connections on this host, with eBPF",
    keys: &[
        list("cgroups", "What is captured: cgroup v2 directories").such_as("[\"appliance.slice\"]"),
        list("exclude_cgroups", "Cgroups below those that are not captured, with all that is below them")
            .or("[]"),
        list("exclude_users", "Users that are not captured, by name or number, as in [\"backup\", 1000]")
            .or("[]"),
        list("proxy_hosts", "On a worker's host: what is captured. On an appliance the groups say it")
            .such_as("[\"vcenter.corp.example\"]"),
        text("synthetic4", "IPv4 addresses that stand for names; the prefix has a length of 8 to 28")
            .or("\"240.64.0.0/16\""),
        text("synthetic6", "IPv6 addresses that stand for names; the prefix has a length of 32 to 112")
            .or("\"2001:2::/48\""),
        list("families", "Address families that names are answered with: ipv4, ipv6 or both")
            .or("[\"ipv4\"]"),
        text("down_for", "How long a failed dial is answered in connect() at once, at most 60s").or("\"2s\""),
        text("addresses_without_daemon", "Whether addresses go direct while no daemon runs: open or closed")
            .or("\"open\""),
        text(
            "pins",
            "Where the kernel keeps what outlives the daemon: a bpf file system, or where one is mounted",
        )
        .or("\"/sys/fs/bpf/dworker\""),
    ],
};

/// The entries for clients that know proxies.
pub(super) static PROXY: Section = Section {
    header: "[proxy]",
    path: "proxy",
    about: "Where clients arrive that know proxies themselves",
    keys: &[
        list("http", "For HTTP CONNECT").such_as("[\"127.0.0.1:3128\"]"),
        list("socks", "For SOCKS5").such_as("[\"127.0.0.1:1080\"]"),
        text("user", "Who is let in; else everybody, on loopback addresses only")
            .such_as("\"backup\"")
            .shown(Shown::User),
        text("password_file", "The file that holds the user's password alone, mode 600")
            .such_as("\"/etc/dworker/proxy.password\"")
            .credential("proxy_password"),
        flag("allow_anonymous", "Everybody on other hosts is let in, too"),
    ],
};

/// What Prometheus reads.
pub(super) static METRICS: Section = Section {
    header: "[metrics]",
    path: "metrics",
    about: "What Prometheus reads, at /metrics",
    keys: &[list("listen", "Addresses and ports; whoever reaches them reads it. [] is none")
        .or("[\"127.0.0.1:19464\"]")],
};

/// The keys that make a worker.
pub(super) const WORKER: [&str; 3] = ["appliance_url", "worker_key", "worker_key_file"];

/// All sections, in the order of the commented file.
pub(super) static SECTIONS: [&Section; 7] = [&TOP, &EGRESS, &APPLIANCE, &GROUP, &STEER, &PROXY, &METRICS];

/// The names of the systemd credentials that are taken.
pub fn credentials() -> impl Iterator<Item = &'static str> {
    SECTIONS.into_iter().flat_map(|section| section.keys).filter_map(|key| key.credential)
}

impl Section {
    /// The key of this name.
    pub(super) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// The names of its keys.
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.keys.iter().map(|key| key.name).collect()
    }

    /// The other one of `secret` and `secret_file`, which say the same.
    pub(super) fn twin(&self, name: &str) -> Option<&'static Key> {
        match name.strip_suffix("_file") {
            Some(secret) => self.key(secret),
            None => self.key(&format!("{name}_file")),
        }
    }
}

/// True where the value of an unknown key is not shown, because the key sounds like that of a secret.
pub(super) fn sounds_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["key", "secret", "passw", "token"].iter().any(|word| key.contains(word))
}

/// `parent.name`, quoted as TOML does it where it is no bare key.
pub(super) fn join(parent: &str, name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let name = if bare { shorten(name) } else { quote(name) };
    if parent.is_empty() { name } else { format!("{parent}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_stands_in_an_example() {
        // The examples are asserted against whole structs, so a key that nobody reads cannot hide.
        let examples = concat!(
            include_str!("../../tests/config/appliance.toml"),
            include_str!("../../tests/config/pkcs12.toml"),
            include_str!("../../tests/config/worker.toml"),
            include_str!("../../tests/config/lab.toml")
        );
        for section in SECTIONS {
            for key in section.names() {
                let set = examples.lines().any(|line| {
                    line.starts_with(&format!("{key} = "))
                        || line.trim_matches(['[', ']']).split('.').next_back() == Some(key)
                });
                assert!(set, "{key} of {:?} stands in no example", section.header);
            }
        }
    }

    #[test]
    fn defaults_are_toml_of_their_kind() {
        for key in SECTIONS.into_iter().flat_map(|section| section.keys) {
            assert_eq!(
                key.default.is_some(),
                key.default().is_some(),
                "{}: the default is no TOML",
                key.name
            );
            let fits = |value: &DeValue<'_>| match key.kind {
                Kind::Text => value.is_str(),
                Kind::Number => value.is_integer(),
                Kind::Flag => value.is_bool(),
                Kind::List | Kind::Words => value.is_array(),
                Kind::Section(_) | Kind::Sections(_) => false,
            };
            assert!(key.default().is_none_or(fits), "{}: the default is of another kind", key.name);
        }
    }

    #[test]
    fn every_section_is_listed() {
        for key in SECTIONS.into_iter().flat_map(|section| section.keys) {
            if let Kind::Section(section) | Kind::Sections(section) = key.kind {
                assert!(SECTIONS.iter().any(|listed| std::ptr::eq(*listed, section)), "{}", section.header);
            }
        }
    }
}
