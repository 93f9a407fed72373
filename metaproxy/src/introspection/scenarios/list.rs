//! The list of scenarios.

use serde_json::{Value, json};

use crate::credentials::ObtainError;

const ROLE: &str = "iam.amazonaws.com/role";
const PERMITTED: &str = "iam.amazonaws.com/permitted";
const ALLOWED: &str = "iam.amazonaws.com/allowed-roles";
const OF_ACCOUNT: &str = "eks.amazonaws.com/role-arn";
const FOREIGN: &str = "arn:aws:iam::210987654321:role/app";

const SEARCH: &[&str] = &["--permitted-match", "search"];

/// A behaviour of STS.
#[derive(Clone, Debug)]
pub enum Sts {
    Gives,
    GivesExpired,
    /// It gives a session of whose lifetime more than half is over. The session is served and has to be renewed.
    GivesOld,
    Fails(ObtainError),
    /// It never answers.
    Hangs,
}

/// A pod and its surroundings.
pub struct Scenario {
    pub name: &'static str,
    pub flags: &'static [&'static str],
    pub pod: Value,
    pub namespace: Option<Value>,
    pub account: Option<Value>,
    pub twice: bool,
    /// Whether the pod shares the node's network.
    pub on_host: bool,
    /// Whether the agent knows the pod.
    pub known: bool,
    /// Whether the agent has found out which role is the node's own.
    pub own_is_known: bool,
    pub sts: Vec<Sts>,
    /// Whether the annotations of its session have changed so often that another session has to wait.
    pub is_paced: bool,
}

fn scenario(name: &'static str, pod: Value) -> Scenario {
    Scenario {
        name,
        flags: &[],
        pod,
        namespace: Some(json!({})),
        account: Some(json!({})),
        twice: false,
        on_host: false,
        known: true,
        own_is_known: true,
        sts: vec![Sts::Gives],
        is_paced: false,
    }
}

impl Scenario {
    fn with(self, flags: &'static [&'static str]) -> Self {
        Self { flags, ..self }
    }
    fn namespace(self, annotations: Value) -> Self {
        Self {
            namespace: Some(annotations),
            ..self
        }
    }
    fn account(self, annotations: Value) -> Self {
        Self {
            account: Some(annotations),
            ..self
        }
    }
    fn sts(self, sts: Vec<Sts>) -> Self {
        Self { sts, ..self }
    }
}

