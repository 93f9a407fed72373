//! Builds and starts the agent's parts.
//!
//! [`Components::build`] makes the parts, and attaches nothing to the pods' cgroup. [`Components::start`] accepts
//! connections, attaches the programs and starts the tasks. It returns a [`Running`] agent, which is stopped step by
//! step: connections are drained after the redirection has ended, and the guard opens last. `--mode observe` has the
//! same parts except for [`Interception`].

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use metaproxy_common::layout::{Config, Destination};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::context::Context;
use super::interception::{AgentIssuer, CallerMaps, Interception, ServiceParts, Serving};
use super::metrics::AgentMetrics;
use super::observe::{self, Observer};
use super::reconcile::{Reconciler, desired_state};
use super::report::{self, agent_info};
use super::stopping::{Rest, Running};
use super::tasks::{Supervised, Tasks};
use super::{Mode, Settings, StartError, discovery};
use crate::admin::{Admin, AdminSocket, AdminThread, Owner};
use crate::apiserver::token_trial::AudienceLimit;
use crate::cgroups::OwnCgroup;
use crate::credentials::sts::Sts;
use crate::intercept::attachment::{Attachment, ListenerLink};
use crate::intercept::guard::{self, Guard, GuardCounters, GuardLevel, SwitchedGuard};
use crate::intercept::keep::keep;
use crate::intercept::object::ProgramsError;
use crate::intercept::placement::{Placement, PodFinder};
use crate::intercept::pod_maps::{ListedPods, PodMaps};
use crate::intercept::programs::{Counters, Maps, Programs};
use crate::introspection::{AgentInfo, LiveAgent, MetricSource};
use crate::runtime_dir::ServedMarker;

/// The parts of an agent, before any is started.
pub(super) struct Components {
    context: Context,
    traffic: Traffic,
    attachment: Attachment,
    listed: watch::Sender<ListedPods>,
    cgroup_roots: Vec<PathBuf>,
    counters: Arc<Counters>,
    info: AgentInfo,
    admin: AdminParts,
    tasks: Tasks,
}

/// How pods' connections are handled: intercepted or observed.
enum Traffic {
    Intercepted(Box<Interception>),
    Observed {
        observer: Box<Observer>,
        sts: Option<Sts>,
    },
}

/// The addresses at which the admin server listens.
struct AdminParts {
    socket: AdminSocket,
    listener: UnixListener,
    port: Option<SocketAddr>,
}

impl Components {
    /// Builds the parts.
    ///
    /// # Errors
    /// Returns the error that keeps the agent from starting.
    pub async fn build(settings: &Settings, node_netns: u64) -> Result<Self, StartError> {
        let locator = settings.locator()?;
        let cgroup_roots = locator.roots().to_vec();
        let (socket, listener) = AdminSocket::open(&settings.runtime_dir, Owner::Agent)?;
        let mut tasks = Tasks::default();
        let context = Context::open(settings, &mut tasks).await?;
        let (programs, maps) = load(&program_config(settings, node_netns))?;
        let Maps {
            config,
            arrivals,
            marks,
            failures,
            host_pods,
            pod_families,
            pods,
            observed,
            counters,
        } = maps;
        let (traffic, listener_link) = if settings.mode == Mode::Observe {
            let observer = Box::new(Observer::new(observed, &context));
            let sts = observe::sts(settings).await?;
            (Traffic::Observed { observer, sts }, None)
        } else {
            let own = OwnCgroup::find(&cgroup_roots)?;
            let own_id = own.id()?;
            let link = ListenerLink::attach(&programs, own)?;
            let maps = CallerMaps {
                config,
                arrivals,
                marks,
                failures,
            };
            let guard = Guard::load(settings.guard, node_netns, settings.locator()?).await?;
            let interception =
                Interception::build(settings, &context, maps, own_id, guard, &mut tasks).await?;
            (Traffic::Intercepted(Box::new(interception)), Some(link))
        };
        report::log_environment(settings, context.cluster.as_ref(), traffic.environment());
        let desired = desired_state(&context.pods.borrow(), &context.rules.borrow(), &BTreeSet::new());
        let (listed, lists) = watch::channel(desired.listed);
        let attachment = Attachment::new(
            programs,
            locator,
            listener_link,
            Arc::clone(&context.cgroup),
            pods,
            PodMaps::new(host_pods, pod_families),
            lists,
        );
        Ok(Self {
            info: agent_info(settings, traffic.listeners()),
            admin: AdminParts {
                socket,
                listener,
                port: settings.admin,
            },
            counters: Arc::new(counters),
            context,
            traffic,
            attachment,
            listed,
            cgroup_roots,
            tasks,
        })
    }

