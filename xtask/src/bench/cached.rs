//! Turns the measurements of several servers into figures and plots.

use super::figures::{Curve, Figure, Goal, Plot, Samples, Section};
use super::load::{Each, Outcome};

/// The name of the bare server, which the agent is compared with.
pub const BARE_NAME: &str = "bare hyper";

/// The name of the nginx server, which the agent must not be slower than.
pub const NGINX_NAME: &str = "nginx";

/// The number of clients for which there are goals.
const GOAL_AT: usize = 32;

/// A further number of clients for which there is a goal in comparison with nginx.
const MANY: usize = 256;

/// The smallest acceptable rate, in requests a second: three times what kube2iam serves with two processors and 32
/// connections, measured elsewhere (14,100 a second).
const GOAL_RATE: f64 = 3.0 * 14_100.0;

/// One kind of load, and its measurements for each server.
pub struct Row {
    pub each: Each,
    pub clients: usize,
    /// The measurements by the server's name, in the order of the first measurements.
    taken: Vec<(String, Taken)>,
}

#[derive(Default)]
struct Taken {
    rate: Samples,
    p50: Samples,
    p99: Samples,
    /// Processor time of the server for a request, in microseconds; empty for a peer.
    processor: Samples,
    /// The part of a processor that the client used.
    client: Samples,
}

impl Row {
    pub fn new(each: Each, clients: usize) -> Self {
        Self {
            each,
            clients,
            taken: Vec::new(),
        }
    }

    /// Adds a measurement. `processor` is the server's processor time for a request, in microseconds.
    pub fn push(&mut self, server: &str, outcome: &Outcome, processor: Option<f64>) {
        let known = self.taken.iter().position(|(name, _)| name == server);
        let index = known.unwrap_or_else(|| {
            self.taken.push((server.to_owned(), Taken::default()));
            self.taken.len() - 1
        });
        let taken = &mut self.taken[index].1;
        taken.rate.push(outcome.rate());
        taken.p50.push(outcome.p50);
        taken.p99.push(outcome.p99);
        taken.client.push(outcome.busy);
        if let Some(processor) = processor {
            taken.processor.push(processor);
        }
    }

    fn what(&self) -> String {
        let what = match self.each {
            Each::Keep => "kept open",
            _ => "a connection each",
        };
        format!("{what}, {} clients", self.clients)
    }

    fn has_goals(&self) -> bool {
        self.clients == GOAL_AT && self.each == Each::Keep
    }

    /// Returns the goals for the ratios to another server: of the rate, and of the processor time of a request.
    fn goals(&self, other: &str) -> (Option<Goal>, Option<Goal>) {
        match (&self.each, self.clients, other) {
            (Each::Keep, GOAL_AT, BARE_NAME) => (Some(Goal::AtLeast(0.95)), None),
            (Each::Keep, GOAL_AT | MANY, NGINX_NAME) => (Some(Goal::AtLeast(1.0)), None),
            (Each::Connection, GOAL_AT, NGINX_NAME) => (Some(Goal::AtLeast(1.0)), Some(Goal::AtMost(1.1))),
            _ => (None, None),
        }
    }

    /// Returns the figures of each server, and then the ratios of the first server to each other server.
    fn figures(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        for (name, taken) in &self.taken {
            let of = |what: &str| format!("{}, {name}: {what}", self.what());
            figures.extend([
                Figure::new(of("rate"), "1/s", &taken.rate),
                Figure::new(of("p50"), "µs", &taken.p50),
                Figure::new(of("p99"), "µs", &taken.p99),
            ]);
            if !taken.processor.is_empty() {
                figures.push(Figure::new(of("processor a request"), "µs", &taken.processor));
            }
            figures.push(Figure::new(
                of("processors that the client used"),
                "",
                &taken.client,
            ));
        }
        let Some(((_, own), others)) = self.taken.split_first() else {
            return figures;
        };
        for (name, other) in others {
            let of = |what: &str| format!("{}: {what}, metaproxy / {name}", self.what());
            let rate = Figure::new(of("rate"), "ratio", &own.rate.over(&other.rate));
            let (rate_goal, processor_goal) = self.goals(name);
            figures.push(with_goal(rate, rate_goal));
            if !other.processor.is_empty() {
                let ratio = own.processor.over(&other.processor);
                let ratio = Figure::new(of("processor a request"), "ratio", &ratio);
                figures.push(with_goal(ratio, processor_goal));
            }
        }
        if self.has_goals() {
            let what = format!("{}: rate, three times kube2iam's", self.what());
            figures.push(Figure::new(what, "1/s", &own.rate).with_goal(Goal::AtLeast(GOAL_RATE)));
        }
        figures
    }
}

fn with_goal(figure: Figure, goal: Option<Goal>) -> Figure {
    match goal {
        Some(goal) => figure.with_goal(goal),
        None => figure,
    }
}

/// Adds the figures and the plots of all rows to a section.
pub fn tell(rows: &[Row], section: &mut Section) {
    section.figures.extend(rows.iter().flat_map(Row::figures));
    for (each, title, names) in [
        (
            Each::Keep,
            "Cached credentials, connections kept open",
            ["cached-kept-open", "processor-kept-open"],
        ),
        (
            Each::Connection,
            "Cached credentials, a connection for each request",
            ["cached-connection-each", "processor-connection-each"],
        ),
    ] {
        let mut rows: Vec<&Row> = rows.iter().filter(|row| row.each == each).collect();
        rows.sort_by_key(|row| row.clients);
        let [rates, processors] = names;
        let plot = |name, y, value: fn(&Taken) -> &Samples| Plot {
            name,
            title,
            x: "clients at a time",
            y,
            curves: curves(&rows, value),
        };
        section
            .plots
            .push(plot(rates, "requests a second", |taken| &taken.rate));
        section
            .plots
            .push(plot(processors, "processor time of a request, µs", |taken| {
                &taken.processor
            }));
    }
}

/// Makes a curve for each server that has the value.
fn curves(rows: &[&Row], value: fn(&Taken) -> &Samples) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for row in rows {
        for (name, taken) in &row.taken {
            let samples = value(taken);
            if samples.is_empty() {
                continue;
            }
            let point = (row.clients as f64, samples.median());
            match curves.iter_mut().find(|curve| curve.name == *name) {
                Some(curve) => curve.points.push(point),
                None => curves.push(Curve {
                    name: name.clone(),
                    points: vec![point],
                }),
            }
        }
    }
    curves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_those_of_the_first_server_and_a_peer_without_processor_time_has_no_curve_of_it() {
        let mut row = Row::new(Each::Keep, GOAL_AT);
        let outcome = |done| Outcome {
            done,
            seconds: 1.0,
            ..Outcome::default()
        };
        row.push("metaproxy", &outcome(50_000), Some(2.0));
        row.push(BARE_NAME, &outcome(100_000), Some(1.0));
        row.push("peer", &outcome(25_000), None);
        let mut section = Section::default();
        tell(&[row], &mut section);
        let figure = |what: &str| section.figures.iter().find(|figure| figure.what.ends_with(what));
        let rate = figure("rate, metaproxy / bare hyper").unwrap();
        assert_eq!((rate.median, rate.met), (0.5, Some(false)));
        assert_eq!(figure("rate, metaproxy / peer").unwrap().median, 2.0);
        assert_eq!(figure("request, metaproxy / bare hyper").unwrap().median, 2.0);
        assert!(figure("request, metaproxy / peer").is_none());
        assert_eq!(section.plots[0].curves.len(), 3);
        assert_eq!(section.plots[1].curves.len(), 2);
    }
}