pub fn scenarios() -> Vec<Scenario> {
    let asks = |role: &str| json!({ ROLE: role });
    let permits = |pattern: &str| json!({ PERMITTED: pattern });
    let lists = |list: &str| json!({ ALLOWED: list });
    let denied =
        "User: arn:aws:sts::123456789012:assumed-role/node/i-0 is not authorized to perform: sts:AssumeRole";
    let with_accounts: &[&str] = &["--web-identity", "on"];
    vec![
        scenario("granted", asks("app")).namespace(permits(".*")),
        scenario("no annotation", json!({})),
        scenario("an empty annotation", asks("")),
        scenario("a misspelt key", json!({ "iam.amazonaws.com/Role": "app" })),
        scenario("a key of namespaces on the pod", json!({ PERMITTED: ".*" })),
        scenario("no annotation, a default role", json!({})).with(&["--default-role", "fallback"]),
        scenario("a name that is none", asks("no such name!")),
        scenario("an ARN of a user", asks("arn:aws:iam::123456789012:user/app")),
        scenario("an account that is none", asks("arn:aws:iam::1234:role/app")),
        scenario(
            "a partition that is none",
            asks("arn:azure:iam::123456789012:role/app"),
        ),
        scenario(
            "a role of another partition",
            asks("arn:aws-cn:iam::123456789012:role/app"),
        )
        .namespace(permits(".*"))
        .sts(vec![Sts::Fails(ObtainError::Denied(
            "InvalidClientTokenId".to_owned(),
        ))]),
        scenario("a namespace without a policy", asks("app")),
        scenario(
            "a glob where kiam has a regular expression",
            asks("test-kiam-web"),
        )
        .namespace(permits("test-kiam-*")),
        scenario("a pattern that is not anchored", asks("team/app-web")).namespace(permits("app")),
        scenario("a pattern of a longer name", asks("app-web")).namespace(permits("app")),
        scenario("a malformed regular expression", asks("app")).namespace(permits("app(")),
        scenario("a JSON list in permitted", asks("app")).namespace(permits("[\"app\"]")),
        scenario("quotation marks in permitted", asks("app")).namespace(permits("\"app\"")),
        scenario("an empty permitted", asks("app")).namespace(permits(" ")),
        scenario("a list that is none", asks("app-web")).namespace(lists("app-*")),
        scenario("a regular expression among globs", asks("app-web")).namespace(lists("[\"app-.*\"]")),
        scenario("a glob among regular expressions", asks("my-app"))
            .namespace(lists("[\"*-app\"]"))
            .with(&["--allowed-roles-style", "regexp"]),
        scenario("capital letters", asks("App")).namespace(permits("app")),
        scenario("a role of another account", asks(FOREIGN))
            .namespace(permits("arn:aws:iam::123456789012:role/.*")),
        scenario("the wrong namespace", asks("billing")).namespace(permits("shop-.*")),
        scenario(
            "a malformed external id",
            json!({ ROLE: "app", "iam.amazonaws.com/external-id": "a b" }),
        )
        .namespace(permits(".*")),
        scenario("a tag that STS does not take", asks("app"))
            .namespace(permits(".*"))
            .with(&["--session-tags", "on", "--cluster-name", "one"]),
        scenario("AccessDenied", asks("app"))
            .namespace(permits(".*"))
            .sts(vec![Sts::Fails(ObtainError::Denied(denied.to_owned()))]),
        scenario("STS is away", asks("app"))
            .namespace(permits(".*"))
            .sts(vec![Sts::Fails(ObtainError::Unavailable(
                "connection refused".to_owned(),
            ))]),
        scenario("STS does not answer", asks("app"))
            .namespace(permits(".*"))
            .sts(vec![Sts::Hangs]),
        scenario("a session that has expired, and STS is away", asks("app"))
            .namespace(permits(".*"))
            .sts(vec![
                Sts::GivesExpired,
                Sts::Fails(ObtainError::Unavailable("connection refused".to_owned())),
            ]),
        scenario("a service account's role", json!({}))
            .with(with_accounts)
            .account(json!({ OF_ACCOUNT: FOREIGN })),
        scenario("a service account's role, and nobody asks it", json!({}))
            .account(json!({ OF_ACCOUNT: FOREIGN })),
        scenario("a service account's role that is none", json!({}))
            .with(with_accounts)
            .account(json!({ OF_ACCOUNT: "arn:aws:iam::210987654321:group/app" })),
        scenario("a token that the API server refuses", json!({}))
            .with(with_accounts)
            .account(json!({ OF_ACCOUNT: FOREIGN }))
            .sts(vec![Sts::Fails(ObtainError::NoToken(
                "token of apps/default: forbidden".to_owned(),
            ))]),
        Scenario {
            account: None,
            ..scenario("a service account that is not known yet", json!({})).with(with_accounts)
        },
        Scenario {
            namespace: None,
            ..scenario("a namespace that is not known yet", asks("app"))
        },
        scenario("the node's account is not known yet", asks("app")).with(&["--base-role-arn", ""]),
        scenario("the node's own role", asks("Node")).namespace(permits(".*")),
        scenario("the role that the agent assumes first", asks("team/server"))
            .namespace(permits(".*"))
            .with(&["--assume-role-arn", "arn:aws:iam::123456789012:role/team/server"]),
        scenario("a default role that is the node's own", json!({})).with(&["--default-role", "node"]),
        scenario("a service account's role that is the node's own", json!({}))
            .with(with_accounts)
            .account(json!({ OF_ACCOUNT: "arn:aws:iam::123456789012:role/node" })),
        Scenario {
            own_is_known: false,
            ..scenario("the node's own role is not known yet", asks("app")).namespace(permits(".*"))
        },
        Scenario {
            twice: true,
            ..scenario("two pods of one UID", asks("app"))
        },
        Scenario {
            on_host: true,
            ..scenario("a hostNetwork pod that is kept from the node's role", json!({})).with(&[
                "--host-network",
                "enforce",
                "--default-role",
                "fallback",
            ])
        },
        Scenario {
            known: false,
            ..scenario("a pod that is not known yet", asks("app"))
        },
        Scenario {
            is_paced: true,
            ..scenario("annotations that change again and again", asks("app")).namespace(permits(".*"))
        },
        scenario("a session that is valid, and is not renewed", asks("app"))
            .namespace(permits(".*"))
            .sts(vec![
                Sts::GivesOld,
                Sts::Fails(ObtainError::Unavailable("connection refused".to_owned())),
            ]),
        scenario("a sentence that is too long for an event", asks("app"))
            .namespace(permits(".*"))
            .sts(vec![Sts::Fails(ObtainError::Denied(
                "is not authorized, ".repeat(80).trim_end_matches(", ").to_owned(),
            ))]),
        scenario("a list with the names of other roles", asks("app"))
            .namespace(lists("[\"reader\"]"))
            .with(SEARCH),
        scenario("a list in other letters", asks("App"))
            .namespace(lists("[\"app\"]"))
            .with(SEARCH),
        scenario("capital letters, and \\S in the pattern", asks("App"))
            .namespace(permits("arn:.*:role/a\\S\\S")),
        scenario("a list of regular expressions in other letters", asks("App"))
            .namespace(lists("[\"^arn:aws:iam::\\\\d+:role/app$\"]"))
            .with(&["--allowed-roles-style", "regexp", "--permitted-match", "search"]),
        scenario("a glob that is searched for", asks("web-x-app"))
            .namespace(permits("web*-app"))
            .with(SEARCH),
        scenario("a pattern of another account, searched for", asks(FOREIGN))
            .namespace(permits("123456789012:role/app"))
            .with(SEARCH),
        scenario("firewall", asks("app")).with(&["--mode", "firewall"]),
    ]
}
