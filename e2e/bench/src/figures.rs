//! Series of measurements and what is said of them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// All series, by subject and quantity.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    series: BTreeMap<(String, String), Vec<f64>>,
    /// How many times something that is measured once was, and came to.
    pub(crate) facts: BTreeMap<String, f64>,
}

impl Figures {
    /// Adds one value.
    pub(crate) fn add(&mut self, subject: &str, quantity: &str, value: f64) {
        let key = (subject.to_owned(), quantity.to_owned());
        self.series.entry(key).or_default().push(value);
    }

    /// Adds the median and the 99th percentile of what one measurement saw, under these
    /// names.
    pub(crate) fn add_all(&mut self, subject: &str, names: [&str; 2], mut each: Vec<f64>) {
        each.sort_by(f64::total_cmp);
        for (quantity, percent) in names.into_iter().zip([50, 99]) {
            if let Some(value) = share_of(&each, percent) {
                self.add(subject, quantity, value);
            }
        }
    }

    /// Subjects that have a series of this quantity.
    pub(crate) fn subjects(&self, quantity: &str) -> Vec<&str> {
        let of = self.series.keys().filter(|(_, q)| q == quantity);
        of.map(|(subject, _)| subject.as_str()).collect()
    }

    /// The series, sorted.
    fn sorted(&self, subject: &str, quantity: &str) -> Vec<f64> {
        let key = (subject.to_owned(), quantity.to_owned());
        let mut values = self.series.get(&key).cloned().unwrap_or_default();
        values.sort_by(f64::total_cmp);
        values
    }

    /// The value that this share of a series lies below; `None` without values.
    pub(crate) fn percentile(&self, subject: &str, quantity: &str, percent: usize) -> Option<f64> {
        share_of(&self.sorted(subject, quantity), percent)
    }

    /// The median.
    pub(crate) fn median(&self, subject: &str, quantity: &str) -> Option<f64> {
        self.percentile(subject, quantity, 50)
    }

    /// Smallest and largest value.
    pub(crate) fn spread(&self, subject: &str, quantity: &str) -> Option<(f64, f64)> {
        let values = self.sorted(subject, quantity);
        Some((*values.first()?, *values.last()?))
    }

    /// Median of the ratios of each round to the same round of another subject.
    pub(crate) fn ratio(&self, subject: &str, to: &str, quantity: &str) -> Option<f64> {
        self.round_by_round((subject, quantity), (to, quantity))
    }

    /// Median of the ratios of each round of one quantity to another's of the same round.
    pub(crate) fn ratio_of(&self, subject: &str, quantity: &str, to: &str) -> Option<f64> {
        self.round_by_round((subject, quantity), (subject, to))
    }

    fn round_by_round(&self, one: (&str, &str), other: (&str, &str)) -> Option<f64> {
        let series = |(subject, quantity): (&str, &str)| {
            let key = (subject.to_owned(), quantity.to_owned());
            self.series.get(&key)
        };
        let pairs = series(one)?.iter().zip(series(other)?);
        let mut ratios: Vec<f64> = pairs.map(|(a, b)| a / b).collect();
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied()
    }

    /// Everything, for programs.
    pub(crate) fn json(&self) -> Value {
        let series: Vec<Value> = self
            .series
            .iter()
            .map(|((subject, quantity), values)| {
                json!({"subject": subject, "quantity": quantity, "values": values,
                    "median": self.median(subject, quantity)})
            })
            .collect();
        json!({"series": series, "facts": self.facts})
    }
}

/// The value that this share of sorted values lies below; `None` without values.
fn share_of(sorted: &[f64], percent: usize) -> Option<f64> {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((sorted.len() * percent / 100).min(last))
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_round_by_round() {
        let mut figures = Figures::default();
        for (a, b) in [(10.0, 5.0), (30.0, 10.0), (100.0, 50.0)] {
            figures.add("a", "time", a);
            figures.add("b", "time", b);
            figures.add("a", "other time", a / 3.0);
        }
        assert_eq!(figures.ratio("a", "b", "time"), Some(2.0));
        assert_eq!(figures.ratio_of("a", "time", "other time"), Some(3.0));
        assert_eq!(figures.median("a", "time"), Some(30.0));
        assert_eq!(figures.spread("a", "time"), Some((10.0, 100.0)));
        assert_eq!(figures.median("c", "time"), None);
    }

    #[test]
    fn of_one_measurement_the_median_and_the_99th_percentile_stay() {
        let mut figures = Figures::default();
        let all = |count: u32| (0..count).rev().map(f64::from).collect();
        figures.add_all("a", ["p50", "p99"], all(200));
        assert_eq!(figures.median("a", "p50"), Some(100.0));
        assert_eq!(figures.median("a", "p99"), Some(198.0));
        figures.add_all("b", ["p50", "p99"], all(1));
        assert_eq!(figures.median("b", "p99"), Some(0.0));
        figures.add_all("c", ["p50", "p99"], all(0));
        assert_eq!(figures.median("c", "p50"), None);
    }
}
