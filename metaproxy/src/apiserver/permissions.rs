//! Checks the agent's permissions in the cluster. The agent checks all permissions at its start and then at long
//! intervals, because they may be revoked while it runs. Denied permissions are checked again soon. Every
//! authenticated user may request such a check (ClusterRole `system:basic-user`). Tokens are tried as well, because
//! an admission policy or a webhook may refuse what RBAC allows.

use std::fmt;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use tracing::{info, warn};

use super::token_trial::{self, AudienceLimit, NO_AUDIENCE_LIMIT, TokenSubject, TokenTrial};
use super::{ApiServer, REQUEST_TIMEOUT, with_timeout};
use crate::telemetry::health::{Condition, Health, Part};

/// The first pause before denied permissions are checked again. It doubles with each check. backon is not used,
/// because its maximum pause is fixed, and here the maximum depends on what is denied.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The maximum pause if pods are not served without the permissions, or if the API server does not answer.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// The maximum pause if pods are served without the permissions.
const MAX_OPTIONAL_RETRY_INTERVAL: Duration = Duration::from_secs(1800);

/// The time between two checks if nothing is denied. 5,000 nodes that check 10 permissions each send 83 requests per
/// second. If a watch fails, the permissions are checked at once.
const RECHECK_INTERVAL: Duration = Duration::from_secs(600);

/// A permission that the agent needs in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The verb, such as `get` or `list`.
    pub verb: &'static str,
    /// The API group, which is empty for the core group.
    pub group: &'static str,
    /// The resource, such as `pods`.
    pub resource: &'static str,
    /// The subresource, such as `token`, or empty.
    pub subresource: &'static str,
    /// Whether pods cannot be served without it.
    pub is_required: bool,
}

const fn core(verb: &'static str, resource: &'static str) -> Permission {
    let (group, subresource, is_required) = ("", "", true);
    Permission {
        verb,
        group,
        resource,
        subresource,
        is_required,
    }
}

/// The permission to create events for pods that are refused a role.
const EVENTS: Permission = Permission {
    group: "events.k8s.io",
    is_required: false,
    ..core("create", "events")
};

const TOKENS: Permission = Permission {
    subresource: "token",
    ..core("create", "serviceaccounts")
};

/// The parts of the agent's work in the cluster that depend on flags.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// The agent reads namespaces for their policy.
    pub namespaces: bool,
    /// The agent reads service accounts for their roles, and requests their tokens.
    pub service_accounts: bool,
    /// The agent removes a taint from the node.
    pub startup_taint: bool,
}

impl Features {
    /// Returns the permissions that the agent needs for this. The chart's ClusterRole grants exactly these.
    pub fn permissions(self) -> Vec<Permission> {
        let mut all = vec![core("list", "pods"), core("watch", "pods"), EVENTS];
        if self.namespaces {
            all.extend([core("list", "namespaces"), core("watch", "namespaces")]);
        }
        if self.service_accounts {
            all.extend([
                core("list", "serviceaccounts"),
                core("watch", "serviceaccounts"),
                TOKENS,
            ]);
        }
        if self.startup_taint {
            // Pods of the node are served even without these.
            all.extend(
                [core("get", "nodes"), core("patch", "nodes")].map(|permission| Permission {
                    is_required: false,
                    ..permission
                }),
            );
        }
        all
    }
}

/// Writes the permission as RBAC does: `create serviceaccounts/token`, `create events.events.k8s.io`.
impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if !self.subresource.is_empty() {
            write!(f, "/{}", self.subresource)?;
        }
        Ok(())
    }
}

/// Reports which permissions are denied, and whether the audience of tokens is limited if that is required.
/// `subjects` returns pods for which tokens can be tried. Never returns.
pub async fn watch(
    api: ApiServer,
    features: Features,
    limit: Option<AudienceLimit>,
    subjects: impl Fn() -> Vec<TokenSubject>,
    health: Health,
) {
    let all = features.permissions();
    let (mut pause, mut reported) = (RETRY_INTERVAL, String::new());
    // The last result stays while the API server cannot be reached, because the watches already report that.
    let mut known: Option<Condition> = None;
    loop {
        let found = check(&api, &all, features, limit.as_ref(), &subjects).await;
        let is_known = found.is_ok();
        let condition = match found {
            Ok(condition) => known.insert(condition).clone(),
            Err(error) => known
                .clone()
                .unwrap_or_else(|| Condition::Degraded(format!("not known yet: {error}"))),
        };
        match &condition {
            Condition::Degraded(text) | Condition::Failing(text) if *text != reported => {
                reported.clone_from(text);
                warn!("permissions: {text}");
            }
            Condition::Fine if !std::mem::take(&mut reported).is_empty() => {
                info!("permissions: all that are needed are there");
            }
            _ => {}
        }
        let is_fine = condition == Condition::Fine;
        let longest = match is_known && condition.serves() {
            true => MAX_OPTIONAL_RETRY_INTERVAL,
            false => MAX_RETRY_INTERVAL,
        };
        health.set(Part::Permissions, condition);
        if is_fine && is_known {
            pause = RETRY_INTERVAL;
            let rest = RECHECK_INTERVAL.mul_f64(0.75 + 0.25 * fastrand::f64());
            let _ = tokio::time::timeout(rest, health.new_trouble(&WATCHES)).await;
            // An API server that has just restarted may refuse everything for a moment.
            tokio::time::sleep(Duration::from_secs(1)).await;
        } else {
            pause = pause.min(longest);
            tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
            pause = pause.saturating_mul(2);
        }
    }
}

