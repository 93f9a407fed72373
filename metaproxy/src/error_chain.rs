//! Formats an error with its causes.

use std::error::Error;

/// Returns an error and its causes as one sentence. A cause that the message already contains is not repeated,
/// because many messages of this crate contain their cause.
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use thiserror::Error;

    #[derive(Debug, Error)]
    #[error("--manifests {0}: {1}")]
    struct ManifestsError(&'static str, #[source] std::io::Error);

    #[derive(Debug, Error)]
    #[error("it did not start")]
    struct StartError(#[source] ManifestsError);

    #[test]
    fn each_cause_is_named_once() {
        let missing = || std::io::Error::other("no such directory");
        let error = ManifestsError("/nosuch", missing());
        assert_eq!(sentence(&error), "--manifests /nosuch: no such directory");
        let whole = sentence(&StartError(error));
        assert_eq!(whole, "it did not start: --manifests /nosuch: no such directory");
    }
}
