//! The README is true: its configurations are read, its faults are what the daemon says, its commands exist.
//! The commands that build and test are run by `.ci/run` itself.

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use dworker::config::Config;

fn readme() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).expect("README.md")
}

/// The fenced blocks of a language, in order.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut parts = text.split("```");
    parts.next();
    while let (Some(block), _) = (parts.next(), parts.next()) {
        if let Some((first, body)) = block.split_once('\n')
            && first == language
        {
            blocks.push(body.to_owned());
        }
    }
    blocks
}

fn dworker(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_dworker"))
        .args(arguments)
        // Its variables would be configuration.
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("dworker");
    child.stdin.take().expect("stdin").write_all(input.as_bytes()).expect("input");
    child.wait_with_output().expect("output")
}

#[test]
fn the_configurations_are_read_and_the_faults_are_what_the_daemon_says() {
    let readme = readme();
    let [appliance, worker, proxy, wrong] = &blocks(&readme, "toml")[..] else {
        panic!("not four configurations")
    };
    let loaded = Config::parse(appliance, "README.md").expect("the appliance's");
    assert!(loaded.config.appliance.is_some() && loaded.config.steer.is_some() && loaded.warnings.is_empty());
    let loaded = Config::parse(worker, "README.md").expect("the worker's");
    assert!(loaded.config.worker.is_some() && loaded.warnings.is_empty());
    // A section of either of the two.
    for carrier in [appliance, worker] {
        let loaded = Config::parse(&format!("{carrier}\n{proxy}"), "README.md").expect("with a proxy");
        assert!(loaded.config.proxy.is_some_and(|proxy| proxy.login.is_some()) && loaded.warnings.is_empty());
    }
    for configuration in [appliance, worker, proxy] {
        assert!(configuration.lines().count() <= 10, "more than ten lines");
    }

    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("dworker.toml");
    fs::write(&file, wrong).expect("the file");
    let output = dworker(&["run", "--config", file.to_str().expect("UTF-8")], "");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    let said = said.replace(&format!("{}/", directory.path().display()), "");
    assert!(blocks(&readme, "").contains(&said), "the README has other faults than\n{said}");
}

#[test]
fn a_new_key_and_its_hash_belong_together() {
    let output = dworker(&["key", "new"], "");
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    let value = |key: &str| {
        let line = said.lines().find(|line| line.starts_with(key)).expect(key);
        line.split('"').nth(1).expect("a value").to_owned()
    };
    let output = dworker(&["key", "hash"], &format!("{}\n", value("worker_key")));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), value("key_sha256"));
    let refused = dworker(&["key", "hash"], "secret\n");
    assert!(!refused.status.success());
    assert!(!String::from_utf8_lossy(&refused.stderr).contains("secret"));
}

#[test]
fn a_status_without_a_daemon_says_what_to_check() {
    let output = dworker(&["status", "--socket", "/nonexistent/control.sock"], "");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/nonexistent/control.sock") && said.contains("is dworker running"), "{said}");
}

#[test]
fn every_key_of_the_table_is_a_key_of_the_configuration() {
    let readme = readme();
    let table = readme.split("| key | meaning, default |").nth(1).expect("the table");
    let schema =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/schema.rs")).expect("the schema");
    let mut seen = 0;
    for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let keys = row.split('|').nth(1).expect("a cell");
        for key in keys.split('`').skip(1).step_by(2) {
            let last = key.rsplit('.').next().expect("a part");
            assert!(schema.contains(&format!("\"{last}\"")), "{key} is no key");
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} keys were found in the table");
}
