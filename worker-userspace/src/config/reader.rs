//! Walks a TOML document by hand and collects faults instead of stopping at the first.
//!
//! What must hold: a method that gives `None` has reported why, so that whoever asked may go on with the rest;
//! what was read counts only when [`Reader::finish`] finds no fault. A line whose TOML is broken is reported
//! once, as broken TOML, and nothing is made of its value.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Display;
use std::hash::Hash;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use toml::de::{DeTable, DeValue, Error};

use super::document::{Origin, Origins};
use super::effective::Effective;
use super::fault::{Fault, Faults, Wrong, bounded, mask, mask_shown, quote, shorten, show, wrong};
use super::meant::meant;
use super::ruby::Broken;
use super::schema::{self, Section, join};
use super::{Config, Loaded, duration};
use crate::target::NoProxy;

/// Where something stands, and how a fault names it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Bytes from the start of the text, or another origin's number; `None` for the file as a whole, and for defaults.
    offset: Option<usize>,
    key: String,
    value: Option<String>,
}

impl Place {
    /// The whole file.
    pub(super) fn file() -> Place {
        Place { offset: None, key: String::new(), value: None }
    }

    /// A place that no key names.
    pub(super) fn at(offset: usize) -> Place {
        Place { offset: Some(offset), ..Place::file() }
    }

    /// The same line, but about another key, one that is missing there.
    pub(super) fn missing(&self, key: &str) -> Place {
        Place { offset: self.offset, key: key.to_owned(), value: None }
    }

    /// Orders places as they stand in the file.
    pub(super) fn offset(&self) -> Option<usize> {
        self.offset
    }
}

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct Value<'d> {
    pub(super) place: Place,
    pub(super) value: &'d DeValue<'d>,
}

/// A section and its place. Its unknown keys are reported already.
#[derive(Debug)]
pub(super) struct Table<'d> {
    /// The section's header.
    pub(super) place: Place,
    section: &'static Section,
    path: String,
    entries: &'d DeTable<'d>,
}

impl<'d> Table<'d> {
    /// The value of a key of this section, where it is set.
    pub(super) fn get(&self, name: &str) -> Option<Value<'d>> {
        debug_assert!(self.section.key(name).is_some(), "{name} is not in the schema");
        let value = self.entries.get(name)?;
        Some(self.value(name, value.get_ref(), Some(value.span().start)))
    }

    /// The same, or the schema's default of it.
    pub(super) fn get_or_default(&self, name: &str) -> Option<Value<'d>> {
        self.get(name).or_else(|| Some(self.value(name, self.section.key(name)?.default()?, None)))
    }

    fn value(&self, name: &str, value: &'d DeValue<'d>, offset: Option<usize>) -> Value<'d> {
        let instead = self.section.key(name).and_then(|key| key.instead(value));
        let shown = match (value, instead) {
            (DeValue::Table(_), _) => None,
            (_, Some(hidden)) if hidden == "***" => Some(hidden),
            (_, Some(text)) => Some(quote(&text)),
            (other, None) => Some(show(other)),
        };
        Value { place: Place { offset, key: join(&self.path, name), value: shown }, value }
    }

    /// The place of a key that is not set.
    pub(super) fn missing(&self, name: &str) -> Place {
        self.place.missing(&join(&self.path, name))
    }
}

/// Reads one document and knows everything that is wrong with it.
#[derive(Debug)]
pub(super) struct Reader<'d> {
    origins: Origins<'d>,
    /// Lines that are not understood; nothing more is said about them.
    broken: BTreeSet<usize>,
    /// Keys that somebody meant to write; nobody is told that they are missing.
    meant: HashSet<String>,
    faults: Vec<(Option<usize>, Fault)>,
    warnings: Vec<(Option<usize>, Fault)>,
}

