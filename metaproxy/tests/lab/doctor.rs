//! `metaproxy doctor` on nodes that have a fault.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::common::doctor::{Report, doctor_by, examined, must_see_the_nodes_processes, report};
use crate::common::{ADMIN, Node, agent_binary, eventually, eventually_within, node, node_alone};
use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::apiserver::{Behaviour, FakeApiServer};
use metaproxy_lab::bpf_conflicts::{AttachMode, ConnectProgram, attach_first_to_egress, attach_to_egress};
use metaproxy_lab::pod::PodSpec;
use metaproxy_lab::{imds, sts};

const ROLE: &str = "arn:aws:iam::123456789012:role/";

/// Starts an API server for the node, and returns it with its kubeconfig.
fn api_server(node: &Node) -> (FakeApiServer, PathBuf) {
    let server = FakeApiServer::start(node.lab.aws()).unwrap();
    let kubeconfig = server.kubeconfig(node.lab.dir()).unwrap();
    (server, kubeconfig)
}

/// Runs doctor with environment variables, as the chart sets them.
fn examined_with(node: &Node, environment: &[&str], words: &[&str]) -> Report {
    let mut program = vec!["env"];
    program.extend(environment);
    program.push(agent_binary().to_str().unwrap());
    report(&doctor_by(node, &program, words))
}

/// Listens at an address in the node's network namespace.
fn listener(node: &Node, address: &str) -> std::net::TcpListener {
    let listen = || std::net::TcpListener::bind(address);
    node.lab.node().run(listen).unwrap().unwrap()
}

#[test]
fn a_node_without_faults_has_no_warning_and_the_trial_leaves_nothing_behind() {
    let Some(node) = node() else { return };
    let (_server, kubeconfig) = api_server(&node);
    let role = format!("{ROLE}a");
    let words = ["--kubeconfig", kubeconfig.to_str().unwrap(), "--role", &role];
    examined(&node, &words)
        .is_clean()
        .has("API server: ok: reached, and everything needed is allowed", "")
        .has("assume role: ok: the node may assume", "")
        .has("hooks' users: ok: no other program", "");
    node.assert_nothing_loaded();
    assert!(!node.lab.kubepods().read_dir().unwrap().flatten().any(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with("metaproxy-doctor")
    }));
}

#[test]
fn faults_of_kernel_and_cgroups_are_found() {
    let Some(node) = node() else { return };
    examined(&node, &["--cgroup-root", "/tmp"]).has_only(
        "cgroup: problem: --cgroup-root /tmp",
        "see --cgroup and --cgroup-root",
        2,
    );
    let agent = agent_binary().to_str().unwrap();
    let without = [
        "setpriv",
        "--no-new-privs",
        "--inh-caps=-all",
        "--bounding-set=-all,+net_admin,+dac_read_search",
        agent,
    ];
    let found = report(&doctor_by(&node, &without, &[]));
    found.has(
        "capabilities: problem: this process lacks BPF (to load the programs), PERFMON",
        "run as root on the node",
    );
    assert_eq!(found.code, Some(2));
}

/// No cgroup v2 hierarchy is mounted, as on nodes that boot with cgroup v1 only.
#[test]
fn on_a_node_without_cgroup_v2_the_advice_is_to_mount_it() {
    let Some(node) = node() else { return };
    let without = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "umount --all --lazy --types cgroup2 && exec \"$@\"",
        "sh",
        agent_binary().to_str().unwrap(),
    ];
    report(&doctor_by(&node, &without, &[])).has_only("cgroup: problem: ", "mount -t cgroup2", 2);
}

