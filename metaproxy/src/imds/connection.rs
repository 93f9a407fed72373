//! Serves the requests of one connection.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{poll_fn, ready};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use futures_util::future::Either;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::handler::{ANSWER_TIMEOUT, Answer, Handler, Pending};
use super::io_timeouts::{Stage, TimedStream};
use super::log_fields::{LoggedPath, logged_method};
use super::outcome::{InvalidRequest, Outcome};
use super::recent::Recent;
use super::response::{self, Response};
use crate::cached_watch::{CachedWatch, Changes};
use crate::credentials::Issuer;
use crate::identify::{Client, Limits, Permit};
use crate::telemetry::metrics::Requests;
use crate::telemetry::refusal_reporter::RefusalReporter;

/// How long the body of a request may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest body that is read and dropped, in bytes. No request of the metadata protocol has one.
const MAX_BODY: usize = 16 * 1024;

/// The phase of the server. It only ever moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Serving,
    /// Each connection ends after its next answer.
    Draining,
    /// Connections are closed once they wait for a request.
    Closing,
}

/// Serves connections whose client is identified.
pub struct Connections<I> {
    handler: Arc<Handler<I>>,
    reporter: Arc<RefusalReporter>,
    phase: watch::Receiver<Phase>,
    limits: Limits,
    metrics: Requests,
}

impl<I> std::fmt::Debug for Connections<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl<I: Issuer> Connections<I> {
    /// Of the limits, the longest head and the timeouts apply here.
    pub fn new(
        handler: Arc<Handler<I>>,
        reporter: Arc<RefusalReporter>,
        phase: watch::Receiver<Phase>,
        limits: Limits,
    ) -> Self {
        Self {
            handler,
            reporter,
            phase,
            limits,
            metrics: Requests::default(),
        }
    }

    /// Returns the metrics of requests.
    pub fn metrics(&self) -> &Requests {
        &self.metrics
    }

    /// Returns what handles the requests.
    pub fn handler(&self) -> &Arc<Handler<I>> {
        &self.handler
    }

    /// Serves requests until the connection ends or the phase is [`Phase::Closing`].
    ///
    /// # Errors
    /// Errors of the connection, and of bytes that are not HTTP.
    pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        client: &Client,
        permit: &Permit,
    ) -> hyper::Result<()> {
        let stage = Stage::default();
        let memory = RefCell::new(Memory {
            recent: self.handler.recent(client),
            phase: CachedWatch::new(self.phase.clone()),
        });
        let stage = &stage;
        let service = service_fn(move |request: Request<Incoming>| {
            stage.busy();
            let began = Instant::now();
            let wait = permit.wait_for_request(began);
            let mut pending = None;
            if wait.is_none() && request.body().is_end_stream() {
                let mut memory = memory.borrow_mut();
                match self.handler.try_answer(&mut memory.recent, &request) {
                    Ok(answer) => {
                        let line = (request.method(), request.uri());
                        let response = self.respond(client, line, memory.phase.now(), began, answer);
                        stage.idle();
                        return Either::Left(ready(Ok::<_, Infallible>(response)));
                    }
                    Err(begun) => pending = Some(begun),
                }
            }
            // hyper moves the future of each request, so that of a request that waits is boxed.
            Either::Right(Box::pin(async move {
                if let Some(wait) = wait {
                    tokio::time::sleep(wait).await;
                }
                let response = self.wait(client, request, pending, began).await;
                stage.idle();
                Ok(response)
            }))
        });
        let stream = TimedStream::new(stream, stage.clone(), self.limits.idle, self.limits.head_timeout);
        let connection = http1::Builder::new()
            .header_read_timeout(None)
            .max_buf_size(self.limits.head)
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let mut phases = self.phase.clone();
        let mut closing = Closing {
            changes: Changes::new(self.phase.clone()),
            reached: Some(pin!(reached(&mut phases, Phase::Closing))),
            waker: None,
        };
        poll_fn(|context| {
            if closing.has_come(context) {
                connection.as_mut().graceful_shutdown();
            }
            connection.as_mut().poll(context)
        })
        .await
    }

    /// Answers a request that has a body, was slowed down, or is pending.
    async fn wait(
        &self,
        client: &Client,
        request: Request<Incoming>,
        pending: Option<Pending>,
        began: Instant,
    ) -> Response {
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, ());
        let deadline = || tokio::time::Instant::now() + ANSWER_TIMEOUT;
        let answer = match (pending, skip(body).await) {
            (Some(pending), _) => self.handler.finish(client, pending, deadline()).await,
            (None, Ok(())) => self.handler.answer(client, &request, deadline()).await,
            (None, Err(problem)) => Answer::invalid(problem),
        };
        let phase = *self.phase.borrow();
        self.respond(client, (request.method(), request.uri()), phase, began, answer)
    }

    /// Makes the response. Here, and only here, an outcome is observed.
    fn respond(
        &self,
        client: &Client,
        (method, uri): (&Method, &Uri),
        phase: Phase,
        began: Instant,
        answer: Answer,
    ) -> Response {
        let Answer {
            kind,
            outcome,
            token_left,
        } = answer;
        match &outcome {
            Outcome::TokenUnavailable(error) => warn!("cannot issue a session token: {error}"),
            Outcome::NodeUnavailable(error) => {
                debug!(path = %LoggedPath(uri.path()), "not passed through: {error}")
            }
            outcome => {
                if let Some(reason) = outcome.reason() {
                    self.reporter.report(&client.uid, reason);
                }
            }
        }
        let mut response = response::of(outcome, token_left);
        if phase != Phase::Serving {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let (status, took) = (response.status().as_u16(), began.elapsed());
        self.metrics.answered(kind, status, took);
        // The pod's name is looked up only if the line is logged.
        if tracing::enabled!(tracing::Level::DEBUG) {
            debug!(
                pod = self.handler.pod_name(client),
                uid = %client.uid,
                kind = kind.label(),
                method = logged_method(method),
                path = %LoggedPath(uri.path()),
                status,
                took = ?took,
            );
        }
        response
    }
}

