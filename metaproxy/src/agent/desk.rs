//! What people are told: explanations and status, put together from what the agent knows at the moment of asking.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use http_body_util::{BodyExt as _, Either};
use hyper::StatusCode;
use metaproxy_common::layout::{Counter, GuardCounter};
use tokio::sync::watch;
use tracing::info;

use super::{Mode, Settings};
use crate::admin::{Desk, Explaining, Sources};
use crate::credentials::{Issuer, SessionKey, Sessions, View, timestamp};
use crate::explain::{AnswerLine, Explanation, Subject, Verdict};
use crate::health::{Condition, Health};
use crate::imds::server::Server;
use crate::imds::{Caller, in_words};
use crate::intercept::caller::CurrentPods;
use crate::intercept::inspect::{self, Target};
use crate::pods::{Inventory, Known, Pod, PodUid, Pods};
use crate::roles::{Decision, Reason, RoleArn, Rules, WrittenRole};
use crate::status::{AttachedLine, PartLine, PodLine, Status};

/// What stays the same for as long as an agent runs.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub mode: Mode,
    pub node: Option<String>,
    pub listeners: Vec<String>,
    pub started: SystemTime,
    /// `--assume-role-arn`
    pub through: Option<String>,
}

/// Where answers come from.
pub(super) struct Answers<I> {
    pub identity: Identity,
    pub pods: Pods,
    pub rules: watch::Receiver<Arc<Rules>>,
    pub health: Health,
    pub current: CurrentPods,
    pub figures: Arc<dyn Sources>,
    /// Where pods are served; nowhere while they are only observed.
    pub serving: Option<Serving<I>>,
}

/// What serves pods.
pub(super) struct Serving<I> {
    pub sessions: Sessions<I>,
    pub server: Arc<Server<I>>,
}

impl Identity {
    /// Of an agent with these settings, which starts now.
    pub fn of(settings: &Settings, listeners: Vec<String>) -> Self {
        Self {
            mode: settings.mode,
            node: settings.rules.sessions.node.clone(),
            listeners,
            started: SystemTime::now(),
            through: settings.sts.through.as_ref().map(ToString::to_string),
        }
    }
}

/// What the agent was told to do, in one line.
pub(super) fn tell_settings(settings: &Settings) {
    let on = |is_on: bool| if is_on { "on" } else { "off" };
    let rules = &settings.rules;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        mode = settings.mode.label(),
        node = rules.sessions.node.as_deref().unwrap_or("(not named)"),
        namespace_policy = if rules.namespaces.required {
            "required"
        } else {
            "off"
        },
        default_role = rules.default_role.as_ref().map_or("none", WrittenRole::name),
        web_identity = on(rules.web_identity),
        through = settings.sts.through.as_ref().map_or("nobody", RoleArn::as_str),
        "metaproxy starts"
    );
}

