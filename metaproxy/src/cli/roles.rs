//! The flags that decide about pods' roles, which `metaproxy run` and `metaproxy explain --manifests` have in common.

use clap::Args;

use super::usage::{UsageError, bad_role, key, role};
use super::{HostNetwork, NamespacePolicy, Switch, TagChoice};
use crate::roles::policy::{AllowedRolesStyle, PermittedMatch};
use crate::roles::{
    AnnotationKeys, BaseArn, EksCluster, NamespaceRules, OwnRoles, PolicyCache, Rules, SessionRules,
    SessionScope, TagRules, WrittenRole, is_tag_value,
};

/// The flags that decide which role a pod gets, and shape its session.
#[derive(Debug, Args)]
pub struct RoleArgs {
    /// Prefix of roles that are given by name, such as arn:aws:iam::123456789012:role/ [default: the account of the node's own role]
    #[arg(
        long,
        env = "METAPROXY_BASE_ROLE_ARN",
        value_name = "ARN",
        help_heading = "Roles"
    )]
    pub(super) base_role_arn: Option<String>,

    /// Role of pods to which no annotation gives one; does not apply to hostNetwork pods
    #[arg(
        long,
        env = "METAPROXY_DEFAULT_ROLE",
        value_name = "ROLE",
        help_heading = "Roles"
    )]
    pub(super) default_role: Option<String>,

    /// Whether annotation eks.amazonaws.com/role-arn of a service account gives its pods a role
    #[arg(
        long,
        env = "METAPROXY_WEB_IDENTITY",
        value_name = "SWITCH",
        default_value = "off",
        help_heading = "Roles"
    )]
    pub(super) web_identity: Switch,

    /// What hostNetwork pods without a role get
    #[arg(
        long,
        env = "METAPROXY_HOST_NETWORK",
        value_name = "POLICY",
        default_value = "passthrough",
        help_heading = "Roles"
    )]
    pub(super) host_network: HostNetwork,

    /// Pod annotation with the role
    #[arg(
        long,
        env = "METAPROXY_ROLE_ANNOTATION",
        value_name = "KEY",
        default_value = "iam.amazonaws.com/role",
        help_heading = "Roles"
    )]
    pub(super) role_annotation: String,

    /// Pod annotation with the external id
    #[arg(
        long,
        env = "METAPROXY_EXTERNAL_ID_ANNOTATION",
        value_name = "KEY",
        default_value = "iam.amazonaws.com/external-id",
        help_heading = "Roles"
    )]
    pub(super) external_id_annotation: String,

    /// Pod annotation with the session name
    #[arg(
        long,
        env = "METAPROXY_SESSION_NAME_ANNOTATION",
        value_name = "KEY",
        default_value = "iam.amazonaws.com/session-name",
        help_heading = "Roles"
    )]
    pub(super) session_name_annotation: String,

    /// Whether the namespace must allow the role of a pod's annotation, as in kiam, or need not, as in kube2iam by default
    #[arg(
        long,
        env = "METAPROXY_NAMESPACE_POLICY",
        value_name = "POLICY",
        default_value = "required",
        help_heading = "Roles"
    )]
    pub(super) namespace_policy: NamespacePolicy,

    /// Namespace annotation with a regular expression of allowed roles, as in kiam
    #[arg(
        long,
        env = "METAPROXY_PERMITTED_ANNOTATION",
        value_name = "KEY",
        default_value = "iam.amazonaws.com/permitted",
        help_heading = "Roles"
    )]
    pub(super) permitted_annotation: String,

    /// Namespace annotation with a JSON list of allowed roles, as in kube2iam
    #[arg(
        long,
        env = "METAPROXY_ALLOWED_ROLES_ANNOTATION",
        value_name = "KEY",
        default_value = "iam.amazonaws.com/allowed-roles",
        help_heading = "Roles"
    )]
    pub(super) allowed_roles_annotation: String,

    /// How the entries of the JSON list are read
    #[arg(
        long,
        env = "METAPROXY_ALLOWED_ROLES_STYLE",
        value_name = "STYLE",
        default_value = "glob",
        help_heading = "Roles"
    )]
    pub(super) allowed_roles_style: AllowedRolesStyle,

    /// How much of a role the regular expression must match
    #[arg(
        long,
        env = "METAPROXY_PERMITTED_MATCH",
        value_name = "MATCH",
        default_value = "anchored",
        help_heading = "Roles"
    )]
    pub(super) permitted_match: PermittedMatch,

    /// Which pods share a session
    #[arg(
        long,
        env = "METAPROXY_SESSION_SCOPE",
        value_name = "SCOPE",
        default_value = "pod",
        help_heading = "Sessions"
    )]
    pub(super) session_scope: SessionScope,

    /// Tags of sessions; with any, trust policies must allow sts:TagSession
    #[arg(
        long,
        env = "METAPROXY_SESSION_TAGS",
        value_name = "TAGS",
        default_value = "off",
        help_heading = "Sessions"
    )]
    pub(super) session_tags: TagChoice,

    /// Name of the cluster, for session tags [default: the name in --cluster-arn, else no such tag]
    #[arg(
        long,
        env = "METAPROXY_CLUSTER_NAME",
        value_name = "NAME",
        help_heading = "Sessions"
    )]
    pub(super) cluster_name: Option<String>,

    /// ARN of the EKS cluster, for session tags; required by --session-tags eks
    #[arg(
        long,
        env = "METAPROXY_CLUSTER_ARN",
        value_name = "ARN",
        help_heading = "Sessions"
    )]
    pub(super) cluster_arn: Option<String>,
}

