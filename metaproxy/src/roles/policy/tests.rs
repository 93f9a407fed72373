use super::*;
use crate::roles::arn::WrittenRole;
use proptest::prelude::*;
use rstest::rstest;

fn base() -> BaseArn {
    "arn:aws:iam::123456789012:role/".parse().unwrap()
}

/// Returns the entry of a policy that allows a role, which is given as a user writes it.
fn entry_for(policy: &Policy, written: &str) -> Option<String> {
    let role = written
        .parse::<WrittenRole>()
        .unwrap()
        .resolve(Some(&base()))
        .unwrap()
        .unwrap();
    policy
        .allows(&Candidate::new(&role, written, Some(&base())))
        .map(str::to_owned)
}

fn permitted(annotation: &str, style: PermittedMatch) -> Result<Policy, PolicyError> {
    Policy::permitted(annotation, style, Letters::AsWritten)
}

fn allowed_roles(annotation: &str, style: AllowedRolesStyle) -> Result<Policy, PolicyError> {
    Policy::allowed_roles(annotation, style, Letters::AsWritten)
}

fn permits(pattern: &str, role: &str, style: PermittedMatch) -> bool {
    entry_for(&permitted(pattern, style).unwrap(), role).is_some()
}

fn allows(annotation: &str, role: &str, style: AllowedRolesStyle) -> bool {
    entry_for(&allowed_roles(annotation, style).unwrap(), role).is_some()
}

#[rstest]
#[case::name("app", "app", true, true)]
#[case::whole_name("app", "app-admin", false, true)]
#[case::prefix("my-app", "app", false, false)]
#[case::suffix("app", "my-app", false, true)]
#[case::alternation("app|web", "app", true, true)]
#[case::alternation_anchored_on_both_sides("app|web", "app-admin", false, true)]
#[case::alternation_second("app|web", "evil-web", false, true)]
#[case::arn("arn:aws:iam::123456789012:role/app", "app", true, true)]
#[case::arn_pattern("arn:aws:iam::\\d+:role/team/.*", "team/app", true, true)]
#[case::as_written_with_its_slash("/team/app", "/team/app", true, true)]
#[case::without_the_slash("team/app", "/team/app", true, true)]
#[case::everything(".*", "anything", true, true)]
#[case::nothing("$^", "app", false, false)]
#[case::other_account("app", "arn:aws:iam::999999999999:role/app", false, true)]
#[case::arn_of_the_base("app", "arn:aws:iam::123456789012:role/app", true, true)]
#[case::empty("", "app", false, false)]
#[case::blank(" ", "app", false, false)]
#[case::anchored_by_hand("^app$", "app", true, true)]
#[case::anchored_by_hand_other("^app$", "my-app", false, false)]
#[case::quoted("\\Qteam.a/app\\E.*", "team.a/app-web", true, true)]
#[case::quoted_is_as_it_is_written("\\Qa.p\\E", "app", false, false)]
// kiam put `^` before the first alternative and `$` after the last one, and accepted this role (pkg/server/policy.go
// of v4.2).
#[case::alternatives_of_kiam("team-a/.*|team-b/.*", "admin/team-b/app", false, true)]
#[case::alternatives_with_paths("team-a/.*|team-b/.*", "team-a/app", true, true)]
fn permitted_matches_as_in_kiam(
    #[case] pattern: &str,
    #[case] role: &str,
    #[case] anchored: bool,
    #[case] search: bool,
) {
    assert_eq!(permits(pattern, role, PermittedMatch::Anchored), anchored);
    assert_eq!(permits(pattern, role, PermittedMatch::Search), search);
}

#[rstest]
#[case::name(r#"["app"]"#, "app", true)]
#[case::other(r#"["web"]"#, "app", false)]
#[case::second(r#"["web", "app"]"#, "app", true)]
#[case::star(r#"["app-*"]"#, "app-x", true)]
#[case::star_is_anchored(r#"["app-*"]"#, "my-app-x", false)]
#[case::star_crosses_slashes(r#"["*"]"#, "team/app", true)]
#[case::star_in_the_middle(r#"["team/*/app"]"#, "team/a/b/app", true)]
#[case::question_mark(r#"["app-?"]"#, "app-xy", false)]
#[case::arn(r#"["arn:aws:iam::123456789012:role/app"]"#, "app", true)]
#[case::arn_in_capitals(r#"["ARN:aws:iam::123456789012:role/app"]"#, "app", true)]
#[case::arn_glob(r#"["arn:aws:iam::123456789012:role/*"]"#, "team/app", true)]
#[case::any_account(r#"["arn:aws:iam::*:role/app"]"#, "arn:aws:iam::999999999999:role/app", true)]
#[case::slash_before(r#"["/team/*"]"#, "team/app", true)]
#[case::slash_before_both(r#"["/app"]"#, "/app", true)]
#[case::dot_is_a_dot(r#"["a.p"]"#, "app", false)]
#[case::name_of_another_account(r#"["app"]"#, "arn:aws:iam::999999999999:role/app", false)]
#[case::star_is_for_names(r#"["*"]"#, "arn:aws:iam::999999999999:role/app", false)]
#[case::star_at_the_beginning(r#"["*-app"]"#, "arn:aws:iam::999999999999:role/my-app", false)]
#[case::empty_entry(r#"["", " "]"#, "app", false)]
#[case::none("[]", "app", false)]
fn globs_match_as_in_kube2iam(#[case] annotation: &str, #[case] role: &str, #[case] want: bool) {
    assert_eq!(allows(annotation, role, AllowedRolesStyle::Glob), want);
}

