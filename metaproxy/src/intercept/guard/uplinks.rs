//! Monitors the interfaces through which packets to the metadata service leave the node: physical interfaces, and
//! interfaces with a route to the service in any table. Interfaces are added and removed while the guard runs, for
//! example when an ENI is attached or a bond is created.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use ipnet::IpNet;
use metaproxy_common::target::Targets;
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::link::{LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, MulticastGroup};
use thiserror::Error;
use tokio::sync::watch;
use tracing::warn;

/// The time after a change before interfaces are listed, because changes come in bursts.
const SETTLE_TIME: Duration = Duration::from_millis(20);

/// The maximum number of repeated listings if interfaces change during the listing, as on a node that starts many
/// pods.
const MAX_ATTEMPTS: u32 = 20;

/// The time before the next attempt if the connection to the kernel has failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The time after which interfaces are listed even without a notice of a change, because a notice may be lost.
const MAX_LIST_INTERVAL: Duration = Duration::from_secs(30);

/// The reasons why the interfaces are not known.
#[derive(Debug, Error)]
pub enum UplinksError {
    /// There is no netlink connection.
    #[error("cannot follow the node's network interfaces: {0}")]
    Socket(#[from] io::Error),
    /// They changed during the listing, so it must be repeated.
    #[error("the node's network interfaces and routes change all the time, and could not be listed")]
    Changing,
    /// The connection has ended, or had an unexpected message.
    #[error("cannot follow the node's network interfaces: {0}")]
    Protocol(String),
}

/// An interface at which packets to the metadata service leave the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The name, as `ip link` shows it.
    pub name: String,
    /// Whether its packets begin with an Ethernet header, and not with the IP header.
    pub is_ethernet: bool,
}

/// Uplinks by interface index.
pub type Uplinks = BTreeMap<u32, Uplink>;

/// A task that monitors the uplinks. Dropping this value ends it.
#[derive(Debug)]
pub struct UplinkMonitor {
    uplinks: watch::Receiver<Uplinks>,
    task: tokio::task::JoinHandle<()>,
}

impl UplinkMonitor {
    /// Lists the uplinks and starts to monitor them, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// If the interfaces cannot be listed.
    pub async fn start() -> Result<Self, UplinksError> {
        // If they change all the time, as after a boot, the task lists them soon.
        let first = match uplinks().await {
            Err(UplinksError::Changing) => Uplinks::new(),
            result => result?,
        };
        let (publish, uplinks) = watch::channel(first);
        if uplinks.borrow().is_empty() {
            warn!(
                "guard: no uplink was found; packets of raw sockets are not dropped until there is one (a physical \
                 interface, or one with a route to the metadata service)"
            );
        }
        let task = tokio::spawn(async move {
            loop {
                if let Err(error) = follow(&publish).await {
                    warn!("guard: {error}; trying again");
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        });
        Ok(Self { uplinks, task })
    }

    /// Returns the current uplinks.
    pub fn now(&mut self) -> Uplinks {
        self.uplinks.borrow_and_update().clone()
    }

    /// Waits until the uplinks have changed since the last call of [`Self::now`]. Returns false if the task has
    /// ended.
    pub async fn changed(&mut self) -> bool {
        self.uplinks.changed().await.is_ok()
    }
}

impl Drop for UplinkMonitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Publishes the uplinks whenever they change. Returns only if the connection to the kernel has failed.
async fn follow(publish: &watch::Sender<Uplinks>) -> Result<(), UplinksError> {
    // The notices are subscribed to before the first listing, so that no change is missed.
    let (connection, _handle, mut changes) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ])?;
    let _listening = AbortOnDrop(tokio::spawn(connection));
    loop {
        match uplinks().await {
            Ok(now) => {
                publish.send_if_modified(|uplinks| {
                    let differ = *uplinks != now;
                    uplinks.clone_from(&now);
                    differ
                });
            }
            Err(error) => {
                warn!("guard: {error}; trying again");
                tokio::time::sleep(RETRY_INTERVAL).await;
                continue;
            }
        }
        match tokio::time::timeout(MAX_LIST_INTERVAL, changes.next()).await {
            Ok(Some(_)) => {
                tokio::time::sleep(SETTLE_TIME).await;
                while changes.try_recv().is_ok() {}
            }
            Ok(None) => {
                return Err(UplinksError::Protocol(
                    "the netlink connection has ended".to_owned(),
                ));
            }
            Err(_) => {}
        }
    }
}

/// A task that is aborted on drop.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn uplinks() -> Result<Uplinks, UplinksError> {
    let mut result = list().await;
    for _ in 0..MAX_ATTEMPTS {
        if !matches!(result, Err(UplinksError::Changing)) {
            break;
        }
        tokio::time::sleep(SETTLE_TIME).await;
        result = list().await;
    }
    result
}

