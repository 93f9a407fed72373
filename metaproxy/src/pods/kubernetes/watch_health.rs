//! Watches that fail: what is said about them, and when they work again.

use std::fmt;
use std::time::{Instant, SystemTime};

use tracing::{debug, info, warn};

use crate::apiserver::ApiServer;
use crate::telemetry::health::Part;

/// What a watch is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Pods,
    Namespaces,
    ServiceAccounts,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Pods, Self::Namespaces, Self::ServiceAccounts];

    /// The part of the agent that it is.
    pub fn part(self) -> Part {
        match self {
            Self::Pods => Part::Pods,
            Self::Namespaces => Part::Namespaces,
            Self::ServiceAccounts => Part::ServiceAccounts,
        }
    }

    /// As paths of the API have it.
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
    kind: Kind,
    since: SystemTime,
    last: Instant,
    error: String,
}

impl fmt::Display for WatchFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = humantime::format_rfc3339_seconds(self.since);
        write!(
            f,
            "since {since} the API server cannot be asked for them: {}",
            self.error
        )
    }
}

fn tell_recovery(kind: Kind) {
    info!("watching {} works again", kind.resource());
}

/// One for each watch at the most.
#[derive(Debug, Default)]
pub struct WatchHealth(Vec<WatchFailure>);

impl WatchHealth {
    /// Whether every watch works.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// That of a watch.
    pub fn of(&self, kind: Kind) -> Option<&WatchFailure> {
        self.0.iter().find(|trouble| trouble.kind == kind)
    }

    /// A watch has failed.
    pub fn note(&mut self, kind: Kind, error: String) {
        let last = Instant::now();
        if let Some(trouble) = self.0.iter_mut().find(|trouble| trouble.kind == kind) {
            debug!("watching {} has failed again: {error}", kind.resource());
            trouble.last = last;
            trouble.error = error;
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

    /// A watch tells something.
    pub fn works(&mut self, kind: Kind) {
        let before = self.0.len();
        self.0.retain(|trouble| trouble.kind != kind);
        if self.0.len() < before {
            tell_recovery(kind);
        }
    }

    /// Drops the troubles of watches that were answered since.
    pub fn recover(&mut self, api: &ApiServer) {
        self.0.retain(|trouble| {
            let works = api
                .watch_started(trouble.kind.resource())
                .is_some_and(|answered| answered > trouble.last);
            if works {
                tell_recovery(trouble.kind);
            }
            !works
        });
    }
}
