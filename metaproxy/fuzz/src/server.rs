//! Runs the real server with one pod that has one role. It serves connections in memory, without a kernel or a
//! network.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use metaproxy::credentials::{IssuedCredentials, Issuer, ObtainError, Session, SessionKey, Sessions};
use metaproxy::identify::{Client, ClientLimits, Limits};
use metaproxy::imds::RefusalReporter;
use metaproxy::imds::path::Paths;
use metaproxy::imds::token::Tokens;
use metaproxy::imds::upstream::Upstream;
use metaproxy::imds::{Connections, Handler, ImdsV1Policy, Parts, Passthrough, Phase};
use metaproxy::pods::{Inventory, Pod};
use metaproxy::roles::{AnnotationKeys, NamespaceRules, OwnRoles, Rules, SessionRules};
use tokio::io::{DuplexStream, duplex};
use tokio::runtime::Runtime;
use tokio::sync::watch;

const UID: &str = "9f2c1d6e-1d6e-4b7a-9c55-3a2f7f0e8d11";
/// The secret of the pod's credentials.
pub const SECRET: &str = "fuzzed-secret-access-key";

/// Issues the same credentials for every session.
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

/// The server with everything that it needs but connections.
pub struct TestServer {
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

impl TestServer {
    /// Makes the server, whose limits no connection of a test exceeds.
    pub fn new() -> Self {
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
            // No service listens there.
            passthrough: Passthrough::new(Upstream::new("http://127.0.0.1:1".parse().unwrap())),
            imds_v1,
        }));
        let reporter = Arc::new(RefusalReporter::new(None));
        drop(_inside);
        Self {
            runtime,
            connections: Connections::new(handler, reporter, phases, limits()),
            _phase: phase,
        }
    }

    /// Serves one connection to its end, and returns what its client returns.
    pub fn serve<T>(&self, client: impl AsyncFnOnce(DuplexStream) -> T) -> T {
        self.runtime.block_on(async {
            let (stream, server) = duplex(64 * 1024);
            let limits = ClientLimits::new(limits());
            let deadline = tokio::time::Instant::now();
            let permit = limits.admit(&()).unwrap().permit(deadline).await.unwrap();
            let pod = Client {
                uid: UID.parse().unwrap(),
            };
            let serving = self.connections.serve(server, &pod, &permit);
            let (returned, _) = tokio::join!(client(stream), serving);
            returned
        })
    }
}

impl Default for TestServer {
    fn default() -> Self {
        Self::new()
    }
}
