//! The flags of `metaproxy doctor`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::args::PlaceArgs;
use super::people::AgentArgs;
use super::usage::{UsageError, check_url, imds_endpoint, kubeconfig_of_environment, role};
use super::{AdminAddress, NamespacePolicy, Switch};
use crate::apiserver::KubeconfigSource;
use crate::credentials::sts::StsSettings;
use crate::doctor::Examination;
use crate::roles::session_name::SessionName;

/// `metaproxy doctor`
#[derive(Debug, Args)]
#[command(
    after_help = "But for --fix-leftovers, --role and --output, flags and their variables of the environment are those of `metaproxy \
                        run`: give those that the agent has. In the container of the chart they are set.\n\nExit status: 0 where \
                        everything is as it should be, 1 with warnings, 2 with problems; 64 on bad usage. With --fix-leftovers: 0 \
                        where nothing is left, 1 where something is."
)]
pub struct DoctorArgs {
    /// Remove what kube2iam, kiam or the EKS Pod Identity agent have left on this node, after showing it
    #[arg(long)]
    pub fix_leftovers: bool,

    /// Assume this role, to see whether the node may
    #[arg(long, value_name = "ARN")]
    role: Option<String>,

    #[command(flatten)]
    place: PlaceArgs,

    /// Fixed port of the listener, which must be free
    #[arg(long, env = "METAPROXY_LISTEN_PORT", value_name = "PORT", default_value_t = 0)]
    listen_port: u16,

    /// Where health and metrics are to be answered: address and port, or off
    #[arg(
        long,
        env = "METAPROXY_ADMIN_ADDRESS",
        value_name = "ADDRESS",
        default_value = "off"
    )]
    admin_address: AdminAddress,

    /// Kubeconfig of the API server [default: the service account of this pod, else $KUBECONFIG, else none is asked]
    #[arg(long, env = "METAPROXY_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Pods come from the files of a directory, and no API server is to be asked
    #[arg(
        long,
        env = "METAPROXY_MANIFESTS",
        value_name = "DIR",
        conflicts_with = "kubeconfig"
    )]
    manifests: Option<PathBuf>,

    /// Whether namespaces are to be asked for their policy
    #[arg(
        long,
        env = "METAPROXY_NAMESPACE_POLICY",
        value_name = "POLICY",
        default_value = "required"
    )]
    namespace_policy: NamespacePolicy,

    /// Whether service accounts are to be asked for their pods' roles
    #[arg(
        long,
        env = "METAPROXY_WEB_IDENTITY",
        value_name = "SWITCH",
        default_value = "off"
    )]
    web_identity: Switch,

    /// Taint of this node that is to be removed when pods are served
    #[arg(long, env = "METAPROXY_STARTUP_TAINT", value_name = "KEY")]
    startup_taint: Option<String>,

    /// The node's own metadata service
    #[arg(
        long,
        env = "METAPROXY_IMDS_ENDPOINT",
        value_name = "URL",
        default_value = "http://169.254.169.254"
    )]
    imds_endpoint: String,

    /// Region of STS [default: the SDK's chain: environment, profile, the node's metadata service]
    #[arg(long, env = "METAPROXY_REGION", value_name = "REGION")]
    region: Option<String>,

    /// URL of STS [default: the region's]
    #[arg(long, env = "METAPROXY_STS_ENDPOINT", value_name = "URL")]
    sts_endpoint: Option<String>,

    /// A role that the node assumes first, and which assumes the pods' roles
    #[arg(long, env = "METAPROXY_ASSUME_ROLE_ARN", value_name = "ARN")]
    assume_role_arn: Option<String>,

    /// Where an agent that runs already is found, and the form of what is printed.
    #[command(flatten)]
    pub agent: AgentArgs,
}

impl DoctorArgs {
    /// What is to be looked at.
    ///
    /// # Errors
    /// The first flag that makes no sense.
    pub fn examination(&self) -> Result<Examination, UsageError> {
        if let Some(endpoint) = &self.sts_endpoint {
            check_url("--sts-endpoint", endpoint)?;
        }
        let imds = imds_endpoint(&self.imds_endpoint)?;
        Ok(Examination {
            cgroup: self.place.cgroup.clone(),
            cgroup_root: self.place.cgroup_root.clone(),
            listen: (IpAddr::V4(Ipv4Addr::UNSPECIFIED), self.listen_port).into(),
            admin: self.admin_address.0,
            kubeconfig: self.kubeconfig(),
            namespaces: self.namespace_policy == NamespacePolicy::Required,
            web_identity: self.web_identity == Switch::On,
            startup_taint: self.startup_taint.is_some(),
            sts: StsSettings {
                region: self.region.clone(),
                endpoint: self.sts_endpoint.clone(),
                imds_endpoint: imds.to_string(),
                duration: Duration::from_secs(15 * 60),
                through: role("--assume-role-arn", self.assume_role_arn.as_ref())?,
                own_name: SessionName::cleaned("metaproxy-doctor"),
            },
            imds,
            role: role("--role", self.role.as_ref())?,
            runtime_dir: self.agent.runtime_dir.clone(),
        })
    }

    /// The API server that the agent would ask; none where it reads manifests.
    fn kubeconfig(&self) -> Option<KubeconfigSource> {
        if self.manifests.is_some() {
            return None;
        }
        let given = self.kubeconfig.clone().map(KubeconfigSource::File);
        given.or_else(kubeconfig_of_environment)
    }
}
