//! The report of a guard on its socket. No other process can see whether the guard's programs are attached and stay so.

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
    /// Whether it keeps pods out.
    pub state: GuardState,
}
