//! Real clients while a fault occurs. The outcome must be the same as on an instance without metaproxy.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::common::clients::{Server, as_application, fixtures, in_pod, script, venv};
use crate::common::{Node, agent_binary, eventually, lab, node};
use metaproxy_lab::Lab;
use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::imds::{Behaviour, FakeImds};
use metaproxy_lab::pod::{Pod, PodSpec, command_in};
use metaproxy_lab::sts::Behaviour as StsBehaviour;

const ATTEMPTS: &str = "3";

/// The faults, each of which occurs once (`clients/faulty.py`).
const FAULTS: [&str; 10] = [
    "none",
    "token-slow",
    "token-500",
    "token-cut",
    "list-slow",
    "list-500",
    "list-cut",
    "document-slow",
    "document-500",
    "document-cut",
];

/// Returns the directory of the SDK for JavaScript's package.
fn javascript_sdk() -> PathBuf {
    let dir = std::env::var_os("METAPROXY_TEST_JAVASCRIPT").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/javascript"),
        PathBuf::from,
    );
    let sdk = dir.join("node_modules/@aws-sdk/client-sts");
    assert!(
        sdk.exists(),
        "{} is missing: run `sudo cargo xtask setup`",
        sdk.display()
    );
    sdk.canonicalize().unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Boto3,
    Cli,
    JavaScript,
}

/// The place in which a client runs: a pod, or the node, which uses its metadata service directly.
#[derive(Clone, Copy)]
enum Place<'a> {
    Pod(&'a Pod),
    Node,
}

impl Place<'_> {
    fn command(self, lab: &Lab, program: impl Into<PathBuf>) -> Command {
        let program = program.into();
        match self {
            Self::Pod(pod) => pod.command(program).unwrap(),
            Self::Node => command_in(&program, Some(&lab.host_cgroup()), lab.node().file()).unwrap(),
        }
    }
}

/// Runs a client several times while one fault occurs. Returns the ARN of each attempt, or `None` if the attempt
/// failed.
fn attempts(lab: &Lab, place: Place<'_>, client: Client, fault: &str, port: u16) -> Vec<Option<String>> {
    let log = lab.dir().join(format!("faults-{port}.log"));
    let mut faulty = place.command(lab, venv("python3"));
    let faulty = faulty
        .arg(script("faulty.py"))
        .arg(port.to_string())
        .arg(fault)
        .arg(&log)
        .env_clear()
        .spawn();
    let _faulty = Server(faulty.unwrap());
    let listens = || {
        let mut probe = place.command(lab, "bash");
        let probe = probe
            .args(["-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{port}")])
            .stderr(Stdio::null());
        probe.status().unwrap().success()
    };
    eventually("the fault is in place", listens);
    let endpoint = format!("http://127.0.0.1:{port}/");
    let run = |mut command: Command| {
        let command = command
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &endpoint)
            .stderr(Stdio::null());
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let outcomes = match client {
        Client::Boto3 => {
            let mut command = as_application(place.command(lab, venv("python3")), lab);
            command.arg(script("attempts.py")).arg(ATTEMPTS);
            serde_json::from_str(&run(command)).unwrap()
        }
        Client::JavaScript => {
            let mut command = as_application(place.command(lab, "node"), lab);
            command
                .arg(script("attempts.mjs"))
                .arg(javascript_sdk())
                .arg(ATTEMPTS);
            serde_json::from_str(&run(command)).unwrap()
        }
        Client::Cli => (0..ATTEMPTS.parse().unwrap())
            .map(|_| {
                let mut command = as_application(place.command(lab, venv("aws")), lab);
                command.args(["sts", "get-caller-identity", "--query", "Arn", "--output", "text"]);
                Some(run(command).trim().to_owned()).filter(|arn| !arn.is_empty())
            })
            .collect(),
    };
    let hit = std::fs::read_to_string(&log).unwrap_or_default().lines().count();
    assert_eq!(hit, usize::from(fault != "none"), "{client:?}: {fault} happened");
    outcomes
}

/// The same client meets the same fault on the node without metaproxy and in a pod. It must fail and recover in the
/// same way.
#[test]
fn clients_recover_from_faults_as_they_would_without_metaproxy() {
    let Some(lab) = lab() else { return };
    let _moto = Server::moto(&lab);
    let keys = fixtures(&lab);
    let _imds = FakeImds::start(lab.aws(), keys).unwrap();
    let a = lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let spec = AgentSpec::new(agent_binary(), crate::common::clients::MOTO);
    let _agent = Agent::start(&lab, &spec).unwrap();
    std::thread::scope(|scope| {
        for (client, first_port) in [
            (Client::Boto3, 9100),
            (Client::Cli, 9200),
            (Client::JavaScript, 9300),
        ] {
            let (lab, a) = (&lab, &a);
            scope.spawn(move || {
                for (fault, port) in FAULTS.into_iter().zip(first_port..) {
                    let got = attempts(lab, Place::Pod(a), client, fault, port);
                    let without_us = attempts(lab, Place::Node, client, fault, port + 50);
                    println!("{client:?}, {fault}: {got:?}");
                    let own = "arn:aws:sts::123456789012:assumed-role/role-a/apps.a";
                    assert!(
                        got.iter().flatten().all(|arn| arn == own),
                        "{client:?}, {fault}: {got:?}"
                    );
                    assert_eq!(
                        got.last().unwrap().as_deref(),
                        Some(own),
                        "{client:?} recovers from {fault}"
                    );
                    let pattern = |outcomes: &[Option<String>]| {
                        outcomes.iter().map(Option::is_some).collect::<Vec<_>>()
                    };
                    assert_eq!(
                        pattern(&got),
                        pattern(&without_us),
                        "{client:?}, {fault}: as without us"
                    );
                }
            });
        }
    });
}

