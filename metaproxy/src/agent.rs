//! The agent: its parts, and its life from start to stop.
//!
//! Start: check, listen, attach what identifies, attach what redirects, ready. Stop: detach what redirects, go on
//! accepting for a grace period, drain, detach the rest, open the guard. If the process ends in between, the kernel
//! detaches everything: the links are file descriptors of this process.

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

/// The shortest session of which half is more than 25 minutes, botocore's window for renewal, with time to get there.
const MIN_SOUND_DURATION: Duration = Duration::from_secs(52 * 60);

/// Runs the agent until SIGTERM or SIGINT, then drains it.
///
/// The future is boxed so that it has one type, and is compiled in this crate in one piece with what it calls. What
/// only the binary polls would be compiled there, and would call back for every small function: 1 to 4 % of the
/// processor time of a cached answer.
pub fn run(settings: Settings) -> Pin<Box<dyn Future<Output = Result<(), StartError>>>> {
    Box::pin(serve(settings))
}

async fn serve(settings: Settings) -> Result<(), StartError> {
    // Before anything else, so that no signal ends the process without draining.
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

/// Logs warnings about settings that are valid and not what an operator wants.
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
