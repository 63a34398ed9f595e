//! Any text, and right ones that were damaged.

use dworker::config::Config;
use proptest::prelude::*;

use super::{KEY, said};

/// What configurations are made of, so that random texts come near to meaning something.
fn soup() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "[appliance]\n",
        "[[appliance.groups]]\n",
        "[egress]\n",
        "[steer]\n",
        "[",
        "]",
        "{",
        "}",
        "\"",
        "\"\"\"",
        "'",
        "\n",
        "\r\n",
        " = ",
        "=",
        ",",
        ".",
        "#",
        "log",
        "drain",
        "lanes",
        "allow",
        "deny",
        "cgroups",
        "groups",
        "key",
        "listen",
        "families",
        "name",
        "proxy_hosts",
        "appliance_url",
        "appliance",
        "steer",
        "egress",
        "key_sha256",
        "worker_key",
        "proxy_address",
        "no_proxy",
        "\"http://u:p@a:1\"",
        "\"10s\"",
        "\"https://a\"",
        "[\"10.0.0.0/8\"]",
        "true",
        "0x10",
        "1e5",
        "inf",
        "2026-01-01",
        "99999999999999999999",
        "\\u0000",
        "\u{feff}",
        "é",
        "\u{202e}",
        "\0",
    ]);
    prop::collection::vec(prop_oneof![4 => word.prop_map(str::to_owned), 1 => "\\PC{0,8}"], 0..40)
        .prop_map(|words| words.concat())
}

/// Faults are one line each, of bounded length, and name the file.
fn check_lines(said: &str) -> Result<(), TestCaseError> {
    for line in said.lines() {
        let named = line.starts_with("dworker.toml:") || line.starts_with("warning: dworker.toml:");
        prop_assert!(named || line.ends_with("more faults: correct these first"), "{line:?}");
        prop_assert!(!line.contains(char::is_control), "{line:?}");
        prop_assert!(line.chars().count() < 2_000, "{line:?}");
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_text_panics(text in prop_oneof![any::<String>(), soup()]) {
        let result = Config::parse(&text, "dworker.toml");
        prop_assert!(result.is_ok() || !said(result.clone()).is_empty());
        check_lines(&said(result))?;
    }

    #[test]
    fn a_good_file_that_was_damaged_shows_no_secret(
        which in 0usize..3, at: prop::sample::Index, cut in 0usize..60, insert in soup(), paste: bool,
    ) {
        let files =
            [include_str!("appliance.toml"), include_str!("worker.toml"), include_str!("lab.toml")];
        let text: Vec<char> = files[which].chars().collect();
        let at = at.index(text.len());
        let paste = if paste { KEY } else { "" };
        let (head, tail) = (&text[..at], &text[(at + cut).min(text.len())..]);
        let damaged: String = head.iter().copied().chain(paste.chars()).chain(insert.chars()).chain(tail.iter().copied()).collect();
        let said = said(Config::parse(&damaged, "dworker.toml"));
        // Half a key without its `dwk_` looks like any other word; a whole one never shows.
        prop_assert!(!said.contains(&KEY["dwk_".len()..]), "{said}");
        check_lines(&said)?;
    }
}
