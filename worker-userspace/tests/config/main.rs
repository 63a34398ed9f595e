//! Configurations, right and wrong.
//!
//! `*.toml` here are right, and must mean exactly what is written in `meaning`. `*.txt` are lists of wrong ones, each with
//! every line that must be said about it, no more and no less.

mod files;
mod meaning;
mod random;

use dworker::config::{Config, Key, Loaded};

const KEY: &str = "dwk_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG";
/// Parts of secrets that stand in the lists of wrong configurations; no line may show one.
const SECRETS: [&str; 3] = ["456789abcdefghij", "hunter2", "battery"];

/// One wrong configuration.
struct Case {
    title: String,
    text: String,
    expected: String,
}

/// Takes a list apart: `=== title`, the file, `---`, the lines.
fn cases(list: &str) -> Vec<Case> {
    let cases: Vec<Case> = list
        .split("\n=== ")
        .skip(1)
        .map(|case| {
            let (title, rest) = case.split_once('\n').expect("a line behind the title");
            let rest = format!("\n{rest}\n");
            let (text, expected) =
                rest.split_once("\n---\n").unwrap_or_else(|| panic!("no `---` in {title:?}"));
            Case {
                title: title.to_owned(),
                text: text.trim_start_matches('\n').to_owned() + "\n",
                expected: expected.trim().to_owned(),
            }
        })
        .collect();
    assert!(!cases.is_empty(), "a list without cases");
    cases
}

/// What is said about a configuration, faults or warnings.
fn said(result: Result<Loaded, dworker::config::Faults>) -> String {
    match result {
        Err(faults) => faults.to_string(),
        Ok(loaded) => loaded.warnings.iter().map(|w| format!("warning: {w}")).collect::<Vec<_>>().join("\n"),
    }
}

fn parsed(text: &str) -> String {
    said(Config::parse(text, "dworker.toml"))
}

/// Runs a list and reports all cases that differ, each as the list would have to say it.
fn run(list: &str, mut said_about: impl FnMut(&str) -> String) {
    let mut wrong = String::new();
    for case in cases(list) {
        let said = said_about(&case.text);
        for secret in SECRETS {
            assert!(!said.contains(secret), "{}: a secret in {said:?}", case.title);
        }
        if said != case.expected {
            wrong += &format!("\n=== {}\n{}---\n{said}\n", case.title, case.text);
        }
    }
    assert!(wrong.is_empty(), "these cases differ; now they are:{wrong}");
}

#[test]
fn wrong_files_are_told_what_is_wrong() {
    run(include_str!("whole-file.txt"), parsed);
}

#[test]
fn wrong_workers_are_told_what_is_wrong() {
    run(include_str!("worker.txt"), parsed);
}

#[test]
fn wrong_hosts_are_told_what_is_wrong() {
    run(include_str!("hosts.txt"), parsed);
}

#[test]
fn wrong_appliances_are_told_what_is_wrong() {
    run(include_str!("appliance.txt"), parsed);
}

#[test]
fn wrong_steering_is_told_what_is_wrong() {
    run(include_str!("steer.txt"), parsed);
}

#[test]
fn wrong_proxies_are_told_what_is_wrong() {
    run(include_str!("proxy.txt"), parsed);
}

#[test]
fn wrong_telemetry_is_told_what_is_wrong() {
    run(include_str!("metrics.txt"), parsed);
}

#[test]
fn wrong_files_of_the_older_product_are_told_what_is_wrong() {
    let list = include_str!("ruby.txt");
    run(list, |text| said(Config::parse(text, "morpheus-worker.rb")));
    let cases = cases(list);
    assert!(cases.len() >= 30, "{}", cases.len());
    for case in cases {
        assert_eq!(case.expected.lines().count(), 1, "{}: more or less than one error", case.title);
    }
}

#[test]
fn wrong_ways_through_a_proxy_are_told_what_is_wrong() {
    run(include_str!("upstream.txt"), |text| {
        let worker =
            "appliance_url = \"https://appliance.example\"\nworker_key_file = \"/etc/dworker/worker.key\"\n";
        said(Config::parse(&format!("{worker}{text}"), "dworker.toml"))
    });
}

#[test]
fn a_file_in_windows_manner_is_read_too() {
    let text = format!("\u{feff}{}", include_str!("worker.toml").replace('\n', "\r\n"));
    assert_eq!(
        Config::parse(&text, "dworker.toml"),
        Config::parse(include_str!("worker.toml"), "dworker.toml")
    );
    let faults = said(Config::parse(&text.replace("lanes = 8", "lanes = 9"), "dworker.toml"));
    assert_eq!(
        faults,
        "dworker.toml:8: lanes = 9: not between 1 and 8: write a number from 1 to 8, without quotes"
    );
}

#[test]
fn more_than_a_hundred_faults_are_counted() {
    let text: String = (0..250).map(|i| format!("colour{i} = 1\n")).collect();
    let faults = said(Config::parse(&text, "dworker.toml"));
    assert_eq!(faults.lines().count(), 101);
    assert_eq!(faults.lines().last(), Some("and 151 more faults: correct these first"));
    let text: String = (0..250).map(|i| format!("colour{i}\n")).collect();
    assert_eq!(said(Config::parse(&text, "dworker.toml")).lines().count(), 101);
}

fn key() -> Key {
    KEY.parse().expect("a key")
}
