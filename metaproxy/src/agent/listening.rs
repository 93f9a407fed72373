//! Opens, checks and closes the listeners of a running agent. Moves them to another port when a pod claims their
//! port.

mod action;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use metaproxy_common::layout::Destination;
use metaproxy_common::verdict::Family;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;

use self::action::{Action, action, condition};
use super::StartError;
use crate::credentials::Issuer;
use crate::identify::self_check::{CHECK_INTERVAL, CHECK_TIMEOUT, CONFIRM_TIMEOUT, Fault};
use crate::imds::server::Server;
use crate::intercept::free_port::AvoidedPorts;
use crate::intercept::listener::{
    ListenError, ListenerMarks, Listeners, Mark as _, PortChoice, node_addresses,
};
use crate::intercept::port_claim::{PortClaim, claim};
use crate::intercept::programs::LiveConfig;
use crate::pods::Pods;
use crate::telemetry::health::{Condition, Health, Part};

/// How long the old listeners accept connections after a move. The SYN of a connection that was redirected before the
/// move may have been lost. The client sends it again after 1 s (RFC 6298).
const MOVE_GRACE: Duration = Duration::from_secs(2);

/// The number of ports that one move tries. If all fail, the next check starts another move.
const MAX_MOVE_ATTEMPTS: usize = 5;

/// The time between a failed check and the second check that confirms it. A detached program is attached again within
/// this time.
const CONFIRM_DELAY: Duration = Duration::from_millis(300);

/// The parts and settings with which listeners are opened.
pub(super) struct Setup<I> {
    pub server: Arc<Server<I>>,
    pub marks: ListenerMarks,
    pub config: LiveConfig,
    pub addresses: Vec<IpAddr>,
    /// Whether the agent finds the addresses itself, because `--listen-address` gives none.
    pub finds_addresses: bool,
    /// The value of `--listen-port`. 0 means a free port, which may change.
    pub port: u16,
    pub pods: Pods,
    /// The assumed family of the pods' addresses while no address is known.
    pub pod_family: Family,
    pub health: Health,
    /// Receives the listeners' addresses.
    pub shown: watch::Sender<Vec<String>>,
}

/// The listeners, and the tasks that accept from them.
pub(super) struct Listening<I> {
    setup: Setup<I>,
    accepting: JoinSet<()>,
    /// The listeners on ports that a move has left. Each is closed when its task ends.
    old: JoinSet<Open>,
    open: Open,
    /// The last observed claim of the port.
    claimed: Option<PortClaim>,
    /// The ports at which connections did not arrive.
    spoilt: BTreeSet<u16>,
    checks: Interval,
}

impl<I> Setup<I> {
    /// Sets the family of the pods' addresses in the programs' configuration.
    fn assume_family(&mut self) -> Result<(), StartError> {
        let known = self.pods.borrow_and_update().family();
        let family = known.unwrap_or(self.pod_family);
        Ok(self.config.set_pod_family(family)?)
    }
}

/// Listeners on one port. Dropping it closes them.
struct Open {
    addresses: Vec<SocketAddr>,
    destination: Destination,
    _close: DropGuard,
}

impl Open {
    fn port(&self) -> u16 {
        self.addresses.first().map_or(0, SocketAddr::port)
    }
}

