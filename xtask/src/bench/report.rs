//! Writes the report: tables in Markdown, plots, and JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::figures::{Figure, Goal, Section};
use super::plot;

/// All results, and the machine and the build that they are from.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The day, as `2026-01-31`.
    pub date: String,
    /// The commit that was built; `None` if the binaries were not built here.
    pub commit: Option<String>,
    /// `uname -r`
    pub kernel: String,
    /// The name of the processor in `/proc/cpuinfo`.
    pub processor: String,
    /// The number of processors.
    pub processors: usize,
    /// The build that was measured.
    pub form: String,
    /// The number of rounds.
    pub rounds: usize,
    /// The results of each part.
    pub sections: Vec<Section>,
}

impl Report {
    /// Writes `report.md`, `report.json` and the plots.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("report.md"), self.markdown()).context("report.md")?;
        fs::write(dir.join("report.json"), serde_json::to_vec_pretty(self)?).context("report.json")?;
        for plot in self.sections.iter().flat_map(|section| &section.plots) {
            plot::draw(plot, &dir.join(format!("{}.svg", plot.name)))?;
        }
        Ok(())
    }

    fn markdown(&self) -> String {
        let mut text = format!(
            "# metaproxy, measured\n\n{}, kernel {}, {} × {}, {}",
            self.date, self.kernel, self.processors, self.processor, self.form
        );
        if let Some(commit) = &self.commit {
            let _ = write!(text, ", commit {commit}");
        }
        let _ = writeln!(
            text,
            ", {} rounds.\nMedians of the rounds; in brackets the first and the third quartile. A goal that lies between \
             these was met or missed *within the spread*: the result may be due to chance.",
            self.rounds
        );
        for section in &self.sections {
            let _ = write!(text, "\n## {}\n\n{}.\n\n", section.title, section.how);
            text.push_str(
                "| what | median | quartiles | unit | goal | |\n| --- | ---: | :---: | --- | --- | --- |\n",
            );
            for figure in &section.figures {
                text.push_str(&row(figure));
            }
            for plot in &section.plots {
                let _ = write!(text, "\n![{}]({}.svg)\n", plot.title, plot.name);
            }
        }
        text
    }

    /// Returns the figures that missed their goals.
    pub fn missed(&self) -> impl Iterator<Item = &Figure> {
        self.sections
            .iter()
            .flat_map(|section| &section.figures)
            .filter(|figure| figure.met == Some(false))
    }
}

/// Formats a figure as a line of a table.
pub fn row(figure: &Figure) -> String {
    let spread = if figure.rounds > 1 {
        format!("[{}, {}]", number(figure.spread.0), number(figure.spread.1))
    } else {
        String::new()
    };
    let goal = match figure.goal {
        Some(Goal::AtMost(most)) => format!("≤ {}", number(most)),
        Some(Goal::AtLeast(least)) => format!("≥ {}", number(least)),
        None => String::new(),
    };
    let at = figure.goal.map(|goal| match goal {
        Goal::AtMost(value) | Goal::AtLeast(value) => value,
    });
    let is_open = figure.rounds > 1 && at.is_some_and(|at| figure.spread.0 <= at && at <= figure.spread.1);
    let met = match figure.met {
        Some(true) if is_open => "met within the spread",
        Some(true) => "met",
        Some(false) if is_open => "**missed** within the spread",
        Some(false) => "**missed**",
        None => "",
    };
    format!(
        "| {} | {} | {spread} | {} | {goal} | {met} |\n",
        figure.what,
        number(figure.median),
        figure.unit
    )
}

/// Formats a number with its significant digits, which are about three.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 1000.0 => {
            let digits = format!("{size:.0}");
            let groups: Vec<&[u8]> = digits.as_bytes().rchunks(3).rev().collect();
            let sign = if value < 0.0 { "-" } else { "" };
            format!("{sign}{}", String::from_utf8_lossy(&groups.join(&b',')))
        }
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures::Samples;
    use super::*;

    #[test]
    fn numbers_have_as_many_digits_as_mean_something() {
        let shown = [0.0, 1.0, 0.98765, 12.34, 123.4, 43_210.9, 1_234_567.0, -4_321.0].map(number);
        assert_eq!(
            shown,
            ["0", "1", "0.988", "12.3", "123", "43,211", "1,234,567", "-4,321"]
        );
    }

    #[test]
    fn a_goal_that_was_missed_stands_out() {
        let figure = Figure::once("a ratio", "ratio", 1.2).with_goal(Goal::AtMost(1.05));
        assert_eq!(
            row(&figure),
            "| a ratio | 1.200 |  | ratio | ≤ 1.050 | **missed** |\n"
        );
    }

    #[test]
    fn what_a_run_does_not_tell_from_chance_is_not_called_met() {
        let mut samples = Samples::default();
        for value in [0.9, 1.0, 1.1] {
            samples.push(value);
        }
        let figure = Figure::new("a ratio", "ratio", &samples).with_goal(Goal::AtMost(1.01));
        assert!(
            row(&figure).ends_with("met within the spread |\n"),
            "{}",
            row(&figure)
        );
    }
}
