//! What is said of a key that there is not.
//!
//! What must hold: an unknown key names the key that was probably meant, or the section where it belongs. The
//! commonest mistake is a key of the top that stands below a `[section]`, where TOML gives it to the section.

use super::schema::{SECTIONS, Section, join};

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
    let homes: Vec<&Section> = SECTIONS.into_iter().filter(|other| other.key(key).is_some()).collect();
    let places: Vec<String> = homes.iter().map(|home| home.place()).collect();
    let near = nearest(&section.names(), key);
    let remedy = match (near, places.is_empty()) {
        (Some(near), true) => format!("did you mean `{near}`?"),
        (Some(near), false) => format!("did you mean `{near}`, or does it belong {}?", places.join(", or ")),
        (None, false) => format!("it belongs {}", places.join(", or ")),
        (None, true) => format!("remove it; the keys here are {}", section.names().join(", ")),
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
    use super::super::schema::{EGRESS, GROUP, STEER, TOP};
    use super::*;

    #[test]
    fn what_was_meant_is_found() {
        for (section, key, says) in [
            (&TOP, "appliance-url", "did you mean `appliance_url`?"),
            (&TOP, "aplianceurl", "did you mean `appliance_url`?"),
            (&TOP, "stere", "did you mean `steer`?"),
            (&STEER, "cgroup", "did you mean `cgroups`?"),
            (&STEER, "lanes", "it belongs at the top, above the first [section]"),
            (&TOP, "listen", "it belongs in [appliance], or in [metrics]"),
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
    fn distances_count_edits() {
        for (a, b, edits) in
            [("", "", 0), ("", "ab", 2), ("lanes", "lnaes", 1), ("allow", "alow", 1), ("deny", "drain", 4)]
        {
            assert_eq!(distance(a, &b.chars().collect::<Vec<_>>()), edits, "{a} {b}");
            assert_eq!(distance(b, &a.chars().collect::<Vec<_>>()), edits, "{b} {a}");
        }
    }
}
