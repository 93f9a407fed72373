//! Serves the requests of one connection.

use std::convert::Infallible;
use std::future::ready;
use std::pin::pin;
use std::sync::Arc;
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
use super::refusal_reporter::RefusalReporter;
use super::response::{self, Response};
use crate::credentials::Issuer;
use crate::identify::{Client, Limits, Permit};
use crate::telemetry::metrics::Requests;

/// How long the body of a request may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest body that is read and dropped, in bytes. No request of the metadata protocol has one.
const MAX_BODY: usize = 16 * 1024;

/// The phase of the server. It only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Requests are served.
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
    /// Makes a server of connections. Of `limits`, it applies the maximum length of a head and the timeouts.
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

    /// Returns the handler of requests.
    pub fn handler(&self) -> &Arc<Handler<I>> {
        &self.handler
    }

    /// Serves requests until the connection ends or the phase is [`Phase::Closing`].
    ///
    /// # Errors
    /// Returns an error if the connection fails, or if its bytes are not HTTP.
    pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        client: &Client,
        permit: &Permit,
    ) -> hyper::Result<()> {
        let stage = Stage::default();
        let stage = &stage;
        let service = service_fn(move |request: Request<Incoming>| {
            stage.busy();
            let began = Instant::now();
            let wait = permit.wait_for_request(began);
            let mut pending = None;
            if wait.is_none() && request.body().is_end_stream() {
                match self.handler.try_answer(client, &request) {
                    Ok(answer) => {
                        let line = (request.method(), request.uri());
                        let response = self.respond(client, line, began, answer);
                        stage.idle();
                        return Either::Left(ready(Ok::<_, Infallible>(response)));
                    }
                    Err(begun) => pending = Some(begun),
                }
            }
            // hyper moves the future of each request, so the future of a request that waits is boxed to keep it
            // small.
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
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            () = reached(&mut phases, Phase::Closing) => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await
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
        self.respond(client, (request.method(), request.uri()), began, answer)
    }

    /// Makes the response. This is the only place that logs, counts and reports outcomes.
    fn respond(
        &self,
        client: &Client,
        (method, uri): (&Method, &Uri),
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
        if *self.phase.borrow() != Phase::Serving {
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

/// Waits until the phase is `wanted` or a later one.
pub async fn reached(phases: &mut watch::Receiver<Phase>, wanted: Phase) {
    // If the sender is gone, the agent is closing too.
    let _ = phases.wait_for(|phase| *phase >= wanted).await;
}

#[cfg(test)]
mod tests;
