//! HTTP through the real server: bytes of a connection whose client is known.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use metaproxy::credentials::{IssuedCredentials, Issuer, ObtainError, Session, SessionKey, Sessions};
use metaproxy::identify::{Client, ClientLimits, Limits};
use metaproxy::imds::path::Paths;
use metaproxy::imds::token::Tokens;
use metaproxy::imds::upstream::Upstream;
use metaproxy::imds::{Connections, Handler, ImdsV1Policy, Parts, Passthrough, Phase};
use metaproxy::pods::{Inventory, Pod};
use metaproxy::roles::{AnnotationKeys, NamespaceRules, OwnRoles, Rules, SessionRules};
use metaproxy::telemetry::refusal_reporter::RefusalReporter;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::runtime::Runtime;
use tokio::sync::watch;

const UID: &str = "9f2c1d6e-1d6e-4b7a-9c55-3a2f7f0e8d11";
const SECRET: &str = "fuzzed-secret-access-key";

struct OneSession;

impl Issuer for OneSession {
    async fn issue(&self, key: &SessionKey) -> Result<Session, ObtainError> {
        let issued = IssuedCredentials {
            access_key_id: "ASIAFUZZ",
            secret_access_key: SECRET,
            token: "token",
            expiration: SystemTime::now() + Duration::from_secs(3600),
        };
        Ok(Session::new(&key.role, &issued, SystemTime::now()))
    }
}

/// Everything but the connection: one pod with one role.
struct Scene {
    runtime: Runtime,
    connections: Connections<OneSession>,
    _phase: watch::Sender<Phase>,
}

fn limits() -> Limits {
    Limits {
        connections: 16,
        connection_rate: 1_000_000,
        request_rate: 1_000_000,
        head: 16 * 1024,
        head_timeout: Duration::from_secs(5),
        idle: Duration::from_secs(60),
    }
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    // Time is paused: it advances to the next deadline when every task waits.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let pod = serde_json::from_value(serde_json::json!({
        "metadata": {
            "name": "a", "namespace": "apps", "uid": UID,
            "annotations": { "iam.amazonaws.com/role": "role-a" },
        },
    }));
    let pod = Arc::new(Pod::from_api(pod.unwrap()).unwrap());
    let (_, pods) = watch::channel(Arc::new(Inventory::new([pod], [], [])));
    let (_, rules) = watch::channel(Arc::new(Rules {
        base: Some("arn:aws:iam::123456789012:role/".parse().unwrap()),
        default_role: None,
        keys: AnnotationKeys::default(),
        namespaces: NamespaceRules::default(),
        sessions: SessionRules::default(),
        web_identity: false,
        firewall: false,
        enforce_host_network: false,
        own: OwnRoles::default(),
    }));
    let (_, imds_v1) = watch::channel(ImdsV1Policy::Allowed);
    let dir = tempfile::tempdir().unwrap();
    let (phase, phases) = watch::channel(Phase::Serving);
    let handler = Arc::new(Handler::new(Parts {
        pods,
        rules,
        sessions: Sessions::new(OneSession),
        tokens: Tokens::open(dir.path()).unwrap(),
        paths: Paths::default(),
        // Nobody is there.
        passthrough: Passthrough::new(Upstream::new("http://127.0.0.1:1".parse().unwrap())),
        imds_v1,
    }));
    let reporter = Arc::new(RefusalReporter::new(None));
    drop(_inside);
    Scene {
        runtime,
        connections: Connections::new(handler, reporter, phases, limits()),
        _phase: phase,
    }
});

/// Whatever is sent, what comes back is HTTP, and a secret only where a single request does not say that it came through
/// a proxy.
pub fn head(data: &[u8]) {
    let scene = &*SCENE;
    let answer = scene.runtime.block_on(async {
        let (mut stream, server) = duplex(64 * 1024);
        let limits = ClientLimits::new(limits());
        let permit = limits.acquire(&()).unwrap();
        let client = Client {
            uid: UID.parse().unwrap(),
        };
        let asking = async {
            let _ = stream.write_all(data).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            answer
        };
        let serving = scene.connections.serve(server, &client, &permit);
        let (answer, _) = tokio::join!(asking, serving);
        answer
    });
    let asked = String::from_utf8_lossy(data).to_ascii_lowercase();
    let (first, rest) = asked.split_once("\r\n\r\n").unwrap_or((&asked, ""));
    let was_forwarded = first
        .split("\r\n")
        .any(|line| line.starts_with("x-forwarded-for:"));
    if was_forwarded && rest.is_empty() {
        assert!(!String::from_utf8_lossy(&answer).contains(SECRET), "{asked:?}");
    }
    if !answer.is_empty() {
        assert!(
            answer.starts_with(b"HTTP/1."),
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
    }
}
