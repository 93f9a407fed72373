//! Finds eBPF programs of other software at the same hooks, and reports those that conflict.

use std::io;
use std::path::Path;

use super::Finding;
use crate::intercept::bpf_conflicts::{self, AttachedProgram, Program};
use crate::intercept::link::Hook;

const CHECK: &str = "hooks' users";

/// Checks the pods' cgroup, the cgroups above it up to the root, the cgroups below it, and the uplinks.
pub(super) fn examine(pods: &Path, root: &Path) -> Vec<Finding> {
    found(pods, root).unwrap_or_else(|error| {
        vec![Finding::warning(
            CHECK,
            format!("who else is attached at our hooks cannot be asked: {error}"),
            "root may ask",
        )]
    })
}

/// Finds a program that keeps metaproxy's from being attached to a cgroup.
pub(super) fn keeping_out(cgroup: &Path, root: &Path) -> Option<Finding> {
    let all = bpf_conflicts::up_to(cgroup, root).ok()?;
    all.iter()
        .find(|one| !one.program.is_ours() && one.hook == Hook::SockOps && one.blocks(cgroup))
        .map(blocks)
}

fn found(pods: &Path, root: &Path) -> io::Result<Vec<Finding>> {
    let all = bpf_conflicts::up_to(pods, root)?;
    let others: Vec<&AttachedProgram> = all.iter().filter(|one| !one.program.is_ours()).collect();
    let blocking: Vec<Finding> = others
        .iter()
        .filter(|one| one.blocks(pods))
        .map(|one| blocks(one))
        .collect();
    if !blocking.is_empty() {
        return Ok(blocking);
    }
    if others.iter().any(|one| one.program.name.is_none()) {
        return Ok(vec![Finding::ok(
            CHECK,
            format!(
                "{} programs are attached at our hooks, and none keeps ours out; which are ours cannot be determined without \
                 CAP_SYS_ADMIN, which reads their names",
                others.len()
            ),
        )]);
    }
    let mut findings: Vec<Finding> = bpf_conflicts::before_ours(pods, &all)?
        .iter()
        .map(precedes)
        .collect();
    findings.extend(
        bpf_conflicts::before_the_guard()
            .iter()
            .map(|(interface, program)| precedes_guard(interface, program)),
    );
    if findings.is_empty() {
        findings.push(beside(&others));
    }
    Ok(findings)
}

fn blocks(one: &AttachedProgram) -> Finding {
    let (cgroup, hook, id) = (one.cgroup.display(), one.hook_name(), one.program.id);
    Finding::problem(
        CHECK,
        format!("{one} allows no other program beside it, so ours cannot be attached"),
        format!(
            "let its owner (`bpftool cgroup tree {cgroup}`) attach it with BPF_F_ALLOW_MULTI or as a link; or detach it: \
             `bpftool cgroup detach {cgroup} {hook} id {id}`"
        ),
    )
}

fn precedes(one: &AttachedProgram) -> Finding {
    Finding::warning(
        CHECK,
        format!("{one} runs before ours, which see what it makes of a connection"),
        format!(
            "one that leaves connections to 169.254.169.254:80 alone does no harm (`bpftool prog dump xlated id {}` shows what it \
             does); else let its owner attach it to a cgroup above the pods', whose programs run after ours",
            one.program.id
        ),
    )
}

fn precedes_guard(interface: &str, program: &Program) -> Finding {
    Finding::warning(
        CHECK,
        format!(
            "{program} at the egress of {interface} runs before the guard's, and what it lets pass, passes"
        ),
        "restart the guard (or the agent's pod), which puts itself first; and let its owner attach it behind, or before \
         the guard starts",
    )
}

fn beside(others: &[&AttachedProgram]) -> Finding {
    let names: Vec<&str> = others
        .iter()
        .filter_map(|one| one.program.name.as_deref())
        .collect();
    Finding::ok(
        CHECK,
        if names.is_empty() {
            "no other program is attached at our hooks".to_owned()
        } else {
            format!("shared with {}, which leave room for ours", names.join(", "))
        },
    )
}
