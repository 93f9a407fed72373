//! Reports connections that the agent of this node has refused, or that did not reach it.

use std::path::Path;

use super::Finding;
use crate::admin::client;
use crate::introspection::status::RefusedLine;

const CHECK: &str = "connections";

/// Asks the agent of this node. Without an agent there is no finding.
pub(super) fn examine(runtime_dir: &Path) -> Vec<Finding> {
    client::status(runtime_dir).map_or_else(|_| Vec::new(), |status| findings(&status.refused))
}

fn findings(refused: &[RefusedLine]) -> Vec<Finding> {
    if refused.is_empty() {
        return vec![Finding::ok(CHECK, "none was refused since the agent's start")];
    }
    refused.iter().map(finding).collect()
}

fn finding(line: &RefusedLine) -> Finding {
    let (connections, kind) = (line.connections, &line.kind);
    let says = match &line.pod {
        Some(pod) => format!("{connections} connections of pod {pod} were not served ({kind})"),
        None => format!("{connections} connections of unknown callers were refused ({kind})"),
    };
    Finding::warning(CHECK, says, line.explanation.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn refused_connections_are_named_with_their_pod_and_what_to_do() {
        let line = RefusedLine {
            pod: Some("apps/web".to_owned()),
            kind: "no_room".to_owned(),
            connections: 3,
            explanation: "there is no room".to_owned(),
        };
        let found = findings(std::slice::from_ref(&line));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].level, Level::Warning);
        assert_eq!(
            found[0].says,
            "3 connections of pod apps/web were not served (no_room)"
        );
        assert_eq!(found[0].advice.as_deref(), Some("there is no room"));
        assert_eq!(findings(&[])[0].level, Level::Ok);
    }
}