impl<'d> Reader<'d> {
    /// A reader of what stands at these places.
    pub(super) fn new(origins: Origins<'d>) -> Reader<'d> {
        Reader {
            origins,
            broken: BTreeSet::new(),
            meant: HashSet::new(),
            faults: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// ` (line 12)` or ` ($VARIABLE)`, to name another place in a message.
    pub(super) fn line(&self, place: &Place) -> String {
        match place.offset.map(|offset| self.origins.of(offset)) {
            None => String::new(),
            Some(Origin::File { line, .. }) => format!(" (line {line})"),
            Some(other) => format!(" ({other})"),
        }
    }

    /// True where something stands in the file itself.
    pub(super) fn is_in_file(&self, place: &Place) -> bool {
        place.offset.is_none_or(|offset| self.origins.line_of(offset).is_some())
    }

    /// Where others than the file may set keys, after its syntax is judged.
    pub(super) fn origins(&mut self) -> &mut Origins<'d> {
        &mut self.origins
    }

    /// Reports a fault.
    pub(super) fn fault(&mut self, place: &Place, wrong: Wrong) {
        let line = place.offset.and_then(|offset| self.origins.line_of(offset));
        if line.is_none_or(|line| !self.broken.contains(&line)) {
            let fault = self.about(place, wrong);
            self.faults.push((place.offset, fault));
        }
    }

    /// Reports a line that is not understood.
    pub(super) fn broken(&mut self, Broken { at, wrong, meant }: Broken) {
        let column = self.origins.column_of(at);
        let fault = Fault { column, ..self.about(&Place::at(at), wrong) };
        self.faults.push((Some(at), fault));
        self.broken.extend(self.origins.line_of(at));
        self.meant.extend(meant.into_iter().map(str::to_owned));
    }

    /// Reports a variable of the environment that sets no key.
    pub(super) fn variable(&mut self, name: &str, wrong: Wrong) {
        let fault =
            Fault { file: mask_shown(&format!("${name}")).into(), ..self.about(&Place::file(), wrong) };
        self.faults.push((Some(usize::MAX), fault));
    }

    /// Reports a key that is not set, unless it is there under a wrong name.
    pub(super) fn missing(&mut self, place: &Place, wrong: Wrong) {
        if !self.meant.contains(&place.key) {
            self.fault(place, wrong);
        }
    }

    /// The value of a key that must be set.
    pub(super) fn required(
        &mut self,
        table: &Table<'d>,
        name: &str,
        problem: &str,
        remedy: &str,
    ) -> Option<Value<'d>> {
        let value = table.get(name);
        if value.is_none() {
            self.missing(&table.missing(name), wrong(problem, remedy));
        }
        value
    }

    /// True where one of these keys of the top was meant, though it is not set.
    pub(super) fn meant(&self, keys: &[&str]) -> bool {
        keys.iter().any(|key| self.meant.contains(*key))
    }

    /// Reports what is allowed but hardly wanted.
    pub(super) fn warn(&mut self, place: &Place, wrong: Wrong) {
        let warning = self.about(place, wrong);
        self.warnings.push((place.offset, warning));
    }

    fn about(&self, place: &Place, wrong: Wrong) -> Fault {
        let (file, line) = match place.offset.map(|offset| self.origins.of(offset)) {
            None | Some(Origin::Default) => (self.origins.file.clone(), None),
            Some(Origin::File { file, line }) => (file, Some(line)),
            Some(other) => (mask_shown(&other.to_string()).into(), None),
        };
        Fault {
            file,
            line,
            column: None,
            key: mask(&place.key),
            value: place.value.as_deref().map(mask_shown),
            problem: bounded(&mask(&wrong.problem)),
            remedy: bounded(&mask(&wrong.remedy)),
        }
    }

    /// Reports what is no TOML, once for each line. True where the rest of the document can still be judged:
    /// where only values are broken, or keys stand twice. Behind a broken header it cannot.
    pub(super) fn syntax(&mut self, document: &DeTable<'_>, errors: Vec<Error>) -> bool {
        let mut first: BTreeMap<Option<usize>, Error> = BTreeMap::new();
        let mut scalars = Vec::new();
        if !errors.is_empty() {
            document.values().for_each(|value| collect_scalars(value, &mut scalars));
            scalars.sort_unstable();
        }
        let mut judged = true;
        for error in errors {
            // Quotes that are open over many lines may have swallowed a section.
            let in_value = |span: Range<usize>| {
                around(&scalars, &span)
                    .is_some_and(|start| self.origins.line_of(start) == self.origins.line_of(span.start))
            };
            judged &= error.message() == DUPLICATE || error.span().is_some_and(in_value);
            let offset = error.span().map(|span| span.start);
            let line = offset.and_then(|offset| self.origins.line_of(offset));
            match first.entry(line) {
                Entry::Vacant(entry) => drop(entry.insert(error)),
                Entry::Occupied(mut entry) => {
                    if entry.get().span().map(|span| span.start) > offset {
                        entry.insert(error);
                    }
                }
            }
        }
        for (line, error) in first {
            let fault = self.no_toml(&error);
            self.faults.push((error.span().map(|span| span.start), fault));
            self.broken.extend(line);
        }
        judged
    }

    fn no_toml(&self, error: &Error) -> Fault {
        let at = error.span().map(|span| span.start);
        let span = error.span().unwrap_or_default();
        let message = error.message();
        let here = self.origins.text.get(span.clone()).unwrap_or_default();
        let is_value = ["string values must", "invalid float", "invalid boolean", "invalid integer"];
        let is_value = is_value.iter().any(|start| message.starts_with(start));
        let unclosed = ["expected `\"`", "expected `'`", "expected `\"\"\"`", "expected `'''`"];
        let unclosed = unclosed.iter().any(|end| message.ends_with(end));
        let line = at.and_then(|at| self.origins.line_of(at));
        let ruby = line.is_some_and(|line| self.origins.line(line).trim_start().starts_with("worker["));
        let wrong = if ruby {
            let remedy =
                "give the file a name that ends in .rb, or make TOML of it with `dworker config import`";
            wrong("no TOML, but a line of the older product's file", remedy)
        } else if message == DUPLICATE {
            wrong(format!("`{}` stands here a second time", shorten(&mask(here))), "keep one of the two")
        } else if is_value && here.is_empty() {
            wrong("no TOML, a value is missing", "write one behind `=`, or remove the line")
        } else if is_value && here.starts_with(char::is_alphabetic) {
            wrong("no TOML, a text without quotes", "write it in double quotes, as in log = \"info\"")
        } else if unclosed {
            wrong("no TOML, a text whose quotes are not closed", "close them at its end")
        } else if message.starts_with("missing escaped value") {
            wrong("no TOML, an unknown escape", "write the backslash twice, or the text in single quotes")
        } else {
            wrong(format!("no TOML, {message}"), "write `key = value`, `[section]` or `# comment`")
        };
        let column = at.and_then(|at| self.origins.column_of(at));
        Fault { line, column, ..self.about(&Place::file(), wrong) }
    }

    /// What was read, if nothing is wrong with it.
    pub(super) fn finish(mut self, config: Config, document: &DeTable<'_>) -> Result<Loaded, Faults> {
        if !self.faults.is_empty() {
            return Err(self.faults());
        }
        self.warnings.sort_by_key(|(offset, _)| *offset);
        let effective = Effective::of(document, &self.origins);
        let warnings = self.warnings.into_iter().map(|(_, warning)| warning).collect();
        Ok(Loaded { config, warnings, effective })
    }

    /// True where something is wrong already.
    pub(super) fn is_faulty(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Everything that is wrong, in the order of the file. The sort is stable: faults of one place keep theirs.
    pub(super) fn faults(mut self) -> Faults {
        self.faults.sort_by_key(|(offset, _)| *offset);
        Faults::new(self.faults.into_iter().map(|(_, fault)| fault).collect())
    }

    /// The one fault of a file that cannot even be parsed.
    pub(super) fn only(mut self, place: &Place, wrong: Wrong) -> Faults {
        self.fault(place, wrong);
        self.faults()
    }

    /// The document itself as a section.
    pub(super) fn top(&mut self, document: &'d DeTable<'d>) -> Table<'d> {
        self.open(Place::file(), &schema::TOP, String::new(), document)
    }

    fn open(
        &mut self,
        place: Place,
        section: &'static Section,
        path: String,
        entries: &'d DeTable<'d>,
    ) -> Table<'d> {
        for (key, value) in entries {
            if section.key(key.get_ref()).is_some() {
                continue;
            }
            let (what, shown) = match value.get_ref() {
                DeValue::Table(_) => ("unknown section", None),
                _ if schema::sounds_secret(key.get_ref()) => ("unknown key", Some("***".to_owned())),
                other => ("unknown key", Some(show(other))),
            };
            let place =
                Place { offset: Some(key.span().start), key: join(&path, key.get_ref()), value: shown };
            let meant = meant(section, &path, key.get_ref());
            self.meant.extend(meant.keys);
            self.fault(&place, wrong(what, meant.remedy));
        }
        Table { place, section, path, entries }
    }

