//! Finds flags in which the workloads of one installation differ. The chart has one value for all nodes, so one
//! workload must not get the value of another.

use super::MigrateError;
use super::manifest::Workload;
use super::words::{Flag, Grammar, Line, shown};

/// Refuses a flag that decides what pods get and has two values, or a value in one workload and none in another of
/// the same part.
///
/// # Errors
/// If there is such a flag; the error names the first, with both values.
pub fn check(workloads: &[Workload], lines: &[Line], grammar: Grammar) -> Result<(), MigrateError> {
    for flag in grammar.single {
        let mut known: Vec<(&Line, String, String)> = Vec::new();
        for (workload, line) in workloads.iter().zip(lines) {
            let name = if workload.name.is_empty() {
                "its command line".to_owned()
            } else {
                workload.name.clone()
            };
            for value in values(line, flag, grammar) {
                let other = known
                    .iter()
                    .find(|(other, _, said)| other.part == line.part && *said != value);
                if let Some((_, other, said)) = other {
                    return Err(conflict(flag, (other, said), (&name, &value)));
                }
                known.push((line, name.clone(), value));
            }
        }
    }
    Ok(())
}

/// Returns all values of a flag in a command line, without secrets. If the flag is absent, a switch is off and any
/// other flag is empty.
fn values(line: &Line, flag: &str, grammar: Grammar) -> Vec<String> {
    let is_switch = grammar.switches.contains(&flag);
    let value = |of: &Flag| {
        if is_switch {
            of.is_on().to_string()
        } else {
            shown(flag, &of.value)
        }
    };
    let found: Vec<String> = line
        .flags
        .iter()
        .filter(|of| of.name == flag)
        .map(value)
        .collect();
    if found.is_empty() {
        return vec![if is_switch {
            "false".to_owned()
        } else {
            String::new()
        }];
    }
    found
}

fn conflict(flag: &str, one: (&str, &str), other: (&str, &str)) -> MigrateError {
    let shown = |(name, value): (&str, &str)| {
        if value.is_empty() {
            format!("{name} has none")
        } else {
            format!("{name} has {value}")
        }
    };
    MigrateError::Value {
        flag: format!("--{flag}"),
        problem: format!(
            "{}, and {}; the chart has one value for all nodes, so choose one and write it in both",
            shown(one),
            shown(other)
        ),
    }
}