impl<I: Issuer> Desk for Answers<I> {
    fn explain(&self, wanted: Option<String>) -> Explaining<'_> {
        Box::pin(async move {
            let inventory = Arc::clone(&self.pods.borrow());
            let mut found = Vec::new();
            for (pod, is_alone) in pods_of(&inventory) {
                let name = pod.to_string();
                if wanted.as_ref().is_some_and(|wanted| *wanted != name) {
                    continue;
                }
                let (mut one, decision) = self.explanation(&inventory, &pod);
                let rules = Arc::clone(&self.rules.borrow());
                one.add_hints(&rules, &subject(&inventory, &pod), &decision);
                if is_alone && wanted.is_some() {
                    one.answers = self.answers(&pod).await;
                }
                found.push(one);
            }
            found.sort_by(|one, other| one.pod.cmp(&other.pod));
            found
        })
    }

    fn verdicts(&self) -> BTreeMap<Verdict, u64> {
        let inventory = Arc::clone(&self.pods.borrow());
        let rules = Arc::clone(&self.rules.borrow());
        let mut verdicts = BTreeMap::new();
        for (pod, _) in pods_of(&inventory) {
            let decision = rules.resolve(&inventory, caller_uid(&pod));
            let verdict = Verdict::with(&decision, self.view(&decision).as_ref(), SystemTime::now());
            *verdicts.entry(verdict).or_default() += 1;
        }
        verdicts
    }

    fn status(&self) -> Status {
        let inventory = Arc::clone(&self.pods.borrow());
        let mut pods: Vec<PodLine> = pods_of(&inventory)
            .map(|(pod, _)| self.explanation(&inventory, &pod).0)
            .filter(|one| one.verdict != Verdict::NoRole)
            .map(pod_line)
            .collect();
        pods.sort_by(|one, other| one.pod.cmp(&other.pod));
        let current = self.current.read().ok().and_then(|current| current.clone());
        let cgroup = current.map(|pods| pods.path().display().to_string());
        let uptime = self.identity.started.elapsed().unwrap_or_default();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: self.identity.mode.label().to_owned(),
            node: self.identity.node.clone(),
            pid: std::process::id(),
            started: timestamp(self.identity.started),
            uptime_seconds: uptime.as_secs(),
            ready: self.health.is_ready(),
            parts: self.health.parts().into_iter().map(part_line).collect(),
            listeners: self.identity.listeners.clone(),
            attached: inspect::attached()
                .into_iter()
                .map(|one| AttachedLine {
                    link: one.link,
                    program: one.program,
                    target: target(one.target, cgroup.as_deref()),
                })
                .collect(),
            cgroup,
            pods,
            pods_known: inventory.len(),
            counters: self.counters(),
        }
    }
}

impl<I: Issuer> Answers<I> {
    /// Why a pod gets what it gets, without hints.
    fn explanation(&self, inventory: &Inventory, pod: &Pod) -> (Explanation, Decision) {
        let rules = Arc::clone(&self.rules.borrow());
        let decision = rules.resolve(inventory, caller_uid(pod));
        if let Decision::NoRole(reason @ Reason::Ambiguous { .. }) = &decision {
            return (Explanation::of_ambiguous(pod, reason), decision);
        }
        let mut one = Explanation::of(&rules, &subject(inventory, pod), &decision);
        if let (Some(session), Some(through)) = (&mut one.session, &self.identity.through)
            && session.assumed_by == crate::explain::NODE
        {
            session.assumed_by = format!("{through}, which the node's role assumes first");
        }
        if self.serving.is_some() {
            one.add_credentials(&decision, self.view(&decision).as_ref(), SystemTime::now());
        }
        (one, decision)
    }

    /// What there is of the session that was granted.
    fn view(&self, decision: &Decision) -> Option<View> {
        let (Decision::Granted(grant), Some(serving)) = (decision, &self.serving) else {
            return None;
        };
        serving.sessions.view(&SessionKey::of_grant(grant))
    }

    /// What the pod is answered, by asking for it in its place. Nothing secret leaves here.
    async fn answers(&self, pod: &Pod) -> Vec<AnswerLine> {
        const LIST: &str = "/latest/meta-data/iam/security-credentials/";
        let Some(serving) = self.serving.as_ref().filter(|_| !pod.finished) else {
            return Vec::new();
        };
        // One after the other: whoever decides holds both, in another order.
        let inventory = Arc::clone(&self.pods.borrow());
        let rules = Arc::clone(&self.rules.borrow());
        if pod.host_network && !rules.intercepts_host_pod(pod, inventory.service_account(pod)) {
            return vec![AnswerLine {
                path: LIST.to_owned(),
                status: 200,
                says: "what the node's own metadata service says: a hostNetwork pod without a role is not intercepted"
                    .to_owned(),
            }];
        }
        let caller = Caller {
            uid: caller_uid(pod).clone(),
            address: pod
                .ips
                .first()
                .copied()
                .unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()),
        };
        let list = answered(serving, &caller, LIST.to_owned()).await;
        let role = Some(&list)
            .filter(|list| list.status == StatusCode::OK.as_u16())
            .map(|list| format!("{LIST}{}", list.says));
        let mut answers = vec![list];
        if let Some(path) = role {
            answers.push(answered(serving, &caller, path).await);
        }
        answers
    }

    fn counters(&self) -> BTreeMap<String, u64> {
        let figures = &self.figures;
        let counts = figures.connections();
        let mut all: BTreeMap<String, u64> = [
            ("connections served", counts.served),
            (
                "connections closed, as nobody can tell whose they are",
                counts.unidentified,
            ),
            ("connections closed, as their pod has too many", counts.over_limit),
            ("guard: packets dropped", figures.guard(GuardCounter::Packets)),
        ]
        .map(|(name, count)| (name.to_owned(), count))
        .into();
        all.extend(
            Counter::ALL
                .iter()
                .map(|counter| (format!("kernel: {}", counter.label()), figures.kernel(*counter))),
        );
        all
    }
}

