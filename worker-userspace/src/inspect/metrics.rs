//! What Prometheus reads: which metrics there are, and their text.
//!
//! What must hold: a metric has one name, kind, meaning and set of labels, and they stand here alone; the values of labels are
//! words of ours and the names of workers, never a target's name or address, so that their number is bounded by what an
//! administrator has made. `docs/metrics.md` has the same list, and a test keeps it so.

use std::fmt::{self, Display, Write as _};

use super::ledger::Dials;

/// The path of the metrics.
pub const PATH: &str = "/metrics";
/// What the text is: Prometheus' own format, which every version of it takes.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One metric.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What its samples are told apart by.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only rises, until the process or the program in the kernel is another.
    Counter,
    /// It rises and falls.
    Gauge,
    /// Counts by size.
    Histogram,
}

impl Kind {
    /// Prometheus' word for it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// The metrics, in the order in which they are exposed.
macro_rules! metrics {
    ($($constant:ident: $kind:ident = $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(
            #[doc = $help]
            pub const $constant: Metric =
                Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };
        )+

        /// All of them.
        pub const ALL: &[&Metric] = &[$(&$constant),+];
    };
}

metrics! {
    BUILD_INFO: Gauge = "dworker_build_info" ["version"]
        "Always 1; the label is the version of the software.";
    CONNECTIONS_OPEN: Gauge = "dworker_connections_open" ["entry"]
        "Connections that are open or being made, by how they came in.";
    CONNECTIONS_TOTAL: Counter = "dworker_connections_total" ["entry"]
        "Connections that came in.";
    CONNECTION_OPENS: Counter = "dworker_connection_opens_total" ["entry", "result"]
        "Connections whose target was dialled (result opened), or why that came to nothing.";
    CONNECTION_ENDS: Counter = "dworker_connection_ends_total" ["entry", "result"]
        "Ends of connections whose target had been dialled: in order (result closed), or what cut them.";
    CONNECTION_BYTES: Counter = "dworker_connection_bytes_total" ["entry", "direction"]
        "Bytes of connections, from the opener to the target (direction up) and back (down).";
    CONNECTION_RETRIES: Counter = "dworker_connection_retries_total" ["entry"]
        "Carriers that were lost before the target was dialled, so that another one was asked.";
    DIAL_SECONDS: Histogram = "dworker_dial_seconds" []
        "How long workers took to resolve and dial targets, for dials that succeeded.";
    TUNNEL_UP: Gauge = "dworker_tunnel_up" ["side", "worker"]
        "1 where new connections can be carried: by a worker (side appliance), or to the appliance (side worker).";
    TUNNEL_NODES: Gauge = "dworker_tunnel_nodes" ["worker", "role"]
        "Nodes of a worker that are connected to this appliance, by what they do.";
    TUNNEL_SESSIONS: Gauge = "dworker_tunnel_sessions" ["side", "worker", "role"]
        "Sessions, by what their node does; a node that came again has another one for a while.";
    TUNNEL_LANES: Gauge = "dworker_tunnel_lanes" ["side", "worker"]
        "Websockets that are up.";
    TUNNEL_STREAMS_OPEN: Gauge = "dworker_tunnel_streams_open" ["side", "worker"]
        "Streams that are open.";
    TUNNEL_STREAMS: Counter = "dworker_tunnel_streams_total" ["side", "worker"]
        "Streams that were opened, by either end.";
    TUNNEL_BYTES: Counter = "dworker_tunnel_bytes_total" ["side", "worker", "direction"]
        "Payload bytes that this end has sent and received.";
    TUNNEL_STALLS: Counter = "dworker_tunnel_credit_stalls_total" ["side", "worker"]
        "Times that a sender at this end had to wait for credit.";
    TUNNEL_RTT: Gauge = "dworker_tunnel_rtt_seconds" ["side", "worker", "role"]
        "Smoothed round trip of the slowest lane, by what its node does.";
    KEYS_REFUSED: Counter = "dworker_keys_refused_total" []
        "Workers that came with a key that does not work, or with none.";
    CERTIFICATE_EXPIRY: Gauge = "dworker_certificate_expiry_timestamp_seconds" ["source"]
        "When the first certificate of a source ends, in seconds since 1970.";
    STEERING_ENABLED: Gauge = "dworker_steering_enabled" []
        "1 while connections are captured; 0 after `dworker steer off`.";
    STEERING_RULES: Gauge = "dworker_steering_rules" []
        "Proxy hosts that are captured.";
    STEERING_NAMES: Gauge = "dworker_steering_names" []
        "Names that have synthetic addresses.";
    STEERING_CGROUPS_MISSING: Gauge = "dworker_steering_cgroups_missing" []
        "Cgroups that are to be captured and are not there.";
    STEERING_LINKS: Gauge = "dworker_steering_links" ["state"]
        "Attachments of programs to cgroups: state dead where the cgroup is gone.";
    STEERING_VERDICTS: Counter = "dworker_steering_verdicts_total" ["verdict"]
        "What the programs in the kernel decided, in the words of `status`.";
    STEERING_MPTCP: Counter = "dworker_steering_mptcp_total" []
        "Steered connections of Multipath TCP sockets; among the verdicts, too.";
    STEERING_EVENTS_LOST: Counter = "dworker_steering_events_lost_total" []
        "Refusals that the kernel could not tell of, because its ring buffer was full.";
    PROGRAM_RUNS: Counter = "dworker_steering_program_runs_total" ["program"]
        "Runs of a program in the kernel, while `kernel.bpf_stats_enabled` is 1.";
    PROGRAM_SECONDS: Counter = "dworker_steering_program_run_seconds_total" ["program"]
        "Time spent in a program in the kernel, while `kernel.bpf_stats_enabled` is 1.";
    DNS_QUERIES: Counter = "dworker_dns_queries_total" []
        "Queries that captured processes asked.";
    DNS_OUTCOMES: Counter = "dworker_dns_outcomes_total" ["outcome"]
        "What became of queries, in the words of `status`; a forwarded one may fail or be stripped, too.";
    LOG_LEFT_OUT: Counter = "dworker_log_lines_left_out_total" []
        "Lines that were not logged because too many warnings of one kind came, or nobody took them.";
    PROCESS_CPU: Counter = "process_cpu_seconds_total" []
        "Time of processors that this process has used.";
    PROCESS_OPEN_FDS: Gauge = "process_open_fds" []
        "Descriptors that are open.";
    PROCESS_MAX_FDS: Gauge = "process_max_fds" []
        "Descriptors that may be open.";
    PROCESS_RESIDENT: Gauge = "process_resident_memory_bytes" []
        "Memory that is resident.";
    PROCESS_VIRTUAL: Gauge = "process_virtual_memory_bytes" []
        "Address space that is mapped.";
    PROCESS_START: Gauge = "process_start_time_seconds" []
        "When this process started, in seconds since 1970.";
}

/// The text of metrics.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// Adds a metric with its samples, each with the values of the labels in their order. A label without a value is
    /// left out, and so is a metric without samples.
    pub fn put<const N: usize, V: Display>(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = ([&'static str; N], V)>,
    ) {
        self.put_named(metric, samples);
    }

    /// As [`put`](Self::put), with values of labels that are not ours.
    pub fn put_named<'v, const N: usize, V: Display>(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = ([&'v str; N], V)>,
    ) {
        debug_assert_eq!(N, metric.labels.len(), "{}", metric.name);
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_some() {
            self.head(metric);
        }
        for (values, value) in samples {
            let labels = metric.labels.iter().copied().zip(values);
            self.sample(format_args!("{}", metric.name), labels, &value);
        }
    }

    /// Adds a metric that is one number.
    pub fn put_one(&mut self, metric: &Metric, value: impl Display) {
        self.put(metric, [([], value)]);
    }

    /// Adds how long dials took.
    pub fn put_dials(&mut self, metric: &Metric, dials: &Dials) {
        self.head(metric);
        let name = metric.name;
        for (bound, count) in dials.cumulative() {
            self.sample(format_args!("{name}_bucket"), [("le", bound.to_string().as_str())], &count);
        }
        self.sample(format_args!("{name}_bucket"), [("le", "+Inf")], &dials.total());
        self.sample(format_args!("{name}_sum"), [], &dials.sum().as_secs_f64());
        self.sample(format_args!("{name}_count"), [], &dials.total());
    }

    fn head(&mut self, metric: &Metric) {
        let Metric { name, kind, help, .. } = metric;
        // A string takes whatever is written; so everywhere here.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {}", kind.word());
    }

    fn sample<'v>(
        &mut self,
        name: fmt::Arguments<'_>,
        labels: impl IntoIterator<Item = (&'v str, &'v str)>,
        value: &dyn Display,
    ) {
        let _ = write!(self.0, "{name}");
        let mut opened = false;
        for (label, text) in labels.into_iter().filter(|(_, text)| !text.is_empty()) {
            let _ = write!(self.0, "{}{label}=\"", if opened { ',' } else { '{' });
            opened = true;
            for c in text.chars() {
                match c {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    c => self.0.push(c),
                }
            }
            self.0.push('"');
        }
        if opened {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// The text.
    pub fn text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::ledger::{Entry, Ledger, Origin};
    use crate::target::Target;
    use crate::tunnel::message::OpenOk;
    use std::collections::HashSet;
    use std::time::Duration;

    #[test]
    fn names_are_as_prometheus_wants_them() {
        let mut names = HashSet::new();
        for metric in ALL {
            assert!(names.insert(metric.name), "{} stands twice", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.name.starts_with("dworker_") || metric.name.starts_with("process_"));
            let plain = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            assert!(plain(metric.name) && metric.labels.iter().all(|label| plain(label)), "{metric:?}");
            assert!(!metric.help.contains(['\\', '\n', '|']), "{}", metric.name);
        }
    }

    #[test]
    fn the_document_has_each_metric_and_no_other() {
        let document = include_str!("../../../docs/metrics.md");
        let row = |metric: &&Metric| {
            let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let Metric { name, kind, help, .. } = metric;
            format!("| `{name}` | {} | {} | {help} |", kind.word(), labels.join(", "))
        };
        let wanted: Vec<String> = ALL.iter().map(row).collect();
        let is_row = |line: &&str| line.starts_with("| `dworker_") || line.starts_with("| `process_");
        let found: Vec<&str> = document.lines().filter(is_row).collect();
        assert_eq!(found, wanted, "docs/metrics.md must have:\n{}\n", wanted.join("\n"));
    }

    #[test]
    fn labels_are_escaped_and_empty_ones_and_empty_metrics_left_out() {
        let mut text = Exposition::default();
        text.put_named(&TUNNEL_LANES, [(["appliance", "a\\b\"c\nd"], 2), (["worker", ""], 1)]);
        text.put(&STEERING_LINKS, std::iter::empty::<([&str; 1], u64)>());
        text.put_one(&PROCESS_CPU, 0.25);
        let expected = "\
# HELP dworker_tunnel_lanes Websockets that are up.
# TYPE dworker_tunnel_lanes gauge
dworker_tunnel_lanes{side=\"appliance\",worker=\"a\\\\b\\\"c\\nd\"} 2
dworker_tunnel_lanes{side=\"worker\"} 1
# HELP process_cpu_seconds_total Time of processors that this process has used.
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 0.25
";
        assert_eq!(text.text(), expected);
    }

    #[test]
    fn dials_are_a_histogram() {
        let ledger = Ledger::default();
        let target = || Target { host: "vc.example".parse().unwrap(), port: 443 };
        for millis in [1, 2, 400, 60_000] {
            let flow = ledger.open(Entry::Egress, 1, target(), Origin::default());
            let address = "192.0.2.1:443".parse().unwrap();
            flow.dialled(OpenOk { address, dial: Duration::from_millis(millis), proxied: false });
        }
        let mut text = Exposition::default();
        text.put_dials(&DIAL_SECONDS, &ledger.census().dials);
        let text = text.text();
        for line in [
            "dworker_dial_seconds_bucket{le=\"0.001\"} 1\n",
            "dworker_dial_seconds_bucket{le=\"0.0025\"} 2\n",
            "dworker_dial_seconds_bucket{le=\"0.25\"} 2\n",
            "dworker_dial_seconds_bucket{le=\"0.5\"} 3\n",
            "dworker_dial_seconds_bucket{le=\"30\"} 3\n",
            "dworker_dial_seconds_bucket{le=\"+Inf\"} 4\n",
            "dworker_dial_seconds_sum 60.403\ndworker_dial_seconds_count 4\n",
        ] {
            assert!(text.contains(line), "no {line} in {text}");
        }
    }
}
