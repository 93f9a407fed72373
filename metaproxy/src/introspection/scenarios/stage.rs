//! Plays a scenario with all parts except for the kernel, the network and AWS.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hyper::Request;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::list::{Scenario, Sts};
use crate::admin::testing::NoMetrics;
use crate::captured_log::CapturedLog;
use crate::cgroups::CurrentPods;
use crate::cli::{Cli, Command};
use crate::credentials::{
    AuditedIssuer, IssuedCredentials, Issuer, MAX_SESSIONS_AT_ONCE, ObtainError, Session, SessionKey,
    Sessions,
};
use crate::explain::{AnswerLine, Explanation, Verdict};
use crate::identify::Client;
use crate::imds::RefusalReporter;
use crate::imds::handler::ANSWER_TIMEOUT;
use crate::imds::path::Paths;
use crate::imds::token::Tokens;
use crate::imds::upstream::Upstream;
use crate::imds::{Handler, ImdsV1Policy, Parts, Passthrough};
use crate::introspection::dry_run::{LIST, line};
use crate::introspection::{AgentInfo, Introspection as _, LiveAgent, Serving};
use crate::pods::{Inventory, Namespace, Pod, ServiceAccount};
use crate::roles::{Decision, OwnRole, OwnRoles, RoleId, Rules};
use crate::telemetry::health::Health;
use crate::telemetry::pod_event::{self, PodEvent};

const UID: &str = "aaaaaaaa-0000-0000-0000-000000000001";

/// The output of a scenario in all places.
pub struct Said {
    /// The pod's last answer.
    pub answer: AnswerLine,
    /// The event on the pod.
    pub event: Option<PodEvent>,
    /// The log, without times.
    pub log: String,
    /// The explanation. `None` if the pod is not known.
    pub explanation: Option<Explanation>,
    /// The verdicts in the metric, and in the table of all pods.
    pub verdicts: Vec<Verdict>,
}

/// Plays a scenario: the pod sends a request for each behaviour of STS, then operators ask.
pub async fn said(scenario: &Scenario) -> Said {
    let stage = Stage::set(scenario);
    let (log, guard) = CapturedLog::start(tracing::Level::DEBUG);
    if scenario.is_paced {
        stage.use_up_turns().await;
    }
    let mut answer = stage.ask(LIST).await;
    if answer.status == 200 {
        let role = format!("{LIST}{}", answer.says);
        for _ in &scenario.sts {
            answer = stage.ask(&role).await;
        }
    }
    drop(guard);
    let Stage {
        agent, mut events, ..
    } = stage;
    let mut found = agent.explain(Some("apps/web"));
    found.extend(agent.explain(Some("apps/w,b")));
    let counted = agent.verdicts().into_iter();
    let counted =
        counted.flat_map(|(verdict, count)| std::iter::repeat_n(verdict, usize::try_from(count).unwrap()));
    let verdicts = counted
        .chain(agent.explain(None).iter().map(|one| one.verdict))
        .collect();
    let mut explanation = found.pop();
    assert!(found.is_empty(), "one pod has the name");
    if let Some(one) = &mut explanation {
        let given = agent.dry_run(one).await;
        one.add_answers(given);
    }
    if let Some(serving) = &agent.serving {
        // Its sessions must not be renewed while the next scenario is played.
        serving.sessions.retain(&HashSet::new());
    }
    Said {
        answer,
        event: events.try_recv().ok(),
        log: log.lines().into_iter().map(|line| line + "\n").collect(),
        explanation,
        verdicts,
    }
}

type Audits = AuditedIssuer<Mutex<Vec<Sts>>>;

/// The parts that answer, and the client.
struct Stage {
    agent: LiveAgent<Audits>,
    handler: Arc<Handler<Audits>>,
    client: Client,
    events: mpsc::Receiver<PodEvent>,
    _published: (
        watch::Sender<Arc<Inventory>>,
        watch::Sender<Arc<Rules>>,
        watch::Sender<ImdsV1Policy>,
    ),
}

impl Stage {
    fn set(scenario: &Scenario) -> Self {
        let (publish_pods, pods) = watch::channel(Arc::new(inventory(scenario)));
        let (publish_rules, rules) = watch::channel(Arc::new(rules(scenario)));
        let (publish_imds_v1, imds_v1) = watch::channel(ImdsV1Policy::Allowed);
        let (owners, events) = pod_event::channel();
        let reporter = Arc::new(RefusalReporter::new(Some(owners)));
        let sessions = Sessions::new(AuditedIssuer {
            issuer: Mutex::new(scenario.sts.clone()),
            pods: pods.clone(),
            rules: rules.clone(),
        });
        let dir = tempfile::tempdir().unwrap();
        let handler = Arc::new(Handler::new(Parts {
            pods: pods.clone(),
            rules: rules.clone(),
            sessions: sessions.clone(),
            tokens: Tokens::open(dir.path()).unwrap(),
            paths: Paths::default(),
            passthrough: Passthrough::new(Upstream::new("http://127.0.0.1:9".parse().unwrap())),
            imds_v1,
        }));
        let agent = LiveAgent {
            info: AgentInfo {
                mode: "enforce",
                node: Some("n".to_owned()),
                listeners: watch::channel(Vec::new()).1,
                started: SystemTime::now(),
                intermediate_role: None,
            },
            pods,
            rules,
            health: Health::starting([]),
            current: CurrentPods::default(),
            placement: watch::channel(Arc::default()).1,
            metrics: Arc::new(NoMetrics),
            serving: Some(Serving {
                sessions,
                handler: Arc::clone(&handler),
                reporter,
            }),
        };
        Self {
            agent,
            handler,
            client: Client {
                uid: UID.parse().unwrap(),
            },
            events,
            _published: (publish_pods, publish_rules, publish_imds_v1),
        }
    }

