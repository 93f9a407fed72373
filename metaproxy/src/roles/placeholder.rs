//! Finds placeholders in roles: text that a template, a shell or a user should have replaced by a value.

/// Returns the first placeholder in a role as written: `{{ … }}`, `${…}`, `$(…)`, `<…>`, `{…}` or `$NAME`.
///
/// IAM's pattern of a path (CreateRole, `Path`) allows these characters, so a role that exists could have them. The
/// name of a role can't have them.
pub fn placeholder(written: &str) -> Option<&str> {
    let between = |open: &str, close: &str| {
        let start = written.find(open)?;
        let end = written[start + open.len()..].find(close)?;
        Some(&written[start..start + open.len() + end + close.len()])
    };
    between("{{", "}}")
        .or_else(|| between("${", "}"))
        .or_else(|| between("$(", ")"))
        .or_else(|| between("<", ">"))
        .or_else(|| between("{", "}"))
        .or_else(|| variable(written))
}

/// Returns the first `$NAME`.
fn variable(written: &str) -> Option<&str> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    written.match_indices('$').find_map(|(at, _)| {
        let name = &written[at + 1..];
        let length = name.find(|c| !is_of_name(c)).unwrap_or(name.len());
        (!name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && length > 0)
            .then(|| &written[at..=at + length])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::helm("arn:aws:iam::{{ .Values.account }}:role/", "{{ .Values.account }}")]
    #[case::terraform("${var.base_role_arn}", "${var.base_role_arn}")]
    #[case::kubelet("$(BASE)app", "$(BASE)")]
    #[case::by_hand("arn:aws:iam::123456789012:role/<role-name>", "<role-name>")]
    #[case::braces("{assumed role name}", "{assumed role name}")]
    #[case::shell("$ENVIRONMENT-default-role", "$ENVIRONMENT")]
    #[case::at_the_end("app-$STAGE", "$STAGE")]
    fn a_placeholder_is_found_in_the_syntax_of_each_tool(#[case] written: &str, #[case] found: &str) {
        assert_eq!(placeholder(written), Some(found));
    }

    #[rstest]
    #[case("arn:aws:iam::123456789012:role/team/app")]
    #[case("a+=,.@_-z")]
    #[case("$")]
    #[case("app$")]
    #[case("$5")]
    #[case("a<b")]
    #[case("")]
    fn a_role_without_a_placeholder_gives_none(#[case] written: &str) {
        assert_eq!(placeholder(written), None);
    }
}
