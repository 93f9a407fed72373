//! A fake API server, for faults that cannot be caused on a real one. It answers lists and watches of pods,
//! namespaces and service accounts, and the agent's other requests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::channel::Channel;
use http_body_util::combinators::BoxBody;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::AWS_IP;
use super::imds::{Answer, Handler, Server, text};
use super::netns::Netns;

const PORT: u16 = 6443;

/// How the server behaves.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// The status with which every request is answered.
    pub always: Option<u16>,
    /// Whether no request is answered.
    pub hangs: bool,
    /// The status with which new watches are answered.
    pub watches: Option<u16>,
    /// Verbs and resources that are denied, as RBAC writes them (`list pods`).
    pub denied: BTreeSet<String>,
    /// Whether no tokens are issued for service accounts.
    pub gives_no_token: bool,
    /// Whether a policy limits tokens to STS's audience.
    pub limits_audiences: bool,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    /// Counts changes, which wakes watches.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    behaviour: Behaviour,
    version: u64,
    /// Objects by resource, then by `namespace/name`.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    /// Events: resource, version, type, object.
    history: Vec<(String, u64, &'static str, Value)>,
    /// Watches that began before this count are ended.
    generation: u64,
    /// The last event of ended watches, if they get one.
    last_words: Option<Value>,
    requests: Vec<String>,
    posted: Vec<(String, Value)>,
}

/// The fake API server. Dropping it ends it.
#[derive(Debug)]
pub struct FakeApiServer {
    state: State,
    server: Option<Server>,
    netns: Netns,
}

/// The state that the server and its owner share.
#[derive(Clone, Debug)]
struct State(Arc<Shared>);

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeApiServer {
    /// Starts the server in AWS's network namespace.
    pub fn start(netns: &Netns) -> Result<Self> {
        let state = State(Arc::new(Shared {
            inner: Mutex::default(),
            changed: watch::Sender::new(0),
        }));
        let mut server = Self {
            state,
            server: None,
            netns: netns.again()?,
        };
        server.come_back()?;
        Ok(server)
    }

    /// Closes the listener, so that connections are refused.
    pub fn go_away(&mut self) {
        self.server = None;
    }

    /// Listens again after [`Self::go_away`].
    pub fn come_back(&mut self) -> Result<()> {
        let address = SocketAddr::new(IpAddr::V4(AWS_IP), PORT);
        self.server = Some(Server::start(
            &self.netns,
            &[address],
            Arc::new(self.state.clone()),
        )?);
        Ok(())
    }

    /// Writes a kubeconfig for this server.
    pub fn kubeconfig(&self, dir: &Path) -> Result<PathBuf> {
        let path = dir.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "agent" } }],
            "clusters": [{ "name": "lab", "cluster": { "server": format!("http://{AWS_IP}:{PORT}") } }],
            "users": [{ "name": "agent", "user": { "token": "agents-token" } }],
        });
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// Changes how the server behaves from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.state.lock().behaviour = behaviour;
    }

    /// Adds or changes an object of `pods`, `namespaces`, `serviceaccounts` or `nodes`.
    pub fn put(&self, resource: &str, mut object: Value) {
        let mut inner = self.state.lock();
        inner.version += 1;
        let version = inner.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let objects = inner.objects.entry(resource.to_owned()).or_default();
        let known = objects.insert(key(&object), object.clone());
        let kind = if known.is_some() { "MODIFIED" } else { "ADDED" };
        inner.history.push((resource.to_owned(), version, kind, object));
        drop(inner);
        self.state.0.changed.send_modify(|count| *count += 1);
    }

    /// Removes an object.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) {
        let mut inner = self.state.lock();
        inner.version += 1;
        let version = inner.version;
        let objects = inner.objects.entry(resource.to_owned()).or_default();
        if let Some(mut object) = objects.remove(&format!("{namespace}/{name}")) {
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            inner
                .history
                .push((resource.to_owned(), version, "DELETED", object));
        }
        drop(inner);
        self.state.0.changed.send_modify(|count| *count += 1);
    }

    /// Ends all open watches; their last event is an error with this code, if one is given. The server forgets all
    /// events, so that a watch from an earlier version gets 410.
    pub fn forget(&self, code: Option<u16>) {
        let mut inner = self.state.lock();
        inner.generation += 1;
        inner.last_words = code.map(|code| json!({ "type": "ERROR", "object": status(code, "Expired") }));
        inner.history.clear();
        inner.version += 100;
        drop(inner);
        self.state.0.changed.send_modify(|count| *count += 1);
    }

    /// Returns all requests so far, such as `GET /api/v1/pods?watch=true&…`.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().requests.clone()
    }

    /// Returns the bodies that were posted or patched to paths with this suffix.
    pub fn posted(&self, end: &str) -> Vec<Value> {
        let inner = self.state.lock();
        let posted = inner.posted.iter().filter(|(path, _)| path.ends_with(end));
        posted.map(|(_, object)| object.clone()).collect()
    }

    /// Returns an object.
    pub fn object(&self, resource: &str, key: &str) -> Value {
        let inner = self.state.lock();
        inner
            .objects
            .get(resource)
            .and_then(|objects| objects.get(key))
            .cloned()
            .unwrap_or_default()
    }
}

