//! Reads `[metrics]`.

use super::fault::wrong;
use super::reader::{Reader, Table, bare};
use super::schema::METRICS;
use super::{Metrics, values};

pub(super) fn read<'d>(r: &mut Reader<'d>, top: &Table<'d>) -> Metrics {
    const LISTEN: &str = "write where to listen, as in [\"127.0.0.1:19464\"], or [] for nowhere";
    // A document always has it.
    let table = top.get("metrics").and_then(|value| r.section(&value, &METRICS));
    let Some((table, value)) = table.and_then(|t| t.get_or_default("listen").map(|value| (t, value))) else {
        return Metrics::default();
    };
    let is_none = value.value.as_array().is_some_and(|list| list.is_empty());
    let listener = |text| values::listener(text, ["127.0.0.1:19464", "[::1]:19464"]);
    let listen = if is_none { Vec::new() } else { r.one_or_more(&value, listener, LISTEN) };
    for (place, address) in &listen {
        if !address.ip().to_canonical().is_loopback() {
            let problem = "other hosts reach it, and nobody is asked for a password";
            r.warn(place, wrong(problem, "keep that network private, or listen on 127.0.0.1"));
        }
    }
    Metrics { listen: bare(listen), asked_for: table.get("listen").is_some() }
}
