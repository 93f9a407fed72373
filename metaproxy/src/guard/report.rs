//! What a guard reports of itself on its socket: no other process can see whether its programs are attached and stay so.

use serde::{Deserialize, Serialize};

use crate::intercept::guard::GuardState;

/// How a guard in a process of its own is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardReport {
    /// The version that runs.
    pub version: String,
    /// What it does on this kernel, as a sentence without its end.
    #[serde(rename = "way")]
    pub level: String,
    /// Whether it keeps pods out.
    pub state: GuardState,
}