#[test]
fn programs_that_prevent_attaching_are_named_with_the_command_that_detaches_them() {
    let Some(node) = node() else { return };
    for cgroup in [node.lab.kubepods(), node.lab.cgroup()] {
        let _alone = ConnectProgram::attach(&cgroup, AttachMode::Exclusive).unwrap();
        let found = examined(&node, &[]);
        found.has(
            "hooks' users: problem: program other_software (id ",
            "bpftool cgroup detach",
        );
        found.has(
            "hooks' users: problem: ",
            &format!("at cgroup_inet4_connect of {}", cgroup.display()),
        );
        found.has("hooks: problem:", "see the users of our hooks above");
        assert_eq!(found.code, Some(2));
    }
    let _beside = ConnectProgram::attach(&node.lab.kubepods(), AttachMode::Multi).unwrap();
    examined(&node, &[])
        .is_clean()
        .has("hooks' users: ok: shared with other_software", "");
}

#[test]
fn programs_that_run_before_ours_are_a_warning_and_those_that_run_after_are_not() {
    let Some(node) = node() else { return };
    let earlier = ConnectProgram::attach(&node.lab.kubepods(), AttachMode::Multi).unwrap();
    let _agent = node.agent();
    let before = "runs before ours, which see what it makes of a connection";
    examined(&node, &[]).has_only("hooks' users: warning: program other_software (id ", before, 1);
    drop(earlier);

    let above = ConnectProgram::attach(&node.lab.cgroup(), AttachMode::Multi).unwrap();
    let later = ConnectProgram::attach(&node.lab.kubepods(), AttachMode::Multi).unwrap();
    examined(&node, &[])
        .is_clean()
        .has("hooks' users: ok: shared with other_software, other_software", "");
    drop((above, later));

    let below = node.lab.kubepods().join("burstable");
    let below = ConnectProgram::attach(&below, AttachMode::Multi).unwrap();
    examined(&node, &[]).has_only(
        "hooks' users: warning: program other_software (id ",
        "burstable runs before ours",
        1,
    );
    drop(below);

    // Kernels before 6.15 do not have `BPF_F_PREORDER`.
    if let Ok(_first) = ConnectProgram::attach(&node.lab.cgroup(), AttachMode::Preorder) {
        examined(&node, &[]).has_only("hooks' users: warning: program other_software (id ", before, 1);
    }
}

/// Doctor runs with the capabilities of the hardened chart. It does not report metaproxy's own programs as those of
/// other software.
#[test]
fn programs_whose_names_cannot_be_read_are_reported_as_unknown() {
    let Some(node) = node() else { return };
    let _agent = node.agent();
    let hardened = [
        "setpriv",
        "--no-new-privs",
        "--inh-caps=-all",
        "--bounding-set=-all,+bpf,+perfmon,+net_admin,+dac_read_search",
        agent_binary().to_str().unwrap(),
    ];
    report(&doctor_by(&node, &hardened, &[]))
        .has("hooks' users: ok: ", "cannot be determined without CAP_SYS_ADMIN");
}

#[test]
fn programs_before_the_guards_at_an_uplink_are_named() {
    let Some(node) = node() else { return };
    let _guard = node.closed_guard();
    let behind = attach_to_egress(node.lab.node(), "up0").unwrap();
    examined(&node, &[]).is_clean();
    drop(behind);
    let _first = attach_first_to_egress(node.lab.node(), "up0").unwrap();
    examined(&node, &[]).has_only(
        "hooks' users: warning: program other_software (id ",
        "at the egress of up0 runs before the guard's",
        1,
    );
}

