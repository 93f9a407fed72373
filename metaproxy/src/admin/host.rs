//! Checks the host that a request names.

use std::net::{IpAddr, Ipv6Addr};

use hyper::Request;
use hyper::header::HOST;
use hyper::http::uri::Authority;

/// Returns whether the host of a request is an IP address, `localhost` or the node's name. Every part of the request
/// that names a host is checked. A request without a host (HTTP/1.0) fails the check, because every browser sends a
/// host.
pub(super) fn is_for_host<B>(request: &Request<B>, node: Option<&str>) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter().peekable();
    let is_named = hosts.peek().is_some();
    let is_known = |host: &str| is_known(host, node);
    is_named
        && hosts.all(|host| {
            let authority: Option<Authority> = host.to_str().ok().and_then(|host| host.parse().ok());
            authority.is_some_and(|authority| is_known(authority.host()))
        })
        && request.uri().host().is_none_or(is_known)
}

fn is_known(host: &str, node: Option<&str>) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_address = match bare {
        Some(bare) => bare.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<IpAddr>().is_ok(),
    };
    let is_node = node.is_some_and(|node| host.eq_ignore_ascii_case(node));
    is_address || is_node || host.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("127.0.0.1", true)]
    #[case("127.0.0.1:9808", true)]
    #[case("10.0.0.7:80", true)]
    #[case("[::1]:9808", true)]
    #[case("[fd00::1]", true)]
    #[case("localhost", true)]
    #[case("LocalHost:8000", true)]
    #[case("n1.example.com", true)]
    #[case("N1.example.com:9808", true)]
    #[case("n1.example.com.evil.test", false)]
    #[case("evil.test", false)]
    #[case("127.0.0.1.evil.test", false)]
    #[case("localhost.evil.test:9808", false)]
    #[case("127.0.0.1@evil.test", false)]
    #[case("[::1", false)]
    #[case("[evil.test]", false)]
    #[case("", false)]
    fn a_host_must_be_an_address_localhost_or_the_nodes_name(#[case] host: &str, #[case] want: bool) {
        let request = Request::get("/status").header(HOST, host).body(()).unwrap();
        assert_eq!(is_for_host(&request, Some("n1.example.com")), want, "{host}");
    }

    #[test]
    fn every_host_of_a_request_is_checked_and_at_least_one_is_required() {
        let request = |target: &str, hosts: &[&str]| {
            let request = hosts
                .iter()
                .fold(Request::get(target), |request, host| request.header(HOST, *host));
            is_for_host(&request.body(()).unwrap(), None)
        };
        assert!(!request("/", &[]));
        assert!(!request("/", &["localhost", "evil.test"]));
        assert!(!request("/", &["n1"]), "a node without a name has none");
        assert!(request("http://127.0.0.1/", &["localhost"]));
        assert!(!request("http://evil.test/", &["localhost"]));
    }
}
