//! Converts the events of watches into changes of the objects that the agent uses.

use std::pin::Pin;

use futures_util::stream::{Stream, StreamExt as _};
use kube::runtime::watcher::Event;
use tracing::warn;

use super::stream::Events;
use super::watch_health::WatchedKind;
use crate::pods::{Namespace, ObjectError, Pod, PodUid, ServiceAccount};

/// An event of a watch, or its failure.
#[derive(Debug)]
pub enum Change {
    Pod(Event<Result<Pod, ObjectError>>),
    Namespace(Event<Result<Namespace, ObjectError>>),
    ServiceAccount(Event<Result<ServiceAccount, ObjectError>>),
    Failed(WatchedKind, String),
}

impl Change {
    /// Reports whether this change completes a list.
    pub fn ends_list(&self) -> bool {
        matches!(
            self,
            Self::Pod(Event::InitDone)
                | Self::Namespace(Event::InitDone)
                | Self::ServiceAccount(Event::InitDone)
        )
    }
}

pub type Changes = Pin<Box<dyn Stream<Item = Change> + Send>>;

/// Converts the events of one watch. `trim` reduces an object to the fields that are used.
pub fn changes<K: 'static, T: 'static>(
    events: Events<K>,
    kind: WatchedKind,
    change: fn(Event<Result<T, ObjectError>>) -> Change,
    mut trim: impl FnMut(K) -> Result<T, ObjectError> + Send + 'static,
) -> Changes {
    events
        .map(move |result| match result {
            Ok(event) => change(map(event, &mut trim)),
            Err(error) => Change::Failed(kind, error),
        })
        .boxed()
}

fn map<K, T>(event: Event<K>, mut convert: impl FnMut(K) -> T) -> Event<T> {
    match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(convert(object)),
        Event::Apply(object) => Event::Apply(convert(object)),
        Event::Delete(object) => Event::Delete(convert(object)),
    }
}

/// Reports whether the API server has answered. kube begins each attempt at a list with an event of its own, `Init`.
pub fn is_answer<T>(event: &Event<T>) -> bool {
    !matches!(event, Event::Init)
}

/// Returns the event if its object can be used. Otherwise logs the error and returns `None`.
pub fn usable<T>(event: Event<Result<T, ObjectError>>) -> Option<Event<T>> {
    let reported = |object: Result<T, ObjectError>| object.inspect_err(|problem| warn!("{problem}")).ok();
    Some(match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(reported(object)?),
        Event::Apply(object) => Event::Apply(reported(object)?),
        Event::Delete(object) => Event::Delete(reported(object)?),
    })
}

pub fn keyed_pod(pod: Pod) -> (PodUid, Pod) {
    (pod.uid.clone(), pod)
}

pub fn keyed_namespace(namespace: Namespace) -> (String, Namespace) {
    (namespace.name.clone(), namespace)
}

pub fn keyed_account(account: ServiceAccount) -> ((String, String), ServiceAccount) {
    ((account.namespace.clone(), account.name.clone()), account)
}
