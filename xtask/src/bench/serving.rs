//! Measures how fast cached credentials are served, compared with a bare hyper server, nginx and any given peer.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context as _, Error, Result, ensure};
use clap::ValueEnum as _;
use hyper::Uri;
use metaproxy_lab::agent::Agent;
use metaproxy_lab::netns::Netns;
use metaproxy_lab::pod::{Pod, PodSpec};

use super::cached::{BARE_NAME, NGINX_NAME, Row, tell};
use super::figures::Section;
use super::load::{Each, Outcome};
use super::nginx;
use super::site::{CREDENTIALS, IMDS, Process, Site, at_node, listener, processor_time, stop};

const BARE: u16 = 7003;
const NULL: u16 = 7004;
const NGINX: u16 = 7005;

/// The name of the server that parses nothing. Its cost is the lower bound for any server.
const NULL_NAME: &str = "null server";

/// The numbers of concurrent clients that are measured.
const CLIENTS: [usize; 6] = [32, 1, 8, 64, 128, 256];

/// Another server of credentials. Its address is resolved before the measurement begins.
#[derive(Clone, Debug)]
pub struct Peer {
    authority: String,
    address: SocketAddr,
    path: String,
    command: Option<String>,
}

impl Peer {
    /// Sets the shell command that starts the peer.
    pub fn started_by(self, command: Option<String>) -> Self {
        Self { command, ..self }
    }

    /// Starts the peer in the network namespace of the lab's node, if it has a command. Pods can reach it there.
    fn start(&self, site: &Site) -> Result<Option<Process>> {
        let Some(words) = &self.command else {
            return Ok(None);
        };
        let node = site.lab.node();
        let mut command = site.program_in(Path::new("/bin/sh"), node)?;
        command.args(["-c", &format!("exec {words}")]);
        site.listening(&mut command, node, self.address).map(Some)
    }
}

impl FromStr for Peer {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let uri: Uri = text.parse()?;
        ensure!(
            uri.scheme_str() == Some("http"),
            "a URL that begins with http:// is wanted"
        );
        let authority = uri.authority().context("the URL names no server")?;
        let port = authority.port_u16().unwrap_or(80);
        let address = (authority.host().trim_matches(['[', ']']), port)
            .to_socket_addrs()
            .with_context(|| format!("{authority} is not found"))?
            .next();
        Ok(Self {
            authority: authority.to_string(),
            address: address.with_context(|| format!("{authority} has no address"))?,
            path: uri.path().to_owned(),
            command: None,
        })
    }
}

/// A server that is measured.
struct Server<'a> {
    name: String,
    to: String,
    path: String,
    /// The pod from which the requests are sent. `None` means this machine's own network namespace.
    from: Option<&'a Pod>,
    pid: Option<u32>,
}

impl Server<'_> {
    fn ask(&self, site: &Site, each: Each, clients: usize) -> Result<(Outcome, Option<f64>)> {
        let each = each.to_possible_value().context("a name")?;
        let (clients, millis) = (clients.to_string(), site.effort.millis.to_string());
        let words = [
            "--to",
            &self.to,
            "--path",
            &self.path,
            "--clients",
            &clients,
            "--each",
            each.get_name(),
            "--millis",
            &millis,
        ];
        let before = self.pid.map(processor_time).transpose()?;
        let outcome = match self.from {
            Some(pod) => site.load(pod, &words)?,
            None => site.load_in(&Netns::of_this_process()?, &words)?,
        };
        let after = self.pid.map(processor_time).transpose()?;
        // `done` does not include the requests of the first tenth of the time.
        let spent = before
            .zip(after)
            .map(|(before, after)| (after - before).as_secs_f64() * 1e6 * 0.9 / outcome.done as f64);
        Ok((outcome, spent))
    }
}

/// The servers of one round.
struct Scene<'a> {
    agents: Vec<Agent>,
    servers: Vec<Server<'a>>,
    _others: Vec<Process>,
}

