//! Tracks watches that have failed, and logs their failures and recoveries.

use std::fmt;
use std::time::{Instant, SystemTime};

use tracing::{debug, info, warn};

use crate::apiserver::ApiServer;
use crate::telemetry::health::Part;

/// The kind of object that a watch follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchedKind {
    Pods,
    Namespaces,
    ServiceAccounts,
}

impl WatchedKind {
    pub const ALL: [Self; 3] = [Self::Pods, Self::Namespaces, Self::ServiceAccounts];

    /// Returns the part of the agent's health that the watch reports.
    pub fn part(self) -> Part {
        match self {
            Self::Pods => Part::Pods,
            Self::Namespaces => Part::Namespaces,
            Self::ServiceAccounts => Part::ServiceAccounts,
        }
    }

    /// Returns the resource's name in paths of the API.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Namespaces => "namespaces",
            Self::ServiceAccounts => "serviceaccounts",
        }
    }
}

/// A watch that has failed and is not known to work again.
#[derive(Debug)]
pub struct WatchFailure {
    kind: WatchedKind,
    since: SystemTime,
    last: Instant,
    error: String,
}

impl fmt::Display for WatchFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = humantime::format_rfc3339_seconds(self.since);
        write!(
            f,
            "since {since} they cannot be watched at the API server: {}",
            self.error
        )
    }
}

fn log_recovery(kind: WatchedKind) {
    info!("watching {} works again", kind.resource());
}

/// The failures of watches, at most one for each.
#[derive(Debug, Default)]
pub struct WatchHealth(Vec<WatchFailure>);

impl WatchHealth {
    /// Reports whether every watch works.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the failure of a watch, if it has failed.
    pub fn of(&self, kind: WatchedKind) -> Option<&WatchFailure> {
        self.0.iter().find(|failure| failure.kind == kind)
    }

    /// Notes that a watch has failed.
    pub fn failed(&mut self, kind: WatchedKind, error: String) {
        let last = Instant::now();
        if let Some(failure) = self.0.iter_mut().find(|failure| failure.kind == kind) {
            debug!("watching {} has failed again: {error}", kind.resource());
            failure.last = last;
            failure.error = error;
            return;
        }
        warn!(
            "watching {} has failed, and is tried again: {error}",
            kind.resource()
        );
        self.0.push(WatchFailure {
            kind,
            since: SystemTime::now(),
            last,
            error,
        });
    }

    /// Notes that a watch has had an answer.
    pub fn works(&mut self, kind: WatchedKind) {
        let before = self.0.len();
        self.0.retain(|failure| failure.kind != kind);
        if self.0.len() < before {
            log_recovery(kind);
        }
    }

    /// Removes the failures of watches that have had an answer since.
    pub fn recover(&mut self, api: &ApiServer) {
        self.0.retain(|failure| {
            let works = api
                .watch_started(failure.kind.resource())
                .is_some_and(|answered| answered > failure.last);
            if works {
                log_recovery(failure.kind);
            }
            !works
        });
    }
}
