//! All that is set, whoever set it, as one document: the file, with the environment above it and credentials below.
//!
//! What must hold: the reader judges a value in one way, wherever it comes from, and what it says of one names where
//! that is. So a place stays one number: an offset in the file's text or, behind the text's end, the number of
//! another origin.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::environment::{Assignment, Environment};
use super::fault::mask_shown;
use super::schema::{EGRESS, Key, Kind, METRICS, SECTIONS, Section, TOP, WORKER};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "source", rename_all = "lowercase")]
pub enum Origin {
    /// The file.
    File {
        /// As it was named to us.
        file: Arc<str>,
        /// From 1.
        line: usize,
    },
    /// A variable of the environment.
    Variable {
        /// Its name.
        variable: Arc<str>,
    },
    /// A systemd credential.
    Credential {
        /// Its name.
        credential: Arc<str>,
    },
    /// Nobody set it.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { file, line } => write!(f, "{file}:{line}"),
            Origin::Variable { variable } => write!(f, "${variable}"),
            Origin::Credential { credential } => write!(f, "credential {credential}"),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// The places of a document.
#[derive(Debug)]
pub(super) struct Origins<'d> {
    /// The file's name.
    pub(super) file: Arc<str>,
    pub(super) text: &'d str,
    /// Where each line starts.
    lines: Vec<usize>,
    others: Vec<Origin>,
}

impl<'d> Origins<'d> {
    /// Those of `text`, which came from `file`.
    pub(super) fn new(file: &str, text: &'d str) -> Origins<'d> {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Origins { file: mask_shown(file).into(), text, lines, others: Vec::new() }
    }

    /// A number for another origin. A fault at the text's very end is still one of the file.
    fn add(&mut self, origin: Origin) -> usize {
        self.others.push(origin);
        self.text.len() + self.others.len()
    }

    /// The line of an offset in the file, from 1.
    pub(super) fn line_of(&self, offset: usize) -> Option<usize> {
        (offset <= self.text.len()).then(|| self.lines.partition_point(|start| *start <= offset))
    }

    /// The text of a line.
    pub(super) fn line(&self, line: usize) -> &'d str {
        self.lines.get(line - 1).and_then(|start| self.text[*start..].lines().next()).unwrap_or_default()
    }

    /// The column of an offset in the file, from 1.
    pub(super) fn column_of(&self, offset: usize) -> Option<usize> {
        let line = self.line_of(offset)?;
        let before = self.text.get(self.lines[line - 1]..offset).unwrap_or_default();
        Some(before.chars().count() + 1)
    }

    /// Where an offset is.
    pub(super) fn of(&self, offset: usize) -> Origin {
        match self.line_of(offset) {
            Some(line) => Origin::File { file: self.file.clone(), line },
            None => self.others.get(offset - self.text.len() - 1).cloned().unwrap_or(Origin::Default),
        }
    }
}

/// Puts what the environment says above what `table`, the file, says, and credentials below it.
pub(super) fn complete<'d>(
    table: &mut DeTable<'d>,
    origins: &mut Origins<'d>,
    environment: &'d Environment,
    assignments: &[Assignment<'d>],
) {
    // A secret of the environment replaces that of the file, in whichever of the two ways it stands there.
    for Assignment { section, key, .. } in assignments {
        if let (Some(twin), Some(table)) = (section.twin(key.name), inside(table, section)) {
            table.remove(twin.name);
        }
    }
    for Assignment { variable, section, key, text } in assignments {
        let at = origins.add(Origin::Variable { variable: (*variable).into() });
        set(table, section, key, value(key.kind, text.trim().into(), at), at);
    }
    for section in SECTIONS {
        for key in section.keys {
            let Some(name) = key.credential else { continue };
            let Some(table) = inside(table, section) else { continue };
            let is_set = |key: &Key| table.contains_key(key.name);
            if is_set(key) || section.twin(key.name).is_some_and(is_set) {
                continue;
            }
            let Some(path) = environment.credential(name) else { continue };
            let at = origins.add(Origin::Credential { credential: name.into() });
            table.insert(Spanned::new(at..at, key.name.into()), string(path, at));
        }
    }
    let at = origins.add(Origin::Default);
    empty(table, &METRICS, at);
    // What only a worker has is in nobody's way elsewhere.
    if !is_worker(table) {
        return;
    }
    for (variable, key, text) in environment.conventions() {
        if !table.contains_key(key.name) {
            let at = origins.add(Origin::Variable { variable: variable.into() });
            set(table, &TOP, key, value(key.kind, text.trim().into(), at), at);
        }
    }
    if let Some(url) = environment.worker_url()
        && !table.contains_key("worker_url")
    {
        table.insert(Spanned::new(at..at, "worker_url".into()), string(url, at));
    }
    empty(table, &EGRESS, at);
}