/// What a connection keeps between its requests.
struct Memory<'a> {
    recent: Recent<'a>,
    phase: CachedWatch<Phase>,
}

/// Reads the body of a request and drops it; otherwise the next request on the connection would begin within it.
async fn skip(body: Incoming) -> Result<(), InvalidRequest> {
    if body.is_end_stream() {
        return Ok(());
    }
    let read = async { Limited::new(body, MAX_BODY).collect().await.map(drop) };
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(InvalidRequest::BodyTooLong),
        Err(_) => Err(InvalidRequest::BodyTimeout),
    }
}

/// Waits for a phase or a later one.
pub async fn reached(phases: &mut watch::Receiver<Phase>, wanted: Phase) {
    // If the sender is gone, the agent is closing too.
    let _ = phases.wait_for(|phase| *phase >= wanted).await;
}

/// Looks for [`Phase::Closing`] beside a connection. A connection is polled much more often than phases change, so this
/// looks only after a change or with a new waker.
struct Closing<F> {
    changes: Changes<Phase>,
    /// The wait for the phase; `None` once it is reached.
    reached: Option<F>,
    /// The waker that `reached` was polled with.
    waker: Option<Waker>,
}

impl<F: Future<Output = ()> + Unpin> Closing<F> {
    /// Returns whether the phase was reached since the last call.
    fn has_come(&mut self, context: &mut Context<'_>) -> bool {
        let is_awake = self
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(context.waker()));
        if is_awake && !self.changes.any() {
            return false;
        }
        let Some(reached) = &mut self.reached else {
            return false;
        };
        self.waker = Some(context.waker().clone());
        let has_come = pin!(reached).poll(context).is_ready();
        if has_come {
            self.reached = None;
        }
        has_come
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captured_log::CapturedLog;
    use crate::credentials::{ObtainError, Session, SessionKey, Sessions};
    use crate::identify::ClientLimits;
    use crate::imds::ImdsV1Policy;
    use crate::imds::decisions::tests::{client, decisions};
    use crate::imds::recent::tests::{ByName, handler, handler_with};
    use rstest::rstest;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const SECOND: Duration = Duration::from_secs(1);

    fn limits() -> Limits {
        Limits {
            connections: 1,
            connection_rate: 512,
            request_rate: 512,
            head: 8192,
            head_timeout: 5 * SECOND,
            idle: 60 * SECOND,
        }
    }