    /// A section that stands once.
    pub(super) fn section(&mut self, value: &Value<'d>, section: &'static Section) -> Option<Table<'d>> {
        let header = section.header;
        let entries = self.typed(
            value,
            value.value.as_table(),
            "a section",
            &format!("write {header} on a line of its own"),
        )?;
        let place = Place { key: header.to_owned(), ..value.place.clone() };
        Some(self.open(place, section, value.place.key.clone(), entries))
    }

    /// Sections that stand as often as wanted, but at least once.
    pub(super) fn sections(&mut self, value: &Value<'d>, section: &'static Section) -> Vec<Table<'d>> {
        let remedy = format!("write {}, in double brackets, above each", section.header);
        let Some(items) = self.typed(value, value.value.as_array(), "a list of sections", &remedy) else {
            return Vec::new();
        };
        if items.is_empty() {
            self.fault(&value.place, wrong("the list is empty", &remedy));
        }
        let mut tables = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let key = format!("{}[{i}]", value.place.key);
            let shown = (!item.get_ref().is_table()).then(|| show(item.get_ref()));
            let place = Place { offset: Some(item.span().start), key: key.clone(), value: shown };
            let item = Value { place, value: item.get_ref() };
            if let Some(entries) = self.typed(&item, item.value.as_table(), "a section", &remedy) {
                tables.push(self.open(item.place, section, key, entries));
            }
        }
        tables
    }

    fn typed<T>(&mut self, value: &Value<'d>, got: Option<T>, belongs: &str, remedy: &str) -> Option<T> {
        if got.is_none() {
            let is = match value.value {
                DeValue::String(_) => "a text",
                DeValue::Integer(_) => "a whole number",
                DeValue::Float(_) => "a decimal number",
                DeValue::Boolean(_) => "true or false",
                DeValue::Datetime(_) => "a date",
                DeValue::Array(_) => "a list",
                DeValue::Table(_) => "a section",
            };
            self.fault(&value.place, wrong(format!("{is} where {belongs} belongs"), remedy));
        }
        got
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, value: &Value<'d>) -> Option<bool> {
        self.typed(value, value.value.as_bool(), "true or false", "write true or false, without quotes")
    }

    /// A whole number in a range.
    pub(super) fn number<N>(&mut self, value: &Value<'d>, range: RangeInclusive<N>) -> Option<N>
    where
        N: TryFrom<i128> + PartialOrd + Display,
    {
        let (low, high) = (range.start(), range.end());
        let remedy = format!("write a number from {low} to {high}, without quotes");
        let number = self.typed(value, value.value.as_integer(), "a whole number", &remedy)?;
        let number = i128::from_str_radix(number.as_str(), number.radix()).ok();
        let number = number.and_then(|n| N::try_from(n).ok()).filter(|n| range.contains(n));
        if number.is_none() {
            self.fault(&value.place, wrong(format!("not between {low} and {high}"), remedy));
        }
        number
    }

    /// A text that `parse` understands.
    pub(super) fn parsed<T>(
        &mut self,
        value: &Value<'d>,
        parse: impl FnOnce(&'d str) -> Result<T, Wrong>,
    ) -> Option<T> {
        let text = self.typed(value, value.value.as_str(), "a text", "write it in double quotes")?;
        parse(text).map_err(|wrong| self.fault(&value.place, wrong)).ok()
    }

    /// A duration in a range.
    pub(super) fn duration(
        &mut self,
        value: &Value<'d>,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let remedy = "write a number and a unit in double quotes, as in \"500ms\", \"10s\" or \"2m\"";
        let text = self.typed(value, value.value.as_str(), "a duration", remedy)?;
        duration::parse(text, &range).map_err(|wrong| self.fault(&value.place, wrong)).ok()
    }

    /// An absolute path.
    pub(super) fn path(&mut self, value: &Value<'d>) -> Option<PathBuf> {
        self.parsed(value, |text| match text.starts_with('/') && !text.contains('\0') {
            true => Ok(PathBuf::from(text)),
            false => Err(wrong("not an absolute path", "write the whole path, from `/` on")),
        })
    }

    /// A list of texts that `parse` understands, none of them twice. `remedy` tells how such a list is written.
    pub(super) fn list<T: Clone + Eq + Hash>(
        &mut self,
        value: &Value<'d>,
        parse: impl Fn(&'d str) -> Result<T, Wrong>,
        remedy: &str,
    ) -> Vec<(Place, T)> {
        self.list_of(value, |reader, item| reader.parsed(item, &parse), remedy)
    }

    /// A list of what `read` reads, none of it twice.
    pub(super) fn list_of<T: Clone + Eq + Hash>(
        &mut self,
        value: &Value<'d>,
        read_one: impl Fn(&mut Self, &Value<'d>) -> Option<T>,
        remedy: &str,
    ) -> Vec<(Place, T)> {
        let remedy = match value.value.as_str() {
            Some(text) => format!("write [{}]", quote(text)),
            None => remedy.to_owned(),
        };
        let Some(items) = self.typed(value, value.value.as_array(), "a list", &remedy) else {
            return Vec::new();
        };
        let mut seen: HashMap<T, usize> = HashMap::new();
        let mut read = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let place = Place {
                offset: Some(item.span().start),
                key: format!("{}[{i}]", value.place.key),
                value: Some(show(item.get_ref())),
            };
            let item = Value { place, value: item.get_ref() };
            let Some(parsed) = read_one(self, &item) else { continue };
            match seen.get(&parsed) {
                Some(first) => {
                    let problem = format!("the same as {}[{first}]", value.place.key);
                    self.fault(&item.place, wrong(problem, "remove one of the two"));
                }
                None => drop(seen.insert(parsed.clone(), i)),
            }
            read.push((item.place, parsed));
        }
        read
    }

    /// A list as in [`Reader::list`] that an empty one is a fault of.
    pub(super) fn filled<T: Clone + Eq + Hash>(
        &mut self,
        value: &Value<'d>,
        parse: impl Fn(&'d str) -> Result<T, Wrong>,
        remedy: &str,
    ) -> Vec<(Place, T)> {
        if value.value.as_array().is_some_and(|items| items.is_empty()) {
            self.fault(&value.place, wrong("the list is empty", remedy));
        }
        self.list(value, parse, remedy)
    }

    /// A list as in [`Reader::list`], or one text with the same entries between commas or white space.
    pub(super) fn words<T: Clone + Eq + Hash>(
        &mut self,
        value: &Value<'d>,
        parse: impl Fn(&'d str) -> Result<T, Wrong>,
        remedy: &str,
    ) -> Vec<(Place, T)> {
        let Some(text) = value.value.as_str() else { return self.list(value, parse, remedy) };
        let mut read = Vec::new();
        for word in NoProxy::split(text) {
            let place = Place { value: Some(quote(word)), ..value.place.clone() };
            match parse(word) {
                Ok(parsed) => read.push((place, parsed)),
                Err(wrong) => self.fault(&place, wrong),
            }
        }
        read
    }

    /// A list as in [`Reader::filled`], or one text that stands for a list of one.
    pub(super) fn one_or_more<T: Clone + Eq + Hash>(
        &mut self,
        value: &Value<'d>,
        parse: impl Fn(&'d str) -> Result<T, Wrong>,
        remedy: &str,
    ) -> Vec<(Place, T)> {
        match value.value {
            DeValue::String(_) => {
                self.parsed(value, parse).map(|one| (value.place.clone(), one)).into_iter().collect()
            }
            _ => self.filled(value, parse, remedy),
        }
    }
}

/// What `toml` says of a key that stands twice.
const DUPLICATE: &str = "duplicate key";

/// The spans of all values that hold no others.
fn collect_scalars(value: &toml::Spanned<DeValue<'_>>, spans: &mut Vec<(usize, usize)>) {
    match value.get_ref() {
        DeValue::Array(items) => items.iter().for_each(|item| collect_scalars(item, spans)),
        DeValue::Table(table) => table.values().for_each(|item| collect_scalars(item, spans)),
        _ => spans.push((value.span().start, value.span().end)),
    }
}

/// The start of that one of the sorted `spans` in which a span lies.
fn around(spans: &[(usize, usize)], span: &Range<usize>) -> Option<usize> {
    let last = spans.partition_point(|(start, _)| *start <= span.start).checked_sub(1)?;
    let (start, end) = spans[last];
    (span.end <= end).then_some(start)
}

/// Drops the places, which only faults need.
pub(super) fn bare<T>(placed: Vec<(Place, T)>) -> Vec<T> {
    placed.into_iter().map(|(_, item)| item).collect()
}
