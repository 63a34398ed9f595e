//! `dworker tail`: the daemon's log in the journal, filtered and coloured.
//!
//! journald has the lines, so `journalctl` is asked for them; nothing here reads its files.

use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::process::{Command, Stdio};

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{Done, Failure};

/// Follow the daemon's log.
#[derive(Debug, Args)]
pub(crate) struct Tail {
    /// Only what these parts of the daemon say; all where left out
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// How many of the last lines come first, before they are filtered; `all` for all
    #[arg(short = 'n', long, value_name = "N", default_value = "10", value_parser = lines)]
    lines: String,
    /// Lines since then, in journalctl's words: -1h, today, 2026-01-31 12:00
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    since: Option<String>,
    /// End behind the last line that there is
    #[arg(long)]
    no_follow: bool,
    /// Each line as a JSON object
    #[arg(short, long)]
    json: bool,
    /// Each line as a JSON object for people
    #[arg(short, long)]
    pretty: bool,
    /// The systemd unit
    #[arg(short, long, default_value = "dworker")]
    unit: String,
}

fn lines(text: &str) -> Result<String, String> {
    match text == "all" || text.parse::<u32>().is_ok() {
        true => Ok(text.to_owned()),
        false => Err("write a number of lines, or `all`".into()),
    }
}

/// A part of the daemon, by the modules that say something for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Registry, API, page and the port for workers
    Appliance,
    /// The worker: its uplink, and what it dials
    Worker,
    /// Capture: programs, rules, captured connections
    Steer,
    /// Sessions, lanes and streams between appliance and worker
    Tunnel,
    /// DNS for captured applications, and synthetic addresses
    Dns,
    /// The entries for clients that know proxies
    Proxy,
    /// Start and stop, and all else
    Daemon,
}

/// From the most specific on: the first that fits counts.
const MODULES: [(&str, Part); 13] = [
    ("dworker::steer::dns", Part::Dns),
    ("dworker::steer::names", Part::Dns),
    ("dworker::steer", Part::Steer),
    ("dworker::entry::captured", Part::Steer),
    ("dworker::daemon::steering", Part::Steer),
    ("dworker::entry", Part::Proxy),
    ("dworker::daemon::proxy", Part::Proxy),
    ("dworker::appliance", Part::Appliance),
    ("dworker::daemon::appliance", Part::Appliance),
    ("dworker::worker", Part::Worker),
    ("dworker::egress", Part::Worker),
    ("dworker::tunnel", Part::Tunnel),
    ("dworker::carry", Part::Tunnel),
];

impl Part {
    fn of(target: &str) -> Part {
        let within = |module: &str| {
            target.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        MODULES.iter().find(|(module, _)| within(module)).map_or(Part::Daemon, |(_, part)| *part)
    }

    fn word(self) -> &'static str {
        match self {
            Part::Appliance => "appliance",
            Part::Worker => "worker",
            Part::Steer => "steer",
            Part::Tunnel => "tunnel",
            Part::Dns => "dns",
            Part::Proxy => "proxy",
            Part::Daemon => "daemon",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    const ALL: [(Level, &'static str); 5] = [
        (Level::Error, "ERROR"),
        (Level::Warn, "WARN"),
        (Level::Info, "INFO"),
        (Level::Debug, "DEBUG"),
        (Level::Trace, "TRACE"),
    ];

    fn of(word: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|(_, name)| *name == word).map(|(level, _)| level)
    }

    /// Of what has only the journal's priority: what the service manager says.
    fn of_priority(priority: u64) -> Level {
        match priority {
            0..=3 => Level::Error,
            4 => Level::Warn,
            5 | 6 => Level::Info,
            _ => Level::Debug,
        }
    }

    fn word(self) -> &'static str {
        Level::ALL.into_iter().find(|(level, _)| *level == self).map_or("", |(_, name)| name)
    }

    /// The terminal's code for its colour.
    fn colour(self) -> &'static str {
        match self {
            Level::Error => "\x1b[31m",
            Level::Warn => "\x1b[33m",
            Level::Info => "\x1b[32m",
            Level::Debug => "\x1b[34m",
            Level::Trace => "\x1b[35m",
        }
    }
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Timestamp>,
    level: Level,
    /// The part; absent of what is not the daemon's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    message: String,
}

