//! The wiring and the life cycle.
//!
//! Start: check, listen, attach what identifies, attach what redirects, ready. Stop: detach what redirects, go on
//! accepting for a grace period, drain, detach the rest, close. Whatever ends the process in between, the kernel
//! detaches everything: the links are file descriptors of this process.

mod cluster;
mod consequences;
mod desk;
mod discovery;
mod error;
mod listening;
mod observe;
mod own_roles;
mod report;
mod verdicts;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use metaproxy_common::layout::{Config, Counter, Destination};
use metaproxy_common::verdict::Family;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tracing::{debug, info, warn};

pub use self::cluster::PodSource;
use self::cluster::PodsHere;
use self::consequences::{consequences, follow};
use self::desk::{Answers, Identity, Serving};
pub use self::error::StartError;
use self::listening::{Listening, Setup};
use self::own_roles::NotOwn;
use self::report::{Figures, report, report_guard, tell, tell_guards, tell_surroundings};
use crate::admin::{Admin, AdminSocket, Owner, Sources};
use crate::apiserver::token_trial::AudienceLimit;
use crate::cgroups::{Locator, OwnCgroup};
use crate::credentials::network_env::NetworkEnv;
use crate::credentials::sts::{Sts, StsSettings};
use crate::credentials::{AuditedIssuer, Issuer, Sessions, StsIssuer};
use crate::guard::GUARD_AT_ONCE;
use crate::imds::path::Paths;
use crate::imds::server::Server;
use crate::imds::token::Tokens;
use crate::imds::upstream::{Endpoint, Upstream};
use crate::imds::{ImdsV1Policy, Limits, Parts, Passthrough, Phase, Service};
use crate::intercept::attachment::{Attachment, ListenerLink, State};
use crate::intercept::caller::{Callers, CurrentPods};
use crate::intercept::guard::{self, Guard, GuardCounters, GuardMode};
use crate::intercept::kernel;
use crate::intercept::listed::Lists;
use crate::intercept::listener::node_addresses;
use crate::intercept::object::ProgramsError;
use crate::intercept::placement::PodFinder;
use crate::intercept::programs::{Maps, Programs};
use crate::intercept::refusals::{Refusals, follow_failures};
use crate::roles::Rules;
use crate::runtime_dir::{Instance, ServedMarker, make_runtime_dir};
use crate::shutdown::stop_signal;
use crate::telemetry::health::{Condition, Health, Part};
use crate::telemetry::refusal_reporter::RefusalReporter;

/// After redirection has ended: connections that were redirected just before are still on their way.
const GRACE: Duration = Duration::from_millis(500);

/// For connections to end by themselves, each after its next answer.
const DRAIN: Duration = Duration::from_secs(3);

/// For answers that are being given when idle connections are closed.
const LAST: Duration = Duration::from_secs(2);

/// Sessions of which half is more than botocore's widest window of 25 minutes, and the way there.
const SOUND_DURATION: Duration = Duration::from_secs(52 * 60);

/// What pods get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Pods get their own roles, and nothing else of the node's credentials
    Enforce,
    /// Nothing is changed: pods reach the node's metadata service as without metaproxy, and what enforce would change is
    /// reported
    Observe,
    /// No roles are served; pods are only kept from the node's credentials
    Firewall,
}

impl Mode {
    /// As the flag has it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
            Self::Firewall => "firewall",
        }
    }
}

