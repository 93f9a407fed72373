//! What an agent shows of itself and of its pods: explanations, dry runs and the status.
//!
//! [`Introspection`] is what the [admin server](crate::admin) asks, and [`LiveAgent`] answers it from the state of a
//! running agent. [`status`] has the form in which a status travels, [`page`] the same as an HTML document.

mod dry_run;
mod live_agent;
pub mod page;
#[cfg(test)]
mod scenarios;
pub mod status;
mod status_lines;

use std::collections::BTreeMap;
use std::pin::Pin;

pub(crate) use self::live_agent::{AgentInfo, LiveAgent, Serving};
pub use self::status::Status;
use crate::explain::{AnswerLine, Explanation, Verdict};

/// What a pod is answered, once that was asked in its place.
pub type DryRun<'a> = Pin<Box<dyn Future<Output = Vec<AnswerLine>> + Send + 'a>>;

/// What people ask an agent. What is no future takes its time: it looks at every pod, and tries patterns in other ways.
pub trait Introspection: Send + Sync {
    /// Why those pods get what they get that are not over, or those with a name (`namespace/name`).
    fn explain(&self, pod: Option<&str>) -> Vec<Explanation>;
    /// What the pod of an explanation is answered right now.
    fn dry_run(&self, of: &Explanation) -> DryRun<'_>;
    /// How the agent is doing.
    fn status(&self) -> Status;
    /// The name of the node, if the agent has been given one.
    fn node_name(&self) -> Option<&str>;
    /// Pods that are not over, by what comes of their role.
    fn verdicts(&self) -> BTreeMap<Verdict, u64>;
}