    #[rstest]
    #[case::at_once(&[Phase::Closing])]
    #[case::after_a_while(&[Phase::Draining, Phase::Closing])]
    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_closed_with_the_phase_and_not_before(#[case] phases: &[Phase]) {
        let (pods, rules, _) = decisions("one");
        let (_imds_v1, imds_v1) = watch::channel(ImdsV1Policy::Allowed);
        let (phase, watched) = watch::channel(Phase::Serving);
        let handler = Arc::new(handler(pods.subscribe(), rules.subscribe(), imds_v1));
        let reporter = Arc::new(RefusalReporter::new(None));
        let connections = Connections::new(handler, reporter, watched, limits());
        let client = client("aaaaaaaa-0000-0000-0000-000000000001");
        let permit = ClientLimits::new(limits()).acquire(&()).unwrap();
        let (mut pod, server) = tokio::io::duplex(4096);
        let mut serving = pin!(connections.serve(server, &client, &permit));
        pod.write_all(b"GET /latest/meta-data/iam/ HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        for next in phases {
            assert!(tokio::time::timeout(SECOND, &mut serving).await.is_err(), "open");
            phase.send_replace(*next);
        }
        let ended = tokio::time::timeout(SECOND, serving).await;
        assert!(ended.is_ok_and(|ended| ended.is_ok()));
        let mut answer = String::new();
        pod.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Returns the counts of requests that were answered, as a scrape shows them.
    fn counted<I: Issuer>(connections: &Connections<I>) -> Vec<String> {
        let mut registry = prometheus_client::registry::Registry::default();
        connections.metrics().register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let is_counted = |line: &&str| line.starts_with("requests_total") && !line.ends_with(" 0");
        text.lines().filter(is_counted).map(str::to_owned).collect()
    }

    /// A role that is refused: the report of it is a log line and an event.
    #[tokio::test(start_paused = true)]
    async fn a_dry_run_leaves_no_trace_and_uses_up_no_news() {
        let (pods, rules, _) = decisions("a b");
        let (_imds_v1, imds_v1) = watch::channel(ImdsV1Policy::Denied);
        let (_phase, phase) = watch::channel(Phase::Serving);
        let handler = Arc::new(handler(pods.subscribe(), rules.subscribe(), imds_v1));
        let (owners, mut events) = crate::telemetry::pod_event::channel();
        let reporter = Arc::new(RefusalReporter::new(Some(owners)));
        let connections = Connections::new(Arc::clone(&handler), reporter, phase, limits());
        let client = client("aaaaaaaa-0000-0000-0000-000000000001");
        let list = "/latest/meta-data/iam/security-credentials/";
        let (log, _capturing) = CapturedLog::start(tracing::Level::DEBUG);

        let Outcome::RoleName(name) = handler.dry_run(&client, list).await.outcome else {
            panic!("a refused role has a name");
        };
        let path = &format!("{list}{name}");
        let dry = handler.dry_run(&client, path).await.outcome;
        assert!(matches!(dry, Outcome::Refused(_)), "{dry:?}");
        assert_eq!(log.lines(), [""; 0]);
        assert_eq!(counted(&connections), [""; 0]);
        assert!(events.try_recv().is_err());

        let permit = ClientLimits::new(limits()).acquire(&()).unwrap();
        let (mut pod, server) = tokio::io::duplex(4096);
        let head =
            "PUT /latest/api/token HTTP/1.1\r\nHost: a\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
        let asking = async {
            pod.write_all(head.as_bytes()).await.unwrap();
            let mut bytes = [0; 4096];
            let length = pod.read(&mut bytes).await.unwrap();
            let answer = String::from_utf8_lossy(&bytes[..length]).into_owned();
            let token = answer.rsplit("\r\n").next().unwrap().to_owned();
            let head = format!(
                "GET {path} HTTP/1.1\r\nHost: a\r\nX-aws-ec2-metadata-token: {token}\r\nConnection: close\r\n\r\n"
            );
            pod.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            pod.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let (answer, served) = tokio::join!(asking, connections.serve(server, &client, &permit));
        served.unwrap();
        assert!(answer.contains(response::REFUSED_CODE), "{answer}");
        assert!(log.lines().iter().any(|line| line.contains("WARN")), "news");
        assert!(events.try_recv().is_ok(), "an event");
        assert_eq!(counted(&connections).len(), 2, "the token's and the refused one");
    }

    /// As a request of the pod itself, it makes the session that is served to the pod afterwards.
    #[tokio::test(start_paused = true)]
    async fn a_dry_run_asks_sts_as_the_request_would_and_not_twice() {
        let (pods, rules, _) = decisions("one");
        let (_imds_v1, imds_v1) = watch::channel(ImdsV1Policy::Allowed);
        let calls = Arc::new(AtomicUsize::new(0));
        let sessions = Sessions::new(Counting(Arc::clone(&calls)));
        let handler = handler_with(
            sessions,
            "http://127.0.0.1:1",
            pods.subscribe(),
            rules.subscribe(),
            imds_v1,
        );
        let client = client("aaaaaaaa-0000-0000-0000-000000000001");
        for _ in 0..2 {
            let path = "/latest/meta-data/iam/security-credentials/one";
            let outcome = handler.dry_run(&client, path).await.outcome;
            assert!(matches!(outcome, Outcome::Credentials { .. }), "{outcome:?}");
        }
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    struct Counting(Arc<AtomicUsize>);

    impl Issuer for Counting {
        async fn issue(&self, key: &SessionKey) -> Result<Session, ObtainError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            ByName.issue(key).await
        }
    }
}