impl Line {
    /// From what `journalctl --output=json` prints of one entry; `None`: it is none.
    fn read(text: &str) -> Option<Line> {
        let entry: Value = serde_json::from_str(text).ok()?;
        let entry = entry.as_object()?;
        let field = |name: &str| entry.get(name).and_then(text_of);
        let number = |name: &str| field(name)?.parse::<u64>().ok();
        let time = number("__REALTIME_TIMESTAMP").and_then(|us| i64::try_from(us).ok());
        let said = Said::read(&field("MESSAGE").unwrap_or_default());
        let priority = Level::of_priority(number("PRIORITY").unwrap_or(6));
        let target = field("TARGET").or(said.target);
        Some(Line {
            time: time.and_then(|us| Timestamp::from_microsecond(us).ok()),
            level: field("LEVEL").and_then(|word| Level::of(&word)).or(said.level).unwrap_or(priority),
            part: target.as_deref().map(|target| Part::of(target).word()),
            target,
            pid: number("_PID").and_then(|pid| u32::try_from(pid).ok()),
            message: said.message,
        })
    }

    fn is_of(&self, parts: &[Part]) -> bool {
        parts.is_empty() || parts.iter().any(|part| Some(part.word()) == self.part)
    }

    fn plain(&self, coloured: bool) -> String {
        let (colour, end) = if coloured { (self.level.colour(), "\x1b[0m") } else { ("", "") };
        let time = self.time.map(|time| format!("{time:.3} ")).unwrap_or_default();
        let part = self.part.map(|part| format!("{part}: ")).unwrap_or_default();
        // Whatever is in a message, it must not drive the terminal.
        let message: String = self.message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        format!("{time}{colour}{:<5}{end} {part}{message}", self.level.word())
    }
}

/// A field's text. What is no text is a list of bytes to journalctl.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(bytes) => {
            let bytes: Vec<u8> =
                bytes.iter().map(|byte| u8::try_from(byte.as_u64()?).ok()).collect::<Option<_>>()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        }
        _ => None,
    }
}

/// What the daemon said: `LEVEL target: message`, or that as JSON.
#[derive(Debug, Default, PartialEq)]
struct Said {
    level: Option<Level>,
    target: Option<String>,
    message: String,
}

impl Said {
    fn read(text: &str) -> Said {
        if let Some(said) = Said::json(text) {
            return said;
        }
        let (first, rest) = text.trim_start().split_once(' ').unwrap_or((text, ""));
        let Some(level) = Level::of(first) else {
            return Said { message: text.to_owned(), ..Said::default() };
        };
        match rest.split_once(": ") {
            Some((target, message)) if is_module(target) => {
                Said { level: Some(level), target: Some(target.to_owned()), message: message.to_owned() }
            }
            _ => Said { level: Some(level), target: None, message: rest.to_owned() },
        }
    }

    fn json(text: &str) -> Option<Said> {
        let value: Value = serde_json::from_str(text).ok()?;
        let level = Level::of(&value.get("level")?.as_str()?.to_ascii_uppercase())?;
        let fields = value.get("fields").and_then(Value::as_object);
        let mut message = value.get("message")?.as_str()?.to_owned();
        for (name, field) in fields.into_iter().flatten() {
            message +=
                &format!(" {name}={}", field.as_str().map_or_else(|| field.to_string(), str::to_owned));
        }
        let target = value.get("target").and_then(Value::as_str).map(str::to_owned);
        Some(Said { level: Some(level), target, message })
    }
}

/// True where this is a module's path, and not the beginning of a sentence.
fn is_module(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    text.split("::").all(part) && (text.contains("::") || text == "dworker")
}

impl Tail {
    /// What is asked of the journal.
    fn journalctl(&self) -> Command {
        let mut journalctl = Command::new("journalctl");
        // Of what is longer than 4,096 bytes it tells nothing otherwise.
        journalctl.args(["--output=json", "--all", "--no-pager"]).arg(format!("--unit={}", self.unit));
        // `--since` means all of it since then.
        match &self.since {
            Some(since) => journalctl.arg(format!("--since={since}")),
            None => journalctl.arg(format!("--lines={}", self.lines)),
        };
        if !self.no_follow {
            journalctl.arg("--follow");
        }
        journalctl
    }