impl<'a> Scene<'a> {
    fn set(site: &Site, pod: &'a Pod, peer: Option<&Peer>, before: Option<&Path>) -> Result<Self> {
        let agent = site.agent(&[])?;
        let other = before.map(|binary| site.agent_of(binary)).transpose()?;
        let answer = site.record(pod, CREDENTIALS)?;
        let bare = site.bare(site.lab.node(), at_node(BARE), &answer)?;
        let null = site.null(site.lab.node(), at_node(NULL), &answer)?;
        let nginx = nginx::start(site, site.lab.node(), at_node(NGINX), &answer)?;
        let here = |name: &str, to: String, pid: u32| Server {
            name: name.to_owned(),
            to,
            path: CREDENTIALS.to_owned(),
            from: Some(pod),
            pid: Some(pid),
        };
        let to = match before {
            Some(_) => listener(&agent)?.to_string(),
            None => IMDS.to_owned(),
        };
        let mut servers = vec![
            here("metaproxy", to, agent.pid()),
            here(BARE_NAME, at_node(BARE).to_string(), bare.pid()),
            here(NULL_NAME, at_node(NULL).to_string(), null.pid()),
        ];
        let mut others = vec![bare, null];
        if let Some(nginx) = nginx {
            servers.push(here(NGINX_NAME, at_node(NGINX).to_string(), nginx.pid()));
            others.push(nginx);
        }
        if let Some(other) = &other {
            servers.push(here(
                "metaproxy before",
                listener(other)?.to_string(),
                other.pid(),
            ));
        }
        if let Some(peer) = peer {
            let process = peer.start(site)?;
            servers.push(Server {
                name: format!("peer {}", peer.authority),
                to: peer.address.to_string(),
                path: peer.path.clone(),
                from: process.as_ref().map(|_| pod),
                pid: process.as_ref().map(Process::pid),
            });
            others.extend(process);
        }
        Ok(Self {
            agents: [Some(agent), other].into_iter().flatten().collect(),
            servers,
            _others: others,
        })
    }
}

/// Runs the whole measurement. `before` is another binary of the agent. If it is given, both agents receive requests
/// directly at their listeners, because connections can be redirected to only one of them.
pub fn cached(site: &Site, peer: Option<&Peer>, before: Option<&Path>) -> Result<Section> {
    let pod = site.pod(PodSpec::with_role("busy", "app"))?;
    let clients = site.effort.some(&CLIENTS);
    let mut rows: Vec<Row> = [Each::Keep, Each::Connection]
        .into_iter()
        .flat_map(|each| clients.iter().map(move |clients| Row::new(each, *clients)))
        .collect();
    for round in 0..site.effort.rounds {
        // The memory layout of a process makes it faster or slower for its whole life. Therefore each round starts
        // new processes.
        let scene = Scene::set(site, &pod, peer, before)?;
        for row in &mut rows {
            for turn in 0..scene.servers.len() {
                let server = &scene.servers[(round + turn) % scene.servers.len()];
                let (outcome, processor) = server.ask(site, row.each, row.clients)?;
                row.push(&server.name, &outcome, processor);
            }
        }
        for agent in scene.agents {
            stop(agent)?;
        }
    }
    let mut section = Section {
        title: "Cached credentials",
        how: "Clients in a pod that ask again as soon as they are answered, on the same processors as the server; the bare \
              server is hyper on the same runtime, which answers the same bytes and asks nothing; the null server is one thread with epoll, which answers them to \
              whatever it reads; nginx answers them from memory, with as many workers; a peer is asked from \
              the pod if the run starts it, and from this machine's own network namespace otherwise. With another build beside it, both agents are asked at their \
              listeners, and not redirected. Agent and bare server are started anew for each round. Processor time \
              is that of the server's process. All clients are one thread: where that has a whole processor, it sets the \
              pace, and the processor time of a request tells more",
        ..Section::default()
    };
    tell(&rows, &mut section);
    Ok(section)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_parsed_from_an_http_url() {
        let peer: Peer = "http://127.0.0.1:8181/latest/meta-data/".parse().unwrap();
        assert_eq!(
            (peer.address.to_string().as_str(), peer.path.as_str()),
            ("127.0.0.1:8181", "/latest/meta-data/")
        );
        assert_eq!("http://[::1]/x".parse::<Peer>().unwrap().address.port(), 80);
        for bad in ["https://127.0.0.1/", "127.0.0.1:80", "/latest"] {
            assert!(bad.parse::<Peer>().is_err(), "{bad}");
        }
    }
}
