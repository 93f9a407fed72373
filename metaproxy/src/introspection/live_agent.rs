//! Makes explanations and the status from the state of a running agent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::status::{AttachedLine, PodLine, Status};
use super::status_lines as lines;
use super::{DryRun, Introspection, MetricSource};
use crate::cgroups::CurrentPods;
use crate::credentials::{Issuer, SessionKey, SessionView, Sessions, timestamp};
use crate::explain::{Explanation, Subject, Verdict, short};
use crate::identify::refusals::RefusalCount;
use crate::imds::Handler;
use crate::imds::RefusalReporter;
use crate::intercept::own_links;
use crate::intercept::placement::Placement;
use crate::pods::{Inventory, Known, Pod, PodUid, Pods};
use crate::roles::{Decision, Reason, Rules};
use crate::telemetry::health::Health;

/// The age up to which the last refusal of a pod is shown as a hint.
const MAX_REFUSAL_AGE: Duration = Duration::from_secs(15 * 60);

/// The identity of a running agent.
#[derive(Clone, Debug)]
pub struct AgentInfo {
    /// The value of `--mode`.
    pub mode: &'static str,
    pub node: Option<String>,
    pub listeners: watch::Receiver<Vec<String>>,
    pub started: SystemTime,
    /// The value of `--assume-role-arn`.
    pub intermediate_role: Option<String>,
}

/// The state of a running agent, as far as it is shown.
pub struct LiveAgent<I> {
    pub info: AgentInfo,
    pub pods: Pods,
    pub rules: watch::Receiver<Arc<Rules>>,
    pub health: Health,
    pub current: CurrentPods,
    pub placement: watch::Receiver<Arc<Placement>>,
    pub metrics: Arc<dyn MetricSource>,
    /// The parts that serve pods. `None` while pods are only observed.
    pub serving: Option<Serving<I>>,
}

/// The parts that serve pods, as far as they are shown.
pub struct Serving<I> {
    pub sessions: Sessions<I>,
    pub handler: Arc<Handler<I>>,
    pub reporter: Arc<RefusalReporter>,
}

impl<I: Issuer> Introspection for LiveAgent<I> {
    fn explain(&self, wanted: Option<&str>) -> Vec<Explanation> {
        let inventory = Arc::clone(&self.pods.borrow());
        let rules = Arc::clone(&self.rules.borrow());
        // A finished pod needs no role any more, so it is explained only if it is requested by name.
        let is_wanted = |pod: &Arc<Pod>| match wanted {
            Some(wanted) => pod.to_string() == wanted,
            None => !pod.finished,
        };
        let mut found: Vec<Explanation> = pods_of(&inventory)
            .filter(is_wanted)
            .map(|pod| {
                let (mut one, decision) = self.explanation(&inventory, &rules, &pod);
                one.add_hints(&rules, &subject(&inventory, &pod), &decision);
                one.hints.extend(self.told_otherwise(&pod, &one.because));
                one.hints.extend(self.not_served(&pod));
                one
            })
            .collect();
        found.sort_by(|one, other| one.pod.cmp(&other.pod));
        found
    }

    fn dry_run(&self, of: &Explanation) -> DryRun<'_> {
        // The requests of a pod that is not intercepted do not arrive here.
        let comes_here = of.verdict != Verdict::NotIntercepted;
        let uid = of.uid.as_deref().filter(|_| comes_here);
        let uid = uid.and_then(|uid| uid.parse().ok());
        Box::pin(async move {
            match uid {
                Some(uid) => self.answers(&uid).await,
                None => Vec::new(),
            }
        })
    }

    fn node_name(&self) -> Option<&str> {
        self.info.node.as_deref()
    }

    fn verdicts(&self) -> BTreeMap<Verdict, u64> {
        let inventory = Arc::clone(&self.pods.borrow());
        let rules = Arc::clone(&self.rules.borrow());
        let mut verdicts = BTreeMap::new();
        for pod in pods_of(&inventory).filter(|pod| !pod.finished) {
            let verdict = if self.placement.borrow().not_intercepted(&pod.uid).is_some() {
                Verdict::NotIntercepted
            } else {
                let decision = rules.resolve(&inventory, caller_uid(&pod));
                Verdict::with(&decision, self.view(&decision).as_ref(), SystemTime::now())
            };
            *verdicts.entry(verdict).or_default() += 1;
        }
        verdicts
    }

    fn status(&self) -> Status {
        let inventory = Arc::clone(&self.pods.borrow());
        let rules = Arc::clone(&self.rules.borrow());
        let mut pods: Vec<PodLine> = pods_of(&inventory)
            .filter(|pod| !pod.finished)
            .map(|pod| self.explanation(&inventory, &rules, &pod).0)
            .filter(|one| one.verdict != Verdict::NoRole)
            .map(lines::pod)
            .collect();
        pods.sort_by(|one, other| one.pod.cmp(&other.pod));
        let current = self.current.read().ok().and_then(|current| current.clone());
        let cgroup = current.map(|pods| pods.path().display().to_string());
        let uptime = self.info.started.elapsed().unwrap_or_default();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: self.info.mode.to_owned(),
            node: self.info.node.clone(),
            pid: std::process::id(),
            started: timestamp(self.info.started),
            uptime_seconds: uptime.as_secs(),
            ready: self.health.is_ready(),
            parts: self.health.parts().into_iter().map(lines::part).collect(),
            listeners: self.info.listeners.borrow().clone(),
            attached: own_links::list()
                .into_iter()
                .map(|one| AttachedLine {
                    link: one.link,
                    program: one.program,
                    target: lines::target(one.target, cgroup.as_deref()),
                })
                .collect(),
            cgroup,
            pods,
            pods_known: inventory.len(),
            refused: self
                .metrics
                .refusals()
                .into_iter()
                .filter(|one| one.count > 0)
                .map(lines::refused)
                .collect(),
            counters: lines::counters(&*self.metrics),
        }
    }
}

