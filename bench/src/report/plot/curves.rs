//! A line for each carrier while something grows, with a bar from the least to the most at each point.

use anyhow::Result;
use plotters::chart::ChartContext;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::super::{count, number};
use super::{Area, FONT, TEXT, TITLE, colour};
use crate::results::{Growth, Shape, Summary};

pub(super) const HEIGHT: u32 = 340;
/// Room for the carriers' names behind the lines.
const NAMES: u32 = 100;
/// From one name to the next below it.
const LINE: i32 = 18;

type Chart<'a, 'b, X> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, RangedCoordf64>>;

pub(super) fn draw(area: &Area<'_>, name: &str, growth: &Growth) -> Result<()> {
    let curves: Vec<_> = growth.curves().collect();
    let points = || curves.iter().flat_map(|(_, points)| points);
    let counts = || points().map(|(count, _)| *count as f64);
    let most = counts().fold(1.0, f64::max);
    let top = points().map(|(_, value)| value.most).filter(|most| most.is_finite()).fold(0.0, f64::max);
    let top = if top > 0.0 { top * 1.1 } else { 1.0 };
    let mut chart = ChartBuilder::on(area);
    chart
        .caption(format!("{name} ({})", growth.unit), (FONT, TITLE))
        .margin(12)
        .margin_right(NAMES)
        .x_label_area_size(44)
        .y_label_area_size(64);
    match growth.shape {
        // A scale even where there is but one point.
        Shape::Level => {
            let fewest = counts().fold(most, f64::min).max(1.0);
            lines(
                area,
                chart.build_cartesian_2d((fewest..most * 1.2).log_scale(), 0.0..top)?,
                growth,
                &curves,
            )
        }
        // Where each one more adds the same, that is a straight line.
        Shape::Even => lines(area, chart.build_cartesian_2d(0.0..most * 1.02, 0.0..top)?, growth, &curves),
    }
}

fn lines<X>(
    area: &Area<'_>,
    mut chart: Chart<'_, '_, X>,
    growth: &Growth,
    curves: &[(&str, Vec<(u64, Summary)>)],
) -> Result<()>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .label_style((FONT, TEXT))
        .axis_desc_style((FONT, TEXT))
        .x_labels(6)
        .x_desc(growth.along.as_str())
        .x_label_formatter(&|x| count(*x as u64))
        .y_label_formatter(&|y| number(*y))
        .draw()?;
    let mut names = Vec::new();
    for (carrier, points) in curves {
        let colour = colour(carrier);
        let at = |(count, value): &(u64, Summary)| (*count as f64, value.median);
        chart.draw_series(LineSeries::new(points.iter().map(at), colour.stroke_width(2)).point_size(3))?;
        chart.draw_series(points.iter().map(|(count, value)| {
            let Summary { least, median, most } = *value;
            ErrorBar::new_vertical(*count as f64, least, median, most, colour.stroke_width(1), 8)
        }))?;
        if let Some(last) = points.last() {
            names.push((chart.backend_coord(&at(last)), *carrier, colour));
        }
    }
    // Each beside its line's end, and none on another.
    names.sort_by_key(|((_, y), ..)| *y);
    let (left, top) = area.get_base_pixel();
    let mut free = i32::MIN;
    for ((x, y), carrier, colour) in names {
        let y = free.max(y - LINE / 2 - top);
        free = y + LINE;
        area.draw(&Text::new(
            carrier.to_owned(),
            (x - left + 10, y),
            (FONT, TEXT).into_font().color(&colour),
        ))?;
    }
    Ok(())
}
