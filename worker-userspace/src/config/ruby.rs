//! Scans the older product's own file, `morpheus-worker.rb`: assignments of texts to keys, and comments.
//!
//! What must hold: nothing is executed, and nothing is guessed: what is not `worker['key'] = 'value'` for a key that
//! there is, is told with its place, once for each line. Values go the way of TOML's from here on.

use std::borrow::Cow;
use std::collections::HashMap;

use toml::Spanned;
use toml::de::DeTable;

use super::document::value;
use super::fault::{Wrong, quote, wrong};
use super::meant::nearest;
use super::schema::{Key, Kind, TOP, sounds_secret};

const FORM: &str = "write worker['key'] = 'value' or # comment";
const QUOTES: &str = "write it in plain quotes, as in 'value'";
const CLOSE: &str = "close them at the text's end";
/// What the file says where nobody has filled it in, and what to do about it. The template's `apikey` may stay.
const PLACEHOLDERS: [(&str, &str, &str); 5] = [
    (
        "worker_url",
        "https://gateway_worker_url",
        "write where the appliance reaches this worker, or remove the line: this host's name counts then",
    ),
    (
        "appliance_url",
        "https://morpheus_appliance_url",
        "write the appliance's URL, as in 'https://appliance.example'",
    ),
    ("worker_key", "DISTRIBUTED WORKER KEY", "paste the key that was shown when the worker was added"),
    (
        "proxy_address",
        "http://proxy.address:1234",
        "write the proxy's URL, or remove the line where there is no proxy",
    ),
    (
        "no_proxy",
        "vcenter.example.com,192.168.xx.xx",
        "list what is reached without the proxy, or remove the line",
    ),
];

/// A line that is not understood.
#[derive(Debug)]
pub(super) struct Broken {
    /// Where in the text.
    pub(super) at: usize,
    pub(super) wrong: Wrong,
    /// The keys that somebody meant to set here.
    pub(super) meant: Vec<&'static str>,
}

/// What the file sets, each value with its place, and every line that is not understood.
pub(super) fn scan(text: &str) -> (DeTable<'_>, Vec<Broken>) {
    let mut table = DeTable::new();
    let mut broken = Vec::new();
    let mut seen: HashMap<&str, usize> = HashMap::new();
    // Where a comment of several lines began.
    let mut comment = None;
    // The quotes that are open since a broken line: what follows may belong to it.
    let mut open = false;
    let mut start = 0;
    for (number, whole) in text.split('\n').enumerate() {
        let line = whole.strip_suffix('\r').unwrap_or(whole);
        let at = start;
        start += whole.len() + 1;
        let marks = |mark: &str| {
            line.strip_prefix(mark).is_some_and(|rest| !rest.starts_with(|c: char| !c.is_whitespace()))
        };
        match comment {
            Some(_) if marks("=end") => comment = None,
            Some(_) => {}
            None if marks("=begin") => comment = Some(at),
            None if std::mem::take(&mut open) && continues(line) => open = true,
            None => match (Line { text: line, at: 0 }).statement() {
                Ok(None) => {}
                Ok(Some(Statement { key, key_at, value_at, text })) => {
                    if let Some(first) = seen.insert(key.name, number + 1) {
                        let again = wrong(
                            format!("`{}` is set in line {first} already", key.name),
                            "keep one of the two",
                        );
                        broken.push(Broken { at: at + key_at, wrong: again, meant: vec![key.name] });
                    } else if let Some(wrong) = placeholder(key, &text) {
                        broken.push(Broken { at: at + value_at, wrong, meant: vec![key.name] });
                    } else if !text.is_empty() {
                        let value = value(key.kind, text, at + value_at);
                        table.insert(Spanned::new(at + key_at..at + key_at, key.name.into()), value);
                    }
                }
                Err((column, wrong)) => {
                    open = wrong.remedy == CLOSE;
                    broken.push(Broken { at: at + column, wrong, meant: named(line) });
                }
            },
        }
    }
    if let Some(at) = comment {
        let endless =
            wrong("a comment that begins here and never ends", "write =end on a line of its own behind it");
        let meant = settable().map(|key| key.name).collect();
        broken.push(Broken { at, wrong: endless, meant });
    }
    (table, broken)
}

