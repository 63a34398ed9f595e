//! What is said about a file that is wrong: one line per fault, its place, the key, the value, the remedy.
//!
//! What must hold: whatever the file says, a fault is one line of bounded length and shows no secret. So the
//! text of a file comes into a fault only through [`quote`] and [`show`], and every part passes [`mask`] or
//! [`mask_shown`].

use std::fmt;
use std::sync::Arc;

use toml::de::DeValue;

use crate::target::TargetError;

/// More faults than this help nobody; the rest is counted.
const MOST_FAULTS: usize = 100;
/// The longest piece of a file that a fault repeats, in characters.
const LONGEST_QUOTE: usize = 80;
/// The longest half of a message, in characters: our own words are shorter.
const LONGEST_MESSAGE: usize = 400;
/// What a worker key and an admin token begin with, wherever somebody may have pasted one.
pub(super) const SECRETS: [&str; 2] = ["dwk_", "dwa_"];
/// What follows it. So many letters, digits, `-` and `_` without a dot are hardly anything else.
const SECRET_BODY: usize = 43;

/// One fault, or one warning: `dworker.toml:12: steer.synthetic4 = "10.0.0.0/40": what is wrong: the remedy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file as it was named to us; or what else has set the key, as in `$DWORKER_LANES`.
    pub file: Arc<str>,
    /// The line, from 1, where the fault has one.
    pub line: Option<usize>,
    /// The column, from 1, where the text itself is not understood.
    pub column: Option<usize>,
    /// The key's path, as in `appliance.groups[0].name`; empty where the whole file is meant.
    pub key: String,
    /// The value as written, cut where it is long, `***` where it is or may be a secret.
    pub value: Option<String>,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, "{number}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}", self.key)?;
            if let Some(value) = &self.value {
                write!(f, " = {value}")?;
            }
            f.write_str(":")?;
        }
        write!(f, " {}: {}", self.problem, self.remedy)
    }
}

/// Every fault of a configuration, in the order of the file; never empty. Displays one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults {
    faults: Vec<Fault>,
    more: usize,
    of_files: bool,
}

impl Faults {
    /// Keeps the first hundred and counts the others.
    pub(super) fn new(mut faults: Vec<Fault>) -> Faults {
        let more = faults.len().saturating_sub(MOST_FAULTS);
        faults.truncate(MOST_FAULTS);
        Faults { faults, more, of_files: false }
    }

    /// The same, where the text itself is right: they are all of files, which may be others a moment later.
    pub(super) fn of_files(self) -> Faults {
        Faults { of_files: true, ..self }
    }

    /// True where they may pass without anybody writing another configuration: a certificate is being replaced, a directory
    /// is not mounted yet.
    pub fn may_pass(&self) -> bool {
        self.of_files
    }

    /// The faults, at most the first hundred.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.faults.iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.faults.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        if self.more > 0 {
            write!(f, "\nand {} more faults: correct these first", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// What is wrong with one value, before anybody knows its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// What is wrong.
    pub(crate) problem: String,
    /// What to do about it.
    pub(crate) remedy: String,
}

/// A [`Wrong`] from two texts.
pub(crate) fn wrong(problem: impl Into<String>, remedy: impl Into<String>) -> Wrong {
    Wrong { problem: problem.into(), remedy: remedy.into() }
}

impl From<TargetError> for Wrong {
    /// Without the text: the fault shows the whole value already.
    fn from(error: TargetError) -> Wrong {
        match error {
            TargetError::Name { why, .. } => wrong("not a host name", why),
            TargetError::Pattern { why, .. } => wrong("not a proxy host", why),
            TargetError::Exempt { why, .. } => wrong("nothing that `no_proxy` can have", why),
        }
    }
}

/// A value as a fault shows it.
pub(super) fn show(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quote(text),
        DeValue::Integer(number) => shorten(&number.to_string()),
        DeValue::Float(number) => shorten(&number.to_string()),
        DeValue::Boolean(yes) => yes.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(items) => {
            let mut shown: Vec<String> = items.iter().take(3).map(|item| show(item.get_ref())).collect();
            if items.len() > shown.len() {
                shown.push("…".into());
            }
            shorten(&format!("[{}]", shown.join(", ")))
        }
        DeValue::Table(_) => "{…}".into(),
    }
}

/// A text from a file, quoted, on one line, cut where it is long. Whole `***` where it may hold a worker key or a
/// PEM block, and without the user and password in front of a host.
pub(crate) fn quote(text: &str) -> String {
    // Paths may have long parts: a container's cgroup is named by 64 digits.
    let is_path = text.contains('/') && !text.contains("://");
    let long = !is_path && text.split(|c| !is_key(c)).any(|word| word.len() >= SECRET_BODY);
    if SECRETS.iter().any(|begin| text.contains(begin)) || text.contains("-----BEGIN") || long {
        return "***".into();
    }
    let text = match text.rsplit_once('@') {
        Some((before, host)) if before.contains(':') => {
            let scheme = before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
            format!("{scheme}***@{host}")
        }
        _ => text.to_owned(),
    };
    let mut chars = text.chars();
    let head: String = chars.by_ref().take(LONGEST_QUOTE).collect();
    let cut = if chars.next().is_some() { "…" } else { "" };
    format!("{head:?}{cut}")
}

