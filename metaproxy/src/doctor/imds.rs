//! Checks the node's metadata service, and the node's role.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use super::{Finding, Level};
use crate::imds::upstream::{Endpoint, Upstream};

/// The time limit of a request to the metadata service, which answers within milliseconds.
const IMDS_TIMEOUT: Duration = Duration::from_secs(1);

/// Checks whether the metadata service answers, whether it requires tokens, how many hops its answers travel, and
/// which role the node has. `identity` is the node's identity at STS, if that is known. A node with other credentials
/// needs no role here.
pub(super) async fn examine(endpoint: &Endpoint, identity: Option<&str>) -> Vec<Finding> {
    const CHECK: &str = "IMDS";
    let upstream = Upstream::new(endpoint.clone());
    let requires = match upstream.requires_tokens().await {
        Ok(requires) => requires,
        Err(error) => return vec![absent(CHECK, format!("at {endpoint}: {error}"), identity)],
    };
    let address = authority(endpoint);
    let hops = tokio::task::spawn_blocking(move || hop_limit_is_one(&address)).await;
    vec![
        reached(CHECK, endpoint, requires, hops.ok().flatten()),
        role(
            upstream
                .instance_profile()
                .await
                .map_err(|error| error.to_string()),
            identity,
        ),
    ]
}

fn absent(check: &'static str, says: String, identity: Option<&str>) -> Finding {
    match identity {
        None => Finding::problem(
            check,
            says,
            "on EC2, `aws ec2 modify-instance-metadata-options --http-endpoint enabled` turns it on; elsewhere, give the agent AWS \
             credentials in its environment, --region and --base-role-arn",
        ),
        Some(_) => Finding::warning(
            check,
            format!(
                "{says}; pods have roles all the same, as the node has other credentials, but no metadata of the node"
            ),
            "on EC2, `aws ec2 modify-instance-metadata-options --http-endpoint enabled` turns it on; elsewhere there is nothing to \
             do",
        ),
    }
}

/// Makes the finding for a service that answers. The finding names options of the instance (SECURITY.md) that would
/// protect its role in addition to the programs.
fn reached(
    check: &'static str,
    endpoint: &Endpoint,
    requires: bool,
    hop_limit_is_one: Option<bool>,
) -> Finding {
    let tokens = if requires {
        "it requires session tokens (IMDSv2)"
    } else {
        "it answers without a session token too (IMDSv1)"
    };
    let hops = match hop_limit_is_one {
        Some(true) => "; its answers go no further than this node (hop limit 1)",
        Some(false) => "; its answers to PUT go further than this node (hop limit 2 or more)",
        None => "",
    };
    let mut options = Vec::new();
    if !requires {
        options.push("--http-tokens required");
    }
    if hop_limit_is_one == Some(false) {
        options.push("--http-put-response-hop-limit 1");
    }
    let advice = format!(
        "nothing has to be done; `aws ec2 modify-instance-metadata-options --instance-id … {}` would keep pods with a network of \
         their own from it even while nothing of metaproxy runs",
        options.join(" ")
    );
    Finding {
        advice: (!options.is_empty()).then_some(advice),
        ..Finding::ok(check, format!("reached at {endpoint}; {tokens}{hops}"))
    }
}

fn role(profile: Result<Option<String>, String>, identity: Option<&str>) -> Finding {
    const CHECK: &str = "node's role";
    match (profile, identity) {
        (Ok(Some(arn)), _) => Finding::ok(CHECK, format!("the node's instance profile is {arn}")),
        (Ok(None), Some(identity)) => Finding::ok(
            CHECK,
            format!("the node has no instance profile, and is {identity} by other credentials"),
        ),
        (Ok(None), None) => Finding::problem(
            CHECK,
            "the node has no instance profile, so the pods' roles cannot be assumed",
            "attach one (`aws ec2 associate-iam-instance-profile`), or give the agent credentials in its environment",
        ),
        (Err(error), identity) => Finding {
            level: if identity.is_some() {
                Level::Warning
            } else {
                Level::Problem
            },
            ..Finding::problem(
                CHECK,
                format!("cannot be found out: {error}"),
                "--base-role-arn says in which account names of roles are looked for",
            )
        },
    }
}

fn authority(endpoint: &Endpoint) -> String {
    let authority = endpoint.to_string().trim_start_matches("http://").to_owned();
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if has_port {
        authority
    } else {
        format!("{authority}:80")
    }
}