/// True where a line begins as nothing does that is read here.
fn continues(line: &str) -> bool {
    let line = line.trim_start();
    !(line.is_empty() || line.starts_with("worker") || line.starts_with(['#', '=']))
}

/// The keys that this file may set.
fn settable() -> impl Iterator<Item = &'static Key> {
    TOP.keys.iter().filter(|key| !matches!(key.kind, Kind::Section(_) | Kind::Sections(_)))
}

/// The keys that a line names, however broken it is, or nearly names.
fn named(line: &str) -> Vec<&'static str> {
    let names: Vec<&str> = settable().map(|key| key.name).collect();
    let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-').take(4);
    words.filter_map(|word| nearest(&names, word)).collect()
}

fn placeholder(key: &Key, text: &str) -> Option<Wrong> {
    let (.., remedy) = PLACEHOLDERS.iter().find(|(name, value, _)| *name == key.name && *value == text)?;
    Some(wrong(format!("`{}` has still the value of the template", key.name), *remedy))
}

/// `worker['key'] = 'text'`.
struct Statement<'t> {
    key: &'static Key,
    key_at: usize,
    value_at: usize,
    /// Without white space around it; empty where the key is not set.
    text: Cow<'t, str>,
}

/// A line, and how far it is read.
struct Line<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Line<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn blank(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t']).len();
    }

    fn take(&mut self, token: char) -> bool {
        let taken = self.rest().starts_with(token);
        self.at += if taken { token.len_utf8() } else { 0 };
        taken
    }

    /// Reads what matches.
    fn word(&mut self, matches: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let word = &rest[..rest.find(|c: char| !matches(c)).unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    /// A fault at a place, with what stands there as far as that can hold no secret.
    fn wrong<T>(&self, at: usize, problem: &str, remedy: impl Into<String>) -> Result<T, (usize, Wrong)> {
        let here = self.text[at..].trim_end();
        let problem = match here {
            "" => format!("the line ends here: {problem}"),
            _ if may_hold_secret(self.text) => format!("***: {problem}"),
            _ => format!("{}: {problem}", quote(here)),
        };
        Err((at, wrong(problem, remedy)))
    }

    fn statement(&mut self) -> Result<Option<Statement<'t>>, (usize, Wrong)> {
        self.blank();
        if self.rest().is_empty() || self.rest().starts_with('#') {
            return Ok(None);
        }
        let start = self.at;
        let word = self.word(|c| c.is_ascii_alphanumeric() || c == '_');
        match (word, self.take('[')) {
            ("worker", true) => {}
            ("worker", false) => return self.wrong(self.at, "no key in brackets", FORM),
            ("", _) | (_, false) => return self.wrong(start, "no assignment", FORM),
            (_, true) => {
                return self.wrong(
                    start,
                    "this is not `worker`, and nothing else is read here",
                    "remove the line",
                );
            }
        }
        self.blank();
        let key_at = self.at;
        let key = self.quoted("the key")?;
        self.blank();
        if !self.take(']') {
            return self.wrong(self.at, "no `]` behind the key", FORM);
        }
        let Some(key) = settable().find(|known| known.name == key) else {
            return Err((key_at, unknown(&key, may_hold_secret(self.rest()))));
        };
        self.blank();
        let equals = self.at;
        if !self.take('=') || self.rest().starts_with(['=', '~', '>']) {
            return self.wrong(equals, "no `=` behind the key", FORM);
        }
        self.blank();
        let value_at = self.at;
        let text = match self.rest().chars().next() {
            None | Some('#') => {
                return self.wrong(
                    value_at,
                    "a value is missing",
                    "write one behind `=`, or remove the line",
                );
            }
            Some(c) if c.is_ascii_alphanumeric() || c == '-' => {
                let word = self.word(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
                match key.kind {
                    _ if word == "nil" => Cow::Borrowed(""),
                    Kind::Number | Kind::Flag => Cow::Borrowed(word),
                    _ => return self.wrong(value_at, "a value without quotes", QUOTES),
                }
            }
            Some(_) => trimmed(self.quoted("the value")?),
        };
        self.blank();
        if !(self.rest().is_empty() || self.rest().starts_with('#')) {
            return self.wrong(
                self.at,
                "something stands behind the value",
                "remove it, or write # in front of it",
            );
        }
        Ok(Some(Statement { key, key_at, value_at, text }))
    }

    /// A text in single or double quotes, as Ruby reads it, as far as nothing in it has to be worked out.
    fn quoted(&mut self, what: &str) -> Result<Cow<'t, str>, (usize, Wrong)> {
        let open = self.at;
        let quote = match self.rest().chars().next() {
            Some(quote @ ('\'' | '"')) => quote,
            Some('\u{2018}' | '\u{2019}' | '\u{201c}' | '\u{201d}' | '\u{b4}') => {
                return self.wrong(open, &format!("{what} stands in quotes that are none"), QUOTES);
            }
            Some('`') => {
                let remedy = "write the value itself, in single quotes";
                return self.wrong(open, "a command, and nothing is executed here", remedy);
            }
            _ => return self.wrong(open, &format!("{what} is not in quotes"), QUOTES),
        };
        self.at += 1;
        let start = self.at;
        let mut escaped: Option<String> = None;
        loop {
            let here = self.at;
            let mut next = self.rest().chars();
            let Some(c) = next.next() else {
                return self.wrong(open, "the quotes are not closed in this line", CLOSE);
            };
            self.at += c.len_utf8();
            let literal = match (c, quote, next.next()) {
                (c, _, _) if c == quote => {
                    let text = &self.text[start..here];
                    return Ok(escaped.map_or(Cow::Borrowed(text), Cow::Owned));
                }
                ('#', '"', Some('{' | '$' | '@')) => {
                    let remedy = "write the value itself, in single quotes";
                    return self.wrong(
                        here,
                        "Ruby would work this out, and nothing is executed here",
                        remedy,
                    );
                }
                ('\\', '\'', Some(next @ ('\\' | '\''))) => next,
                ('\\', '"', Some(next)) if next.is_ascii_punctuation() || next == ' ' => next,
                ('\\', '"', Some(_)) => {
                    let remedy = "write the backslash twice, or the text in single quotes";
                    return self.wrong(here, "an escape that is not read here", remedy);
                }
                _ => {
                    if let Some(escaped) = &mut escaped {
                        escaped.push(c);
                    }
                    continue;
                }
            };
            escaped.get_or_insert_with(|| self.text[start..here].to_owned()).push(literal);
            self.at += literal.len_utf8();
        }
    }
}

