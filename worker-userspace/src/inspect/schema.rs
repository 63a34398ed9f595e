//! The JSON schema of all that commands print as JSON: a promise to those who read it with programs of theirs.
//!
//! It is made from the very types, and committed: `docs/status.schema.json`. A test says when that is not what the
//! types say any more; then `dworker status --schema` prints it anew.

use serde_json::{Map, Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use super::finding::Diagnosis;
use super::monitor::Happening;
use super::objects::{Dns, Link, Stream, Tunnel};
use super::status::Status;
use super::why::Why;

/// What OpenAPI writes before the name of a schema, and what JSON schema does.
const REFERENCES: [&str; 2] = ["#/components/schemas/", "#/$defs/"];

/// The schema. Its root is `dworker status -j`; the others are below `$defs`.
pub fn document() -> Value {
    let mut all: Vec<(String, RefOr<Schema>)> = Vec::new();
    add::<Status>(&mut all);
    add::<Link>(&mut all);
    add::<Dns>(&mut all);
    add::<Tunnel>(&mut all);
    add::<Stream>(&mut all);
    add::<Why>(&mut all);
    add::<Happening>(&mut all);
    add::<Diagnosis>(&mut all);
    let mut definitions = Map::new();
    for (name, schema) in all {
        definitions.insert(name, localised(serde_json::to_value(schema).unwrap_or_default()));
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dworker",
        "description": "What `dworker status -j` prints. What other commands print stands below `$defs`: a \
            ProgramStatus, MapStatus, Link, RuleStatus, Connection, Dns, Tunnel or Stream with \
            `dworker status OBJECT ID -j`, a list of them without the ID, a Why with `dworker why -j`, a Diagnosis with `dworker doctor -j`, and a MonitorEvent for each line of `dworker monitor -j`. Fields are added, never renamed.",
        "$ref": format!("{}Status", REFERENCES[1]),
        "$defs": definitions,
    })
}

/// As it is committed.
pub fn text() -> String {
    let mut document = document();
    // Whether objects are sorted depends on what else is built with this.
    document.sort_all_objects();
    // A value is JSON already.
    serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
}

fn add<T: ToSchema + PartialSchema>(all: &mut Vec<(String, RefOr<Schema>)>) {
    all.push((T::name().into_owned(), T::schema()));
    T::schemas(all);
}

/// With references to where the definitions are here.
fn localised(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .map(|(key, value)| match (key.as_str(), value) {
                    ("$ref", Value::String(to)) => (key, to.replace(REFERENCES[0], REFERENCES[1]).into()),
                    (_, value) => (key, localised(value)),
                })
                .collect(),
        ),
        Value::Array(items) => items.into_iter().map(localised).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed() -> String {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/status.schema.json");
        std::fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn the_committed_schema_is_what_the_types_say() {
        assert!(
            committed() == text(),
            "docs/status.schema.json is not current: `cargo run -p worker-userspace -- status --schema \
             > docs/status.schema.json` writes it"
        );
    }

    /// The fields, each behind what it is a field of.
    fn fields(document: &Value) -> Vec<String> {
        fn within(name: &str, value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(parts) => {
                    for field in parts.get("properties").and_then(Value::as_object).into_iter().flatten() {
                        found.push(format!("{name}.{}", field.0));
                        within(&format!("{name}.{}", field.0), field.1, found);
                    }
                    let others = parts.iter().filter(|(key, _)| *key != "properties");
                    others.for_each(|(_, part)| within(name, part, found));
                }
                Value::Array(parts) => parts.iter().for_each(|part| within(name, part, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        for (name, definition) in document["$defs"].as_object().expect("definitions") {
            within(name, definition, &mut found);
        }
        found.sort();
        found.dedup();
        found
    }

    #[test]
    fn fields_are_added_and_never_renamed() {
        let committed: Vec<_> = include_str!("schema/fields.txt").lines().map(str::to_owned).collect();
        let now = fields(&document());
        let gone: Vec<_> = committed.iter().filter(|field| !now.contains(field)).collect();
        assert!(gone.is_empty(), "programs read these, so put them back: {gone:#?}");
        let new: Vec<_> = now.iter().filter(|field| !committed.contains(field)).collect();
        assert!(new.is_empty(), "add these to inspect/schema/fields.txt, where they stay: {new:#?}");
    }

    #[test]
    fn each_reference_leads_somewhere() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    fields.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20, "{found:?}");
        for reference in found {
            let name = reference.strip_prefix(REFERENCES[1]).expect("a reference into this document");
            assert!(document["$defs"][name].is_object(), "{name}");
        }
    }
}
