//! An STS that gives any role to anybody, for the demo and for faults; whether it is right to do so is tested against
//! moto, which enforces IAM.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Response, StatusCode};

use super::AWS_IP;
use super::imds::{Handler, Server, text};
use super::netns::Netns;

/// Where it listens.
pub const STS_PORT: u16 = 8441;

/// A call to AssumeRole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `RoleArn`
    pub role: String,
    /// `RoleSessionName`
    pub session: String,
}

#[derive(Debug)]
struct State {
    takes: Duration,
    calls: Mutex<Vec<Call>>,
    number: AtomicUsize,
}

/// The service.
#[derive(Debug)]
pub struct FakeSts {
    state: Arc<State>,
    _server: Server,
}

impl FakeSts {
    /// Starts it; each call takes that long.
    pub fn start(netns: &Netns, takes: Duration) -> Result<Self> {
        let state = Arc::new(State {
            takes,
            calls: Mutex::default(),
            number: AtomicUsize::new(0),
        });
        let address = SocketAddr::new(IpAddr::V4(AWS_IP), STS_PORT);
        let server = Server::start(netns, &[address], Arc::clone(&state))?;
        Ok(Self {
            state,
            _server: server,
        })
    }

    /// Its URL.
    pub fn url() -> String {
        format!("http://{AWS_IP}:{STS_PORT}")
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.state
            .calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Handler for State {
    async fn handle(
        &self,
        _peer: IpAddr,
        _method: Method,
        _target: String,
        body: Bytes,
    ) -> Response<Full<Bytes>> {
        let field = |name: &str| form_field(&body, name);
        let (Some(role), Some(session)) = (field("RoleArn"), field("RoleSessionName")) else {
            return text(StatusCode::BAD_REQUEST, "only AssumeRole is understood");
        };
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Call {
                role: role.clone(),
                session: session.clone(),
            });
        tokio::time::sleep(self.takes).await;
        let name = role.rsplit('/').next().unwrap_or_default();
        let expiration = humantime::format_rfc3339_seconds(SystemTime::now() + Duration::from_secs(3600));
        let answer = format!(
            r#"<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<AssumedRoleUser><AssumedRoleId>AROA:{session}</AssumedRoleId><Arn>{role}/{session}</Arn></AssumedRoleUser>
<Credentials><AccessKeyId>ASIA{number:04}{name}</AccessKeyId><SecretAccessKey>secret-of-{name}</SecretAccessKey>
<SessionToken>token-of-{name}</SessionToken><Expiration>{expiration}</Expiration></Credentials>
</AssumeRoleResult><ResponseMetadata><RequestId>r{number}</RequestId></ResponseMetadata></AssumeRoleResponse>"#
        );
        let mut response = text(StatusCode::OK, &answer);
        response.headers_mut().insert(
            "content-type",
            hyper::header::HeaderValue::from_static("text/xml"),
        );
        response
    }
}

/// A field of an `application/x-www-form-urlencoded` body.
fn form_field(body: &[u8], name: &str) -> Option<String> {
    let body = std::str::from_utf8(body).ok()?;
    let value = body
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    let mut decoded = Vec::new();
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}
