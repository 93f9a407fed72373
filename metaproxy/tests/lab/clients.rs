//! Real clients in pods, configured with region and endpoints only. moto is STS and S3, and enforces IAM. The node's
//! credentials come from its metadata service, never from the environment.

use std::path::PathBuf;

use crate::common::clients::{MOTO, Server, fixtures, in_pod, json_of, script, venv};
use crate::common::{agent_binary, counts, dial, eventually, lab, node};
use metaproxy_lab::Lab;
use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::imds::FakeImds;
use metaproxy_lab::pod::{Pod, PodSpec, command_in};
use rstest::rstest;
use serde_json::{Value, json};

fn boto3(pod: &Pod, lab: &Lab) -> Value {
    json_of(in_pod(pod, lab, "python3").arg(script("pod.py")))
}

/// Runs the AWS CLI in a pod. Returns its standard output, or its standard error if it failed.
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
    // As a DaemonSet's pod, the agent is a hostNetwork pod in a cgroup below the pods' cgroup.
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

    // The annotation is removed, and added again.
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

    // The log contains no secret, even at level trace.
    let document = dial(
        &a,
        &["--path", "/latest/meta-data/iam/security-credentials/role-a"],
    );
    let document: Value = serde_json::from_str(document.keys().next().unwrap()).unwrap();
    let pods = ["SecretAccessKey", "Token"].map(|field| document[field].as_str().unwrap().to_owned());
    let said = agent.logged();
    assert!(said.contains("DEBUG") && said.contains("role-a"), "{said}");
    for secret in [&keys.1, &keys.2, &pods[0], &pods[1]] {
        assert!(
            secret.len() > 10 && !said.contains(secret.as_str()),
            "a secret was logged: {said}"
        );
    }
}

/// The AWS Common Runtime accepts session tokens of at most 64 characters (aws-c-auth), and fails if a token is
/// longer.
#[test]
fn the_common_runtime_of_aws_gets_its_pods_role() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let none = node.lab.pod(PodSpec::without_role("none")).unwrap();
    let _agent = Agent::start(&node.lab, &node.spec().with(&["--imds-v1", "deny"])).unwrap();
    let crt = |pod: &Pod| -> String { json_of(in_pod(pod, &node.lab, "python3").arg(script("crt.py"))) };
    let key = crt(&a);
    assert!(key.starts_with("ASIA"), "{key}");
    let without = crt(&none);
    assert!(without.starts_with("AWS_"), "an error of it: {without}");
}

/// Starts an STS behind TLS and a proxy (`clients/tls_sts.py`). Returns the server and the path of its CA bundle.
fn corporate_network(lab: &Lab) -> (Server, PathBuf) {
    let mut command = command_in(&venv("python3"), None, lab.aws().file()).unwrap();
    let server = command
        .arg(script("tls_sts.py"))
        .arg(lab.dir())
        .env_clear()
        .spawn();
    let server = Server(server.unwrap());
    let bundle = lab.dir().join("ca.pem");
    eventually("the proxy listens", || bundle.exists());
    (server, bundle)
}

fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// The SDK chooses the endpoint by region, partition, and its settings for FIPS and dual-stack. This project lists
/// endpoints in this test only.
#[test]
fn sts_is_called_at_the_endpoint_of_its_region_and_partition() {
    let Some(lab) = lab() else { return };
    let keys = ("AKIANODE".to_owned(), "secret".to_owned(), "token".to_owned());
    let _imds = FakeImds::start(lab.aws(), keys).unwrap();
    let _a = lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let (_server, bundle) = corporate_network(&lab);
    let log = lab.dir().join("proxy.log");
    type Settings = &'static [(&'static str, &'static str)];
    const FIPS: Settings = &[("AWS_USE_FIPS_ENDPOINT", "true")];
    const DUAL: Settings = &[("AWS_USE_DUALSTACK_ENDPOINT", "true")];
    let by_region: [(&str, Settings, &str); 12] = [
        ("us-east-1", &[], "sts.us-east-1.amazonaws.com"),
        ("eu-central-1", &[], "sts.eu-central-1.amazonaws.com"),
        ("cn-north-1", &[], "sts.cn-north-1.amazonaws.com.cn"),
        ("us-gov-west-1", &[], "sts.us-gov-west-1.amazonaws.com"),
        ("us-iso-east-1", &[], "sts.us-iso-east-1.c2s.ic.gov"),
        ("us-isob-east-1", &[], "sts.us-isob-east-1.sc2s.sgov.gov"),
        ("eusc-de-east-1", &[], "sts.eusc-de-east-1.amazonaws.eu"),
        ("us-east-1", FIPS, "sts-fips.us-east-1.amazonaws.com"),
        ("us-gov-west-1", FIPS, "sts.us-gov-west-1.amazonaws.com"),
        ("eu-west-1", DUAL, "sts.eu-west-1.api.aws"),
        (
            "eu-west-1",
            &[("AWS_ENDPOINT_URL_STS", "https://sts.example.com")],
            "sts.example.com",
        ),
        // Without the flag, the region comes from the environment.
        (
            "",
            &[("AWS_REGION", "ap-southeast-2")],
            "sts.ap-southeast-2.amazonaws.com",
        ),
    ];
    for (region, settings, host) in by_region {
        let network = [
            ("HTTPS_PROXY", "http://10.200.0.2:3128"),
            ("AWS_CA_BUNDLE", bundle.to_str().unwrap()),
        ];
        let flags: &[&str] = if region.is_empty() {
            &[]
        } else {
            &["--region", region]
        };
        let spec = AgentSpec {
            environment: environment(
                &[&network[..], settings, &[("METAPROXY_NAMESPACE_POLICY", "off")]].concat(),
            ),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..AgentSpec::new(agent_binary(), "")
        };
        let _ = std::fs::remove_file(&log);
        let _agent = Agent::start(&lab, &spec).unwrap();
        eventually("STS is asked", || log.exists());
        let asked = std::fs::read_to_string(&log).unwrap();
        assert!(
            asked.starts_with(&format!("CONNECT {host}:443 ")),
            "{region} {settings:?}: {asked}"
        );
    }
}

