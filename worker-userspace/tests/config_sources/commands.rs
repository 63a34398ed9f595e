//! Importing the older product's file, and the commands.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use dworker::config::{self, Config};
use proptest::prelude::*;

use super::filled;

/// A file of the older product, with what can stand in its keys.
fn older() -> impl Strategy<Value = BTreeMap<&'static str, String>> {
    let name = "[a-z]{1,8}(\\.[a-z]{1,8}){0,2}";
    (
        (name, name, prop::option::of(1u16..)),
        prop::option::of("\\PC{1,40}"),
        "[A-Za-z0-9_-]{43}",
        prop::option::of(1u8..=8),
        prop::option::of("/[a-zA-Z' \"\\\\#{}$@ü-]{0,20}"),
    )
        .prop_map(|((worker, appliance, port), api_key, key, lanes, path)| {
            let port = port.map_or(String::new(), |port| format!(":{port}"));
            let mut values = BTreeMap::from([
                ("worker_url", format!("https://{worker}.example/")),
                ("appliance_url", format!("https://{appliance}.example{port}")),
                ("worker_key", format!("dwk_{key}")),
            ]);
            values.extend(api_key.map(|key| ("apikey", key)));
            values.extend(lanes.map(|lanes| ("lanes", lanes.to_string())));
            values.extend(path.map(|path| ("state_dir", path)));
            values
        })
}

proptest! {
    #[test]
    fn what_is_imported_means_the_same(values in older(), double: bool) {
        let text: String = values
            .iter()
            .map(|(key, value)| {
                let value = value.replace('\\', "\\\\");
                match double {
                    false => format!("worker['{key}'] = '{}' # a comment\n", value.replace('\'', "\\'")),
                    true => format!("worker[\"{key}\"] = \"{}\"\n", value.replace('"', "\\\"").replace('#', "\\#")),
                }
            })
            .collect();
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("morpheus-worker.rb");
        fs::write(&file, &text).expect("a file");
        let before = Config::parse(&text, "morpheus-worker.rb").map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        let made = config::import(&file).expect("it was read");
        let after = Config::parse(&made, "dworker.toml").map_err(|e| TestCaseError::fail(format!("{e}\n{made}")))?;
        prop_assert_eq!(before.config, after.config);
    }

    #[test]
    fn no_text_panics_and_no_secret_is_told(
        line in "(worker|\\['|'\\]|\\[|\"|'| = |worker_key|apikey|https://u:hunter2@h|#|\\\\|hunter2| |\u{2018}){0,12}",
    ) {
        let text = format!("{line}\nworker['apikey'] = 'correct horse battery'\n");
        let said = match Config::parse(&text, "morpheus-worker.rb") {
            Ok(loaded) => loaded.effective.to_string(),
            Err(faults) => faults.to_string(),
        };
        prop_assert!(!said.contains("battery"), "{said}");
        for told in said.lines().filter(|line| line.contains("hunter2")) {
            // A word alone is no secret; behind a user, or where a key of a secret is, it is. An unknown key is told whole.
            let rest = if told.contains(": unknown key") { behind_key(&line) } else { &line };
            prop_assert!(!rest.contains('@') && !rest.contains("key"), "{told} of {text}");
        }
    }
}

