//! Stores the objects of one watch.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use kube::runtime::watcher::Event;

/// The known objects, and the objects of a list that is not complete yet. A list replaces the known objects when it
/// is complete.
#[derive(Debug)]
pub struct Store<K, T> {
    current: HashMap<K, Arc<T>>,
    incoming: Option<HashMap<K, Arc<T>>>,
    state: StoreState,
}

/// The source of the known objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StoreState {
    Unknown,
    LastRun,
    Synced,
}

impl<K, T> Default for Store<K, T> {
    fn default() -> Self {
        Self {
            current: HashMap::new(),
            incoming: None,
            state: StoreState::Unknown,
        }
    }
}

impl<K: Eq + Hash, T: PartialEq> Store<K, T> {
    /// Makes a store with the objects of the last run.
    pub fn from_last_run(objects: impl Iterator<Item = (K, T)>) -> Self {
        Self {
            current: objects.map(|(key, object)| (key, Arc::new(object))).collect(),
            incoming: None,
            state: StoreState::LastRun,
        }
    }

    /// Applies an event, and reports whether an object differs now.
    pub fn apply(&mut self, event: Option<Event<T>>, keyed: impl Fn(T) -> (K, T)) -> bool {
        match event {
            None => false,
            Some(Event::Init) => {
                self.incoming = Some(HashMap::new());
                false
            }
            Some(Event::InitApply(object)) => {
                let (key, object) = keyed(object);
                self.incoming
                    .get_or_insert_default()
                    .insert(key, Arc::new(object));
                false
            }
            Some(Event::InitDone) => {
                let listed = self.incoming.take().unwrap_or_default();
                // The first list is a change even if it is empty.
                let changed = self.state != StoreState::Synced || listed != self.current;
                self.current = listed;
                self.state = StoreState::Synced;
                changed
            }
            Some(Event::Apply(object)) => {
                let (key, object) = keyed(object);
                if self.current.get(&key).is_some_and(|known| **known == object) {
                    return false;
                }
                self.current.insert(key, Arc::new(object));
                true
            }
            Some(Event::Delete(object)) => {
                let (key, _) = keyed(object);
                self.current.remove(&key).is_some()
            }
        }
    }

    /// Returns all objects.
    pub fn all(&self) -> impl Iterator<Item = Arc<T>> {
        self.current.values().cloned()
    }

    /// Reports whether the API server has listed the objects.
    pub fn is_synced(&self) -> bool {
        self.state == StoreState::Synced
    }

    /// Reports whether the objects are known, from the API server or from the last run.
    pub fn is_known(&self) -> bool {
        self.state != StoreState::Unknown
    }

    /// Reports whether the objects are those of the last run.
    pub fn is_from_last_run(&self) -> bool {
        self.state == StoreState::LastRun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Words = Store<char, String>;

    fn keyed(word: String) -> (char, String) {
        (word.chars().next().unwrap(), word)
    }

    fn take(store: &mut Words, event: Event<&str>) -> bool {
        let owned = match event {
            Event::Init => Event::Init,
            Event::InitDone => Event::InitDone,
            Event::InitApply(word) => Event::InitApply(word.to_owned()),
            Event::Apply(word) => Event::Apply(word.to_owned()),
            Event::Delete(word) => Event::Delete(word.to_owned()),
        };
        store.apply(Some(owned), keyed)
    }

    fn words(store: &Words) -> Vec<String> {
        let mut words: Vec<String> = store.all().map(|word| (*word).clone()).collect();
        words.sort();
        words
    }

    #[test]
    fn a_list_replaces_the_known_objects_only_when_it_is_complete() {
        let mut store = Words::from_last_run(["old".to_owned(), "kept".to_owned()].into_iter().map(keyed));
        assert!(store.is_from_last_run() && !store.is_synced());
        assert!(!take(&mut store, Event::Init));
        assert!(!take(&mut store, Event::InitApply("kept")));
        assert!(!take(&mut store, Event::InitApply("new")));
        assert_eq!(
            words(&store),
            ["kept", "old"],
            "a list that breaks off changes nothing"
        );
        assert!(!take(&mut store, Event::Init));
        assert!(!take(&mut store, Event::InitApply("kept")));
        assert!(take(&mut store, Event::InitDone));
        assert_eq!(words(&store), ["kept"]);
        assert!(store.is_synced());
    }

    #[test]
    fn an_event_that_changes_no_object_is_not_a_change() {
        let mut store = Words::default();
        assert!(!take(&mut store, Event::Init));
        assert!(
            take(&mut store, Event::InitDone),
            "that there is nothing is known now"
        );
        assert!(take(&mut store, Event::Apply("a1")));
        assert!(!take(&mut store, Event::Apply("a1")));
        assert!(take(&mut store, Event::Apply("a2")));
        assert!(!take(&mut store, Event::Delete("b")));
        assert!(take(&mut store, Event::Delete("a2")));
        assert!(!take(&mut store, Event::Init));
        assert!(!take(&mut store, Event::InitDone), "still nothing");
        assert!(!store.apply(None, keyed));
    }
}
