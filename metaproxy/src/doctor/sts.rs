//! Checks STS, and the roles that the node may assume.

use std::collections::{BTreeMap, BTreeSet};

use super::{Examination, Finding, Level};
use crate::admin::client;
use crate::credentials::network_env::NetworkEnv;
use crate::credentials::sts::Sts;
use crate::credentials::{Issuer as _, ObtainError, SessionKey, StsIssuer};
use crate::explain::{CredentialsLine, Verdict};
use crate::imds::upstream::Upstream;
use crate::roles::{BaseArn, Principal, RoleArn, RoleId, SessionShape, SessionTags};

/// Calls STS with the node's credentials, and tries to assume the role of `--role`. Returns the node's identity and
/// the findings.
pub(super) async fn examine(examination: &Examination) -> (Option<String>, Vec<Finding>) {
    const CHECK: &str = "STS";
    let sts = match Sts::connect(&examination.sts, &NetworkEnv::read()).await {
        Ok(sts) => sts,
        Err(error) => {
            let advice = "see --region, --sts-endpoint and HTTPS_PROXY";
            return (None, vec![Finding::problem(CHECK, error.to_string(), advice)]);
        }
    };
    let identity = sts.node_arn().await.map_err(|error| error.to_string());
    let mut findings = vec![match &identity {
        Ok(arn) => Finding::ok(CHECK, format!("reached; it calls this node {arn}")),
        Err(error) => Finding::problem(
            CHECK,
            format!("cannot be asked: {error}"),
            "the node must reach STS of its region (a VPC endpoint, or a proxy by HTTPS_PROXY), with credentials of its own",
        ),
    }];
    if let Ok(arn) = &identity {
        findings.extend(trusts_itself(&sts, examination, arn).await);
    }
    if let Some(role) = &examination.role {
        findings.push(tried(sts, examination, role).await);
    }
    (identity.ok(), findings)
}

/// Tries whether the node's own role may assume itself. If it may, only the agent keeps the role from pods, and IAM
/// does not. There is no finding if the node's credentials are not those of a role, or if STS does not answer.
async fn trusts_itself(sts: &Sts, examination: &Examination, arn: &str) -> Option<Finding> {
    const CHECK: &str = "own role";
    RoleId::of_session(arn)?;
    let profile = Upstream::new(examination.imds.clone()).instance_profile().await;
    let profile = profile.ok().flatten();
    let mut refused = None;
    for role in own_role_arns(arn, profile.as_deref()) {
        match sts.try_assume(&role, &examination.sts.own_session_name).await {
            Ok(()) => {
                return Some(Finding::warning(
                    CHECK,
                    format!("the node's own role may assume itself ({role})"),
                    "pods are refused it by the agent alone: remove the role itself, and the root of its account where its policy \
                     allows sts:AssumeRole of every role, from the principals of its trust policy",
                ));
            }
            Err(ObtainError::Denied(_)) => refused = Some(role),
            Err(ObtainError::NoToken(_) | ObtainError::Unavailable(_)) => {}
        }
    }
    refused.map(|role| {
        Finding::ok(
            CHECK,
            format!("IAM does not let the node's own role assume itself ({role})"),
        )
    })
}

/// Returns the ARNs that the role of a session may have. The session's ARN has no path, and reading it from IAM
/// requires a permission. An instance profile usually has the path of its role.
fn own_role_arns(session: &str, profile: Option<&str>) -> Vec<RoleArn> {
    let Some((base, name)) = BaseArn::of_account(session).zip(session.split('/').nth(1)) else {
        return Vec::new();
    };
    let path = profile
        .and_then(|arn| arn.split_once(":instance-profile/")?.1.rsplit_once('/'))
        .map(|(path, _)| format!("{path}/{name}"));
    let resources = std::iter::once(name.to_owned()).chain(path);
    resources
        .filter_map(|resource| format!("{}{resource}", base.prefix()).parse().ok())
        .collect()
}

/// The advice if a role cannot be assumed.
const ADVICE: &str = "the role's trust policy must name the node's role as a principal (or that of --assume-role-arn), whose own \
                      policy must allow sts:AssumeRole of it";

async fn tried(sts: Sts, examination: &Examination, role: &RoleArn) -> Finding {
    const CHECK: &str = "assume role";
    let key = SessionKey {
        role: role.clone(),
        shape: SessionShape {
            name: examination.sts.own_session_name.clone(),
            external_id: None,
            tags: SessionTags::default(),
            pod: None,
            principal: Principal::Node,
        },
    };
    match StsIssuer::new(sts, None, None).issue(&key).await {
        Ok(_) => Finding::ok(CHECK, format!("the node may assume {role}")),
        Err(error) => Finding::problem(
            CHECK,
            error.reason(role).to_string(),
            format!("{ADVICE}; a role that asks for an external id can only be tried by its pod"),
        ),
    }
}

const CHECK: &str = "pods' roles";