#[rstest]
#[case::name(r#"["app"]"#, "app", true)]
#[case::need_not_go_to_the_end(r#"["app"]"#, "app-x", true)]
#[case::from_the_beginning_of_names(r#"["app"]"#, "my-app", false)]
#[case::any_name_with_it(r#"[".*app"]"#, "my-app-x", true)]
#[case::anchored_by_hand(r#"["^app$"]"#, "app", true)]
#[case::anchored_by_hand_other(r#"["^app$"]"#, "app-x", false)]
#[case::alternation(r#"["app|web"]"#, "my-web", false)]
#[case::arn(r#"["arn:aws:iam::123456789012:role/app"]"#, "app-x", true)]
#[case::arn_in_capitals(r#"["^ARN:aws:iam::\\d+:role/app$"]"#, "app", true)]
#[case::any_account(
    r#"["arn:aws:iam::[0-9]*:role/app"]"#,
    "arn:aws:iam::999999999999:role/app",
    true
)]
#[case::names_are_not_of_other_accounts(r#"[".*"]"#, "arn:aws:iam::999999999999:role/app", false)]
#[case::across_slashes(r#"["team/.*"]"#, "team/a/b", true)]
#[case::slash_before(r#"["/admin$"]"#, "cluster-admin", false)]
#[case::only_a_slash(r#"["/"]"#, "app", false)]
// jtblin/kube2iam#341: the first entry did not work in kube2iam, which put the base ARN before it.
#[case::a_whole_arn(
    r#"["^arn:aws:iam::123456789012:role/path_of_my_role/MyRole$"]"#,
    "path_of_my_role/MyRole",
    true
)]
#[case::without_its_path(r#"["MyRole"]"#, "path_of_my_role/MyRole", false)]
#[case::second(r#"["no", "app"]"#, "app", true)]
#[case::empty_entry(r#"["", "^"]"#, "app", false)]
fn regexps_match_a_prefix_of_the_name_after_the_base_arn_as_in_kube2iam(
    #[case] annotation: &str,
    #[case] role: &str,
    #[case] want: bool,
) {
    assert_eq!(allows(annotation, role, AllowedRolesStyle::Regexp), want);
}

#[test]
fn the_entry_that_allows_a_role_is_returned_as_written() {
    let policy = allowed_roles(r#"["", "web", "/app-*", "*"]"#, AllowedRolesStyle::Glob).unwrap();
    assert_eq!(entry_for(&policy, "app-x").as_deref(), Some("/app-*"));
    assert_eq!(entry_for(&policy, "zzz").as_deref(), Some("*"));
}

#[rstest]
#[case("a)|(b")]
#[case("(")]
#[case("(?<!x)y")]
#[case("(a)\\1")]
#[case("[z-a]")]
fn an_invalid_pattern_is_an_error(#[case] pattern: &str) {
    let error = permitted(pattern, PermittedMatch::Anchored)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("it is not a regular expression: ") && !error.contains('\n'),
        "{error}"
    );
    let list = serde_json::to_string(&["fine", pattern]).unwrap();
    let error = allowed_roles(&list, AllowedRolesStyle::Regexp)
        .unwrap_err()
        .to_string();
    assert!(error.contains("is not a regular expression"), "{error}");
}

