//! A fake STS that gives any role to any caller, for the demo and for faults. Permissions are tested against moto,
//! which enforces IAM.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Request, StatusCode};

use super::AWS_IP;
use super::imds::{Answer, Handler, NODE_ROLE, Server, text};
use super::netns::Netns;

/// The port that it listens on.
pub const STS_PORT: u16 = 8441;

/// A call to AssumeRole or AssumeRoleWithWebIdentity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `RoleArn`
    pub role: String,
    /// `RoleSessionName`
    pub session: String,
    /// `ExternalId`
    pub external_id: Option<String>,
    /// `Tags`, in order.
    pub tags: Vec<(String, String)>,
    /// `TransitiveTagKeys`, in order.
    pub transitive_tags: Vec<String>,
    /// `DurationSeconds`
    pub duration: Option<String>,
    /// The access key id that signed it.
    pub signed_by: String,
    /// `WebIdentityToken`
    pub web_identity: Option<String>,
}

/// How the service behaves.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// The latency of answers.
    pub takes: Duration,
    /// The status and error code of answers to requests for credentials.
    pub fails: Option<(u16, &'static str)>,
    /// The status of a proxy's error page, which is sent instead of an answer and has another id each time.
    pub page: Option<u16>,
    /// Whether the node's own role may assume itself, which AWS allows only if the role's trust policy does.
    pub trusts_itself: bool,
    /// The caller's ARN; a session of the node's role if it is not set.
    pub caller: Option<&'static str>,
    /// The status and error code of answers to requests for the caller's ARN.
    pub knows_no_caller: Option<(u16, &'static str)>,
    /// The prefix of names of roles that are denied.
    pub denies: Option<&'static str>,
    /// The remaining lifetime of sessions; an hour if it is not set.
    pub life: Option<Duration>,
    /// The text of `Expiration`, instead of a time.
    pub expiration: Option<String>,
    /// The least length of a session token; those of AWS have about a thousand characters.
    pub token_size: usize,
}

#[derive(Debug)]
struct State {
    behaviour: Mutex<Behaviour>,
    calls: Mutex<Vec<Call>>,
    number: AtomicUsize,
}

/// The fake service. Dropping it ends it.
#[derive(Debug)]
pub struct FakeSts {
    state: Arc<State>,
    _server: Server,
}

impl FakeSts {
    /// Starts the service with this latency.
    pub fn start(netns: &Netns, takes: Duration) -> Result<Self> {
        let behaviour = Behaviour {
            takes,
            ..Behaviour::default()
        };
        let state = Arc::new(State {
            behaviour: Mutex::new(behaviour),
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

    /// Returns its URL.
    pub fn url() -> String {
        format!("http://{AWS_IP}:{STS_PORT}")
    }

    /// Changes how the service behaves from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        *self
            .state
            .behaviour
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = behaviour;
    }

    /// Returns all calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.state
            .calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Handler for State {
    async fn handle(&self, _peer: IpAddr, request: Request<Bytes>) -> Answer {
        let signed_by = signed_by(request.headers());
        let body = request.into_body();
        let field = |name: &str| form_field(&body, name);
        let action = field("Action").unwrap_or_default();
        match Some(action.as_str()) {
            Some("AssumeRole" | "AssumeRoleWithWebIdentity") => {}
            Some("GetCallerIdentity") => return self.caller(),
            _ => return failed(400, "InvalidAction"),
        }
        let (Some(role), Some(session)) = (field("RoleArn"), field("RoleSessionName")) else {
            return failed(400, "ValidationError");
        };
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let tag = |index: usize, part: &str| field(&format!("Tags.member.{index}.{part}"));
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Call {
                role: role.clone(),
                session: session.clone(),
                external_id: field("ExternalId"),
                tags: (1..)
                    .map_while(|index| Some((tag(index, "Key")?, tag(index, "Value")?)))
                    .collect(),
                transitive_tags: (1..)
                    .map_while(|index| field(&format!("TransitiveTagKeys.member.{index}")))
                    .collect(),
                duration: field("DurationSeconds"),
                signed_by,
                web_identity: field("WebIdentityToken"),
            });
        let behaviour = self
            .behaviour
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        tokio::time::sleep(behaviour.takes).await;
        let name = role.rsplit('/').next().unwrap_or_default();
        let is_own = name == NODE_ROLE && !behaviour.trusts_itself;
        if is_own || behaviour.denies.is_some_and(|start| name.starts_with(start)) {
            return failed(403, "AccessDenied");
        }
        if let Some((status, code)) = behaviour.fails {
            return failed(status, code);
        }
        if let Some(status) = behaviour.page {
            return page(status, number);
        }
        let life = behaviour.life.unwrap_or(Duration::from_secs(3600));
        let expiration = behaviour
            .expiration
            .unwrap_or_else(|| humantime::format_rfc3339_seconds(SystemTime::now() + life).to_string());
        let token = format!(
            "{:X<width$}",
            format!("token-of-{name}"),
            width = behaviour.token_size
        );
        xml(
            200,
            &format!(
                r#"<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result>
<AssumedRoleUser><AssumedRoleId>AROA:{session}</AssumedRoleId><Arn>{role}/{session}</Arn></AssumedRoleUser>
<Credentials><AccessKeyId>ASIA{number:04}{name}</AccessKeyId><SecretAccessKey>secret-of-{name}</SecretAccessKey>
<SessionToken>{token}</SessionToken><Expiration>{expiration}</Expiration></Credentials>
</{action}Result><ResponseMetadata><RequestId>r{number}</RequestId></ResponseMetadata></{action}Response>"#
            ),
        )
    }
}

impl State {
    fn caller(&self) -> Answer {
        let behaviour = self.behaviour.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((status, code)) = behaviour.knows_no_caller {
            return failed(status, code);
        }
        let arn = behaviour
            .caller
            .unwrap_or("arn:aws:sts::123456789012:assumed-role/node/i-0abc");
        xml(
            200,
            &format!(
                "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>{arn}</Arn></GetCallerIdentityResult>\
                 </GetCallerIdentityResponse>"
            ),
        )
    }
}

fn failed(status: u16, code: &str) -> Answer {
    xml(
        status,
        &format!(
            "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>said the fake STS</Message></Error>\
             <RequestId>r</RequestId></ErrorResponse>"
        ),
    )
}

fn page(status: u16, number: usize) -> Answer {
    let body = format!("<html><body>Blocked. Incident {number}</body></html>");
    let mut response = text(StatusCode::from_u16(status).unwrap_or_default(), &body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
    headers.insert("x-amzn-requestid", HeaderValue::from(number));
    response
}

fn xml(status: u16, body: &str) -> Answer {
    let mut response = text(StatusCode::from_u16(status).unwrap_or_default(), body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/xml"));
    response
}

/// Reads the access key id from `Authorization: AWS4-HMAC-SHA256 Credential=ID/…`.
fn signed_by(headers: &HeaderMap) -> String {
    let header = headers.get(AUTHORIZATION).and_then(|header| header.to_str().ok());
    let credential = header.and_then(|header| header.split("Credential=").nth(1));
    let id = credential.and_then(|credential| credential.split('/').next());
    id.unwrap_or_default().to_owned()
}

/// Reads a field of an `application/x-www-form-urlencoded` body.
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
