//! Real clients in pods, with no configuration but region and endpoints, against a real STS and S3 (moto) that enforce
//! IAM. The node's credentials come from its metadata service, never from the environment.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::{agent_binary, counts, dial, eventually, lab};
use rstest::rstest;
use serde_json::{Value, json};
use xtask::lab::Lab;
use xtask::lab::agent::{Agent, AgentSpec};
use xtask::lab::imds::FakeImds;
use xtask::lab::pod::{Pod, PodSpec, command_in};

const MOTO: &str = "http://10.200.0.2:5000";

fn venv(program: &str) -> PathBuf {
    let venv = std::env::var_os("METAPROXY_TEST_VENV").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/venv"),
        PathBuf::from,
    );
    let path = venv.join("bin").join(program);
    assert!(
        path.exists(),
        "{} is missing: run `sudo cargo xtask setup`",
        path.display()
    );
    path
}

/// A server in AWS's namespace; dropping ends it.
struct Server(Child);

impl Server {
    fn moto(lab: &Lab) -> Self {
        let mut command = command_in(&venv("moto_server"), None, lab.aws().file()).unwrap();
        command
            .args(["-H", "10.200.0.2", "-p", "5000"])
            .env_clear()
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let moto = Self(command.spawn().unwrap());
        let start = std::time::Instant::now();
        while lab
            .aws()
            .run(|| std::net::TcpStream::connect("10.200.0.2:5000"))
            .unwrap()
            .is_err()
        {
            assert!(start.elapsed().as_secs() < 60, "moto does not start");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        moto
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(name)
}

/// Sets moto up; what it prints are the node's keys.
fn fixtures(lab: &Lab) -> (String, String, String) {
    let mut command = command_in(&venv("python3"), None, lab.aws().file()).unwrap();
    let output = command
        .arg(script("fixtures.py"))
        .arg(MOTO)
        .env_clear()
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn in_pod(pod: &Pod, lab: &Lab, program: &str) -> Command {
    let mut command = pod.command(venv(program)).unwrap();
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", lab.dir())
        .env("AWS_DEFAULT_REGION", "us-east-1")
        .env("AWS_ENDPOINT_URL", MOTO);
    command
}

fn boto3(pod: &Pod, lab: &Lab) -> Value {
    let output = in_pod(pod, lab, "python3")
        .arg(script("pod.py"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What the AWS CLI prints: its standard output, or else its last line of complaint.
fn aws(pod: &Pod, lab: &Lab, words: &[&str]) -> String {
    let output = in_pod(pod, lab, "aws")
        .args(words)
        .args(["--output", "text"])
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        text(&output.stdout)
    } else {
        text(&output.stderr)
    }
}

#[rstest]
#[case::agent_outside_the_pods_cgroup(false)]
#[case::agent_inside_the_pods_cgroup(true)]
fn each_pod_gets_its_own_role_and_no_other(#[case] inside: bool) {
    let Some(lab) = lab() else { return };
    let _moto = Server::moto(&lab);
    let keys = fixtures(&lab);
    let imds = FakeImds::start(lab.aws(), keys.clone()).unwrap();
    let a = lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let b = lab
        .pod(PodSpec::with_role("b", "arn:aws:iam::123456789012:role/role-b"))
        .unwrap();
    let c = lab.pod(PodSpec::without_role("c")).unwrap();
    // As a DaemonSet: a hostNetwork pod, in a cgroup of the pods'.
    let own = lab
        .pod(PodSpec {
            host_network: true,
            ..PodSpec::without_role("metaproxy")
        })
        .unwrap();
    let cgroup = inside.then(|| own.cgroup().to_owned());
    let spec = AgentSpec {
        cgroup,
        ..AgentSpec::new(agent_binary(), MOTO)
    };
    let agent = Agent::start(&lab, &spec.with(&["--log", "trace"])).unwrap();

    let identity = |letter| format!("arn:aws:sts::123456789012:assumed-role/role-{letter}/apps.{letter}");
    assert_eq!(
        boto3(&a, &lab),
        json!({"identity": identity("a"), "bucket-a": ["object-a"], "bucket-b": "AccessDenied"})
    );
    assert_eq!(
        boto3(&b, &lab),
        json!({"identity": identity("b"), "bucket-a": "AccessDenied", "bucket-b": ["object-b"]})
    );
    let nothing = "no credentials";
    assert_eq!(
        boto3(&c, &lab),
        json!({"identity": nothing, "bucket-a": nothing, "bucket-b": nothing})
    );

    let list = |pod, bucket| {
        aws(
            pod,
            &lab,
            &[
                "s3api",
                "list-objects-v2",
                "--bucket",
                bucket,
                "--query",
                "Contents[].Key",
            ],
        )
    };
    let who = |pod| aws(pod, &lab, &["sts", "get-caller-identity", "--query", "Arn"]);
    assert_eq!(
        (who(&a), list(&a, "bucket-a")),
        (identity("a"), "object-a".to_owned())
    );
    assert_eq!(
        (who(&b), list(&b, "bucket-b")),
        (identity("b"), "object-b".to_owned())
    );
    assert!(
        list(&a, "bucket-b").contains("AccessDenied"),
        "{}",
        list(&a, "bucket-b")
    );
    assert!(list(&b, "bucket-a").contains("AccessDenied"));
    assert!(who(&c).contains("Unable to locate credentials"), "{}", who(&c));

    // The annotation taken away, and put back.
    a.write_manifest(&[]).unwrap();
    eventually("the role is gone", || boto3(&a, &lab)["identity"] == nothing);
    a.write_manifest(&[("iam.amazonaws.com/role".to_owned(), "role-a".to_owned())])
        .unwrap();
    eventually("the role is back", || {
        boto3(&a, &lab)["bucket-a"] == json!(["object-a"])
    });

    assert_eq!(imds.seen_from_pods(), []);
    assert!(
        !imds.seen().is_empty(),
        "the agent had the node's credentials from here"
    );

    // The log holds nothing secret, although everything was logged.
    let document = dial(
        &a,
        &["--path", "/latest/meta-data/iam/security-credentials/role-a"],
    );
    let document: Value = serde_json::from_str(document.keys().next().unwrap()).unwrap();
    let pods = ["SecretAccessKey", "Token"].map(|field| document[field].as_str().unwrap().to_owned());
    let said = agent.said();
    assert!(said.contains("DEBUG") && said.contains("role-a"), "{said}");
    for secret in [&keys.1, &keys.2, &pods[0], &pods[1]] {
        assert!(
            secret.len() > 10 && !said.contains(secret.as_str()),
            "a secret was logged: {said}"
        );
    }
}

#[test]
fn sts_is_reached_through_a_proxy_and_by_a_private_ca_and_the_metadata_service_is_not() {
    let Some(lab) = lab() else { return };
    let keys = ("AKIANODE".to_owned(), "secret".to_owned(), "token".to_owned());
    let imds = FakeImds::start(lab.aws(), keys).unwrap();
    let a = lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let mut command = command_in(&venv("python3"), None, lab.aws().file()).unwrap();
    let _server = Server(
        command
            .arg(script("tls_sts.py"))
            .arg(lab.dir())
            .env_clear()
            .spawn()
            .unwrap(),
    );
    let bundle = lab.dir().join("ca.pem");
    eventually("the proxy listens", || bundle.exists());

    let environment = [
        ("HTTPS_PROXY", "http://10.200.0.2:3128"),
        ("HTTP_PROXY", "http://10.200.0.2:9"),
        ("AWS_CA_BUNDLE", bundle.to_str().unwrap()),
    ];
    let environment = environment
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    let spec = AgentSpec::new(agent_binary(), "https://sts.corporate.test:8443");
    let path = ["--path", "/latest/meta-data/iam/security-credentials/role-a"];
    {
        let _agent = Agent::start(
            &lab,
            &AgentSpec {
                environment: environment.clone(),
                ..spec.clone()
            },
        )
        .unwrap();
        eventually("the session is there", || {
            dial(&a, &path).keys().any(|answer| answer.contains("ASIATLS"))
        });
        let asked = std::fs::read_to_string(lab.dir().join("proxy.log")).unwrap();
        assert!(
            asked
                .lines()
                .all(|line| line.starts_with("CONNECT sts.corporate.test:8443 ")),
            "{asked}"
        );
        assert!(!imds.seen().is_empty());
    }
    // Without the bundle the CA is nobody's, and no session comes of it.
    let distrusting = environment
        .into_iter()
        .filter(|(name, _)| name != "AWS_CA_BUNDLE")
        .collect();
    let agent = Agent::start(
        &lab,
        &AgentSpec {
            environment: distrusting,
            ..spec
        },
    )
    .unwrap();
    agent.wait_for("no session").unwrap();
    assert_eq!(dial(&a, &path), counts([("status 503", 1)]));
}
