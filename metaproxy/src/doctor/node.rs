//! The node: its metadata service, its role, ports, and the environment.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use super::{Examination, Finding};
use crate::admin::asking;
use crate::credentials::http::NetworkEnv;
use crate::credentials::sts::Sts;
use crate::credentials::{Issuer as _, Principals, SessionKey};
use crate::imds::upstream::{Endpoint, Upstream};
use crate::intercept::port;
use crate::roles::{Principal, SessionShape};

/// For the metadata service, which answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// Processes by which a runtime keeps pods in a kernel of their own, by how their names begin.
const SANDBOXES: [(&str, &str); 4] = [
    ("runsc", "gVisor"),
    ("containerd-shim-runsc", "gVisor"),
    ("containerd-shim-kata", "Kata Containers"),
    ("firecracker", "Firecracker"),
];

/// The inode of the machine's first PID namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Runtimes whose pods' connections no cgroup hook of the node sees.
pub(super) fn sandboxes() -> Vec<Finding> {
    const CHECK: &str = "runtimes";
    if !sees_all_processes() {
        return vec![Finding::ok(
            CHECK,
            "cannot be told from this container, which does not see the node's processes",
        )];
    }
    let mut found: Vec<&str> = processes()
        .iter()
        .filter_map(|name| SANDBOXES.iter().find(|(process, _)| name.starts_with(process)))
        .map(|(_, runtime)| *runtime)
        .collect();
    found.sort_unstable();
    found.dedup();
    if found.is_empty() {
        return vec![Finding::ok(CHECK, "no sandboxed runtime is running here")];
    }
    vec![Finding::warning(
        CHECK,
        format!(
            "{} runs here: its pods' connections are made in a kernel of their own",
            found.join(" and ")
        ),
        "they are not redirected, and get no credentials; a guard with packets keeps them from the node's (see the README, \
         Not covered)",
    )]
}

/// Whether processes of the whole node are seen: not in a container without hostPID.
pub(super) fn sees_all_processes() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == FIRST_PID_NAMESPACE)
}

/// The names of all processes that are seen here: of their programs, as they were called.
pub(super) fn processes() -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .iter()
                .all(u8::is_ascii_digit)
        })
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .filter_map(|words| program(&words))
        .collect()
}

/// The last part of the first word.
fn program(words: &[u8]) -> Option<String> {
    let first = words.split(|byte| *byte == 0).next()?;
    let name = first.rsplit(|byte| *byte == b'/').next()?;
    (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}

/// Ports that the agent is told to take.
pub(super) fn ports(examination: &Examination) -> Vec<Finding> {
    const CHECK: &str = "ports";
    // One that runs already has them.
    if let Ok(status) = asking::status(&examination.runtime_dir) {
        let admin = status
            .parts
            .iter()
            .find(|part| part.part == "admin" && part.condition != "ok");
        return vec![match admin.and_then(|part| part.detail.clone()) {
            Some(detail) => Finding::warning(CHECK, detail, "give another --admin-address, or off"),
            None => Finding::ok(CHECK, "an agent is running, and has its ports"),
        }];
    }
    let admin = examination.admin.map(|address| ("--admin-address", address));
    let listen = examination.listen;
    let fixed = (listen.port() != 0).then_some(("--listen-port", listen));
    let taken: Vec<Finding> = [admin, fixed]
        .into_iter()
        .flatten()
        .filter_map(|(flag, address)| {
            let error = TcpListener::bind(address).err()?;
            Some(Finding::problem(
                CHECK,
                format!(
                    "{flag} {address}: {error}; it is held by {}",
                    port::holder(address)
                ),
                if flag == "--listen-port" {
                    "leave --listen-port away: a free port is found then, and nobody has to know it"
                } else {
                    "give another --admin-address, or off"
                },
            ))
        })
        .collect();
    if taken.is_empty() {
        return vec![Finding::ok(CHECK, "free, those that the agent is told to take")];
    }
    taken
}

/// A proxy that is in the way of what must not go through it.
#[expect(
    clippy::disallowed_methods,
    reason = "conventions of the environment, which are no flags of ours"
)]
pub(super) fn proxy() -> Finding {
    const CHECK: &str = "proxy";
    const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
    let network = NetworkEnv::read();
    let plain = ["HTTP_PROXY", "http_proxy"]
        .iter()
        .find(|name| std::env::var(name).is_ok_and(|value| !value.is_empty()));
    let Some(name) = network
        .https_proxy
        .as_ref()
        .map(|_| "HTTPS_PROXY")
        .or(plain.copied())
    else {
        return Finding::ok(CHECK, "none is set");
    };
    if is_exempt(&network.no_proxy.unwrap_or_default(), METADATA) {
        return Finding::ok(
            CHECK,
            format!("{name} is set, and NO_PROXY names the metadata service"),
        );
    }
    Finding::warning(
        CHECK,
        format!("{name} is set, and NO_PROXY does not name {METADATA}"),
        "what the agent asks the metadata service never goes through a proxy, but other programs of the node do not know that: \
         add 169.254.169.254 to NO_PROXY. A VPC endpoint for STS belongs there too",
    )
}

