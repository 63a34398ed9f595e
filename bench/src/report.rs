//! What is printed and kept of a run.

mod beside;
mod plot;
mod table;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::results::{Better, Growth, Results, Summary};
use crate::targets;

/// Prints the tables, says what has moved since the run `before`, and writes `results.json` and a plot of each topic
/// into `out`.
pub(crate) fn report(results: &Results, out: &Path, before: &Path) -> Result<()> {
    println!("{}", results.run);
    for (name, measure) in &results.measures {
        println!("\n{name} ({})", measure.unit);
        for (carrier, samples) in &measure.samples {
            if let Some(summary) = Summary::of(samples) {
                println!("  {carrier:<10} {:>20}", measured(&summary));
            }
        }
    }
    for (name, growth) in &results.growth {
        knees(growth).iter().for_each(|line| println!("\nKNEE: {name}: {line}"));
    }
    tables(results);
    if before.exists() {
        let earlier = kept(before)?;
        println!("\nmoved since {} ({}):", before.display(), earlier.run);
        moved(results, &earlier).iter().for_each(|line| println!("  {line}"));
    }
    fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    let write = |name: &str, text: &str| {
        let file = out.join(name);
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
    };
    write("results.json", &serde_json::to_string_pretty(results)?)?;
    for (topic, svg) in plot::plots(results)? {
        write(&format!("{topic}.svg"), &svg)?;
    }
    println!("\nresults.json and a plot of each topic are in {}", out.display());
    Ok(())
}

/// Prints the tables of results that were kept.
pub(crate) fn show(file: &Path) -> Result<()> {
    let results = kept(file)?;
    println!("{}", results.run);
    tables(&results);
    Ok(())
}

fn kept(file: &Path) -> Result<Results> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))
}

fn tables(results: &Results) {
    table::all(results).iter().for_each(|table| print!("\n{table}"));
}

/// Where a measure is worse than it should be as something grows.
fn knees(growth: &Growth) -> Vec<String> {
    let knee = |(carrier, points): (&str, Vec<_>)| {
        let (many, worse) = growth.knee(&points)?;
        Some(format!("{carrier}: {worse:.1} times worse at {} than before", count(many)))
    };
    growth.curves().filter_map(knee).collect()
}

/// What is promised and differs from an earlier run by more than either run does from itself.
fn moved(results: &Results, earlier: &Results) -> Vec<String> {
    let mut lines = Vec::new();
    for target in &targets::ALL {
        let both = target.judge(results).zip(target.judge(earlier));
        let Some(((now, _), (then, _))) = both.filter(|((now, _), (then, _))| now.is_apart(then)) else {
            continue;
        };
        let better = match target.better() {
            Better::More => now.median > then.median,
            Better::Less => now.median < then.median,
        };
        let word = if better { "better" } else { "WORSE" };
        lines.push(format!("{word}: {}: {}, was {}", target.what, number(now.median), number(then.median)));
    }
    lines
}

/// A median, and how far the values are from each other.
fn measured(summary: &Summary) -> String {
    format!("{} ±{:.0} %", number(summary.median), summary.spread() * 100.0)
}

/// A whole number that one reads at a glance: 10,000.
fn count(value: u64) -> String {
    let digits = value.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
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

    #[test]
    fn whole_numbers_have_commas() {
        let written: Vec<_> = [0, 999, 1000, 12_345_678].into_iter().map(count).collect();
        assert_eq!(written, ["0", "999", "1,000", "12,345,678"]);
    }

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
