//! Helpers for helm, kubectl, the image, and the node's processes.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub fn tool(name: &str) -> PathBuf {
    let path = root().join("target/kubernetes").join(name);
    assert!(
        path.exists(),
        "{} is missing: run `sudo cargo xtask setup`",
        path.display()
    );
    path
}

/// Returns name and tag of the image under test.
pub fn image() -> (String, String) {
    let name = std::env::var_os("METAPROXY_TEST_IMAGE").expect("METAPROXY_TEST_IMAGE");
    let name = name.to_string_lossy();
    let (name, tag) = name.rsplit_once(':').unwrap();
    (name.to_owned(), tag.to_owned())
}

/// Imports the image into the node's containerd with `ctr` in the kubelet's namespaces, or with a given command.
pub fn load_image() {
    let Some(archive) = std::env::var_os("METAPROXY_TEST_ARCHIVE") else {
        return;
    };
    let kubelet = process("kubelet").expect("a kubelet on this machine: these tests run on the node");
    let mut command = Command::new("nsenter");
    command
        .args(["--target", &kubelet.to_string(), "--mount", "--pid"])
        .args(["env", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
        .args(["ctr", "--namespace", "k8s.io", "images", "import", "-"])
        .stdin(fs::File::open(archive).unwrap());
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Returns a process with this name.
pub fn process(name: &str) -> Option<u32> {
    processes(name).next()
}

/// Returns the agent's process.
pub fn agent_process() -> Option<u32> {
    process_with_command("run")
}

/// Returns a guard's process.
pub fn guard_process() -> Option<u32> {
    process_with_command("guard")
}

fn process_with_command(command: &str) -> Option<u32> {
    metaproxy_processes().find(|pid| {
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split('\0').nth(1) == Some(command)
    })
}

/// Returns the processes of agents and guards of this cluster's node. They share its network namespace with this
/// process; another metaproxy on the same machine does not.
pub fn metaproxy_processes() -> impl Iterator<Item = u32> {
    let netns = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let own = netns("self");
    processes("metaproxy").filter(move |pid| netns(&pid.to_string()) == own)
}

/// Returns the processes of this machine with this name.
pub fn processes(name: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    entries.filter_map(move |entry| {
        let pid = entry.file_name().to_string_lossy().parse().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        (comm.trim() == name).then_some(pid)
    })
}

pub fn try_kubectl(words: &[&str]) -> Result<String, String> {
    let output = Command::new(tool("kubectl")).args(words).output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

pub fn kubectl(words: &[&str]) -> String {
    try_kubectl(words).unwrap_or_else(|error| panic!("kubectl {words:?}: {error}"))
}

pub fn kubectl_json(words: &[&str]) -> Value {
    let mut words = words.to_vec();
    words.extend(["--output", "json"]);
    serde_json::from_str(&kubectl(&words)).unwrap()
}

pub fn apply(manifests: &str) {
    let mut child = Command::new(tool("kubectl"))
        .args(["apply", "--filename", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(manifests.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Waits up to `limit` until a condition holds.
pub fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