fn trimmed(text: Cow<'_, str>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.trim()),
        Cow::Owned(text) => Cow::Owned(text.trim().to_owned()),
    }
}

/// True where a text names a secret, or has a user and password in front of a host.
fn may_hold_secret(text: &str) -> bool {
    text.contains('@') || sounds_secret(text)
}

/// `swapped`: what stands behind the key names a secret, so the secret itself may stand in the key's place.
fn unknown(key: &str, swapped: bool) -> Wrong {
    let names: Vec<&str> = settable().map(|key| key.name).collect();
    let remedy = match nearest(&names, key) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "remove the line; what else can be set stands in TOML, which `dworker config import` makes of this file".into(),
    };
    // A name with more than a word in it may have the value in it.
    let is_word = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let hidden = swapped || (!is_word && may_hold_secret(key));
    let key = if hidden { "***".into() } else { quote(key) };
    wrong(format!("{key}: unknown key"), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use toml::de::DeValue;

    /// How a value is written.
    #[derive(Debug, Clone)]
    struct Style {
        double: bool,
        key_double: bool,
        blanks: [usize; 5],
        comment: String,
        windows: bool,
    }

    fn style() -> impl Strategy<Value = Style> {
        let comment = prop_oneof![Just(String::new()), "#[^\r\n]{0,20}"];
        (any::<[bool; 3]>(), prop::array::uniform5(0usize..3), comment).prop_map(
            |(flags, blanks, comment)| Style {
                double: flags[0],
                key_double: flags[1],
                blanks,
                comment,
                windows: flags[2],
            },
        )
    }

    fn write(key: &str, text: &str, style: &Style) -> String {
        let value = match style.double {
            false => format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")),
            true => {
                let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('#', "\\#");
                format!("\"{escaped}\"")
            }
        };
        let quote = if style.key_double { '"' } else { '\'' };
        let [a, b, c, d, e] = style.blanks.map(|n| " ".repeat(n));
        let end = if style.windows { "\r\n" } else { "\n" };
        format!("{a}worker[{b}{quote}{key}{quote}{b}]{c}={d}{value}{e}{}{end}", style.comment)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            texts in prop::collection::vec(prop_oneof!["\\PC{0,30}", "[a-z'\"\\\\#{}@$ ,:/]{0,30}"], settable().count()),
            styles in prop::collection::vec(style(), settable().count()),
        ) {
            let keys: Vec<&Key> = settable().collect();
            let lines = keys.iter().zip(&texts).zip(&styles).map(|((key, text), style)| write(key.name, text, style));
            let file: String = lines.collect();
            let (table, broken) = scan(&file);
            prop_assert!(broken.is_empty(), "{broken:?} in {file}");
            for (key, text) in keys.iter().zip(&texts).filter(|(key, _)| matches!(key.kind, Kind::Text)) {
                let read = table.get(key.name).and_then(|value| value.get_ref().as_str());
                prop_assert_eq!(read, Some(text.trim()).filter(|text| !text.is_empty()), "{} in {}", key.name, &file);
                if let Some(value) = table.get(key.name) {
                    prop_assert!(file[value.span().start..].starts_with(['\'', '"']), "its place");
                }
            }
        }

        #[test]
        fn no_text_panics_and_each_line_has_one_fault_at_most(
            text in prop_oneof![any::<String>(), "(worker|\\[|\\]|'|\"|=|apikey|lanes|#|\\\\|\n|\r\n| |=begin|=end|é|\u{2018}|x){0,40}"],
        ) {
            let (_, broken) = scan(&text);
            let lines: Vec<usize> = broken.iter().map(|b| text[..b.at].matches('\n').count()).collect();
            prop_assert!(lines.windows(2).all(|pair| pair[0] < pair[1]) || text.contains("=begin"), "{lines:?}");
        }
    }

    #[test]
    fn values_have_the_kinds_of_their_keys() {
        let (table, broken) =
            scan("worker['lanes'] = 4\nworker['insecure_plaintext'] = true\nworker['apikey'] = nil\n");
        assert!(broken.is_empty(), "{broken:?}");
        assert!(table.get("lanes").is_some_and(|value| value.get_ref().is_integer()));
        assert!(matches!(table.get("insecure_plaintext").map(|v| v.get_ref()), Some(DeValue::Boolean(true))));
        assert!(!table.contains_key("apikey"));
    }

    #[test]
    fn comments_of_several_lines_are_comments() {
        let (table, broken) =
            scan("=begin\nworker['apikey'] = 'a'\n  =end\n=end of it\nworker['log'] = 'warn'\n");
        assert!(broken.is_empty(), "{broken:?}");
        assert_eq!(table.len(), 1);
    }
}
