//! Finds keys of annotations that look like misspelt keys of those that the agent reads.

use super::Annotations;

/// The domains of roles' annotations.
const ROLE_DOMAINS: [&str; 2] = ["iam.amazonaws.com/", "eks.amazonaws.com/"];

/// The maximum number of edits between a misspelt key and the right one. A swap of neighbouring characters is one
/// edit.
const MAX_EDITS: usize = 2;

/// The minimum length of keys that are compared, in bytes. Shorter keys are similar by chance.
const MIN_KEY_LENGTH: usize = 8;

/// Returns the key of `read` that a user probably meant with a misspelt key; `None` if none is similar.
pub fn closest_key<'a>(key: &str, read: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = key.to_ascii_lowercase();
    let name = |key: &'a str| key.rsplit('/').next().unwrap_or(key);
    let distance = |read: &'a str| match read {
        read if read == key => None,
        read if read.to_ascii_lowercase() == lower => Some(0),
        // The key lacks its domain, or has a dot instead of the slash.
        read if lower.replace('/', ".") == read.replace('/', ".") || lower == name(read) => Some(1),
        read => by_edits(read, &lower).or_else(|| by_name(read, &lower)),
    };
    read.into_iter()
        .filter_map(|read| Some((distance(read)?, read)))
        .min()
        .map(|(_, read)| read)
}

/// Returns the number of edits between two keys, if they are few.
fn by_edits(read: &str, key: &str) -> Option<usize> {
    if read.len() < MIN_KEY_LENGTH || read.len().abs_diff(key.len()) > MAX_EDITS {
        return None;
    }
    Some(strsim::damerau_levenshtein(read, key)).filter(|edits| *edits <= MAX_EDITS)
}

/// Returns a distance greater than that of any edits if the key has the same name in another domain, and that domain
/// looks like one of AWS.
fn by_name(read: &str, key: &str) -> Option<usize> {
    let (_, of_read) = read.rsplit_once('/').filter(|_| is_of_aws(read))?;
    let (_, of_key) = key.rsplit_once('/').filter(|_| is_of_aws(key))?;
    (of_read == of_key).then_some(MAX_EDITS + 1)
}

/// Reports whether the domain of a key looks like one of AWS.
fn is_of_aws(key: &str) -> bool {
    let domain = key.rsplit_once('/').map(|(domain, _)| domain);
    domain.is_some_and(|domain| domain.contains("aws") || domain.contains("amazon"))
}

/// Reports whether a key that is not read is similar to one that is, or has a domain of roles' annotations. Such keys
/// are kept, so that `explain` can name them.
pub fn looks_intended<'a>(key: &str, read: impl IntoIterator<Item = &'a str>) -> bool {
    ROLE_DOMAINS.iter().any(|domain| key.starts_with(domain)) || closest_key(key, read).is_some()
}

/// Keeps the annotations that are read, and the beginnings of those whose keys look like misspelt ones.
pub fn retain_relevant(mut annotations: Annotations, keys: &[String]) -> Annotations {
    const MAX_VALUE_LENGTH: usize = 256;
    const MAX_UNREAD: usize = 16;
    let mut unread = 0;
    annotations.retain(|key, value| {
        if keys.contains(key) {
            return true;
        }
        // Users may annotate a pod without limit.
        if unread == MAX_UNREAD || !looks_intended(key, keys.iter().map(String::as_str)) {
            return false;
        }
        unread += 1;
        if value.len() > MAX_VALUE_LENGTH {
            *value = value.chars().take(MAX_VALUE_LENGTH).collect();
        }
        true
    });
    annotations
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: [&str; 3] = [
        "iam.amazonaws.com/role",
        "iam.amazonaws.com/external-id",
        "iam.amazonaws.com/session-name",
    ];

    #[test]
    fn misspelt_keys_are_found_and_other_keys_are_not() {
        for (key, expected) in [
            ("iam.amazonaws.com/Role", Some(READ[0])),
            ("iam.amazonaws.com/roles", Some(READ[0])),
            ("iam.amazonaw.com/role", Some(READ[0])),
            ("iam.amazonaws.com.role", Some(READ[0])),
            ("iam.amazonaws.com/externalid", Some(READ[1])),
            ("iam.amazonaws.com/session-nmae", Some(READ[2])),
            ("role", Some(READ[0])),
            // This misspelling was reported in jtblin/kube2iam#337.
            ("iam.awsamazon.com/role", Some(READ[0])),
            ("iam.aws.amazon.com/external-id", Some(READ[1])),
            ("aws.com/role", Some(READ[0])),
            ("iam.awsamazon.com/roles-of-mine", None),
            ("example.com/role", None),
            ("iam.amazonaws.com/role", None),
            ("kubernetes.io/config.hash", None),
            ("iam.amazonaws.com/permitted", None),
            ("prometheus.io/scrape", None),
        ] {
            assert_eq!(closest_key(key, READ), expected, "{key}");
        }
        assert!(looks_intended("iam.amazonaws.com/permitted", READ));
        assert!(looks_intended("eks.amazonaws.com/role-arn", READ));
        assert!(!looks_intended(
            "kubectl.kubernetes.io/last-applied-configuration",
            READ
        ));
    }
}