fn key(object: &Value) -> String {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

impl Handler for State {
    async fn handle(&self, _peer: IpAddr, request: Request<Bytes>) -> Answer {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let method = request.method().clone();
        let behaviour = {
            let mut inner = self.lock();
            inner.requests.push(format!("{method} {path}?{query}"));
            inner.behaviour.clone()
        };
        if behaviour.hangs {
            std::future::pending::<()>().await;
        }
        if let Some(code) = behaviour.always {
            return failed(code, "said the fake API server");
        }
        let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        let resource = path.rsplit('/').next().unwrap_or_default();
        let verb = match (&method, query.contains("watch=true")) {
            (&Method::GET, true) => "watch",
            (&Method::GET, false) if path.contains("/nodes/") => "get",
            (&Method::GET, false) => "list",
            (&Method::PATCH, _) => "patch",
            _ => "create",
        };
        if method == Method::GET && behaviour.denied.contains(&format!("{verb} {resource}")) {
            return failed(
                403,
                &format!("{resource} is forbidden: User \"agent\" cannot {verb} resource \"{resource}\""),
            );
        }
        match (verb, resource) {
            ("watch", _) => match behaviour.watches {
                Some(code) => failed(code, "no watch now"),
                None => self.watch(resource, &query),
            },
            ("list", _) => self.list(resource, &query),
            ("get", name) => object(
                self.lock()
                    .objects
                    .get("nodes")
                    .and_then(|nodes| nodes.get(&format!("/{name}"))),
            ),
            ("patch", name) => {
                self.lock().posted.push((path.clone(), body.clone()));
                let mut inner = self.lock();
                let nodes = inner.objects.entry("nodes".to_owned()).or_default();
                let node = nodes.entry(format!("/{name}")).or_default();
                node["spec"]["taints"] = body["spec"]["taints"].clone();
                object(Some(node))
            }
            ("create", "selfsubjectaccessreviews") => review(&behaviour, body),
            ("create", "token") => {
                if !query.contains("dryRun=All") {
                    self.lock().posted.push((path.clone(), body.clone()));
                }
                if behaviour.limits_audiences && body["spec"]["audiences"] != json!(["sts.amazonaws.com"]) {
                    return failed(422, "ValidatingAdmissionPolicy 'metaproxy-tokens' denied request");
                }
                if behaviour.gives_no_token {
                    return failed(403, "serviceaccounts \"web\" is forbidden: no tokens today");
                }
                let mut answer = body;
                answer["status"] = json!({ "token": "token-of-a-service-account", "expirationTimestamp": "2099-01-01T00:00:00Z" });
                object(Some(&answer))
            }
            _ => {
                let mut inner = self.lock();
                let name = &body["metadata"]["name"];
                let has_it =
                    |(of, object): &(String, Value)| *of == path && object["metadata"]["name"] == *name;
                if name.is_string() && inner.posted.iter().any(has_it) {
                    return failed(409, &format!("{resource} {name} already exists"));
                }
                inner.posted.push((path.clone(), body.clone()));
                object(Some(&body))
            }
        }
    }
}

impl State {
    fn list(&self, resource: &str, query: &str) -> Answer {
        let inner = self.lock();
        let none = BTreeMap::new();
        let objects = inner.objects.get(resource).unwrap_or(&none);
        let items: Vec<&Value> = objects
            .values()
            .filter(|object| selected(object, query))
            .collect();
        object(Some(&json!({
            "kind": "List", "apiVersion": "v1",
            "metadata": { "resourceVersion": inner.version.to_string() },
            "items": items,
        })))
    }

    fn watch(&self, resource: &str, query: &str) -> Answer {
        let from: u64 = parameter(query, "resourceVersion")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        let (generation, oldest) = {
            let inner = self.lock();
            let oldest = inner
                .history
                .first()
                .map_or(inner.version, |(_, version, _, _)| version - 1);
            (inner.generation, oldest)
        };
        if from < oldest {
            return failed(410, "too old resource version");
        }
        let (mut events, body) = Channel::<Bytes>::new(64);
        let (resource, query) = (resource.to_owned(), query.to_owned());
        let mut changed = self.0.changed.subscribe();
        let state = self.clone();
        tokio::spawn(async move {
            let mut seen = from;
            loop {
                let (due, ended) = state.due(&resource, seen, generation);
                for (version, event) in due {
                    seen = version;
                    if selected(&event["object"], &query)
                        && events.send_data(Bytes::from(format!("{event}\n"))).await.is_err()
                    {
                        return;
                    }
                }
                if let Some(last_words) = ended {
                    if let Some(words) = last_words {
                        let _ = events.send_data(Bytes::from(format!("{words}\n"))).await;
                    }
                    return;
                }
                if changed.changed().await.is_err() {
                    return;
                }
            }
        });
        let mut response = Response::new(BoxBody::new(body));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    /// Returns the events that a watch has not sent yet and, if the watch ends, its last event.
    fn due(&self, resource: &str, seen: u64, generation: u64) -> (Vec<(u64, Value)>, Option<Option<Value>>) {
        let inner = self.lock();
        let due = inner
            .history
            .iter()
            .filter(|(of, version, _, _)| of == resource && *version > seen)
            .map(|(_, version, kind, object)| (*version, json!({ "type": kind, "object": object })));
        let ended = (inner.generation != generation).then(|| inner.last_words.clone());
        (due.collect(), ended)
    }
}

fn selected(object: &Value, query: &str) -> bool {
    let Some(selector) = parameter(query, "fieldSelector") else {
        return true;
    };
    let node = selector.rsplit("%3D").next().unwrap_or_default();
    object["spec"]["nodeName"] == node
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn review(behaviour: &Behaviour, mut body: Value) -> Answer {
    let asked = &body["spec"]["resourceAttributes"];
    let text = |name: &str| asked[name].as_str().unwrap_or_default();
    let mut name = format!("{} {}", text("verb"), text("resource"));
    for (separator, part) in [(".", text("group")), ("/", text("subresource"))] {
        if !part.is_empty() {
            name = format!("{name}{separator}{part}");
        }
    }
    body["status"] = json!({ "allowed": !behaviour.denied.contains(&name) });
    object(Some(&body))
}

fn status(code: u16, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "Fake", "message": message })
}

fn failed(code: u16, message: &str) -> Answer {
    let mut response = object(Some(&status(code, message)));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
    response
}

fn object(object: Option<&Value>) -> Answer {
    let Some(object) = object else {
        return failed(404, "not found");
    };
    let mut response = text(StatusCode::OK, &object.to_string());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
