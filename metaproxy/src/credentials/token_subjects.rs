//! Selects the pods for which the agent requests tokens, or tries whether the API server would issue them.

use crate::apiserver::token_trial::TokenSubject;
use crate::pods::{Inventory, Known, Mirror, Pod};
use crate::roles::WebIdentity;

/// The maximum number of pods for which a token is tried. A policy may apply to the namespaces of some of them only.
const MAX_SUBJECTS: usize = 3;

/// Returns the pod and the service account of a web identity.
pub(super) fn of_identity(identity: &WebIdentity) -> TokenSubject {
    TokenSubject {
        namespace: identity.namespace.clone(),
        service_account: identity.service_account.clone(),
        pod: identity.pod.clone(),
        uid: identity.uid.to_string(),
    }
}

/// Returns pods of this node for which a token can be tried, at most one of each namespace.
pub fn of_node(pods: &Inventory) -> Vec<TokenSubject> {
    let all = pods.pods().filter_map(|(_, known)| match known {
        Known::Pod(pod) => of_pod(pod),
        Known::Ambiguous(_) => None,
    });
    one_per_namespace(all.collect())
}

/// Returns those of these pods for which a token can be tried, at most one of each namespace.
pub fn among(pods: &[Pod]) -> Vec<TokenSubject> {
    one_per_namespace(pods.iter().filter_map(of_pod).collect())
}

fn of_pod(pod: &Pod) -> Option<TokenSubject> {
    // Static pods have no service account.
    let has_account = matches!(pod.mirror, Mirror::No) && !pod.finished;
    has_account.then(|| TokenSubject {
        namespace: pod.namespace.clone(),
        service_account: pod.service_account.clone(),
        pod: pod.name.clone(),
        uid: pod.uid.to_string(),
    })
}

fn one_per_namespace(mut all: Vec<TokenSubject>) -> Vec<TokenSubject> {
    all.sort_by(|one, other| (&one.namespace, &one.pod).cmp(&(&other.namespace, &other.pod)));
    all.dedup_by(|one, other| one.namespace == other.namespace);
    all.truncate(MAX_SUBJECTS);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_tried_for_pods_of_several_namespaces() {
        let of = |namespace: &str, pod: &str| TokenSubject {
            namespace: namespace.to_owned(),
            service_account: "web".to_owned(),
            pod: pod.to_owned(),
            uid: "u".to_owned(),
        };
        let all = vec![
            of("b", "2"),
            of("a", "1"),
            of("b", "1"),
            of("c", "1"),
            of("d", "1"),
        ];
        assert_eq!(one_per_namespace(all), [of("a", "1"), of("b", "1"), of("c", "1")]);
    }
}
