//! Resources that run out on a node: space for the runtime directory, and descriptors. Pods are served meanwhile or
//! afterwards, without a restart.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::{agent_binary, counts, dial, eventually, node};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::PodSpec;
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;

/// A small file system. Dropping this value unmounts it.
struct Small(PathBuf);

impl Small {
    fn at(path: &Path) -> Self {
        fs::create_dir_all(path).unwrap();
        mount(
            Some("small"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=64k,mode=700"),
        )
        .unwrap();
        Self(path.to_owned())
    }

    /// Fills the file system completely, and returns the path of the file that fills it.
    fn fill(&self) -> PathBuf {
        use std::io::Write as _;
        let path = self.0.join("filler");
        let mut file = fs::File::create(&path).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount(&self.0);
    }
}

#[test]
fn pods_are_served_with_a_full_runtime_directory() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let small = Small::at(&node.lab.runtime_dir());
    let guard = Agent::guard(&node.lab, agent_binary(), &[]).unwrap();
    guard.wait_for("guard open").unwrap();
    let filler = small.fill();
    let agent = node.agent();
    assert_eq!(dial(&a, &["--count", "5"]), counts([("role-a", 5)]));
    for warning in [
        "pods' session tokens will end with this process",
        "guards on this node are not told that pods are served",
        "other versions of metaproxy on this node do not see this one",
    ] {
        agent.wait_for(warning).unwrap();
    }
    // The directory is full while a second agent starts beside the first one.
    let second = node.agent();
    agent.signal(Signal::SIGKILL).unwrap();
    drop(agent);
    assert_eq!(dial(&a, &["--count", "5"]), counts([("role-a", 5)]));
    fs::remove_file(filler).unwrap();
    guard.wait_for("guard closed").unwrap();
    assert_eq!(dial(&a, &["--count", "5"]), counts([("role-a", 5)]));
    drop((second, guard));
}

/// Opens 60 connections, and holds them until it is killed.
const HOLD: &str = r#"
import socket, time
held = []
while len(held) < 60:
    s = socket.socket(); s.settimeout(1)
    try: s.connect(("169.254.169.254", 80))
    except OSError: pass
    held.append(s)
print("held", flush=True)
time.sleep(60)
"#;

#[test]
fn an_agent_without_free_descriptors_serves_again_when_some_are_free() {
    use std::io::BufRead as _;
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let b = node.lab.pod(PodSpec::with_role("b", "role-b")).unwrap();
    let agent = node.agent();
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
    let open = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    let limited = Command::new("prlimit")
        .arg(format!("--pid={}", agent.pid()))
        .arg(format!("--nofile={}", open + 20))
        .status()
        .unwrap();
    assert!(limited.success());
    let mut holder = b
        .command("python3")
        .unwrap()
        .args(["-c", HOLD])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(holder.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "held\n");
    agent.wait_for("cannot accept a connection").unwrap();
    let got = dial(&a, &["--timeout", "500"]);
    assert!(
        !got.contains_key("node") && !got.contains_key("role-b"),
        "nothing, or its own: {got:?}"
    );
    crate::common::end_running(&mut holder);
    eventually("it serves again, though it has no more of them", || {
        dial(&a, &["--timeout", "900"]) == counts([("role-a", 1)])
    });
    assert_eq!(node.imds.seen_from_pods(), []);
}
