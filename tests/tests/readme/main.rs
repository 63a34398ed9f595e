//! The README is true: its configurations are read, its faults are what the daemon says, its commands exist and print
//! what it shows.

mod lab;
mod markdown;

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use dworker::config::Config;
use tests::{Command, Output, program, worker_key};

use markdown::{codes, readme};

/// The section that has the commands and the API.
const ADMINISTRATION: &str = "Command line and API";
/// The section that leads from nothing to a first connection.
const BEGINNING: &str = "The first hour";

fn dworker(arguments: &[&str], input: &str) -> Result<Output> {
    Command::new(program()?).args(arguments).input(input).output()
}

#[test]
fn the_configurations_are_read_and_the_faults_are_what_the_daemon_says() -> Result<()> {
    let readme = readme()?;
    let [first_appliance, first_worker, appliance, worker, upstream, proxy, wrong] =
        &readme.blocks("toml")[..]
    else {
        panic!("not seven configurations")
    };
    let loaded = Config::parse(first_appliance, "README.md").expect("the first hour's appliance");
    assert!(loaded.config.appliance.is_some() && loaded.config.proxy.is_some() && loaded.warnings.is_empty());
    let loaded = Config::parse(&first_worker.replace("dwk_...", &worker_key()?), "README.md");
    let loaded = loaded.expect("the first hour's worker");
    assert!(loaded.config.worker.is_some() && loaded.warnings.is_empty());
    let loaded = Config::parse(appliance, "README.md").expect("the appliance's");
    assert!(loaded.config.appliance.is_some() && loaded.config.steer.is_some() && loaded.warnings.is_empty());
    let loaded = Config::parse(worker, "README.md").expect("the worker's");
    assert!(loaded.config.worker.is_some() && loaded.warnings.is_empty());
    let loaded = Config::parse(&format!("{upstream}\n{worker}"), "README.md").expect("behind a proxy");
    assert!(loaded.config.worker.is_some_and(|worker| worker.upstream.is_some()));
    // A section of either of the two.
    for carrier in [appliance, worker] {
        let loaded = Config::parse(&format!("{carrier}\n{proxy}"), "README.md").expect("with a proxy");
        assert!(loaded.config.proxy.is_some_and(|proxy| proxy.login.is_some()) && loaded.warnings.is_empty());
    }
    for configuration in [first_appliance, first_worker, appliance, worker, upstream, proxy] {
        assert!(configuration.lines().count() <= 10, "more than ten lines");
    }

    let directory = tempfile::tempdir()?;
    let file = directory.path().join("dworker.toml");
    fs::write(&file, wrong)?;
    let output = dworker(&["run", "--config", file.to_str().context("UTF-8")?], "")?;
    assert_eq!(output.status.code(), Some(2));
    let said = output.stderr.replace(&format!("{}/", directory.path().display()), "");
    assert!(readme.blocks("").contains(&said), "the README has other faults than\n{said}");
    Ok(())
}

#[test]
fn a_new_key_and_its_hash_belong_together() -> Result<()> {
    let said = dworker(&["key", "new"], "")?.check()?;
    let value = |key: &str| {
        let line = said.lines().find(|line| line.starts_with(key)).expect(key);
        line.split('"').nth(1).expect("a value").to_owned()
    };
    let hash = dworker(&["key", "hash"], &format!("{}\n", value("worker_key")))?.check()?;
    assert_eq!(hash.trim(), value("key_sha256"));
    let refused = dworker(&["key", "hash"], "secret\n")?;
    assert!(!refused.status.success() && !refused.stderr.contains("secret"), "{refused}");
    Ok(())
}

#[test]
fn a_status_without_a_daemon_says_what_to_check() -> Result<()> {
    let output = dworker(&["status", "--socket", "/nonexistent/control.sock"], "")?;
    assert_eq!(output.status.code(), Some(1));
    let said = &output.stderr;
    assert!(said.contains("/nonexistent/control.sock") && said.contains("is dworker running"), "{said}");
    Ok(())
}

