//! Writes each session that is issued to the audit log, with the pods that it is for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use super::{Issuer, ObtainError, Session, SessionKey, timestamp};
use crate::pods::{Inventory, Known, Pod, Pods};
use crate::roles::{Decision, Rules};
use crate::telemetry::audit::SessionIssued;

/// The maximum number of pods that a line names if pods share a session.
const MAX_NAMED_PODS: usize = 20;

/// An issuer that obtains each session from another issuer and writes it to the audit log.
#[derive(Debug)]
pub(crate) struct AuditedIssuer<I> {
    pub issuer: I,
    pub pods: Pods,
    pub rules: watch::Receiver<Arc<Rules>>,
}

impl<I: Issuer> Issuer for AuditedIssuer<I> {
    async fn issue(&self, key: &SessionKey) -> Result<Session, ObtainError> {
        let session = self.issuer.issue(key).await?;
        // One borrow ends before the next begins: the code that decides roles holds both at once.
        let inventory = Arc::clone(&self.pods.borrow());
        let rules = Arc::clone(&self.rules.borrow());
        entry_of(key, &session, &pods_of(key, &inventory, &rules)).log();
        Ok(session)
    }
}

fn entry_of(key: &SessionKey, session: &Session, pods: &[Arc<Pod>]) -> SessionIssued {
    let distinct = |of: fn(&Pod) -> &str| {
        let found: BTreeSet<&str> = pods.iter().map(|pod| of(pod)).collect();
        found
            .into_iter()
            .take(MAX_NAMED_PODS)
            .collect::<Vec<_>>()
            .join(",")
    };
    let names = match pods {
        [pod] => pod.name.clone(),
        pods => {
            let mut names: Vec<String> = pods
                .iter()
                .take(MAX_NAMED_PODS)
                .map(ToString::to_string)
                .collect();
            if pods.len() > MAX_NAMED_PODS {
                names.push(format!("and {} more", pods.len() - MAX_NAMED_PODS));
            }
            names.join(",")
        }
    };
    let until = session.expiration();
    let life = until.duration_since(SystemTime::now()).unwrap_or_default();
    SessionIssued {
        pod: names,
        namespace: distinct(|pod| &pod.namespace),
        service_account: distinct(|pod| &pod.service_account),
        role: key.role.to_string(),
        session_name: key.shape.name.to_string(),
        access_key_id: session.access_key_id().to_owned(),
        expires: timestamp(until),
        life: life.as_secs(),
    }
}

/// Returns the pods that a session is for. Pods that are gone by now are not among them.
fn pods_of(key: &SessionKey, inventory: &Inventory, rules: &Rules) -> Vec<Arc<Pod>> {
    let alone = |known: &Known| match known {
        Known::Pod(pod) => Some(Arc::clone(pod)),
        Known::Ambiguous(_) => None,
    };
    if let Some(uid) = &key.shape.pod {
        return inventory.by_uid(uid).and_then(alone).into_iter().collect();
    }
    let mut sharing: Vec<Arc<Pod>> = inventory
        .pods()
        .filter_map(|(uid, known)| alone(known).filter(|pod| pod.uid == *uid))
        .filter(|pod| match rules.resolve(inventory, &pod.uid) {
            Decision::Granted(grant) => SessionKey::of_grant(&grant) == *key,
            _ => false,
        })
        .collect();
    sharing.sort_by_key(|pod| pod.to_string());
    sharing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::credentials::IssuedCredentials;
    use crate::roles::OwnRoles;
    use std::time::Duration;

    fn rules(flags: &[&str]) -> Rules {
        let words = [
            "metaproxy",
            "run",
            "--kubeconfig",
            "/k",
            "--node-name",
            "n",
            "--namespace-policy",
            "off",
            "--base-role-arn",
            "arn:aws:iam::123456789012:role/",
        ];
        match Cli::from_words(words.iter().chain(flags)).unwrap().command {
            Command::Run(args) => Rules {
                own: OwnRoles::default(),
                ..args.settings().unwrap().rules
            },
            other => panic!("{other:?}"),
        }
    }

    fn inventory(pods: usize) -> Inventory {
        let pod = |number: usize| {
            let object = serde_json::json!({
                "metadata": {
                    "name": format!("web-{number}"), "namespace": "apps", "uid": format!("uid-{number:012}"),
                    "annotations": { "iam.amazonaws.com/role": if number == 0 { "other" } else { "app" } },
                },
                "spec": { "serviceAccountName": "reader", "containers": [] },
            });
            Arc::new(Pod::from_api(serde_json::from_value(object).unwrap()).unwrap())
        };
        Inventory::new((0..pods).map(pod), [], [])
    }

    fn entry(flags: &[&str], pods: usize) -> SessionIssued {
        let (rules, inventory) = (rules(flags), inventory(pods));
        let uid = "uid-000000000001".parse().unwrap();
        let Decision::Granted(grant) = rules.resolve(&inventory, &uid) else {
            panic!("not granted");
        };
        let key = SessionKey::of_grant(&grant);
        let issued = IssuedCredentials {
            access_key_id: "ASIAEXAMPLE",
            secret_access_key: "SECRET",
            token: "TOKEN",
            expiration: SystemTime::UNIX_EPOCH + Duration::from_secs(3600),
        };
        let session = Session::new(&key.role, &issued, SystemTime::UNIX_EPOCH);
        entry_of(&key, &session, &pods_of(&key, &inventory, &rules))
    }

    #[test]
    fn a_line_names_the_pod_of_the_session_and_nothing_secret() {
        let entry = entry(&[], 3);
        assert_eq!(
            entry,
            SessionIssued {
                pod: "web-1".to_owned(),
                namespace: "apps".to_owned(),
                service_account: "reader".to_owned(),
                role: "arn:aws:iam::123456789012:role/app".to_owned(),
                session_name: "apps.web-1".to_owned(),
                access_key_id: "ASIAEXAMPLE".to_owned(),
                expires: "1970-01-01T01:00:00Z".to_owned(),
                life: 0,
            }
        );
    }

    #[test]
    fn pods_that_share_a_session_are_named_up_to_a_maximum() {
        let shared = ["--session-scope", "role"];
        assert_eq!(entry(&shared, 4).pod, "apps/web-1,apps/web-2,apps/web-3");
        let many = entry(&shared, 31);
        assert!(many.pod.ends_with(",and 10 more"), "{}", many.pod);
        assert_eq!(many.namespace, "apps");
    }
}
