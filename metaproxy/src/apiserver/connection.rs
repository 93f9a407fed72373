//! A client of the API server that notices a connection that is dead.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Read, Write};
use hyper::{Method, Request, Response, Uri};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use thiserror::Error;
use tower::{BoxError, Service, ServiceBuilder};

/// For a connection to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection on which nothing was heard is asked after this time, and then at intervals; without an answer it is dead
/// after some 20 s. A watch is silent for minutes, and a load balancer may have forgotten it.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const MAX_KEEPALIVE_RETRIES: u32 = 2;

/// For the head of an answer, watches included: a server may accept and then say nothing.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);

/// For that of a list, which the API server writes whole before it sends any of it.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// Between two watches of one resource: a server that ends each at once is not asked without pause.
const MIN_WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// For what was sent to be acknowledged (`TCP_USER_TIMEOUT`).
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(15);

/// Where the address and the credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KubeconfigSource {
    /// The service account of the agent's own pod.
    InCluster,
    /// A file.
    File(PathBuf),
}

/// Why there is no client.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The pod's own credentials.
    #[error(
        "the API server cannot be reached with this pod's service account: {0}; let its token be mounted \
         (automountServiceAccountToken), or give --kubeconfig"
    )]
    InCluster(#[from] InClusterError),
    /// The file.
    #[error("--kubeconfig {path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: KubeconfigError,
    },
    /// Certificates or credentials.
    #[error("the API server cannot be reached: {0}")]
    Client(String),
}

/// The API server. Cheap to clone.
#[derive(Clone)]
pub struct ApiServer {
    client: Client,
    watch_times: WatchTimes,
    url: String,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiServer")
    }
}

impl ApiServer {
    /// Reads address and credentials; nothing is sent yet.
    ///
    /// # Errors
    /// Where they can't be read.
    pub async fn open(source: &KubeconfigSource) -> Result<Self, ConnectError> {
        let config = match source {
            KubeconfigSource::InCluster => Config::incluster()?,
            KubeconfigSource::File(path) => {
                let bad = |error| ConnectError::File {
                    path: path.clone(),
                    error,
                };
                let file = Kubeconfig::read_from(path).map_err(bad)?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(file, &options)
                    .await
                    .map_err(bad)?
            }
        };
        let watch_times = WatchTimes::default();
        let url = config.cluster_url.to_string();
        let client =
            client(config, watch_times.clone()).map_err(|error| ConnectError::Client(error_text(&error)))?;
        Ok(Self {
            client,
            watch_times,
            url,
        })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// For requests.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// When a watch of this resource (`pods`) was last begun with success: watching it works since then.
    pub fn watch_started(&self, resource: &str) -> Option<Instant> {
        let started = self
            .watch_times
            .started
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        started.get(resource).copied()
    }
}

#[cfg(test)]
impl ApiServer {
    /// One that a test plays: it is given method, path with query, and body, and says status and object.
    pub fn fake<F>(answer: F) -> Self
    where
        F: Fn(&Method, &str, serde_json::Value) -> (u16, serde_json::Value) + Clone + Send + Sync + 'static,
    {
        use http_body_util::BodyExt as _;
        let service = tower::service_fn(move |request: Request<Body>| {
            let answer = answer.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                let (status, object) = answer(&parts.method, &parts.uri.to_string(), body);
                let response = Response::builder().status(status);
                Ok::<_, BoxError>(response.body(Body::from(object.to_string().into_bytes()))?)
            }
        });
        Self {
            client: Client::new(service, "default"),
            watch_times: WatchTimes::default(),
            url: "http://fake".to_owned(),
        }
    }
}

/// Makes a client whose connections are kept alive and whose requests have time limits, through the kubeconfig's `proxy-url` if
/// it has one.
fn client(config: Config, watch_times: WatchTimes) -> Result<Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(KEEPALIVE_IDLE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(MAX_KEEPALIVE_RETRIES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT));
    let Some(proxy_url) = &config.proxy_url else {
        return client_over(tcp, config, watch_times);
    };
    let rules = Matcher::builder().all(proxy_url.to_string()).build();
    match (rules.intercept(&config.cluster_url), proxy_url.scheme_str()) {
        (Some(proxy), Some("http")) => client_over(tunnel(&proxy, tcp), config, watch_times),
        (Some(proxy), Some("https")) => {
            let tls = config.rustls_https_connector_with_connector(tcp)?;
            client_over(tunnel(&proxy, tls), config, watch_times)
        }
        _ => Err(kube::Error::ProxyProtocolUnsupported {
            proxy_url: Box::new(proxy_url.clone()),
        }),
    }
}

/// Tunnels connections through an HTTP proxy (CONNECT), with the user and password of the proxy's URL if it has them.
fn tunnel<C>(proxy: &Intercept, connector: C) -> Tunnel<C> {
    let tunnel = Tunnel::new(proxy.uri().clone(), connector);
    match proxy.basic_auth() {
        Some(credentials) => tunnel.with_auth(credentials.clone()),
        None => tunnel,
    }
}

/// Puts kube's own layers, and the limits of requests, over connections that this connector makes.
fn client_over<C>(connector: C, config: Config, watch_times: WatchTimes) -> Result<Client, kube::Error>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Connection + Read + Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .service(RequestLimits { http, watch_times });
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