/// These patterns are classic cases of catastrophic backtracking, and short patterns that are large when compiled.
#[test]
fn patterns_that_exceed_the_limits_are_refused() {
    for pattern in [
        "a{1000}{1000}{1000}",
        "(?:(?:[ -~]?){1000}){12}!",
        "([a-z]{1,100}){400}",
    ] {
        let error = permitted(pattern, PermittedMatch::Search).unwrap_err();
        assert_eq!(error, PolicyError::TooLarge, "{pattern}");
    }
    // Each pattern is within the limit, but all together exceed it.
    let many = serde_json::to_string(&vec!["[a-z]{1,99}!"; 500]).unwrap();
    assert_eq!(
        allowed_roles(&many, AllowedRolesStyle::Regexp).unwrap_err(),
        PolicyError::TooLarge
    );
    // These patterns are refused before they are compiled.
    for unicode in [
        "(?iu)\\pL".repeat(3000),
        "(?u:\\pL{200}){20}".to_owned(),
        "((?i-s:a(?u)b))".to_owned(),
    ] {
        let error = permitted(&unicode, PermittedMatch::Search).unwrap_err();
        assert!(error.to_string().contains("the flag u"), "{error}");
    }
    assert!(permitted("\\pL", PermittedMatch::Search).is_err());
    assert!(permitted("\\(?u", PermittedMatch::Search).is_ok(), "no flag");
    let nested = format!("{}a{}", "(".repeat(5000), ")".repeat(5000));
    assert!(matches!(
        permitted(&nested, PermittedMatch::Search),
        Err(PolicyError::Pattern(_))
    ));
}

/// Patterns within the limits are matched with the longest role in bounded time. Ordinary matching takes
/// microseconds, and the bound leaves room for a busy machine. Without limits these patterns take seconds or do not
/// end.
#[test]
fn patterns_within_the_limits_match_in_bounded_time() {
    let stars = serde_json::to_string(&vec!["*a*b*c*d*e*f*g".repeat(8); 60]).unwrap();
    let longest = format!("{}/{}!", "a".repeat(505), "a".repeat(60)).replace('!', "-");
    let policies = [
        permitted("(a+)+$|(a|aa)+!|((.*)*.*)*!", PermittedMatch::Search).unwrap(),
        permitted("(?:(?:[ -~]?){100}){20}!", PermittedMatch::Search).unwrap(),
        permitted(
            "(x+x+)+y|(.*a){20}|^(([a-z])+.)+[A-Z]([a-z])+$",
            PermittedMatch::Anchored,
        )
        .unwrap(),
        allowed_roles(&stars, AllowedRolesStyle::Glob).unwrap(),
    ];
    for policy in &policies {
        let start = std::time::Instant::now();
        let _ = entry_for(policy, &longest);
        let first = start.elapsed();
        assert!(first.as_secs() < 5, "{first:?}");
        for _ in 0..1000 {
            let _ = entry_for(policy, &longest);
        }
        assert!(
            start.elapsed() < first * 50 + std::time::Duration::from_secs(1),
            "asked once"
        );
    }
}

#[test]
fn a_list_of_many_ordinary_roles_is_within_the_limits() {
    let roles: Vec<String> = (0..400)
        .map(|n| format!("arn:aws:iam::123456789012:role/team-{n}/*"))
        .collect();
    let policy = allowed_roles(&serde_json::to_string(&roles).unwrap(), AllowedRolesStyle::Glob).unwrap();
    assert!(entry_for(&policy, "team-399/app").is_some());
    let arns: Vec<String> = (0..250)
        .map(|n| format!("arn:aws:iam::123456789012:role/team-{n}"))
        .collect();
    let list = serde_json::to_string(&arns).unwrap();
    let policy = allowed_roles(&list, AllowedRolesStyle::Regexp).unwrap();
    assert!(entry_for(&policy, "team-249").is_some());
    let policy = permitted(&arns[..150].join("|"), PermittedMatch::Anchored).unwrap();
    assert!(entry_for(&policy, "team-149").is_some());
    assert!(entry_for(&policy, "team-1490").is_none());
}

#[test]
fn an_annotation_that_is_not_a_list_is_an_error() {
    for annotation in ["app", "\"app\"", "[1]", "{}", "", "[\"a\",]", "[\"a\"] x"] {
        assert!(matches!(
            allowed_roles(annotation, AllowedRolesStyle::Glob),
            Err(PolicyError::Json(_))
        ));
    }
    let long = format!("[\"{}\"]", "a".repeat(MAX_LENGTH));
    assert_eq!(
        allowed_roles(&long, AllowedRolesStyle::Glob).unwrap_err(),
        PolicyError::TooLong
    );
}

proptest! {
    #[test]
    fn a_glob_without_wildcards_matches_only_itself(entry in "[a-z0-9.+=@_-]{1,20}", role in "[a-z0-9.+=@_-]{1,20}") {
        let pattern = compile(&[glob(&entry)], MAX_COMPILED, Letters::AsWritten).unwrap();
        prop_assert!(pattern.is_match(entry.as_bytes()));
        prop_assert_eq!(pattern.is_match(role.as_bytes()), entry == role);
    }

    #[test]
    fn no_annotation_causes_a_panic(annotation in "\\PC{0,60}") {
        let _ = permitted(&annotation, PermittedMatch::Anchored);
        let _ = allowed_roles(&annotation, AllowedRolesStyle::Regexp);
        let list = serde_json::to_string(&[annotation]).unwrap();
        let _ = allowed_roles(&list, AllowedRolesStyle::Glob);
    }
}
