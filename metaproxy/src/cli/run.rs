//! The flags of `metaproxy run`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::args::{CgroupArgs, LoggingArgs};
use super::roles::RoleArgs;
use super::{AdminAddress, ImdsV1, Switch, TokenPolicy, values};
use crate::agent::Mode;
use crate::imds::path::PassThrough;
use crate::intercept::guard::GuardMode;

/// The arguments of `metaproxy run`. Every flag has a variable `METAPROXY_<FLAG>`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                  metaproxy run --node-name \"$(hostname)\" --kubeconfig /etc/kubernetes/metaproxy.conf\n  \
                  metaproxy run --manifests /etc/metaproxy/pods --namespace-policy off\n  \
                  metaproxy run --mode observe --node-name \"$(hostname)\"    # logs what would change\n\n\
                  Exit status: 0 after SIGTERM or SIGINT; 1 if it cannot start, or a task of it fails; 64 on bad usage.")]
pub struct RunArgs {
    /// Name of this node, whose pods are served [default: $NODE_NAME]
    #[arg(long, env = "METAPROXY_NODE_NAME", value_name = "NAME", help_heading = "Pods")]
    pub(super) node_name: Option<String>,

    /// Read Pod, Namespace and ServiceAccount objects from the YAML and JSON files of a directory instead of the API server; changed
    /// files are read again
    #[arg(long, env = "METAPROXY_MANIFESTS", value_name = "DIR", help_heading = "Pods")]
    pub(super) manifests: Option<PathBuf>,