impl<I: Issuer> Listening<I> {
    /// Opens the listeners, accepts from them, checks that connections arrive, and sends pods' connections there.
    ///
    /// # Errors
    /// [`StartError::Listen`] if no listener can be opened, [`StartError::Programs`] if the programs' configuration
    /// cannot be set.
    pub async fn start(mut setup: Setup<I>) -> Result<Self, StartError> {
        setup.assume_family()?;
        let mut accepting = JoinSet::new();
        let open = open(&mut setup, &BTreeSet::new(), &mut accepting)?;
        let mut checks =
            tokio::time::interval_at(tokio::time::Instant::now() + CHECK_INTERVAL, CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut listening = Self {
            setup,
            accepting,
            old: JoinSet::new(),
            open,
            claimed: None,
            spoilt: BTreeSet::new(),
            checks,
        };
        listening.show();
        let fault = listening.check(&listening.open.addresses, CHECK_TIMEOUT).await;
        listening.act(fault).await?;
        Ok(listening)
    }

    /// Watches the listeners until `stop` fires, then returns itself.
    ///
    /// # Errors
    /// [`StartError::TaskEnded`] if a task that accepts has failed, [`StartError::Programs`] if the programs'
    /// configuration cannot be set.
    pub async fn keep(mut self, mut stop: oneshot::Receiver<()>) -> Result<Self, StartError> {
        loop {
            tokio::select! {
                _ = &mut stop => return Ok(self),
                turn = self.turn() => turn?,
            }
        }
    }

    /// Waits until every task that accepts has ended.
    pub async fn ended(&mut self) {
        while self.accepting.join_next().await.is_some() {}
    }

    async fn turn(&mut self) -> Result<(), StartError> {
        let is_due = tokio::select! {
            // If the source of pods has ended, its own task ends the agent.
            Ok(()) = self.setup.pods.changed() => {
                self.setup.assume_family()?;
                self.claim() != self.claimed
            }
            _ = self.checks.tick() => true,
            // This fires at most once per interval at which the kernel's counters are read.
            () = self.setup.server.acceptor().refusals().answered_elsewhere() => true,
            Some(Ok(old)) = self.old.join_next() => {
                self.close(old);
                false
            }
            Some(ended) = self.accepting.join_next() => {
                // The task of an old listener ends after a move.
                ended.map_err(|_| StartError::TaskEnded("accept"))?;
                false
            }
        };
        if !is_due {
            return Ok(());
        }
        let claim = self.claim();
        let fault = if self.setup.port == 0 && claim.is_some() && claim != self.claimed {
            // The agent leaves a claimed port without a check, before connections are sent to another program.
            None
        } else {
            self.check_and_confirm().await
        };
        self.act(fault).await
    }

    fn claim(&self) -> Option<PortClaim> {
        claim(&self.setup.pods.borrow(), &self.open.addresses)
    }

    /// Acts on the pod that claims the port and on the result of the last check.
    async fn act(&mut self, fault: Option<Fault>) -> Result<(), StartError> {
        self.claimed = self.claim();
        match action(self.claimed.as_ref(), fault.as_ref(), self.setup.port) {
            Action::Serve(condition) => {
                self.setup.config.redirect_to(self.open.destination)?;
                self.report(condition);
            }
            Action::Refuse(why) => {
                self.setup.config.refuse()?;
                self.report(Condition::Failing(why));
            }
            Action::Move { why, is_taken } => {
                self.report(Condition::Failing(format!(
                    "{why}; the listener moves to another port"
                )));
                if is_taken {
                    self.setup.config.refuse()?;
                    self.spoilt.insert(self.open.port());
                }
                if matches!(fault, Some(Fault::AddressGone { .. })) {
                    self.look_for_addresses();
                }
                let condition = self.move_away(&why).await?;
                self.report(condition);
            }
        }
        Ok(())
    }

    /// Reads the node's current addresses, unless `--listen-address` gives them. If there are fewer than before, the
    /// old addresses are kept and tried again. Otherwise an address family would have no listener.
    fn look_for_addresses(&mut self) {
        if !self.setup.finds_addresses {
            return;
        }
        let found = node_addresses();
        if found.len() >= self.setup.addresses.len() {
            self.setup.server.acceptor().set_own_addresses(found.clone());
            self.setup.addresses = found;
        }
    }

    fn report(&self, condition: Condition) {
        self.setup.health.set(Part::Listener, condition);
    }

    /// Opens listeners on another port at which connections arrive, and closes the old ones after [`MOVE_GRACE`].
    async fn move_away(&mut self, why: &str) -> Result<Condition, StartError> {
        let mut failed = String::new();
        for _ in 0..MAX_MOVE_ATTEMPTS {
            let new = match open(&mut self.setup, &self.spoilt, &mut self.accepting) {
                Ok(new) => new,
                Err(error) => {
                    // The packet filter rules that diverted connections from the spoilt ports may have been removed.
                    self.spoilt.clear();
                    failed = error.to_string();
                    break;
                }
            };
            match self.check(&new.addresses, CHECK_TIMEOUT).await {
                Some(fault @ Fault::Elsewhere { .. }) => {
                    self.spoilt.insert(new.port());
                    self.close(new);
                    failed = fault.to_string();
                }
                fault => {
                    self.switch(new, why)?;
                    return Ok(condition(fault.as_ref()));
                }
            }
        }
        let sentence = format!("{why}; and the listener cannot move to another port: {failed}");
        Ok(Condition::Failing(sentence))
    }

    fn switch(&mut self, new: Open, why: &str) -> Result<(), StartError> {
        self.setup.config.redirect_to(new.destination)?;
        let old = std::mem::replace(&mut self.open, new);
        let from = old.port();
        self.old.spawn(async move {
            tokio::time::sleep(MOVE_GRACE).await;
            old
        });
        self.claimed = None;
        self.show();
        let listen = self.setup.shown.borrow().join(",");
        warn!(from, %listen, "the listener has moved to another port: {why}");
        Ok(())
    }

    fn close(&mut self, listeners: Open) {
        for address in &listeners.addresses {
            self.setup.marks.forget(*address);
        }
    }

    fn show(&self) {
        let shown = self.open.addresses.iter().map(ToString::to_string).collect();
        self.setup.shown.send_replace(shown);
    }

    /// Checks the listeners. Repeats a failed check once, so that a busy agent is not reported as failing.
    async fn check_and_confirm(&self) -> Option<Fault> {
        match self.check(&self.open.addresses, CHECK_TIMEOUT).await {
            Some(Fault::AddressGone { .. } | Fault::Elsewhere { .. } | Fault::Unverified { .. }) => {
                tokio::time::sleep(CONFIRM_DELAY).await;
                self.check(&self.open.addresses, CONFIRM_TIMEOUT).await
            }
            other => other,
        }
    }

    /// Checks all listeners concurrently, and returns the worst fault.
    async fn check(&self, listeners: &[SocketAddr], timeout: Duration) -> Option<Fault> {
        let checks = self.setup.server.acceptor().checks();
        let each = listeners.iter().map(|listener| checks.check(*listener, timeout));
        join_all(each).await.into_iter().filter_map(Result::err).min()
    }
}

/// Opens listeners on the given port, or on a free port that is not in `spoilt`, and accepts from them.
fn open<I: Issuer>(
    setup: &mut Setup<I>,
    spoilt: &BTreeSet<u16>,
    accepting: &mut JoinSet<()>,
) -> Result<Open, ListenError> {
    let choice = match setup.port {
        0 => {
            let pods = setup.pods.borrow();
            let host_ports = pods.host_ports().map(|(_, port)| port.port);
            PortChoice::Free(AvoidedPorts::of_this_node(
                host_ports.chain(spoilt.iter().copied()),
            ))
        }
        port => PortChoice::Fixed(port),
    };
    let listeners = Listeners::open(&setup.addresses, &choice, &mut setup.marks)?;
    let close = CancellationToken::new();
    let (addresses, destination) = (listeners.addresses().to_vec(), listeners.destination());
    for (listener, _) in listeners.into_sockets() {
        accepting.spawn(Arc::clone(&setup.server).accept(listener, close.clone()));
    }
    Ok(Open {
        addresses,
        destination,
        _close: close.drop_guard(),
    })
}
