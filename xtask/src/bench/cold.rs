//! First requests: of pods whose session is there already, of pods that ask at once, and of many at a time.

use std::time::Duration;

use anyhow::Result;
use xtask::lab::pod::PodSpec;
use xtask::lab::sts::Behaviour;

use super::figures::{Figure, Goal, Samples, Section};
use super::site::{CREDENTIALS, IMDS, Site, finish, start, within};

/// What STS takes.
const STS: Duration = Duration::from_millis(50);

/// As many as ask at once, where it does not only have to run.
const AT_ONCE: usize = 1000;

/// The SDKs' own limit is a second.
const LIMIT_MS: f64 = 1000.0;

pub fn cold(site: &Site) -> Result<Section> {
    let _agent = site.agent(&[])?;
    site.sts.behave(Behaviour {
        takes: STS,
        ..Behaviour::default()
    });
    let role = [("iam.amazonaws.com/role".to_owned(), "app".to_owned())];
    let unknown = |name| {
        site.pod(PodSpec {
            known: false,
            ..PodSpec::without_role(name)
        })
    };
    let (first, hasty, crowd) = (unknown("first")?, unknown("hasty")?, unknown("crowd")?);
    let one = ["bench-load", "--to", IMDS, "--path", CREDENTIALS, "--count", "1"];
    // Its session is forgotten with it.
    let forget = |name: &str| {
        let _ = std::fs::remove_file(site.lab.manifests().join(format!("{name}.json")));
        std::thread::sleep(Duration::from_millis(600));
    };

    let (mut prefetched, mut hurried) = (Samples::default(), Samples::default());
    for _ in 0..site.effort.rounds * 2 {
        forget("first");
        let calls = site.sts.calls().len();
        first.write_manifest(&role)?;
        within(Duration::from_secs(5), "a session that is fetched ahead", || {
            Ok(site.sts.calls().len() > calls)
        })?;
        std::thread::sleep(STS * 3);
        let outcome = finish(start(&mut site.in_pod(&first, &one)?)?)?;
        prefetched.push(outcome.max / 1000.0);

        forget("hasty");
        let mut command = site.in_pod(&hasty, &one)?;
        hasty.write_manifest(&role)?;
        let outcome = finish(start(&mut command)?)?;
        hurried.push(outcome.max / 1000.0);
    }

    let calls = site.sts.calls().len();
    let at_once = if site.effort.smoke { 50 } else { AT_ONCE };
    let clients = at_once.to_string();
    let words = [&one[..5], &["--count", "1", "--clients", &clients]].concat();
    let command = start(&mut site.in_pod(&crowd, &words)?)?;
    // They are all connected, and held, before anything is known of the pod.
    std::thread::sleep(Duration::from_millis(250));
    crowd.write_manifest(&role)?;
    let outcome = finish(command)?;
    let calls = site.sts.calls().len() - calls;
    site.sts.behave(Behaviour::default());

    Ok(Section {
        title: "First requests",
        how: "from connect() to the last byte, STS takes 50 ms; those at once are held until their pod is known, a quarter of \
              a second after the first of them began to connect",
        figures: vec![
            Figure::new("first request, session fetched ahead", "ms", &prefetched),
            Figure::new(
                "first request of a pod that is just becoming known",
                "ms",
                &hurried,
            )
            .with_goal(Goal::AtMost(LIMIT_MS)),
            Figure::once(
                format!("{at_once} first requests at once: STS calls"),
                "",
                calls as f64,
            )
            .with_goal(Goal::AtMost(1.0)),
            Figure::once(
                "1,000 first requests at once: the last one",
                "ms",
                outcome.max / 1000.0,
            )
            .with_goal(Goal::AtMost(LIMIT_MS)),
        ],
        plots: Vec::new(),
    })
}