/// What stands behind the first text in quotes.
fn behind_key(line: &str) -> &str {
    let Some((_, quoted)) = line.split_once(['\'', '"']) else { return line };
    let quote = line.chars().rev().nth(quoted.chars().count());
    let mut escaped = false;
    let end = quoted.find(|c| {
        let ends = Some(c) == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    end.map_or(line, |end| &quoted[end + 1..])
}

fn dworker(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dworker"));
    command.args(arguments).env_clear().envs(variables.iter().copied()).output().expect("dworker")
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn a_daemon_that_lacks_a_file_may_be_started_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let (file, authority) = (at("dworker.toml"), at("ca.pem"));
    let run = |text: &str| {
        fs::write(&file, text).expect("a file");
        let outcome = dworker(&["run", "--config", &file], &[]);
        (outcome.status.code(), text_of(&outcome))
    };
    let key = "worker_key = \"dwk_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaA\"";
    let right = format!("appliance_url = \"https://appliance.example\"\n{key}\nca_file = {authority:?}\n");
    // It is being replaced, or where it lies is not mounted yet.
    let (code, said) = run(&right);
    assert!(code == Some(1) && said.contains("no such file"), "{code:?} {said}");
    let (code, said) = run(&format!("{right}lanes = 99\n"));
    assert!(code == Some(2) && said.contains("lanes"), "{code:?} {said}");
    let (code, said) = run("appliance_url = ");
    assert!(code == Some(2), "{code:?} {said}");
    fs::remove_file(&file).expect("the file");
    assert_eq!(dworker(&["run", "--config", &file], &[]).status.code(), Some(1));
}

fn text_of(outcome: &Output) -> String {
    String::from_utf8_lossy(&outcome.stderr).into_owned()
}

#[test]
fn the_commands_check_show_and_import() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let older = at("morpheus-worker.rb");
    fs::write(&older, filled()).expect("a file");
    fs::set_permissions(&older, Permissions::from_mode(0o644)).expect("its mode");

    let checked = dworker(&["config", "check", "--config", &older], &[]);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    assert_eq!(text(checked.stdout), format!("{older}: valid\n"));
    let warned = text(checked.stderr);
    assert!(warned.starts_with(&format!("warning: {older}:4: worker_key = ***: others")), "{warned}");

    let wrong =
        dworker(&["config", "check", "--config", &older], &[("DWORKER_LANES", "9"), ("DWORKER_LANSE", "9")]);
    assert_eq!(wrong.status.code(), Some(2));
    assert_eq!(text(wrong.stderr).lines().count(), 2, "all at once");
    let missing = dworker(&["config", "check", "--config", &at("missing.toml")], &[("DWORKER_LANES", "2")]);
    assert_eq!(missing.status.code(), Some(2));

    let shown = text(dworker(&["config", "show", "--config", &older], &[("DWORKER_LANES", "4")]).stdout);
    for line in [
        format!("appliance_url = \"https://appliance.example/\" # {older}:2"),
        format!("worker_key = \"***\" # {older}:4"),
        "lanes = 4 # $DWORKER_LANES".into(),
        "drain = \"10s\" # default".into(),
        "# ca_file: not set".into(),
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} in {shown}");
    }
    let json = text(dworker(&["config", "show", "-j", "--config", &older], &[("DWORKER_LANES", "4")]).stdout);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let setting = |key: &str| {
        json["settings"].as_array().expect("a list").iter().find(|s| s["key"] == key).expect(key).clone()
    };
    assert_eq!(
        setting("lanes"),
        serde_json::json!({"key": "lanes", "value": 4, "source": "variable", "variable": "DWORKER_LANES"})
    );
    assert_eq!(
        setting("worker_key"),
        serde_json::json!({"key": "worker_key", "value": "***", "source": "file", "file": older, "line": 4})
    );
    assert_eq!(setting("ca_file"), serde_json::json!({"key": "ca_file", "value": null}));

    let output = at("dworker.toml");
    let imported = dworker(&["config", "import", &older, "--output", &output], &[]);
    assert_eq!(imported.status.code(), Some(0), "{imported:?}");
    assert_eq!(fs::metadata(&output).expect("the file").permissions().mode() & 0o7777, 0o600);
    let made = fs::read_to_string(&output).expect("the file");
    assert_eq!(text(dworker(&["config", "import", &older], &[]).stdout), made);
    let loaded = Config::load(&PathBuf::from(&output)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(loaded.config, Config::load(&PathBuf::from(&older)).expect("the older file").config);
    assert!(loaded.warnings.is_empty());

    let again = dworker(&["config", "import", &older, "--output", &output], &[]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(again.stderr).contains("--force"));
    assert_eq!(
        dworker(&["config", "import", &older, "--output", &output, "--force"], &[]).status.code(),
        Some(0)
    );
    assert_eq!(fs::read_dir(directory.path()).expect("the directory").count(), 2, "nothing is left behind");
    fs::write(&older, "puts 'hello'\n").expect("a file");
    let refused = dworker(&["config", "import", &older], &[]);
    assert_eq!((refused.status.code(), text(refused.stdout).as_str()), (Some(2), ""));
}

#[test]
fn what_is_imported_is_whole_and_a_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("morpheus-worker.rb");
    // As large as may be, with all that counts at its end; and larger by a byte.
    let of_size = |size: usize| format!("#{}\n{}", ".".repeat(size - filled().len() - 2), filled());
    fs::write(&file, of_size(1 << 20)).expect("a file");
    let whole = config::import(&file).expect("as large as may be");
    assert!(whole.contains("\nappliance_url = \"https://appliance.example/\"\n"), "its end was not read");
    fs::write(&file, of_size((1 << 20) + 1)).expect("a file");
    let large = config::import(&file).expect_err("too large").to_string();
    assert!(large.contains("it has 1048577 bytes, and at most 1048576 are read"), "{large}");
    fs::remove_file(&file).expect("the file");
    // Nobody writes to it, so opening it for reading would wait for ever.
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let refused = dworker(&["config", "import", file.to_str().expect("UTF-8")], &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(refused.stderr).contains("it is not a regular file"));
}
