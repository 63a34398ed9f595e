//! What is printed and kept of a run.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::results::{Results, Summary};
use crate::targets::{self, Promise};

/// Prints the tables, writes `results.json` into `out`.
pub(crate) fn report(results: &Results, out: &Path, _before: &Path) -> Result<()> {
    for (name, measure) in &results.measures {
        println!("\n{name} ({})", measure.unit);
        for (carrier, samples) in &measure.samples {
            if let Some(summary) = Summary::of(samples) {
                println!(
                    "  {carrier:<10} {:>14}  ±{:.0} %",
                    number(summary.median),
                    summary.spread() * 100.0
                );
            }
        }
    }
    println!();
    for target in &targets::ALL {
        let Some((summary, kept)) = target.judge(results) else { continue };
        let (sign, bound) = match target.promise {
            Promise::AtLeast(least) => ("≥", least),
            Promise::AtMost(most) => ("≤", most),
        };
        println!(
            "{:>2}  {:<44} {:>10} (±{:.0} %)  {sign} {:<10} {}",
            target.row,
            target.what,
            number(summary.median),
            summary.spread() * 100.0,
            number(bound),
            if kept { "kept" } else { "MISSED" }
        );
    }
    fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    let file = out.join("results.json");
    fs::write(&file, serde_json::to_string_pretty(results)?)
        .with_context(|| format!("writing {}", file.display()))?;
    println!("\nwritten to {}", file.display());
    Ok(())
}

fn number(value: f64) -> String {
    match value.abs() {
        0.0..10.0 => format!("{value:.3}"),
        10.0..1000.0 => format!("{value:.1}"),
        1000.0..1e6 => format!("{value:.0}"),
        1e6..1e9 => format!("{:.1} M", value / 1e6),
        _ => format!("{:.2} G", value / 1e9),
    }
}
