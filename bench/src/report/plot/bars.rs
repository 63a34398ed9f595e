//! A bar for each carrier: the median, with a line from the least to the most.

use anyhow::Result;
use plotters::prelude::*;

use super::super::measured;
use super::{Area, FONT, TEXT, TITLE, WIDTH, colour};
use crate::results::{Measure, Summary};

const EDGE: i32 = 12;
const TOP: i32 = 40;
const ROW: i32 = 26;
const BAR: i32 = 16;
/// Where bars begin, and room for the number behind the longest.
const LEFT: i32 = 110;
const RIGHT: i32 = 130;

pub(super) fn height(carriers: usize) -> u32 {
    (TOP + ROW * carriers as i32 + EDGE) as u32
}

pub(super) fn draw(area: &Area<'_>, name: &str, measure: &Measure) -> Result<()> {
    let title = format!("{name} ({})", measure.unit);
    area.draw(&Text::new(title, (EDGE, EDGE), (FONT, TITLE)))?;
    let rows: Vec<(&str, Summary)> = measure
        .samples
        .iter()
        .filter_map(|(carrier, samples)| Some((carrier.as_str(), Summary::of(samples)?)))
        .filter(|(_, summary)| summary.least.is_finite() && summary.most.is_finite())
        .collect();
    let most = rows.iter().map(|(_, summary)| summary.most).fold(f64::MIN_POSITIVE, f64::max);
    let wide = f64::from(WIDTH as i32 - LEFT - RIGHT);
    let at = |value: f64| LEFT + (value / most * wide).clamp(0.0, wide) as i32;
    for (row, (carrier, summary)) in (0..).zip(&rows) {
        let top = TOP + row * ROW;
        let middle = top + BAR / 2;
        // The font's lines begin above its letters.
        let text = top + 3;
        area.draw(&Text::new((*carrier).to_owned(), (EDGE, text), (FONT, TEXT)))?;
        let bar = [(LEFT, top), (at(summary.median), top + BAR)];
        area.draw(&Rectangle::new(bar, colour(carrier).mix(0.75).filled()))?;
        let (least, most) = (at(summary.least), at(summary.most));
        for line in [
            [(least, middle), (most, middle)],
            [(least, top + 4), (least, top + BAR - 4)],
            [(most, top + 4), (most, top + BAR - 4)],
        ] {
            area.draw(&PathElement::new(line, BLACK.stroke_width(1)))?;
        }
        area.draw(&Text::new(measured(summary), (most.max(LEFT) + 6, text), (FONT, TEXT)))?;
    }
    if rows.is_empty() {
        area.draw(&Text::new("no number", (EDGE, TOP), (FONT, TEXT)))?;
    }
    Ok(())
}
