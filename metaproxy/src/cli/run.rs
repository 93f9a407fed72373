//! The flags of `metaproxy run`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::args::{LoggingArgs, PlaceArgs};
use super::roles::RoleArgs;
use super::{AdminAddress, ImdsV1, Switch, TokenPolicy, values};
use crate::agent::Mode;
use crate::imds::path::PassThrough;
use crate::intercept::guard::GuardMode;

/// `metaproxy run`. Every flag can also be given as `METAPROXY_<FLAG>`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                  metaproxy run --node-name \"$(hostname)\" --kubeconfig /etc/kubernetes/metaproxy.conf\n  \
                  metaproxy run --manifests /etc/metaproxy/pods --namespace-policy off\n  \
                  metaproxy run --mode observe --node-name \"$(hostname)\"    # changes nothing, and logs what would\n\n\
                  Exit status: 0 after SIGTERM or SIGINT; 1 if it cannot start, or a part of it fails; 64 on bad usage.")]
pub struct RunArgs {
    /// Name of this node, whose pods are served [default: $NODE_NAME]
    #[arg(long, env = "METAPROXY_NODE_NAME", value_name = "NAME", help_heading = "Pods")]
    pub(super) node_name: Option<String>,

    /// Read Pod, Namespace and ServiceAccount objects from the YAML and JSON files of a directory, and not from the API
    /// server; read again on change
    #[arg(long, env = "METAPROXY_MANIFESTS", value_name = "DIR", help_heading = "Pods")]
    pub(super) manifests: Option<PathBuf>,

