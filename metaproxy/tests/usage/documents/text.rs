//! Parsers for blocks, lines and words of a document.

/// A code block: indented by four or more blanks, or between fences.
#[derive(Debug)]
pub struct Block {
    /// The number of its first line.
    pub line: usize,
    /// The text without the indentation that all of its lines have.
    pub text: String,
}

impl Block {
    /// Returns whether the block is a drawing of boxes and arrows.
    pub fn is_drawing(&self) -> bool {
        self.text.contains('│')
    }

    /// Returns whether the block is output of `explain`.
    pub fn is_explanation(&self) -> bool {
        self.text.starts_with("pod ") && self.text.contains("\nverdict ")
    }

    /// Returns whether the block is an IAM policy.
    pub fn is_policy(&self) -> bool {
        self.text.starts_with('{')
    }

    /// Returns whether the block begins with a YAML key.
    pub fn is_yaml(&self) -> bool {
        let first = self.text.lines().next().unwrap_or_default();
        let key = first
            .split_once(':')
            .map(|(key, rest)| (key, rest.is_empty() || rest.starts_with(' ')));
        key.is_some_and(|(key, ends)| {
            ends && !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric())
        })
    }
}

/// Returns all code blocks of a Markdown document.
pub fn blocks(document: &str) -> Vec<Block> {
    let mut found: Vec<(usize, Vec<&str>)> = Vec::new();
    let (mut in_fence, mut in_block) = (false, false);
    let mut after_blank = true;
    for (index, line) in document.lines().enumerate() {
        let is_fence = line.trim_start().starts_with("```");
        // A continuation line of a list is indented too, but it has no empty line before it.
        let is_indented = line.starts_with("    ") && (in_block || after_blank);
        let belongs = if is_fence { false } else { in_fence || is_indented };
        if is_fence {
            in_fence = !in_fence;
        }
        if belongs {
            match found.last_mut().filter(|_| in_block) {
                Some((_, lines)) => lines.push(line),
                None => found.push((index + 1, vec![line])),
            }
        }
        in_block = belongs;
        after_blank = line.trim().is_empty();
    }
    let block = |(line, lines): (usize, Vec<&str>)| {
        let indent = |line: &&str| line.len() - line.trim_start().len();
        let filled = lines.iter().copied().filter(|line| !line.trim().is_empty());
        let least = filled.map(|line| indent(&line)).min().unwrap_or_default();
        let text: Vec<&str> = lines
            .iter()
            .map(|line| line.get(least..).unwrap_or_default())
            .collect();
        Block {
            line,
            text: text.join("\n"),
        }
    };
    found.into_iter().map(block).collect()
}

/// Splits text into lines as a shell does. A line that ends with `\` continues in the next one.
pub fn lines_of(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(str::to_owned).collect()
}

/// Returns the commands within the text: spans between backticks that begin with a program and an argument.
pub fn mentions(document: &str) -> Vec<String> {
    let is_text = |line: &&str| !line.starts_with("    ");
    let text: Vec<&str> = document.lines().filter(is_text).collect();
    let text = text.join("\n");
    let is_command = |span: &String| {
        let mut words = span.split(' ').skip_while(|word| matches!(*word, "sudo" | "-E"));
        let program = words.next().unwrap_or_default();
        let is_program = ["metaproxy", "/metaproxy", "helm", "kubectl", "cargo", "oc"].contains(&program);
        (is_program || program.starts_with("/proc/$(")) && words.next().is_some()
    };
    let spans = text.split('`').skip(1).step_by(2);
    let spans = spans.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "));
    spans.filter(is_command).collect()
}

/// Splits a line into commands, which `|`, `&&`, `;` and redirections separate, and each command into words without
/// quotes. Text after `#` is a comment. Text between brackets is a placeholder.
pub fn commands_of(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut characters = line.chars().peekable();
    let (mut quote, mut depth) = (None, 0);
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') if depth == 0 => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (_, '(') => {
                depth += 1;
                word.get_or_insert_default().push(c);
            }
            (_, ')') => {
                depth -= 1;
                word.get_or_insert_default().push(c);
            }
            (None, ' ') if depth == 0 => {
                let Some(word) = word.take() else { continue };
                end(&mut commands, word);
            }
            (None, '#') if word.is_none() => break,
            (None, '[') if word.is_none() => {
                for c in characters.by_ref() {
                    if c == ']' {
                        break;
                    }
                }
            }
            (None, ';') if depth == 0 => {
                if let Some(word) = word.take() {
                    end(&mut commands, word);
                }
                commands.push(Vec::new());
            }
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(word) = word.take() {
        end(&mut commands, word);
    }
    commands.retain(|words| !words.is_empty());
    commands
}

fn end(commands: &mut Vec<Vec<String>>, word: String) {
    match word.as_str() {
        "|" | "&&" | ">" => commands.push(match word.as_str() {
            // A redirection is followed by a file, not by a command.
            ">" => vec![word],
            _ => Vec::new(),
        }),
        _ => commands.last_mut().expect("a command").push(word),
    }
}

/// Returns the commands in `$(…)` within a word.
pub fn substitutions(word: &str) -> Vec<&str> {
    let parts = word.split("$(").skip(1);
    parts.filter_map(|part| part.split(')').next()).collect()
}
