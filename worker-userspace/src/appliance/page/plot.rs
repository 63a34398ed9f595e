//! Plots as SVG: shapes are attributes and colours are the style sheet's, as the content policy wants it.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::words;

/// What a plot shows: bytes per second, the oldest first, at equal distances.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Throughput {
    /// Towards the targets.
    pub(super) up: Vec<f64>,
    /// From the targets.
    pub(super) down: Vec<f64>,
}

impl Throughput {
    /// The newest rates, towards the targets and from them.
    pub(super) fn now(&self) -> (f64, f64) {
        (self.up.last().copied().unwrap_or(0.0), self.down.last().copied().unwrap_or(0.0))
    }

    fn sums(&self) -> Vec<f64> {
        self.up.iter().zip(&self.down).map(|(up, down)| up + down).collect()
    }
}

/// Rates below this are drawn as if it were the highest: noise shall not look like load.
const FLOOR: f64 = 1024.0;

fn highest(series: &[&[f64]]) -> f64 {
    series.iter().flat_map(|points| points.iter()).copied().fold(FLOOR, f64::max)
}

/// The points of a series as path commands, in a box of `width` and `height`; the newest stands at the right edge.
fn line(points: &[f64], slots: usize, width: f64, height: f64, top: f64) -> String {
    let step = width / (slots.max(2) - 1) as f64;
    let first = slots.saturating_sub(points.len());
    let mut path = String::new();
    for (at, value) in points.iter().enumerate() {
        let x = (first + at) as f64 * step;
        let y = height - (value / top).clamp(0.0, 1.0) * height;
        let _ = write!(path, "{}{x:.1} {y:.1}", if at == 0 { "M" } else { "L" });
    }
    path
}

fn area(line: &str, points: usize, slots: usize, width: f64, height: f64) -> String {
    let left = slots.saturating_sub(points) as f64 * width / (slots.max(2) - 1) as f64;
    format!("{line}L{width:.1} {height:.1}L{left:.1} {height:.1}Z")
}

/// A small one for a row: the sum of both directions over the last `slots` samples.
pub(super) fn spark(throughput: &Throughput, slots: usize) -> Markup {
    const WIDTH: f64 = 120.0;
    const HEIGHT: f64 = 26.0;
    let sums = throughput.sums();
    let sums = &sums[sums.len().saturating_sub(slots)..];
    let top = highest(&[sums]);
    let path = line(sums, slots, WIDTH, HEIGHT, top);
    let peak = sums.iter().copied().fold(0.0, f64::max);
    let now = sums.last().copied().unwrap_or(0.0);
    let label = format!("Throughput: {} now, {} at most", words::rate(now), words::rate(peak));
    html! {
        svg.spark viewBox="0 -1 120 28" preserveAspectRatio="none" role="img" aria-label=(label) {
            line.base x1="0" y1="26" x2="120" y2="26" {}
            @if sums.len() > 1 {
                path.area d=(area(&path, sums.len(), slots, WIDTH, HEIGHT)) {}
                path.line d=(path) {}
            }
        }
    }
}

/// The next number above `n` that reads well: 1, 2 or 5 times a power of ten, in binary units.
fn round_up(n: f64) -> f64 {
    let mut unit = 1.0;
    while n / unit >= 1024.0 {
        unit *= 1024.0;
    }
    const STEPS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1024.0];
    STEPS.into_iter().map(|step| step * unit).find(|step| *step >= n).unwrap_or(1024.0 * unit)
}

/// A large one with a scale; `span` says how far back it goes.
pub(super) fn chart(throughput: &Throughput, slots: usize, span: &str) -> Markup {
    const WIDTH: f64 = 600.0;
    const HEIGHT: f64 = 150.0;
    let keep = |points: &[f64]| points[points.len().saturating_sub(slots)..].to_vec();
    let (up, down) = (keep(&throughput.up), keep(&throughput.down));
    let top = round_up(highest(&[&up, &down]));
    let (path_up, path_down) = (line(&up, slots, WIDTH, HEIGHT, top), line(&down, slots, WIDTH, HEIGHT, top));
    let (now_up, now_down) = throughput.now();
    let label = format!(
        "Throughput of the last {span}: {} sent, {} received, the scale ends at {}",
        words::rate(now_up),
        words::rate(now_down),
        words::rate(top)
    );
    html! {
        div.plotted {
            svg.plot viewBox="0 -1 600 152" preserveAspectRatio="none" role="img" aria-label=(label) {
                @for y in ["0", "75", "150"] { line.grid x1="0" y1=(y) x2="600" y2=(y) {} }
                @if down.len() > 1 {
                    path.area d=(area(&path_down, down.len(), slots, WIDTH, HEIGHT)) {}
                    path.line d=(path_down) {}
                    path.line.up d=(path_up) {}
                }
            }
            div.scale aria-hidden="true" {
                span { (words::rate(top)) } span { (words::rate(top / 2.0)) } span { "0" }
            }
            div.span aria-hidden="true" { span { (span) " ago" } span { "now" } }
        }
    }
}

/// What the lines of [`chart`] are, with the newest numbers.
pub(super) fn keys(throughput: &Throughput) -> Markup {
    let (up, down) = throughput.now();
    let key = |name: &str, value: f64, dashed: bool| {
        html! {
            span.key {
                svg.plot viewBox="0 0 22 8" aria-hidden="true" {
                    line.line.up[dashed] x1="1" y1="4" x2="21" y2="4" {}
                }
                (name) " " strong { (words::rate(value)) }
            }
        }
    };
    html! { div.keys { (key("received", down, false)) (key("sent", up, true)) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_at_the_right_edge_and_stays_in_its_box() {
        assert_eq!(line(&[0.0, 512.0, 1024.0], 3, 100.0, 20.0, 1024.0), "M0.0 20.0L50.0 10.0L100.0 0.0");
        // Fewer samples than slots: what came before is left blank.
        assert_eq!(line(&[0.0, 2048.0], 3, 100.0, 20.0, 1024.0), "M50.0 20.0L100.0 0.0");
        let shape = area("M50.0 20.0L100.0 0.0", 2, 3, 100.0, 20.0);
        assert_eq!(shape, "M50.0 20.0L100.0 0.0L100.0 20.0L50.0 20.0Z");
    }

    #[test]
    fn plots_say_in_words_what_they_show() {
        let throughput = Throughput { up: vec![0.0, 1024.0], down: vec![4096.0, 2048.0] };
        let spark = spark(&throughput, 60).into_string();
        assert!(spark.contains("Throughput: 3.0 KiB/s now, 4.0 KiB/s at most"), "{spark}");
        let chart = chart(&throughput, 150, "5 min").into_string();
        assert!(chart.contains("1.0 KiB/s sent, 2.0 KiB/s received, the scale ends at 5.0 KiB/s"), "{chart}");
        for html in [spark, chart, super::spark(&Throughput::default(), 60).into_string()] {
            assert!(!html.contains("style=") && !html.contains("NaN") && !html.contains("inf"), "{html}");
        }
    }

    #[test]
    fn scales_end_at_round_numbers() {
        for (n, top) in
            [(1024.0, 1024.0), (1025.0, 2048.0), (30.0 * 1024.0, 50.0 * 1024.0), (600.0 * 1024.0, 1048576.0)]
        {
            assert_eq!(round_up(n), top, "{n}");
        }
    }
}