impl<I: Issuer> LiveAgent<I> {
    /// Explains the decision about a pod, without hints.
    fn explanation(&self, inventory: &Inventory, rules: &Rules, pod: &Pod) -> (Explanation, Decision) {
        let decision = rules.resolve(inventory, caller_uid(pod));
        if let Decision::NoRole(reason @ Reason::Ambiguous { .. }) = &decision {
            return (Explanation::of_ambiguous(pod, reason), decision);
        }
        let mut one = Explanation::of(rules, &subject(inventory, pod), &decision);
        if let (Some(session), Some(intermediate_role)) = (&mut one.session, &self.info.intermediate_role)
            && session.assumed_by == crate::explain::NODE
        {
            session.assumed_by = format!("{intermediate_role}, which the node's role assumes first");
        }
        if self.serving.is_some() {
            one.add_credentials(&decision, self.view(&decision).as_ref(), SystemTime::now());
        }
        if let Some(why) = self.placement.borrow().not_intercepted(&pod.uid) {
            one.set_not_intercepted(why);
        }
        (one, decision)
    }

    /// Returns the state of the session of a granted role.
    fn view(&self, decision: &Decision) -> Option<SessionView> {
        let (Decision::Granted(grant), Some(serving)) = (decision, &self.serving) else {
            return None;
        };
        serving.sessions.view(&SessionKey::of_grant(grant))
    }

    /// Makes hints from the pod's connections that were refused before any request. They do not depend on the pod's
    /// role.
    fn not_served(&self, pod: &Pod) -> impl Iterator<Item = String> {
        let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
        let of_pod = move |one: &RefusalCount| one.count > 0 && one.pod == (namespace.clone(), name.clone());
        self.metrics.refusals().into_iter().filter(of_pod).map(|one| {
            format!(
                "{} of its connections were not served since the agent's start ({}): {}",
                one.count,
                one.kind.label(),
                one.kind.explanation()
            )
        })
    }

    /// Makes a hint from the last refusal that was sent to the pod, if the explanation differs from it. The refusal
    /// may be out of date, or may have gone to a connection that only claimed to be the pod's.
    fn told_otherwise(&self, pod: &Pod, because: &str) -> Option<String> {
        let last = self.serving.as_ref()?.reporter.last(caller_uid(pod));
        let (said, ago) = last.filter(|(said, ago)| said != because && *ago < MAX_REFUSAL_AGE)?;
        Some(format!(
            "{} ago it was told otherwise: {said}",
            short(ago.as_secs())
        ))
    }
}

/// Returns the UID by which the pod's processes are identified. The kubelet names a static pod's cgroup by its hash.
pub(super) fn caller_uid(pod: &Pod) -> &PodUid {
    pod.cgroup_uid()
}

fn subject<'a>(inventory: &'a Inventory, pod: &'a Pod) -> Subject<'a> {
    Subject {
        pod,
        namespace: inventory.namespace(&pod.namespace),
        account: inventory.service_account(pod),
    }
}

/// Lists each pod once.
fn pods_of(inventory: &Inventory) -> impl Iterator<Item = Arc<Pod>> {
    inventory.pods().flat_map(|(uid, known)| {
        let pods = match known {
            Known::Pod(pod) => vec![Arc::clone(pod)],
            Known::Ambiguous(pods) => pods.clone(),
        };
        // The inventory has a static pod under its hash too.
        let uid = uid.clone();
        pods.into_iter().filter(move |pod| pod.uid == uid)
    })
}