    pub(crate) fn run(self) -> Done {
        let mut journalctl = self.journalctl();
        let remedy = "dworker logs to standard error: look where this host's service manager keeps that";
        let mut child = journalctl.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|error| {
            Failure::Failed(match error.kind() {
                io::ErrorKind::NotFound => {
                    format!("there is no journalctl, so there is no journal; {remedy}")
                }
                _ => format!("journalctl: {error}"),
            })
        })?;
        let coloured =
            io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
        let mut any = false;
        if let Some(pipe) = child.stdout.take() {
            for text in BufReader::new(pipe).split(b'\n') {
                let text = String::from_utf8_lossy(&text?).into_owned();
                let Some(line) = Line::read(&text) else { continue };
                any = true;
                if !line.is_of(&self.parts) {
                    continue;
                }
                let out = match (self.pretty, self.json) {
                    (true, _) => serde_json::to_string_pretty(&line).unwrap_or_default(),
                    (false, true) => serde_json::to_string(&line).unwrap_or_default(),
                    (false, false) => line.plain(coloured),
                };
                match writeln!(io::stdout(), "{out}") {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                        // It would only notice with its next line.
                        let _ = child.kill();
                        let _ = child.wait();
                        return Ok(());
                    }
                    written => written?,
                }
            }
        }
        let status = child.wait()?;
        match (status.success(), any) {
            (true, true) => Ok(()),
            (true, false) => {
                eprintln!(
                    "dworker: the journal has no line of {}: is it started by systemd, under this name (`--unit`)? \
                     Who is neither root nor in the group systemd-journal sees his own lines only",
                    self.unit
                );
                Ok(())
            }
            (false, _) => Err(Failure::Failed(format!("journalctl failed ({status}); {remedy}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(message: &str) -> Line {
        let entry = serde_json::json!({
            "MESSAGE": message, "PRIORITY": "6", "_PID": "42", "__REALTIME_TIMESTAMP": "1769731200000000"
        });
        Line::read(&entry.to_string()).expect("a line")
    }

    #[test]
    fn lines_have_a_level_and_a_part() {
        for (message, level, part, text) in [
            (" INFO dworker::daemon: ready", Level::Info, Some("daemon"), "ready"),
            ("ERROR dworker::steer::dns::udp: lost: all", Level::Error, Some("dns"), "lost: all"),
            ("WARN dworker::steer::steering: refused", Level::Warn, Some("steer"), "refused"),
            (" WARN dworker::entry::captured: x", Level::Warn, Some("steer"), "x"),
            ("DEBUG dworker::entry::proxy::http: x", Level::Debug, Some("proxy"), "x"),
            (" INFO dworker::worker::orders: x", Level::Info, Some("worker"), "x"),
            (" INFO dworker::appliance: x", Level::Info, Some("appliance"), "x"),
            ("TRACE dworker::tunnel::lane: x", Level::Trace, Some("tunnel"), "x"),
            // Before there were targets in it; and somebody else's.
            (" INFO ready: all of it", Level::Info, None, "ready: all of it"),
            ("Started dworker.service.", Level::Info, None, "Started dworker.service."),
            (
                r#"{"time":"x","level":"warn","message":"refused","target":"dworker::egress","fields":{"errno":113}}"#,
                Level::Warn,
                Some("worker"),
                "refused errno=113",
            ),
        ] {
            let line = line(message);
            assert_eq!((line.level, line.part, line.message.as_str()), (level, part, text), "{message}");
        }
        let bytes = r#"{"MESSAGE":[73,78,70,79,32,97,27,98,255],"PRIORITY":"3"}"#;
        assert_eq!(Line::read(bytes).expect("a line").plain(false), "INFO  a b\u{fffd}");
        let own = r#"{"MESSAGE":"said","PRIORITY":"4","TARGET":"dworker::tunnel::dial"}"#;
        assert_eq!(Line::read(own).expect("a line").plain(false), "WARN  tunnel: said");
        // The journal's priorities end at debug.
        let own = r#"{"MESSAGE":"said","PRIORITY":"7","LEVEL":"TRACE","TARGET":"dworker::tunnel::dial"}"#;
        assert_eq!(Line::read(own).expect("a line").plain(false), "TRACE tunnel: said");
    }

    #[test]
    fn a_level_has_its_colour_on_a_terminal() {
        let line = line("ERROR dworker::tunnel: lost\x1b[2J");
        assert_eq!(line.plain(true), "2026-01-30T00:00:00.000Z \x1b[31mERROR\x1b[0m tunnel: lost [2J");
        assert_eq!(line.plain(false), "2026-01-30T00:00:00.000Z ERROR tunnel: lost [2J");
    }

    proptest! {
        #[test]
        fn whatever_the_journal_has_is_read(text in any::<String>()) {
            let _ = Line::read(&text);
            let line = line(&text);
            prop_assert!(!line.plain(false).chars().any(char::is_control));
            if line.target.is_none() && Said::json(&text).is_none() {
                prop_assert!(text.contains(&line.message));
            }
        }

        #[test]
        fn what_the_daemon_writes_comes_back(
            level in prop::sample::select(Level::ALL.to_vec()),
            module in "dworker(::[a-z][a-z0-9_]{0,8}){0,4}",
            message in "[ -~]{0,60}",
        ) {
            let (level, word) = level;
            let line = line(&format!("{word:>5} {module}: {message}"));
            prop_assert_eq!((line.level, line.target, line.message), (level, Some(module), message));
        }
    }
}
