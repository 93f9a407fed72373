//! What is known of the pods of this node, of their namespaces and service accounts.
//!
//! A [`Source`] publishes an [`Inventory`] whenever something changes; everything else only reads the latest one.

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

/// The latest inventory, and word of the next.
pub type Pods = watch::Receiver<Arc<Inventory>>;

/// Where pods come from.
pub trait Source: Send + 'static {
    /// Publishes an inventory after each change, until nobody listens any more. Faults of the source are logged and
    /// overcome: what was published last stays in force.
    fn run(self, publish: watch::Sender<Arc<Inventory>>) -> impl Future<Output = ()> + Send;
}
