//! What commands do without a daemon: completions, man pages, and the log by a journalctl that says what a test has it
//! say.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn dworker(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dworker"));
    command.args(args);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// All commands that `--help` lists, those below others too.
fn commands(of: &[&str]) -> Vec<Vec<String>> {
    let help = text(&run(dworker(of).arg("--help")).stdout);
    let listed =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let mut all = Vec::new();
    for word in listed
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|w| !w.is_empty() && *w != "help")
    {
        let path: Vec<&str> = of.iter().copied().chain([word]).collect();
        all.push(path.iter().map(ToString::to_string).collect());
        all.extend(commands(&path));
    }
    all
}

#[test]
fn each_command_has_a_man_page_that_groff_takes() {
    let directory = tempfile::tempdir().unwrap();
    assert!(run(dworker(&["man"]).arg(directory.path())).status.success());
    let all = commands(&[]);
    assert!(all.len() > 30 && all.contains(&vec!["worker".to_owned(), "rotate-key".to_owned()]), "{all:?}");
    let pages = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(pages, all.len() + 1, "dworker's own and {all:?}");
    for command in all.into_iter().chain([vec![]]) {
        let name = [vec!["dworker".to_owned()], command].concat().join("-");
        let page = directory.path().join(format!("{name}.1"));
        let said = run(Command::new("groff").args(["-man", "-Tutf8", "-ww", "-Kutf8"]).arg(&page));
        assert!(said.status.success() && said.stderr.is_empty(), "{name}: {}", text(&said.stderr));
        assert!(fs::read_to_string(&page).unwrap().contains(".SH SYNOPSIS"), "{name}");
    }
}

#[test]
fn completions_are_scripts_that_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(dworker(&["completions"]).arg(shell));
        assert!(script.status.success());
        let script = text(&script.stdout);
        for word in ["monitor", "rotate-key", "tunnel"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
        if shell == "bash" {
            let typed = format!(
                "{script}\nCOMP_WORDS=(dworker status t) COMP_CWORD=2\n_dworker dworker t status\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
            );
            let completed = run(Command::new("bash").args(["-c", &typed]));
            assert_eq!(text(&completed.stdout), "tunnel\n", "{}", text(&completed.stderr));
        }
    }
}

#[test]
fn who_has_read_enough_is_no_failure() {
    for args in [&["status", "--schema"][..], &["completions", "bash"], &["config", "template"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = run(dworker(args).stdout(writer));
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{args:?}");
    }
}

const JOURNAL: &str = r#"{"MESSAGE":" INFO dworker::daemon: ready","PRIORITY":"6","_PID":"42","__REALTIME_TIMESTAMP":"1769731200000000"}
{"MESSAGE":" WARN dworker::steer::steering: refused in connect(): refused-port","PRIORITY":"6","_PID":"42","__REALTIME_TIMESTAMP":"1769731201000000"}
no JSON
{"MESSAGE":"ERROR dworker::tunnel::lane: lost","PRIORITY":"6","_PID":"42","__REALTIME_TIMESTAMP":"1769731202000000"}
{"MESSAGE":"Stopped dworker.service.","PRIORITY":"5","__REALTIME_TIMESTAMP":"1769731203000000"}"#;

/// A directory with a journalctl that notes how it is called, prints `printed` and ends with `code`.
fn journalctl(printed: &str, code: u8) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("printed"), printed).unwrap();
    let script = format!(
        "#!/bin/sh\nprintf '%s\\n' \"$@\" > {}\n/bin/cat {}\nexit {code}\n",
        at("called").display(),
        at("printed").display()
    );
    fs::write(at("journalctl"), script).unwrap();
    fs::set_permissions(at("journalctl"), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

fn tail(path: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output = run(dworker(&["tail"]).args(args).env("PATH", path));
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_log_is_asked_for_as_it_is_wanted() {
    let fake = journalctl(JOURNAL, 0);
    for (args, called) in [
        (&[][..], "--output=json --all --no-pager --unit=dworker --lines=10 --follow"),
        (&["-n", "all", "--no-follow"], "--output=json --all --no-pager --unit=dworker --lines=all"),
        (
            &["--since", "-1h", "--unit", "dworker@b"],
            "--output=json --all --no-pager --unit=dworker@b --since=-1h --follow",
        ),
    ] {
        let (code, _, stderr) = tail(fake.path(), args);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}");
        let said = fs::read_to_string(fake.path().join("called")).unwrap();
        assert_eq!(said.lines().collect::<Vec<_>>().join(" "), called, "{args:?}");
    }
    for (args, says) in [(&["-n", "many"][..], "write a number of lines"), (&["dsn"], "invalid value 'dsn'")]
    {
        let (code, _, stderr) = tail(fake.path(), args);
        assert!(code == Some(2) && stderr.contains(says), "{args:?}: {stderr}");
    }
}

#[test]
fn lines_are_filtered_by_the_parts_of_the_daemon() {
    let fake = journalctl(JOURNAL, 0);
    let all = "2026-01-30T00:00:00.000Z INFO  daemon: ready\n\
               2026-01-30T00:00:01.000Z WARN  steer: refused in connect(): refused-port\n\
               2026-01-30T00:00:02.000Z ERROR tunnel: lost\n\
               2026-01-30T00:00:03.000Z INFO  Stopped dworker.service.\n";
    assert_eq!(tail(fake.path(), &["--no-follow"]).1, all);
    assert_eq!(tail(fake.path(), &["tunnel"]).1, "2026-01-30T00:00:02.000Z ERROR tunnel: lost\n");
    assert_eq!(tail(fake.path(), &["steer", "tunnel"]).1.lines().count(), 2);
    assert_eq!(tail(fake.path(), &["dns"]).1, "");
    assert_eq!(
        tail(fake.path(), &["steer", "-j"]).1,
        "{\"time\":\"2026-01-30T00:00:01Z\",\"level\":\"warn\",\"part\":\"steer\",\"target\":\"dworker::steer::steering\",\
         \"pid\":42,\"message\":\"refused in connect(): refused-port\"}\n"
    );
}

#[test]
fn where_there_is_no_journal_it_is_said_what_to_do() {
    let none = tempfile::tempdir().unwrap();
    let (code, _, stderr) = tail(none.path(), &[]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("no journalctl") && stderr.contains("standard error"), "{stderr}");
    let (code, _, stderr) = tail(journalctl("", 1).path(), &["--no-follow"]);
    assert!(code == Some(1) && stderr.contains("standard error"), "{stderr}");
    let (code, _, stderr) = tail(journalctl("", 0).path(), &["--no-follow"]);
    assert!(
        code == Some(0) && stderr.contains("no line of dworker") && stderr.contains("systemd-journal"),
        "{stderr}"
    );
}
