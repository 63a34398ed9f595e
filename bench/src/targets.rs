//! What is promised, as data: each row of the table in `docs/performance.md`.

use crate::results::{Better, Results, Summary};

/// A value that is judged.
pub(crate) enum Of {
    /// One carrier's median.
    Value(&'static str, &'static str),
    /// The ratio of two carriers or measures, round by round.
    Ratio((&'static str, &'static str), (&'static str, &'static str)),
}

/// What a value has to be.
pub(crate) enum Promise {
    AtLeast(f64),
    AtMost(f64),
    /// Nothing is promised; this is what is better.
    None(Better),
}

/// One promise.
pub(crate) struct Target {
    /// Its row in the table; none where nothing is promised.
    pub(crate) row: Option<u8>,
    pub(crate) what: &'static str,
    pub(crate) of: Of,
    pub(crate) promise: Promise,
}

const fn at_least(row: u8, what: &'static str, of: Of, least: f64) -> Target {
    Target { row: Some(row), what, of, promise: Promise::AtLeast(least) }
}

const fn at_most(row: u8, what: &'static str, of: Of, most: f64) -> Target {
    Target { row: Some(row), what, of, promise: Promise::AtMost(most) }
}

const fn shown(what: &'static str, of: Of, better: Better) -> Target {
    Target { row: None, what, of, promise: Promise::None(better) }
}

const fn beside(measure: &'static str, other: &'static str) -> Of {
    Of::Ratio((measure, "dworker"), (measure, other))
}

const fn value(measure: &'static str) -> Of {
    Of::Value(measure, "dworker")
}

const fn own(measure: &'static str, other: &'static str) -> Of {
    Of::Ratio((measure, "dworker"), (other, "dworker"))
}

const MIB: f64 = 1024.0 * 1024.0;

/// All promises.
pub(crate) const ALL: [Target; 31] = [
    at_least(1, "one stream up, of the bare pipe", beside("bulk up 1", "pipe"), 1.1),
    at_least(1, "one stream down, of the bare pipe", beside("bulk down 1", "pipe"), 1.1),
    at_least(2, "8 streams up, of the bare pipe", beside("bulk up 8", "pipe"), 1.1),
    at_least(2, "8 streams down, of the bare pipe", beside("bulk down 8", "pipe"), 1.1),
    at_least(3, "connections, of direct", beside("connects", "direct"), 0.5),
    at_least(4, "messages, of direct", beside("requests", "direct"), 0.4),
    at_most(4, "their p99, in those of direct", beside("requests p99", "direct"), 4.0),
    at_most(5, "ms to the first byte at 50 ms", value("first byte at 50 ms"), 55.0),
    at_least(6, "1 Gbit/s at 50 ms, of direct", beside("bulk at 1 Gbit/s, 50 ms", "direct"), 0.95),
    at_least(
        7,
        "8 streams at 1 % loss, 4 lanes, of direct",
        beside("bulk 8 at 1 % loss, 20 ms", "direct"),
        0.8,
    ),
    at_most(
        8,
        "p99 beside bulk, in those without",
        own("requests beside bulk p99", "requests alone p99"),
        3.0,
    ),
    at_least(9, "others beside stalled streams", value("others beside stalled"), 0.95),
    at_most(
        9,
        "bytes held for a stalled stream, in its credit",
        own("held of a stalled stream", "credit of a stalled stream"),
        1.0,
    ),
    at_most(
        9,
        "its memory at both ends, in its credit",
        own("memory of a stalled stream", "credit of a stalled stream"),
        1.0,
    ),
    at_most(10, "bytes of an idle stream, appliance", value("memory of an idle stream, appliance"), 4096.0),
    at_most(10, "bytes of an idle stream, worker", value("memory of an idle stream, worker"), 4096.0),
    at_most(11, "ns in the hook, not steered", value("connect hook, not steered"), 300.0),
    at_least(
        11,
        "direct bytes inside the cgroup, of outside",
        Of::Ratio(("direct bulk", "inside"), ("direct bulk", "outside")),
        0.98,
    ),
    at_most(12, "ns in all hooks, steered", value("hooks together, steered"), 2000.0),
    at_least(
        12,
        "connections, of nftables REDIRECT",
        Of::Ratio(("steered connects", "programs"), ("steered connects", "redirect")),
        1.0,
    ),
    at_least(13, "relayed up, of one hop", Of::Ratio(("relay up", "relay"), ("relay up", "dworker")), 0.6),
    at_least(
        13,
        "relayed down, of one hop",
        Of::Ratio(("relay down", "relay"), ("relay down", "dworker")),
        0.6,
    ),
    at_most(14, "CPU up 1, in the bare pipe's", beside("cpu up 1", "pipe"), 1.15),
    at_most(14, "CPU down 1, in the bare pipe's", beside("cpu down 1", "pipe"), 1.15),
    at_most(14, "CPU up 8, in the bare pipe's", beside("cpu up 8", "pipe"), 1.15),
    at_most(14, "CPU down 8, in the bare pipe's", beside("cpu down 8", "pipe"), 1.15),
    at_most(15, "bytes of an idle appliance", value("memory of the idle appliance"), 25.0 * MIB),
    at_most(15, "bytes of an idle worker", value("memory of the idle worker"), 25.0 * MIB),
    at_most(15, "ms from start to the first byte", value("start to first byte"), 300.0),
    shown(
        "8 streams at 1 % loss, default lanes, of direct",
        beside("bulk 8 at 1 % loss, 20 ms, default lanes", "direct"),
        Better::More,
    ),
    shown("connections, of redsocks and SOCKS", beside("steered connects", "redsocks"), Better::More),
];

impl Target {
    /// The value and its spread, where it was measured, and whether the promise is kept.
    pub(crate) fn judge(&self, results: &Results) -> Option<(Summary, Option<bool>)> {
        let summary = match self.of {
            Of::Value(measure, carrier) => Summary::of(results.samples(measure, carrier)?)?,
            Of::Ratio(of, to) => results.ratio(of, to)?,
        };
        let kept = match self.promise {
            Promise::AtLeast(least) => Some(summary.median >= least),
            Promise::AtMost(most) => Some(summary.median <= most),
            Promise::None(_) => None,
        };
        Some((summary, kept))
    }

    /// Which values are good.
    pub(crate) fn better(&self) -> Better {
        match self.promise {
            Promise::AtLeast(_) => Better::More,
            Promise::AtMost(_) => Better::Less,
            Promise::None(better) => better,
        }
    }
}
