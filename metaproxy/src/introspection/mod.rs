//! Shows the state of an agent and its pods: explanations, dry runs and the status.
//!
//! The [admin server](crate::admin) calls [`Introspection`], and `LiveAgent` implements it from the state of a
//! running agent. [`status`] defines the data of a status, and [`page`] writes it as an HTML document.

mod dry_run;
mod live_agent;
mod metric_source;
pub mod page;
#[cfg(test)]
mod scenarios;
pub mod status;
mod status_lines;

use std::collections::BTreeMap;
use std::pin::Pin;

pub(crate) use self::live_agent::{AgentInfo, LiveAgent, Serving};
pub use self::metric_source::MetricSource;
pub use self::status::Status;
use crate::explain::{AnswerLine, Explanation, Verdict};

/// The answers that a pod would get now.
pub type DryRun<'a> = Pin<Box<dyn Future<Output = Vec<AnswerLine>> + Send + 'a>>;

/// Shows an agent to operators. The methods that return no future look at every pod, so they must run on a thread
/// that may be blocked.
pub trait Introspection: Send + Sync {
    /// Explains the decisions about pods: those with the given name (`namespace/name`), or all that have not
    /// finished.
    fn explain(&self, pod: Option<&str>) -> Vec<Explanation>;
    /// Returns the answers that the pod of an explanation would get now.
    fn dry_run(&self, of: &Explanation) -> DryRun<'_>;
    /// Returns the status of the agent.
    fn status(&self) -> Status;
    /// Returns the name of the node, if the agent has been given one.
    fn node_name(&self) -> Option<&str>;
    /// Counts the pods that have not finished, by verdict.
    fn verdicts(&self) -> BTreeMap<Verdict, u64>;
}
