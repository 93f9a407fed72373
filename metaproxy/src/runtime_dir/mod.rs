//! The runtime directory, through which the metaproxy processes of one node share state: which instances run, and
//! whether pods have been served since the node booted.

pub(crate) mod atomic_file;
mod directory;
mod instance;
mod served_marker;

pub use self::directory::{RuntimeDirError, make_runtime_dir};
pub use self::instance::{Instance, InstanceError};
pub use self::served_marker::ServedMarker;
