//! A fake of the node's instance metadata service, as far as an agent needs it. It records every request.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::channel::Channel;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::IMDS_IPS;
use super::netns::Netns;

/// The role of the node, which no pod may get.
pub const NODE_ROLE: &str = "node";

/// The response of a server of the lab.
pub(super) type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Answers requests; `peer` is the address of the client.
pub(super) trait Handler: Send + Sync + 'static {
    fn handle(&self, peer: IpAddr, request: Request<Bytes>) -> impl Future<Output = Answer> + Send;
}

/// A server on a thread of its own, with sockets in a network namespace. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(netns: &Netns, addresses: &[SocketAddr], handler: Arc<impl Handler>) -> Result<Self> {
        let sockets: Vec<std::net::TcpListener> = netns
            .run(|| {
                addresses
                    .iter()
                    .map(std::net::TcpListener::bind)
                    .collect::<std::io::Result<_>>()
            })?
            .with_context(|| format!("cannot listen on {addresses:?}"))?;
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                for socket in sockets {
                    tokio::spawn(accept(socket, Arc::clone(&handler)));
                }
                let _ = stopped.await;
            });
        });
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(socket: std::net::TcpListener, handler: Arc<impl Handler>) {
    let listener = socket
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(socket));
    let Ok(listener) = listener else { return };
    while let Ok((stream, peer)) = listener.accept().await {
        let handler = Arc::clone(&handler);
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let handler = Arc::clone(&handler);
                async move {
                    let (head, body) = request.into_parts();
                    let body = body
                        .collect()
                        .await
                        .map(|body| body.to_bytes())
                        .unwrap_or_default();
                    let request = Request::from_parts(head, body);
                    Ok::<_, Infallible>(handler.handle(peer.ip().to_canonical(), request).await)
                }
            });
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// A request that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The address of the client.
    pub peer: IpAddr,
    /// The method and the path, such as `GET /latest/…`.
    pub request: String,
    /// Its headers.
    pub headers: HeaderMap,
}

/// Credentials that the service returns: access key id, secret access key, token.
pub type Keys = (String, String, String);

/// How the service behaves.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// Whether requests without a valid token get 401.
    pub requires_tokens: bool,
    /// Whether requests for a token get 404, as from services older than IMDSv2.
    pub has_no_tokens: bool,
    /// Whether requests get 401 with any token.
    pub refuses_tokens: bool,
    /// The latency of answers.
    pub takes: Duration,
    /// The additional latency of tokens.
    pub token_takes: Duration,
    /// The lifetime of tokens, in seconds; six hours if it is not set.
    pub token_ttl: Option<u64>,
    /// The status of every answer.
    pub always: Option<StatusCode>,
    /// Whether the node has no role, and so no `iam/`.
    pub has_no_role: bool,
}

#[derive(Debug)]
struct State {
    seen: Mutex<Vec<Seen>>,
    keys: Keys,
    behaviour: Mutex<Behaviour>,
    /// The number in the only valid token.
    token: AtomicUsize,
}

/// The fake service, on both of its addresses. Dropping it ends it.
#[derive(Debug)]
pub struct FakeImds {
    state: Arc<State>,
    _server: Server,
}

impl FakeImds {
    /// Starts the service in a network namespace that has its addresses.
    pub fn start(netns: &Netns, keys: Keys) -> Result<Self> {
        let state = Arc::new(State {
            seen: Mutex::default(),
            keys,
            behaviour: Mutex::default(),
            token: AtomicUsize::new(0),
        });
        let addresses = IMDS_IPS.map(|ip| SocketAddr::new(ip, 80));
        let server = Server::start(netns, &addresses, Arc::clone(&state))?;
        Ok(Self {
            state,
            _server: server,
        })
    }

    /// Changes how the service behaves from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        *self
            .state
            .behaviour
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = behaviour;
    }

    /// Makes every token invalid that was issued so far.
    pub fn forget_tokens(&self) {
        self.state.token.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns all requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Returns the requests that came from pods' addresses.
    pub fn seen_from_pods(&self) -> Vec<Seen> {
        let pods = |seen: &Seen| match seen.peer {
            IpAddr::V4(ip) => ip.octets()[..2] == [10, 244],
            IpAddr::V6(ip) => ip.segments()[..2] == [0xfd00, 0x244],
        };
        self.seen().into_iter().filter(pods).collect()
    }
}

