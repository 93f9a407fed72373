//! The node's instance metadata service, as far as an agent needs it, recording whoever asks.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::IMDS_IPS;
use super::netns::Netns;

/// The role of the node, which no pod may ever get.
pub const NODE_ROLE: &str = "node";

/// Answers one request; `peer` is who asks.
pub(super) trait Handler: Send + Sync + 'static {
    fn handle(
        &self,
        peer: IpAddr,
        method: Method,
        target: String,
        body: Bytes,
    ) -> impl Future<Output = Response<Full<Bytes>>> + Send;
}

/// A server on a thread of its own, with sockets in a network namespace; dropping ends it.
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
                    let target = head.uri.to_string();
                    Ok::<_, Infallible>(
                        handler
                            .handle(peer.ip().to_canonical(), head.method, target, body)
                            .await,
                    )
                }
            });
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// One request that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// From where.
    pub peer: IpAddr,
    /// `GET /latest/…`
    pub request: String,
}

/// Credentials that it hands out: access key id, secret access key, token.
pub type Keys = (String, String, String);

#[derive(Debug)]
struct State {
    seen: Mutex<Vec<Seen>>,
    keys: Mutex<Keys>,
}

/// The service, on both of its addresses.
#[derive(Debug)]
pub struct FakeImds {
    state: Arc<State>,
    _server: Server,
}

impl FakeImds {
    /// Starts it in a namespace that has the addresses.
    pub fn start(netns: &Netns, keys: Keys) -> Result<Self> {
        let state = Arc::new(State {
            seen: Mutex::default(),
            keys: Mutex::new(keys),
        });
        let addresses = IMDS_IPS.map(|ip| SocketAddr::new(ip, 80));
        let server = Server::start(netns, &addresses, Arc::clone(&state))?;
        Ok(Self {
            state,
            _server: server,
        })
    }

    /// What was asked so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What was asked by anybody but the node itself.
    pub fn seen_from_pods(&self) -> Vec<Seen> {
        let pods = |seen: &Seen| match seen.peer {
            IpAddr::V4(ip) => ip.octets()[..2] == [10, 244],
            IpAddr::V6(ip) => ip.segments()[..2] == [0xfd00, 0x244],
        };
        self.seen().into_iter().filter(pods).collect()
    }
}

impl Handler for State {
    async fn handle(
        &self,
        peer: IpAddr,
        method: Method,
        target: String,
        _body: Bytes,
    ) -> Response<Full<Bytes>> {
        let request = format!("{method} {target}");
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Seen {
                peer,
                request: request.clone(),
            });
        let credentials = format!("GET /latest/meta-data/iam/security-credentials/{NODE_ROLE}");
        match request.as_str() {
            "PUT /latest/api/token" => {
                let mut response = text(StatusCode::OK, "node-token");
                response
                    .headers_mut()
                    .insert("x-aws-ec2-metadata-token-ttl-seconds", 21_600.into());
                response
            }
            "GET /latest/meta-data/placement/region" => text(StatusCode::OK, "us-east-1"),
            "GET /latest/meta-data/iam/security-credentials/" => text(StatusCode::OK, NODE_ROLE),
            other if other == credentials => {
                let (id, secret, token) = self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let now = SystemTime::now();
                let time = |time| humantime::format_rfc3339_seconds(time).to_string();
                let document = serde_json::json!({
                    "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": time(now),
                    "Expiration": time(now + Duration::from_secs(6 * 3600)),
                    "AccessKeyId": id, "SecretAccessKey": secret, "Token": token,
                });
                text(StatusCode::OK, &document.to_string())
            }
            _ => text(StatusCode::NOT_FOUND, "not here"),
        }
    }
}

pub(super) fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status;
    response
}
