//! Builds, starts and stops the agent.
//!
//! The start has these steps: check the node, listen, attach the programs that identify callers, attach the programs
//! that redirect connections, report readiness. The stop has these steps: detach the programs that redirect, keep
//! accepting for a grace period, drain, detach the other programs, open the guard. If the process ends at any point,
//! the kernel detaches all programs, because their links are file descriptors of this process.

mod cluster;
mod components;
mod context;
mod discovery;
mod error;
mod interception;
mod listening;
mod metrics;
mod observe;
mod own_roles;
mod pod_source;
mod reconcile;
mod report;
mod role_log;
mod settings;
mod stopping;
mod tasks;

use std::pin::Pin;
use std::time::Duration;

use tracing::warn;

use self::components::Components;
pub use self::error::StartError;
pub use self::pod_source::PodSource;
pub use self::settings::{Mode, Settings};
use crate::guard::GUARD_AT_ONCE;
use crate::intercept::kernel;
use crate::runtime_dir::{Instance, ServedMarker, make_runtime_dir};
use crate::shutdown::stop_signal;

/// The shortest session duration that causes no warning. Half of it, 26 minutes, is more than botocore's window for
/// renewal of 25 minutes, which leaves a minute to renew the session.
const MIN_SOUND_DURATION: Duration = Duration::from_secs(52 * 60);

/// Runs the agent until SIGTERM or SIGINT, then drains it.
///
/// The future is boxed so that this crate compiles it together with the functions that it calls. Otherwise the
/// compiler generates the code in the binary crate, which polls the future. That code then calls small functions
/// across the crate boundary without inlining, which costs 1 to 4 % of the processor time of a cached answer.
pub fn run(settings: Settings) -> Pin<Box<dyn Future<Output = Result<(), StartError>>>> {
    Box::pin(serve(settings))
}

async fn serve(settings: Settings) -> Result<(), StartError> {
    // The signal handlers come first, so that no signal ends the process without draining.
    let stop = stop_signal()?;
    report::log_settings(&settings);
    kernel::check_version()?;
    kernel::raise_descriptor_limit();
    let node_netns = kernel::node_netns_cookie()?;
    make_runtime_dir(&settings.runtime_dir)?;
    let instance = Instance::register(&settings.runtime_dir, "agent")?;
    warn_of_settings(&settings, &instance);

    let components = Components::build(&settings, node_netns).await?;
    let mut agent = components.start(ServedMarker::of(&settings.runtime_dir)).await?;
    let failure = tokio::select! {
        () = stop => None,
        error = agent.failed() => Some(error),
    };
    if let Some(error) = failure {
        return Err(error);
    }
    agent.detach().await.drain().await?.close().await;
    drop(instance);
    Ok(())
}

/// Logs warnings about settings that are valid but probably not intended.
fn warn_of_settings(settings: &Settings, instance: &Instance) {
    if settings.mode == Mode::Observe {
        if instance.is_beside(&settings.runtime_dir, GUARD_AT_ONCE) {
            warn!(
                "a guard on this node closes at once, whatever an agent does (--close at-once): pods are kept from the node's \
                 metadata service though they are only observed. Stop it to see what they do"
            );
        }
    } else if settings.sts.duration < MIN_SOUND_DURATION {
        warn!(
            "--session-duration: botocore takes the end of credentials with less than 25 minutes left to be later than it \
             is; sessions of 52m and more always have that"
        );
    }
}
