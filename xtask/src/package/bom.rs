//! What the program is made of: each crate that is compiled into it, as CycloneDX has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::CRATE;
use crate::command::{cargo, output};

/// The programs for the kernel are in it too, and have a lock file of their own.
const MANIFESTS: [(&str, &str); 2] = [("Cargo.toml", CRATE), ("worker-ebpf/Cargo.toml", "worker-ebpf")];

/// Writes the list.
pub(super) fn write(path: &Path) -> Result<()> {
    let (mut components, mut dependencies) = (BTreeMap::new(), BTreeMap::new());
    let mut roots = Vec::new();
    for (manifest, package) in MANIFESTS {
        let mut metadata = cargo("metadata");
        metadata.args(["--format-version", "1", "--locked", "--manifest-path", manifest]);
        metadata.args(["--filter-platform", "x86_64-unknown-linux-gnu"]);
        let metadata: Value = serde_json::from_str(&output(&mut metadata)?)?;
        roots.push(gather(&metadata, package, &mut components, &mut dependencies)?);
    }
    ensure!(components.len() > roots.len(), "no crate is in the program");
    let dworker = format!("pkg:generic/dworker@{}", env!("CARGO_PKG_VERSION"));
    dependencies.insert(dworker.clone(), roots.into_iter().collect());
    let dependencies = dependencies.into_iter().map(|(part, on)| json!({ "ref": part, "dependsOn": on }));
    let bom = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": {
            "type": "application",
            "bom-ref": dworker,
            "name": "dworker",
            "version": env!("CARGO_PKG_VERSION"),
            "licenses": [{ "expression": "Apache-2.0" }],
            "purl": dworker,
        } },
        "components": components.into_values().collect::<Vec<_>>(),
        "dependencies": dependencies.collect::<Vec<_>>(),
    });
    fs::write(path, serde_json::to_string_pretty(&bom)? + "\n")
        .with_context(|| format!("writing {}", path.display()))
}

/// Adds a package and all that it is built of, tests excepted; its name in the list.
fn gather(
    metadata: &Value,
    package: &str,
    components: &mut BTreeMap<String, Value>,
    dependencies: &mut BTreeMap<String, BTreeSet<String>>,
) -> Result<String> {
    let packages: BTreeMap<&str, &Value> = list(&metadata["packages"])
        .iter()
        .filter_map(|package| Some((package["id"].as_str()?, package)))
        .collect();
    let nodes: BTreeMap<&str, &Value> = list(&metadata["resolve"]["nodes"])
        .iter()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let first = packages.iter().find(|(_, found)| found["name"] == package);
    let (first, _) = first.with_context(|| format!("cargo knows no package {package}"))?;
    let mut left = vec![*first];
    while let Some(id) = left.pop() {
        let found = packages.get(id).with_context(|| format!("cargo does not tell of {id}"))?;
        if components.contains_key(&name(found)) {
            continue;
        }
        components.insert(name(found), component(found));
        let needed = list(&nodes.get(id).with_context(|| format!("nothing is resolved for {id}"))?["deps"]);
        let needed = needed
            .iter()
            .filter(|dependency| list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev"));
        let needed: Vec<&str> = needed.filter_map(|dependency| dependency["pkg"].as_str()).collect();
        let names = needed.iter().filter_map(|id| packages.get(id)).map(|found| name(found));
        dependencies.insert(name(found), names.collect());
        left.extend(needed);
    }
    packages.get(first).map(|found| name(found)).context("the first one is gone")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// What names a package everywhere.
fn name(package: &Value) -> String {
    let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
    format!("pkg:cargo/{}@{}", text("name"), text("version"))
}

fn component(package: &Value) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": name(package),
        "name": package["name"],
        "version": package["version"],
        "purl": name(package),
    });
    if let Some(licence) = package["license"].as_str() {
        // Before SPDX had expressions, a slash was an "or".
        component["licenses"] = json!([{ "expression": licence.replace('/', " OR ") }]);
    }
    if let Some(repository) = package["repository"].as_str() {
        component["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_tests_need_is_no_part() {
        let package =
            |name: &str| json!({ "id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0" });
        let need = |name: &str, kind: Value| json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] });
        let metadata = json!({
            "packages": [package("a"), package("b"), package("c"), package("d")],
            "resolve": { "nodes": [
                { "id": "a", "deps": [need("b", Value::Null), need("c", json!("dev"))] },
                { "id": "b", "deps": [need("d", json!("build")), need("a", Value::Null)] },
                { "id": "c", "deps": [] },
                { "id": "d", "deps": [] },
            ] },
        });
        let (mut components, mut dependencies) = (BTreeMap::new(), BTreeMap::new());
        let first = gather(&metadata, "a", &mut components, &mut dependencies).unwrap();
        assert_eq!(first, "pkg:cargo/a@1.0.0");
        let names: Vec<_> = components.keys().map(String::as_str).collect();
        assert_eq!(names, ["pkg:cargo/a@1.0.0", "pkg:cargo/b@1.0.0", "pkg:cargo/d@1.0.0"]);
        assert_eq!(components["pkg:cargo/d@1.0.0"]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert!(dependencies["pkg:cargo/a@1.0.0"].contains("pkg:cargo/b@1.0.0"));
        assert_eq!(dependencies["pkg:cargo/a@1.0.0"].len(), 1);
        assert!(gather(&metadata, "z", &mut components, &mut dependencies).is_err());
    }
}
