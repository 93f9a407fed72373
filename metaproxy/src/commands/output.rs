//! Prints results to standard output and problems to standard error, and makes the exit status of commands.

use std::io::{self, Write as _};
use std::process::ExitCode;

use serde::Serialize;

use crate::explain::printable;

/// The exit status if no agent answers or the input cannot be read (EX_UNAVAILABLE of sysexits.h).
pub(super) const EX_UNAVAILABLE: u8 = 69;

/// The exit status if the command reports a problem.
pub(super) const EX_PROBLEM: u8 = 1;

/// Makes the exit status of a command that could complete its checks.
pub(super) fn verdict(is_bad: bool) -> ExitCode {
    ExitCode::from(if is_bad { EX_PROBLEM } else { 0 })
}

/// Prints an error, and makes the exit status of a command that could not complete its checks.
pub(super) fn unavailable(error: &str) -> ExitCode {
    let lines: Vec<String> = error.lines().map(printable).collect();
    eprintln!("error: {}", lines.join("\n"));
    ExitCode::from(EX_UNAVAILABLE)
}

/// Prints text to standard output. Errors are ignored, because the reader may have closed the pipe, as `head` does.
pub(super) fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints a value as indented JSON.
pub(super) fn print_json(value: &impl Serialize) {
    // The serialisation of plain data does not fail.
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    print(&format!("{text}\n"));
}
