//! Work in flight that several callers wait for: single flight.
//!
//! A flight has a state, which its [`Leader`] changes and any number of callers watch through a
//! [`watch::Receiver`]. The lead is not one of the callers, so any of them may leave, the first one
//! too. When the last one has left, the lead learns that the work is abandoned.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::key::Key;

/// What is being computed, by its key.
#[derive(Debug)]
pub struct SingleFlight<S> {
    open: Arc<Mutex<Open<S>>>,
}

type Open<S> = HashMap<Key, Arc<watch::Sender<S>>>;

impl<S> Default for SingleFlight<S> {
    fn default() -> Self {
        Self { open: Arc::default() }
    }
}

impl<S> SingleFlight<S> {
    /// Nobody joins, opens, lands or abandons a flight while the board is held.
    #[must_use]
    pub fn board(&self) -> InFlight<'_, S> {
        InFlight { flights: self, open: lock(&self.open) }
    }
}

/// No code that can panic runs while the lock is held, except what the callers of
/// [`Leader::land`] bring; the map itself is whole in any case.
fn lock<S>(open: &Mutex<Open<S>>) -> MutexGuard<'_, Open<S>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The flights that can be joined at this moment.
#[derive(Debug)]
pub struct InFlight<'f, S> {
    flights: &'f SingleFlight<S>,
    open: MutexGuard<'f, Open<S>>,
}

impl<S> InFlight<'_, S> {
    /// Whether there is a flight of `key` to join.
    #[must_use]
    pub fn has(&self, key: &Key) -> bool {
        self.open.contains_key(key)
    }

    /// Waits for the flight of `key` with those who wait for it already.
    #[must_use]
    pub fn join(&self, key: &Key) -> Option<watch::Receiver<S>> {
        self.open.get(key).map(|flight| flight.subscribe())
    }

    /// Opens a flight. With a key it can be joined from now on, and takes the place of one that has
    /// the same key and goes on for those who wait for it.
    pub fn open(&mut self, key: Option<Key>, state: S) -> (Leader<S>, watch::Receiver<S>) {
        let (sender, receiver) = watch::channel(state);
        let state = Arc::new(sender);
        if let Some(key) = key {
            self.open.insert(key, Arc::clone(&state));
        }
        (Leader { flights: Arc::clone(&self.flights.open), key, state }, receiver)
    }
}

/// The end of a flight at which the work is done. Dropping it closes the flight, and those who wait
/// for it hear that nothing more will come.
#[derive(Debug)]
pub struct Leader<S> {
    flights: Arc<Mutex<Open<S>>>,
    key: Option<Key>,
    state: Arc<watch::Sender<S>>,
}

impl<S> Leader<S> {
    /// Changes the state and wakes those who wait.
    pub fn update(&self, change: impl FnOnce(&mut S)) {
        self.state.send_modify(change);
    }

    /// Ends when nobody waits any more, and nobody can join.
    pub async fn abandoned(&self) {
        loop {
            self.state.closed().await;
            let mut open = lock(&self.flights);
            // Somebody may have joined between the last departure and here.
            if self.state.receiver_count() == 0 {
                self.close(&mut open);
                return;
            }
        }
    }

    /// Ends the flight: `keep` runs if others could have joined until now, so that whoever comes
    /// next finds either the flight or what `keep` has kept; then the state changes for the last
    /// time.
    pub fn land(self, keep: impl FnOnce(Key), change: impl FnOnce(&mut S)) {
        {
            let mut open = lock(&self.flights);
            if let Some(key) = self.key.filter(|_| self.is_open(&open)) {
                keep(key);
            }
            self.close(&mut open);
        }
        self.state.send_modify(change);
    }

    /// Not if another flight has taken its place.
    fn is_open(&self, open: &Open<S>) -> bool {
        let own = |flight: &Arc<_>| Arc::ptr_eq(flight, &self.state);
        self.key.and_then(|key| open.get(&key)).is_some_and(own)
    }

    fn close(&self, open: &mut Open<S>) {
        if let Some(key) = self.key.filter(|_| self.is_open(open)) {
            open.remove(&key);
        }
    }
}

impl<S> Drop for Leader<S> {
    fn drop(&mut self) {
        self.close(&mut lock(&self.flights));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Identity;

    fn key() -> Key {
        Identity::new(&[]).vision(&blake3::hash(b""))
    }

    #[tokio::test]
    async fn whoever_leaves_the_others_go_on_and_the_last_one_ends_it() {
        let flights = SingleFlight::<u32>::default();
        let (lead, first) = flights.board().open(Some(key()), 0);
        let second = flights.board().join(&key()).unwrap();
        drop(first);
        lead.update(|state| *state = 1);
        assert_eq!(*second.borrow(), 1);
        let third = flights.board().join(&key()).unwrap();
        assert_eq!(*third.borrow(), 1, "a late one sees what there is");
        drop(second);
        let mut abandoned = Box::pin(lead.abandoned());
        tokio::select! {
            biased;
            () = &mut abandoned => panic!("the third one waits still"),
            () = tokio::task::yield_now() => {}
        }
        drop(third);
        abandoned.await;
        assert!(flights.board().join(&key()).is_none(), "nobody joins an abandoned flight");
    }

    #[tokio::test]
    async fn who_joins_at_the_last_moment_saves_it() {
        let flights = SingleFlight::<u32>::default();
        let (lead, first) = flights.board().open(Some(key()), 0);
        drop(first);
        // The lead knows nothing of the departure yet.
        let late = flights.board().join(&key()).unwrap();
        tokio::select! {
            biased;
            () = lead.abandoned() => panic!("somebody waits"),
            () = tokio::task::yield_now() => {}
        }
        lead.land(|_| {}, |state| *state = 2);
        assert_eq!(*late.borrow(), 2);
    }

    #[test]
    fn a_landed_flight_is_kept_before_it_is_gone() {
        let flights = SingleFlight::<u32>::default();
        let (lead, waiting) = flights.board().open(Some(key()), 0);
        let mut kept = None;
        lead.land(|key| kept = Some(key), |state| *state = 3);
        assert_eq!(kept, Some(key()));
        assert_eq!(*waiting.borrow(), 3);
        assert!(flights.board().join(&key()).is_none());
    }

    #[test]
    fn a_newer_flight_takes_the_place_and_only_it_is_kept() {
        let flights = SingleFlight::<u32>::default();
        let (old, waiting) = flights.board().open(Some(key()), 0);
        let (new, _) = flights.board().open(Some(key()), 10);
        assert_eq!(*flights.board().join(&key()).unwrap().borrow(), 10);
        old.land(|_| panic!("the newer one will be kept"), |state| *state = 1);
        assert_eq!(*waiting.borrow(), 1, "who waited for it gets it");
        assert!(flights.board().join(&key()).is_some(), "the newer one is still there");
        let mut kept = false;
        new.land(|_| kept = true, |_| {});
        assert!(kept);
    }

    #[tokio::test]
    async fn a_lost_lead_is_noticed_and_a_private_flight_cannot_be_joined() {
        let flights = SingleFlight::<u32>::default();
        let (lead, mut waiting) = flights.board().open(Some(key()), 0);
        drop(lead);
        assert!(waiting.changed().await.is_err());
        assert!(flights.board().join(&key()).is_none());
        let (_lead, _waiting) = flights.board().open(None, 0);
        assert!(flights.board().join(&key()).is_none());
    }
}
