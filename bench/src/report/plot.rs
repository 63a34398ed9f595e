//! Plots: an SVG for each topic, with a panel for each measure of it.

mod bars;
mod curves;

use std::collections::BTreeMap;

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::results::{Growth, Measure, Results};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Panels side by side.
const COLUMNS: usize = 2;
const WIDTH: u32 = 560;
const FONT: &str = "sans-serif";
/// Height of the text in a panel, and of what it is called.
const TEXT: i32 = 17;
const TITLE: i32 = 20;

/// What a panel shows.
enum Panel<'a> {
    Bars(&'a str, &'a Measure),
    Curves(&'a str, &'a Growth),
}

impl Panel<'_> {
    fn height(&self) -> u32 {
        match self {
            Panel::Bars(_, measure) => bars::height(measure.samples.len()),
            Panel::Curves(..) => curves::HEIGHT,
        }
    }

    fn draw(&self, area: &Area<'_>) -> Result<()> {
        match self {
            Panel::Bars(name, measure) => bars::draw(area, name, measure),
            Panel::Curves(name, growth) => curves::draw(area, name, growth),
        }
    }
}

/// The plot of each topic of which there is something, as SVG.
pub(super) fn plots(results: &Results) -> Result<BTreeMap<&str, String>> {
    let mut topics: BTreeMap<&str, Vec<Panel<'_>>> = BTreeMap::new();
    for (name, measure) in &results.measures {
        topics.entry(&measure.topic).or_default().push(Panel::Bars(name, measure));
    }
    for (name, growth) in &results.growth {
        topics.entry(&growth.topic).or_default().push(Panel::Curves(name, growth));
    }
    topics.into_iter().map(|(topic, panels)| Ok((topic, plot(&panels)?))).collect()
}

fn plot(panels: &[Panel<'_>]) -> Result<String> {
    let columns = COLUMNS.min(panels.len());
    let rows = panels.len().div_ceil(columns);
    let height = panels.iter().map(Panel::height).max().unwrap_or_default();
    let mut svg = String::new();
    let size = (columns as u32 * WIDTH, rows as u32 * height);
    let whole = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    whole.fill(&WHITE)?;
    for (panel, area) in panels.iter().zip(whole.split_evenly((rows, columns))) {
        panel.draw(&area)?;
    }
    whole.present()?;
    drop(whole);
    Ok(svg)
}

/// The same colour for the same carrier in each plot.
fn colour(carrier: &str) -> RGBColor {
    const KNOWN: [(&str, RGBColor); 11] = [
        ("direct", RGBColor(0x77, 0x77, 0x77)),
        ("pipe", RGBColor(0xe6, 0x9f, 0x00)),
        ("dworker", RGBColor(0x00, 0x5f, 0xb8)),
        ("nginx", RGBColor(0x00, 0x9e, 0x73)),
        ("stunnel", RGBColor(0xcc, 0x79, 0xa7)),
        ("ssh", RGBColor(0xd5, 0x5e, 0x00)),
        ("programs", RGBColor(0x33, 0x88, 0x99)),
        ("redirect", RGBColor(0xaa, 0x99, 0x33)),
        ("redsocks", RGBColor(0x88, 0x22, 0x55)),
        ("appliance", RGBColor(0x00, 0x5f, 0xb8)),
        ("worker", RGBColor(0xd5, 0x5e, 0x00)),
    ];
    let known = KNOWN.iter().find(|(name, _)| *name == carrier);
    known.map_or(RGBColor(0x88, 0x66, 0x55), |(_, colour)| *colour)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Better, Curve, Shape};

    /// The texts of an SVG, in their order; it must be XML whose elements are closed in the order that they need.
    fn texts(svg: &str) -> Vec<String> {
        let mut open = Vec::new();
        let mut texts = Vec::new();
        let mut rest = svg;
        while let Some((text, behind)) = rest.split_once('<') {
            assert!(!text.contains('>'), "{text}");
            if open.last() == Some(&"text") && !text.trim().is_empty() {
                texts.push(text.trim().to_owned());
            }
            let (tag, behind) = behind.split_once('>').expect("a tag ends");
            rest = behind;
            let name = |tag: &'static str| tag.split_whitespace().next().expect("a tag has a name");
            let tag: &'static str = tag.to_owned().leak();
            if let Some(closed) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name(closed)));
            } else if !tag.ends_with('/') && !tag.starts_with(['?', '!']) {
                open.push(name(tag));
            }
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
        texts
    }

    fn some_results() -> Results {
        let mut results = Results::default();
        results.begin("bulk");
        for (carrier, values) in [("dworker", [2e9, 1e9, 3e9]), ("a<b>&\"peer\"", [1e9, 1.5e9, 2e9])] {
            for value in values {
                results.add("bulk up 1", "B/s", Better::More, carrier, value);
            }
        }
        results.begin("streams");
        let curve =
            Curve { name: "rate", unit: "1/s", better: Better::More, along: "streams", shape: Shape::Level };
        for (count, value) in [(1, 9000.0), (10, 40_000.0), (10_000, 20_000.0)] {
            results.grow(&curve, "direct", count, value);
            results.grow(&curve, "dworker", count, value / 2.0);
        }
        results
    }

    #[test]
    fn each_topic_has_a_plot_that_names_its_measures_and_carriers() {
        let results = some_results();
        let plots = plots(&results).unwrap();
        assert_eq!(plots.keys().copied().collect::<Vec<_>>(), ["bulk", "streams"]);
        assert!(plots.values().all(|svg| svg.starts_with("<svg ")), "{plots:?}");
        let [bulk, streams] = ["bulk", "streams"].map(|topic| texts(&plots[topic]));
        for wanted in ["bulk up 1 (B/s)", "dworker", "a&lt;b&gt;&amp;&quot;peer&quot;", "2.00 G ±50 %"] {
            assert!(bulk.iter().any(|text| text == wanted), "{wanted}: {bulk:?}");
        }
        for wanted in ["rate (1/s)", "streams", "direct", "dworker", "10,000"] {
            assert!(streams.iter().any(|text| text == wanted), "{wanted}: {streams:?}");
        }
    }

    /// A run that is broken off early, or a measure that came to nothing, has a plot, too.
    #[test]
    fn odd_values_are_drawn() {
        let mut results = Results::default();
        results.begin("odd");
        for value in [f64::NAN, 0.0, -5.0, f64::INFINITY] {
            results.add(&format!("{value}"), "B", Better::Less, "dworker", value);
        }
        let curve =
            Curve { name: "one", unit: "B", better: Better::Less, along: "workers", shape: Shape::Even };
        results.grow(&curve, "appliance", 1, 0.0);
        let plots = plots(&results).unwrap();
        assert!(texts(&plots["odd"]).iter().any(|text| text == "one (B)"));
    }
}
