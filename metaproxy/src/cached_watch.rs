//! Values that are looked at much more often than they change: a look that finds nothing new takes no lock, and writes to
//! no memory that others read.

use tokio::sync::watch;

/// Word of changes, for one who looks.
#[derive(Clone, Debug)]
pub struct Changes<T> {
    receiver: watch::Receiver<T>,
    /// Nobody is there who could change it.
    ended: bool,
}

impl<T> Changes<T> {
    /// Of what changes from this moment on.
    pub fn new(mut receiver: watch::Receiver<T>) -> Self {
        receiver.mark_unchanged();
        let ended = receiver.has_changed().is_err();
        Self { receiver, ended }
    }

    /// Whether there was any since it was asked last.
    pub fn any(&mut self) -> bool {
        match self.receiver.has_changed() {
            Ok(false) => false,
            Ok(true) => {
                self.receiver.mark_unchanged();
                true
            }
            // There may have been a last one.
            Err(_) => !std::mem::replace(&mut self.ended, true),
        }
    }
}

/// The latest value.
#[derive(Clone, Debug)]
pub struct CachedWatch<T> {
    changes: Changes<T>,
    value: T,
}

impl<T: Copy> CachedWatch<T> {
    /// From the value of this moment on.
    pub fn new(receiver: watch::Receiver<T>) -> Self {
        let changes = Changes::new(receiver);
        let value = *changes.receiver.borrow();
        Self { changes, value }
    }

    /// The value of this moment; the last one where nobody changes it any more.
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
    fn a_change_is_told_once_and_the_last_one_too() {
        let (sender, receiver) = watch::channel(1);
        sender.send_replace(2);
        let mut changes = Changes::new(receiver.clone());
        assert!(!changes.any(), "that was before");
        sender.send_replace(3);
        assert!(changes.any() && !changes.any());
        sender.send_replace(4);
        drop(sender);
        assert!(changes.any() && !changes.any());
        assert!(!Changes::new(receiver).any(), "nobody changes it any more");
    }
}
