//! What the agent may do in the cluster: asked for once, at start, and again only for what is denied. Every
//! authenticated user may ask (ClusterRole `system:basic-user`).

use std::fmt;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use tracing::{info, warn};

use super::{ApiServer, PATIENCE, within};
use crate::health::{Condition, Health, Part};

/// Between two looks at what is denied; doubles with each.
const AGAIN: Duration = Duration::from_secs(5);

/// And the longest such time where pods are not served for it, or the API server does not say,
const LONGEST: Duration = Duration::from_secs(60);

/// and where they are.
const LONGEST_AT_EASE: Duration = Duration::from_secs(1800);

/// Something that the agent does in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// `get`, `list`, …
    pub verb: &'static str,
    /// The API group; empty for the core.
    pub group: &'static str,
    /// `pods`
    pub resource: &'static str,
    /// `token`, or empty.
    pub subresource: &'static str,
    /// Whether pods are served without it.
    pub is_vital: bool,
}

const fn core(verb: &'static str, resource: &'static str) -> Permission {
    let (group, subresource, is_vital) = ("", "", true);
    Permission {
        verb,
        group,
        resource,
        subresource,
        is_vital,
    }
}

/// Events on pods that are refused a role.
const EVENTS: Permission = Permission {
    group: "events.k8s.io",
    is_vital: false,
    ..core("create", "events")
};

const TOKENS: Permission = Permission {
    subresource: "token",
    ..core("create", "serviceaccounts")
};

/// What depends on flags.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uses {
    /// Namespaces are asked for their policy.
    pub namespaces: bool,
    /// Service accounts are asked for roles.
    pub service_accounts: bool,
    /// A taint is removed from the node.
    pub startup_taint: bool,
}

impl Uses {
    /// Everything that is needed; the chart's ClusterRole grants exactly that.
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
            // Pods that are here are served without.
            all.extend(
                [core("get", "nodes"), core("patch", "nodes")].map(|permission| Permission {
                    is_vital: false,
                    ..permission
                }),
            );
        }
        all
    }
}

/// As RBAC writes it: `create serviceaccounts/token`, `create events.events.k8s.io`.
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

/// Finds out what is denied, until nothing is, and reports it. Never ends.
pub async fn watch(api: ApiServer, uses: Uses, health: Health) {
    let mut open = uses.permissions();
    let (mut pause, mut reported) = (AGAIN, String::new());
    while !open.is_empty() {
        let (condition, longest) = match denied(&api, &open).await {
            Ok(denied) => {
                open = denied;
                let condition = report(&open);
                let longest = if condition.serves() {
                    LONGEST_AT_EASE
                } else {
                    LONGEST
                };
                (condition, longest)
            }
            // What was found out before stands. Watching tells that the API server is away, and what comes of it.
            Err(error) => match health.parts().remove(&Part::Permissions) {
                Some(failing @ Condition::Failing(_)) => (failing, LONGEST),
                _ => (Condition::Degraded(format!("not known yet: {error}")), LONGEST),
            },
        };
        if let Condition::Degraded(text) | Condition::Failing(text) = &condition
            && *text != reported
        {
            reported.clone_from(text);
            warn!("permissions: {text}");
        }
        if condition == Condition::Fine && !reported.is_empty() {
            info!("permissions: all that are needed are there");
        }
        health.set(Part::Permissions, condition);
        if !open.is_empty() {
            pause = pause.min(longest);
            tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
            pause = pause.saturating_mul(2);
        }
    }
    std::future::pending().await
}

/// Which of these are denied.
///
/// # Errors
/// Where the API server does not say.
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
    if denied.iter().any(|permission| permission.is_vital) {
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
    let answer = within(PATIENCE, reviews.create(&params, &review)).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_denied_is_named_as_rbac_writes_it() {
        let all = Uses {
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
}
