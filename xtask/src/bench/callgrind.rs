//! Counts the instructions and heap allocations of a kept request in the agent's own code, with callgrind. The server
//! runs in memory, so the counts include no system call and no program in the kernel.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The functions of the C library with which Rust's `System` allocator allocates.
const ALLOCATING: [&str; 4] = ["malloc", "calloc", "realloc", "posix_memalign"];

/// The numbers of requests of the two runs. The cost of work that each run does once cancels out in the difference.
const FEW: usize = 200;
const MANY: usize = 1200;

/// The cost of one run or of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Instructions outside of the kernel.
    pub instructions: f64,
    /// Calls of functions that allocate memory.
    pub allocations: f64,
}

/// Returns the cost of one request. callgrind writes its reports into `dir`.
///
/// # Errors
/// If a run fails, or its report cannot be read.
pub fn kept_request(kept_requests: &Path, dir: &Path) -> Result<Cost> {
    let [few, many] = [FEW, MANY].map(|requests| run(kept_requests, dir, requests));
    let (few, many) = (few?, many?);
    let requests = (MANY - FEW) as f64;
    Ok(Cost {
        instructions: (many.instructions - few.instructions) / requests,
        allocations: (many.allocations - few.allocations) / requests,
    })
}

fn run(kept_requests: &Path, dir: &Path, requests: usize) -> Result<Cost> {
    let report = dir.join(format!("callgrind-{requests}"));
    let mut out = std::ffi::OsString::from("--callgrind-out-file=");
    out.push(&report);
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--compress-strings=no"])
        .arg(out)
        .arg(kept_requests)
        .arg(requests.to_string())
        .output()
        .context("cannot run valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind failed: {said}");
    parse(&fs::read_to_string(&report)?)
}

/// Reads a report in the format of the Valgrind manual, section "Callgrind Format Specification": `cfn=` names the
/// callee of the `calls=` line after it, and `totals:` or `summary:` contains the sum of all instructions.
fn parse(report: &str) -> Result<Cost> {
    let mut allocations = 0.0;
    let mut instructions = None;
    let mut callee = "";
    for line in report.lines() {
        if let Some(name) = line.strip_prefix("cfn=") {
            callee = name;
        } else if let Some(calls) = line.strip_prefix("calls=") {
            let count = calls.split(' ').next().unwrap_or_default();
            if ALLOCATING.contains(&callee) {
                allocations += count.parse::<f64>().with_context(|| format!("calls={calls}"))?;
            }
        } else if let Some(sum) = line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")) {
            instructions = Some(sum.trim().parse().with_context(|| format!("a sum of {sum}"))?);
        }
    }
    ensure!(allocations > 0.0, "callgrind has seen no allocation");
    Ok(Cost {
        instructions: instructions.context("callgrind's report has no sum")?,
        allocations,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_allocating_functions_and_the_sum_of_instructions_are_parsed() {
        let report = "events: Ir\n\nfn=main\n16 400\ncfn=malloc\ncalls=3 50\n16 400\ncfn=free\ncalls=2 0\n1 2\n\
                      fn=other\ncfn=realloc\ncalls=1 9\n1 1\n\ntotals: 803\n";
        let cost = parse(report).unwrap();
        assert_eq!((cost.instructions, cost.allocations), (803.0, 4.0));
        for bad in ["", "totals: 803\n", "cfn=malloc\ncalls=x 1\n"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