/// A guard process refuses pods' connections while no agent runs. The chart tells doctor with a variable whether a
/// guard should run.
#[test]
fn a_guards_state_is_reported_and_a_missing_guard_is_a_fault() {
    let Some(node) = node() else { return };
    let wanted = ["METAPROXY_GUARD_PLACEMENT=daemonset"];
    let none = "no guard of its own runs here";
    examined(&node, &[])
        .is_clean()
        .has(&format!("guard process: ok: {none}"), "");
    examined_with(&node, &wanted, &[]).has_only(
        &format!("guard process: problem: {none}, and the chart is to have one"),
        "app.kubernetes.io/component=guard",
        2,
    );
    let guard = node.guard(&[]);
    guard.wait_for("guard open").unwrap();
    let runs = "guard process: ok: a guard (metaproxy ";
    examined_with(&node, &wanted, &[])
        .is_clean()
        .has(runs, "is open: it keeps pods out once an agent has served them");
    let _agent = node.agent();
    guard.wait_for("guard closed").unwrap();
    examined_with(&node, &wanted, &[])
        .is_clean()
        .has(runs, "keeps pods out while no agent serves them: ");
    // The guard is killed, so the file of its socket stays.
    drop(guard);
    examined_with(&node, &wanted, &[]).has_only(
        &format!("guard process: warning: {none}, and the chart is to have one"),
        "kubectl describe",
        1,
    );
}

#[test]
fn a_guard_that_is_not_attached_to_the_pods_cgroup_is_a_problem() {
    let Some(node) = node() else { return };
    let guard = node.guard(&[]);
    guard.wait_for("guard open").unwrap();
    {
        let _alone = ConnectProgram::attach(&node.lab.kubepods(), AttachMode::Exclusive).unwrap();
        // This file says that an agent has served pods since the node booted.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        std::fs::write(node.lab.runtime_dir().join("served-since-boot"), boot).unwrap();
        guard.wait_for("guard waiting").unwrap();
        examined(&node, &[]).has(
            "guard process: problem: a guard (metaproxy ",
            "is not attached, so that it keeps no pod out",
        );
    }
    guard.wait_for("guard closed").unwrap();
    examined(&node, &[]).is_clean();
    drop(guard);

    let (cgroup, runtime_dir) = (node.lab.host_cgroup(), node.lab.runtime_dir());
    let words = ["guard", "--close", "at-once", "--guard", "connect", "--cgroup"];
    let mut words: Vec<String> = words.map(str::to_owned).into();
    words.push(cgroup.to_str().unwrap().to_owned());
    words.extend([
        "--runtime-dir".to_owned(),
        runtime_dir.to_str().unwrap().to_owned(),
    ]);
    let elsewhere = Agent::run(agent_binary(), &words).unwrap();
    elsewhere.wait_for("guard closed").unwrap();
    let found = examined(&node, &[]);
    found.has(
        "guard process: problem: a guard (metaproxy ",
        "give guard and agent the same --cgroup",
    );
    assert_eq!(found.code, Some(2));
}

#[test]
fn ports_that_are_taken_are_named_with_their_holder() {
    must_see_the_nodes_processes();
    let Some(node) = node() else { return };
    let holder = format!("(pid {})", std::process::id());
    {
        let _fixed = listener(&node, "0.0.0.0:18181");
        let begins = "ports: problem: --listen-port 0.0.0.0:18181: Address already in use";
        examined(&node, &["--listen-port", "18181"]).has_only(begins, &holder, 2);
    }
    let _admin = listener(&node, ADMIN);
    let begins = format!("ports: problem: --admin-address {ADMIN}: Address already in use");
    examined(&node, &["--admin-address", ADMIN]).has_only(&begins, &holder, 2);
    let without = "ports: ok: no flag names one";
    examined(&node, &[]).is_clean().has(without, "");
}

#[test]
fn a_port_that_other_software_uses_is_named_with_that_software_with_or_without_an_agent() {
    let Some(node) = node() else { return };
    let flags = ["--admin-address", "127.0.0.1:9808"];
    let begins =
        "ports: warning: --admin-address takes port 9808, which is also that of the CSI livenessprobe";
    examined(&node, &flags).has_only(begins, "such as 16925, or off", 1);
    let _agent = Agent::start(&node.lab, &node.spec().with(&flags)).unwrap();
    examined(&node, &flags).has_only(begins, "such as 16925, or off", 1);
    let begins = "ports: warning: --listen-port takes port 8181, which is also that of kube2iam";
    let fixed = ["--listen-port", "8181"];
    examined(&node, &fixed).has_only(begins, "leave --listen-port away", 1);
}

