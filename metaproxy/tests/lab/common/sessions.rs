//! Helpers for tests of roles and sessions: requests for lists and for credential documents.

use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::Pod;

use super::Node;
use super::http::{LIST, Response, get, request, timed_exchange};

pub const ROLE: &str = "iam.amazonaws.com/role";

pub fn start(node: &Node, flags: &[&str]) -> Agent {
    Agent::start(&node.lab, &node.spec().with(flags)).unwrap()
}

pub fn document(pod: &Pod, role: &str) -> Response {
    get(pod, &format!("{LIST}{role}"))
}

/// The maximum time until an answer, in seconds. SDKs give up after 1 s.
pub const IN_TIME: f64 = 0.9;

/// Requests list and document at the same time, sixteen times each, and asserts that each answer is in time. Returns
/// one list and one document.
pub fn in_time(pod: &Pod, role: &str) -> (Response, Response) {
    let document = format!("{LIST}{role}");
    let requests: Vec<[String; 1]> = [LIST, &document]
        .into_iter()
        .cycle()
        .take(32)
        .map(|path| [request("GET", path, "")])
        .collect();
    let answers = timed_exchange(pod, &requests, 3.0);
    assert_eq!(answers.len(), requests.len());
    let mut parsed = Vec::new();
    for (answer, took) in answers {
        assert!(took <= IN_TIME, "{took} s for {answer}");
        parsed.push(Response::parse(&answer).unwrap_or_else(|| panic!("no answer: {answer:?}")));
    }
    (parsed.remove(0), parsed.remove(0))
}

pub fn document_is_good(pod: &Pod, role: &str) -> bool {
    document(pod, role).json()["SecretAccessKey"] == format!("secret-of-{role}")
}