    /// Requests as many sessions as the pod may have at once, each of another shape.
    async fn use_up_turns(&self) {
        let (pods, rules) = (
            self.agent.pods.borrow().clone(),
            self.agent.rules.borrow().clone(),
        );
        let Decision::Granted(grant) = rules.resolve(&pods, &self.client.uid) else {
            panic!("not granted");
        };
        for number in 0..MAX_SESSIONS_AT_ONCE {
            let mut key = SessionKey::of_grant(&grant);
            key.shape.external_id = Some(format!("id-{number}"));
            let sessions = &self.agent.serving.as_ref().unwrap().sessions;
            sessions.prefetch(&self.client.uid, &key);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// Sends a request of the pod.
    async fn ask(&self, path: &str) -> AnswerLine {
        let request = Request::get(path).body(()).unwrap();
        let deadline = tokio::time::Instant::now() + ANSWER_TIMEOUT;
        let answer = self.handler.answer(&self.client, &request, deadline).await;
        if let Some(reason) = answer.outcome.reason() {
            let reporter = &self.agent.serving.as_ref().unwrap().reporter;
            reporter.report(&self.client.uid, reason);
        }
        line(path.to_owned(), &answer.outcome)
    }
}

impl Issuer for Mutex<Vec<Sts>> {
    async fn issue(&self, key: &SessionKey) -> Result<Session, ObtainError> {
        let next = {
            let mut does = self.lock().unwrap();
            if does.len() > 1 {
                does.remove(0)
            } else {
                does[0].clone()
            }
        };
        let now = SystemTime::now();
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        let (obtained, expiration) = match next {
            Sts::Gives => (now, now + minutes(60)),
            Sts::GivesExpired => (now, now),
            Sts::GivesOld => (now - minutes(40), now + minutes(20)),
            Sts::Fails(error) => return Err(error),
            Sts::Hangs => std::future::pending().await,
        };
        let issued = IssuedCredentials {
            access_key_id: "ASIAEXAMPLE",
            secret_access_key: "SECRET",
            token: "TOKEN",
            expiration,
        };
        Ok(Session::new(&key.role, &issued, obtained))
    }
}

/// Makes the rules of an agent, which knows the node's own role unless the scenario is about that.
fn rules(scenario: &Scenario) -> Rules {
    let node = OwnRole::Is(RoleId::new("123456789012", "node").unwrap());
    let rules = flagged(scenario.flags);
    let own = OwnRoles {
        instance: if scenario.own_is_known {
            node.clone()
        } else {
            OwnRole::Unknown(Some(
                "the node's metadata service does not answer in time".to_owned(),
            ))
        },
        agent: node,
        ..rules.own
    };
    Rules { own, ..rules }
}

fn flagged(flags: &[&str]) -> Rules {
    let mut words = vec!["metaproxy", "run", "--kubeconfig", "/k", "--node-name", "n"];
    if !flags.contains(&"--base-role-arn") {
        words.extend(["--base-role-arn", "arn:aws:iam::123456789012:role/"]);
    }
    words.extend(
        flags
            .iter()
            .filter(|word| **word != "--base-role-arn" && !word.is_empty()),
    );
    match Cli::from_words(words).unwrap().command {
        Command::Run(args) => args.settings().unwrap().rules,
        other => panic!("{other:?}"),
    }
}

fn inventory(scenario: &Scenario) -> Inventory {
    // A name with characters that a tag cannot have, if the scenario is about that.
    let name = if scenario.name.contains("tag") {
        "w,b"
    } else {
        "web"
    };
    let pod = |name: &str| {
        let object = json!({
            "metadata": { "name": name, "namespace": "apps", "uid": UID, "annotations": scenario.pod },
            "spec": { "hostNetwork": scenario.on_host, "containers": [] },
            "status": { "podIPs": [{ "ip": "10.244.0.5" }] },
        });
        Arc::new(Pod::from_api(serde_json::from_value(object).unwrap()).unwrap())
    };
    let mut pods = Vec::new();
    if scenario.known {
        pods.push(pod(name));
    }
    if scenario.twice {
        pods.push(pod("other"));
    }
    let annotations = |value: &Value| serde_json::from_value(value.clone()).unwrap();
    let namespace = scenario.namespace.iter().map(|value| {
        Arc::new(Namespace {
            name: "apps".to_owned(),
            annotations: annotations(value),
        })
    });
    let account = scenario.account.iter().map(|value| {
        Arc::new(ServiceAccount {
            namespace: "apps".to_owned(),
            name: "default".to_owned(),
            annotations: annotations(value),
        })
    });
    Inventory::new(pods, namespace, account)
}
