//! Reads the processes of this node from /proc.

use std::ffi::OsStr;

use procfs::process::all_processes;

use super::Finding;

/// The prefixes of the names of processes that run pods in a kernel of their own, with their runtimes.
const SANDBOXES: [(&str, &str); 4] = [
    ("runsc", "gVisor"),
    ("containerd-shim-runsc", "gVisor"),
    ("containerd-shim-kata", "Kata Containers"),
    ("firecracker", "Firecracker"),
];

/// The inode of the machine's first PID namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// The parts of a process that identify its software.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Process {
    /// The words of its command line.
    words: Vec<String>,
    /// The file that it runs, if this process may see it.
    program: Option<String>,
}

impl Process {
    fn of(process: &procfs::process::Process) -> Option<Self> {
        let program = process.exe().ok();
        let program = program.map(|path| path.to_string_lossy().into_owned());
        Self::new(process.cmdline().ok()?, program)
    }

    /// Makes a process from its command line. Returns `None` for kernel threads, which have no command line.
    pub(super) fn new(words: Vec<String>, program: Option<String>) -> Option<Self> {
        (!words.is_empty()).then_some(Self { words, program })
    }

    /// Makes a process from the words of its command line, as /proc shows them.
    #[cfg(test)]
    pub(super) fn with_words(words: &[&str]) -> Self {
        let words = words.iter().map(|&word| word.to_owned()).collect();
        Self { words, program: None }
    }

    /// Returns the name of the process and that of its file. They differ if a container's entry point is a link.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        // The kernel adds this suffix if the file has been replaced since.
        let program = self.program.as_deref();
        let program = program.map(|path| path.strip_suffix(" (deleted)").unwrap_or(path));
        let called = self.words.first().map(String::as_str);
        [called, program].into_iter().flatten().map(last_part)
    }

    /// Returns the words after its name.
    pub(super) fn arguments(&self) -> impl Iterator<Item = &str> {
        self.words.iter().skip(1).map(String::as_str)
    }
}

fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Reports whether all processes of the node are visible. They are not visible in a container without hostPID.
pub(super) fn sees_all() -> bool {
    let own = procfs::process::Process::myself().and_then(|process| process.namespaces());
    own.is_ok_and(|own| {
        let namespace = own.0.get(OsStr::new("pid"));
        namespace.is_some_and(|namespace| namespace.identifier == FIRST_PID_NAMESPACE)
    })
}

/// Returns all visible processes.
pub(super) fn all() -> Vec<Process> {
    let processes = all_processes().into_iter().flatten().flatten();
    processes.filter_map(|process| Process::of(&process)).collect()
}

/// Finds runtimes whose pods' connections pass no cgroup hook of the node.
pub(super) fn sandboxes() -> Vec<Finding> {
    const CHECK: &str = "runtimes";
    if !sees_all() {
        return vec![Finding::ok(
            CHECK,
            "cannot be determined in this container, which does not see the node's processes",
        )];
    }
    let processes = all();
    let mut found: Vec<&str> = processes.iter().filter_map(sandbox).collect();
    found.sort_unstable();
    found.dedup();
    if found.is_empty() {
        return vec![Finding::ok(CHECK, "no sandboxed runtime is running here")];
    }
    vec![Finding::warning(
        CHECK,
        format!(
            "{} runs here: its pods' connections are made in a kernel of their own",
            found.join(" and ")
        ),
        "they are not redirected, and get no credentials; a guard with packets keeps them from the node's (see \
         SECURITY.md#not-covered)",
    )]
}

/// Returns the runtime of a process.
fn sandbox(process: &Process) -> Option<&'static str> {
    let of = |name: &str| SANDBOXES.iter().find(|(process, _)| name.starts_with(process));
    process.names().find_map(of).map(|(_, runtime)| *runtime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(&["/usr/bin/containerd-shim-runc-v2", "-namespace", "k8s.io"], None)]
    #[case(&["/usr/local/bin/containerd-shim-runsc-v1", "-id"], Some("gVisor"))]
    #[case(&["runsc-sandbox", "boot"], Some("gVisor"))]
    #[case(&["/opt/kata/bin/containerd-shim-kata-v2"], Some("Kata Containers"))]
    fn the_usual_shim_of_containerd_is_no_sandbox(#[case] words: &[&str], #[case] want: Option<&str>) {
        assert_eq!(sandbox(&Process::with_words(words)), want);
    }

    #[test]
    fn a_process_is_recognized_by_its_name_and_by_its_file() {
        let process = Process {
            program: Some("/bin/kiam (deleted)".to_owned()),
            ..Process::with_words(&["/agent", "--port=8181"])
        };
        assert!(process.names().eq(["agent", "kiam"]));
        assert!(process.arguments().any(|word| word == "--port=8181"));
        assert_eq!(Process::new(Vec::new(), None), None, "a thread of the kernel");
    }
}