/// By a host, a suffix of names, a network (`169.254.0.0/16`) or `*`, as curl and the SDKs read it.
fn is_exempt(rules: &str, address: Ipv4Addr) -> bool {
    rules.split(',').map(str::trim).any(|rule| {
        let (network, bits) = rule.split_once('/').unwrap_or((rule, "32"));
        let in_network = || {
            let network: Ipv4Addr = network.parse().ok()?;
            let bits: u32 = bits.parse().ok().filter(|bits| *bits <= 32)?;
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            Some(u32::from(network) & mask == u32::from(address) & mask)
        };
        rule == "*" || in_network().unwrap_or(false)
    })
}

/// The node's metadata service: whether it is there, wants tokens, and how far its answers go.
pub(super) async fn imds(endpoint: &Endpoint) -> Vec<Finding> {
    const CHECK: &str = "IMDS";
    let upstream = Upstream::new(endpoint.clone());
    let requires = match upstream.requires_tokens().await {
        Ok(requires) => requires,
        Err(error) => {
            return vec![Finding::problem(
                CHECK,
                format!("at {endpoint}: {error}"),
                "on EC2, `aws ec2 modify-instance-metadata-options --http-endpoint enabled` turns it on; elsewhere, give the \
                 agent AWS credentials in its environment, --region and --base-role-arn",
            )];
        }
    };
    let address = authority(endpoint);
    let hops = tokio::task::spawn_blocking(move || hop_limit_is_one(&address)).await;
    let hops = match hops.ok().flatten() {
        Some(true) => "; its answers go no further than this node (hop limit 1)",
        Some(false) => "; its answers to PUT go further than this node (hop limit 2 or more)",
        None => "",
    };
    let mut findings = vec![if requires {
        Finding::ok(
            CHECK,
            format!("reached at {endpoint}; it requires session tokens (IMDSv2){hops}"),
        )
    } else {
        Finding::ok(
            CHECK,
            format!("reached at {endpoint}; it answers without a session token too (IMDSv1){hops}"),
        )
    }];
    findings.push(match upstream.instance_profile().await {
        Ok(Some(arn)) => Finding::ok("node's role", format!("the node's instance profile is {arn}")),
        Ok(None) => Finding::problem(
            "node's role",
            "the node has no instance profile, so nobody assumes the pods' roles",
            "attach one (`aws ec2 associate-iam-instance-profile`), or give the agent credentials in its environment",
        ),
        Err(error) => Finding::problem(
            "node's role",
            format!("cannot be found out: {error}"),
            "--base-role-arn says in which account names of roles are looked for",
        ),
    });
    findings
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

/// Whether the answer to a PUT arrives with a TTL of 1 (`HttpPutResponseHopLimit`): with `IP_MINTTL` 2 the kernel drops it
/// then. `None` where that can't be told.
fn hop_limit_is_one(authority: &str) -> Option<bool> {
    let address = authority.to_socket_addrs().ok()?.find(SocketAddr::is_ipv4)?;
    let asked = |least_ttl: Option<libc::c_int>| -> Option<bool> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        if let Some(ttl) = least_ttl {
            // SAFETY: an integer, as long as said, that lives through the call.
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
    // Only where it answers at all.
    asked(None).filter(|answers| *answers)?;
    asked(Some(2)).map(|answers| !answers)
}

/// STS, as the node, and a role as a trial.
pub(super) async fn sts(examination: &Examination) -> Vec<Finding> {
    const CHECK: &str = "STS";
    let sts = match Sts::connect(&examination.sts, &NetworkEnv::read()).await {
        Ok(sts) => sts,
        Err(error) => {
            return vec![Finding::problem(
                CHECK,
                error.to_string(),
                "see --region, --sts-endpoint and HTTPS_PROXY",
            )];
        }
    };
    let mut findings = vec![match sts.node_arn().await {
        Ok(arn) => Finding::ok(CHECK, format!("reached; it calls this node {arn}")),
        Err(error) => Finding::problem(
            CHECK,
            format!("cannot be asked: {error}"),
            "the node must reach STS of its region (a VPC endpoint, or a proxy by HTTPS_PROXY), with credentials of its own",
        ),
    }];
    if let Some(role) = &examination.role {
        let key = SessionKey {
            role: role.clone(),
            shape: SessionShape {
                name: examination.sts.own_name.clone(),
                external_id: None,
                tags: Vec::new(),
                pod: None,
                principal: Principal::Node,
            },
        };
        findings.push(match Principals::new(sts, None).issue(&key).await {
            Ok(_) => Finding::ok("assume role", format!("the node may assume {role}")),
            Err(error) => Finding::problem(
                "assume role",
                error.reason(role).to_string(),
                "the role's trust policy must name the node's role as a principal, and the node's own policy must allow \
                 sts:AssumeRole of it; a role that asks for an external id can only be tried by its pod",
            ),
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_without_a_port_is_at_80() {
        let of = |url: &str| authority(&url.parse().unwrap());
        assert_eq!(of("http://169.254.169.254"), "169.254.169.254:80");
        assert_eq!(of("http://127.0.0.1:8080/"), "127.0.0.1:8080");
        assert_eq!(of("http://[fd00:ec2::254]"), "[fd00:ec2::254]:80");
    }

    #[test]
    fn a_proxys_exceptions_are_hosts_networks_and_all() {
        let metadata = Ipv4Addr::new(169, 254, 169, 254);
        for rules in [
            "169.254.169.254",
            "localhost, 169.254.0.0/16 ,.svc",
            "*",
            "0.0.0.0/0",
        ] {
            assert!(is_exempt(rules, metadata), "{rules}");
        }
        for rules in [
            "",
            "localhost,.svc",
            "10.0.0.0/8",
            "169.254.170.0/24",
            "169.254.169.254/40",
        ] {
            assert!(!is_exempt(rules, metadata), "{rules}");
        }
    }

    #[test]
    fn the_usual_shim_of_containerd_is_no_sandbox() {
        let is_sandbox = |words: &[u8]| {
            let name = program(words).unwrap_or_default();
            SANDBOXES.iter().any(|(process, _)| name.starts_with(process))
        };
        assert!(!is_sandbox(
            b"/usr/bin/containerd-shim-runc-v2\0-namespace\0k8s.io\0"
        ));
        assert!(is_sandbox(b"/usr/local/bin/containerd-shim-runsc-v1\0-id\0"));
        assert!(is_sandbox(b"runsc-sandbox\0--root=/run\0"));
        assert!(!is_sandbox(b""));
    }

    #[test]
    fn the_hop_limit_is_told_by_what_arrives() {
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
}
