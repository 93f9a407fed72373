//! Builds and starts the parts that serve pods' connections. An agent that only observes does not have them.

use std::sync::Arc;
use std::time::Duration;

use aya::maps::{HashMap as BpfMap, MapData, SkStorage};
use metaproxy_common::layout::{Arrival, FailureKey};
use tokio::sync::watch;
use tracing::info;

use super::context::Context;
use super::listening::{Listening, Setup};
use super::own_roles::DenyOwnRoles;
use super::tasks::{Supervised, Tasks};
use super::{Settings, StartError};
use crate::apiserver::token_trial::AudienceLimit;
use crate::credentials::AuditedIssuer;
use crate::credentials::network_env::NetworkEnv;
use crate::credentials::sts::Sts;
use crate::credentials::{Sessions, StsIssuer};
use crate::identify::refusals::{Refusals, follow_failures};
use crate::identify::{Acceptor, Identifier};
use crate::imds::RefusalReporter;
use crate::imds::server::Server;
use crate::imds::token::Tokens;
use crate::imds::{Connections, Handler, ImdsV1Policy, Parts, Passthrough, Phase};
use crate::intercept::guard::Guard;
use crate::intercept::listener::ListenerMarks;
use crate::intercept::programs::LiveConfig;
use crate::introspection;

/// How long connections are still accepted after the redirection has ended. Connections that were redirected just
/// before may still arrive.
const GRACE_PERIOD: Duration = Duration::from_millis(500);

/// How long open connections may remain open. Each one is closed after its next response.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a response that has begun may take after idle connections are closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The issuer of pods' sessions.
pub(super) type AgentIssuer = AuditedIssuer<DenyOwnRoles<StsIssuer>>;

/// The maps of the programs that carry and verify callers.
pub(super) struct CallerMaps {
    pub config: LiveConfig,
    pub arrivals: SkStorage<MapData, Arrival>,
    pub marks: ListenerMarks,
    pub failures: BpfMap<MapData, FailureKey, u64>,
}

/// The parts that intercept and serve pods' connections, before the listeners are open.
pub(super) struct Interception {
    pub sts: Sts,
    pub guard: Option<Guard>,
    pub limit: Option<AudienceLimit>,
    pub imds_v1: watch::Sender<ImdsV1Policy>,
    pub listeners: watch::Receiver<Vec<String>>,
    service: ServiceParts,
    setup: Setup<AgentIssuer>,
}

/// The parts of serving that the rest of the agent uses. Cheap to clone.
#[derive(Clone)]
pub(super) struct ServiceParts {
    pub server: Arc<Server<AgentIssuer>>,
    pub sessions: Sessions<AgentIssuer>,
    pub reporter: Arc<RefusalReporter>,
    phase: watch::Sender<Phase>,
}

/// Listeners that accept pods' connections.
pub(super) struct Serving {
    pub service: ServiceParts,
    pub listening: Supervised<Listening<AgentIssuer>>,
}

impl ServiceParts {
    /// Returns the state from which explanations and dry runs are computed.
    pub fn introspected(self) -> introspection::Serving<AgentIssuer> {
        introspection::Serving {
            sessions: self.sessions,
            handler: Arc::clone(self.server.connections().handler()),
            reporter: self.reporter,
        }
    }
}

