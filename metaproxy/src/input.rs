//! Reads the input files of commands.

use std::io;
use std::path::Path;

/// Reads a file, or standard input if the path is `-`.
///
/// # Errors
/// Returns the error of reading the file.
pub fn read_text(path: &Path) -> io::Result<String> {
    if path == Path::new("-") {
        return io::read_to_string(io::stdin());
    }
    std::fs::read_to_string(path)
}
