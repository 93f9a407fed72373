//! kiam's `--allow-route-regexp`, which matches any part of a request's path, as `metadata.allowPaths`, whose patterns match
//! a path from its beginning to its end.

use regex_syntax::ast::{Ast, parse::Parser};

use crate::imds::path::{BadPattern, NEVER, PassThrough, Paths};

const NEVER_PASSED: &str =
    "what it names is never passed to pods; software that needs it of the node runs in a hostNetwork pod";

/// What comes of one alternative of such a pattern.
#[derive(Debug, PartialEq, Eq)]
pub enum Allowed {
    /// This pattern.
    Pattern(String),
    /// This pattern, which opens everything that can be opened.
    Everything(String),
    /// Nothing, and why.
    Nothing(&'static str),
}

/// Paths of the node's metadata that have nothing else in common.
const SAMPLES: [&str; 3] = [
    "/latest/meta-data/ami-id",
    "/latest/meta-data/zz/9",
    "/latest/meta-data/network/interfaces/macs/02:00:00:00:00:01/mac",
];

/// The patterns for a pattern of kiam's, each with the alternative that it is for.
///
/// # Errors
/// What is wrong with it.
pub fn allowed(pattern: &str) -> Result<Vec<(String, Allowed)>, String> {
    let pattern = plain_slashes(&crate::roles::go_regexp(pattern));
    let ast = Parser::new()
        .parse(&pattern)
        .map_err(|error| error.kind().to_string())?;
    // Flags in one alternative count in those after it too.
    let parts = if pattern.contains("(?") {
        vec![&ast]
    } else {
        alternatives(&ast)
    };
    parts
        .into_iter()
        .map(|part| pattern[part.span().start.offset..part.span().end.offset].to_owned())
        .map(|part| Ok((part.clone(), one(&part)?)))
        .collect()
}

/// What a pattern matches one of, groups around the whole of it left out.
fn alternatives(ast: &Ast) -> Vec<&Ast> {
    match ast {
        Ast::Alternation(alternation) => alternation.asts.iter().flat_map(alternatives).collect(),
        Ast::Group(group) if group.flags().is_none_or(|flags| flags.items.is_empty()) => {
            alternatives(&group.ast)
        }
        other => vec![other],
    }
}

/// A slash needs no backslash, but often has one.
fn plain_slashes(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        let after = if letter == '\\' { letters.next() } else { None };
        if after != Some('/') {
            out.push(letter);
        }
        out.extend(after);
    }
    out
}

fn one(part: &str) -> Result<Allowed, String> {
    if matches!(part, "^$" | "") {
        return Ok(Allowed::Nothing("it matches no path, which is kiam's default"));
    }
    // A path always begins with a slash.
    let part = part.replacen("^/?", "^/", 1);
    // The last is always below the first of those.
    if NEVER
        .iter()
        .chain(&["security-credentials"])
        .any(|word| part.contains(word))
    {
        return Ok(Allowed::Nothing(NEVER_PASSED));
    }
    let starts = part.starts_with('^');
    if has_other_start(&part) || (starts && !part.starts_with("^/")) {
        return Ok(Allowed::Nothing(
            "it asks for the beginning of a path in a way that means another one here; metadata.allowPaths takes patterns for \
             whole paths",
        ));
    }
    let ends = part.ends_with('$') && !part.ends_with("\\$");
    let core = part.strip_prefix('^').unwrap_or(&part);
    let core = if ends { &core[..core.len() - 1] } else { core };
    let before = if starts || core.starts_with(".*") {
        ""
    } else {
        ".*"
    };
    let after = if ends || core.ends_with(".*") { "" } else { ".*" };
    let whole = format!("{before}{core}{after}");
    match Paths::new(PassThrough::None, std::slice::from_ref(&whole)) {
        Ok(_) => {}
        Err(BadPattern::Nothing(_)) => {
            return Ok(Allowed::Nothing("it matches no path of the metadata service"));
        }
        Err(BadPattern::Never(_)) => return Ok(Allowed::Nothing(NEVER_PASSED)),
        Err(BadPattern::Regex(problem)) => return Err(problem),
    }
    let compiled = regex::Regex::new(&format!("^(?:{whole})$")).map_err(|error| error.to_string())?;
    Ok(if SAMPLES.iter().all(|path| compiled.is_match(path)) {
        Allowed::Everything(whole)
    } else {
        Allowed::Pattern(whole)
    })
}

