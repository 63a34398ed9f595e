//! An event as a record: its message, and its fields with names and values of their own.

use std::fmt::{self, Write as _};

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::flood::{Flood, Turn};

/// One event.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) metadata: &'static Metadata<'static>,
    pub(super) message: String,
    pub(super) fields: Vec<(&'static str, Value)>,
    /// The fields as they stand behind the message in a line for people.
    shown: String,
    turn: Turn,
}

impl Record {
    fn of(event: &Event<'_>, turn: Turn) -> Record {
        let (metadata, message, shown) = (event.metadata(), String::new(), String::new());
        let mut record = Record { metadata, message, fields: Vec::new(), shown, turn };
        event.record(&mut record);
        // A string takes whatever is written.
        let _ = write!(record.shown, "{turn}");
        record
    }

    /// The line for people, fields included.
    pub(super) fn line(&self) -> String {
        format!("{}{}", self.message, self.shown)
    }

    /// As one JSON object.
    pub(super) fn json(&self, time: Timestamp) -> Value {
        let fields = self.fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let mut object = json!({
            "time": time,
            "level": self.metadata.level().as_str().to_ascii_lowercase(),
            "message": self.message,
            "target": self.metadata.target(),
            "fields": fields.collect::<Map<String, Value>>(),
        });
        match self.turn {
            Turn::First { left_out } => object["left_out_before"] = left_out.into(),
            Turn::Last => object["more_left_out"] = true.into(),
            Turn::Plain | Turn::LeftOut => {}
        }
        object
    }

    fn put(&mut self, field: &Field, value: Value, shown: fmt::Arguments<'_>) {
        let _ = match field.name() {
            "message" => write!(self.message, "{shown}"),
            name => {
                self.fields.push((name, value));
                write!(self.shown, " {name}={shown}")
            }
        };
    }
}

impl Visit for Record {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into(), format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.put(field, Value::Null, format_args!("{value}")),
            // As `tracing` shows it elsewhere: whatever is in it, it is one line.
            _ => self.put(field, value.into(), format_args!("{value:?}")),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into(), format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into(), format_args!("{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into(), format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into(), format_args!("{value}"));
    }
}

/// Writes records, and leaves out those that come too often.
pub(super) struct Records<W> {
    flood: Flood,
    write: W,
}

impl<W: Fn(&Record) + 'static> Records<W> {
    pub(super) fn new(write: W) -> Records<W> {
        Records { flood: Flood::default(), write }
    }
}

impl<S: Subscriber, W: Fn(&Record) + 'static> Layer<S> for Records<W> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        match self.flood.turn(event) {
            Turn::LeftOut => {}
            turn => (self.write)(&Record::of(event, turn)),
        }
    }
}