async fn list() -> Result<Uplinks, UplinksError> {
    let (mut connection, mut handle, _) = rtnetlink::new_connection()?;
    connection.set_forward_done(true);
    let _connection = AbortOnDrop(tokio::spawn(connection));
    let mut routed = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        // Table 0 stands for all tables.
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        for message in dump(&mut handle, RouteNetlinkMessage::GetRoute(request)).await? {
            if let RouteNetlinkMessage::NewRoute(route) = message
                && route.header.kind == RouteType::Unicast
                && leads_to_target(&route)
            {
                routed.extend(interfaces(&route));
            }
        }
    }
    let links = dump(&mut handle, RouteNetlinkMessage::GetLink(LinkMessage::default())).await?;
    let found = links.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => uplink(&link, &routed),
        _ => None,
    });
    Ok(found.collect())
}

fn uplink(link: &LinkMessage, routed: &BTreeSet<u32>) -> Option<(u32, Uplink)> {
    let (mut name, mut is_virtual) = (String::new(), false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(own) => name.clone_from(own),
            // Only virtual interfaces have a kind.
            LinkAttribute::LinkInfo(about) => {
                is_virtual = about.iter().any(|info| matches!(info, LinkInfo::Kind(_)));
            }
            _ => {}
        }
    }
    let (index, layer) = (link.header.index, link.header.link_layer_type);
    let is_physical = !is_virtual && layer != LinkLayerType::Loopback;
    let is_ethernet = layer == LinkLayerType::Ether;
    (is_physical || routed.contains(&index)).then_some((index, Uplink { name, is_ethernet }))
}

/// Reports whether a route, such as the default route, leads to a metadata address.
fn leads_to_target(route: &RouteMessage) -> bool {
    let prefix = route.header.destination_prefix_length;
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(destination) => Some(destination),
        _ => None,
    });
    let network: IpAddr = match (route.header.address_family, destination) {
        (AddressFamily::Inet | AddressFamily::Inet6, None) => return prefix == 0,
        (_, Some(RouteAddress::Inet(network))) => (*network).into(),
        (_, Some(RouteAddress::Inet6(network))) => (*network).into(),
        _ => return false,
    };
    let targets = &Targets::IMDS.rows[..Targets::IMDS.count as usize];
    IpNet::new(network, prefix).is_ok_and(|network| {
        let mut addresses = targets.iter().map(|target| target.address.address.ip());
        addresses.any(|address| network.contains(&address))
    })
}

fn interfaces(route: &RouteMessage) -> Vec<u32> {
    let of = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    };
    route.attributes.iter().flat_map(of).collect()
}

/// Returns a complete list or an error, and never a part of a list.
async fn dump(
    handle: &mut Handle,
    request: RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, UplinksError> {
    let failed = |what: &str| UplinksError::Protocol(what.to_owned());
    let mut request = NetlinkMessage::from(request);
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut answers = handle
        .request(request)
        .map_err(|error| failed(&error.to_string()))?;
    let mut found = Vec::new();
    while let Some(answer) = answers.next().await {
        if answer.header.flags & NLM_F_DUMP_INTR != 0 {
            return Err(UplinksError::Changing);
        }
        match answer.payload {
            NetlinkPayload::InnerMessage(message) => found.push(message),
            NetlinkPayload::Done(done) if done.code == 0 => return Ok(found),
            NetlinkPayload::Done(done) => return Err(io::Error::from_raw_os_error(-done.code).into()),
            NetlinkPayload::Error(error) => return Err(error.to_io().into()),
            other => return Err(failed(&format!("unexpected {other:?}"))),
        }
    }
    Err(failed("the list is not complete"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(family: AddressFamily, prefix: u8, network: Option<RouteAddress>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = family;
        route.header.destination_prefix_length = prefix;
        route.attributes.extend(network.map(RouteAttribute::Destination));
        route
    }

    #[test]
    fn routes_to_the_metadata_service_are_recognized_by_their_prefix() {
        let v4 = |text: &str, prefix| {
            let network = RouteAddress::Inet(text.parse().unwrap());
            leads_to_target(&route(AddressFamily::Inet, prefix, Some(network)))
        };
        let v6 = |text: &str, prefix| {
            let network = RouteAddress::Inet6(text.parse().unwrap());
            leads_to_target(&route(AddressFamily::Inet6, prefix, Some(network)))
        };
        assert!(leads_to_target(&route(AddressFamily::Inet, 0, None)));
        assert!(leads_to_target(&route(AddressFamily::Inet6, 0, None)));
        assert!(v4("169.254.169.254", 32) && v4("169.254.0.0", 16) && v4("128.0.0.0", 1));
        assert!(!v4("169.254.169.253", 32) && !v4("10.0.0.0", 8) && !v4("0.0.0.0", 1));
        assert!(v6("fd00:ec2::254", 128) && v6("fd00:ec2::", 32) && v6("::", 0));
        assert!(!v6("fe80::", 64) && !v6("fd00:ec3::", 32));
    }
}
