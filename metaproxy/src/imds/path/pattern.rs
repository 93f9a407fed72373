//! Compiles the patterns of `--allow-path`, which allow more of the node's metadata.
//!
//! A pattern is compiled to an automaton (a DFA), because it must answer more than whether it matches a path. It must
//! also answer whether a list leads to a matching path and, at start, whether it lets any path through.

use std::collections::{HashMap, HashSet};
use std::fmt;

use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;
use regex_automata::util::{start, syntax};
use regex_automata::{Anchored, MatchKind};
use thiserror::Error;

use super::DENIED_SEGMENTS;

/// The maximum size of the automaton of a pattern, in bytes. The automaton of a single path has about ten thousand
/// bytes.
const MAX_COMPILED: usize = 1 << 20;

/// The maximum number of states that are searched for a path that a pattern lets through. Usual patterns take a few
/// hundred states. A pattern that takes more than the maximum is accepted.
const MAX_LOOKED_AT: usize = 100_000;

/// Why a pattern of `--allow-path` is rejected.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BadPattern {
    /// The pattern is not a regular expression, or is too large.
    #[error("not a regular expression: {0}")]
    Regex(String),
    /// The pattern matches no path.
    #[error(
        "{0:?} matches no path; it must match a whole one, such as placement/region, meta-data/placement/region or \
         /latest/meta-data/placement/region"
    )]
    Nothing(String),
    /// The pattern matches paths, but all of them are secrets.
    #[error(
        "{0:?} matches only what is never passed through: credentials, user-data, keys and signatures; software that \
         must read these runs as a pod with hostNetwork"
    )]
    Never(String),
}

/// A pattern that must match a text from its beginning to its end.
#[derive(Clone)]
pub(super) struct Pattern {
    dfa: dense::DFA<Vec<u32>>,
    start: StateID,
    /// States from which more text can lead to a match.
    live: HashSet<StateID>,
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pattern").finish_non_exhaustive()
    }
}

/// Compiles patterns.
///
/// # Errors
/// Returns an error for the first pattern that is rejected.
pub(super) fn compile(texts: &[String]) -> Result<Vec<Pattern>, BadPattern> {
    if texts.is_empty() {
        return Ok(Vec::new());
    }
    let shapes = Shapes::new()?;
    let checked = texts.iter().map(|text| {
        let pattern = Pattern::compile(text)?;
        shapes.check(&pattern, text)?;
        Ok(pattern)
    });
    checked.collect()
}

impl Pattern {
    fn compile(text: &str) -> Result<Self, BadPattern> {
        let bytes = syntax::Config::new().unicode(false).utf8(false);
        // The text is parsed alone first. Otherwise a text such as `a)|(b` would be valid together with the group
        // that is put around it.
        syntax::parse_with(text, &bytes).map_err(|error| BadPattern::Regex(error.to_string()))?;
        let config = dense::Config::new()
            .start_kind(StartKind::Anchored)
            .match_kind(MatchKind::All)
            .accelerate(false)
            .dfa_size_limit(Some(MAX_COMPILED))
            .determinize_size_limit(Some(MAX_COMPILED));
        let dfa = dense::Builder::new()
            .configure(config)
            .syntax(bytes)
            .thompson(
                thompson::Config::new()
                    .utf8(false)
                    .nfa_size_limit(Some(MAX_COMPILED)),
            )
            .build(&format!("^(?:{text})$"));
        let dfa = dfa.map_err(|error| BadPattern::Regex(format!("{text:?}: {error}")))?;
        let start = dfa
            .start_state(&start::Config::new().anchored(Anchored::Yes))
            .map_err(|error| BadPattern::Regex(error.to_string()))?;
        let live = live(&dfa, start);
        Ok(Self { dfa, start, live })
    }

    /// Returns whether the pattern matches a path, with or without a slash at its end.
    pub(super) fn matches(&self, path: &str) -> bool {
        let state = self.after(path);
        self.is_match(state) || self.is_match(self.dfa.next_state(state, b'/'))
    }

    /// Returns whether the pattern matches a path below this one.
    pub(super) fn leads_below(&self, path: &str) -> bool {
        self.live.contains(&self.dfa.next_state(self.after(path), b'/'))
    }

    fn after(&self, text: &str) -> StateID {
        let step = |state, byte| self.dfa.next_state(state, byte);
        text.bytes().fold(self.start, step)
    }

    fn is_match(&self, state: StateID) -> bool {
        self.dfa.is_match_state(self.dfa.next_eoi_state(state))
    }
}

