//! What becomes of a measure while something grows, and where that turns for the worse.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Better, Summary};

/// From how much worse on a point is a knee.
const KNEE: f64 = 2.0;
/// What so few more add is less than what the machine adds by itself.
const FEW: u64 = 50;

/// What a curve should look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Shape {
    /// However many there are, the value stays.
    Level,
    /// Each one more adds the same.
    Even,
}

/// What is to be measured while something grows.
pub(crate) struct Curve {
    pub(crate) name: &'static str,
    /// Of what the values are.
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// What grows.
    pub(crate) along: &'static str,
    pub(crate) shape: Shape,
}

/// What was measured while something grew.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Growth {
    /// The topic that it belongs to.
    pub(crate) topic: String,
    pub(crate) unit: String,
    pub(crate) better: Better,
    pub(crate) along: String,
    pub(crate) shape: Shape,
    /// By carrier, and by how many there were; one for each round.
    pub(crate) samples: BTreeMap<String, BTreeMap<u64, Vec<f64>>>,
}

impl Growth {
    pub(super) fn new(curve: &Curve, topic: &str) -> Growth {
        Growth {
            topic: topic.to_owned(),
            unit: curve.unit.to_owned(),
            better: curve.better,
            along: curve.along.to_owned(),
            shape: curve.shape,
            samples: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, carrier: &str, count: u64, value: f64) {
        self.samples.entry(carrier.to_owned()).or_default().entry(count).or_default().push(value);
    }

    /// The points of each carrier, the fewest first.
    pub(crate) fn curves(&self) -> impl Iterator<Item = (&str, Vec<(u64, Summary)>)> {
        self.samples.iter().map(|(carrier, points)| {
            let points = points.iter().filter_map(|(count, values)| Some((*count, Summary::of(values)?)));
            (carrier.as_str(), points.collect())
        })
    }

    /// How many there were when a curve was worse than it should be, and by which factor; the first such point.
    pub(crate) fn knee(&self, points: &[(u64, Summary)]) -> Option<(u64, f64)> {
        let values: Vec<(u64, f64)> = match self.shape {
            Shape::Level => points.iter().map(|(count, value)| (*count, value.median)).collect(),
            // What each one more adds, from one point to the next.
            Shape::Even => points
                .windows(2)
                .filter(|pair| pair[1].0 - pair[0].0 >= FEW)
                .map(|pair| {
                    let ((few, before), (many, after)) = (pair[0], pair[1]);
                    (many, (after.median - before.median) / (many - few) as f64)
                })
                .collect(),
        };
        let mut best = values.first()?.1;
        values.into_iter().find_map(|(count, value)| {
            let worse = match self.better {
                Better::More => best / value,
                Better::Less => value / best,
            };
            best = match self.better {
                Better::More => best.max(value),
                Better::Less => best.min(value),
            };
            (best > 0.0 && worse > KNEE).then_some((count, worse))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knee(better: Better, shape: Shape, points: &[(u64, f64)]) -> Option<(u64, f64)> {
        let curve = Curve { name: "it", unit: "B", better, along: "streams", shape };
        let mut growth = Growth::new(&curve, "streams");
        points.iter().for_each(|(count, value)| growth.add("dworker", *count, *value));
        let (_, points) = growth.curves().next().expect("a curve");
        growth.knee(&points)
    }

    #[test]
    fn a_rate_has_a_knee_where_it_falls_below_half_of_its_best() {
        let rate = |points: &[(u64, f64)]| knee(Better::More, Shape::Level, points);
        // One at a time waits for itself: that it rises is no knee.
        assert_eq!(rate(&[(1, 10.0), (10, 40.0), (100, 40.0), (1000, 25.0)]), None);
        assert_eq!(rate(&[(1, 10.0), (10, 40.0), (100, 30.0), (1000, 16.0)]), Some((1000, 2.5)));
    }

    #[test]
    fn a_cost_has_a_knee_where_it_is_more_than_double() {
        let cost = |points: &[(u64, f64)]| knee(Better::Less, Shape::Level, points);
        assert_eq!(cost(&[(1, 100.0), (10, 150.0), (100, 190.0)]), None);
        assert_eq!(cost(&[(1, 100.0), (10, 150.0), (100, 250.0), (1000, 900.0)]), Some((100, 2.5)));
    }

    #[test]
    fn memory_has_a_knee_where_each_one_more_takes_more() {
        let memory = |points: &[(u64, f64)]| knee(Better::Less, Shape::Even, points);
        // What the first ones take is a page more or less.
        assert_eq!(memory(&[(1, 0.0), (2, 4096.0), (100, 5000.0), (1000, 18_000.0)]), None);
        assert_eq!(memory(&[(0, 0.0), (100, 1000.0), (200, 2000.0), (300, 6000.0)]), Some((300, 4.0)));
    }

    #[test]
    fn rounds_of_a_point_are_one_point() {
        let curve =
            Curve { name: "it", unit: "1/s", better: Better::More, along: "rules", shape: Shape::Level };
        let mut growth = Growth::new(&curve, "rules");
        [(10, 3.0), (1, 5.0), (10, 1.0), (10, 2.0)]
            .iter()
            .for_each(|(n, value)| growth.add("dworker", *n, *value));
        let curves: Vec<_> = growth.curves().collect();
        let expected = [(1, Summary::of(&[5.0]).unwrap()), (10, Summary::of(&[1.0, 2.0, 3.0]).unwrap())];
        assert_eq!(curves, [("dworker", expected.to_vec())]);
    }
}
