//! Measures the decisions that need no I/O. Run it with `cargo bench --package metaproxy`.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a benchmark panics if it cannot continue"
)]

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use divan::Bencher;
use metaproxy::credentials::{
    IssuedCredentials, Issuer, ObtainError, Session, SessionHandle, SessionKey, Sessions,
};
use metaproxy::imds::path::Paths;
use metaproxy::pods::{Inventory, Mirror, Namespace, Pod, PodUid};
use metaproxy::roles::{AnnotationKeys, Decision, NamespaceRules, OwnRoles, Rules, SessionRules};
use metaproxy_common::address::{Address, Endpoint};
use metaproxy_common::layout::{Config, Destination};
use metaproxy_common::rate::RateLimit;
use metaproxy_common::verdict::{CallerContext, ConnectingSocket, Family, classify, decide};

/// Counts allocations in addition to measuring time.
#[global_allocator]
static ALLOCATIONS: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

const UID: &str = "aaaaaaaa-0000-0000-0000-000000000001";

/// The number of patterns of a namespace. Only the last one matches the role of the pod.
const PATTERNS: usize = 200;

fn endpoint(text: &str) -> Endpoint {
    Endpoint::from_socket(text.parse::<SocketAddr>().unwrap())
}

/// Measures the decision of the connect hooks. Nearly all connections of pods have another destination than the
/// metadata service.
#[divan::bench(args = ["10.96.0.1:443", "169.254.169.254:80"])]
fn verdict(bencher: Bencher<'_, '_>, to: &str) {
    let destination = Destination {
        v4: endpoint("10.0.0.1:18181"),
        v6: endpoint("[fd00::1]:18181"),
    };
    let (config, to) = (Config::imds(1, destination, RateLimit::NONE), endpoint(to));
    let context = CallerContext {
        in_node_netns: false,
        listed: false,
    };
    let socket = ConnectingSocket {
        family: Family::V4,
        source: Address::UNSPECIFIED,
        is_v6only: false,
        pod_family: Family::V4,
    };
    bencher.bench_local(|| {
        let class = classify(black_box(&config), black_box(&to));
        decide(&class, &socket, context, &destination)
    });
}

#[divan::bench(args = [
    "/latest/meta-data/iam/security-credentials/app",
    "/latest/meta-data/iam/security-credentials/",
    "/latest/meta-data/placement/availability-zone",
    "/latest/meta-data/%69am/security-credentials/node",
])]
fn path(bencher: Bencher<'_, '_>, target: &str) {
    let paths = Paths::default();
    bencher.bench_local(|| paths.classify(black_box(target)));
}

fn rules() -> Rules {
    Rules {
        base: Some("arn:aws:iam::123456789012:role/".parse().unwrap()),
        default_role: None,
        keys: AnnotationKeys::default(),
        namespaces: NamespaceRules {
            required: true,
            ..NamespaceRules::default()
        },
        web_identity: false,
        firewall: false,
        enforce_host_network: false,
        sessions: SessionRules::default(),
        own: OwnRoles::default(),
    }
}

fn inventory() -> Inventory {
    let pod = Pod {
        uid: UID.parse().unwrap(),
        mirror: Mirror::No,
        namespace: "apps".to_owned(),
        name: "web".to_owned(),
        service_account: "default".to_owned(),
        annotations: [("iam.amazonaws.com/role".to_owned(), "app".to_owned())].into(),
        labels: Default::default(),
        other_credentials: Default::default(),
        host_network: false,
        ips: Vec::new(),
        host_ports: Vec::new(),
        node: None,
        finished: false,
        running: true,
    };
    let mut patterns: Vec<String> = (1..PATTERNS).map(|number| format!("team-{number}-*")).collect();
    patterns.push("app*".to_owned());
    let allowed = serde_json::to_string(&patterns).unwrap();
    let namespace = Namespace {
        name: "apps".to_owned(),
        annotations: [("iam.amazonaws.com/allowed-roles".to_owned(), allowed)].into(),
    };
    Inventory::new([Arc::new(pod)], [Arc::new(namespace)], [])
}

/// Measures role resolution when all patterns are already compiled and cached, as they are for every pod except the
/// first.
#[divan::bench]
fn role_with_200_patterns(bencher: Bencher<'_, '_>) {
    let (rules, inventory) = (rules(), inventory());
    let uid: PodUid = UID.parse().unwrap();
    assert!(matches!(rules.resolve(&inventory, &uid), Decision::Granted(_)));
    bencher.bench_local(|| rules.resolve(black_box(&inventory), &uid));
}

/// Measures role resolution when no pattern is compiled yet.
#[divan::bench]
fn role_with_200_new_patterns(bencher: Bencher<'_, '_>) {
    let inventory = inventory();
    let uid: PodUid = UID.parse().unwrap();
    bencher
        .with_inputs(rules)
        .bench_local_refs(|rules| rules.resolve(black_box(&inventory), &uid));
}

/// An issuer that returns a session of one hour immediately.
struct AtOnce;

impl Issuer for AtOnce {
    async fn issue(&self, key: &SessionKey) -> Result<Session, ObtainError> {
        let now = SystemTime::now();
        let issued = IssuedCredentials {
            access_key_id: "ASIA",
            secret_access_key: "secret",
            token: "token",
            expiration: now + Duration::from_secs(3600),
        };
        Ok(Session::new(&key.role, &issued, now))
    }
}

/// Measures the lookup of a session among the sessions of this number of pods. Large nodes have 250 pods.
#[divan::bench(args = [1, 250])]
fn session(bencher: Bencher<'_, '_>, pods: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let Decision::Granted(grant) = rules().resolve(&inventory(), &UID.parse().unwrap()) else {
        panic!("the pod has a role");
    };
    let mut key = SessionKey::of_grant(&grant);
    let sessions = Sessions::new(AtOnce);
    runtime.block_on(async {
        for number in 0..pods {
            key.shape.pod = Some(format!("aaaaaaaa-0000-0000-0000-{number:012}").parse().unwrap());
            let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
            let pod = key.shape.pod.clone().unwrap();
            sessions.get(&pod, &key, deadline).await.unwrap();
        }
        let place = SessionHandle::default();
        let pod: PodUid = UID.parse().unwrap();
        bencher.bench_local(|| sessions.ready(&pod, black_box(&key), &place).unwrap());
    });
}
