//! Runs `metaproxy doctor` and reads its findings.

use std::path::Path;
use std::process::Output;

use metaproxy_lab::sts::FakeSts;
use serde_json::Value;

use super::{Node, agent_binary};

/// The findings and the exit status.
pub struct Report {
    findings: Vec<Value>,
    pub code: Option<i32>,
}

/// Runs doctor on the lab's node through another program, such as `setpriv`.
pub fn doctor_by(node: &Node, program: &[&str], words: &[&str]) -> Output {
    let (program, before) = program.split_first().expect("a program");
    let given = |flag: &str| words.contains(&flag);
    let mut command = node.host_command(Path::new(program));
    command.args(before).arg("doctor").args(words);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.arg("--runtime-dir").arg(node.lab.runtime_dir());
    if !given("--cgroup") && !given("--cgroup-root") {
        command.arg("--cgroup").arg(node.lab.kubepods());
    }
    if !given("--sts-endpoint") {
        command.args(["--sts-endpoint", &FakeSts::url()]);
    }
    if !given("--fix-leftovers") {
        command.args(["--output", "json"]);
    }
    command.output().expect("doctor")
}

pub fn doctor(node: &Node, words: &[&str]) -> Output {
    doctor_by(node, &[agent_binary().to_str().expect("its path")], words)
}

/// Parses the findings from doctor's JSON output.
pub fn report(output: &Output) -> Report {
    let mut report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let Value::Array(findings) = report["findings"].take() else {
        panic!("no findings: {output:?}");
    };
    Report {
        findings,
        code: output.status.code(),
    }
}

pub fn examined(node: &Node, words: &[&str]) -> Report {
    report(&doctor(node, words))
}

/// Asserts that this process is in the initial PID namespace, in which it sees all processes of the machine.
#[track_caller]
pub fn must_see_the_nodes_processes() {
    use std::os::unix::fs::MetadataExt as _;
    // The inode number is PROC_PID_INIT_INO of include/linux/proc_ns.h.
    let inode = std::fs::metadata("/proc/self/ns/pid")
        .expect("a PID namespace")
        .ino();
    assert_eq!(
        inode, 0xEFFF_FFFC,
        "this test needs the host's PID namespace (docker run --pid=host): elsewhere doctor cannot tell what is in use"
    );
}

fn words(one: &Value) -> String {
    let text = |field: &str| one[field].as_str().unwrap_or_default();
    format!(
        "{}: {}: {} -> {}",
        text("check"),
        text("level"),
        text("says"),
        text("advice")
    )
}

impl Report {
    /// Returns all findings as `check: level: sentence -> advice`.
    pub fn all(&self) -> Vec<String> {
        self.findings.iter().map(words).collect()
    }

    /// Returns the findings that are not ok.
    pub fn bad(&self) -> Vec<String> {
        let bad = self.findings.iter().filter(|one| one["level"] != "ok");
        bad.map(words).collect()
    }

    /// Asserts that a finding begins with one text and contains another.
    #[track_caller]
    pub fn has(&self, begins: &str, advises: &str) -> &Self {
        let found = self.all().into_iter().find(|one| one.starts_with(begins));
        let found = found.unwrap_or_else(|| panic!("no `{begins}` in {:#?}", self.all()));
        assert!(found.contains(advises), "no `{advises}` in {found}");
        self
    }

    /// Asserts that there is such a finding, that all other findings are ok, and that the exit status is `code`.
    #[track_caller]
    pub fn has_only(&self, begins: &str, advises: &str, code: i32) {
        self.has(begins, advises);
        assert_eq!(self.bad().len(), 1, "{:#?}", self.bad());
        assert_eq!(self.code, Some(code));
    }

    #[track_caller]
    pub fn is_clean(&self) -> &Self {
        assert_eq!(self.bad(), Vec::<String>::new());
        assert_eq!(self.code, Some(0));
        self
    }
}
