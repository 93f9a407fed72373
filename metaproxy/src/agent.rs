//! The wiring and the life cycle.
//!
//! Start: check, listen, attach what identifies, attach what redirects, ready. Stop: detach what redirects, go on
//! accepting for a grace period, drain, detach the rest, close. Whatever ends the process in between, the kernel
//! detaches everything: the links are file descriptors of this process.

mod cluster;
mod consequences;
mod discovery;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use metaproxy_common::layout::{Config, Counter};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

pub use self::cluster::PodSource;
use self::cluster::PodsHere;
use self::consequences::{consequences, follow};
use crate::admin::{self, Admin, AdminSocket, SocketError};
use crate::apiserver::ConnectError;
use crate::credentials::http::NetworkEnv;
use crate::credentials::sts::{Sts, StsError, StsSettings};
use crate::credentials::{Issuer, Principals, Sessions};
use crate::health::{Condition, Health, Part};
use crate::imds::path::Paths;
use crate::imds::server::{Phase, Server};
use crate::imds::token::{TokenKeyError, Tokens};
use crate::imds::upstream::{Endpoint, Upstream};
use crate::imds::{Parts, Passing, Service, Told, Version1};
use crate::intercept::attachment::{AttachError, Attachment, State};
use crate::intercept::caller::{Callers, CurrentPods};
use crate::intercept::cgroups::{CgroupError, Locator};
use crate::intercept::kernel::{self, KernelError};
use crate::intercept::listener::{ListenError, Listeners, PortChoice, node_addresses};
use crate::intercept::port::Avoid;
use crate::intercept::programs::{Counters, Maps, Programs, ProgramsError};
use crate::pods::Pods;
use crate::pods::manifests::ManifestsError;
use crate::roles::Rules;

/// After redirection has ended: connections that were redirected just before are still on their way.
const GRACE: Duration = Duration::from_millis(500);

/// For connections to end by themselves, each after its next answer.
const DRAIN: Duration = Duration::from_secs(3);

/// For answers that are being given when idle connections are closed.
const LAST: Duration = Duration::from_secs(2);

/// Sessions of which half is more than botocore can bear (`InstanceMetadataFetcher._evaluate_expiration`).
const SOUND_DURATION: Duration = Duration::from_secs(40 * 60);

/// Everything that the command line decides.
#[derive(Debug)]
pub struct Settings {
    /// Where pods come from.
    pub pods: PodSource,
    /// The pods' cgroup, where it is not to be found.
    pub cgroup: Option<PathBuf>,
    /// The cgroup2 mount, likewise.
    pub cgroup_root: Option<PathBuf>,
    /// Where to listen; empty for the node's addresses.
    pub listen_addresses: Vec<IpAddr>,
    /// 0 for a free port.
    pub listen_port: u16,
    /// What decides about roles.
    pub rules: Rules,
    /// How STS is asked.
    pub sts: StsSettings,
    /// The node's metadata service.
    pub imds: Endpoint,
    /// What pods may see of the node's metadata.
    pub paths: Paths,
    /// Whether requests without session token are answered.
    pub version1: Version1,
    /// Connections that one pod may have open.
    pub connections_per_pod: usize,
    /// Where health and metrics are answered, beside the socket.
    pub admin: Option<SocketAddr>,
    /// For the token key, what is known of pods, and the socket.
    pub runtime_dir: PathBuf,
}

