//! What a connection keeps of its last request. As long as nothing has changed since, the next one is answered by that,
//! and takes no lock that other connections take too.

use std::sync::Arc;

use tokio::sync::watch;

use super::decisions::{Decided, Decisions};
use super::{Caller, Version1};
use crate::credentials::RecentSession;
use crate::pods::{Inventory, Pods};
use crate::roles::Rules;
use crate::watched::{Changes, Watched};

/// Of one connection, and so of one caller.
#[derive(Debug)]
pub struct Recent<'a> {
    caller: &'a Caller,
    pods: Changes<Arc<Inventory>>,
    rules: Changes<Arc<Rules>>,
    last: Option<(Arc<Decided>, RecentSession)>,
    version1: Watched<Version1>,
}

impl<'a> Recent<'a> {
    /// Of a connection that has not asked for anything yet.
    pub fn new(
        caller: &'a Caller,
        pods: Pods,
        rules: watch::Receiver<Arc<Rules>>,
        version1: watch::Receiver<Version1>,
    ) -> Self {
        Self {
            caller,
            pods: Changes::new(pods),
            rules: Changes::new(rules),
            last: None,
            version1: Watched::new(version1),
        }
    }

    /// Whose connection it is.
    pub fn caller(&self) -> &'a Caller {
        self.caller
    }

    /// Whether requests without a session token are answered.
    pub fn version1(&mut self) -> Version1 {
        self.version1.now()
    }

    /// What is decided about the caller at this moment, and the session that this connection was served last for that.
    pub fn decided(&mut self, decisions: &Decisions) -> (&Decided, &mut RecentSession) {
        // Both are asked, as each tells of its changes once; and before it is decided anew, so that none is missed.
        if self.pods.any() | self.rules.any() {
            self.last = None;
        }
        let caller = self.caller;
        let (decided, session) = self
            .last
            .get_or_insert_with(|| (decisions.of(caller), RecentSession::default()));
        (decided, session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imds::decisions::tests::{caller, decisions, inventory, role};

    const UID: &str = "aaaaaaaa-0000-0000-0000-000000000001";

    #[test]
    fn a_change_counts_with_the_next_request_of_an_open_connection() {
        let (pods, rules, decisions) = decisions("one");
        let (_version1, version1) = watch::channel(Version1::Allowed);
        let caller = caller(UID, "10.244.0.5");
        let mut recent = Recent::new(&caller, pods.subscribe(), rules.subscribe(), version1);
        let first: *const Decided = recent.decided(&decisions).0;
        assert!(
            std::ptr::eq(first, recent.decided(&decisions).0),
            "looked up once"
        );
        assert_eq!(role(recent.decided(&decisions).0), Some("one"));
        pods.send_replace(inventory("other"));
        assert_eq!(role(recent.decided(&decisions).0), Some("other"));
        rules.send_modify(|rules| Arc::make_mut(rules).firewall = true);
        assert!(matches!(recent.decided(&decisions).0, Decided::NoRole(_)));
        pods.send_replace(Arc::default());
        rules.send_modify(|rules| Arc::make_mut(rules).firewall = false);
        assert!(matches!(recent.decided(&decisions).0, Decided::Wait(_)));
        assert!(matches!(recent.decided(&decisions).0, Decided::Wait(_)));
    }

    #[test]
    fn whether_tokens_are_required_counts_too() {
        let (pods, rules, _) = decisions("one");
        let (publish, version1) = watch::channel(Version1::Unknown);
        let caller = caller(UID, "10.244.0.5");
        let mut recent = Recent::new(&caller, pods.subscribe(), rules.subscribe(), version1);
        assert_eq!(recent.version1(), Version1::Unknown);
        publish.send_replace(Version1::Denied);
        assert_eq!(recent.version1(), Version1::Denied);
    }
}