#[test]
fn sts_is_called_through_a_proxy_with_a_private_ca_and_the_metadata_service_directly() {
    let Some(lab) = lab() else { return };
    let keys = ("AKIANODE".to_owned(), "secret".to_owned(), "token".to_owned());
    let imds = FakeImds::start(lab.aws(), keys).unwrap();
    let a = lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let (_server, bundle) = corporate_network(&lab);
    let environment = environment(&[
        ("HTTPS_PROXY", "http://10.200.0.2:3128"),
        ("HTTP_PROXY", "http://10.200.0.2:9"),
        ("AWS_CA_BUNDLE", bundle.to_str().unwrap()),
    ]);
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
    // Without the bundle the agent does not trust the CA, and there is no session.
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

/// kubectl authenticates to EKS with a token that is a presigned call to STS. The answer to the call tells the
/// cluster the caller's identity.
#[test]
fn a_token_for_eks_from_a_pod_identifies_the_pods_role() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let Some(lab) = lab() else { return };
    let _moto = Server::moto(&lab);
    let imds = FakeImds::start(lab.aws(), fixtures(&lab)).unwrap();
    let a = lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let _agent = Agent::start(&lab, &AgentSpec::new(agent_binary(), MOTO)).unwrap();
    let words = ["eks", "get-token", "--cluster-name", "lab"];
    // The cluster sends the presigned call, so its URL must have the real address of STS.
    let credential: Value = json_of(in_pod(&a, &lab, "aws").args(words).env_remove("AWS_ENDPOINT_URL"));
    let token = credential["status"]["token"].as_str().unwrap();
    let url = URL_SAFE_NO_PAD
        .decode(token.strip_prefix("k8s-aws-v1.").unwrap())
        .unwrap();
    let url = String::from_utf8(url).unwrap();
    assert!(
        url.contains("Action=GetCallerIdentity") && url.contains("x-k8s-aws-id"),
        "{url}"
    );
    // The cluster sends the call, so it is not sent from the pod. moto knows who signed such a URL, but cannot
    // enforce policies on it.
    let curl = |words: &[&str]| {
        let mut command = command_in("curl".as_ref(), None, lab.aws().file()).unwrap();
        command
            .args(["--silent", "--show-error"])
            .args(words)
            .output()
            .unwrap()
    };
    let unenforced = format!("{MOTO}/moto-api/reset-auth");
    curl(&[
        "--data",
        "1000",
        "--header",
        "Content-Type: text/plain",
        &unenforced,
    ]);
    let url = url.replace("https://sts.us-east-1.amazonaws.com", MOTO);
    // moto reads the service from a header only, so the credential is in a header too.
    let field = |name: &str| {
        url.split(['?', '&'])
            .find_map(|pair| pair.strip_prefix(name))
            .unwrap()
            .to_owned()
    };
    let credential = field("X-Amz-Credential=").replace("%2F", "/");
    let authorization = format!(
        "Authorization: AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature={}",
        field("X-Amz-Signature=")
    );
    let answer = curl(&["--header", "x-k8s-aws-id: lab", "--header", &authorization, &url]);
    let answer = String::from_utf8([answer.stdout, answer.stderr].concat()).unwrap();
    assert!(
        answer.contains("<Arn>arn:aws:sts::123456789012:assumed-role/role-a/apps.a</Arn>"),
        "{url}: {answer}"
    );
    assert_eq!(imds.seen_from_pods(), []);
}