/// `refreshing.py` in a pod, and the lines that it prints.
struct Refreshing {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Refreshing {
    fn start(node: &Node, pod: &Pod) -> Self {
        let mut child = in_pod(pod, &node.lab, "python3")
            .arg(script("refreshing.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    /// Returns the lines of the next attempts.
    fn next(&self, count: usize) -> Vec<String> {
        (0..count)
            .map(|_| self.lines.recv_timeout(Duration::from_secs(20)).unwrap())
            .collect()
    }
}

impl Drop for Refreshing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Prepares a command of an application in a pod, and captures its standard output.
fn new_processes(node: &Node, pod: &Pod, program: &str, sts: &str) -> Command {
    let mut command = as_application(pod.command(program).unwrap(), &node.lab);
    command
        .env("AWS_ENDPOINT_URL", sts)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

#[test]
fn applications_notice_no_restart_and_recover_from_a_crash() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let keys = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "s")];
    let environment: Vec<_> = keys
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let spec = AgentSpec {
        environment,
        ..node.spec()
    }
    .with(&["--region", "us-east-1"]);
    // Without an agent, pods reach a metadata service that fails.
    node.imds.behave(Behaviour {
        always: Some(hyper::StatusCode::SERVICE_UNAVAILABLE),
        ..Behaviour::default()
    });
    let mut agent = Agent::start(&node.lab, &spec).unwrap();
    let boto3 = Refreshing::start(&node, &a);
    let attempts = boto3.next(5);
    assert_eq!(attempts.len(), 5);
    assert!(
        attempts.iter().all(|line| line.starts_with("role-a")),
        "{attempts:?}"
    );
    // New processes start all the time, and each requests credentials again.
    let sts = metaproxy_lab::sts::FakeSts::url();
    let mut javascript = new_processes(&node, &a, "node", &sts);
    javascript
        .arg(script("attempts.mjs"))
        .arg(javascript_sdk())
        .arg("400");
    let javascript = javascript.spawn().unwrap();
    let mut cli = new_processes(&node, &a, "bash", &sts);
    let asking = format!(
        "for n in $(seq 12); do '{}' sts get-caller-identity --query Arn --output text || echo none; done",
        venv("aws").display()
    );
    let cli = cli.args(["-c", &asking]).spawn().unwrap();
    for _ in 0..5 {
        let next = Agent::start(&node.lab, &spec).unwrap();
        agent.stop().unwrap();
        agent = next;
        let attempts = boto3.next(10);
        assert!(
            attempts.iter().all(|line| line.starts_with("role-a")),
            "{attempts:?}"
        );
    }
    let javascript = javascript.wait_with_output().unwrap();
    assert!(javascript.status.success(), "{javascript:?}");
    let outcomes: Vec<Option<String>> = serde_json::from_slice(&javascript.stdout).unwrap();
    assert_eq!(outcomes.iter().flatten().count(), 400, "JavaScript");
    let cli = cli.wait_with_output().unwrap();
    assert!(cli.status.success(), "{cli:?}");
    let cli = String::from_utf8(cli.stdout).unwrap();
    assert_eq!(cli.matches("arn:aws:sts").count(), 12, "the CLI: {cli}");
    agent.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
    agent.wait().unwrap();
    eventually("it notices", || boto3.next(1) == ["none"]);
    let _agent = Agent::start(&node.lab, &spec).unwrap();
    eventually("it recovers", || boto3.next(1)[0].starts_with("role-a"));
    let attempts = boto3.next(5);
    assert_eq!(attempts.len(), 5);
    assert!(
        attempts.iter().all(|line| line.starts_with("role-a")),
        "{attempts:?}"
    );
}

/// botocore extends the expiry of credentials that expire soon, and uses them after they have expired.
#[test]
fn boto3_never_uses_credentials_for_longer_than_sts_allows() {
    let Some(node) = node() else { return };
    let believed = |life: u64, attempts: usize| {
        node.sts.behave(StsBehaviour {
            life: Some(Duration::from_secs(life * 60)),
            ..StsBehaviour::default()
        });
        let pod = node
            .lab
            .pod(PodSpec::with_role(
                Box::leak(format!("m{life}").into_boxed_str()),
                "role-a",
            ))
            .unwrap();
        let _agent = node.agent();
        let lines = Refreshing::start(&node, &pod).next(attempts);
        let beliefs = lines
            .iter()
            .map(|line| line.split(' ').nth(1).unwrap().parse::<f64>().unwrap());
        beliefs.fold(f64::MIN, f64::max)
    };
    // A session of one hour is served with a remaining life of at least 26 minutes (`credentials::cache`).
    for life in [26, 30, 45, 60] {
        let beyond = believed(life, 30);
        assert!(
            beyond <= 0.0,
            "with {life} minutes left boto3 believes in {beyond} s more"
        );
    }
    // The test can fail: with 12 minutes left, boto3 does extend the expiry.
    assert!(believed(12, 30) > 0.0);
}
