//! Requests of one connection, as HTTP has it.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{poll_fn, ready};
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use futures_util::future::Either;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tracing::debug;

use super::answer::{self, Answer};
use super::io_timeouts::{Stage, TimedStream};
use super::limits::{Limits, Permit};
use super::log_fields::{LoggedPath, logged_method};
use super::recent::Recent;
use super::{Client, Service};
use crate::cached_watch::{CachedWatch, Changes};
use crate::credentials::Issuer;
use crate::telemetry::metrics::{RequestKind, Requests};

/// How long a connection may take over a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest body that is read and dropped; the metadata service has no use for one.
const MAX_BODY: usize = 16 * 1024;

/// How the server goes on. Only ever moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Serving,
    /// Each connection ends after its next answer.
    Draining,
    /// Connections that wait for a request are closed.
    Closing,
}

/// What answers the requests of connections whose client is known.
pub struct Http<I> {
    service: Service<I>,
    phase: watch::Receiver<Phase>,
    limits: Limits,
    measured: Requests,
}

impl<I> std::fmt::Debug for Http<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl<I: Issuer> Http<I> {
    /// Of the limits, those of a head and of silence are heeded here.
    pub fn new(service: Service<I>, phase: watch::Receiver<Phase>, limits: Limits) -> Self {
        Self {
            service,
            phase,
            limits,
            measured: Requests::default(),
        }
    }

    /// What is measured of requests.
    pub fn measured(&self) -> &Requests {
        &self.measured
    }

    /// What answers.
    pub fn service(&self) -> &Service<I> {
        &self.service
    }

    /// Answers until the connection ends, or the phase is [`Phase::Closing`]; `slowed` is told of each request that had to
    /// wait.
    ///
    /// # Errors
    /// Those of the connection, and of what came over it that is no HTTP.
    pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        client: &Client,
        permit: &Permit,
        slowed: impl Fn(),
    ) -> hyper::Result<()> {
        let stage = Stage::default();
        let recent = RefCell::new((self.service.recent(client), CachedWatch::new(self.phase.clone())));
        let (stage, slowed) = (&stage, &slowed);
        let service = service_fn(move |request: Request<Incoming>| {
            stage.busy();
            let began = Instant::now();
            let wait = permit.wait_for_request(began);
            if wait.is_none()
                && let Some(answer) = self.at_once(&mut recent.borrow_mut(), &request, began)
            {
                stage.idle();
                return Either::Left(ready(Ok::<_, Infallible>(answer)));
            }
            // What few requests need stands elsewhere: the future of a request is moved about for each.
            Either::Right(Box::pin(async move {
                if let Some(wait) = wait {
                    slowed();
                    tokio::time::sleep(wait).await;
                }
                let answer = self.request(client, request, began).await;
                stage.idle();
                Ok(answer)
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

    /// The answer to a request without a body, where there is nothing to wait for.
    fn at_once(
        &self,
        (recent, phase): &mut (Recent<'_>, CachedWatch<Phase>),
        request: &Request<Incoming>,
        began: Instant,
    ) -> Option<Answer> {
        if !request.body().is_end_stream() {
            return None;
        }
        let (method, uri) = (request.method(), request.uri());
        let answer = self.service.begin(recent, method, uri, request.headers()).ok()?;
        Some(self.sent(recent.client(), (method, uri), phase.now(), began, answer))
    }

    async fn request(&self, client: &Client, request: Request<Incoming>, began: Instant) -> Answer {
        let (head, body) = request.into_parts();
        // Read and dropped, or the next request on this connection would begin in the middle of it.
        let drained = if body.is_end_stream() {
            Ok(Ok(()))
        } else {
            let body = Limited::new(body, MAX_BODY).collect();
            tokio::time::timeout(BODY_TIMEOUT, async { body.await.map(drop) }).await
        };
        let answer = match drained {
            Ok(Ok(())) => {
                self.service
                    .answer(client, &head.method, &head.uri, &head.headers)
                    .await
            }
            Ok(Err(_)) => {
                let sentence = "Requests for metadata have no body.";
                let failure = answer::failure(StatusCode::PAYLOAD_TOO_LARGE, sentence);
                (RequestKind::Other, failure)
            }
            Err(_) => {
                let failure = answer::failure(StatusCode::REQUEST_TIMEOUT, "The body did not come.");
                (RequestKind::Other, failure)
            }
        };
        let phase = *self.phase.borrow();
        self.sent(client, (&head.method, &head.uri), phase, began, answer)
    }

    /// An answer on its way.
    fn sent(
        &self,
        client: &Client,
        (method, uri): (&Method, &Uri),
        phase: Phase,
        began: Instant,
        (kind, mut answer): (RequestKind, Answer),
    ) -> Answer {
        if phase != Phase::Serving {
            answer
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.measured
            .answered(kind, answer.status().as_u16(), began.elapsed());
        // Names are looked up only for a level that shows them.
        if tracing::enabled!(tracing::Level::DEBUG) {
            debug!(
                pod = self.service.pod_name(client),
                uid = %client.uid,
                kind = kind.label(),
                method = logged_method(method),
                path = %LoggedPath(uri.path()),
                status = answer.status().as_u16(),
                took = ?began.elapsed(),
            );
        }
        answer
    }
}

/// Waits for a phase, or a later one.
pub async fn reached(phases: &mut watch::Receiver<Phase>, wanted: Phase) {
    // An agent that is gone is closing too.
    let _ = phases.wait_for(|phase| *phase >= wanted).await;
}

/// Looks for [`Phase::Closing`] beside a connection, which is polled much more often than phases change: with each change
/// and each new waker, and not with each poll.
struct Closing<F> {
    changes: Changes<Phase>,
    /// Until it has come.
    reached: Option<F>,
    /// What `reached` wakes.
    waker: Option<Waker>,
}

impl<F: Future<Output = ()> + Unpin> Closing<F> {
    /// Whether it has come since the last look.
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
    use crate::imds::ImdsV1Policy;
    use crate::imds::decisions::tests::{client, decisions};
    use crate::imds::limits::ClientLimits;
    use crate::imds::recent::tests::service;
    use rstest::rstest;
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
        let service = service(pods.subscribe(), rules.subscribe(), imds_v1);
        let http = Http::new(service, watched, limits());
        let client = client("aaaaaaaa-0000-0000-0000-000000000001");
        let permit = ClientLimits::new(limits()).acquire(&()).unwrap();
        let (mut pod, server) = tokio::io::duplex(4096);
        let mut serving = pin!(http.serve(server, &client, &permit, || {}));
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
}
