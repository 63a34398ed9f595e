//! Which keys there are, and what is said of one that there is not.
//!
//! What must hold: an unknown key names the key that was probably meant, or the section where it belongs. The
//! commonest mistake is a key of the top that stands below a `[section]`, where TOML gives it to the section.

use toml::de::DeValue;

use super::fault::{quote, shorten};

/// One section of the file and its keys.
#[derive(Debug)]
pub(super) struct Section {
    /// How its header is written; empty for the top of the file.
    pub(super) header: &'static str,
    /// What stands in front of its keys.
    path: &'static str,
    /// The keys that may stand in it.
    pub(super) keys: &'static [&'static str],
}

/// What stands above the first header.
pub(super) const TOP: Section = Section {
    header: "",
    path: "",
    keys: &[
        "state_dir",
        "control_socket",
        "drain",
        "log",
        "appliance_url",
        "worker_key",
        "worker_key_file",
        "ca_file",
        "ca_dir",
        "client_certificate",
        "client_key",
        "lanes",
        "insecure_plaintext",
        "egress",
        "appliance",
        "steer",
        "proxy",
    ],
};

/// What a worker may dial.
pub(super) const EGRESS: Section =
    Section { header: "[egress]", path: "egress", keys: &["allow", "deny", "connect_timeout"] };

/// The appliance role.
pub(super) const APPLIANCE: Section = Section {
    header: "[appliance]",
    path: "appliance",
    keys: &[
        "listen",
        "certificate",
        "key",
        "pkcs12",
        "pkcs12_password_file",
        "client_ca_file",
        "client_certificates",
        "insecure_plaintext",
        "failback",
        "events_age",
        "events_max",
        "groups",
    ],
};

/// One group of workers.
pub(super) const GROUP: Section = Section {
    header: "[[appliance.groups]]",
    path: "appliance.groups[]",
    keys: &["name", "key_sha256", "proxy_hosts", "may_open"],
};

/// The steering role.
pub(super) const STEER: Section = Section {
    header: "[steer]",
    path: "steer",
    keys: &["cgroups", "proxy_hosts", "synthetic4", "synthetic6", "families", "down_for"],
};

/// The entries for clients that know proxies.
pub(super) const PROXY: Section = Section {
    header: "[proxy]",
    path: "proxy",
    keys: &["http", "socks", "user", "password_file", "allow_anonymous"],
};

const SECTIONS: [&Section; 6] = [&TOP, &EGRESS, &APPLIANCE, &GROUP, &STEER, &PROXY];

/// True where the value of a known key is not shown: it is a secret, or somebody may have pasted one there.
pub(super) fn hides(key: &str, value: &DeValue<'_>) -> bool {
    match key {
        "worker_key" | "key_sha256" => true,
        // The path of a secret may be shown; what is no path may be the secret itself.
        "worker_key_file" | "password_file" | "pkcs12_password_file" | "client_key" | "key" => {
            !value.as_str().is_some_and(|text| text.starts_with('/'))
        }
        // As Basic writes it, with the password behind a colon.
        "user" => value.as_str().is_none_or(|text| text.contains(':')),
        _ => false,
    }
}

/// True where the value of an unknown key is not shown, because the key sounds like that of a secret.
pub(super) fn sounds_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["key", "secret", "passw", "token"].iter().any(|word| key.contains(word))
}

/// What somebody may have meant with a key that does not exist.
#[derive(Debug)]
pub(super) struct Meant {
    /// What to do.
    pub(super) remedy: String,
    /// The keys, by their full paths, that are surely meant: nobody need be told that they are missing.
    pub(super) keys: Vec<String>,
}

