use super::*;
use crate::admin::client::get;
use crate::admin::testing::{NoMetrics, NoPods};
use crate::admin::{AdminSocket, Owner};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;
use tokio::runtime::Runtime;

/// How long a test waits for something that must happen.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Occupies every worker of a runtime, and returns once all are occupied. Each is free again when its sender is
/// dropped.
fn hang(runtime: &Runtime, workers: usize) -> Vec<Sender<()>> {
    let (begun, begins) = channel();
    let occupy = |_| {
        let (release, released) = channel();
        let begun = begun.clone();
        runtime.spawn(async move {
            begun.send(()).unwrap();
            // This call blocks the thread, not only the task.
            let _ = released.recv();
        });
        release
    };
    let releases = (0..workers).map(occupy).collect();
    for _ in 0..workers {
        begins.recv_timeout(TEST_TIMEOUT).unwrap();
    }
    releases
}

fn socket_in(dir: &Path) -> PathBuf {
    std::fs::read_dir(dir).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn requests_are_answered_while_every_worker_of_the_agent_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let mut workers = Workers::new(runtime.handle().clone());
    workers.live_timeout = Duration::from_millis(200);
    workers.ready_timeout = Duration::from_millis(100);
    let health = Health::starting([]);
    let admin = Admin::with_workers(workers, health, Arc::new(NoMetrics), Arc::new(NoPods));
    let (_file, listener) = AdminSocket::open(dir.path(), Owner::Agent).unwrap();
    let (_thread, _ended) = admin.start(listener, None).unwrap();
    let socket = socket_in(dir.path());
    let answer = |path| get(&socket, path, TEST_TIMEOUT).unwrap();

    let releases = hang(&runtime, 2);
    for path in ["/status", "/metrics", "/explain", "/"] {
        assert_eq!(answer(path).status, 200, "{path}");
    }
    for path in ["/healthz", "/readyz"] {
        let refused = answer(path);
        assert_eq!(refused.status, 503, "{path}");
        assert!(
            refused.body.contains("worker threads"),
            "{path}: {}",
            refused.body
        );
    }

    drop(releases);
    let start = Instant::now();
    for path in ["/healthz", "/readyz"] {
        while answer(path).status != 200 {
            assert!(start.elapsed() < TEST_TIMEOUT, "{path} does not recover");
        }
    }
}

#[test]
fn the_end_of_the_thread_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let workers = runtime.handle().clone();
    let admin = Admin::new(
        workers,
        Health::starting([]),
        Arc::new(NoMetrics),
        Arc::new(NoPods),
    );
    let (_file, listener) = AdminSocket::open(dir.path(), Owner::Agent).unwrap();
    let (thread, ended) = admin.start(listener, None).unwrap();
    drop(thread);
    let ended = async { tokio::time::timeout(TEST_TIMEOUT, ended).await };
    runtime.block_on(ended).unwrap();
}
