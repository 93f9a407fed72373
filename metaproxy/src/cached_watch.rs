//! Watched values that are read much more often than they change. A read that finds nothing new takes no lock, and
//! writes to no memory that other threads read.

use tokio::sync::watch;

/// Tells whether a watched value has changed.
#[derive(Clone, Debug)]
pub struct Changes<T> {
    receiver: watch::Receiver<T>,
    /// The sender is gone, so the value changes no more.
    ended: bool,
}

impl<T> Changes<T> {
    /// Starts to look for changes: what changed before does not count.
    pub fn new(mut receiver: watch::Receiver<T>) -> Self {
        receiver.mark_unchanged();
        let ended = receiver.has_changed().is_err();
        Self { receiver, ended }
    }

    /// Tells whether the value has changed since the last call.
    pub fn any(&mut self) -> bool {
        match self.receiver.has_changed() {
            Ok(false) => false,
            Ok(true) => {
                self.receiver.mark_unchanged();
                true
            }
            // The sender may have changed the value once more before it went.
            Err(_) => !std::mem::replace(&mut self.ended, true),
        }
    }
}

/// A copy of a watched value.
#[derive(Clone, Debug)]
pub struct CachedWatch<T> {
    changes: Changes<T>,
    value: T,
}

impl<T: Copy> CachedWatch<T> {
    /// Copies the value.
    pub fn new(receiver: watch::Receiver<T>) -> Self {
        let changes = Changes::new(receiver);
        let value = *changes.receiver.borrow();
        Self { changes, value }
    }

    /// Returns the present value; the last one if the sender is gone.
    pub fn now(&mut self) -> T {
        if self.changes.any() {
            self.value = *self.changes.receiver.borrow();
        }
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_look_shows_the_latest_value_and_the_last_one_after_its_end() {
        let (sender, receiver) = watch::channel(1);
        sender.send_replace(2);
        let mut watched = CachedWatch::new(receiver);
        assert_eq!(watched.now(), 2);
        sender.send_replace(3);
        assert_eq!((watched.now(), watched.now()), (3, 3));
        sender.send_replace(4);
        drop(sender);
        assert_eq!((watched.now(), watched.now()), (4, 4));
    }

    #[test]
    fn a_change_is_reported_once_and_so_is_the_last_one() {
        let (sender, receiver) = watch::channel(1);
        sender.send_replace(2);
        let mut changes = Changes::new(receiver.clone());
        assert!(!changes.any(), "that was before");
        sender.send_replace(3);
        assert!(changes.any() && !changes.any());
        sender.send_replace(4);
        drop(sender);
        assert!(changes.any() && !changes.any());
        assert!(!Changes::new(receiver).any(), "the sender is gone");
    }
}
