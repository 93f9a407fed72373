//! Finds slips in the text of a role, and returns hints on their correction.

use crate::roles::{WrittenRole, placeholder};

/// Corrects one kind of slip; returns `None` if the text does not have it.
type Repair = fn(&str) -> Option<String>;

/// Returns a hint on a role that can't be used, if it has a known slip.
pub(super) fn of_role(written: &str) -> Option<String> {
    let written = written.trim();
    if let Some(found) = unfilled(written) {
        return Some(of_placeholder(found));
    }
    if let Some(strange) = written.chars().find(|c| !c.is_ascii_graphic() && *c != ' ') {
        return Some(format!(
            "the role holds the character U+{:04X}, which is easily overlooked; remove it",
            u32::from(strange)
        ));
    }
    let repaired: [(&str, Repair); 7] = [
        ("the quotation marks are a part of the value", without_quotes),
        (
            "an instance profile is not a role, though it often has the name of its role",
            of_profile,
        ),
        ("`role` is there twice", of_role_twice),
        ("a role's ARN has a slash after `role`", with_slash),
        ("that is the ARN of a role's session", of_session),
        ("the ARN of a role has no region", without_region),
        ("a name has no `role:` before it", without_kind),
    ];
    repaired.into_iter().find_map(|(why, repair)| {
        let meant = repair(written).filter(|meant| meant.parse::<WrittenRole>().is_ok())?;
        Some(format!("did you mean {meant}? {}", sentence(why)))
    })
}

/// Returns a hint on a role that can be used, but has a path that looks like a slip.
pub(super) fn of_path(written: &str) -> Option<String> {
    if let Some(found) = placeholder(written) {
        return Some(of_placeholder(found));
    }
    let relative = written.trim().trim_start_matches('/');
    let meant = ["role:role/", "role/role/", "role/"]
        .iter()
        .find_map(|start| relative.strip_prefix(start))?;
    Some(format!(
        "`{written}` is read as a role with the path {:?}; did you mean {meant}?",
        &relative[..relative.len() - meant.len()]
    ))
}

fn sentence(why: &str) -> String {
    let mut letters = why.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Returns the text that a template or a user should have replaced.
fn unfilled(written: &str) -> Option<&str> {
    placeholder(written).or_else(|| {
        ["ACCOUNT_ID", "ACCOUNT", "REGION"]
            .into_iter()
            .find(|word| written.contains(word))
    })
}

fn of_placeholder(found: &str) -> String {
    format!("{found:?} in the role looks like a placeholder that was not filled in")
}

/// Removes quotation marks, and the brackets of a list with one entry.
fn without_quotes(written: &str) -> Option<String> {
    let inner = written.trim_matches(['"', '\'', '`', '[', ']', ' ']);
    (inner != written).then(|| inner.to_owned())
}

fn of_profile(written: &str) -> Option<String> {
    replaced(written, ":instance-profile/", ":role/")
}

fn of_role_twice(written: &str) -> Option<String> {
    replaced(written, "role:role/", "role/")
}

fn with_slash(written: &str) -> Option<String> {
    replaced(written, ":role:", ":role/")
}

fn of_session(written: &str) -> Option<String> {
    let (before, after) = written.split_once(":assumed-role/")?;
    let (name, _) = after.split_once('/')?;
    Some(format!("{}:role/{name}", before.replacen(":sts:", ":iam:", 1)))
}

fn without_region(written: &str) -> Option<String> {
    let mut parts: Vec<&str> = written.splitn(6, ':').collect();
    (parts.len() == 6 && !parts[3].is_empty()).then(|| {
        parts[3] = "";
        parts.join(":")
    })
}

fn without_kind(written: &str) -> Option<String> {
    written.strip_prefix("role:").map(str::to_owned)
}

fn replaced(written: &str, from: &str, to: &str) -> Option<String> {
    written.contains(from).then(|| written.replacen(from, to, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::inner_quotes("\"app\"", "did you mean app?")]
    #[case::single_quotes(
        "'arn:aws:iam::123456789012:role/app'",
        "did you mean arn:aws:iam::123456789012:role/app?"
    )]
    #[case::a_list("[\"app\"]", "did you mean app?")]
    #[case::a_profile(
        "arn:aws:iam::123456789012:instance-profile/app",
        "did you mean arn:aws:iam::123456789012:role/app?"
    )]
    #[case::twice(
        "arn:aws:iam::123456789012:role:role/app",
        "did you mean arn:aws:iam::123456789012:role/app?"
    )]
    #[case::a_colon(
        "arn:aws:iam::123456789012:role:app",
        "did you mean arn:aws:iam::123456789012:role/app?"
    )]
    #[case::a_colon_in_a_name("role:app", "did you mean app?")]
    #[case::a_session(
        "arn:aws:sts::123456789012:assumed-role/app/web",
        "did you mean arn:aws:iam::123456789012:role/app?"
    )]
    #[case::a_region(
        "arn:aws:iam:eu-west-1:123456789012:role/app",
        "did you mean arn:aws:iam::123456789012:role/app?"
    )]
    #[case::helm(
        "arn:aws:iam::{{ .Values.account }}:role/app",
        "\"{{ .Values.account }}\" in the role looks like a placeholder"
    )]
    #[case::shell(
        "arn:aws:iam::${ACCOUNT}:role/app",
        "\"${ACCOUNT}\" in the role looks like a placeholder"
    )]
    #[case::by_hand(
        "arn:aws:iam::ACCOUNT_ID:role/app",
        "\"ACCOUNT_ID\" in the role looks like a placeholder"
    )]
    #[case::braces(
        "{assumed role name}",
        "\"{assumed role name}\" in the role looks like a placeholder"
    )]
    #[case::invisible("app\u{200b}", "the character U+200B")]
    fn a_slip_has_a_hint_on_its_correction(#[case] written: &str, #[case] hint: &str) {
        assert!(written.parse::<WrittenRole>().is_err(), "it is no role");
        let found = of_role(written).unwrap();
        assert!(found.contains(hint), "{found}");
    }

    #[rstest]
    #[case::twice("role:role/app", "did you mean app?")]
    #[case::once("/role/team/app", "did you mean team/app?")]
    #[case::a_placeholder("<team>/app", "\"<team>\" in the role looks like a placeholder")]
    #[case::of_an_arn(
        "arn:aws:iam::123456789012:role/${TEAM}/app",
        "\"${TEAM}\" in the role looks like a placeholder"
    )]
    fn a_path_that_looks_like_a_slip_has_a_hint(#[case] written: &str, #[case] hint: &str) {
        assert!(written.parse::<WrittenRole>().is_ok(), "it could be a role");
        assert!(of_path(written).unwrap().contains(hint), "{:?}", of_path(written));
        assert_eq!(of_path("team/app"), None);
    }

    #[rstest]
    #[case("a b")]
    #[case("arn:aws:iam::123456789012:user/app")]
    #[case("")]
    fn a_text_without_a_known_slip_has_no_hint(#[case] written: &str) {
        assert_eq!(of_role(written), None);
    }
}