/// The watches that fail when their permission is revoked.
const WATCHES: [Part; 3] = [Part::Pods, Part::Namespaces, Part::ServiceAccounts];

/// Checks the permissions. If tokens are allowed, it also checks whether a token would be given, and, if required,
/// whether a token for another audience would be refused.
///
/// # Errors If the API server does not answer.
async fn check(
    api: &ApiServer,
    all: &[Permission],
    features: Features,
    limit: Option<&AudienceLimit>,
    subjects: &impl Fn() -> Vec<TokenSubject>,
) -> Result<Condition, String> {
    let denied = denied(api, all).await?;
    if features.service_accounts && !denied.contains(&TOKENS) {
        let subjects = subjects();
        if let TokenTrial::Refused(why) = token_trial::try_tokens(api, &subjects).await {
            return Ok(Condition::Failing(format!(
                "tokens of service accounts are allowed by RBAC and refused all the same, as a trial shows ({why}); see what admission \
                 policies and webhooks say of serviceaccounts/token"
            )));
        }
        if let (Some(limit), Some(subject)) = (limit, subjects.first())
            && limit.check(api, subject).await == TokenTrial::Given
        {
            return Ok(Condition::Failing(format!(
                "no tokens of service accounts are asked for: {NO_AUDIENCE_LIMIT}"
            )));
        }
    }
    Ok(report(&denied))
}

/// Returns which of these permissions are denied.
///
/// # Errors If the API server does not answer.
pub async fn denied(api: &ApiServer, asked: &[Permission]) -> Result<Vec<Permission>, String> {
    let mut denied = Vec::new();
    for permission in asked {
        if !is_allowed(api, permission).await? {
            denied.push(*permission);
        }
    }
    Ok(denied)
}

fn report(denied: &[Permission]) -> Condition {
    if denied.is_empty() {
        return Condition::Fine;
    }
    let list = denied.iter().map(ToString::to_string).collect::<Vec<_>>();
    let text = format!(
        "this service account may not {}; the chart's ClusterRole grants that",
        list.join(", nor ")
    );
    if denied.iter().any(|permission| permission.is_required) {
        Condition::Failing(text)
    } else {
        Condition::Degraded(text)
    }
}