impl Handler for State {
    async fn handle(&self, peer: IpAddr, request: Request<Bytes>) -> Answer {
        let (head, _) = request.into_parts();
        let request = format!("{} {}", head.method, head.uri);
        let token = head.headers.get("x-aws-ec2-metadata-token").cloned();
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Seen {
                peer,
                request: request.clone(),
                headers: head.headers,
            });
        let behaviour = self
            .behaviour
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        tokio::time::sleep(behaviour.takes).await;
        if let Some(status) = behaviour.always {
            return text(status, "a secret of the node");
        }
        let good = || format!("node-token-{}", self.token.load(Ordering::SeqCst));
        if request == "PUT /latest/api/token" {
            if behaviour.has_no_tokens {
                return text(StatusCode::NOT_FOUND, "not here");
            }
            tokio::time::sleep(behaviour.token_takes).await;
            let mut response = text(StatusCode::OK, &good());
            let ttl = behaviour.token_ttl.unwrap_or(21_600);
            response
                .headers_mut()
                .insert("x-aws-ec2-metadata-token-ttl-seconds", ttl.into());
            return response;
        }
        let is_good = token.as_ref().map(|token| token.as_bytes() == good().as_bytes());
        if behaviour.refuses_tokens
            || is_good == Some(false)
            || (is_good.is_none() && behaviour.requires_tokens)
        {
            return text(StatusCode::UNAUTHORIZED, "a token is required");
        }
        match request
            .strip_prefix("GET ")
            .or_else(|| request.strip_prefix("HEAD "))
        {
            Some(path) if behaviour.has_no_role && path.contains("/iam/") => {
                text(StatusCode::NOT_FOUND, "no role")
            }
            Some(path) => self.resource(path, behaviour.has_no_role),
            None => text(StatusCode::METHOD_NOT_ALLOWED, "only GET"),
        }
    }
}

impl State {
    fn resource(&self, path: &str, has_no_role: bool) -> Answer {
        let below = path.splitn(3, '/').nth(2).unwrap_or_default();
        if let Some(list) = list(below.trim_end_matches('/')) {
            let list = if has_no_role {
                list.replace("iam/\n", "")
            } else {
                list.to_owned()
            };
            let mut response = text(StatusCode::OK, &list);
            let kind = HeaderValue::from_static("text/plain");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            return response;
        }
        match below.strip_prefix("meta-data/").unwrap_or(below) {
            "" if path == "/" => text(StatusCode::OK, "1.0\n2021-07-15\nlatest"),
            "" => text(StatusCode::OK, "dynamic\nmeta-data\nuser-data"),
            "placement/region" => text(StatusCode::OK, "us-east-1"),
            "iam/security-credentials/" | "iam/security-credentials-extended/" => {
                text(StatusCode::OK, NODE_ROLE)
            }
            "iam/security-credentials/node" | "iam/security-credentials-extended/node" => {
                text(StatusCode::OK, &self.document())
            }
            "iam/info" => text(
                StatusCode::OK,
                r#"{"Code":"Success","InstanceProfileArn":"arn:aws:iam::123456789012:instance-profile/nodes"}"#,
            ),
            "placement/missing" => text(StatusCode::NOT_FOUND, "not here"),
            "placement/headers" => {
                let mut response = text(StatusCode::OK, "with headers");
                for (name, value) in [
                    ("connection", "close, x-of-this-hop"),
                    ("x-of-this-hop", "1"),
                    ("proxy-authenticate", "Basic"),
                    ("set-cookie", "a=b"),
                    ("x-aws-ec2-metadata-token", "node-token-0"),
                    ("x-aws-ec2-metadata-token-ttl-seconds", "21600"),
                    ("etag", "\"1\""),
                ] {
                    response
                        .headers_mut()
                        .insert(name, HeaderValue::from_static(value));
                }
                response
            }
            "placement/large" => text(StatusCode::OK, &"x".repeat(2 * 1024 * 1024)),
            "placement/endless" => endless(Duration::ZERO),
            "placement/slow" => endless(Duration::from_millis(700)),
            // Any other path: the answer shows that it came from the node's service.
            _ => text(StatusCode::OK, &format!("of the node: {path}")),
        }
    }

    fn document(&self) -> String {
        let (id, secret, token) = &self.keys;
        let now = SystemTime::now();
        let time = |time| humantime::format_rfc3339_seconds(time).to_string();
        let document = serde_json::json!({
            "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": time(now),
            "Expiration": time(now + Duration::from_secs(6 * 3600)),
            "AccessKeyId": id, "SecretAccessKey": secret, "Token": token,
        });
        document.to_string()
    }
}

/// Returns the list at a path, which begins after the version.
fn list(path: &str) -> Option<&'static str> {
    Some(match path {
        "meta-data" => {
            "ami-id\nhostname\niam/\nidentity-credentials/\ninstance-id\nmanaged-ssh-keys/\nplacement/\npublic-ipv4\n\
             public-keys/\ntags/"
        }
        "dynamic/instance-identity" => "document\npkcs7\nrsa2048\nsignature",
        _ => return None,
    })
}

/// Answers with a body without length and without end, in pieces of 64 KiB.
fn endless(pause: Duration) -> Answer {
    let (mut sender, body) = Channel::new(1);
    tokio::spawn(async move {
        while sender.send_data(Bytes::from(vec![b'x'; 64 * 1024])).await.is_ok() {
            tokio::time::sleep(pause).await;
        }
    });
    Response::new(BoxBody::new(body))
}

pub(super) fn text(status: StatusCode, body: &str) -> Answer {
    let mut response = Response::new(BoxBody::new(Full::new(Bytes::copy_from_slice(body.as_bytes()))));
    *response.status_mut() = status;
    response
}
