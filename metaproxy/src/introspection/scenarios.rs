//! Checks for each problem that users have that the pod's answer, its event, the log and the explanation say the
//! same.

mod list;
mod stage;

use hyper::StatusCode;

use self::list::scenarios;
use self::stage::{Said, said};
use crate::commands::explain::not_known;
use crate::explain::{AnswerLine, Explanation, Verdict};
use crate::roles::Reason;
use crate::telemetry::pod_event::PodEvent;

impl Said {
    /// Writes the output of all places for the snapshot, without times of day.
    fn shown(&self, name: &str) -> String {
        let AnswerLine { path, status, says } = &self.answer;
        let event = self.event.as_ref().map_or("none".to_owned(), PodEvent::note);
        let explained = match &self.explanation {
            Some(explanation) => explanation.to_string(),
            None => format!("error: {}\n", not_known("apps/web", Some("n"))),
        };
        let log = &self.log;
        stable(&format!(
            "## {name}\nGET {path}\n{status} {says}\nevent: {event}\n{log}{explained}\n"
        ))
    }

    /// Checks that the pod's answer and the log give the reason.
    fn agree_on(&self, name: &str, sentence: &str) {
        let said = &self.answer.says;
        assert!(
            said.ends_with(sentence),
            "{name}: answered {said}, not {sentence}"
        );
        // Fields are before or after the sentence. This depends on whether the part that logs knows the pod or its
        // session.
        let logged = self.log.lines().any(|line| line.contains(sentence));
        assert!(logged, "{name}: logged {}, not {sentence}", self.log);
    }
}

/// Returns the HTTP status that a pod's answer must have for a verdict.
fn status_of(verdict: Verdict, is_ambiguous: bool) -> StatusCode {
    match verdict {
        Verdict::NoRole => StatusCode::NOT_FOUND,
        Verdict::Refused if is_ambiguous => StatusCode::NOT_FOUND,
        Verdict::Granted | Verdict::Refused => StatusCode::OK,
        Verdict::Unavailable | Verdict::Waiting | Verdict::Unknown => StatusCode::SERVICE_UNAVAILABLE,
        Verdict::NotIntercepted => unreachable!("no scenario has one: it never asks here"),
    }
}

/// Returns the answer that a pod with credentials must get for an explanation.
fn credentials(explanation: &Explanation) -> String {
    let line = explanation.credentials.as_ref().unwrap();
    let (id, until) = (line.access_key_id.as_ref(), line.expires.as_ref());
    format!("credentials {} until {}", id.unwrap(), until.unwrap())
}

#[tokio::test(start_paused = true)]
async fn answer_event_log_and_explanation_say_the_same() {
    let scenarios = scenarios();
    assert!(scenarios.len() >= 25);
    let mut told = String::new();
    for scenario in &scenarios {
        let (name, said) = (scenario.name, said(scenario).await);
        told.push_str(&said.shown(name));
        assert!(
            !said.log.contains("SECRET") && !said.log.contains("TOKEN"),
            "{}",
            said.log
        );
        let Some(explanation) = &said.explanation else {
            let uid = "aaaaaaaa-0000-0000-0000-000000000001".parse().unwrap();
            said.agree_on(name, &Reason::PodUnknown { uid }.to_string());
            assert_eq!((said.event, said.answer.status), (None, 503), "{name}");
            continue;
        };
        let pods = if scenario.twice { 2 } else { 1 };
        assert_eq!(said.verdicts, vec![explanation.verdict; 2 * pods], "{name}");
        let status = status_of(explanation.verdict, scenario.twice);
        assert_eq!(said.answer.status, status.as_u16(), "{name}");
        if scenario.twice {
            assert!(
                explanation.answers.is_empty(),
                "{name}: nobody can tell which of them"
            );
        } else {
            assert_eq!(explanation.answers.last(), Some(&said.answer), "{name}");
        }
        if explanation.verdict == Verdict::Granted {
            assert_eq!(said.answer.says, credentials(explanation), "{name}");
            let audited = format!("role={:?}", explanation.role.as_ref().unwrap());
            assert!(said.log.contains(&audited), "{name}: logged {}", said.log);
        } else {
            said.agree_on(name, &explanation.because);
        }
        // Events are for the owner of a pod that is refused the role that it requests, because the owner can correct
        // that.
        let is_due = explanation.verdict == Verdict::Refused && !scenario.twice;
        let sentence = said.event.map(|event| event.sentence);
        assert_eq!(
            sentence.as_ref(),
            is_due.then_some(&explanation.because),
            "{name}"
        );
    }
    insta::assert_snapshot!(told);
}

fn stable(text: &str) -> String {
    let times = [
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ( \(\d+[ms] left\))?", "TIME"),
        (r"again in \d+s", "again in a while"),
        (r"\d+s ago", "a moment ago"),
        (r"life=\d+", "life=SECONDS"),
        (r"(is not authorized, ?){3,}", "is not authorized, and so on, "),
    ];
    times.into_iter().fold(text.to_owned(), |text, (time, instead)| {
        let time = regex::Regex::new(time).unwrap();
        time.replace_all(&text, instead).into_owned()
    })
}
