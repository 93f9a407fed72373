//! Connections of pods: request bodies, keep-alive, pipelining, and limits for slow clients and for the number of
//! connections.

use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use crate::common::http::{LIST, Response, exchange, get, raw, request};
use crate::common::{Node, node};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::{Pod, PodSpec};

fn served() -> Option<(Node, Pod, Agent)> {
    let node = node()?;
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let agent = node.agent();
    Some((node, a, agent))
}

/// Starts a Python script in a pod. Returns the process and the lines that it prints.
fn start(pod: &Pod, script: &str) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = pod
        .command("python3")
        .unwrap()
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

#[test]
fn request_bodies_are_discarded_and_the_next_request_on_the_connection_is_answered() {
    let Some((_node, a, _agent)) = served() else {
        return;
    };
    let a = &a;
    let put = "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
    let list = format!("GET {LIST} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    for body in [
        "Content-Length: 5\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
        "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n0\r\n\r\n",
        "Content-Length: 0\r\nExpect: 100-continue\r\n\r\n",
    ] {
        let answer = raw(a, &format!("{put}{body}{list}"));
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
        assert!(answer.ends_with("\r\n\r\nrole-a"), "{answer}");
    }
    let expecting = format!("{put}Content-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    let answer = exchange(a, &[[expecting.as_str(), "hello", list.as_str()]], 2.0).remove(0);
    assert!(
        answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK"),
        "{answer}"
    );
    assert!(answer.ends_with("\r\n\r\nrole-a"), "{answer}");
    let large = format!("{put}Content-Length: 999999\r\n\r\n{}", "x".repeat(999_999));
    let answer = raw(a, &large);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 413"),
        "{answer}"
    );
}

#[test]
fn keep_alive_pipelining_and_closing_follow_http() {
    let Some((_node, a, _agent)) = served() else {
        return;
    };
    let a = &a;
    // Twenty requests that are sent at once on one connection are answered in order.
    let pipelined: String = (0..20)
        .map(|n| {
            let path = if n % 2 == 0 {
                LIST.to_owned()
            } else {
                format!("/latest/meta-data/placement/{n}")
            };
            format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
        })
        .collect();
    let answer = raw(a, &pipelined);
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 20, "{answer}");
    let order: Vec<usize> = (1..20)
        .step_by(2)
        .map(|n| answer.find(&format!("placement/{n}")).unwrap())
        .collect();
    assert!(order.is_sorted());
    // With HTTP/1.0 the connection is closed, unless the client sends `Connection: keep-alive`.
    let old = raw(a, &format!("GET {LIST} HTTP/1.0\r\n\r\n"));
    assert!(
        old.starts_with("HTTP/1.0 200") && old.ends_with("\r\n\r\nrole-a"),
        "{old}"
    );
    let kept = format!("GET {LIST} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(raw(a, &format!("{kept}{kept}")).matches(" 200 OK").count(), 2);
    // A head that is too long is refused. A head that comes in pieces is accepted.
    let long = request("GET", LIST, &format!("X-Long: {}\r\n", "x".repeat(20_000)));
    assert_eq!(Response::parse(&raw(a, &long)).unwrap().status, 431);
    let pieces = [
        "GET /latest/meta-data/iam/secur",
        "ity-credentials/ HTTP/1.1\r\nHo",
        "st: x\r\nConnection: close\r\n\r",
        "\n",
    ];
    assert!(exchange(a, &[pieces], 2.0)[0].ends_with("\r\n\r\nrole-a"));
}

