use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::*;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is logged on this thread meanwhile, without times.
pub(crate) fn logged(run: impl FnOnce()) -> String {
    let sink = Sink::default();
    let writer = sink.clone();
    let log = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .event_format(Limited::new(format::format().without_time().with_target(false).with_ansi(false)))
        .finish();
    tracing::subscriber::with_default(log, run);
    String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
}

fn flood() {
    for peer in 0..150 {
        tracing::warn!(peer, "refused");
        tracing::info!(peer, "asked");
    }
    tracing::error!("out of descriptors");
}

/// What is said behind the last line that is not left out.
const LAST: &str = "(more like this are only counted for up to 5s)";

#[test]
fn one_kind_does_not_hide_another() {
    let said = logged(flood);
    let count = |what| said.lines().filter(|line| line.contains(what)).count();
    assert_eq!((count("refused"), count("asked"), count("out of descriptors")), (100, 150, 1));
    let last = said.lines().rfind(|line| line.contains("refused")).unwrap();
    assert_eq!(last.trim(), format!("WARN refused peer=99 {LAST}"));
}

/// What [`Records`] write of what is logged on this thread meanwhile.
fn recorded<T: Send + 'static>(
    run: impl FnOnce(),
    made: impl Fn(&Record) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let all = Arc::new(Mutex::new(Vec::new()));
    let into = all.clone();
    let records = Records::new(move |record: &Record| into.lock().unwrap().push(made(record)));
    let log = tracing_subscriber::registry().with(records);
    tracing::subscriber::with_default(log, run);
    std::mem::take(&mut *all.lock().unwrap())
}

#[test]
fn json_has_each_field_as_what_it_is_and_the_same_limit() {
    let at: Timestamp = "2026-01-30T09:14:06Z".parse().unwrap();
    let left_out = left_out();
    let lines = recorded(flood, move |record| record.json(at));
    let with = |message: &str| lines.iter().filter(|line| line["message"] == message).count();
    assert_eq!((with("refused"), with("asked"), with("out of descriptors")), (100, 150, 1));
    assert!(super::left_out() >= left_out + 50);
    let last = lines.iter().rfind(|line| line["level"] == "warn").unwrap();
    assert_eq!((&last["more_left_out"], &last["fields"]["peer"]), (&Value::Bool(true), &99.into()));
    assert_eq!(lines.iter().filter(|line| line.get("more_left_out").is_some()).count(), 1);
    let target: std::net::SocketAddr = ([192, 0, 2, 7], 443).into();
    let lines = recorded(
        || tracing::warn!(%target, ok = true, n = -3, share = 0.5, name = "a \"b\"\n", list = ?[1], "not dialled: {}", "no"),
        move |record| record.json(at).to_string(),
    );
    assert_eq!(lines.len(), 1);
    assert!(!lines[0].contains('\n'), "one line: {}", lines[0]);
    let expected = serde_json::json!({
        "time": "2026-01-30T09:14:06Z",
        "level": "warn",
        "message": "not dialled: no",
        "target": "dworker::telemetry::tests",
        "fields": {
            "target": "192.0.2.7:443", "ok": true, "n": -3, "share": 0.5, "name": "a \"b\"\n", "list": "[1]",
        },
    });
    assert_eq!(serde_json::from_str::<Value>(&lines[0]).unwrap(), expected);
}

/// The fields of a record of the journal, as `systemd.journal-fields(7)` and its protocol have them.
fn fields(mut datagram: &[u8]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut fields = Vec::new();
    while !datagram.is_empty() {
        let line = datagram.split(|byte| *byte == b'\n').next().unwrap();
        let (name, value, rest) = match line.iter().position(|byte| *byte == b'=') {
            Some(at) => (&line[..at], &line[at + 1..], &datagram[line.len() + 1..]),
            None => {
                let (length, rest) = datagram[line.len() + 1..].split_at(8);
                let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
                assert_eq!(rest[length], b'\n');
                (line, &rest[..length], &rest[length + 1..])
            }
        };
        fields.push((text(name), text(value)));
        datagram = rest;
    }
    fields
}

#[test]
fn the_journal_gets_records_with_fields_and_the_same_limit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let journald = UnixDatagram::bind(&path).unwrap();
    journald.set_nonblocking(true).unwrap();
    let next = move || {
        let mut datagram = vec![0; 64 << 10];
        let length = journald.recv(&mut datagram).ok()?;
        Some(fields(&datagram[..length]))
    };
    let journal = Journal::connect(&path).unwrap();
    assert_eq!(next(), Some(Vec::new()), "what shows that it is there");
    let taken = Arc::new(Mutex::new(Vec::new()));
    let (into, at) = (taken.clone(), path.clone());
    let records = Records::new(move |record: &Record| {
        journal.send(record, &at).unwrap();
        into.lock().unwrap().extend(next());
    });
    tracing::subscriber::with_default(tracing_subscriber::registry().with(records), || {
        tracing::warn!(target = "vcenter.corp.example:443", why = "a\nb", n = 3, "not dialled");
        flood();
    });
    let taken = taken.lock().unwrap();
    let first: Vec<_> = taken[0].iter().filter(|(name, _)| !name.starts_with("CODE_")).cloned().collect();
    let expected = [
        ("MESSAGE", "not dialled target=\"vcenter.corp.example:443\" why=\"a\\nb\" n=3"),
        ("PRIORITY", "4"),
        ("LEVEL", "WARN"),
        ("SYSLOG_IDENTIFIER", "dworker"),
        ("TARGET", "dworker::telemetry::tests"),
        ("DWORKER_TARGET", "vcenter.corp.example:443"),
        ("DWORKER_WHY", "a\nb"),
        ("DWORKER_N", "3"),
    ];
    assert_eq!(first, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(taken.len(), 1 + 100 + 150 + 1);
    let said = |at: usize| taken[at].iter().find(|(name, _)| name == "MESSAGE").unwrap().1.clone();
    assert_eq!(said(1), "refused peer=0");
    assert!(taken.iter().any(|fields| fields[0].1 == format!("refused peer=99 {LAST}")));
    // One that takes nothing stops nobody.
    std::fs::remove_file(&path).unwrap();
    let _stopped = UnixDatagram::bind(&path).unwrap();
    let journal = Journal::connect(&path).unwrap();
    let (count, at) = (Arc::new(Mutex::new([0, 0])), path.clone());
    let into = count.clone();
    let records = Records::new(move |record: &Record| {
        let sent = journal.send(record, &at).unwrap();
        into.lock().unwrap()[usize::from(sent == Sent::NoRoom)] += 1;
    });
    tracing::subscriber::with_default(tracing_subscriber::registry().with(records), || {
        (0..10_000).for_each(|n| tracing::info!(n, "asked"));
    });
    let [whole, no_room] = *count.lock().unwrap();
    assert!(whole > 0 && no_room > 0 && whole + no_room == 10_000, "{whole} {no_room}");
    // It is started anew.
    std::fs::remove_file(&path).unwrap();
    assert!(Journal::connect(&path).is_err());
}
