//! Checks the hooks by loading the programs of agent and guard, and attaching them to a cgroup without processes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use metaproxy_common::layout::{Config, Destination};
use metaproxy_common::rate::RateLimit;

use super::Finding;
use crate::admin::client;
use crate::intercept::guard::GuardMode;
use crate::intercept::guard::programs::GuardPrograms;
use crate::intercept::kernel;
use crate::intercept::object::ProgramsError;
use crate::intercept::programs::Programs;

/// A cgroup below the pods' cgroup for trials. Dropping this value removes it.
struct Trial(PathBuf);

impl Trial {
    fn new(below: &Path) -> std::io::Result<(Self, File)> {
        let path = below.join(format!("metaproxy-doctor-{}", std::process::id()));
        fs::create_dir(&path)?;
        let trial = Self(path);
        let dir = File::open(&trial.0)?;
        Ok((trial, dir))
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Loads and attaches the programs of agent and guard to a cgroup without processes.
pub(super) fn examine(pods: &Path, runtime_dir: &Path) -> Vec<Finding> {
    let (trial, dir) = match Trial::new(pods) {
        Ok(trial) => trial,
        // A container sees cgroups read-only. It needs no trial if programs are attached already.
        Err(_) if is_attached(runtime_dir) => {
            return vec![Finding::ok("hooks", "attached by the agent that runs here")];
        }
        Err(error) => {
            return vec![Finding::warning(
                "hooks",
                format!(
                    "cannot make a cgroup below {} to try them: {error}",
                    pods.display()
                ),
                "run it on the node itself, or as root in a container that sees the host's cgroups writable",
            )];
        }
    };
    let netns = match kernel::node_netns_cookie() {
        Ok(cookie) => cookie,
        Err(error) => {
            return vec![Finding::problem(
                "hooks",
                error.to_string(),
                "run it with hostNetwork, or on the node itself",
            )];
        }
    };
    let attached = Programs::load(&Config::observing(netns)).and_then(|_| {
        let (programs, _) = Programs::load(&Config::imds(netns, Destination::NONE, RateLimit::NONE))?;
        programs.attach(&dir)?;
        programs.attach_listener(&dir).map(drop)
    });
    let redirect = match attached {
        Ok(()) => Finding::ok("hooks", "what redirects and identifies loads and attaches"),
        Err(error) => refused("hooks", &error),
    };
    let guarded = GuardPrograms::load(GuardMode::Auto, netns).and_then(|guard| match guard {
        Some(guard) => Ok(guard.attach(&dir).map(|_| guard.level().to_string())?),
        None => Ok("nothing".to_owned()),
    });
    let guard = match guarded {
        Ok(way) => Finding::ok(
            "guard",
            format!(
                "one would load and attach here, and then: {way} (what runs is said under \"guard process\")"
            ),
        ),
        Err(error) => Finding::problem(
            "guard",
            error.to_string(),
            "see `--guard`, and the table of kernels in deploy/docs/guard.md#what-it-does",
        ),
    };
    drop(trial);
    vec![redirect, guard]
}

fn is_attached(runtime_dir: &Path) -> bool {
    client::status(runtime_dir).is_ok_and(|status| !status.attached.is_empty())
}

fn refused(check: &'static str, error: &ProgramsError) -> Finding {
    let advice = match error {
        ProgramsError::Occupied { .. } => "see the users of our hooks above",
        ProgramsError::NoObject => "build it with `cargo xtask build-ebpf`",
        _ => {
            "Linux 5.10 or newer with CONFIG_CGROUP_BPF, CONFIG_BPF_SYSCALL and CONFIG_DEBUG_INFO_BTF is needed, and no \
             lockdown in confidentiality mode"
        }
    };
    Finding::problem(check, error.to_string(), advice)
}
