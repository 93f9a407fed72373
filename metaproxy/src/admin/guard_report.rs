//! The report that a guard serves on its socket. Only the guard itself knows whether its programs are attached and
//! remain attached.

use serde::{Deserialize, Serialize};

use crate::intercept::guard::GuardState;

/// The version, the level and the state of a guard that runs as a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardReport {
    /// The version of metaproxy.
    pub version: String,
    /// The level of the guard on this kernel, as a clause for a sentence.
    #[serde(rename = "way")]
    pub level: String,
    /// The state, which shows whether the guard keeps pods from the metadata service.
    pub state: GuardState,
}