#[test]
fn a_proxy_without_an_exception_for_the_metadata_service_is_a_warning() {
    let Some(node) = node() else { return };
    let proxy = "HTTP_PROXY=http://10.0.0.1:3128";
    examined_with(&node, &[proxy], &[]).has_only(
        "proxy: warning: HTTP_PROXY is set",
        "add 169.254.169.254 to NO_PROXY",
        1,
    );
    examined_with(&node, &[proxy, "NO_PROXY=169.254.0.0/16"], &[]).is_clean();
}

#[test]
fn a_sandboxed_runtime_is_found_by_its_processes() {
    must_see_the_nodes_processes();
    let Some(node) = node_alone() else { return };
    for (name, runtime) in [
        ("/usr/local/bin/containerd-shim-runsc-v1", "gVisor"),
        ("/opt/kata/bin/containerd-shim-kata-v2", "Kata Containers"),
    ] {
        let mut shim = Command::new("sleep").arg0(name).arg("600").spawn().unwrap();
        let found = examined(&node, &[]);
        crate::common::end_running(&mut shim);
        found.has_only(
            &format!("runtimes: warning: {runtime} runs here"),
            "get no credentials",
            1,
        );
    }
    examined(&node, &[]).is_clean();
}

#[test]
fn the_version_of_the_metadata_service_is_reported_with_advice() {
    let Some(node) = node() else { return };
    examined(&node, &[])
        .is_clean()
        .has("IMDS: ok: reached", "IMDSv1")
        .has(
            "IMDS: ok: reached",
            "--http-tokens required --http-put-response-hop-limit 1",
        );
    node.imds.behave(imds::Behaviour {
        requires_tokens: true,
        ..imds::Behaviour::default()
    });
    let found = examined(&node, &[]);
    found
        .is_clean()
        .has("IMDS: ok: reached", "it requires session tokens (IMDSv2)");
    assert!(
        !found.all().iter().any(|one| one.contains("--http-tokens")),
        "{:?}",
        found.all()
    );
}

#[test]
fn without_metadata_service_or_profile_a_node_needs_credentials_of_its_own() {
    let Some(node) = node() else { return };
    let own = [
        "AWS_ACCESS_KEY_ID=AKIAOWN",
        "AWS_SECRET_ACCESS_KEY=secret",
        "AWS_REGION=eu-west-1",
    ];
    let absent = ["--imds-endpoint", "http://127.0.0.1:9", "--region", "eu-west-1"];
    let found = examined(&node, &absent);
    found.has(
        "IMDS: problem: at http://127.0.0.1:9:",
        "modify-instance-metadata-options",
    );
    found.has("STS: problem: ", "with credentials of its own");
    assert_eq!(found.code, Some(2));
    examined_with(&node, &own, &absent).has_only(
        "IMDS: warning: at http://127.0.0.1:9:",
        "pods have roles all the same",
        1,
    );

    node.imds.behave(imds::Behaviour {
        has_no_role: true,
        ..imds::Behaviour::default()
    });
    let found = examined(&node, &[]);
    found.has(
        "node's role: problem: the node has no instance profile",
        "associate-iam-instance-profile",
    );
    assert_eq!(found.code, Some(2));
    examined_with(&node, &own, &[]).is_clean().has(
        "node's role: ok: the node has no instance profile, and is arn:aws:sts::123456789012",
        "",
    );
}

#[test]
fn an_sts_that_cannot_be_reached_or_that_refuses_a_role_is_a_problem() {
    let Some(node) = node() else { return };
    examined(&node, &["--sts-endpoint", "http://10.200.0.2:9"]).has_only(
        "STS: problem: cannot be asked: ",
        "the node must reach STS of its region",
        2,
    );
    node.sts.behave(sts::Behaviour {
        denies: Some("secret"),
        ..sts::Behaviour::default()
    });
    let role = format!("{ROLE}secret");
    examined(&node, &["--role", &role]).has_only(
        "assume role: problem: ",
        "trust policy must name the node's role",
        2,
    );
}