/// When requests for each resource were last answered, and watches of it begun.
#[derive(Clone, Debug, Default)]
struct WatchTimes {
    started: Arc<Mutex<HashMap<String, Instant>>>,
    allowed: Arc<Mutex<HashMap<String, Instant>>>,
}

impl WatchTimes {
    fn note_start(&self, resource: String) {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        started.insert(resource, Instant::now());
    }

    /// How long the next watch of a resource has to wait; it counts as begun then.
    fn delay_next(&self, resource: &str) -> Duration {
        let now = Instant::now();
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = allowed
            .get(resource)
            .map_or(now, |last| (*last + MIN_WATCH_INTERVAL).max(now));
        allowed.insert(resource.to_owned(), earliest);
        earliest - now
    }
}

/// Notes answers as they come: a watch that was taken up again says nothing else for minutes. And waits for none for ever.
#[derive(Clone)]
struct RequestLimits<S> {
    http: S,
    watch_times: WatchTimes,
}

impl<S, B> Service<Request<Body>> for RequestLimits<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.http.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let resource = request.uri().path().rsplit('/').next().unwrap_or_default();
        let (resource, watch_times) = (resource.to_owned(), self.watch_times.clone());
        let is_watch = request
            .uri()
            .query()
            .is_some_and(|query| query.contains("watch=true"));
        let is_list = !is_watch && request.method() == Method::GET;
        let answer = self.http.call(request);
        Box::pin(async move {
            if is_watch {
                tokio::time::sleep(watch_times.delay_next(&resource)).await;
            }
            let limit = if is_list { LIST_TIMEOUT } else { RESPONSE_TIMEOUT };
            let answer = tokio::time::timeout(limit, answer).await;
            let answer = answer.map_err(|_| ResponseTimedOut(limit))?.map_err(Into::into)?;
            // What comes of a list is known when it is there whole.
            if is_watch && answer.status().is_success() {
                watch_times.note_start(resource);
            }
            Ok(answer)
        })
    }
}

/// For the whole of an answer to anything but a list or a watch.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// An answer in time, or why there is none, in words.
///
/// # Errors
/// Those of the request, and that it took too long.
pub async fn with_timeout<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, String> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error_text(&error)),
        Err(_) => Err(format!(
            "the API server did not answer within {} s",
            limit.as_secs()
        )),
    }
}

/// Nothing came.
#[derive(Debug, Error)]
#[error("the API server did not answer within {} s", .0.as_secs())]
struct ResponseTimedOut(Duration);

/// An error and what caused it, for a sentence: what the API server says where it said something.
pub fn error_text(error: &kube::Error) -> String {
    /// A proxy's page may be what was answered.
    const MAX_MESSAGE_LENGTH: usize = 300;
    let (mut sentence, mut last, mut cause) = match error {
        kube::Error::Api(status) => {
            let message = status.message.lines().next().unwrap_or_default();
            let message: String = message.chars().take(MAX_MESSAGE_LENGTH).collect();
            return if message.is_empty() {
                format!("the API server answered {} {}", status.code, status.reason)
            } else {
                message
            };
        }
        kube::Error::Service(error) => (error.to_string(), error.to_string(), error.source()),
        other => (other.to_string(), other.to_string(), other.source()),
    };
    // Many an error repeats what is below it.
    while let Some(error) = cause {
        let text = error.to_string();
        if !last.ends_with(&text) {
            sentence = format!("{sentence}: {text}");
        }
        last = text;
        cause = error.source();
    }
    sentence
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Reads the head of a request, and answers it.
    fn answer(stream: &TcpStream, answer: &str) -> Vec<String> {
        let lines = BufReader::new(stream).lines().map(Result::unwrap);
        let head = lines.take_while(|line| !line.is_empty()).collect();
        (&mut &*stream).write_all(answer.as_bytes()).unwrap();
        head
    }

    #[tokio::test]
    async fn a_watch_through_a_proxy_is_noted_as_any_other() {
        let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        let kubeconfig = serde_json::json!({
            "clusters": [{ "name": "c", "cluster": {
                "server": "http://api.invalid:6443",
                "proxy-url": format!("http://user:pass%40word@{}", proxy.local_addr().unwrap()),
            }}],
            "users": [{ "name": "u", "user": {} }],
            "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
            "current-context": "x",
        });
        std::fs::write(&path, kubeconfig.to_string()).unwrap();
        let heads = std::thread::spawn(move || {
            let (stream, _) = proxy.accept().unwrap();
            let connect = answer(&stream, "HTTP/1.1 200 OK\r\n\r\n");
            let watch = answer(&stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
            (connect, watch)
        });

        let api = ApiServer::open(&KubeconfigSource::File(path)).await.unwrap();
        let request = Request::get("/api/v1/pods?watch=true").body(Vec::new()).unwrap();
        api.client().request_text(request).await.unwrap();

        assert!(api.watch_started("pods").is_some());
        let (connect, watch) = heads.join().unwrap();
        assert_eq!(connect[0], "CONNECT api.invalid:6443 HTTP/1.1");
        let credentials = "Proxy-Authorization: Basic dXNlcjpwYXNzQHdvcmQ=";
        assert!(connect.iter().any(|line| line == credentials), "{connect:?}");
        assert_eq!(watch[0], "GET /api/v1/pods?watch=true HTTP/1.1");
    }
}