/// Reports whether the answer to a PUT arrives with a TTL of 1 (`HttpPutResponseHopLimit`). With `IP_MINTTL` 2 the
/// kernel drops such an answer. Returns `None` if the TTL cannot be known.
fn hop_limit_is_one(authority: &str) -> Option<bool> {
    let address = authority.to_socket_addrs().ok()?.find(SocketAddr::is_ipv4)?;
    let asked = |least_ttl: Option<libc::c_int>| -> Option<bool> {
        let mut stream = TcpStream::connect_timeout(&address, IMDS_TIMEOUT).ok()?;
        stream.set_read_timeout(Some(IMDS_TIMEOUT)).ok()?;
        if let Some(ttl) = least_ttl {
            // SAFETY: the option is one integer of the given length, which lives through the call.
            let set = unsafe {
                libc::setsockopt(
                    stream.as_raw_fd(),
                    libc::IPPROTO_IP,
                    libc::IP_MINTTL,
                    std::ptr::from_ref(&ttl).cast(),
                    size_of_val(&ttl) as libc::socklen_t,
                )
            };
            if set != 0 {
                return None;
            }
        }
        let request = format!(
            "PUT /latest/api/token HTTP/1.1\r\nHost: {authority}\r\nX-aws-ec2-metadata-token-ttl-seconds: 1\r\n\
             Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut first = [0; 12];
        Some(stream.read_exact(&mut first).is_ok())
    };
    // The trial has a meaning only if the service answers without `IP_MINTTL`.
    asked(None).filter(|answers| *answers)?;
    asked(Some(2)).map(|answers| !answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::net::TcpListener;

    #[test]
    fn an_endpoint_without_a_port_is_at_80() {
        let of = |url: &str| authority(&url.parse().unwrap());
        assert_eq!(of("http://169.254.169.254"), "169.254.169.254:80");
        assert_eq!(of("http://127.0.0.1:8080/"), "127.0.0.1:8080");
        assert_eq!(of("http://[fd00:ec2::254]"), "[fd00:ec2::254]:80");
    }

    #[test]
    fn the_hop_limit_is_determined_from_the_answers_that_arrive() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap().to_string();
        let answering = |ttl: u32| {
            let server = server.try_clone().unwrap();
            std::thread::spawn(move || {
                for _ in 0..2 {
                    let (mut stream, _) = server.accept().unwrap();
                    let _ = stream.read(&mut [0; 1024]);
                    stream.set_ttl(ttl).unwrap();
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                }
            })
        };
        for (ttl, is_one) in [(1, true), (2, false), (64, false)] {
            let thread = answering(ttl);
            assert_eq!(hop_limit_is_one(&address), Some(is_one), "{ttl}");
            thread.join().unwrap();
        }
        drop(server);
        assert_eq!(hop_limit_is_one(&address), None, "nobody answers");
    }

    #[rstest]
    #[case(true, Some(true), &[])]
    #[case(false, Some(true), &["--http-tokens required`"])]
    #[case(true, Some(false), &["… --http-put-response-hop-limit 1`"])]
    #[case(false, Some(false), &["--http-tokens required --http-put-response-hop-limit 1`"])]
    #[case(true, None, &[])]
    fn more_secure_options_of_the_instance_are_advice_and_no_fault(
        #[case] requires: bool,
        #[case] hop_limit_is_one: Option<bool>,
        #[case] advised: &[&str],
    ) {
        let endpoint = "http://169.254.169.254".parse().unwrap();
        let finding = reached("IMDS", &endpoint, requires, hop_limit_is_one);
        assert_eq!(finding.level, Level::Ok);
        assert_eq!(finding.advice.is_some(), !advised.is_empty());
        for words in advised {
            assert!(finding.advice.as_ref().unwrap().contains(words), "{finding:?}");
        }
    }

    #[rstest]
    #[case(Ok(Some("arn:p")), None, Level::Ok)]
    #[case(Ok(None), None, Level::Problem)]
    #[case(Ok(None), Some("arn:i"), Level::Ok)]
    #[case(Err("away"), None, Level::Problem)]
    #[case(Err("away"), Some("arn:i"), Level::Warning)]
    fn a_node_with_other_credentials_needs_no_instance_profile(
        #[case] profile: Result<Option<&str>, &str>,
        #[case] identity: Option<&str>,
        #[case] want: Level,
    ) {
        let profile = profile.map(|arn| arn.map(str::to_owned)).map_err(str::to_owned);
        assert_eq!(role(profile, identity).level, want);
        assert_eq!(absent("IMDS", String::new(), Some("arn:i")).level, Level::Warning);
        assert_eq!(absent("IMDS", String::new(), None).level, Level::Problem);
    }
}
