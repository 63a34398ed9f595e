//! Tables, as they are printed and as they stand in `docs/performance.md`: Markdown with columns.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{beside, count, measured, number};
use crate::results::{Results, Summary};
use crate::targets::{self, Promise};

/// A line of names, and lines below it with as many cells or fewer.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Table {
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<T: Into<String>>(head: impl IntoIterator<Item = T>) -> Table {
        Table { head: head.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = || std::iter::once(&self.head).chain(&self.rows);
        let cell = |line: &'_ Vec<String>, column: usize| line.get(column).cloned().unwrap_or_default();
        let width = |column| lines().map(|line| cell(line, column).chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        for (at, line) in lines().enumerate() {
            let cells =
                widths.iter().enumerate().map(|(column, width)| format!("{:<width$}", cell(line, column)));
            writeln!(f, "| {} |", cells.collect::<Vec<_>>().join(" | "))?;
            if at == 0 {
                let dashes = widths.iter().map(|width| "-".repeat(width + 2));
                writeln!(f, "|{}|", dashes.collect::<Vec<_>>().join("|"))?;
            }
        }
        Ok(())
    }
}

/// All tables of a run that have anything in them.
pub(super) fn all(results: &Results) -> Vec<Table> {
    let mut tables = vec![promises(results), beside::table(results), steered(results)];
    tables.extend(growth(results));
    tables.retain(|table| !table.rows.is_empty());
    tables
}

/// What was promised and measured.
fn promises(results: &Results) -> Table {
    let mut table = Table::new(["#", "measured", "is", "is to be", ""]);
    for target in &targets::ALL {
        let Some((summary, kept)) = target.judge(results) else { continue };
        let promise = match target.promise {
            Promise::AtLeast(least) => format!("≥ {}", number(least)),
            Promise::AtMost(most) => format!("≤ {}", number(most)),
            Promise::None(_) => String::new(),
        };
        let kept = kept.map_or("", |kept| if kept { "kept" } else { "**missed**" });
        let row = target.row.map_or(String::new(), |row| row.to_string());
        table.rows.push(vec![row, target.what.to_owned(), measured(&summary), promise, kept.to_owned()]);
    }
    table
}

/// Ways of leading connections elsewhere.
fn steered(results: &Results) -> Table {
    const MEASURES: [&str; 2] = ["steered connects", "cpu of a steered connection"];
    let mut table = Table::new(["led by", "connections/s", "µs of CPU of who carries, each"]);
    let carriers = results.measures.get(MEASURES[0]).map(|measure| measure.samples.keys());
    for carrier in carriers.into_iter().flatten() {
        let value = |measure| results.samples(measure, carrier).and_then(Summary::of);
        let cells = MEASURES.map(|measure| value(measure).map_or(String::new(), |value| measured(&value)));
        table.rows.push(std::iter::once(carrier.clone()).chain(cells).collect());
    }
    table
}

/// What becomes of things as others grow, a table for each that grows.
fn growth(results: &Results) -> Vec<Table> {
    let mut counts: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for growth in results.growth.values() {
        let points = growth.samples.values().flat_map(BTreeMap::keys);
        counts.entry(&growth.along).or_default().extend(points);
    }
    let head = |(along, counts): (&&str, &BTreeSet<u64>)| {
        std::iter::once((*along).to_owned()).chain(counts.iter().map(|many| count(*many))).collect::<Vec<_>>()
    };
    let mut tables: BTreeMap<&str, Table> =
        counts.iter().map(|entry| (*entry.0, Table::new(head(entry)))).collect();
    for (name, growth) in &results.growth {
        let along = growth.along.as_str();
        let (Some(table), Some(counts)) = (tables.get_mut(along), counts.get(along)) else { continue };
        for (carrier, points) in growth.curves() {
            let points: BTreeMap<u64, Summary> = points.into_iter().collect();
            let cell = |many| points.get(many).map_or(String::new(), |summary| number(summary.median));
            let name = format!("{name} ({}), {carrier}", growth.unit);
            table.rows.push(std::iter::once(name).chain(counts.iter().map(cell)).collect());
        }
    }
    tables.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["a", "µs"]);
        table.rows.push(vec!["long".into(), "1".into()]);
        table.rows.push(vec!["b".into()]);
        let lines = ["| a    | µs |", "|------|----|", "| long | 1  |", "| b    |    |", ""];
        assert_eq!(table.to_string(), lines.join("\n"));
    }

    /// What the documentation says was measured is what is kept of that run.
    #[test]
    fn the_tables_of_the_documentation_are_those_of_its_run() {
        let results = include_str!("../../../docs/bench.json");
        let results: Results = serde_json::from_str(results).expect("docs/bench.json");
        let text = include_str!("../../../docs/performance.md");
        for table in all(&results) {
            let table = table.to_string();
            assert!(text.contains(&table), "docs/performance.md is to have:\n{table}");
        }
        assert!(text.contains(&results.run.to_string()), "docs/performance.md is to have: {}", results.run);
    }
}