/// Everything that the command line decides.
#[derive(Debug)]
pub struct Settings {
    /// Where pods come from.
    pub pods: PodSource,
    /// What pods get.
    pub mode: Mode,
    /// What closes the ways round the redirection.
    pub guard: GuardMode,
    /// The pods' cgroup, where it is not to be found.
    pub cgroup: Option<PathBuf>,
    /// The cgroup2 mount, likewise.
    pub cgroup_root: Option<PathBuf>,
    /// Where to listen; empty for the node's addresses.
    pub listen_addresses: Vec<IpAddr>,
    /// 0 for a free port.
    pub listen_port: u16,
    /// The family of the pods' addresses while none is known.
    pub pod_family: Family,
    /// What decides about roles.
    pub rules: Rules,
    /// Whether tokens of service accounts are asked for only while a policy limits their audience.
    pub token_policy_required: bool,
    /// How STS is asked.
    pub sts: StsSettings,
    /// The node's metadata service.
    pub imds: Endpoint,
    /// What pods may see of the node's metadata.
    pub paths: Paths,
    /// Whether requests without session token are answered.
    pub imds_v1: ImdsV1Policy,
    /// What one pod may take.
    pub limits: Limits,
    /// Where health and metrics are answered, beside the socket.
    pub admin: Option<SocketAddr>,
    /// For the token key, what is known of pods, and the socket.
    pub runtime_dir: PathBuf,
}

/// Runs the agent until SIGTERM or SIGINT, then drains it.
///
/// Of one type, so that it is compiled in this crate, in one piece with what it calls: what only the binary polls would be
/// compiled there, and call back for every small function (1 to 4 % of the processor time of a cached answer).
pub fn run(settings: Settings) -> Pin<Box<dyn Future<Output = Result<(), StartError>>>> {
    Box::pin(serve(settings))
}

