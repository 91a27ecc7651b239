//! Single flight: callers that want the same value share one computation.
//!
//! A computation has a state. Its [`Leader`] changes the state, and any number of callers watch it
//! through a [`watch::Receiver`]. The leader is not one of the callers, so any caller may leave, even
//! the first. When the last caller has left, the leader learns that the computation is abandoned.
//!
//! `tests/loom` compiles this file with a lock and a channel of its own and tries all interleavings.

use std::collections::HashMap;
use std::sync::Arc;

use super::key::Key;
use super::sync::{Mutex, MutexGuard, watch};

/// The computations in flight, by key. `S` is the state of a computation.
#[derive(Debug)]
pub struct SingleFlight<S> {
    flights: Arc<Mutex<FlightMap<S>>>,
}

type FlightMap<S> = HashMap<Key, Arc<watch::Sender<S>>>;

impl<S> Default for SingleFlight<S> {
    fn default() -> Self {
        Self { flights: Arc::default() }
    }
}

impl<S> SingleFlight<S> {
    /// Locks the map: no flight is joined, started, finished or abandoned while the guard lives.
    #[must_use]
    pub fn lock(&self) -> InFlight<'_, S> {
        InFlight { owner: self, flights: self.flights.lock() }
    }
}

/// The locked map of the flights that can be joined.
#[derive(Debug)]
pub struct InFlight<'f, S> {
    owner: &'f SingleFlight<S>,
    flights: MutexGuard<'f, FlightMap<S>>,
}

impl<S> InFlight<'_, S> {
    /// Whether a flight of `key` can be joined.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.flights.contains_key(key)
    }

    /// Joins the flight of `key`; `None` if there is none.
    #[must_use]
    pub fn join(&self, key: &Key) -> Option<watch::Receiver<S>> {
        self.flights.get(key).map(|flight| flight.subscribe())
    }

    /// Starts a flight. With a key, others can join it from now on, and it replaces an older flight
    /// of the same key; those who joined the older one keep waiting for it.
    pub fn start(&mut self, key: Option<Key>, state: S) -> (Leader<S>, watch::Receiver<S>) {
        let (sender, receiver) = watch::channel(state);
        let state = Arc::new(sender);
        if let Some(key) = key {
            self.flights.insert(key, Arc::clone(&state));
        }
        (Leader { flights: Arc::clone(&self.owner.flights), key, state }, receiver)
    }
}

/// The computing side of a flight. Dropping it ends the flight without a result, and all waiting
/// receivers see their channel closed.
#[derive(Debug)]
pub struct Leader<S> {
    flights: Arc<Mutex<FlightMap<S>>>,
    key: Option<Key>,
    state: Arc<watch::Sender<S>>,
}

impl<S> Leader<S> {
    /// Changes the state and wakes all receivers.
    pub fn update(&self, change: impl FnOnce(&mut S)) {
        self.state.send_modify(change);
    }

    /// Completes when nobody waits any more. From then on nobody can join either.
    pub async fn abandoned(&self) {
        loop {
            self.state.closed().await;
            let mut flights = self.flights.lock();
            // A caller may have joined after the last one left and before the lock was taken.
            if self.state.receiver_count() == 0 {
                self.close(&mut flights);
                return;
            }
        }
    }

    /// Ends the flight. If it could be joined until now, `keep` stores its value first, so that a
    /// caller always finds either the flight or the stored value. `change` then sets the last state.
    pub fn finish(self, keep: impl FnOnce(Key), change: impl FnOnce(&mut S)) {
        {
            let mut flights = self.flights.lock();
            if let Some(key) = self.key.filter(|_| self.can_be_joined(&flights)) {
                keep(key);
            }
            self.close(&mut flights);
        }
        self.state.send_modify(change);
    }

    /// False once a newer flight of the same key has replaced this one.
    fn can_be_joined(&self, flights: &FlightMap<S>) -> bool {
        let own = |flight: &Arc<_>| Arc::ptr_eq(flight, &self.state);
        self.key.and_then(|key| flights.get(&key)).is_some_and(own)
    }

    fn close(&self, flights: &mut FlightMap<S>) {
        if let Some(key) = self.key.filter(|_| self.can_be_joined(flights)) {
            flights.remove(&key);
        }
    }
}

impl<S> Drop for Leader<S> {
    fn drop(&mut self) {
        self.close(&mut self.flights.lock());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::KeyNamespace;

    fn key() -> Key {
        KeyNamespace::new(&[]).key("test", &[])
    }

    #[tokio::test]
    async fn a_flight_outlives_any_caller_and_is_abandoned_by_the_last() {
        let flights = SingleFlight::<u32>::default();
        let (leader, first) = flights.lock().start(Some(key()), 0);
        let second = flights.lock().join(&key()).unwrap();
        drop(first);
        leader.update(|state| *state = 1);
        assert_eq!(*second.borrow(), 1);
        let third = flights.lock().join(&key()).unwrap();
        assert_eq!(*third.borrow(), 1, "a late caller sees the present state");
        drop(second);
        let mut abandoned = Box::pin(leader.abandoned());
        tokio::select! {
            biased;
            () = &mut abandoned => panic!("the third caller still waits"),
            () = tokio::task::yield_now() => {}
        }
        drop(third);
        abandoned.await;
        assert!(flights.lock().join(&key()).is_none(), "an abandoned flight cannot be joined");
    }

    #[tokio::test]
    async fn joining_at_the_last_moment_keeps_a_flight_alive() {
        let flights = SingleFlight::<u32>::default();
        let (leader, first) = flights.lock().start(Some(key()), 0);
        drop(first);
        // The leader has not noticed yet that the first caller left.
        let late = flights.lock().join(&key()).unwrap();
        tokio::select! {
            biased;
            () = leader.abandoned() => panic!("a caller waits"),
            () = tokio::task::yield_now() => {}
        }
        leader.finish(|_| {}, |state| *state = 2);
        assert_eq!(*late.borrow(), 2);
    }

    #[test]
    fn a_finished_flight_is_kept_before_it_is_gone() {
        let flights = SingleFlight::<u32>::default();
        let (leader, waiting) = flights.lock().start(Some(key()), 0);
        let mut kept = None;
        leader.finish(|key| kept = Some(key), |state| *state = 3);
        assert_eq!(kept, Some(key()));
        assert_eq!(*waiting.borrow(), 3);
        assert!(flights.lock().join(&key()).is_none());
    }

    #[test]
    fn a_newer_flight_replaces_an_older_one_and_only_the_newer_is_kept() {
        let flights = SingleFlight::<u32>::default();
        let (old, waiting) = flights.lock().start(Some(key()), 0);
        let (new, _) = flights.lock().start(Some(key()), 10);
        assert_eq!(*flights.lock().join(&key()).unwrap().borrow(), 10);
        old.finish(|_| panic!("only the newer one is kept"), |state| *state = 1);
        assert_eq!(*waiting.borrow(), 1, "the older flight still serves its callers");
        assert!(flights.lock().contains(&key()), "the newer flight is still there");
        let mut kept = false;
        new.finish(|_| kept = true, |_| {});
        assert!(kept);
    }

    #[tokio::test]
    async fn a_dropped_leader_is_noticed_and_a_flight_without_a_key_cannot_be_joined() {
        let flights = SingleFlight::<u32>::default();
        let (leader, mut waiting) = flights.lock().start(Some(key()), 0);
        drop(leader);
        assert!(waiting.changed().await.is_err());
        assert!(flights.lock().join(&key()).is_none());
        let (_leader, _waiting) = flights.lock().start(None, 0);
        assert!(flights.lock().join(&key()).is_none());
    }
}