/// Reports the pods' roles for which the agent of this node has no session.
pub(super) fn pods_roles(examination: &Examination) -> Vec<Finding> {
    let Ok(pods) = client::explain(&examination.runtime_dir, None) else {
        return Vec::new();
    };
    let asked = pods.iter().filter_map(|one| {
        // Refusals that need no call to STS are not reported here, because `explain` shows them.
        Some((one.role.as_deref()?, one.pod.as_str(), one.credentials.as_ref()?))
    });
    let mut findings = fared(asked);
    let waiting: Vec<(&str, &str)> = pods
        .iter()
        .filter(|one| one.verdict == Verdict::Waiting)
        .map(|one| (one.pod.as_str(), one.because.as_str()))
        .collect();
    if let Some(finding) = not_decided(&waiting) {
        findings.retain(|finding| finding.level != Level::Ok);
        findings.push(finding);
    }
    findings
}

/// Reports pods that get 503 because the agent does not know yet an object that decides about their roles.
fn not_decided(waiting: &[(&str, &str)]) -> Option<Finding> {
    let (pod, because) = waiting.first()?;
    let more = match waiting.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more pods)"),
    };
    Some(Finding::warning(
        CHECK,
        format!("pod {pod}{more} is answered 503, because its role is not known yet: {because}"),
        format!(
            "`metaproxy explain {pod}` shows the reason; for a pod that has just started this may be over in a moment"
        ),
    ))
}

/// Picks, for each role, one pod for which STS has given no session or renews none.
fn fared<'a>(asked: impl Iterator<Item = (&'a str, &'a str, &'a CredentialsLine)>) -> Vec<Finding> {
    let (mut given, mut failing) = (BTreeSet::new(), BTreeMap::new());
    for (role, pod, credentials) in asked {
        match &credentials.last_error {
            Some(error) => {
                failing.entry(role).or_insert((pod, error));
            }
            None if credentials.expires.is_some() => {
                given.insert(role);
            }
            None => {}
        }
    }
    let mut findings: Vec<Finding> = failing
        .into_iter()
        .map(|(role, (pod, error))| {
            let says = format!("no session of {role}, which pod {pod} asks for: {error}");
            Finding::warning(
                CHECK,
                says,
                format!("{ADVICE}; `metaproxy explain {pod}` shows the reason"),
            )
        })
        .collect();
    if findings.is_empty() {
        let says = match given.len() {
            0 => "the agent has had none to assume".to_owned(),
            1 => "the agent has sessions of the one role that pods ask for".to_owned(),
            count => format!("the agent has sessions of all {count} roles that pods ask for"),
        };
        findings.push(Finding::ok(CHECK, says));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(expires: Option<&str>, last_error: Option<&str>) -> CredentialsLine {
        CredentialsLine {
            state: String::new(),
            access_key_id: None,
            obtained: None,
            expires: expires.map(str::to_owned),
            seconds_left: None,
            last_error: last_error.map(str::to_owned),
            seconds_to_retry: None,
        }
    }

    #[test]
    fn the_nodes_own_role_is_tried_by_each_arn_that_it_may_have() {
        let session = "arn:aws:sts::123456789012:assumed-role/node/i-0abc";
        let arns = |profile: Option<&str>| -> Vec<String> {
            let arns = own_role_arns(session, profile);
            arns.iter().map(ToString::to_string).collect()
        };
        let plain = "arn:aws:iam::123456789012:role/node";
        assert_eq!(arns(None), [plain]);
        assert_eq!(
            arns(Some("arn:aws:iam::123456789012:instance-profile/nodes")),
            [plain]
        );
        assert_eq!(
            arns(Some("arn:aws:iam::123456789012:instance-profile/a/b/nodes")),
            [plain, "arn:aws:iam::123456789012:role/a/b/node"]
        );
    }

    #[test]
    fn each_role_that_sts_refuses_is_named_once_with_a_pod_that_asks_for_it() {
        let (good, bad) = (
            line(Some("2026-01-01T00:00:00Z"), None),
            line(None, Some("AccessDenied")),
        );
        let found = fared(
            [
                ("arn:a", "apps/a", &good),
                ("arn:b", "apps/b1", &bad),
                ("arn:b", "apps/b2", &bad),
            ]
            .into_iter(),
        );
        let [one] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(one.level, Level::Warning);
        assert_eq!(
            one.says,
            "no session of arn:b, which pod apps/b1 asks for: AccessDenied"
        );
    }

    #[test]
    fn pods_whose_role_is_not_known_yet_are_named() {
        assert_eq!(not_decided(&[]), None);
        let one = not_decided(&[("apps/a", "namespace apps is not known"), ("apps/b", "x")]).unwrap();
        assert_eq!(one.level, Level::Warning);
        assert!(
            one.says.contains("apps/a (and 1 more pods)")
                && one.says.ends_with("namespace apps is not known"),
            "{one:?}"
        );
    }

    #[test]
    fn roles_with_sessions_are_ok() {
        let good = line(Some("2026-01-01T00:00:00Z"), None);
        let found = fared([("arn:a", "apps/a", &good), ("arn:b", "apps/b", &good)].into_iter());
        assert_eq!(
            found[0].says,
            "the agent has sessions of all 2 roles that pods ask for"
        );
        assert_eq!(fared(std::iter::empty())[0].level, Level::Ok);
    }
}
