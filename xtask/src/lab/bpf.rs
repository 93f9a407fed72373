//! What of ours is in the kernel.

use std::time::{Duration, Instant};

use aya::programs::{loaded_links, loaded_programs};
use metaproxy_common::names;

/// Programs, links and maps whose names are ours, as `kind id name`. What can't be listed is listed as an error, so that
/// it never passes for nothing.
pub fn ours() -> Vec<String> {
    let mut found = Vec::new();
    let mut ids = Vec::new();
    for program in loaded_programs() {
        match program {
            Ok(program) => {
                let name = program.name_as_str().unwrap_or_default();
                if name.starts_with(names::PREFIX) {
                    found.push(format!("program {} {name}", program.id()));
                    ids.push(program.id());
                }
            }
            Err(error) => found.push(format!("error: {error}")),
        }
    }
    for link in loaded_links() {
        match link {
            Ok(link) if ids.contains(&link.program_id()) => {
                found.push(format!("link {} of program {}", link.id(), link.program_id()));
            }
            Ok(_) => {}
            Err(error) => found.push(format!("error: {error}")),
        }
    }
    for map in aya::maps::loaded_maps() {
        match map {
            Ok(map) => {
                let name = map.name_as_str().unwrap_or_default();
                if name.starts_with(names::PREFIX) {
                    found.push(format!("map {} {name}", map.id()));
                }
            }
            Err(error) => found.push(format!("error: {error}")),
        }
    }
    found
}

/// What is still there after the kernel had time to take it down: it does so behind the end of a process.
pub fn left_over() -> Vec<String> {
    left_over_beside(&[])
}

/// The same, beside programs and maps whose names begin with one of these, and the links of such programs.
pub fn left_over_beside(expected: &[&str]) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let all = ours();
        let is_expected = |line: &String| {
            let name = line.rsplit(' ').next().unwrap_or_default();
            let by_name = expected.iter().any(|begin| name.starts_with(begin));
            // `link 7 of program 3`
            let of_program = line.starts_with("link ").then(|| format!("program {name} "));
            let by_program = of_program.is_some_and(|of| {
                all.iter().any(|program| {
                    let named = program.strip_prefix(&of);
                    named.is_some_and(|named| expected.iter().any(|begin| named.starts_with(begin)))
                })
            });
            by_name || by_program
        };
        let left: Vec<String> = all.iter().filter(|line| !is_expected(line)).cloned().collect();
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
