//! What holds in the end, key by key, and who says so: `dworker config show`.
//!
//! What must hold: it is the document that the reader has read and the defaults that it has taken, so nothing can hold
//! that is not shown; and no secret is shown.

use std::fmt;
use std::path::Path;

use serde::Serialize;
use toml::Value;
use toml::de::{DeTable, DeValue};

use super::document::{Origin, Origins, is_worker};
use super::fault::mask_secrets;
use super::schema::{Kind, Section, TOP, join};

/// Every key of the sections that are there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Effective {
    settings: Vec<Setting>,
    /// Headers of sections that are not there, so that none of their keys holds.
    absent: Vec<&'static str>,
}

/// One key, and what holds for it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// Its path, as in `appliance.groups[0].name`.
    pub key: String,
    /// Its value; `***` where it is a secret. None where it has none.
    pub value: Option<Value>,
    /// Who says so; none where it has no value.
    #[serde(flatten)]
    pub origin: Option<Origin>,
    /// The section's header, where this is its first key.
    #[serde(skip)]
    header: Option<&'static str>,
    #[serde(skip)]
    name: &'static str,
}

impl Effective {
    pub(super) fn of(document: &DeTable<'_>, origins: &Origins<'_>) -> Effective {
        let mut effective = Effective { settings: Vec::new(), absent: Vec::new() };
        effective.section(&TOP, "", document, origins);
        effective
    }

    /// The keys, in the order in which they are printed.
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// Shows paths below one directory as below another.
    pub(crate) fn moved(&mut self, from: &Path, to: &Path) {
        for setting in &mut self.settings {
            if let Some(Value::String(text)) = &mut setting.value
                && let Ok(below) = Path::new(text.as_str()).strip_prefix(from)
            {
                *text = to.join(below).display().to_string();
            }
        }
    }

    /// Paths of the keys for which another document says something else. Secrets are equal here.
    pub fn differing(&self, other: &Effective) -> Vec<String> {
        let value = |effective: &Effective, key: &str| {
            let found = effective.settings.iter().find(|setting| setting.key == key);
            found.map(|setting| setting.value.clone())
        };
        let mut keys: Vec<&String> = self.settings.iter().chain(&other.settings).map(|s| &s.key).collect();
        keys.sort();
        keys.dedup();
        keys.into_iter().filter(|key| value(self, key) != value(other, key)).cloned().collect()
    }

    fn section(&mut self, section: &'static Section, path: &str, table: &DeTable<'_>, origins: &Origins<'_>) {
        let mut header = Some(section.header).filter(|header| !header.is_empty());
        let mut below = Vec::new();
        for key in section.keys {
            let set = table.get(key.name);
            if let Kind::Section(inner) | Kind::Sections(inner) = key.kind {
                below.push((inner, join(path, key.name), set));
                continue;
            }
            // The defaults of a worker hold where there is one.
            let default = key.default().filter(|_| !key.of_worker || is_worker(table));
            let (value, origin) = match (set, default) {
                (Some(set), _) => (Some(set.get_ref()), Some(origins.of(set.span().start))),
                (None, Some(default)) => (Some(default), Some(Origin::Default)),
                (None, None) => (None, None),
            };
            let value = value.map(|value| match key.instead(value) {
                Some(text) => Value::String(masked(&text)),
                None => shown(value),
            });
            let (key, name) = (join(path, key.name), key.name);
            self.settings.push(Setting { key, value, origin, header: header.take(), name });
        }
        for (inner, path, set) in below {
            match set.map(|set| set.get_ref()) {
                Some(DeValue::Table(table)) => self.section(inner, &path, table, origins),
                Some(DeValue::Array(items)) => {
                    for (i, item) in items.iter().enumerate() {
                        if let DeValue::Table(table) = item.get_ref() {
                            self.section(inner, &format!("{path}[{i}]"), table, origins);
                        }
                    }
                }
                _ => self.absent.push(inner.header),
            }
        }
    }
}

/// A value without secrets.
fn shown(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(masked(text)),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::String(number.to_string()), Value::Integer),
        DeValue::Boolean(yes) => Value::Boolean(*yes),
        DeValue::Array(items) => Value::Array(items.iter().map(|item| shown(item.get_ref())).collect()),
        // No key has such values.
        DeValue::Float(number) => Value::String(number.to_string()),
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::Table(_) => Value::String("{…}".into()),
    }
}

/// The control characters stay: TOML and JSON both escape them.
fn masked(text: &str) -> String {
    let parts =
        text.split_inclusive(char::is_control).map(|part| match part.strip_suffix(char::is_control) {
            Some(plain) => format!("{}{}", mask_secrets(plain, usize::MAX), &part[plain.len()..]),
            None => mask_secrets(part, usize::MAX),
        });
    parts.collect()
}

/// As TOML, with who says so behind each value.
impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Setting { value, origin, header, name, .. } in &self.settings {
            if let Some(header) = header {
                writeln!(f, "\n{header}")?;
            }
            match (value, origin) {
                (Some(value), Some(origin)) => writeln!(f, "{name} = {value} # {origin}")?,
                _ => writeln!(f, "# {name}: not set")?,
            }
        }
        if !self.absent.is_empty() {
            writeln!(f, "\n# not there: {}", self.absent.join(", "))?;
        }
        Ok(())
    }
}