/// A text that stands unquoted, cut where it is long.
pub(super) fn shorten(text: &str) -> String {
    cut(text, LONGEST_QUOTE)
}

/// A message, cut where it repeats too much of what was written.
pub(super) fn bounded(text: &str) -> String {
    cut(text, LONGEST_MESSAGE)
}

fn cut(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The last line of defence for our own words: `***` for whatever looks like a worker key.
pub(super) fn mask(text: &str) -> String {
    mask_words(text, SECRET_BODY)
}

/// The same for what [`quote`] made and for paths, where a long word alone means nothing.
pub(super) fn mask_shown(text: &str) -> String {
    mask_words(text, usize::MAX)
}

/// A text of others that is kept or shown on: without worker keys, admin tokens, users and passwords in URLs, and
/// control characters, cut where it is longer than `longest` characters.
pub(crate) fn mask_secrets(text: &str, longest: usize) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("://") {
        // A password may have quotes in it: rather too much is masked than too little.
        let end = behind.find(|c: char| c.is_whitespace() || "/?#".contains(c)).unwrap_or(behind.len());
        let user = behind[..end].rfind('@');
        masked.extend([before, "://", if user.is_some() { "***" } else { "" }]);
        rest = &behind[user.unwrap_or(0)..];
    }
    masked.push_str(rest);
    cut(&mask_words(&masked, usize::MAX), longest)
}

/// True where a text holds what looks like a whole worker key or admin token.
pub(crate) fn holds_secret(text: &str) -> bool {
    text.split(|c| !is_key(c)).any(|word| {
        let body = |begin: &&str| word.split_once(*begin).map_or(0, |(_, body)| body.len());
        SECRETS.iter().any(|begin| body(begin) >= SECRET_BODY)
    })
}

/// Masks each word that is `longest` or has the secret's beginning, and each control character.
fn mask_words(text: &str, longest: usize) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_key) {
        let (between, word) = rest.split_at(start);
        let (word, behind) = word.split_at(word.find(|c| !is_key(c)).unwrap_or(word.len()));
        masked.push_str(between);
        let begins = |begin: &&str| word.split_once(*begin).is_some_and(|(_, body)| !body.is_empty());
        let begun = SECRETS.iter().any(begins);
        masked.push_str(if begun || word.len() >= longest { "***" } else { word });
        rest = behind;
    }
    masked.push_str(rest);
    if masked.contains(char::is_control) {
        masked = masked.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    }
    masked
}

/// What worker keys are made of.
fn is_key(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_do_not_come_through() {
        for (text, shown) in [
            ("dwk_abc", "***"),
            ("two\nlines dwk_ab\ncd", "***"),
            ("-----BEGIN PRIVATE KEY-----", "***"),
            (&format!("https://{}/", "k".repeat(43)), "***"),
            (
                &format!("a/docker-{}.scope", "0".repeat(64)),
                &format!("\"a/docker-{}.scope\"", "0".repeat(64)),
            ),
            (&"k".repeat(42), &format!("\"{}\"", "k".repeat(42))),
            ("https://root:pa@ss@vc/sdk", "\"https://***@vc/sdk\""),
            ("root:pass@vc:443", "\"***@vc:443\""),
            ("system.slice/app@1.service", "\"system.slice/app@1.service\""),
            ("https://vc/sdk", "\"https://vc/sdk\""),
            ("a\u{202e}b\n\u{1b}[1m", "\"a\\u{202e}b\\n\\u{1b}[1m\""),
        ] {
            assert_eq!(quote(text), shown);
        }
        assert_eq!(mask("a dwk_x-y_Z, `dwk_` and xdwk_1"), "a ***, `dwk_` and ***");
        assert_eq!(mask(&format!("`{}`.", "k".repeat(43))), "`***`.");
        assert_eq!(mask("a\nb"), "a\u{fffd}b");
    }

    #[test]
    fn what_is_kept_of_other_peoples_texts_holds_no_secret() {
        let key = format!("dwk_{}", "k".repeat(43));
        let token = format!("dwa_{}", "-".repeat(43));
        for (text, kept) in [
            (key.as_str(), "***"),
            (&format!("({key}),{token}!"), "(***),***!"),
            (
                "https://root:p@ss@vc.example:443/sdk, http://a@b",
                "https://***@vc.example:443/sdk, http://***@b",
            ),
            ("https://vc.example/a@b", "https://vc.example/a@b"),
            (&format!("x://{key}@h"), "x://***@h"),
            ("://@://@", "://***@://***@"),
            ("<b>'; DROP TABLE workers; --\n\u{0}", "<b>'; DROP TABLE workers; --\u{fffd}\u{fffd}"),
        ] {
            assert_eq!(mask_secrets(text, 100), kept, "{text:?}");
        }
        assert_eq!(mask_secrets("abcdef", 3), "abc…");
        assert!(holds_secret(&format!("see {key}.")) && holds_secret(&token) && !holds_secret("dwk_ dwa_x"));
    }

    proptest! {
        #[test]
        fn any_text_gives_one_short_line(text in any::<String>(), tail in ".{0,200}") {
            for shown in [quote(&format!("{text}{tail}")), mask(&shorten(&tail))] {
                prop_assert!(!shown.contains(char::is_control), "{shown:?}");
                // An escaped character is at most `\u{10ffff}`.
                prop_assert!(shown.chars().count() <= LONGEST_QUOTE * 10 + 3);
            }
        }
    }
}