/// What to do about `key`, which is none of `section`'s. `path` is the section's own.
pub(super) fn meant(section: &Section, path: &str, key: &str) -> Meant {
    let homes: Vec<&Section> = SECTIONS.into_iter().filter(|other| other.keys.contains(&key)).collect();
    let places: Vec<String> = homes.iter().map(|home| home.place()).collect();
    let near = nearest(section.keys, key);
    let remedy = match (near, places.is_empty()) {
        (Some(near), true) => format!("did you mean `{near}`?"),
        (Some(near), false) => format!("did you mean `{near}`, or does it belong {}?", places.join(", or ")),
        (None, false) => format!("it belongs {}", places.join(", or ")),
        (None, true) => format!("remove it; the keys here are {}", section.keys.join(", ")),
    };
    let near = near.map(|near| join(path, near));
    let keys = near.into_iter().chain(homes.iter().map(|home| join(home.path, key))).collect();
    Meant { remedy, keys }
}

impl Section {
    /// Where it is, as the end of a sentence.
    fn place(&self) -> String {
        match self.header {
            "" => "at the top, above the first [section]".to_owned(),
            header => format!("in {header}"),
        }
    }
}

/// `parent.name`, quoted as TOML does it where it is no bare key.
pub(super) fn join(parent: &str, name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let name = if bare { shorten(name) } else { quote(name) };
    if parent.is_empty() { name } else { format!("{parent}.{name}") }
}

/// The candidate that was probably meant by `word`: it differs by a few letters, or has the word in it.
pub(super) fn nearest<'c>(candidates: &[&'c str], word: &str) -> Option<&'c str> {
    let word = word.to_lowercase().replace('-', "_");
    let letters: Vec<char> = word.chars().take(64).collect();
    let edits = |candidate: &str| match candidate.split('_').any(|part| part == word) {
        true => 1,
        false => distance(candidate, &letters),
    };
    let (edits, near) = candidates.iter().map(|candidate| (edits(candidate), *candidate)).min()?;
    (edits <= (near.len() / 3).max(1)).then_some(near)
}

/// How many characters to insert, delete, replace or swap with their neighbour to make one word the other.
fn distance(a: &str, b: &[char]) -> usize {
    let a: Vec<char> = a.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let replaced = above[j] + usize::from(a[i] != b[j]);
            let mut least = replaced.min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_found() {
        for (section, key, says) in [
            (&TOP, "appliance-url", "did you mean `appliance_url`?"),
            (&TOP, "aplianceurl", "did you mean `appliance_url`?"),
            (&TOP, "stere", "did you mean `steer`?"),
            (&STEER, "cgroup", "did you mean `cgroups`?"),
            (&STEER, "lanes", "it belongs at the top, above the first [section]"),
            (&TOP, "listen", "it belongs in [appliance]"),
            (&TOP, "proxy_hosts", "it belongs in [[appliance.groups]], or in [steer]"),
            (
                &EGRESS,
                "insecure_plaintext",
                "it belongs at the top, above the first [section], or in [appliance]",
            ),
            (&GROUP, "key", "did you mean `key_sha256`, or does it belong in [appliance]?"),
            (&GROUP, "hosts", "did you mean `proxy_hosts`?"),
            (&EGRESS, "colour", "remove it; the keys here are allow, deny, connect_timeout"),
        ] {
            assert_eq!(meant(section, section.path, key).remedy, says, "{key}");
        }
    }

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
            for key in section.keys {
                let set = examples.lines().any(|line| {
                    line.starts_with(&format!("{key} = "))
                        || line.trim_matches(['[', ']']).split('.').next_back() == Some(key)
                });
                assert!(set, "{key} of {:?} stands in no example", section.header);
            }
        }
    }

    #[test]
    fn distances_count_edits() {
        for (a, b, edits) in
            [("", "", 0), ("", "ab", 2), ("lanes", "lnaes", 1), ("allow", "alow", 1), ("deny", "drain", 4)]
        {
            assert_eq!(distance(a, &b.chars().collect::<Vec<_>>()), edits, "{a} {b}");
            assert_eq!(distance(b, &a.chars().collect::<Vec<_>>()), edits, "{b} {a}");
        }
    }
}
