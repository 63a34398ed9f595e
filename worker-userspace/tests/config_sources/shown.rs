//! What holds, and the commented file.

use std::collections::BTreeSet;
use std::fs;

use dworker::config::{self, Config, Origin};

use super::{EXAMPLES, KEY, value};

#[test]
fn every_key_is_shown() {
    let mut shown = BTreeSet::new();
    for text in EXAMPLES {
        let loaded = Config::parse(text, "dworker.toml").expect("an example");
        shown.extend(
            loaded
                .effective
                .settings()
                .iter()
                .map(|setting| setting.key.replace("[0]", "").replace("[1]", "")),
        );
        let printed = loaded.effective.to_string();
        for setting in loaded.effective.settings() {
            let name = setting.key.rsplit('.').next().expect("a name");
            assert!(
                printed.contains(&format!("\n{name} = "))
                    || printed.starts_with(&format!("{name} = "))
                    || printed.contains(&format!("# {name}: not set")),
                "{name} in {printed}"
            );
        }
    }
    let listed: BTreeSet<String> = keys_of(&config::template()).into_iter().collect();
    assert_eq!(shown, listed);
}

/// The paths of all keys that a commented file lists.
fn keys_of(template: &str) -> Vec<String> {
    let mut section = String::new();
    let mut keys = Vec::new();
    for line in
        template.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| !line.starts_with(' '))
    {
        match line.split_once(" = ") {
            Some((key, _)) => keys.push(format!("{section}{key}")),
            None => section = format!("{}.", line.trim_matches(['[', ']'])),
        }
    }
    keys
}

#[test]
fn what_is_shown_says_the_same_again_but_for_secrets() {
    for text in EXAMPLES {
        let loaded = Config::parse(text, "dworker.toml").expect("an example");
        let printed = loaded.effective.to_string();
        let secrets = [&KEY[8..], "FOR THIS", "hunter2"];
        assert!(!secrets.iter().any(|secret| printed.contains(secret)), "{printed}");
        let hash = "f333873adc6c2a0578de5b5ec0ed501d3cfc4906ea185c5fdc71bfa66fa058b9";
        let mut hashes =
            [hash, "7f1e2c9b6f0b6d6a1c2f3e4d5c6b7a8990817263544536271809fedcba987654"].into_iter();
        let lines = printed.lines().map(|line| match line.split_once(" = \"***\"") {
            Some(("worker_key", behind)) => format!("worker_key = \"{KEY}\"{behind}"),
            Some(("key_sha256", behind)) => {
                format!("key_sha256 = \"{}\"{behind}", hashes.next().expect("a hash"))
            }
            Some((key, behind)) => format!("{key} = \"API KEY FOR THIS GATEWAY\"{behind}"),
            None => line
                .replace("https://***@", "https://worker%40site@")
                .replace("http://***@", "http://lab:hunter2@"),
        });
        let again = lines.collect::<Vec<_>>().join("\n");
        let again = Config::parse(&again, "shown.toml").unwrap_or_else(|e| panic!("{e}\n{again}"));
        assert_eq!(again.config, loaded.config);
    }
}

#[test]
fn the_commented_file_is_the_schemas_and_loads() {
    let packaged = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/dworker.toml"))
        .expect("the file");
    assert!(
        packaged == config::template(),
        "packaging/dworker.toml: write it anew with `dworker config template`"
    );
    assert!(packaged.lines().all(|line| line.is_empty() || line.starts_with('#')), "something is set");
    // What says the same as another key, or has no sense beside it.
    const FIRST: [&str; 5] =
        ["apikey", "worker_key", "steer.proxy_hosts", "appliance.certificate", "appliance.key"];
    const SECOND: [&str; 6] = [
        "apikey_file",
        "worker_key_file",
        "proxy_address_password_file",
        "steer.proxy_hosts",
        "appliance.pkcs12",
        "appliance.pkcs12_password_file",
    ];
    for without in [&FIRST[..], &SECOND[..]] {
        let mut section = String::new();
        let uncommented = packaged.lines().filter_map(|line| {
            let set = line.strip_prefix('#').filter(|line| !line.starts_with(' ') && !line.is_empty())?;
            let Some((key, _)) = set.split_once(" = ") else {
                section = format!("{}.", set.trim_matches(['[', ']']));
                return Some(set);
            };
            (!without.contains(&format!("{section}{key}").as_str())).then_some(set)
        });
        let text = uncommented.collect::<Vec<_>>().join("\n");
        // A password needs a user.
        let text = match without.contains(&"proxy_address_password_file") {
            false => text.replace("http://proxy.example", "http://worker@proxy.example"),
            true => text,
        };
        let loaded = Config::parse(&text, "dworker.toml").unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert!(
            loaded.config.worker.is_some()
                && loaded.config.appliance.is_some()
                && loaded.config.steer.is_some()
        );
        // What is a default there is the default.
        for setting in Config::parse(EXAMPLES[2], "lab.toml").expect("the lab").effective.settings() {
            if setting.origin == Some(Origin::Default) && !setting.key.contains('[') {
                assert_eq!(value(&loaded, &setting.key), setting.value, "{}", setting.key);
            }
        }
    }
}
