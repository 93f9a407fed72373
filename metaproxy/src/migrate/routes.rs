//! Turns kiam's `--allow-route-regexp` into `metadata.allowPaths`. kiam's pattern matches any part of a request's
//! path, and the patterns of `metadata.allowPaths` match a whole path.

use regex_syntax::ast::{AssertionKind, Ast, Group, parse::Parser};

use crate::imds::path::{BadPattern, DENIED_SEGMENTS, PassThrough, Paths};

const NEVER_PASSED: &str =
    "this path is never passed through to pods; software that needs it runs in a hostNetwork pod";

const ANSWERED: &str = "the agent answers this path itself, with the pod's own role";

/// Parts of the paths that the agent answers itself.
const OWN: [&str; 3] = ["iam/info", "iam/security-credentials", "api/token"];

/// The result for one alternative of a pattern.
#[derive(Debug, PartialEq, Eq)]
pub enum Allowed {
    /// A pattern.
    Pattern(String),
    /// A pattern that matches every path that can be passed through.
    Everything(String),
    /// No pattern, with the reason.
    Nothing(&'static str),
}

/// Paths of the node's metadata that share no prefix.
const SAMPLES: [&str; 3] = [
    "/latest/meta-data/ami-id",
    "/latest/meta-data/zz/9",
    "/latest/meta-data/network/interfaces/macs/02:00:00:00:00:01/mac",
];

/// Makes the patterns for a pattern of kiam's, each with the alternative that it comes from.
///
/// # Errors
/// If kiam's pattern is not valid; the error says why.
pub fn allowed(pattern: &str) -> Result<Vec<(String, Allowed)>, String> {
    let pattern = plain_slashes(&crate::roles::go_regexp(pattern));
    let ast = Parser::new()
        .parse(&pattern)
        .map_err(|error| error.kind().to_string())?;
    // Flags in one alternative apply to the later ones too. `(?:` has no flags.
    let has_flags = pattern.matches("(?").count() != pattern.matches("(?:").count();
    let parts = if has_flags {
        vec![pattern.clone()]
    } else {
        alternatives(&ast, &pattern)
    };
    parts
        .into_iter()
        .map(|part| Ok((part.clone(), one(&part)?)))
        .collect()
}

/// Splits a pattern into its alternatives, without groups around the whole: `(a|b)` gives `a` and `b`, and `^(a|b)$`
/// gives `^a$` and `^b$`.
fn alternatives(ast: &Ast, pattern: &str) -> Vec<String> {
    let inner = |group: &Group| {
        let is_plain = group.flags().is_none_or(|flags| flags.items.is_empty());
        is_plain.then(|| alternatives(&group.ast, pattern))
    };
    let text = |from: usize, to: usize| pattern[from..to].to_owned();
    let (start, end) = (ast.span().start.offset, ast.span().end.offset);
    let found = match ast {
        Ast::Alternation(several) => Some(
            several
                .asts
                .iter()
                .flat_map(|one| alternatives(one, pattern))
                .collect(),
        ),
        Ast::Group(group) => inner(group),
        Ast::Concat(parts) => match &parts.asts[..] {
            [Ast::Assertion(first), Ast::Group(group), ..] if first.kind == AssertionKind::StartLine => {
                let after = text(group.span.end.offset, end);
                inner(group).map(|all| all.iter().map(|one| format!("^{one}{after}")).collect())
            }
            _ => None,
        },
        _ => None,
    };
    found.unwrap_or_else(|| vec![text(start, end)])
}

/// Removes the backslash before a slash, which patterns often have and do not need.
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
    if OWN.iter().any(|own| part.contains(own)) {
        return Ok(Allowed::Nothing(ANSWERED));
    }
    // `security-credentials` is always below a denied segment.
    if DENIED_SEGMENTS
        .iter()
        .chain(&["security-credentials"])
        .any(|word| part.contains(word))
    {
        return Ok(Allowed::Nothing(NEVER_PASSED));
    }
    let starts = part.starts_with('^');
    if has_other_start(&part) || (starts && !part.starts_with("^/")) {
        return Ok(Allowed::Nothing(
            "its anchor for the beginning of a path has another meaning here; write a pattern for whole paths into \
             metadata.allowPaths",
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

/// Reports whether a pattern has an anchor for the beginning of the text other than its first character, or a
/// quantified slash after that first anchor.
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
    // Public values of kiam's chart have these patterns.
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
    // The pattern looks like a glob, but it matches any number of slashes (giantswarm/kiam-app,
    // helm/kiam-app/values.yaml).
    #[case::a_glob("/latest/*", Allowed::Everything(".*/latest/*.*".to_owned()))]
    // KubeZero's chart (kubezero-kiam) has this pattern.
    #[case::a_group_inside(
        "^/latest/(meta-data/instance-id|dynamic)",
        pattern("/latest/(meta-data/instance-id|dynamic).*")
    )]
    fn a_pattern_matches_the_same_paths_as_in_kiam(#[case] of_kiam: &str, #[case] here: Allowed) {
        assert_eq!(allowed(of_kiam).unwrap().remove(0).1, here);
    }

    #[rstest]
    #[case::nothing("^$")]
    #[case::never("/latest/user-data")]
    #[case::another_beginning("^meta-data/tags")]
    #[case::a_beginning_inside("x(^meta-data|y)")]
    #[case::no_path("^/openstack/latest$")]
    fn a_pattern_without_an_allowed_path_opens_nothing(#[case] of_kiam: &str) {
        assert!(matches!(
            allowed(of_kiam).unwrap()[..],
            [(_, Allowed::Nothing(_))]
        ));
    }

    /// Public modules and charts of kiam have such patterns (the first is from
    /// particuleio/terraform-kubernetes-addons, modules/aws/kiam.tf).
    #[rstest]
    #[case::between_anchors(
        "^(/latest/dynamic/instance-identity/document|/latest/meta-data/placement/availability-zone)$",
        &["/latest/dynamic/instance-identity/document", "/latest/meta-data/placement/availability-zone"]
    )]
    #[case::behind_the_beginning("^(?:/latest/meta-data/mac|(/latest/meta-data/ami-id))", &["/latest/meta-data/mac.*", "/latest/meta-data/ami-id.*"])]
    #[case::one("^(/latest/meta-data/mac)$", &["/latest/meta-data/mac"])]
    #[case::goes_on("^(/latest|/2021-07-15)/meta-data/mac$", &["/latest/meta-data/mac", "/2021-07-15/meta-data/mac"])]
    fn a_group_after_the_start_anchor_is_split_into_its_alternatives(
        #[case] of_kiam: &str,
        #[case] here: &[&str],
    ) {
        let found: Vec<Allowed> = allowed(of_kiam)
            .unwrap()
            .into_iter()
            .map(|(_, one)| one)
            .collect();
        let want: Vec<Allowed> = here.iter().map(|one| pattern(one)).collect();
        assert_eq!(found, want);
    }

    /// kiam passed on these paths only with a pattern (envoyproxy/envoy#8325, and the role's name for software that
    /// requests `iam/info`).
    #[rstest]
    #[case("/latest/meta-data/iam/security-credentials.*")]
    #[case("(^/latest/meta-data/iam/info$)")]
    #[case("^\\/latest\\/api\\/token$")]
    fn a_path_that_the_agent_answers_needs_no_pattern(#[case] of_kiam: &str) {
        let found = allowed(of_kiam).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1, Allowed::Nothing(ANSWERED));
    }

    #[test]
    fn credentials_of_the_node_are_never_passed_through() {
        let found = allowed("meta-data/identity-credentials/ec2/security-credentials/ec2-instance").unwrap();
        assert_eq!(found[0].1, Allowed::Nothing(NEVER_PASSED));
    }

    #[test]
    fn each_alternative_is_mapped_separately() {
        let found = allowed("(user-data|/latest/meta-data/(mac|ami-id))").unwrap();
        assert!(matches!(found[0].1, Allowed::Nothing(_)));
        assert_eq!(found[1].1, pattern(".*/latest/meta-data/(mac|ami-id).*"));
        assert!(allowed("(").is_err());
    }

    proptest! {
        /// The patterns are tried in each form in which `--allow-path` tries a path. They never open a path that kiam
        /// refused.
        #[test]
        fn no_path_is_opened_that_kiam_refused(
            parts in prop::collection::vec("[\\^]?/?(latest|meta-data|mac|a|\\.\\*|\\[\\^/\\]\\+|tags/?|\\()?[$]?", 1..4),
            wrapping in prop::sample::select(vec![("", "", ""), ("^(", "|", ")$"), ("(", "|", ")"), ("^(?:", "|", ")"), ("^(", "|", ")/mac")]),
            path in "/(latest|2021-07-15)/(meta-data|dynamic)/(mac|a|tags|tags/a|latest)",
        ) {
            let (before, between, after) = wrapping;
            let of_kiam = format!("{before}{}{after}", parts.join(between));
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