/// Patterns for the forms of a path that patterns of users are compared with.
struct Shapes {
    whole: Pattern,
    after_version: Pattern,
    after_meta_data: Pattern,
    not_after_meta_data: Pattern,
    tags: Pattern,
    secrets: Pattern,
    /// Matches a text with a segment `.` or `..`, which no path in normal form has.
    dotted: Pattern,
}

impl Shapes {
    fn new() -> Result<Self, BadPattern> {
        let version = r"(latest|1\.0|\d{4}-\d\d-\d\d)";
        let part = r"/[\w.~:@!$&'()*+,=-]+";
        let below = format!("(meta-data|dynamic)({part})*/?");
        // This expression must agree with `is_denied_segment`.
        let secret = format!(
            r"[^a-z0-9/]*({})[^a-z0-9/]*|[^/]*credential[^/]*",
            DENIED_SEGMENTS.join("|")
        );
        Ok(Self {
            whole: Pattern::compile(&format!("/({version}(/{below})?/?)?"))?,
            after_version: Pattern::compile(&below)?,
            after_meta_data: Pattern::compile(&format!("{}({part})*/?", &part[1..]))?,
            not_after_meta_data: Pattern::compile(&format!("({version}|meta-data|dynamic|api)(/.*)?"))?,
            tags: Pattern::compile(&format!(
                r"(/{version}/)?(meta-data/)?tags/instance(/[^/\\[:cntrl:]]+)*/?"
            ))?,
            dotted: Pattern::compile(r"(.*/)?\.\.?(/.*)?")?,
            secrets: Pattern::compile(&format!("(?i)(.*/)?({secret})(/.*)?"))?,
        })
    }

    /// Checks that a pattern lets at least one path through.
    ///
    /// # Errors
    /// Returns an error if there is no such path.
    fn check(&self, pattern: &Pattern, text: &str) -> Result<(), BadPattern> {
        let (no_secret, no_dots) = ((&self.secrets, false), (&self.dotted, false));
        let lets_through = is_shared([(pattern, true), (&self.whole, true), no_secret, no_dots])
            || is_shared([(pattern, true), (&self.after_version, true), no_secret, no_dots])
            || is_shared([
                (pattern, true),
                (&self.after_meta_data, true),
                no_secret,
                no_dots,
                (&self.not_after_meta_data, false),
            ])
            || is_shared([(pattern, true), (&self.tags, true)]);
        match lets_through {
            true => Ok(()),
            false if is_shared([(pattern, true), (&self.secrets, true)]) => {
                Err(BadPattern::Never(text.to_owned()))
            }
            false => Err(BadPattern::Nothing(text.to_owned())),
        }
    }
}

/// Returns whether there is a text for which the result of each automaton is the one beside it: `true` for a match.
fn is_shared<const N: usize>(wanted: [(&Pattern, bool); N]) -> bool {
    let first = wanted.map(|(pattern, _)| pattern.start);
    let mut seen = HashSet::from([first]);
    let mut queue = vec![first];
    while let Some(states) = queue.pop() {
        let here = || wanted.iter().zip(states);
        if here().all(|((pattern, is_match), state)| pattern.is_match(state) == *is_match) {
            return true;
        }
        if seen.len() > MAX_LOOKED_AT {
            return true;
        }
        for byte in b' '..=b'~' {
            let mut next = states;
            for (state, (pattern, _)) in next.iter_mut().zip(wanted) {
                *state = pattern.dfa.next_state(*state, byte);
            }
            let may_match = wanted
                .iter()
                .zip(next)
                .all(|((pattern, is_match), state)| !is_match || pattern.live.contains(&state));
            if may_match && seen.insert(next) {
                queue.push(next);
            }
        }
    }
    false
}

/// Returns the states from which a match can be reached.
fn live(dfa: &dense::DFA<Vec<u32>>, start: StateID) -> HashSet<StateID> {
    let mut before: HashMap<StateID, Vec<StateID>> = HashMap::new();
    let mut seen = HashSet::from([start]);
    let mut queue = vec![start];
    let mut live = Vec::new();
    while let Some(state) = queue.pop() {
        if dfa.is_match_state(dfa.next_eoi_state(state)) {
            live.push(state);
        }
        let bytes = dfa.byte_classes().representatives(0..=u8::MAX);
        for byte in bytes.filter_map(|unit| unit.as_u8()) {
            let next = dfa.next_state(state, byte);
            before.entry(next).or_default().push(state);
            if seen.insert(next) {
                queue.push(next);
            }
        }
    }
    let mut found: HashSet<StateID> = live.iter().copied().collect();
    while let Some(state) = live.pop() {
        for earlier in before.get(&state).into_iter().flatten() {
            if found.insert(*earlier) {
                live.push(*earlier);
            }
        }
    }
    found
}
