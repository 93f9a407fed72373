//! Measurements: samples of interleaved rounds, their medians and spreads, and ratios of two samples from the same
//! rounds.

use serde::Serialize;

/// The values of one measurement, one value for each round.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds the value of a round.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Returns whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the median, or NaN if there are no values.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Returns the quantile below which this part of the values lies, or NaN if there are no values. Interpolates
    /// linearly between neighbours.
    pub fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else {
            return f64::NAN;
        };
        let at = part * last as f64;
        let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        below + (above - below) * at.fract()
    }

    /// Returns the first and the third quartile. Half of the rounds lie between them.
    pub fn spread(&self) -> (f64, f64) {
        (self.quantile(0.25), self.quantile(0.75))
    }

    /// Divides each value by the median of the other samples.
    pub fn over_median_of(&self, other: &Self) -> Self {
        let median = other.median();
        Self(self.0.iter().map(|own| own / median).collect())
    }

    /// Divides each value by the other value of the same round, so that effects on the whole round cancel out.
    pub fn over(&self, other: &Self) -> Self {
        Self(
            self.0
                .iter()
                .zip(&other.0)
                .map(|(own, others)| own / others)
                .collect(),
        )
    }
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// The name of the measured quantity.
    pub what: String,
    /// The unit of the median and the quartiles.
    pub unit: &'static str,
    /// The median of the rounds.
    pub median: f64,
    /// The first and the third quartile.
    pub spread: (f64, f64),
    /// The number of rounds.
    pub rounds: usize,
    /// The goal of the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    /// Whether the goal is met.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

/// A bound that a figure should keep.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// The largest acceptable value.
    AtMost(f64),
    /// The smallest acceptable value.
    AtLeast(f64),
}

impl Figure {
    /// Makes a figure without a goal.
    pub fn new(what: impl Into<String>, unit: &'static str, samples: &Samples) -> Self {
        Self {
            what: what.into(),
            unit,
            median: samples.median(),
            spread: samples.spread(),
            rounds: samples.0.len(),
            goal: None,
            met: None,
        }
    }

    /// Makes a figure of a value that was measured once, without a goal.
    pub fn once(what: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self::new(what, unit, &Samples(vec![value]))
    }

    /// Adds a goal.
    pub fn with_goal(mut self, goal: Goal) -> Self {
        self.met = Some(match goal {
            Goal::AtMost(most) => self.median <= most,
            Goal::AtLeast(least) => self.median >= least,
        });
        self.goal = Some(goal);
        self
    }
}

/// A curve of a plot.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// The name in the legend.
    pub name: String,
    /// The points in ascending order of x.
    pub points: Vec<(f64, f64)>,
}

/// A plot of curves. The scale of the x axis is logarithmic with base 2.
#[derive(Clone, Debug, Serialize)]
pub struct Plot {
    /// The file's name, without its extension.
    pub name: &'static str,
    /// The title above the plot.
    pub title: &'static str,
    /// The description of the x axis.
    pub x: &'static str,
    /// The description of the y axis.
    pub y: &'static str,
    /// The curves.
    pub curves: Vec<Curve>,
}

/// The results of one part of the benchmark.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Section {
    /// The heading in the report.
    pub title: &'static str,
    /// How the figures were measured, without a period at the end.
    pub how: &'static str,
    /// The figures.
    pub figures: Vec<Figure>,
    /// The plots.
    pub plots: Vec<Plot>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quartiles_are_those_of_the_rounds() {
        let samples = Samples(vec![5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!((samples.median(), samples.spread()), (3.0, (2.0, 4.0)));
        assert_eq!(Samples(vec![1.0, 2.0]).median(), 1.5);
        assert!(Samples::default().median().is_nan());
    }

    #[test]
    fn ratios_are_made_round_by_round() {
        let (one, other) = (Samples(vec![2.0, 30.0]), Samples(vec![1.0, 10.0]));
        assert_eq!(one.over(&other), Samples(vec![2.0, 3.0]));
    }

    #[test]
    fn goals_are_met_at_their_very_value_and_never_by_nothing() {
        let at = |value| Figure::once("x", "", value);
        assert_eq!(at(1.01).with_goal(Goal::AtMost(1.01)).met, Some(true));
        assert_eq!(at(0.89).with_goal(Goal::AtLeast(0.9)).met, Some(false));
        let nothing = Figure::new("x", "", &Samples::default());
        assert_eq!(nothing.with_goal(Goal::AtMost(1.0)).met, Some(false));
    }
}
