//! Tests decisions about annotations with arbitrary bytes.

use super::*;
use proptest::prelude::*;

/// Says whether the annotations allow the role, by a second implementation of the rules.
fn is_allowed(role: &RoleArn, written: &str, permitted: &str, list: &str) -> bool {
    let name = role.as_str().strip_prefix("arn:aws:iam::123456789012:role/");
    let by_pattern = regex::bytes::Regex::new(permitted).is_ok_and(|pattern| {
        let forms = [Some(role.as_str()), Some(written.trim()), name];
        forms.into_iter().flatten().any(|form| {
            let whole = |found: regex::bytes::Match<'_>| found.start() == 0 && found.end() == form.len();
            // Leftmost-first matching may find a shorter match before that of the whole text.
            pattern.find(form.as_bytes()).is_some_and(whole)
                || regex::bytes::Regex::new(&format!("\\A(?:{permitted})\\z"))
                    .is_ok_and(|all| all.is_match(form.as_bytes()))
        })
    });
    let entries: Vec<String> = serde_json::from_str(list).unwrap_or_default();
    let by_list = entries.iter().any(|entry| {
        let entry = entry.trim();
        let text = if entry.to_lowercase().starts_with("arn:") {
            Some(role.as_str())
        } else {
            name
        };
        text.is_some_and(|text| {
            matches_glob(entry.trim_start_matches(['/', '^']).as_bytes(), text.as_bytes())
        })
    });
    by_pattern || by_list
}

fn matches_glob(glob: &[u8], text: &[u8]) -> bool {
    match (glob.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) if matches_glob(rest, text) => true,
        (Some((b'*', _)), Some((_, text))) => matches_glob(glob, text),
        (Some((b'?', rest)), Some((_, text))) => matches_glob(rest, text),
        (Some((one, rest)), Some((other, text))) => {
            one.eq_ignore_ascii_case(other) && matches_glob(rest, text)
        }
        _ => false,
    }
}

/// Generates any text, and texts that are nearly valid.
fn any_text() -> impl Strategy<Value = String> {
    let nearly = prop::sample::select(vec![
        "app",
        "arn:aws:iam::123456789012:role/",
        "*",
        ".*",
        "[",
        "]",
        "\"",
        "\\",
        "(",
        ")",
        "|",
        "{9999}",
        "\0",
        "\n",
        "/",
        "",
    ]);
    prop_oneof![
        any::<String>(),
        prop::collection::vec(nearly, 0..6).prop_map(|words| words.concat())
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// For any annotations, a role is granted only if it is valid and permitted, and only to its own pod.
    #[test]
    fn arbitrary_annotations_grant_only_valid_and_permitted_roles(
        role in any_text(), policy in any_text(), list in any_text(), id in any_text(), name in any_text(),
    ) {
        let strange = pod(&[("role", &role), ("external-id", &id), ("session-name", &name)]);
        let namespace = namespace(&[("permitted", &policy), ("allowed-roles", &list)]);
        let decision = rules().resolve_pod(&strange, Some(&namespace), None);
        let neighbour = rules().resolve_pod(&pod(&[]), Some(&namespace), None);
        prop_assert!(matches!(neighbour, Decision::NoRole(_)));
        match decision {
            Decision::Granted(grant) => {
                let written: WrittenRole = role.parse().unwrap();
                prop_assert_eq!(written.resolve(rules().base.as_ref()), Ok(Some(grant.role.clone())));
                prop_assert!(is_allowed(&grant.role, &role, &policy, &list), "{:?} {:?} {:?}", role, policy, list);
            }
            Decision::Refused { name, reason } => {
                prop_assert!(crate::roles::arn::is_name(&name));
                prop_assert!(!reason.to_string().contains('\n'));
            }
            Decision::NoRole(_) => prop_assert!(role.trim().is_empty()),
            Decision::Wait(_) => prop_assert!(false, "everything is known"),
        }
    }
}
