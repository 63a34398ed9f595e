//! dworker beside each of the others, in one table.

use super::table::Table;
use crate::carrier::OURS;
use crate::results::{Better, Measure, Results, Summary};

/// One measure: what dworker has, also in parts of what each of the others has.
struct Row<'a> {
    measure: &'a str,
    unit: &'a str,
    better: Better,
    /// Its own median.
    own: Option<f64>,
    ratios: Vec<Option<f64>>,
}

/// The table; without rows where nobody was measured beside dworker.
pub(super) fn table(results: &Results) -> Table {
    let others = others(results);
    let heads = ["what dworker has", ""].map(str::to_owned).into_iter();
    let mut table = Table::new(heads.chain(others.iter().map(|other| format!("of {other}'s"))));
    for row in rows(results, &others) {
        let better = if row.better == Better::Less { ", less is better" } else { "" };
        let own = format!("{} {}", row.own.map_or(String::new(), super::number), row.unit);
        let cell = |ratio: &Option<f64>| ratio.map_or("-".to_owned(), super::number);
        let cells = row.ratios.iter().map(cell);
        table.rows.push([format!("{}{better}", row.measure), own].into_iter().chain(cells).collect());
    }
    table
}

/// Who was measured beside dworker.
fn others(results: &Results) -> Vec<&str> {
    let carriers = results.run.carriers.iter().map(String::as_str);
    let beside = |other: &&str| {
        let both = |of: &Measure| of.samples.contains_key(OURS) && of.samples.contains_key(*other);
        *other != OURS && results.measures.values().any(both)
    };
    carriers.filter(beside).collect()
}

fn rows<'a>(results: &'a Results, others: &[&str]) -> Vec<Row<'a>> {
    let row = |(measure, of): (&'a String, &'a Measure)| {
        let ratio = |other: &&str| results.ratio((measure, OURS), (measure, other)).map(|ratio| ratio.median);
        let own = of.samples.get(OURS).and_then(|samples| Summary::of(samples)).map(|own| own.median);
        Row { measure, unit: &of.unit, better: of.better, own, ratios: others.iter().map(ratio).collect() }
    };
    let rows = results.measures.iter().map(row);
    rows.filter(|row| row.ratios.iter().any(Option::is_some)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Run;

    #[test]
    fn each_measure_that_another_has_too_is_a_row() {
        let carriers = ["direct", "pipe", OURS, "nginx", "a-peer"].map(str::to_owned).into();
        let mut results = Results::of(Run { carriers, ..Run::default() });
        for (measure, carrier, value) in [
            ("bulk", OURS, 3.0),
            ("bulk", "a-peer", 2.0),
            ("bulk", "pipe", 6.0),
            ("connects", OURS, 1.0),
            ("connects", "direct", 4.0),
            ("memory", OURS, 1.0),
            ("other", "pipe", 1.0),
            ("other", "nginx", 1.0),
            ("bulk", "part-of-a-topic", 1.0),
        ] {
            results.add(measure, "", Better::More, carrier, value);
        }
        let others = others(&results);
        assert_eq!(others, ["direct", "pipe", "a-peer"]);
        let rows = rows(&results, &others);
        let found: Vec<_> = rows.iter().map(|row| (row.measure, row.own, row.ratios.clone())).collect();
        let bulk = ("bulk", Some(3.0), vec![None, Some(0.5), Some(1.5)]);
        assert_eq!(found, [bulk, ("connects", Some(1.0), vec![Some(0.25), None, None])]);
    }
}
