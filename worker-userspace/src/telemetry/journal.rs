//! The journal's own protocol: records with fields, as `systemd.journal-fields(7)` and the journal's native protocol have
//! them.
//!
//! `MESSAGE` has the fields in it, too, because `journalctl` shows nothing else; each stands for itself besides, as
//! `DWORKER_NAME`. What the journal does not take goes to standard error, which it reads as well: so nothing is lost while it
//! is started anew.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use serde_json::Value;
use tracing::Level;

use super::record::Record;

/// Where the journal takes records.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";
/// Longest name of a field that the journal takes.
const LONGEST_NAME: usize = 64;
/// Bytes of a value that are kept: with all of its fields a record must be one datagram.
const LONGEST_VALUE: usize = 16 * 1024;

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Whole,
    /// The journal has not taken what came before.
    NoRoom,
}

/// A way to the journal.
#[derive(Debug)]
pub(super) struct Journal(UnixDatagram);

impl Journal {
    pub(super) fn connect(path: &Path) -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        // Not connected: a journal that is started anew has another socket of this name.
        // Nor waited for: one that is stopped would stop every thread that logs.
        socket.set_nonblocking(true)?;
        match socket.send_to(&[], path) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        Ok(Journal(socket))
    }

    pub(super) fn send(&self, record: &Record, path: &Path) -> io::Result<Sent> {
        match self.0.send_to(&encode(record), path) {
            Ok(_) => Ok(Sent::Whole),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Sent::NoRoom),
            Err(error) => Err(error),
        }
    }
}

fn encode(record: &Record) -> Vec<u8> {
    let mut out = Vec::new();
    let metadata = record.metadata;
    put(&mut out, "MESSAGE", &record.line());
    put(&mut out, "PRIORITY", priority(metadata.level()));
    // Of which the priority has one less.
    put(&mut out, "LEVEL", metadata.level().as_str());
    put(&mut out, "SYSLOG_IDENTIFIER", "dworker");
    put(&mut out, "TARGET", metadata.target());
    if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
        put(&mut out, "CODE_FILE", file);
        put(&mut out, "CODE_LINE", &line.to_string());
    }
    for (field, value) in &record.fields {
        match value {
            Value::String(text) => put(&mut out, &name(field), text),
            value => put(&mut out, &name(field), &value.to_string()),
        }
    }
    out
}

/// syslog's numbers.
fn priority(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

/// `DWORKER_` and the field's name in the letters that the journal takes.
fn name(field: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    "DWORKER_".chars().chain(field.chars().map(plain)).take(LONGEST_NAME).collect()
}

/// A field: `NAME=value`, or the value with its length where it has more than one line.
fn put(out: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value[..value.floor_char_boundary(LONGEST_VALUE)];
    out.extend_from_slice(name.as_bytes());
    match value.contains('\n') {
        false => out.push(b'='),
        true => {
            out.push(b'\n');
            out.extend_from_slice(&(value.len() as u64).to_le_bytes());
        }
    }
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}
