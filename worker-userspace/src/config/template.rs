//! The commented file: each key with its meaning and its default, all of it commented out, or with the values of the older
//! product's file filled in.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Value;
use toml::de::DeValue;

use super::schema::{Kind, SECTIONS};
use super::{Environment, Faults, Language, Source, ruby, text_of};

/// The file that a package installs. Whoever takes the `#` in front of a key away sets it.
pub fn template() -> String {
    let head = "\
# The configuration of dworker. What is set decides what this host is: `appliance_url` and a worker key make it a
# worker, [appliance] makes it an appliance, and [steer] and [proxy] belong to either of them.
# Take the `#` in front of a key away, and that in front of its [section]; what stands behind `=` is the default, or
# an example where there is none. Then: dworker config check
";
    write(head, &BTreeMap::new())
}

/// The older product's file as ours, each of its values filled in, secrets too.
///
/// # Errors
/// It can't be read, or all its faults.
pub fn import(path: &Path) -> Result<String, Faults> {
    let (text, _) = text_of(path)?;
    let name = path.display().to_string();
    Source { name: &name, text: &text, language: Language::Ruby }.read(&Environment::default(), None)?;
    let (table, _) = ruby::scan(text.strip_prefix('\u{feff}').unwrap_or(&text));
    let values = table.iter().map(|(key, value)| (key.get_ref().as_ref(), literal(value.get_ref())));
    let name = name.replace(char::is_control, "\u{fffd}");
    let head =
        format!("# Made of {name} by `dworker config import`.\n# What is commented out has its default.\n");
    Ok(write(&head, &values.collect()))
}

fn write(head: &str, values: &BTreeMap<&str, String>) -> String {
    let mut text = head.to_owned();
    for section in SECTIONS {
        text += "\n";
        if !section.header.is_empty() {
            text += &format!("# {}\n#{}\n", section.about, section.header);
        }
        for key in section.keys {
            if matches!(key.kind, Kind::Section(_) | Kind::Sections(_)) {
                continue;
            }
            text += &format!("# {}\n", key.about);
            match values.get(key.name).filter(|_| section.path.is_empty()) {
                Some(value) => text += &format!("{} = {value}\n", key.name),
                None => text += &format!("#{} = {}\n", key.name, key.example),
            }
        }
    }
    text
}

/// A value as TOML has it.
fn literal(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => Value::String(text.as_ref().to_owned()).to_string(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Boolean(yes) => yes.to_string(),
        DeValue::Array(items) => {
            format!("[{}]", items.iter().map(|item| literal(item.get_ref())).collect::<Vec<_>>().join(", "))
        }
        // The older file has no such values.
        other => format!("{other:?}"),
    }
}
