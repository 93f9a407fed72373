//! Decides what the agent does about a listener if a pod claims its port, or if connections do not arrive at it.

use crate::identify::self_check::Fault;
use crate::intercept::port_claim::PortClaim;
use crate::telemetry::health::Condition;

/// The action that the agent takes for its listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Send pods' connections to the listener.
    Serve(Condition),
    /// Refuse pods' connections, because another program would answer them.
    Refuse(String),
    /// Move the listener to another port.
    Move {
        why: String,
        /// Whether connections no longer arrive at the listener.
        is_taken: bool,
    },
}

/// Returns the action for a claim of the port, the result of the last check, and the value of `--listen-port`.
pub(super) fn action(claim: Option<&PortClaim>, fault: Option<&Fault>, listen_port: u16) -> Action {
    // The port of a hostNetwork pod is not redirected, so connections arrive at the listener. The pod may be the
    // agent's own.
    let claim = claim.filter(|claim| listen_port == 0 || !claim.host_network);
    let is_taken = matches!(fault, Some(Fault::Elsewhere { .. }));
    let why = match (claim, fault) {
        (Some(claim), _) if is_taken => {
            format!("{claim}, and connections to it do not arrive at the agent")
        }
        (Some(claim), _) => claim.to_string(),
        (None, Some(fault)) if is_taken => fault.to_string(),
        (None, Some(fault @ Fault::AddressGone { .. })) if listen_port == 0 => fault.to_string(),
        (None, fault) => return Action::Serve(condition(fault)),
    };
    if listen_port == 0 {
        return Action::Move { why, is_taken };
    }
    let consequence = if is_taken {
        "pods' connections to the metadata service are refused until they do"
    } else {
        "its NAT rules may take pods' connections to the metadata service"
    };
    let sentence = format!(
        "--listen-port {listen_port}: {why}; {consequence}. Delete that pod, Service or rule or give it another port, or \
         choose --listen-port 0: then the listener moves when its port is claimed"
    );
    if is_taken {
        Action::Refuse(sentence)
    } else {
        Action::Serve(Condition::Failing(sentence))
    }
}

/// Returns the condition of a listener after a check.
pub(super) fn condition(fault: Option<&Fault>) -> Condition {
    match fault {
        None => Condition::Fine,
        Some(fault @ Fault::Untried { .. }) => Condition::Degraded(fault.to_string()),
        Some(fault) => Condition::Failing(fault.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn pod(host_network: bool) -> Option<PortClaim> {
        Some(PortClaim {
            namespace: "apps".to_owned(),
            name: "web".to_owned(),
            port: 18_181,
            host_network,
        })
    }

    fn taken() -> Option<Fault> {
        Some(Fault::Elsewhere {
            listener: "10.0.0.1:18181".parse().unwrap(),
            how: "none within 500 ms".to_owned(),
        })
    }

    fn unverified() -> Option<Fault> {
        Some(Fault::Unverified {
            listener: "10.0.0.1:18181".parse().unwrap(),
            why: "not attached".to_owned(),
        })
    }

    fn gone() -> Option<Fault> {
        Some(Fault::AddressGone {
            listener: "10.0.0.1:18181".parse().unwrap(),
        })
    }

    fn untried() -> Option<Fault> {
        Some(Fault::Untried {
            listener: "10.0.0.1:18181".parse().unwrap(),
            why: "no descriptor".to_owned(),
        })
    }

    #[rstest]
    #[case::nothing(None, None, 0, "serve fine", "")]
    #[case::claimed(pod(false), None, 0, "move", "pod apps/web declares hostPort 18181")]
    #[case::claimed_by_a_host_pod(pod(true), None, 0, "move", "pod apps/web")]
    #[case::claimed_and_taken(pod(false), taken(), 0, "move taken", "pod apps/web")]
    #[case::taken(None, taken(), 0, "move taken", "externalIPs")]
    #[case::unverified(None, unverified(), 0, "serve failing", "not attached")]
    #[case::without_its_address(None, gone(), 0, "move", "not the node's any more")]
    #[case::fixed_without_its_address(None, gone(), 18_181, "serve failing", "not the node's any more")]
    #[case::untried(None, untried(), 0, "serve degraded", "no descriptor")]
    #[case::fixed(None, None, 18_181, "serve fine", "")]
    #[case::fixed_and_claimed(pod(false), None, 18_181, "serve failing", "pod apps/web")]
    #[case::fixed_and_perhaps_its_own(pod(true), None, 18_181, "serve fine", "")]
    #[case::fixed_and_taken(None, taken(), 18_181, "refuse", "choose --listen-port 0")]
    #[case::fixed_claimed_and_taken(pod(false), taken(), 18_181, "refuse", "pod apps/web")]
    #[case::fixed_and_unverified(None, unverified(), 18_181, "serve failing", "not attached")]
    fn a_listener_moves_from_a_free_port_and_refuses_on_a_fixed_port_if_connections_are_diverted(
        #[case] claim: Option<PortClaim>,
        #[case] fault: Option<Fault>,
        #[case] listen_port: u16,
        #[case] what: &str,
        #[case] names: &str,
    ) {
        let (done, why) = match action(claim.as_ref(), fault.as_ref(), listen_port) {
            Action::Serve(Condition::Fine) => ("serve fine", String::new()),
            Action::Serve(Condition::Degraded(why)) => ("serve degraded", why),
            Action::Serve(Condition::Failing(why)) => ("serve failing", why),
            Action::Refuse(why) => ("refuse", why),
            Action::Move { why, is_taken: true } => ("move taken", why),
            Action::Move { why, is_taken: false } => ("move", why),
        };
        assert_eq!(done, what);
        assert!(why.contains(names), "{why}");
    }
}
