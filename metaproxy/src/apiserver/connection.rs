//! A client of the API server that detects dead connections.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hyper::Uri;
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioExecutor;
use kube::client::{ClientBuilder, ConfigExt as _};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use thiserror::Error;
use tower::{BoxError, Service, ServiceBuilder};

use super::request::{RequestLimits, WatchTimes, error_text};

/// The time limit for establishing a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The time for which a connection is idle before TCP probes it. A watch is idle for minutes, and a load balancer may
/// have dropped its connection. With the interval and the number of probes below, a dead connection ends after about
/// 20 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);

/// The time between two keepalive probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// The number of unanswered keepalive probes after which a connection ends.
const MAX_KEEPALIVE_RETRIES: u32 = 2;

/// The maximum time for which sent data may stay unacknowledged (`TCP_USER_TIMEOUT`).
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(15);

/// The source of the API server's address and of the credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KubeconfigSource {
    /// The service account of the agent's own pod.
    InCluster,
    /// A kubeconfig file.
    File(PathBuf),
}

/// The reasons why there is no client.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The credentials of the agent's own pod cannot be read.
    #[error(
        "the API server cannot be reached with this pod's service account: {0}; let its token be mounted \
         (automountServiceAccountToken), or give --kubeconfig"
    )]
    InCluster(#[from] InClusterError),
    /// The kubeconfig file cannot be used.
    #[error("--kubeconfig {path}: {error}")]
    File {
        /// The file's path.
        path: PathBuf,
        /// The error in the file.
        error: KubeconfigError,
    },
    /// Certificates, credentials or the proxy's URL cannot be used.
    #[error("the API server cannot be reached: {0}")]
    Client(String),
}

/// A client of the API server. A clone is cheap.
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
    /// Reads the address and the credentials. Nothing is sent yet.
    ///
    /// # Errors
    /// If they cannot be read or used.
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

    /// Returns the API server's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns kube's client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Returns the time at which a watch of this resource (such as `pods`) last started with success. Watching works
    /// since then.
    pub fn watch_started(&self, resource: &str) -> Option<Instant> {
        self.watch_times.started(resource)
    }
}

#[cfg(test)]
impl ApiServer {
    /// Makes an API server from a function that gets method, path with query, and body of a request, and returns
    /// status and object.
    pub fn fake<F>(answer: F) -> Self
    where
        F: Fn(&hyper::Method, &str, serde_json::Value) -> (u16, serde_json::Value)
            + Clone
            + Send
            + Sync
            + 'static,
    {
        use http_body_util::BodyExt as _;
        use hyper::{Request, Response};
        use kube::client::Body;
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

/// Makes a client whose connections are probed by TCP keepalive and whose requests have time limits. It connects
/// through the kubeconfig's `proxy-url` if there is one.
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

/// Makes a client with kube's own layers and the request limits, over connections that this connector makes.
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

#[cfg(test)]
mod tests {
    use hyper::Request;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Reads the head of a request, answers it, and returns the head.
    fn answer(stream: &TcpStream, answer: &str) -> Vec<String> {
        let lines = BufReader::new(stream).lines().map(Result::unwrap);
        let head = lines.take_while(|line| !line.is_empty()).collect();
        (&mut &*stream).write_all(answer.as_bytes()).unwrap();
        head
    }

    #[tokio::test]
    async fn the_start_of_a_watch_through_a_proxy_is_recorded() {
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