    /// Starts the parts in a fixed order.
    ///
    /// # Errors
    /// Returns the error that keeps the agent from starting.
    pub async fn start(self, mark: ServedMarker) -> Result<Running, StartError> {
        let Self {
            context,
            traffic,
            mut attachment,
            listed,
            cgroup_roots,
            counters,
            info,
            admin,
            mut tasks,
        } = self;
        // The order matters: the agent accepts connections before any is redirected. The guard closes after that.
        let StartedTraffic {
            serving,
            guard,
            sts,
            limit,
        } = traffic.start(&context, &mut tasks).await?;
        let state = attachment.start()?;
        let (guard, guard_counters) = guard
            .map(|guard| start_guard(guard, &context, &mut tasks))
            .transpose()?
            .unzip();
        // The next parts show the agent to operators and the kubelet.
        let service = serving.as_ref().map(|serving| serving.service.clone());
        let metrics: Arc<dyn MetricSource> = Arc::new(AgentMetrics {
            counters,
            guard: guard_counters,
            pods: context.pods.clone(),
            service: service.clone(),
        });
        let (publish_placement, placement) = watch::channel(Arc::default());
        let finder = PodFinder::new(context.pods.clone(), Arc::clone(&context.cgroup), cgroup_roots);
        let introspection = live_agent(&context, &info, &metrics, service.clone(), placement.clone());
        let admin = admin.start(&context, &metrics, introspection, &mut tasks)?;
        // The next tasks follow the pods, the cluster and the node.
        if let Some(cluster) = &context.cluster {
            cluster.attend(
                &mut tasks,
                &context.rules.borrow(),
                limit,
                context.pods.clone(),
                &context.health,
            );
        }
        let reconciler = Reconciler {
            pods: context.pods.clone(),
            rules: context.rules.subscribe(),
            listed,
            service: service.map(|service| (service.sessions, service.reporter)),
        };
        tasks.spawn("reconcile", reconciler.run());
        discovery::spawn(&context, sts, &mut tasks);
        tasks.spawn("placement", finder.run(publish_placement));
        let (states, changes) = watch::channel(state);
        let reporting = report::report_interception(changes, placement, context.health.clone());
        tasks.spawn("interception-health", reporting);
        let readiness_log = report::spawn_readiness(&context, info.listeners, mark, &mut tasks);
        let attachment = Supervised::spawn("attachment", |stopped| async move {
            Ok(keep(attachment, states, stopped).await)
        });
        Ok(Running {
            attachment,
            serving,
            readiness_log,
            rest: Rest {
                context,
                metrics,
                guard,
                tasks,
                admin,
            },
        })
    }
}

/// Builds the introspection of the running agent, which operators query.
fn live_agent(
    context: &Context,
    info: &AgentInfo,
    metrics: &Arc<dyn MetricSource>,
    service: Option<ServiceParts>,
    placement: watch::Receiver<Arc<Placement>>,
) -> LiveAgent<AgentIssuer> {
    LiveAgent {
        info: info.clone(),
        pods: context.pods.clone(),
        rules: context.rules.subscribe(),
        health: context.health.clone(),
        current: Arc::clone(&context.cgroup),
        placement,
        metrics: Arc::clone(metrics),
        serving: service.map(ServiceParts::introspected),
    }
}

