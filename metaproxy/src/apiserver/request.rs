//! Limits of requests to the API server, and the record of watches that have started.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::{Method, Request, Response};
use kube::client::Body;
use thiserror::Error;
use tower::{BoxError, Service};

/// The time limit for the head of a response, also for that of a watch. A server may accept a connection and then
/// send nothing.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);

/// The time limit for the head of a list. The API server writes the whole list before it sends any of it.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// The time limit for the whole response to a request that is neither a list nor a watch.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// The minimum time between the starts of two watches of one resource, so that a server that ends each watch at once
/// does not get requests without pause.
const MIN_WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// The times of the last watch of each resource. A clone is cheap and shares the times.
#[derive(Clone, Debug, Default)]
pub(super) struct WatchTimes {
    /// The time at which the API server last answered a watch with success.
    started: Arc<Mutex<HashMap<String, Instant>>>,
    /// The time at which the last watch was sent or will be sent.
    sent: Arc<Mutex<HashMap<String, Instant>>>,
}

impl WatchTimes {
    /// Returns the time at which the API server last answered a watch of this resource with success.
    pub fn started(&self, resource: &str) -> Option<Instant> {
        let started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        started.get(resource).copied()
    }

    fn note_start(&self, resource: String) {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        started.insert(resource, Instant::now());
    }

    /// Returns the time for which the next watch of a resource must wait, and records when it is sent.
    fn delay_next(&self, resource: &str) -> Duration {
        let now = Instant::now();
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = sent
            .get(resource)
            .map_or(now, |last| (*last + MIN_WATCH_INTERVAL).max(now));
        sent.insert(resource.to_owned(), earliest);
        earliest - now
    }
}

/// A layer that limits the time of each response and the rate of watches. It records when a watch is answered,
/// because a watch that works again may send no event for minutes, so its response is the only sign of recovery.
#[derive(Clone)]
pub(super) struct RequestLimits<S> {
    pub http: S,
    pub watch_times: WatchTimes,
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
            // The head of a list does not prove success, because the list may break off.
            if is_watch && answer.status().is_success() {
                watch_times.note_start(resource);
            }
            Ok(answer)
        })
    }
}

/// Waits for the response to a request, at most for `limit`.
///
/// # Errors A text that says why the request failed, or that it took too long.
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

/// The error of a response that did not arrive in time.
#[derive(Debug, Error)]
#[error("the API server did not answer within {} s", .0.as_secs())]
struct ResponseTimedOut(Duration);

/// Returns an error with its causes as a text. If the API server sent a message, returns that message.
pub fn error_text(error: &kube::Error) -> String {
    /// The maximum length of a message in characters. The message may be the page of a proxy.
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
    // Many errors already end with the text of their cause.
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
