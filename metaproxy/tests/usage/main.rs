//! Tests that need no lab: the command line, the documents and the alerts.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test panics where it fails"
)]

mod alerts;
mod command_line;
#[path = "../lab/common/deployed.rs"]
mod deployed;
mod documents;
mod imports;