#[test]
fn slow_clients_are_disconnected_and_others_are_not_affected() {
    let Some((_node, a, _agent)) = served() else {
        return;
    };
    let a = &a;
    let slow = r#"
import socket, time, sys
def attempt(pieces, pause):
    connection = socket.create_connection(("169.254.169.254", 80))
    start = time.time()
    try:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        connection.settimeout(20)
        while connection.recv(65536):
            pass
    except OSError:
        pass
    return time.time() - start
print(attempt([b"GET / HTTP/1.1\r\n"] + [b"X: y\r\n"] * 100, 0.2), attempt([b"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"] + [b"x"] * 99, 0.2))
"#;
    let child = a
        .command("python3")
        .unwrap()
        .args(["-c", slow])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    for _ in 0..10 {
        assert_eq!(get(a, LIST).body, "role-a");
        std::thread::sleep(Duration::from_millis(100));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let output = String::from_utf8(output.stdout).unwrap();
    let took: Vec<f64> = output
        .split_whitespace()
        .map(|took| took.parse().unwrap())
        .collect();
    assert_eq!(took.len(), 2, "of a head and of a body: {output}");
    for took in took {
        assert!((4.0..12.0).contains(&took), "about five seconds: {output}");
    }
}

#[test]
fn one_pod_cannot_take_all_connections() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let b = node.lab.pod(PodSpec::with_role("b", "role-b")).unwrap();
    let agent = Agent::start(&node.lab, &node.spec().with(&["--max-connections-per-pod", "20"])).unwrap();
    let hoard = r#"
import socket, sys
request = b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: x\r\n\r\n"
connections, served, closed = [], 0, 0
for _ in range(60):
    connection = socket.create_connection(("169.254.169.254", 80), timeout=15)
    connections.append(connection)
    try:
        connection.sendall(request)
    except ConnectionError:
        pass
print("connected", flush=True)
for connection in connections:
    try:
        answer = connection.recv(4096)
    except ConnectionError:
        answer = b""
    served += answer.endswith(b"role-a")
    closed += answer == b""
print(served, closed, flush=True)
sys.stdin.read()
"#;
    let (mut child, mut lines) = start(&a, hoard);
    assert_eq!(lines.next().unwrap().unwrap(), "connected");
    assert_eq!(
        get(&b, LIST).body,
        "role-b",
        "the other pod is served while connections of this one wait"
    );
    assert_eq!(lines.next().unwrap().unwrap(), "20 40", "served and closed");
    assert_eq!(get(&b, LIST).body, "role-b", "the other pod is served");
    agent.wait_for("has 20 connections open").unwrap();
    // A connection above the limit waits until the others end.
    let above = std::thread::scope(|scope| {
        let above = scope.spawn(|| exchange(&a, &[[request("GET", LIST, "")]], 4.5).remove(0));
        std::thread::sleep(Duration::from_secs(1));
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success(), "it held them to the end");
        above.join().unwrap()
    });
    assert!(above.ends_with("role-a"), "{above}");
    assert!(
        raw(&a, &request("GET", LIST, "")).ends_with("role-a"),
        "it is served again"
    );
}

/// The agent closes idle connections as it ends, so one that waits has its turn.
#[test]
fn a_connection_that_waits_for_others_is_served_while_the_agent_ends() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let mut agent = Agent::start(&node.lab, &node.spec().with(&["--max-connections-per-pod", "2"])).unwrap();
    let waits = r#"
import socket
request = b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: x\r\n\r\n"
def connected():
    connection = socket.create_connection(("169.254.169.254", 80), timeout=15)
    connection.sendall(request)
    return connection
held = [connected(), connected()]
assert all(connection.recv(4096).endswith(b"role-a") for connection in held)
above = connected()
print("waits", flush=True)
print(above.recv(4096).decode().splitlines()[-1], flush=True)
"#;
    let (mut child, mut lines) = start(&a, waits);
    assert_eq!(lines.next().unwrap().unwrap(), "waits");
    assert!(agent.stop().unwrap().success());
    assert_eq!(lines.next().unwrap().unwrap(), "role-a");
    assert!(child.wait().unwrap().success());
}

/// A burst above the limit is answered: the connections above it wait their turn.
#[test]
fn a_thousand_connections_of_one_pod_at_once_are_all_answered() {
    let Some((_node, a, _agent)) = served() else {
        return;
    };
    let burst = r#"
import resource, selectors, socket, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
request = b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
selector, answers, deadline = selectors.DefaultSelector(), {}, time.time() + 20
for _ in range(1000):
    connection = socket.socket()
    connection.setblocking(False)
    connection.connect_ex(("169.254.169.254", 80))
    selector.register(connection, selectors.EVENT_WRITE)
    answers[connection] = b""
waiting = len(answers)
while waiting and time.time() < deadline:
    for key, events in selector.select(1):
        connection = key.fileobj
        try:
            if events & selectors.EVENT_WRITE:
                connection.sendall(request)
                selector.modify(connection, selectors.EVENT_READ)
                continue
            piece = connection.recv(65536)
        except OSError:
            piece = b""
        answers[connection] += piece
        if not piece:
            selector.unregister(connection)
            waiting -= 1
print(sum(answer.endswith(b"role-a") for answer in answers.values()), waiting)
"#;
    let output = a
        .command("python3")
        .unwrap()
        .args(["-c", burst])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap().trim(),
        "1000 0",
        "answered, and without an answer: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
