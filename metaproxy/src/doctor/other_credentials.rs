//! Finds pods whose SDKs do not use the pods' roles.

use super::{Examination, Finding};
use crate::admin::client;
use crate::explain::Explanation;

const CHECK: &str = "credentials";

/// The maximum number of pods that a finding names.
const MAX_NAMED: usize = 5;

/// Asks the agent of this node. Without an agent there is no finding.
pub(super) fn examine(examination: &Examination) -> Option<Finding> {
    let pods = client::explain(&examination.runtime_dir, None).ok()?;
    finding(&pods)
}

fn finding(pods: &[Explanation]) -> Option<Finding> {
    let mut with_role = pods.iter().filter(|one| one.role.is_some()).peekable();
    with_role.peek()?;
    let others: Vec<String> = with_role
        .filter(|one| !one.other_credentials.is_empty())
        .map(|one| format!("{} by {}", one.pod, one.other_credentials.join(" and ")))
        .collect();
    if others.is_empty() {
        return Some(Finding::ok(
            CHECK,
            "no pod with a role has variables of other credentials",
        ));
    }
    let mut named = others[..others.len().min(MAX_NAMED)].join(", ");
    if others.len() > MAX_NAMED {
        named = format!("{named} and {} more", others.len() - MAX_NAMED);
    }
    Some(Finding::warning(
        CHECK,
        format!("pods with a role have variables of other credentials: {named}"),
        "an SDK takes those, and never falls back to the metadata service: take away what sets the variables (the Pod Identity \
         association, IRSA's annotation, static keys), and make the pods again",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;
    use crate::pods::Pod;
    use crate::roles::Reason;

    fn pod(name: &str, role: Option<&str>, others: &[&str]) -> Explanation {
        let pod = serde_json::json!({ "metadata": { "name": name, "namespace": "apps", "uid": name } });
        let pod = Pod::from_api(serde_json::from_value(pod).unwrap()).unwrap();
        Explanation {
            role: role.map(str::to_owned),
            other_credentials: others.iter().map(|one| (*one).to_owned()).collect(),
            ..Explanation::of_ambiguous(&pod, &Reason::Firewall)
        }
    }

    #[test]
    fn pods_that_do_not_use_their_role_are_named_with_the_credentials_that_they_use() {
        let uri = "AWS_CONTAINER_CREDENTIALS_FULL_URI (EKS Pod Identity)";
        let found = finding(&[pod("a", Some("r"), &[uri]), pod("b", Some("r"), &[])]).unwrap();
        assert_eq!(found.level, Level::Warning);
        assert_eq!(
            found.says,
            format!("pods with a role have variables of other credentials: apps/a by {uri}")
        );
        let many = ["a", "b", "c", "d", "e", "f", "g"].map(|name| pod(name, Some("r"), &[uri]));
        let found = finding(&many).unwrap();
        assert!(
            found
                .says
                .ends_with("apps/e by AWS_CONTAINER_CREDENTIALS_FULL_URI (EKS Pod Identity) and 2 more"),
            "{}",
            found.says
        );
    }

    #[test]
    fn a_pod_without_a_role_may_have_any_credentials() {
        assert_eq!(finding(&[]), None);
        assert_eq!(
            finding(&[pod("a", None, &["AWS_ACCESS_KEY_ID (static keys)"])]),
            None
        );
        let found = finding(&[pod("a", Some("r"), &[])]).unwrap();
        assert_eq!(found.level, Level::Ok);
    }
}
