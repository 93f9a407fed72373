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

/// The arguments of `metaproxy doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "All flags but --fix-leftovers, --role, --guard-placement and --output, and their environment variables, are those of \
                  `metaproxy run`: give the same ones as to the agent. In the container of the chart they are set. Flags that make no \
                  difference here are accepted and ignored. If an agent runs on this node, doctor asks it for what it has found, such \
                  as the pods' cgroup.\n\n\
                  Exit status: 0 if nothing is wrong, 1 with warnings, 2 with problems; 64 on bad usage. With --fix-leftovers: 0 if \
                  nothing is left, 1 if something is.\n\n\
                  Examples:\n  \
                  kubectl -n kube-system exec ds/metaproxy -- /metaproxy doctor\n  \
                  metaproxy doctor --role arn:aws:iam::123456789012:role/app"
)]
pub struct DoctorArgs {
    /// Show and remove what kube2iam, kiam or the EKS Pod Identity agent have left on this node
    #[arg(long)]
    pub fix_leftovers: bool,

    /// Assume this role, to check whether the agent may
    #[arg(long, value_name = "ARN")]
    role: Option<String>,

    /// Where a guard should run on this node; without this flag a missing guard is not reported
    #[arg(long, env = "METAPROXY_GUARD_PLACEMENT", value_name = "PLACEMENT")]
    guard_placement: Option<GuardPlacement>,

    /// Format of the output
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub output: Output,

    /// The flags of the agent.
    #[command(flatten)]
    run: RunArgs,
}

impl DoctorArgs {
    /// Returns the settings of the examination.
    ///
    /// # Errors
    /// Returns the error of the first malformed flag.
    pub fn examination(&self) -> Result<Examination, UsageError> {
        let run = &self.run;
        if let Some(endpoint) = &run.sts_endpoint {
            check_url("--sts-endpoint", endpoint)?;
        }
        let imds = imds_endpoint(&run.imds_endpoint)?;
        Ok(Examination {
            cgroup: run.cgroups.cgroup.clone(),
            cgroup_root: run.cgroups.cgroup_root.clone(),
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

    /// Returns the API server that the agent would use. Returns `None` if the agent reads manifests.
    fn kubeconfig(&self) -> Option<KubeconfigSource> {
        if self.run.manifests.is_some() {
            return None;
        }
        let given = self.run.kubeconfig.clone().map(KubeconfigSource::File);
        given.or_else(kubeconfig_of_environment)
    }
}