/// The parts that the start of serving or observing returns to the agent.
#[derive(Default)]
struct StartedTraffic {
    serving: Option<Serving>,
    guard: Option<Guard>,
    /// The STS client that finds the account of roles' names and the agent's own role. `None` if neither needs a
    /// call.
    sts: Option<Sts>,
    limit: Option<AudienceLimit>,
}

impl Traffic {
    /// Returns the STS client and the guard level for the log.
    fn environment(&self) -> (Option<&Sts>, Option<GuardLevel>) {
        match self {
            Self::Intercepted(interception) => {
                let guard = interception.guard.as_ref().map(Guard::level);
                (Some(&interception.sts), guard)
            }
            Self::Observed { .. } => (None, None),
        }
    }

    /// Returns the addresses of the listeners. There are none while pods are only observed.
    fn listeners(&self) -> watch::Receiver<Vec<String>> {
        match self {
            Self::Intercepted(interception) => interception.listeners.clone(),
            Self::Observed { .. } => watch::channel(Vec::new()).1,
        }
    }

    async fn start(self, context: &Context, tasks: &mut Tasks) -> Result<StartedTraffic, StartError> {
        match self {
            Self::Intercepted(mut interception) => {
                let policy = discovery::imds_v1(context.upstream.clone(), interception.imds_v1.clone());
                tasks.spawn("imds-v1", policy);
                Ok(StartedTraffic {
                    guard: interception.guard.take(),
                    sts: Some(interception.sts.clone()),
                    limit: interception.limit.clone(),
                    serving: Some(interception.listen().await?),
                })
            }
            Self::Observed { observer, sts } => {
                tasks.spawn("observer", observer.run());
                Ok(StartedTraffic {
                    sts,
                    ..StartedTraffic::default()
                })
            }
        }
    }
}

impl AdminParts {
    fn start(
        self,
        context: &Context,
        metrics: &Arc<dyn MetricSource>,
        introspection: LiveAgent<AgentIssuer>,
        tasks: &mut Tasks,
    ) -> Result<(AdminThread, AdminSocket), StartError> {
        let admin = Admin::new(
            Handle::current(),
            context.health.clone(),
            Arc::clone(metrics),
            Arc::new(introspection),
        );
        let (thread, end) = admin
            .start(self.listener, self.port)
            .map_err(StartError::AdminThread)?;
        tasks.spawn("admin", end);
        Ok((thread, self.socket))
    }
}

/// Closes the guard, at once if the pods' cgroup exists, so that the start fails here and not later.
fn start_guard(
    mut guard: Guard,
    context: &Context,
    tasks: &mut Tasks,
) -> Result<(Supervised<SwitchedGuard>, GuardCounters), StartError> {
    guard.close()?;
    let counters = guard.counters();
    let (states, changes) = watch::channel(guard.state(true));
    tasks.spawn(
        "guard-health",
        report::report_guard(changes, context.health.clone()),
    );
    tasks.spawn("guard-log", guard::report_dropped_packets(counters.clone()));
    let guard = guard.switched_by(watch::channel(true).1);
    let task = Supervised::spawn("guard", |stopped| async move {
        Ok(keep(guard, states, stopped).await)
    });
    Ok((task, counters))
}

/// Returns the initial configuration of the programs. They redirect no connection yet, or only record the cgroups
/// that connect.
fn program_config(settings: &Settings, node_netns: u64) -> Config {
    if settings.mode == Mode::Observe {
        return Config::observing(node_netns);
    }
    let rate = settings.limits.kernel_connection_rate();
    Config::imds(node_netns, Destination::NONE, rate)
}

fn load(config: &Config) -> Result<(Programs, Maps), ProgramsError> {
    #[cfg(feature = "ebpf-log")]
    {
        let (mut programs, maps) = Programs::load(config)?;
        programs.print_logs();
        Ok((programs, maps))
    }
    #[cfg(not(feature = "ebpf-log"))]
    Programs::load(config)
}
