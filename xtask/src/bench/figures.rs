//! What was measured: samples of interleaved rounds, their medians and spreads, and ratios between two things that were
//! measured side by side.

use serde::Serialize;

/// The same thing, measured once in each round.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// One more round.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The middle of all; NaN where there are none.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Where this part of all lies below, between neighbours in proportion; NaN where there are none.
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

    /// From the first to the third quartile: what an ordinary round may differ by.
    pub fn spread(&self) -> (f64, f64) {
        (self.quantile(0.25), self.quantile(0.75))
    }

    /// Over the median of what is to be taken off each.
    pub fn over_median_of(&self, other: &Self) -> Self {
        let median = other.median();
        Self(self.0.iter().map(|own| own / median).collect())
    }

    /// Round by round: what one round does to both is not held against either.
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
    /// What it is.
    pub what: String,
    /// In what.
    pub unit: &'static str,
    /// The median of the rounds.
    pub median: f64,
    /// First and third quartile.
    pub spread: (f64, f64),
    /// How many rounds there were.
    pub rounds: usize,
    /// What it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    /// Whether it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// No more.
    AtMost(f64),
    /// No less.
    AtLeast(f64),
}

impl Figure {
    /// A median without a goal.
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

    /// What was measured once.
    pub fn once(what: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self::new(what, unit, &Samples(vec![value]))
    }

    /// The same with a goal.
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
    /// What the legend calls it.
    pub name: String,
    /// In ascending order.
    pub points: Vec<(f64, f64)>,
}

/// A plot of curves over one thing, which is shown in powers of two.
#[derive(Clone, Debug, Serialize)]
pub struct Plot {
    /// The file's name, without its ending.
    pub name: &'static str,
    /// Above it.
    pub title: &'static str,
    /// Along the axes.
    pub x: &'static str,
    /// See `x`.
    pub y: &'static str,
    /// What is drawn.
    pub curves: Vec<Curve>,
}

/// What one part of the benchmark found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Section {
    /// Its heading.
    pub title: &'static str,
    /// How it was measured.
    pub how: &'static str,
    /// What was found.
    pub figures: Vec<Figure>,
    /// What there is to be seen.
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