/// The keys that a commented file has, each with the sections around it.
fn keys(template: &str) -> BTreeSet<String> {
    let mut section = String::new();
    let mut found = BTreeSet::new();
    // `# ` begins what is for people.
    for line in template.lines().filter_map(|line| line.strip_prefix('#')) {
        if line.starts_with('[') {
            section = format!("{}.", line.trim_matches(['[', ']']));
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with(' ')) {
            found.insert(format!("{section}{key}"));
        }
    }
    found
}

/// The keys that a row of the README's table tells of: `a.b`, `.c` are a.b and a.c, and so are `a`: `b`, `c`.
fn told(cell: &str) -> Vec<String> {
    let mut section = "";
    if let Some((above, rest)) = cell.split_once("`: `") {
        let above = above.trim_start_matches('`');
        return codes(&format!("`{rest}")).map(|key| format!("{above}.{key}")).collect();
    }
    let mut found = Vec::new();
    for code in codes(cell) {
        match code.strip_prefix('.') {
            Some(key) => found.push(format!("{section}.{key}")),
            None => {
                section = code.rsplit_once('.').map_or("", |(section, _)| section);
                found.push(code.to_owned());
            }
        }
    }
    found
}

#[test]
fn the_table_has_every_key_of_the_configuration_and_no_other() -> Result<()> {
    let known = keys(&dworker(&["config", "template"], "")?.check()?);
    assert!(known.contains("lanes") && known.contains("appliance.groups.name"), "{known:?}");
    let readme = readme()?;
    let rows = readme.table("| key | meaning, default |")?;
    let listed: Vec<String> = rows.iter().flat_map(|row| told(row[0])).collect();
    let told: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(told, known, "the README's table, and the commented file");
    assert_eq!(listed.len(), told.len(), "a key stands there twice: {listed:?}");
    Ok(())
}

/// The commands below this one, as in `worker list`, and what all of their `--help` say.
fn commands(above: &str) -> Result<(BTreeSet<String>, String)> {
    let mut help = dworker(&[above.split_whitespace().collect(), vec!["--help"]].concat(), "")?.check()?;
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let words = lines.take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    let below: Vec<String> = words
        .filter(|word| *word != "help")
        .map(|word| format!("{above} {word}").trim().to_owned())
        .collect();
    let mut found = BTreeSet::new();
    if below.is_empty() {
        found.insert(above.to_owned());
    }
    for command in below {
        let (more, said) = commands(&command)?;
        found.extend(more);
        help += &said;
    }
    Ok((found, help))
}

#[test]
fn every_command_is_in_the_table_with_its_options_and_exit_codes() -> Result<()> {
    let readme = readme()?;
    let section = readme.section(ADMINISTRATION)?;
    let mut told = BTreeSet::new();
    for row in section.table("| command | what it does |")? {
        // `dworker worker list`, `show`: the second one is `dworker worker show`.
        let mut above = "";
        for code in codes(row[0]) {
            let command = match code.strip_prefix("dworker ") {
                Some(command) => {
                    above = command.rsplit_once(' ').map_or("", |(above, _)| above);
                    command.to_owned()
                }
                None => format!("{above} {code}"),
            };
            told.insert(command);
        }
    }
    let (found, help) = commands("")?;
    assert_eq!(told, found, "the README's table, and what there is");
    for code in readme.codes().into_iter().filter_map(|code| code.strip_prefix("dworker ")) {
        let words: Vec<&str> = code.split_whitespace().collect();
        assert!(
            (1..=words.len()).any(|n| found.contains(&words[..n].join(" "))),
            "no command is dworker {code}"
        );
    }
    for option in section.codes().into_iter().filter(|code| code.starts_with('-')) {
        let there = help.split(|c: char| c.is_whitespace() || c == ',').any(|word| word == option);
        assert!(there, "no command has {option}");
    }
    let codes = help.lines().find(|line| line.starts_with("Exit codes: ")).context("no exit codes")?;
    assert!(section.says(codes), "the README has other exit codes than\n{codes}");
    Ok(())
}