/// Whether something but its first character asks for the beginning of the text, or a quantified first slash does.
fn has_other_start(part: &str) -> bool {
    let inner = part.replace("[^", "").replace("\\^", "");
    let inner = inner.strip_prefix('^').unwrap_or(&inner);
    let quantified = ["/?", "/*", "/{"].iter().any(|start| inner.starts_with(start));
    inner.contains('^') || inner.contains("\\A") || (part.starts_with('^') && quantified)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn pattern(pattern: &str) -> Allowed {
        Allowed::Pattern(pattern.to_owned())
    }

    #[rstest]
    #[case::anywhere("/meta-data/tags", pattern(".*/meta-data/tags.*"))]
    #[case::backslashes(
        "^\\/latest\\/meta-data\\/(spot|mac)$",
        pattern("/latest/meta-data/(spot|mac)")
    )]
    #[case::all_metadata("/latest/meta-data", Allowed::Everything(".*/latest/meta-data.*".to_owned()))]
    #[case::a_word("meta-data", Allowed::Everything(".*meta-data.*".to_owned()))]
    #[case::from_the_beginning("^/latest/dynamic", pattern("/latest/dynamic.*"))]
    #[case::an_optional_slash("^/?[^/]+/meta-data/ami-id$", pattern("/[^/]+/meta-data/ami-id"))]
    #[case::to_the_end("instance-id$", pattern(".*instance-id"))]
    #[case::the_whole("^/latest/meta-data/mac$", pattern("/latest/meta-data/mac"))]
    #[case::a_dollar("cost\\$", pattern(".*cost\\$.*"))]
    #[case::quoted("\\Qtags/instance/a.b\\E", pattern(".*tags/instance/a\\.b.*"))]
    // As public values of kiam's chart have them.
    #[case::of_spot(
        "spot/(instance-action|termination-time)$",
        pattern(".*spot/(instance-action|termination-time)")
    )]
    #[case::of_a_version("/latest", Allowed::Everything(".*/latest.*".to_owned()))]
    #[case::everything(".*", Allowed::Everything(".*".to_owned()))]
    #[case::nearly_everything("latest|2021", Allowed::Everything(".*latest.*".to_owned()))]
    #[case::the_end_of_one(
        "^/latest/meta-data/mac|instance-identity/document$",
        pattern("/latest/meta-data/mac.*")
    )]
    #[case::grouped(
        "(/latest/meta-data/placement/availability-zone|x)",
        pattern(".*/latest/meta-data/placement/availability-zone.*")
    )]
    #[case::a_slash("/", Allowed::Everything(".*/.*".to_owned()))]
    fn a_pattern_matches_here_what_it_matched_in_kiam(#[case] of_kiam: &str, #[case] here: Allowed) {
        assert_eq!(allowed(of_kiam).unwrap().remove(0).1, here);
    }

    #[rstest]
    #[case::nothing("^$")]
    #[case::never("/latest/user-data")]
    #[case::another_beginning("^meta-data/tags")]
    #[case::a_beginning_inside("x(^meta-data|y)")]
    #[case::no_path("^/openstack/latest$")]
    fn what_matched_nothing_or_is_never_passed_opens_nothing(#[case] of_kiam: &str) {
        assert!(matches!(
            allowed(of_kiam).unwrap()[..],
            [(_, Allowed::Nothing(_))]
        ));
    }

    #[test]
    fn alternatives_are_taken_one_by_one() {
        let found = allowed("(user-data|/latest/meta-data/(mac|ami-id))").unwrap();
        assert!(matches!(found[0].1, Allowed::Nothing(_)));
        assert_eq!(found[1].1, pattern(".*/latest/meta-data/(mac|ami-id).*"));
        assert!(allowed("(").is_err());
    }

    proptest! {
        /// In any of the forms in which `--allow-path` tries a path, and never more than kiam did.
        #[test]
        fn no_path_is_opened_that_kiam_refused(
            parts in prop::collection::vec("[\\^]?/?(latest|meta-data|mac|a|\\.\\*|\\[\\^/\\]\\+|tags/?|\\()?[$]?", 1..4),
            path in "/(latest|2021-07-15)/(meta-data|dynamic)/(mac|a|tags|tags/a|latest)",
        ) {
            let of_kiam = parts.concat();
            if let (Ok(kiam), Ok(found)) = (regex::Regex::new(&of_kiam), allowed(&of_kiam)) {
                let version_less = path.splitn(3, '/').nth(2).unwrap();
                let forms = [path.as_str(), version_less, version_less.strip_prefix("meta-data/").unwrap_or(&path)];
                for (_, one) in found {
                    if let Allowed::Pattern(here) | Allowed::Everything(here) = one {
                        let here = regex::Regex::new(&format!("^(?:{here})$")).unwrap();
                        let is_open = forms.iter().any(|form| here.is_match(form));
                        prop_assert!(!is_open || kiam.is_match(&path), "{of_kiam} became {here}, which opens {path}");
                        prop_assert!(is_open || !forms.iter().any(|_| kiam.is_match(&path) && allowed(&of_kiam).unwrap().len() == 1),
                            "{of_kiam} became {here}, which no longer opens {path}");
                    }
                }
            }
        }
    }
}