/// The UID that its processes are known by: the kubelet makes a static pod's cgroup by its hash.
fn caller_uid(pod: &Pod) -> &PodUid {
    pod.static_uid.as_ref().unwrap_or(&pod.uid)
}

fn subject<'a>(inventory: &'a Inventory, pod: &'a Pod) -> Subject<'a> {
    Subject {
        pod,
        namespace: inventory.namespace(&pod.namespace),
        account: inventory.service_account(pod),
    }
}

/// Each pod once, and whether nobody else has its UID.
fn pods_of(inventory: &Inventory) -> impl Iterator<Item = (Arc<Pod>, bool)> {
    inventory.pods().flat_map(|(uid, known)| {
        let (pods, is_alone) = match known {
            Known::Pod(pod) => (vec![Arc::clone(pod)], true),
            Known::Ambiguous(pods) => (pods.clone(), false),
        };
        // A static pod is there by its hash too.
        let uid = uid.clone();
        pods.into_iter()
            .filter(move |pod| pod.uid == uid)
            .map(move |pod| (pod, is_alone))
    })
}

async fn answered<I: Issuer>(serving: &Serving<I>, caller: &Caller, path: String) -> AnswerLine {
    let answer = serving.server.rehearse(caller, &path).await;
    let status = answer.status();
    let says = match answer.into_body() {
        Either::Left(body) => match body.collect().await {
            Ok(body) => in_words(&body.to_bytes()),
            Err(never) => match never {},
        },
        Either::Right(_) => "what the node's metadata service says".to_owned(),
    };
    AnswerLine {
        path,
        status: status.as_u16(),
        says,
    }
}

fn pod_line(one: Explanation) -> PodLine {
    let credentials = one.credentials.as_ref();
    let said = credentials.and_then(|line| line.last_error.clone());
    PodLine {
        last_error: said.or_else(|| (one.verdict != Verdict::Granted).then(|| one.because.clone())),
        session_ends: credentials.and_then(|line| line.expires.clone()),
        seconds_left: credentials.and_then(|line| line.seconds_left),
        verdict: one.verdict.label().to_owned(),
        pod: one.pod,
        role: one.role,
    }
}

fn part_line((part, condition): (crate::health::Part, Condition)) -> PartLine {
    let (condition, detail) = match condition {
        Condition::Fine => ("ok", None),
        Condition::Degraded(detail) => ("degraded", Some(detail)),
        Condition::Failing(detail) => ("failed", Some(detail)),
    };
    PartLine {
        part: part.label().to_owned(),
        condition: condition.to_owned(),
        detail,
    }
}

fn target(target: Target, cgroup: Option<&str>) -> String {
    match target {
        Target::Cgroup(0) | Target::Interface(0) => "nothing any more".to_owned(),
        Target::Cgroup(id) => match cgroup {
            Some(path) if inode(path) == Some(id) => path.to_owned(),
            _ => format!("cgroup {id}"),
        },
        Target::Interface(index) => nix::net::if_::if_indextoname(index).map_or_else(
            |_| format!("interface {index}"),
            |name| format!("egress of {}", name.to_string_lossy()),
        ),
    }
}

/// A cgroup's id is its directory's inode.
fn inode(path: &str) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).ok().map(|dir| dir.ino())
}