/// Why the agent does not start, or does not go on. Nothing is attached then.
#[derive(Debug, Error)]
pub enum StartError {
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The cgroup tree.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The manifests.
    #[error(transparent)]
    Manifests(#[from] ManifestsError),
    /// The API server.
    #[error(transparent)]
    ApiServer(#[from] ConnectError),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The token key.
    #[error(transparent)]
    TokenKey(#[from] TokenKeyError),
    /// STS.
    #[error(transparent)]
    Sts(#[from] StsError),
    /// The listeners.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The programs.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// Attaching them.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A part of the agent is gone while it runs.
    #[error("a task of the agent has failed, {0}; it ends so that it can be started again whole")]
    TaskEnded(&'static str),
    /// Signals.
    #[error("cannot handle signals: {0}")]
    Signals(std::io::Error),
}

/// Runs the agent until SIGTERM or SIGINT, then drains it.
pub async fn run(settings: Settings) -> Result<(), StartError> {
    // First of all, so that no signal is lost and none ends the process without draining.
    let stop = stop_signal()?;

    kernel::check_version()?;
    kernel::raise_descriptor_limit();
    let node_netns = kernel::node_netns_cookie()?;
    let locator = Locator::new(settings.cgroup_root.as_deref(), settings.cgroup.as_deref())?;
    let tokens = Tokens::open(&settings.runtime_dir)?;
    let (socket, socket_listener) = AdminSocket::open(&settings.runtime_dir)?;
    let mut tasks = JoinSet::new();
    let source = PodsHere::open(&settings.pods, &settings.rules, &settings.runtime_dir).await?;
    let (health, cluster) = (source.health(), source.cluster());
    let pods = source.follow(&mut tasks).await;
    if settings.sts.duration < SOUND_DURATION {
        warn!(
            "--session-duration: botocore takes the end of credentials with less than 20 minutes left to be later than it \
             is; sessions of 40m and more always have that"
        );
    }
    let sts = Sts::connect(&settings.sts, &NetworkEnv::read()).await?;
    let upstream = Upstream::new(settings.imds);

    let choice = match settings.listen_port {
        0 => PortChoice::Free(Avoid::of_this_node(pods.borrow().host_ports())),
        port => PortChoice::Fixed(port),
    };
    let addresses = if settings.listen_addresses.is_empty() {
        node_addresses()
    } else {
        settings.listen_addresses
    };
    let listeners = Listeners::open(&addresses, &choice)?;
    let shown = listeners
        .addresses()
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",");

    let (programs, maps) = load(&Config::imds(node_netns, listeners.destination()))?;
    let current = CurrentPods::default();
    let counters = Arc::new(maps.counters);
    let callers = Callers::new(maps.flows, Arc::clone(&current));
    let rules = Arc::new(settings.rules);
    let (wanted, host_pods) =
        watch::channel(consequences(&pods.borrow(), &rules, &BTreeSet::new()).host_pods);
    let mut attachment = Attachment::new(programs, locator, current, maps.host_pods, host_pods);

    let told = Arc::new(Told::new(
        cluster
            .as_ref()
            .map(|cluster| cluster.tell_owners(&mut tasks, pods.clone())),
    ));
    let api = cluster.as_ref().map(|cluster| cluster.api.clone());
    let sessions = Sessions::new(Principals::new(sts.clone(), api));
    let (publish_rules, rules) = watch::channel(rules);
    let (publish_version1, version1) = watch::channel(settings.version1);
    let (phase, phases) = watch::channel(Phase::Serving);
    let service = Service::new(Parts {
        pods: pods.clone(),
        rules: rules.clone(),
        sessions: sessions.clone(),
        tokens,
        paths: settings.paths,
        passing: Passing::new(upstream.clone()),
        version1,
        told: Arc::clone(&told),
    });
    let server = Arc::new(Server::new(
        callers,
        service,
        phases,
        settings.connections_per_pod,
    ));

    // Accepting before anything is redirected: no connection finds a listener that nobody serves.
    let mut accepting: JoinSet<()> = listeners
        .into_sockets()
        .map(|(listener, address)| Arc::clone(&server).accept(listener, address))
        .collect();
    let state = attachment.start()?;
    let (states, mut changes) = watch::channel(State::Waiting);
    let (stop_keeping, stopped) = oneshot::channel();
    let admin = Admin::new(
        health.clone(),
        Arc::new(Figures {
            server: Arc::clone(&server),
            counters: Arc::clone(&counters),
            pods: pods.clone(),
        }),
    );
    tasks.spawn(admin.clone().serve_socket(socket_listener));
    if let Some(address) = settings.admin {
        tasks.spawn(admin.serve(address));
    }
    if let Some(cluster) = &cluster {
        cluster.attend(&mut tasks, &rules.borrow(), &health);
    }
    tasks.spawn(follow(pods, rules, sessions, wanted, told));
    tasks.spawn(discovery::base_arn(upstream.clone(), sts, publish_rules));
    tasks.spawn(discovery::version1(upstream, publish_version1));
    let mut keeping = tokio::spawn(attachment.keep(states.clone(), stopped));
    states.send_replace(state);
    changes.mark_changed();
    tasks.spawn(report(changes, health.clone()));
    tasks.spawn(tell(health.clone(), shown));

    // None of the tasks ends by itself. One that does has failed, and an agent of which a part is missing must not go
    // on as if it were whole: it ends, and is started again.
    tokio::select! {
        () = stop => {}
        _ = &mut keeping => return Err(StartError::TaskEnded("the one that keeps the programs attached")),
        _ = tasks.join_next() => return Err(StartError::TaskEnded("one that follows the pods")),
        _ = accepting.join_next() => return Err(StartError::TaskEnded("one that accepts connections")),
    }
    health.set(
        Part::Interception,
        Condition::Failing("the agent ends".to_owned()),
    );
    info!("stopping: new connections are no longer redirected; open ones are served to their end");
    let _ = stop_keeping.send(());
    let attachment = keeping.await;
    drain(phase, accepting, &server).await;
    drop(attachment);
    drop(socket);
    let counted: Vec<String> = Counter::ALL
        .iter()
        .map(|counter| format!("{}={}", counter.label(), counters.total(*counter)))
        .collect();
    info!("stopped; in the kernel: {}", counted.join(" "));
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

fn stop_signal() -> Result<impl Future<Output = ()>, StartError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Signals)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Says `ready` whenever pods begin to be served, and why they are not any more.
async fn tell(health: Health, listen: String) {
    loop {
        health.ready().await;
        info!(%listen, "ready");
        health.not_ready().await;
        let failing: Vec<String> = health
            .parts()
            .into_iter()
            .filter_map(|(part, condition)| match condition {
                Condition::Failing(why) => Some(format!("{}: {why}", part.label())),
                _ => None,
            })
            .collect();
        warn!("not ready: {}", failing.join("; "));
    }
}

/// Whether pods are intercepted.
async fn report(mut states: watch::Receiver<State>, health: Health) {
    while states.changed().await.is_ok() {
        let condition = match *states.borrow_and_update() {
            State::Attached => Condition::Fine,
            State::Waiting => {
                Condition::Failing("the pods' cgroup is not there, or cannot be attached to".to_owned())
            }
        };
        health.set(Part::Interception, condition);
    }
}

/// What the metrics are made of.
struct Figures<I> {
    server: Arc<Server<I>>,
    counters: Arc<Counters>,
    pods: Pods,
}

impl<I: Issuer> admin::Sources for Figures<I> {
    fn connections(&self) -> (u64, u64) {
        self.server.counts()
    }

    fn kernel(&self, counter: Counter) -> u64 {
        self.counters.total(counter)
    }

    fn pods(&self) -> usize {
        self.pods.borrow().len()
    }
}

async fn drain<I: Issuer>(phase: watch::Sender<Phase>, mut accepting: JoinSet<()>, server: &Server<I>) {
    phase.send_replace(Phase::Draining);
    tokio::time::sleep(GRACE).await;
    let _ = tokio::time::timeout(DRAIN, server.all_closed()).await;
    phase.send_replace(Phase::Closing);
    while accepting.join_next().await.is_some() {}
    if tokio::time::timeout(LAST, server.all_closed()).await.is_err() {
        info!("some connections did not end in time and are cut off");
    }
    let (served, refused) = server.counts();
    info!(served, refused, "connections");
}
