//! What was measured: samples of each measure by each carrier, in the order of the rounds.

mod growth;
mod run;

use std::collections::BTreeMap;

pub(crate) use growth::{Curve, Growth, Shape};
pub(crate) use run::Run;
use serde::{Deserialize, Serialize};

/// Which values are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    More,
    Less,
}

/// One measure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Measure {
    /// The topic that it belongs to.
    #[serde(default)]
    pub(crate) topic: String,
    /// Of what the values are.
    pub(crate) unit: String,
    pub(crate) better: Better,
    /// By carrier, one for each round.
    pub(crate) samples: BTreeMap<String, Vec<f64>>,
}

/// All that was measured, by name.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    #[serde(default)]
    pub(crate) run: Run,
    pub(crate) measures: BTreeMap<String, Measure>,
    /// What becomes of a measure while something grows, by name.
    #[serde(default)]
    pub(crate) growth: BTreeMap<String, Growth>,
    /// What is being measured.
    #[serde(skip)]
    topic: String,
    /// Of what nothing, or not all, was measured.
    #[serde(skip)]
    left_out: Vec<String>,
}

impl Results {
    /// Nothing yet.
    pub(crate) fn of(run: Run) -> Results {
        Results { run, ..Results::default() }
    }

    /// What is added from now on belongs to this topic.
    pub(crate) fn begin(&mut self, topic: &str) {
        topic.clone_into(&mut self.topic);
    }

    /// Says that of this carrier nothing more is measured in this topic.
    pub(crate) fn leave_out(&mut self, carrier: &str, error: &anyhow::Error) {
        eprintln!("bench: {}: {carrier} is left out: {error:#}", self.topic);
        self.left_out.push(format!("{carrier} in {}", self.topic));
    }

    /// What was left out.
    pub(crate) fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Adds what a round brought.
    pub(crate) fn add(&mut self, measure: &str, unit: &str, better: Better, carrier: &str, value: f64) {
        let measure = self.measures.entry(measure.to_owned()).or_insert_with(|| Measure {
            topic: self.topic.clone(),
            unit: unit.to_owned(),
            better,
            samples: BTreeMap::new(),
        });
        measure.samples.entry(carrier.to_owned()).or_default().push(value);
    }

    /// Adds what a round brought of a curve, where so many of what grows were there.
    pub(crate) fn grow(&mut self, curve: &Curve, carrier: &str, count: u64, value: f64) {
        let growth =
            self.growth.entry(curve.name.to_owned()).or_insert_with(|| Growth::new(curve, &self.topic));
        growth.add(carrier, count, value);
    }

    /// The samples of a carrier.
    pub(crate) fn samples(&self, measure: &str, carrier: &str) -> Option<&[f64]> {
        self.measures.get(measure)?.samples.get(carrier).map(Vec::as_slice)
    }

    /// The median of what one has in the parts of what the other had in the same round: what else the machine did
    /// then, it did to both.
    pub(crate) fn ratio(&self, of: (&str, &str), to: (&str, &str)) -> Option<Summary> {
        let (of, to) = (self.samples(of.0, of.1)?, self.samples(to.0, to.1)?);
        Summary::of(&of.iter().zip(to).map(|(of, to)| of / to).collect::<Vec<_>>())
    }
}

/// The middle of some values, and where the least and the greatest are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Summary {
    pub(crate) fn of(values: &[f64]) -> Option<Summary> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
            _ => sorted[middle],
        };
        Some(Summary { median, least, most })
    }

    /// True where no value of one is between those of the other.
    pub(crate) fn is_apart(&self, other: &Summary) -> bool {
        self.least > other.most || self.most < other.least
    }

    /// Half of the way from the least to the greatest, in parts of the median.
    pub(crate) fn spread(&self) -> f64 {
        // Of one value, or of nothing but zeroes, there is none.
        if self.most == self.least { 0.0 } else { (self.most - self.least) / 2.0 / self.median }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Summary::of(&[]), None);
        let odd = Summary::of(&[3.0, 1.0, 8.0]).unwrap();
        assert_eq!((odd.median, odd.least, odd.most), (3.0, 1.0, 8.0));
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        for same in [4.0, 0.0] {
            assert_eq!(Summary::of(&[same, same]).unwrap().spread(), 0.0);
        }
    }

    /// Where the machine is slower for a while, it is so for all.
    #[test]
    fn a_ratio_is_that_of_each_round() {
        let mut results = Results::default();
        for (ours, theirs) in [(10.0, 5.0), (2.0, 1.0), (200.0, 100.0)] {
            results.add("bulk", "B/s", Better::More, "ours", ours);
            results.add("bulk", "B/s", Better::More, "theirs", theirs);
        }
        let ratio = results.ratio(("bulk", "ours"), ("bulk", "theirs")).unwrap();
        assert_eq!((ratio.median, ratio.spread()), (2.0, 0.0));
        assert_eq!(results.ratio(("bulk", "ours"), ("bulk", "nobody")), None);
    }
}
