//! The flags of `metaproxy doctor`.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use clap::Args;

use super::agent::Output;
use super::run::RunArgs;
use super::usage::{
    UsageError, check_url, imds_endpoint, kubeconfig_of_environment, node_name_of_environment, role,
};
use super::{NamespacePolicy, Switch, TokenPolicy};
use crate::apiserver::KubeconfigSource;
use crate::credentials::sts::StsSettings;
use crate::doctor::{Examination, GuardPlacement};
use crate::roles::session_name::SessionName;

/// `metaproxy doctor`
#[derive(Debug, Args)]
#[command(
    after_help = "All flags but --fix-leftovers, --role, --guard-placement and --output, and their variables of the environment, are \
                  those of `metaproxy run`: give those that the agent has. In the container of the chart they are set. Those that make no \
                  difference here are taken and not looked at. An agent that runs on this node is asked for what it has found, such \
                  as the pods' cgroup.\n\n\
                  Exit status: 0 if everything is as it should be, 1 with warnings, 2 with problems; 64 on bad usage. With \
                  --fix-leftovers: 0 if nothing is left, 1 if something is.\n\n\
                  Examples:\n  \
                  kubectl -n kube-system exec ds/metaproxy -- /metaproxy doctor\n  \
                  metaproxy doctor --role arn:aws:iam::123456789012:role/app"
)]
pub struct DoctorArgs {
    /// Remove what kube2iam, kiam or the EKS Pod Identity agent have left on this node, after showing it
    #[arg(long)]
    pub fix_leftovers: bool,

    /// Assume this role, to see whether the node may
    #[arg(long, value_name = "ARN")]
    role: Option<String>,

    /// Where a guard of its own is to run on this node; without it, one that is missing is no fault
    #[arg(long, env = "METAPROXY_GUARD_PLACEMENT", value_name = "PLACEMENT")]
    guard_placement: Option<GuardPlacement>,

    /// Form of what is printed
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub output: Output,

    /// What the agent is told.
    #[command(flatten)]
    run: RunArgs,
}

impl DoctorArgs {
    /// What is to be looked at.
    ///
    /// # Errors
    /// The first flag that makes no sense.
    pub fn examination(&self) -> Result<Examination, UsageError> {
        let run = &self.run;
        if let Some(endpoint) = &run.sts_endpoint {
            check_url("--sts-endpoint", endpoint)?;
        }
        let imds = imds_endpoint(&run.imds_endpoint)?;
        Ok(Examination {
            cgroup: run.place.cgroup.clone(),
            cgroup_root: run.place.cgroup_root.clone(),
            listen: (IpAddr::V4(Ipv4Addr::UNSPECIFIED), run.listen_port).into(),
            admin: run.admin_address.0,
            kubeconfig: self.kubeconfig(),
            node: run.node_name.clone().or_else(node_name_of_environment),
            namespaces: run.roles.namespace_policy == NamespacePolicy::Required,
            web_identity: run.roles.web_identity == Switch::On,
            token_policy_required: run.token_policy == TokenPolicy::Required,
            startup_taint: run.startup_taint.is_some(),
            sts: StsSettings {
                region: run.region()?,
                endpoint: run.sts_endpoint.clone(),
                imds_endpoint: imds.to_string(),
                duration: Duration::from_secs(15 * 60),
                intermediate_role: role("--assume-role-arn", run.assume_role_arn.as_ref())?,
                own_session_name: SessionName::cleaned("metaproxy-doctor"),
            },
            imds,
            role: role("--role", self.role.as_ref())?,
            runtime_dir: run.runtime_dir.clone(),
            guard_placement: self.guard_placement,
        })
    }

    /// The API server that the agent would ask; none where it reads manifests.
    fn kubeconfig(&self) -> Option<KubeconfigSource> {
        if self.run.manifests.is_some() {
            return None;
        }
        let given = self.run.kubeconfig.clone().map(KubeconfigSource::File);
        given.or_else(kubeconfig_of_environment)
    }
}