    /// Kubeconfig of the API server [default: the service account of this pod, else $KUBECONFIG]
    #[arg(
        long,
        env = "METAPROXY_KUBECONFIG",
        value_name = "FILE",
        conflicts_with = "manifests",
        help_heading = "Pods"
    )]
    pub(super) kubeconfig: Option<PathBuf>,

    #[command(flatten)]
    pub(super) cgroups: CgroupArgs,

    /// Address of this node at which the agent listens for pods; repeatable [default: the node's IPv4 and IPv6 address]
    #[arg(
        long,
        env = "METAPROXY_LISTEN_ADDRESS",
        value_name = "IP",
        value_delimiter = ',',
        help_heading = "Interception"
    )]
    pub(super) listen_address: Vec<IpAddr>,

    /// Port at which the agent listens for pods; 0 is a free port outside the ephemeral and NodePort ranges, which changes if a hostPort
    /// or a Service with externalIPs claims it
    #[arg(
        long,
        env = "METAPROXY_LISTEN_PORT",
        value_name = "PORT",
        default_value_t = 0,
        help_heading = "Interception"
    )]
    pub(super) listen_port: u16,

    /// What the agent's own guard stops while the agent runs [default: auto, and off with --mode observe]
    #[arg(
        long,
        env = "METAPROXY_GUARD",
        value_name = "GUARD",
        help_heading = "Interception"
    )]
    pub(super) guard: Option<GuardMode>,

    #[command(flatten)]
    pub(super) roles: RoleArgs,

    /// Whether the agent requests tokens of service accounts only while the API server refuses it tokens for other audiences
    #[arg(
        long,
        env = "METAPROXY_TOKEN_POLICY",
        value_name = "POLICY",
        default_value = "off",
        help_heading = "Roles"
    )]
    pub(super) token_policy: TokenPolicy,

    /// Role that the agent assumes first, and with which it assumes the pods' roles
    #[arg(
        long,
        env = "METAPROXY_ASSUME_ROLE_ARN",
        value_name = "ARN",
        help_heading = "Sessions"
    )]
    pub(super) assume_role_arn: Option<String>,

    /// Duration of sessions: 15m to 1h, which is the maximum if one role assumes another (role chaining)
    #[arg(
        long, env = "METAPROXY_SESSION_DURATION", value_name = "DURATION", default_value = "1h",
        value_parser = humantime::parse_duration, help_heading = "Sessions"
    )]
    pub(super) session_duration: Duration,

    /// Region of STS [default: by the AWS SDK's chain: environment, profile, the node's metadata service]
    #[arg(
        long,
        env = "METAPROXY_REGION",
        value_name = "REGION",
        help_heading = "Sessions"
    )]
    pub(super) region: Option<String>,

    /// URL of STS [default: the regional endpoint]
    #[arg(
        long,
        env = "METAPROXY_STS_ENDPOINT",
        value_name = "URL",
        help_heading = "Sessions"
    )]
    pub(super) sts_endpoint: Option<String>,

    /// URL of the node's own metadata service
    #[arg(
        long,
        env = "METAPROXY_IMDS_ENDPOINT",
        value_name = "URL",
        default_value = "http://169.254.169.254",
        help_heading = "Metadata"
    )]
    pub(super) imds_endpoint: String,

    /// Whether pods may make requests without a session token (IMDSv1)
    #[arg(
        long,
        env = "METAPROXY_IMDS_V1",
        value_name = "POLICY",
        default_value = "auto",
        help_heading = "Metadata"
    )]
    pub(super) imds_v1: ImdsV1,

    /// Which of the node's metadata pods may read, beside what --allow-path adds
    #[arg(
        long,
        env = "METAPROXY_PASS_THROUGH",
        value_name = "EXTENT",
        default_value = "default",
        help_heading = "Metadata"
    )]
    pub(super) pass_through: PassThrough,

    /// More metadata that pods may read: a regular expression for whole paths, with or without /VERSION/meta-data/ before them;
    /// repeatable (in the variable: separated by spaces). Credentials and user-data are never passed through
    #[arg(
        long,
        env = "METAPROXY_ALLOW_PATH",
        value_name = "REGEX",
        value_delimiter = ' ',
        help_heading = "Metadata"
    )]
    pub(super) allow_path: Vec<String>,

    /// Connections that one pod may have open; as many more wait up to 5 s for one of them to end, further ones are closed
    #[arg(
        long, env = "METAPROXY_MAX_CONNECTIONS_PER_POD", value_name = "N", default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(1..), help_heading = "Limits"
    )]
    pub(super) max_connections_per_pod: u32,

    /// Connections that one pod may make in a second, at least 512; further ones wait
    #[arg(
        long, env = "METAPROXY_MAX_CONNECTION_RATE_PER_POD", value_name = "N", default_value_t = 2000,
        value_parser = clap::value_parser!(u32).range(512..), help_heading = "Limits"
    )]
    pub(super) max_connection_rate_per_pod: u32,

    /// Requests of one pod that are answered in a second, at least 512; further ones wait
    #[arg(
        long, env = "METAPROXY_MAX_REQUEST_RATE_PER_POD", value_name = "N", default_value_t = 5000,
        value_parser = clap::value_parser!(u32).range(512..), help_heading = "Limits"
    )]
    pub(super) max_request_rate_per_pod: u32,

    /// Maximum size of a request's head in KiB: 8 to 64
    #[arg(
        long, env = "METAPROXY_MAX_HEAD_SIZE", value_name = "KIB", default_value_t = 16,
        value_parser = clap::value_parser!(u32).range(8..=64), help_heading = "Limits"
    )]
    pub(super) max_head_size: u32,

    /// Time limit for a request's head, from its first byte: 1s to 1m
    #[arg(
        long, env = "METAPROXY_HEAD_TIMEOUT", value_name = "DURATION", default_value = "5s",
        value_parser = values::a_second_to_a_minute, help_heading = "Limits"
    )]
    pub(super) head_timeout: Duration,

    /// Time after which a connection without a request is closed: 1s to 1h
    #[arg(
        long, env = "METAPROXY_IDLE_TIMEOUT", value_name = "DURATION", default_value = "1m",
        value_parser = values::a_second_to_an_hour, help_heading = "Limits"
    )]
    pub(super) idle_timeout: Duration,

    /// Whether roles are served, only observed, or kept from pods
    #[arg(
        long,
        env = "METAPROXY_MODE",
        value_name = "MODE",
        default_value = "enforce",
        help_heading = "Operation"
    )]
    pub(super) mode: Mode,

    /// Address and port for /metrics, /healthz and /readyz, such as 127.0.0.1:16925; off uses no port, since probes and commands use a
    /// socket in the runtime directory
    #[arg(
        long,
        env = "METAPROXY_ADMIN_ADDRESS",
        value_name = "ADDRESS",
        default_value = "off",
        help_heading = "Operation"
    )]
    pub(super) admin_address: AdminAddress,

    /// Key of a taint that the agent removes from this node when it serves pods
    #[arg(
        long,
        env = "METAPROXY_STARTUP_TAINT",
        value_name = "KEY",
        conflicts_with = "manifests",
        help_heading = "Operation"
    )]
    pub(super) startup_taint: Option<String>,

    /// Runtime directory, with the key of session tokens, the known pods and the agent's socket; it is made if it does not exist
    #[arg(
        long,
        env = "METAPROXY_RUNTIME_DIR",
        value_name = "DIR",
        default_value = "/run/metaproxy",
        help_heading = "Operation"
    )]
    pub(super) runtime_dir: PathBuf,

    /// Whether each session that is issued is logged (pod, role, access key id, expiry), whatever --log says
    #[arg(
        long,
        env = "METAPROXY_AUDIT",
        value_name = "SWITCH",
        default_value = "on",
        help_heading = "Operation"
    )]
    pub audit: Switch,

    /// The flags of the log.
    #[command(flatten)]
    pub logging: LoggingArgs,
}
