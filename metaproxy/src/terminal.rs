//! Wraps text for the width of a terminal.

use std::io::{self, IsTerminal as _};

/// The minimum width in characters. A narrower terminal is treated as this wide.
const MIN_WIDTH: usize = 40;

/// The indentation of a continued line in characters, if its last column begins too far to the right.
const INDENT: usize = 4;

/// Wraps text for the terminal at standard output. Text for files and pipes is not changed.
pub fn fit_to_terminal(text: &str) -> String {
    if !io::stdout().is_terminal() {
        return text.to_owned();
    }
    match terminal_size::terminal_size() {
        Some((terminal_size::Width(width), _)) => wrap(text, usize::from(width)),
        None => text.to_owned(),
    }
}

/// Wraps lines that are longer than `width` characters, at blanks. A continued line is indented to the last column of
/// its line. A column begins after two or more blanks.
pub fn wrap(text: &str, width: usize) -> String {
    let width = width.max(MIN_WIDTH);
    text.split_inclusive('\n')
        .map(|line| wrap_line(line, width))
        .collect()
}

fn wrap_line(line: &str, width: usize) -> String {
    let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
    if line.chars().count() <= width {
        return format!("{line}{end}");
    }
    let column = line.rfind("  ").map_or(0, |at| line[..at + 2].chars().count());
    let indent = if column > width / 2 { INDENT } else { column };
    let (mut done, mut rest) = (String::new(), line);
    loop {
        let indented = if done.is_empty() { 0 } else { indent };
        let room = width - indented;
        // A break before the last column would separate the columns of a table.
        let from = if done.is_empty() && column < room {
            column
        } else {
            0
        };
        let Some((fits, over)) = split(rest, room, from) else {
            return format!("{done}{:indented$}{rest}{end}", "");
        };
        done = format!("{done}{:indented$}{}\n", "", fits.trim_end());
        rest = over.trim_start();
    }
}

/// Splits a line into the part that fits and the rest. Returns `None` if the whole line fits, or if no blank after
/// `from` allows a break.
fn split(line: &str, room: usize, from: usize) -> Option<(&str, &str)> {
    let (over, _) = line.char_indices().nth(room)?;
    let blanks = || {
        let characters = line.char_indices().enumerate();
        characters.filter_map(|(count, (at, character))| (character == ' ').then_some((count, at)))
    };
    let fitting = blanks()
        .filter(|(count, _)| *count > from && *count <= room)
        .last();
    // A word that is longer than the line is not split.
    let (_, at) = fitting.or_else(|| blanks().find(|(_, at)| *at > over))?;
    Some(line.split_at(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_long_line_continues_below_its_last_column() {
        let text = "because     role app is not permitted in namespace apps: its annotation does not allow it\nshort\n";
        let want = "because     role app is not permitted in\n            namespace apps: its\n            annotation does not allow it\n\
                    short\n";
        assert_eq!(wrap(text, 40), want);
    }

    #[test]
    fn a_column_that_begins_on_the_right_is_indented_little() {
        let text = "apps/a-pod-with-a-long-name  granted  0 1 2 3 4 5 6 7 8 9 10 11 12\n";
        let want = "apps/a-pod-with-a-long-name  granted  0\n    1 2 3 4 5 6 7 8 9 10 11 12\n";
        assert_eq!(wrap(text, 40), want);
    }

    proptest! {
        #[test]
        fn no_word_is_lost(text in "([a-zä]{1,9} {1,3}){0,30}\n?", width in 0_usize..120) {
            let wide = wrap(&text, width);
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            prop_assert_eq!(words(&wide), words(&text));
            prop_assert!(wide.lines().all(|line| line.chars().count() <= width.max(MIN_WIDTH) + 9));
        }
    }
}
