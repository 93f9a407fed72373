//! The pods of this node, with their namespaces and service accounts.
//!
//! A [`Source`] publishes an [`Inventory`] after each change. All other modules only read the latest one.

pub mod annotations;
mod api;
mod credential_variables;
mod inventory;
pub mod kubernetes;
pub mod manifests;
mod mirror;
mod objects;
pub(crate) mod templates;
mod uid;

use std::future::Future;
use std::sync::Arc;

pub use credential_variables::CredentialVariable;
pub use inventory::{Inventory, Known};
pub use mirror::Mirror;
pub use objects::{Annotations, HostPort, Namespace, ObjectError, Pod, ServiceAccount};
use tokio::sync::watch;
pub use uid::{InvalidUid, PodUid};

/// The latest inventory, with a notification of the next one.
pub type Pods = watch::Receiver<Arc<Inventory>>;

/// A source of pods: the API server or a directory of manifests.
pub trait Source: Send + 'static {
    /// Publishes an inventory after each change, until there is no receiver any more. An error of the source is
    /// logged, and the source is read again. The last inventory stays in force meanwhile.
    fn run(self, publish: watch::Sender<Arc<Inventory>>) -> impl Future<Output = ()> + Send;
}
