//! Numbers as people read them.

use std::time::Duration;

use jiff::Timestamp;
use maud::{Markup, html};

/// `0 B`, `1.4 KiB`, `23 MiB`.
pub(super) fn bytes(n: u64) -> String {
    scaled(n as f64)
}

/// `0 B/s`, `1.4 KiB/s`.
pub(super) fn rate(bytes_per_second: f64) -> String {
    format!("{}/s", scaled(bytes_per_second))
}

fn scaled(n: f64) -> String {
    let mut value = n.max(0.0);
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        // Rounded it would have four digits.
        if value < 999.5 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    match value {
        v if unit == "B" || v >= 9.95 => format!("{v:.0} {unit}"),
        v => format!("{v:.1} {unit}"),
    }
}

/// A round trip: `0.4 ms`, `38 ms`.
pub(super) fn round_trip(time: Duration) -> String {
    match time.as_secs_f64() * 1e3 {
        ms if ms < 9.95 => format!("{ms:.1} ms"),
        ms => format!("{ms:.0} ms"),
    }
}

/// `4 s`, `12 min`, `3 h 5 min`, `4 days`.
pub(super) fn span(time: Duration) -> String {
    match time.as_secs() {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3_600 => format!("{} min", s / 60),
        s @ 3_600..86_400 => match s % 3_600 / 60 {
            0 => format!("{} h", s / 3_600),
            minutes => format!("{} h {minutes} min", s / 3_600),
        },
        s @ 86_400..172_800 => format!("1 day {} h", (s - 86_400) / 3_600),
        s => format!("{} days", s / 86_400),
    }
}

/// How long ago that was, in a `<time>` that has the full time, too.
pub(super) fn ago(then: Timestamp, now: Timestamp) -> Markup {
    let seconds = now.as_second() - then.as_second();
    let text = match u64::try_from(seconds).unwrap_or(0) {
        0..5 => "just now".to_owned(),
        passed => format!("{} ago", span(Duration::from_secs(passed))),
    };
    time(then, &text)
}

/// When something will be.
pub(super) fn ahead(then: Timestamp, now: Timestamp) -> Markup {
    let seconds = u64::try_from(then.as_second() - now.as_second()).unwrap_or(0);
    time(then, &format!("in {}", span(Duration::from_secs(seconds))))
}

/// A point in time, in full.
pub(super) fn at(time_: Timestamp) -> Markup {
    time(time_, &full(time_))
}

fn time(then: Timestamp, text: &str) -> Markup {
    html! { time datetime=(then.strftime("%Y-%m-%dT%H:%M:%SZ")) title=(full(then)) { (text) } }
}

fn full(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// `1 worker`, `2 workers`.
pub(super) fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_at_most_and_a_unit() {
        for (n, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 KiB"),
            (1434, "1.4 KiB"),
            (10 * 1024, "10 KiB"),
            (1023 * 1024, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(rate(-1.0), "0 B/s");
        assert_eq!(round_trip(Duration::from_micros(412)), "0.4 ms");
        assert_eq!(round_trip(Duration::from_micros(38_400)), "38 ms");
    }

    #[test]
    fn spans_name_what_matters_of_them() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (7200, "2 h"),
            (7500, "2 h 5 min"),
            (90_000, "1 day 1 h"),
            (172_800, "2 days"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
        let then: Timestamp = "2026-03-01T10:00:00Z".parse().unwrap();
        let now: Timestamp = "2026-03-01T10:03:20Z".parse().unwrap();
        let html = ago(then, now).into_string();
        assert_eq!(
            html,
            r#"<time datetime="2026-03-01T10:00:00Z" title="2026-03-01 10:00:00 UTC">3 min ago</time>"#
        );
        // A clock that was set back is no reason for nonsense.
        assert!(ago(now, then).into_string().contains(">just now<"));
        assert!(ahead(now, then).into_string().contains(">in 3 min<"));
    }
}
