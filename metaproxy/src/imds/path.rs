//! What a request path asks for. Only the exact spelling counts; everything else is [`Path::Other`] and answered with
//! 404: nothing is passed on to the node's metadata service.

/// What a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path<'a> {
    /// `/latest/api/token`
    Token,
    /// The list of roles, with or without the last slash.
    Roles,
    /// The credentials of a role, by its name as written.
    Role(&'a str),
    /// Anything else.
    Other,
}

const TOKEN: &str = "/latest/api/token";
const ROLES: &str = "/latest/meta-data/iam/security-credentials";

impl<'a> Path<'a> {
    /// Classifies the path of a request target in origin form, without its query.
    pub fn classify(path: &'a str) -> Self {
        if path == TOKEN {
            return Self::Token;
        }
        match path.strip_prefix(ROLES) {
            Some("" | "/") => Self::Roles,
            Some(rest) => match rest.strip_prefix('/') {
                Some(name) if !name.contains('/') => Self::Role(name),
                _ => Self::Other,
            },
            None => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("/latest/api/token", Path::Token)]
    #[case("/latest/meta-data/iam/security-credentials", Path::Roles)]
    #[case("/latest/meta-data/iam/security-credentials/", Path::Roles)]
    #[case("/latest/meta-data/iam/security-credentials/app", Path::Role("app"))]
    #[case("/latest/meta-data/iam/security-credentials/app/", Path::Other)]
    #[case("/latest/meta-data/iam/security-credentials//app", Path::Other)]
    #[case("/latest/meta-data/iam/security-credentialsx", Path::Other)]
    #[case("/latest/api/token/", Path::Other)]
    #[case("/latest//api/token", Path::Other)]
    #[case("/LATEST/api/token", Path::Other)]
    #[case("/latest/user-data", Path::Other)]
    #[case("/", Path::Other)]
    #[case("", Path::Other)]
    fn only_the_exact_spelling_counts(#[case] path: &str, #[case] want: Path<'_>) {
        assert_eq!(Path::classify(path), want);
    }
}