/// Makes a section where it is missing, so that its defaults hold.
fn empty<'d>(table: &mut DeTable<'d>, section: &Section, at: usize) {
    if !section.path.is_empty() && !table.contains_key(section.path) {
        let empty = Spanned::new(at..at, DeValue::Table(DeTable::new()));
        table.insert(Spanned::new(at..at, section.path.to_owned().into()), empty);
    }
}

/// True where a document makes a worker.
pub(super) fn is_worker(document: &DeTable<'_>) -> bool {
    WORKER.iter().any(|key| document.contains_key(*key))
}

/// The table of a section that stands once, where it is set.
fn inside<'t, 'd>(table: &'t mut DeTable<'d>, section: &Section) -> Option<&'t mut DeTable<'d>> {
    if section.path.is_empty() {
        return Some(table);
    }
    match table.get_mut(section.path)?.get_mut() {
        DeValue::Table(table) => Some(table),
        _ => None,
    }
}

/// Sets a key, and its section where that is missing. What stands in the place of a section stays, and is a fault.
fn set<'d>(table: &mut DeTable<'d>, section: &Section, key: &Key, value: Spanned<DeValue<'d>>, at: usize) {
    empty(table, section, at);
    if let Some(table) = inside(table, section) {
        table.insert(Spanned::new(at..at, key.name.to_owned().into()), value);
    }
}

fn string<'d>(text: String, at: usize) -> Spanned<DeValue<'d>> {
    Spanned::new(at..at, DeValue::String(text.into()))
}

/// The value that a text from elsewhere stands for. What fits no kind stays a text, and the reader says so.
pub(super) fn value<'d>(kind: Kind, text: Cow<'d, str>, at: usize) -> Spanned<DeValue<'d>> {
    let list = |items: Vec<DeString<'d>>| {
        DeValue::Array(items.into_iter().map(|item| Spanned::new(at..at, DeValue::String(item))).collect())
    };
    let value = match (kind, text) {
        (Kind::List, Cow::Owned(text)) => list(items(&text).map(|item| item.to_owned().into()).collect()),
        (_, Cow::Owned(text)) => DeValue::String(text.into()),
        (kind, Cow::Borrowed(text)) => match (kind, DeValue::parse(text).ok().map(Spanned::into_inner)) {
            (Kind::Number, Some(number)) if number.is_integer() => number,
            (Kind::Flag, Some(flag)) if flag.is_bool() => flag,
            // `[2001:db8::/32]:443` begins as a list does, too, but is no TOML.
            (Kind::List | Kind::Words, Some(DeValue::Array(items))) => DeValue::Array(
                items.into_iter().map(|item| Spanned::new(at..at, item.into_inner())).collect(),
            ),
            (Kind::List, _) => list(items(text).map(Cow::Borrowed).collect()),
            _ => DeValue::String(text.into()),
        },
    };
    Spanned::new(at..at, value)
}

/// The items of a list as variables have them, separated by commas.
fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}
