use super::*;
use crate::admin::testing::NoMetrics;
use crate::introspection::{DryRun, Status};
use rstest::rstest;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

/// An introspection whose status waits until the test sends a permit.
struct Slow {
    begun: Sender<()>,
    permits: Mutex<Receiver<()>>,
}

impl Introspection for Slow {
    fn explain(&self, _pod: Option<&str>) -> Vec<Explanation> {
        Vec::new()
    }
    fn dry_run(&self, _of: &Explanation) -> DryRun<'_> {
        Box::pin(std::future::ready(Vec::new()))
    }
    fn status(&self) -> Status {
        self.begun.send(()).unwrap();
        self.permits.lock().unwrap().recv().unwrap();
        Status::default()
    }
    fn node_name(&self) -> Option<&str> {
        Some("n1.example.com")
    }
    fn verdicts(&self) -> BTreeMap<Verdict, u64> {
        BTreeMap::new()
    }
}

/// Returns routes, a receiver of a message for each status that has begun, and the sender of permits.
fn slow() -> (Routes, Receiver<()>, Sender<()>) {
    let ((begun, begins), (lets, permits)) = (channel(), channel());
    let permits = Mutex::new(permits);
    let introspection = Arc::new(Slow { begun, permits });
    let workers = Workers::new(tokio::runtime::Handle::current());
    let routes = Routes::new(workers, Health::starting([]), Arc::new(NoMetrics), introspection);
    (routes, begins, lets)
}

async fn status_of(routes: &Routes, path: &str, access: Access) -> u16 {
    let request = Request::get(path)
        .header("host", "127.0.0.1:9808")
        .body(())
        .unwrap();
    routes.answer(&request, access).await.status().as_u16()
}

/// Another site may let its name resolve to 127.0.0.1. Its page in an operator's browser can then send requests
/// through a port-forward of the operator.
#[rstest]
#[case::an_address("127.0.0.1:9808", 200)]
#[case::localhost("localhost:8000", 200)]
#[case::the_nodes_name("n1.example.com", 200)]
#[case::another_name("rebound.example.com:9808", 421)]
#[tokio::test]
async fn pods_are_shown_only_if_the_host_belongs_to_no_other_site(#[case] host: &str, #[case] want: u16) {
    for path in ["/", "/status"] {
        let (routes, _begins, lets) = slow();
        lets.send(()).unwrap();
        let ask = |path: &str, access| {
            let request = Request::get(path).header("host", host).body(()).unwrap();
            let routes = routes.clone();
            async move { routes.answer(&request, access).await.status().as_u16() }
        };
        assert_eq!(ask(path, Access::Node).await, want, "{path}");
        for path in ["/healthz", "/metrics"] {
            assert_eq!(ask(path, Access::Node).await, 200, "{path}");
        }
        assert_eq!(ask("/status", Access::Network).await, 403);
    }
}

#[tokio::test]
async fn the_socket_accepts_any_host() {
    let (routes, _begins, lets) = slow();
    lets.send(()).unwrap();
    let request = Request::get("/status").header("host", "agent").body(()).unwrap();
    assert_eq!(routes.answer(&request, Access::Root).await.status(), 200);
}

#[rstest]
#[case::the_page("/", 200, 200, 403)]
#[case::the_status("/status", 200, 200, 403)]
#[case::metrics("/metrics", 200, 200, 200)]
#[case::health("/healthz", 200, 200, 200)]
#[case::readiness("/readyz", 200, 200, 200)]
#[case::explanations("/explain", 200, 404, 404)]
#[case::an_explanation("/explain/apps/web", 200, 404, 404)]
#[tokio::test]
async fn pods_are_hidden_from_the_network_and_explanations_are_served_to_root_only(
    #[case] path: &str,
    #[case] root: u16,
    #[case] node: u16,
    #[case] network: u16,
) {
    let (routes, _begins, lets) = slow();
    for _ in 0..3 {
        lets.send(()).unwrap();
    }
    assert_eq!(status_of(&routes, path, Access::Root).await, root);
    assert_eq!(status_of(&routes, path, Access::Node).await, node);
    assert_eq!(status_of(&routes, path, Access::Network).await, network);
}

#[rstest]
#[case("127.0.0.1:40000", Access::Node)]
#[case("127.8.0.1:40000", Access::Node)]
#[case("[::1]:40000", Access::Node)]
#[case("[::ffff:127.0.0.1]:40000", Access::Node)]
#[case("10.0.0.1:40000", Access::Network)]
#[case("[::ffff:10.244.0.5]:40000", Access::Network)]
#[case("[fd00::1]:40000", Access::Network)]
fn only_a_loopback_address_counts_as_the_node(#[case] peer: &str, #[case] access: Access) {
    assert_eq!(Access::at(peer.parse().unwrap()), access);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_status_is_computed_at_a_time_even_if_a_client_disconnects() {
    let (routes, begins, lets) = slow();
    let ask = || {
        let routes = routes.clone();
        tokio::spawn(async move { status_of(&routes, "/status", Access::Root).await })
    };
    let impatient = ask();
    begins.recv().unwrap();
    impatient.abort();
    assert!(impatient.await.unwrap_err().is_cancelled());
    let patient = ask();
    assert!(
        begins.recv_timeout(Duration::from_millis(200)).is_err(),
        "the first one is not done"
    );
    lets.send(()).unwrap();
    begins.recv().unwrap();
    lets.send(()).unwrap();
    assert_eq!(patient.await.unwrap(), 200);
}
