//! What goes wrong for users, situation by situation: the pod's answer, its event, the log and the explanation say the same.

mod list;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing_subscriber::fmt::MakeWriter;

use self::list::{Situation, Sts, situations};
use super::{Explanation, Subject, Verdict};
use crate::apiserver::events;
use crate::cli::{Cli, Command};
use crate::credentials::{Issued, Issuer, ObtainError, Session, SessionKey, Sessions};
use crate::imds::path::Paths;
use crate::imds::token::Tokens;
use crate::imds::upstream::Upstream;
use crate::imds::{Caller, Parts, Passing, Service, Told, Version1, in_words};
use crate::pods::{Inventory, Namespace, Pod, ServiceAccount};
use crate::roles::{Decision, Reason, Rules};

const UID: &str = "aaaaaaaa-0000-0000-0000-000000000001";
impl Issuer for Mutex<Vec<Sts>> {
    async fn issue(&self, key: &SessionKey) -> Result<Session, ObtainError> {
        let mut does = self.lock().unwrap();
        let next = if does.len() > 1 {
            does.remove(0)
        } else {
            does[0].clone()
        };
        let now = SystemTime::now();
        let expiration = match next {
            Sts::Gives => now + Duration::from_secs(3600),
            Sts::GivesExpired => now,
            Sts::Fails(error) => return Err(error),
        };
        let issued = Issued {
            access_key_id: "ASIAEXAMPLE",
            secret_access_key: "SECRET",
            token: "TOKEN",
            expiration,
        };
        Ok(Session::new(&key.role, &issued, now))
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;
    fn make_writer(&self) -> Self {
        self.clone()
    }
}

fn rules(flags: &[&str]) -> Rules {
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

fn inventory(situation: &Situation) -> Inventory {
    // Too long for a tag where that is the matter.
    let name = if situation.name.contains("tag") {
        "w,b"
    } else {
        "web"
    };
    let pod = |name: &str| {
        let object = json!({
            "metadata": { "name": name, "namespace": "apps", "uid": UID, "annotations": situation.pod },
        });
        Arc::new(Pod::from_api(serde_json::from_value(object).unwrap()).unwrap())
    };
    let mut pods = vec![pod(name)];
    if situation.twice {
        pods.push(pod("other"));
    }
    let annotations = |value: &Value| serde_json::from_value(value.clone()).unwrap();
    let namespace = situation.namespace.iter().map(|value| {
        Arc::new(Namespace {
            name: "apps".to_owned(),
            annotations: annotations(value),
        })
    });
    let account = situation.account.iter().map(|value| {
        Arc::new(ServiceAccount {
            namespace: "apps".to_owned(),
            name: "default".to_owned(),
            annotations: annotations(value),
        })
    });
    Inventory::new(pods, namespace, account)
}

/// What is said about a situation, in all places.
struct Said {
    answer: String,
    event: Option<String>,
    log: String,
    explanation: Explanation,
}

async fn said(situation: &Situation) -> Said {
    let rules = rules(situation.flags);
    let inventory = Arc::new(inventory(situation));
    let (_pods, pods) = watch::channel(Arc::clone(&inventory));
    let (_rules, published) = watch::channel(Arc::new(rules.clone()));
    let (_version1, version1) = watch::channel(Version1::Allowed);
    let (owners, mut events) = events::channel();
    let dir = tempfile::tempdir().unwrap();
    let sessions = Sessions::new(Mutex::new(situation.sts.clone()));
    let service = Service::new(Parts {
        pods,
        rules: published,
        sessions: sessions.clone(),
        tokens: Tokens::open(dir.path()).unwrap(),
        paths: Paths::allowing(&[]).unwrap(),
        passing: Passing::new(Upstream::new("http://127.0.0.1:9".parse().unwrap())),
        version1,
        told: Arc::new(Told::new(Some(owners))),
    });
    let caller = Caller {
        uid: UID.parse().unwrap(),
        address: "10.0.0.1".parse().unwrap(),
    };
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let ask = async |path: &str| {
        let answer = service.rehearse(&caller, path).await;
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        in_words(&body)
    };
    const LIST: &str = "/latest/meta-data/iam/security-credentials/";
    let mut answer = ask(LIST).await;
    if !answer.contains(' ') {
        let role = format!("{LIST}{answer}");
        for _ in &situation.sts {
            answer = ask(&role).await;
        }
    }
    drop(guard);

    let pod = inventory.pods().find_map(|(_, known)| match known {
        crate::pods::Known::Pod(pod) => Some(Arc::clone(pod)),
        crate::pods::Known::Ambiguous(pods) => pods.first().cloned(),
    });
    let pod = pod.unwrap();
    let decision = rules.resolve(&inventory, &pod.uid);
    let subject = Subject {
        pod: &pod,
        namespace: inventory.namespace("apps"),
        account: inventory.service_account(&pod),
    };
    let mut explanation = match &decision {
        Decision::NoRole(reason @ Reason::Ambiguous { .. }) => Explanation::of_ambiguous(&pod, reason),
        decision => Explanation::of(&rules, &subject, decision),
    };
    if let Decision::Granted(grant) = &decision {
        let view = sessions.view(&SessionKey::of_grant(grant));
        explanation.add_credentials(&decision, view.as_ref(), SystemTime::now());
    }
    explanation.add_hints(&rules, &subject, &decision);
    Said {
        answer,
        event: events.try_recv().ok().map(|refusal| refusal.sentence),
        log: String::from_utf8(log.0.lock().unwrap().clone()).unwrap(),
        explanation,
    }
}

#[tokio::test(start_paused = true)]
async fn answer_event_log_and_explanation_say_the_same() {
    let situations = situations();
    assert!(situations.len() >= 25);
    let mut told = String::new();
    for situation in &situations {
        let Said {
            answer,
            event,
            log,
            explanation,
        } = said(situation).await;
        let (name, sentence) = (situation.name, &explanation.because);
        if explanation.verdict == Verdict::Granted {
            assert!(
                answer.starts_with("credentials ASIAEXAMPLE until"),
                "{name}: {answer}"
            );
        } else {
            assert!(
                answer.contains(sentence.as_str()),
                "{name}: answered {answer}, explained {sentence}"
            );
            assert!(
                log.contains(sentence.as_str()),
                "{name}: logged {log}, explained {sentence}"
            );
        }
        // An event is for whoever can mend it: the owner of a pod that is refused what it asks for.
        let is_due = explanation.verdict == Verdict::Refused && !situation.twice;
        assert_eq!(event.as_ref(), is_due.then_some(sentence), "{name}");
        assert!(!log.contains("SECRET") && !log.contains("TOKEN"), "{log}");
        told.push_str(&format!("## {name}\n{explanation}\n"));
    }
    let told = stable(&told);
    insta::assert_snapshot!(told);
}

/// Times of day are another each time.
fn stable(text: &str) -> String {
    let time = regex::Regex::new(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ( \(\d+[ms] left\))?").unwrap();
    let retry = regex::Regex::new(r"again in \d+s").unwrap();
    retry
        .replace_all(&time.replace_all(text, "TIME"), "again in a while")
        .into_owned()
}
