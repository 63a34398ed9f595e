//! What is printed and kept of a run.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::results::{Results, Summary};
use crate::targets::{self, Promise};

/// Prints the tables, says what has moved since the run `before`, and writes `results.json` into `out`.
pub(crate) fn report(results: &Results, out: &Path, before: &Path) -> Result<()> {
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
    if before.exists() {
        let text = fs::read_to_string(before).with_context(|| format!("reading {}", before.display()))?;
        let earlier = serde_json::from_str(&text).with_context(|| format!("reading {}", before.display()))?;
        println!("\nmoved since {}:", before.display());
        moved(results, &earlier).iter().for_each(|line| println!("  {line}"));
    }
    fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    let file = out.join("results.json");
    fs::write(&file, serde_json::to_string_pretty(results)?)
        .with_context(|| format!("writing {}", file.display()))?;
    println!("\nwritten to {}", file.display());
    Ok(())
}

/// What is promised and differs from an earlier run by more than either run does from itself.
fn moved(results: &Results, earlier: &Results) -> Vec<String> {
    let mut lines = Vec::new();
    for target in &targets::ALL {
        let both = target.judge(results).zip(target.judge(earlier));
        let Some(((now, _), (then, _))) = both.filter(|((now, _), (then, _))| now.is_apart(then)) else {
            continue;
        };
        let better = match target.promise {
            Promise::AtLeast(_) => now.median > then.median,
            Promise::AtMost(_) => now.median < then.median,
        };
        let word = if better { "better" } else { "WORSE" };
        lines.push(format!("{word}: {}: {}, was {}", target.what, number(now.median), number(then.median)));
    }
    lines
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Better;

    #[test]
    fn only_what_differs_by_more_than_its_spread_has_moved() {
        let run = |ours: [f64; 3]| {
            let mut results = Results::default();
            for value in ours {
                results.add("bulk up 1", "B/s", Better::More, "dworker", value);
                results.add("bulk up 1", "B/s", Better::More, "pipe", 1.0);
            }
            results
        };
        let before = run([0.9, 1.0, 1.1]);
        assert_eq!(moved(&run([0.95, 1.05, 1.15]), &before), [""; 0]);
        assert_eq!(
            moved(&run([1.3, 1.4, 1.5]), &before),
            ["better: one stream up, of the bare pipe: 1.400, was 1.000"]
        );
        assert_eq!(
            moved(&run([0.5, 0.6, 0.7]), &before),
            ["WORSE: one stream up, of the bare pipe: 0.600, was 1.000"]
        );
        assert_eq!(moved(&Results::default(), &before), [""; 0]);
    }
}