impl RoleArgs {
    /// Returns whether annotations of service accounts give pods roles.
    pub(super) fn asks_service_accounts(&self) -> bool {
        self.web_identity == Switch::On
    }

    /// Returns the rules for a node with this name.
    ///
    /// # Errors
    /// Returns the error of the first flag that is malformed or contradicts another flag.
    pub fn rules(&self, node: Option<String>, firewall: bool) -> Result<Rules, UsageError> {
        let base: Option<BaseArn> = role("--base-role-arn", self.base_role_arn.as_ref())?;
        let default_role: Option<WrittenRole> = role("--default-role", self.default_role.as_ref())?;
        if let (Some(default_role), Some(text)) = (&default_role, &self.default_role) {
            default_role
                .resolve(base.as_ref())
                .map_err(bad_role("--default-role", text))?;
        }
        Ok(Rules {
            base,
            default_role,
            keys: self.keys()?,
            namespaces: NamespaceRules {
                required: self.namespace_policy == NamespacePolicy::Required,
                allowed_roles_style: self.allowed_roles_style,
                permitted_match: self.permitted_match,
                read: PolicyCache::default(),
            },
            web_identity: self.web_identity == Switch::On,
            firewall,
            enforce_host_network: self.host_network == HostNetwork::Enforce,
            sessions: SessionRules {
                scope: self.session_scope,
                tags: self.tags()?,
                node,
            },
            own: OwnRoles::default(),
        })
    }

    /// Returns the keys of annotations. Two keys of the same kind of object must differ.
    fn keys(&self) -> Result<AnnotationKeys, UsageError> {
        const ROLE: &str = "--role-annotation";
        const EXTERNAL_ID: &str = "--external-id-annotation";
        const SESSION_NAME: &str = "--session-name-annotation";
        const PERMITTED: &str = "--permitted-annotation";
        const ALLOWED_ROLES: &str = "--allowed-roles-annotation";
        let keys = AnnotationKeys {
            role: key(ROLE, &self.role_annotation)?,
            external_id: key(EXTERNAL_ID, &self.external_id_annotation)?,
            session_name: key(SESSION_NAME, &self.session_name_annotation)?,
            permitted: key(PERMITTED, &self.permitted_annotation)?,
            allowed_roles: key(ALLOWED_ROLES, &self.allowed_roles_annotation)?,
        };
        for ((flag, one), (other_flag, other)) in [
            ((ROLE, &keys.role), (EXTERNAL_ID, &keys.external_id)),
            ((ROLE, &keys.role), (SESSION_NAME, &keys.session_name)),
            (
                (EXTERNAL_ID, &keys.external_id),
                (SESSION_NAME, &keys.session_name),
            ),
            ((PERMITTED, &keys.permitted), (ALLOWED_ROLES, &keys.allowed_roles)),
        ] {
            if one == other {
                return Err(UsageError::SameKey(flag, other_flag, one.clone()));
            }
        }
        Ok(keys)
    }

    fn tags(&self) -> Result<TagRules, UsageError> {
        let name = self.cluster_name.clone();
        if let Some(name) = name
            .as_ref()
            .filter(|name| name.is_empty() || !is_tag_value(name))
        {
            return Err(UsageError::ClusterName(name.clone()));
        }
        let cluster = self.cluster()?;
        if let (Some(name), Some(cluster)) = (&name, &cluster)
            && name != cluster.name()
        {
            return Err(UsageError::OtherCluster {
                name: name.clone(),
                of_arn: cluster.name().to_owned(),
            });
        }
        match self.session_tags {
            TagChoice::Off => Ok(TagRules::Off),
            TagChoice::On => Ok(TagRules::On {
                cluster: name.or_else(|| Some(cluster?.name().to_owned())),
            }),
            TagChoice::Eks => cluster.map(TagRules::Eks).ok_or(UsageError::NoClusterArn),
        }
    }

    fn cluster(&self) -> Result<Option<EksCluster>, UsageError> {
        let parse = |arn: &String| {
            arn.parse().map_err(|error| UsageError::ClusterArn {
                value: arn.clone(),
                error,
            })
        };
        self.cluster_arn.as_ref().map(parse).transpose()
    }
}