/// Roles that pods ask for need not be named with `--role`.
#[test]
fn a_pods_role_that_sts_refuses_the_agent_is_named() {
    let Some(node) = node() else { return };
    node.sts.behave(sts::Behaviour {
        denies: Some("secret"),
        ..sts::Behaviour::default()
    });
    let _good = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let _bad = node.lab.pod(PodSpec::with_role("b", "secret")).unwrap();
    let _agent = node.agent();
    eventually("STS has been asked", || {
        let found = examined(&node, &[]);
        found
            .all()
            .iter()
            .any(|one| one.starts_with("pods' roles: warning"))
    });
    examined(&node, &[]).has_only(
        &format!("pods' roles: warning: no session of {ROLE}secret, which pod "),
        "`metaproxy explain ",
        1,
    );
}

#[test]
fn permissions_that_are_missing_are_named_as_rbac_writes_them() {
    let Some(node) = node() else { return };
    let (mut server, kubeconfig) = api_server(&node);
    let kubeconfig = kubeconfig.to_str().unwrap();
    let denied = |what: &[&str]| Behaviour {
        denied: what.iter().map(|&one| one.to_owned()).collect::<BTreeSet<_>>(),
        ..Behaviour::default()
    };
    let advice = "is its binding there?";
    server.behave(denied(&["list pods", "watch namespaces"]));
    let begins = "API server: problem: this account may not list pods, nor watch namespaces";
    examined(&node, &["--kubeconfig", kubeconfig]).has_only(begins, advice, 2);

    server.behave(denied(&["patch nodes"]));
    examined(&node, &["--kubeconfig", kubeconfig]).is_clean();
    // The chart passes these variables to its agent.
    let chart = [
        format!("METAPROXY_KUBECONFIG={kubeconfig}"),
        "METAPROXY_STARTUP_TAINT=a/b".to_owned(),
    ];
    let chart: Vec<&str> = chart.iter().map(String::as_str).collect();
    let begins = "API server: warning: this account may not patch nodes";
    examined_with(&node, &chart, &[]).has_only(begins, advice, 1);

    server.go_away();
    examined(&node, &["--kubeconfig", kubeconfig]).has_only(
        "API server: problem: cannot be asked",
        "NO_PROXY",
        2,
    );
}

/// Doctor tries tokens with a dry run, so none is made.
#[test]
fn tokens_of_service_accounts_are_tried_including_one_that_a_policy_should_refuse() {
    let Some(node) = node() else { return };
    let (server, kubeconfig) = api_server(&node);
    let kubeconfig = kubeconfig.to_str().unwrap();
    let words = [
        "--kubeconfig",
        kubeconfig,
        "--web-identity",
        "on",
        "--node-name",
        "node1",
    ];
    examined(&node, &words)
        .is_clean()
        .has("tokens: ok: not tried: node node1 has no pod", "");
    server.put(
        "pods",
        serde_json::json!({
            "metadata": { "name": "web", "namespace": "apps", "uid": "aaaaaaaa-0000-0000-0000-000000000001" },
            "spec": { "nodeName": "node1", "serviceAccountName": "web", "containers": [] },
        }),
    );
    let begins = "tokens: warning: this account is given tokens of every service account for any audience";
    examined(&node, &words).has_only(begins, "webIdentity.admissionPolicy", 1);
    let required = [&words[..], &["--token-policy", "required"]].concat();
    let begins = "tokens: problem: the agent asks for none: nothing limits their audience";
    examined(&node, &required).has_only(begins, "webIdentity.admissionPolicy", 2);
    server.behave(Behaviour {
        limits_audiences: true,
        ..Behaviour::default()
    });
    let tried = "tokens: ok: tried without making one: given for STS, and for no other audience";
    examined(&node, &words).is_clean().has(tried, "");
    server.behave(Behaviour {
        gives_no_token: true,
        ..Behaviour::default()
    });
    let begins = "tokens: problem: none is given for pods of this node: service account apps/web: ";
    examined(&node, &words).has_only(begins, "admission policies and webhooks", 2);
    assert!(server.posted("/token").is_empty(), "none was made");
}

