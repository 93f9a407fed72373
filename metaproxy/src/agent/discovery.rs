//! Discovers two facts about the node: the account to which role names belong, and whether the node's metadata
//! service requires session tokens. Each request is repeated until there is an answer. The start does not wait for
//! the answers.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use super::context::Context;
use super::tasks::Tasks;
use super::{Mode, own_roles};
use crate::credentials::sts::Sts;
use crate::imds::ImdsV1Policy;
use crate::imds::upstream::Upstream;
use crate::roles::{BaseArn, Rules};

/// The time before the second attempt. It doubles with each failure up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(500);

/// The longest time between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// The number of failures after which the agent assumes that the node has no metadata service.
const MAX_FAILURES: u32 = 4;

/// Starts the tasks that find the account of roles' names and the node's own roles. An agent that serves no roles
/// needs neither.
pub(super) fn spawn(context: &Context, sts: Option<Sts>, tasks: &mut Tasks) {
    if context.mode == Mode::Firewall {
        return;
    }
    let (upstream, rules) = (context.upstream.clone(), context.rules.clone());
    tasks.spawn(
        "own-roles",
        own_roles::discover(upstream.clone(), sts.clone(), rules.clone()),
    );
    if let Some(sts) = sts {
        tasks.spawn("base-role-arn", base_arn(upstream, sts, rules));
    }
}

/// Finds the base ARN if none is given, and publishes the rules with it. Never ends.
async fn base_arn(upstream: Upstream, sts: Sts, rules: watch::Sender<Arc<Rules>>) {
    let (mut backoff, mut failures) = (MIN_BACKOFF, 0);
    while rules.borrow().base.is_none() {
        match of_node(&upstream, &sts, failures >= MAX_FAILURES).await {
            Ok(base) => {
                info!(
                    base = base.prefix(),
                    "names of roles are those of the node's own account"
                );
                rules.send_modify(|rules| {
                    let base = Some(base);
                    *rules = Arc::new(Rules {
                        base,
                        ..Rules::clone(rules)
                    });
                });
            }
            Err(Unknown { problem, is_absent }) => {
                warn!(
                    "the account of the node's own role cannot be found out, so names of roles wait: {problem}"
                );
                failures = if is_absent { failures + 1 } else { 0 };
                pause(&mut backoff).await;
            }
        }
    }
    pending().await
}

/// The reason why the account is not known.
struct Unknown {
    problem: String,
    /// Whether the reason is that no server answers at the address of the metadata service.
    is_absent: bool,
}

/// Finds the account from the instance profile. If the node has no profile or no metadata service, finds it from the
/// node's credentials. If the metadata service only fails, the credentials are not used, because they may belong to
/// another account.
async fn of_node(upstream: &Upstream, sts: &Sts, is_alone: bool) -> Result<BaseArn, Unknown> {
    let unknown = |problem, is_absent| Unknown { problem, is_absent };
    let (profile, is_absent) = match upstream.instance_profile().await {
        Ok(Some(arn)) => {
            let base = BaseArn::of_account(&arn);
            return base.ok_or_else(|| unknown(format!("iam/info has the ARN {arn:?}"), false));
        }
        Ok(None) => ("the node has no instance profile".to_owned(), false),
        Err(error) if error.is_absence() && is_alone => (error.to_string(), true),
        Err(error) => return Err(unknown(error.to_string(), error.is_absence())),
    };
    match sts.node_arn().await {
        Ok(arn) => {
            BaseArn::of_account(&arn).ok_or_else(|| unknown(format!("STS calls the node {arn:?}"), is_absent))
        }
        Err(error) => Err(unknown(format!("{profile}; STS: {error}"), is_absent)),
    }
}

/// Finds out whether the node's metadata service requires session tokens. With `--imds-v1 auto`, pods need session
/// tokens only in that case.
pub(super) async fn imds_v1(upstream: Upstream, imds_v1: watch::Sender<ImdsV1Policy>) {
    let mut backoff = MIN_BACKOFF;
    let mut is_open = *imds_v1.borrow() == ImdsV1Policy::Unknown;
    while is_open {
        match upstream.requires_tokens().await {
            Ok(true) => {
                info!("the node's metadata service requires session tokens, so pods need them too");
                imds_v1.send_replace(ImdsV1Policy::Denied);
                is_open = false;
            }
            Ok(false) => {
                imds_v1.send_replace(ImdsV1Policy::Allowed);
                is_open = false;
            }
            Err(error) => {
                // The requirement is not known yet, so pods are served without tokens until it is.
                if imds_v1.send_replace(ImdsV1Policy::Allowed) == ImdsV1Policy::Unknown {
                    warn!(
                        "cannot find out whether the node's metadata service requires session tokens; until then pods \
                         need none (--imds-v1 decides it): {error}"
                    );
                }
                pause(&mut backoff).await;
            }
        }
    }
    pending().await
}

async fn pause(backoff: &mut Duration) {
    tokio::time::sleep(*backoff).await;
    *backoff = backoff.saturating_mul(2).min(MAX_BACKOFF);
}