    /// Kubeconfig of the API server to read pods from [default: the service account of this pod, else $KUBECONFIG]
    #[arg(
        long,
        env = "METAPROXY_KUBECONFIG",
        value_name = "FILE",
        conflicts_with = "manifests",
        help_heading = "Pods"
    )]
    pub(super) kubeconfig: Option<PathBuf>,

    #[command(flatten)]
    pub(super) place: PlaceArgs,

    /// Address of this node at which pods reach the listener; repeatable [default: the node's IPv4 and IPv6 address]
    #[arg(
        long,
        env = "METAPROXY_LISTEN_ADDRESS",
        value_name = "IP",
        value_delimiter = ',',
        help_heading = "Interception"
    )]
    pub(super) listen_address: Vec<IpAddr>,

    /// Port of the listener; 0 takes a free one outside the ephemeral and NodePort ranges, and another one if a hostPort or
    /// a Service with externalIPs claims it
    #[arg(
        long,
        env = "METAPROXY_LISTEN_PORT",
        value_name = "PORT",
        default_value_t = 0,
        help_heading = "Interception"
    )]
    pub(super) listen_port: u16,

    /// What closes the ways round the redirection for as long as the agent runs [default: auto, and off with --mode
    /// observe]
    #[arg(
        long,
        env = "METAPROXY_GUARD",
        value_name = "GUARD",
        help_heading = "Interception"
    )]
    pub(super) guard: Option<GuardMode>,

    #[command(flatten)]
    pub(super) roles: RoleArgs,

    /// Whether tokens of service accounts are asked for only while the API server is seen to refuse those of other audiences
    #[arg(
        long,
        env = "METAPROXY_TOKEN_POLICY",
        value_name = "POLICY",
        default_value = "off",
        help_heading = "Roles"
    )]
    pub(super) token_policy: TokenPolicy,

    /// A role that the node assumes first, and which assumes the pods' roles
    #[arg(
        long,
        env = "METAPROXY_ASSUME_ROLE_ARN",
        value_name = "ARN",
        help_heading = "Sessions"
    )]
    pub(super) assume_role_arn: Option<String>,

    /// How long a session lives: 15m to 1h, as the node's role assumes the pod's (role chaining)
    #[arg(
        long, env = "METAPROXY_SESSION_DURATION", value_name = "DURATION", default_value = "1h",
        value_parser = humantime::parse_duration, help_heading = "Sessions"
    )]
    pub(super) session_duration: Duration,

    /// Region of STS [default: the SDK's chain: environment, profile, the node's metadata service]
    #[arg(
        long,
        env = "METAPROXY_REGION",
        value_name = "REGION",
        help_heading = "Sessions"
    )]
    pub(super) region: Option<String>,

    /// URL of STS [default: the region's]
    #[arg(
        long,
        env = "METAPROXY_STS_ENDPOINT",
        value_name = "URL",
        help_heading = "Sessions"
    )]
    pub(super) sts_endpoint: Option<String>,

    /// The node's own metadata service
    #[arg(
        long,
        env = "METAPROXY_IMDS_ENDPOINT",
        value_name = "URL",
        default_value = "http://169.254.169.254",
        help_heading = "Metadata"
    )]
    pub(super) imds_endpoint: String,

    /// Whether pods may ask without a session token (IMDSv1)
    #[arg(
        long,
        env = "METAPROXY_IMDS_V1",
        value_name = "POLICY",
        default_value = "auto",
        help_heading = "Metadata"
    )]
    pub(super) imds_v1: ImdsV1,

    /// How much of the node's metadata pods see, beside what --allow-path adds
    #[arg(
        long,
        env = "METAPROXY_PASS_THROUGH",
        value_name = "EXTENT",
        default_value = "default",
        help_heading = "Metadata"
    )]
    pub(super) pass_through: PassThrough,

    /// More of the node's metadata for pods: a regular expression for whole paths, with or without /VERSION/meta-data/
    /// before them; repeatable (in the variable: separated by blanks). Never credentials or user-data
    #[arg(
        long,
        env = "METAPROXY_ALLOW_PATH",
        value_name = "REGEX",
        value_delimiter = ' ',
        help_heading = "Metadata"
    )]
    pub(super) allow_path: Vec<String>,

    /// Connections that one pod may have open; more are closed at once
    #[arg(
        long, env = "METAPROXY_MAX_CONNECTIONS_PER_POD", value_name = "N", default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(1..), help_heading = "Limits"
    )]
    pub(super) max_connections_per_pod: u32,

    /// Connections that one pod may make in a second, at least 512; more have to wait
    #[arg(
        long, env = "METAPROXY_MAX_CONNECTION_RATE_PER_POD", value_name = "N", default_value_t = 2000,
        value_parser = clap::value_parser!(u32).range(512..), help_heading = "Limits"
    )]
    pub(super) max_connection_rate_per_pod: u32,

    /// Requests that are answered to one pod in a second, at least 512; more have to wait
    #[arg(
        long, env = "METAPROXY_MAX_REQUEST_RATE_PER_POD", value_name = "N", default_value_t = 5000,
        value_parser = clap::value_parser!(u32).range(512..), help_heading = "Limits"
    )]
    pub(super) max_request_rate_per_pod: u32,

    /// Longest head of a request, in KiB: 8 to 64
    #[arg(
        long, env = "METAPROXY_MAX_HEAD_SIZE", value_name = "KIB", default_value_t = 16,
        value_parser = clap::value_parser!(u32).range(8..=64), help_heading = "Limits"
    )]
    pub(super) max_head_size: u32,

    /// How long the head of a request may take, from its first byte: 1s to 1m
    #[arg(
        long, env = "METAPROXY_HEAD_TIMEOUT", value_name = "DURATION", default_value = "5s",
        value_parser = values::a_second_to_a_minute, help_heading = "Limits"
    )]
    pub(super) head_timeout: Duration,

    /// How long a connection may say nothing between requests: 1s to 1h
    #[arg(
        long, env = "METAPROXY_IDLE_TIMEOUT", value_name = "DURATION", default_value = "1m",
        value_parser = values::a_second_to_an_hour, help_heading = "Limits"
    )]
    pub(super) idle_timeout: Duration,

    /// What pods get
    #[arg(
        long,
        env = "METAPROXY_MODE",
        value_name = "MODE",
        default_value = "enforce",
        help_heading = "Operation"
    )]
    pub(super) mode: Mode,

    /// Where /metrics, /healthz and /readyz are answered, such as 127.0.0.1:16925; off takes no port, as probes and commands use a
    /// socket in the runtime directory
    #[arg(
        long,
        env = "METAPROXY_ADMIN_ADDRESS",
        value_name = "ADDRESS",
        default_value = "off",
        help_heading = "Operation"
    )]
    pub(super) admin_address: AdminAddress,

    /// Taint of this node that is removed when pods are served
    #[arg(
        long,
        env = "METAPROXY_STARTUP_TAINT",
        value_name = "KEY",
        conflicts_with = "manifests",
        help_heading = "Operation"
    )]
    pub(super) startup_taint: Option<String>,

    /// Directory for the key of session tokens, what is known of the pods, and the agent's socket (made where it does not
    /// exist)
    #[arg(
        long,
        env = "METAPROXY_RUNTIME_DIR",
        value_name = "DIR",
        default_value = "/run/metaproxy",
        help_heading = "Operation"
    )]
    pub(super) runtime_dir: PathBuf,

    /// Whether a line is logged for each session that is issued (pod, role, access key id, expiry), whatever --log says
    #[arg(
        long,
        env = "METAPROXY_AUDIT",
        value_name = "SWITCH",
        default_value = "on",
        help_heading = "Operation"
    )]
    pub audit: Switch,

    /// What is logged.
    #[command(flatten)]
    pub logging: LoggingArgs,
}