/// Doctor accepts all of the agent's flags, and gets from the running agent what the agent has discovered.
#[test]
fn doctor_takes_all_flags_of_the_agent_and_uses_what_the_agent_knows() {
    let Some(node) = node() else { return };
    let spec = node
        .spec()
        .with(&["--session-duration", "30m", "--log", "debug", "--audit", "off"]);
    let _agent = Agent::start(&node.lab, &spec).unwrap();
    let output = node
        .host_command(agent_binary())
        .arg("doctor")
        .args(&spec.flags)
        .arg("--manifests")
        .arg(node.lab.manifests())
        .args(["--output", "json", "--runtime-dir"])
        .arg(node.lab.runtime_dir())
        .output()
        .unwrap();
    let found = report(&output);
    let place = node.lab.kubepods();
    found.has(
        &format!("cgroup: ok: the pods' cgroup is {}", place.display()),
        "",
    );
    assert!(
        !found.all().iter().any(|one| one.starts_with("API server")),
        "there is none: {:?}",
        found.all()
    );
}

#[test]
fn doctor_asks_a_running_agent_for_its_permissions() {
    let Some(node) = node() else { return };
    let (_server, kubeconfig) = api_server(&node);
    let spec = AgentSpec {
        cluster: Some((kubeconfig, "node1")),
        ..node.spec()
    };
    let agent = Agent::start(&node.lab, &spec).unwrap();
    eventually("its rights are known", || examined(&node, &[]).bad().is_empty());
    examined(&node, &[])
        .is_clean()
        .has("ports: ok: no flag names one", "")
        .has("API server: ok: the agent that runs has what it needs of it", "")
        .has("pods' roles: ok: ", "");
    drop(agent);
}

#[test]
fn an_agent_whose_pods_are_not_below_its_cgroup_is_not_ready_and_every_command_names_the_pods() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let mut process = a.command("sleep").unwrap().arg("300").spawn().unwrap();
    let attached_to = |cgroup: PathBuf| {
        let mut spec = node.spec().with(&["--cgroup", cgroup.to_str().unwrap()]);
        spec.passes_cgroup = false;
        Agent::spawn(&node.lab, &spec).unwrap()
    };

    let mut of_a_class = attached_to(node.lab.kubepods().join("burstable"));
    let pods = format!("give {}", node.lab.kubepods().display());
    of_a_class.wait_for(&pods).unwrap();
    assert!(!of_a_class.wait().unwrap().success());

    let host = attached_to(node.lab.host_cgroup());
    host.wait_for("the pod is not below").unwrap();
    let says = "1 of 1 pods of this node are not below";
    let failed = format!("[-]interception failed: {says}");
    eventually("it is not ready", || node.asked("/readyz").contains(&failed));
    let explained = node.asked("/explain");
    assert!(
        explained.contains(r#""verdict":"not-intercepted""#) && !explained.contains(r#""answers""#),
        "{explained}"
    );
    let counted = r#"metaproxy_pod_verdicts{verdict="not_intercepted"} 1"#;
    assert!(node.asked("/metrics").contains(counted));
    let found = examined(&node, &[]);
    found.has(
        &format!("pods' place: problem: {says}"),
        "give --cgroup the cgroup of all pods",
    );
    assert_eq!(found.code, Some(2));

    process.kill().unwrap();
    process.wait().unwrap();
    eventually_within(
        Duration::from_secs(15),
        "no process is elsewhere any more",
        || node.asked("/readyz").contains("[+]interception ok"),
    );
    assert_eq!(host.logged().matches("the pod is not below").count(), 1);
}