async fn serve(settings: Settings) -> Result<(), StartError> {
    // First of all, so that no signal is lost and none ends the process without draining.
    let stop = stop_signal()?;
    desk::tell_settings(&settings);

    kernel::check_version()?;
    kernel::raise_descriptor_limit();
    let node_netns = kernel::node_netns_cookie()?;
    let locator = || Locator::new(settings.cgroup_root.as_deref(), settings.cgroup.as_deref());
    make_runtime_dir(&settings.runtime_dir)?;
    let instance = Instance::register(&settings.runtime_dir, "agent")?;
    let mark = ServedMarker::of(&settings.runtime_dir);
    if settings.mode == Mode::Observe {
        if instance.is_beside(&settings.runtime_dir, GUARD_AT_ONCE) {
            warn!(
                "a guard on this node closes at once, whatever an agent does (--close at-once): pods are kept from the node's \
                 metadata service though they are only observed. Stop it to see what they do"
            );
        }
        return observe::run(settings, node_netns, mark, stop).await;
    }
    let (locator, guards_locator) = (locator()?, locator()?);
    let roots = locator.roots().to_vec();
    let tokens = Tokens::open(&settings.runtime_dir)?;
    let (socket, socket_listener) = AdminSocket::open(&settings.runtime_dir, Owner::Agent)?;
    let mut tasks = JoinSet::new();
    let source = PodsHere::open(&settings.pods, &settings.rules, &settings.runtime_dir).await?;
    let (health, cluster) = (source.health(), source.cluster());
    let pods = source.follow(&mut tasks).await;
    if settings.sts.duration < SOUND_DURATION {
        warn!(
            "--session-duration: botocore takes the end of credentials with less than 25 minutes left to be later than it \
             is; sessions of 52m and more always have that"
        );
    }
    let sts = Sts::connect(&settings.sts, &NetworkEnv::read()).await?;
    let upstream = Upstream::new(settings.imds.clone());

    let addresses = if settings.listen_addresses.is_empty() {
        node_addresses()
    } else {
        settings.listen_addresses.clone()
    };
    let rate = settings.limits.kernel_connection_rate();
    let (programs, maps) = load(&Config::imds(node_netns, Destination::NONE, rate))?;
    let own = OwnCgroup::find(locator.roots())?;
    let own_id = own.id()?;
    let listener_link = ListenerLink::attach(&programs, own)?;
    let (shown, listen) = watch::channel(Vec::new());
    let identity = Identity::of(&settings, listen.clone());

    let guard = Guard::load(settings.guard, node_netns, guards_locator).await?;
    tell_surroundings(&settings, cluster.as_ref(), Some(&sts), guard.as_ref());
    let current = CurrentPods::default();
    let counters = Arc::new(maps.counters);
    let callers = Callers::new(maps.arrivals, own_id, Arc::clone(&current), pods.clone());
    let refusals = Refusals::new(pods.clone());
    tasks.spawn(follow_failures(
        maps.failures,
        Arc::clone(&current),
        refusals.clone(),
    ));
    let rules = Arc::new(settings.rules);
    let (wanted, listed) = watch::channel(consequences(&pods.borrow(), &rules, &BTreeSet::new()).listed);
    let mut attachment = Attachment::new(
        programs,
        locator,
        Some(listener_link),
        current,
        maps.pods,
        Lists::new(maps.host_pods, maps.pod_families),
        listed,
    );

    let reporter = Arc::new(RefusalReporter::new(
        cluster
            .as_ref()
            .map(|cluster| cluster.tell_owners(&mut tasks, pods.clone())),
    ));
    let api = cluster.as_ref().map(|cluster| cluster.api.clone());
    let limit = settings.token_policy_required.then(AudienceLimit::default);
    let (publish_rules, rules) = watch::channel(rules);
    let sessions = Sessions::new(AuditedIssuer {
        issuer: NotOwn {
            issuer: StsIssuer::new(sts.clone(), api, limit.clone()),
            rules: rules.clone(),
        },
        pods: pods.clone(),
        rules: rules.clone(),
    });
    let (publish_imds_v1, imds_v1) = watch::channel(settings.imds_v1);
    let (phase, phases) = watch::channel(Phase::Serving);
    let service = Service::new(Parts {
        pods: pods.clone(),
        rules: rules.clone(),
        sessions: sessions.clone(),
        tokens,
        paths: settings.paths,
        passthrough: Passthrough::new(upstream.clone()),
        imds_v1,
        reporter: Arc::clone(&reporter),
    });
    let server = Arc::new(Server::new(
        callers,
        refusals,
        Arc::default(),
        service,
        phases,
        settings.limits,
        addresses.clone(),
    ));

    // Accepting before anything is redirected: no connection finds a listener from which none is accepted.
    let listening = Listening::start(Setup {
        server: Arc::clone(&server),
        marks: maps.marks,
        config: maps.config,
        addresses,
        finds_addresses: settings.listen_addresses.is_empty(),
        port: settings.listen_port,
        pods: pods.clone(),
        pod_family: settings.pod_family,
        health: health.clone(),
        shown,
    })
    .await?;
    let state = attachment.start()?;
    let (publish_placement, placement) = watch::channel(Arc::default());
    let finder = PodFinder::new(pods.clone(), attachment.pods(), roots);
    let guarding = guard
        .map(|guard| keep_guard(guard, &mut tasks, &health))
        .transpose()?;
    let (states, mut changes) = watch::channel(State::Waiting);
    let (stop_keeping, stopped) = oneshot::channel();
    let figures: Arc<dyn Sources> = Arc::new(Figures {
        server: Arc::clone(&server),
        counters: Arc::clone(&counters),
        guard: guarding.as_ref().map(|guarding| guarding.counters.clone()),
        pods: pods.clone(),
        sessions: sessions.clone(),
    });
    let desk = Answers {
        identity,
        pods: pods.clone(),
        rules: rules.clone(),
        health: health.clone(),
        current: attachment.pods(),
        placement: placement.clone(),
        figures: Arc::clone(&figures),
        serving: Some(Serving {
            sessions: sessions.clone(),
            answering: Arc::clone(&server) as _,
            reporter: Arc::clone(&reporter),
        }),
    };
    let admin = Admin::new(health.clone(), Arc::clone(&figures), Arc::new(desk));
    tasks.spawn(admin.clone().serve_socket(socket_listener));
    if let Some(address) = settings.admin {
        tasks.spawn(admin.serve(address));
    }
    if let Some(cluster) = &cluster {
        cluster.attend(&mut tasks, &rules.borrow(), limit, pods.clone(), &health);
    }
    tasks.spawn(follow(pods, rules, sessions, wanted, reporter));
    if settings.mode == Mode::Enforce {
        tasks.spawn(own_roles::discover(
            upstream.clone(),
            Some(sts.clone()),
            publish_rules.clone(),
        ));
        tasks.spawn(discovery::base_arn(upstream.clone(), sts, publish_rules));
    }
    tasks.spawn(discovery::imds_v1(upstream, publish_imds_v1));
    let mut keeping = tokio::spawn(attachment.keep(states.clone(), stopped));
    let (stop_listening, stopped) = oneshot::channel();
    let mut listening = tokio::spawn(listening.keep(stopped));
    states.send_replace(state);
    changes.mark_changed();
    tasks.spawn(finder.run(publish_placement));
    tasks.spawn(report(changes, placement, health.clone()));
    let telling = tasks.spawn(tell(health.clone(), listen));
    tasks.spawn(tell_guards(health.clone(), mark));

    // None of the tasks ends by itself. One that does has failed, and an agent of which a part is missing must not go
    // on as if it were whole: it ends, and is started again.
    tokio::select! {
        () = stop => {}
        _ = &mut keeping => return Err(StartError::TaskEnded("the one that keeps the programs attached")),
        _ = tasks.join_next() => return Err(StartError::TaskEnded("one of those beside interception")),
        ended = &mut listening => return Err(kept(ended).err().unwrap_or(LISTENING_ENDED)),
    }
    // That it is not ready any more is what was asked for, and no trouble.
    telling.abort();
    health.set(
        Part::Interception,
        Condition::Failing("the agent ends".to_owned()),
    );
    info!("stopping: new connections are no longer redirected; open ones are served to their end");
    let _ = stop_keeping.send(());
    let attachment = keeping.await;
    let _ = stop_listening.send(());
    let listening = kept(listening.await)?;
    drain(phase, listening, &server).await;
    drop(attachment);
    // The guard is the last to go: until here, what was not redirected any more was refused.
    drop((guarding, tasks, instance));
    drop(socket);
    info!(connections_served = figures.connections().served, "stopped");
    let kernel = Counter::ALL
        .iter()
        .map(|counter| format!("{}={}", counter.label(), figures.kernel(*counter)));
    debug!("counted in the kernel: {}", kernel.collect::<Vec<_>>().join(" "));
    Ok(())
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

/// A guard that is kept closed by a task of the agent.
struct Guarding {
    counters: GuardCounters,
    _close: watch::Sender<bool>,
}

/// Closes the guard, at once where the pods' cgroup exists, so that start-up fails here and not later.
fn keep_guard(mut guard: Guard, tasks: &mut JoinSet<()>, health: &Health) -> Result<Guarding, StartError> {
    guard.close()?;
    let counters = guard.counters();
    let (close, closed) = watch::channel(true);
    let (states, changes) = watch::channel(guard.state(true));
    tasks.spawn(report_guard(changes, health.clone()));
    tasks.spawn(guard::tell(counters.clone()));
    tasks.spawn(guard.keep(closed, states));
    Ok(Guarding {
        counters,
        _close: close,
    })
}

const LISTENING_ENDED: StartError = StartError::TaskEnded("the one that keeps the listeners");

fn kept<I>(ended: Result<Result<Listening<I>, StartError>, JoinError>) -> Result<Listening<I>, StartError> {
    ended.unwrap_or(Err(LISTENING_ENDED))
}

async fn drain<I: Issuer>(phase: watch::Sender<Phase>, mut listening: Listening<I>, server: &Server<I>) {
    phase.send_replace(Phase::Draining);
    tokio::time::sleep(GRACE).await;
    let _ = tokio::time::timeout(DRAIN, server.all_closed()).await;
    phase.send_replace(Phase::Closing);
    listening.ended().await;
    if tokio::time::timeout(LAST, server.all_closed()).await.is_err() {
        info!("some connections did not end in time and are cut off");
    }
    let counts = server.counts();
    info!(
        served = counts.served,
        refused = counts.unidentified + counts.over_limit,
        "connections"
    );
}