impl Interception {
    /// Builds the parts. `own_cgroup` is the id of the agent's own cgroup.
    ///
    /// # Errors
    /// If STS cannot be set up, the key of session tokens cannot be opened, or the kernel refuses the guard.
    pub async fn build(
        settings: &Settings,
        context: &Context,
        maps: CallerMaps,
        own_cgroup: u64,
        guard: Option<Guard>,
        tasks: &mut Tasks,
    ) -> Result<Self, StartError> {
        let sts = Sts::connect(&settings.sts, &NetworkEnv::read()).await?;
        let CallerMaps {
            config,
            arrivals,
            marks,
            failures,
        } = maps;
        let refusals = Refusals::new(context.pods.clone());
        let failures = follow_failures(failures, Arc::clone(&context.cgroup), refusals.clone());
        tasks.spawn("handshake-failures", failures);
        let events = context.cluster.as_ref();
        let events = events.map(|cluster| cluster.report_events(tasks, context.pods.clone()));
        let reporter = Arc::new(RefusalReporter::new(events));
        let limit = settings.token_policy_required.then(AudienceLimit::default);
        let sessions = sessions(context, &sts, limit.clone());
        let imds_v1 = watch::Sender::new(settings.imds_v1);
        let phase = watch::Sender::new(Phase::Serving);
        let addresses = settings.addresses();
        let handler = handler(settings, context, sessions.clone(), imds_v1.subscribe())?;
        let connections =
            Connections::new(handler, Arc::clone(&reporter), phase.subscribe(), settings.limits);
        let (pods, cgroup) = (context.pods.clone(), Arc::clone(&context.cgroup));
        let identifier = Identifier::new(arrivals, own_cgroup, cgroup, pods);
        let acceptor = Acceptor::new(
            identifier,
            refusals,
            Arc::default(),
            settings.limits,
            addresses.clone(),
        );
        let server = Arc::new(Server::new(acceptor, connections, phase.subscribe()));
        let (shown, listeners) = watch::channel(Vec::new());
        let setup = Setup {
            server: Arc::clone(&server),
            marks,
            config,
            addresses,
            finds_addresses: settings.listen_addresses.is_empty(),
            port: settings.listen_port,
            pods: context.pods.clone(),
            pod_family: settings.pod_family,
            health: context.health.clone(),
            shown,
        };
        Ok(Self {
            sts,
            guard,
            limit,
            imds_v1,
            listeners,
            service: ServiceParts {
                server,
                sessions,
                reporter,
                phase,
            },
            setup,
        })
    }

    /// Opens the listeners and accepts from them. This must happen before any connection is redirected. Otherwise a
    /// connection could reach a listener from which the agent does not accept.
    ///
    /// # Errors
    /// If there is no listener, or the kernel refuses the programs' configuration.
    pub async fn listen(self) -> Result<Serving, StartError> {
        let listening = Listening::start(self.setup).await?;
        Ok(Serving {
            service: self.service,
            listening: Supervised::spawn("listeners", |stopped| listening.keep(stopped)),
        })
    }
}

/// Makes the handler of pods' requests.
///
/// # Errors
/// If the key of session tokens cannot be opened.
fn handler(
    settings: &Settings,
    context: &Context,
    sessions: Sessions<AgentIssuer>,
    imds_v1: watch::Receiver<ImdsV1Policy>,
) -> Result<Arc<Handler<AgentIssuer>>, StartError> {
    Ok(Arc::new(Handler::new(Parts {
        pods: context.pods.clone(),
        rules: context.rules.subscribe(),
        sessions,
        tokens: Tokens::open(&settings.runtime_dir)?,
        paths: settings.paths.clone(),
        passthrough: Passthrough::new(context.upstream.clone()),
        imds_v1,
    })))
}

/// Makes the session cache of pods. This makes no call.
fn sessions(context: &Context, sts: &Sts, limit: Option<AudienceLimit>) -> Sessions<AgentIssuer> {
    let api = context.cluster.as_ref().map(|cluster| cluster.api.clone());
    Sessions::new(AuditedIssuer {
        issuer: DenyOwnRoles {
            issuer: StsIssuer::new(sts.clone(), api, limit),
            rules: context.rules.subscribe(),
        },
        pods: context.pods.clone(),
        rules: context.rules.subscribe(),
    })
}

impl Serving {
    /// Serves open connections to their end. New connections are still accepted for [`GRACE_PERIOD`].
    ///
    /// # Errors
    /// Returns the error of the task that keeps the listeners.
    pub async fn drain(self) -> Result<(), StartError> {
        let Self { service, listening } = self;
        let mut listening = listening.stop().await?;
        let ServiceParts { server, phase, .. } = service;
        phase.send_replace(Phase::Draining);
        tokio::time::sleep(GRACE_PERIOD).await;
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, server.acceptor().all_closed()).await;
        phase.send_replace(Phase::Closing);
        listening.ended().await;
        if tokio::time::timeout(CLOSE_TIMEOUT, server.acceptor().all_closed())
            .await
            .is_err()
        {
            info!("some connections did not end in time and are cut off");
        }
        let counts = server.acceptor().counts();
        info!(
            served = counts.served,
            refused = counts.unidentified + counts.over_limit,
            "connections"
        );
        Ok(())
    }
}