async fn is_allowed(api: &ApiServer, permission: &Permission) -> Result<bool, String> {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: text(permission.verb),
                group: text(permission.group),
                resource: text(permission.resource),
                subresource: text(permission.subresource),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let (reviews, params) = (Api::all(api.client()), PostParams::default());
    let answer = with_timeout(REQUEST_TIMEOUT, reviews.create(&params, &review)).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;

    use super::*;

    #[test]
    fn denied_permissions_are_named_as_rbac_writes_them() {
        let all = Features {
            namespaces: true,
            service_accounts: true,
            startup_taint: true,
        };
        let names: Vec<String> = all.permissions().iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "list pods",
                "watch pods",
                "create events.events.k8s.io",
                "list namespaces",
                "watch namespaces",
                "list serviceaccounts",
                "watch serviceaccounts",
                "create serviceaccounts/token",
                "get nodes",
                "patch nodes",
            ]
        );
        assert_eq!(report(&[]), Condition::Fine);
        assert!(
            matches!(report(&[EVENTS]), Condition::Degraded(text) if text.contains("create events.events.k8s.io;"))
        );
        assert!(
            matches!(report(&[EVENTS, TOKENS]), Condition::Failing(text) if text.contains("nor create serviceaccounts/token;"))
        );
    }

    /// The permissions that a fake API server denies, and the tokens that its admission refuses.
    #[derive(Default)]
    struct FakeAnswers {
        denied: Vec<&'static str>,
        refuses_tokens: bool,
        limits_audiences: bool,
    }

    fn fake_api() -> (ApiServer, Arc<Mutex<FakeAnswers>>) {
        let answers = Arc::new(Mutex::new(FakeAnswers::default()));
        let shown = Arc::clone(&answers);
        let api = ApiServer::fake(move |_, path, mut body| {
            let answers = shown.lock().unwrap();
            if path.contains("/token?") {
                assert!(path.contains("dryRun=All"), "no token is made: {path}");
                let is_foreign = body["spec"]["audiences"] != json!(["sts.amazonaws.com"]);
                if answers.refuses_tokens || answers.limits_audiences && is_foreign {
                    let why = "ValidatingAdmissionPolicy 'tokens' denied request";
                    return (
                        422,
                        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 422, "message": why }),
                    );
                }
                body["status"] = json!({ "token": "none", "expirationTimestamp": "2099-01-01T00:00:00Z" });
                return (201, body);
            }
            let asked = &body["spec"]["resourceAttributes"];
            let text = |field: &str| asked[field].as_str().unwrap_or_default();
            let name = format!("{} {}/{}", text("verb"), text("resource"), text("subresource"));
            body["status"] = json!({ "allowed": !answers.denied.contains(&name.as_str()) });
            (201, body)
        });
        (api, answers)
    }

    fn subjects() -> Vec<TokenSubject> {
        vec![TokenSubject {
            namespace: "apps".to_owned(),
            service_account: "web".to_owned(),
            pod: "web".to_owned(),
            uid: "aaaaaaaa-0000-0000-0000-000000000001".to_owned(),
        }]
    }

    fn watching(api: ApiServer) -> Health {
        watching_with(api, None)
    }

    fn watching_with(api: ApiServer, limit: Option<AudienceLimit>) -> Health {
        let health = Health::starting([Part::Pods]);
        let features = Features {
            service_accounts: true,
            ..Features::default()
        };
        tokio::spawn(watch(api, features, limit, subjects, health.clone()));
        health
    }

    fn permissions(health: &Health) -> Condition {
        health.parts()[&Part::Permissions].clone()
    }

    fn fails_with(health: &Health, what: &str) -> bool {
        matches!(permissions(health), Condition::Failing(text) if text.contains(what))
    }

    const RIGHT: &str = "may not create serviceaccounts/token";

    #[tokio::test(start_paused = true)]
    async fn a_revoked_permission_is_reported_within_minutes_and_a_restored_one_within_a_minute() {
        let (api, answers) = fake_api();
        let health = watching(api);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(permissions(&health), Condition::Fine);
        answers.lock().unwrap().denied = vec!["create serviceaccounts/token"];
        tokio::time::sleep(RECHECK_INTERVAL + Duration::from_secs(2)).await;
        assert!(fails_with(&health, RIGHT), "{:?}", permissions(&health));
        answers.lock().unwrap().denied.clear();
        tokio::time::sleep(MAX_RETRY_INTERVAL).await;
        assert_eq!(permissions(&health), Condition::Fine);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_fails_causes_a_check_at_once() {
        let (api, answers) = fake_api();
        let health = watching(api);
        health.set(Part::Pods, Condition::Fine);
        tokio::time::sleep(Duration::from_secs(1)).await;
        answers.lock().unwrap().denied = vec!["create serviceaccounts/token"];
        health.set(Part::Pods, Condition::Degraded("forbidden".to_owned()));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(fails_with(&health, RIGHT), "{:?}", permissions(&health));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_admission_refuses_is_found_by_trying_one() {
        let (api, answers) = fake_api();
        answers.lock().unwrap().refuses_tokens = true;
        let health = watching(api);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let what =
            "as a trial shows (service account apps/web: ValidatingAdmissionPolicy 'tokens' denied request)";
        assert!(fails_with(&health, what), "{:?}", permissions(&health));
        answers.lock().unwrap().refuses_tokens = false;
        tokio::time::sleep(MAX_RETRY_INTERVAL).await;
        assert_eq!(permissions(&health), Condition::Fine);
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_required_policy_is_reported_and_no_token_is_requested_until_it_exists() {
        let (api, answers) = fake_api();
        let limit = AudienceLimit::default();
        let health = watching_with(api, Some(limit.clone()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let what = "no tokens of service accounts are asked for: nothing limits their audience";
        assert!(fails_with(&health, what), "{:?}", permissions(&health));
        assert!(!limit.is_enforced());
        answers.lock().unwrap().limits_audiences = true;
        tokio::time::sleep(MAX_RETRY_INTERVAL).await;
        assert_eq!(permissions(&health), Condition::Fine);
        assert!(limit.is_enforced());
        // The policy's binding is deleted.
        answers.lock().unwrap().limits_audiences = false;
        tokio::time::sleep(RECHECK_INTERVAL + Duration::from_secs(2)).await;
        assert!(fails_with(&health, what), "{:?}", permissions(&health));
        assert!(!limit.is_enforced());
    }
}
