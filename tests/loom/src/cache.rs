//! The single flight.

#[path = "../../../src/cache/single_flight.rs"]
mod single_flight;

mod sync;

/// A key is opaque to the single flight.
mod key {
    /// Equal keys mean equal values.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Key(pub u8);
}

use std::sync::Arc;

use loom::future::block_on;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

use self::key::Key;
use self::single_flight::{Leader, SingleFlight};
use self::sync::{Mutex, watch};

const KEY: Key = Key(1);

/// The state of a computation: its result, once there is one.
type State = Option<u32>;

/// What the captioner does: a store of values, the flights, and a count of computations.
#[derive(Default)]
struct Service {
    flights: SingleFlight<State>,
    store: Mutex<Option<u32>>,
    computations: Counter,
}

struct Counter(AtomicUsize);

impl Default for Counter {
    fn default() -> Self {
        Self(AtomicUsize::new(0))
    }
}

/// What a caller finds.
enum Found {
    Value(u32),
    Flight(watch::Receiver<State>),
    New(Leader<State>, watch::Receiver<State>),
}

impl Service {
    /// The order of the captioner: under the lock, first the flights and then the store.
    fn look_up(&self) -> Found {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.join(&KEY) {
            return Found::Flight(flight);
        }
        if let Some(value) = *self.store.lock() {
            return Found::Value(value);
        }
        let (leader, flight) = flights.start(Some(KEY), None);
        Found::New(leader, flight)
    }

    fn compute(&self, leader: Leader<State>) {
        let value = self.computations.0.fetch_add(1, Ordering::SeqCst) as u32 + 1;
        leader.finish(|_| *self.store.lock() = Some(value), |state| *state = Some(value));
    }

    /// A caller that waits for its value; `None` if the flight ended without one.
    fn ask(self: &Arc<Self>) -> State {
        match self.look_up() {
            Found::Value(value) => Some(value),
            Found::Flight(flight) => wait(flight),
            Found::New(leader, flight) => {
                let service = Arc::clone(self);
                let work = thread::spawn(move || service.compute(leader));
                let value = wait(flight);
                work.join().unwrap();
                value
            }
        }
    }
}

/// The last state of a flight.
fn wait(mut flight: watch::Receiver<State>) -> State {
    block_on(async move {
        while flight.borrow().is_none() && flight.changed().await.is_ok() {}
        *flight.borrow()
    })
}

/// Both get the value of the only computation.
pub(crate) fn two_callers_share_one_computation() {
    let service = Arc::new(Service::default());
    let other = Arc::clone(&service);
    let other = thread::spawn(move || other.ask());
    assert_eq!(service.ask(), Some(1));
    assert_eq!(other.join().unwrap(), Some(1));
    assert_eq!(service.computations.0.load(Ordering::SeqCst), 1);
}

/// The first caller leaves while another comes: the flight is given up only when nobody has joined it.
pub(crate) fn a_late_caller_is_never_lost() {
    let service = Arc::new(Service::default());
    let given_up = Arc::new(AtomicBool::new(false));
    let Found::New(leader, first) = service.look_up() else { panic!("the service is new") };
    let (other, known) = (Arc::clone(&service), Arc::clone(&given_up));
    let late = thread::spawn(move || {
        let found = other.look_up();
        if let Found::Flight(_waiting) = &found {
            assert!(!known.load(Ordering::SeqCst), "a flight with a caller was given up");
        }
    });
    let leaving = thread::spawn(move || drop(first));
    block_on(leader.abandoned());
    given_up.store(true, Ordering::SeqCst);
    drop(leader);
    leaving.join().unwrap();
    late.join().unwrap();
    assert!(!service.flights.lock().contains(&KEY), "nothing is left in the map");
}

/// A leader ends without a result while another caller joins. That caller does not wait for ever.
pub(crate) fn a_dropped_leader_is_noticed() {
    let service = Arc::new(Service::default());
    let Found::New(leader, first) = service.look_up() else { panic!("the service is new") };
    let late = Arc::clone(&service);
    let late = thread::spawn(move || late.ask());
    drop(leader);
    assert_eq!(wait(first), None);
    assert!(matches!(late.join().unwrap(), None | Some(1)));
    assert!(!service.flights.lock().contains(&KEY), "nothing is left in the map");
}

/// Two flights of one key: the older must not remove the newer, and only the newer is stored.
pub(crate) fn only_the_newest_is_kept() {
    let service = Arc::new(Service::default());
    let (old, _first) = service.flights.lock().start(Some(KEY), None);
    let other = Arc::clone(&service);
    let refresh = thread::spawn(move || {
        let (new, second) = other.flights.lock().start(Some(KEY), None);
        assert!(other.flights.lock().contains(&KEY));
        new.finish(|_| *other.store.lock() = Some(20), |state| *state = Some(20));
        wait(second)
    });
    old.finish(|_| *service.store.lock() = Some(10), |state| *state = Some(10));
    assert_eq!(refresh.join().unwrap(), Some(20));
    assert_eq!(*service.store.lock(), Some(20), "the newer value is the last that is stored");
    assert!(!service.flights.lock().contains(&KEY));
}

/// A flight finishes while another caller looks it up. That caller finds the flight or its value.
pub(crate) fn flight_or_value() {
    let service = Arc::new(Service::default());
    let Found::New(leader, _first) = service.look_up() else { panic!("the service is new") };
    let finishing = Arc::clone(&service);
    let finishing = thread::spawn(move || {
        leader.update(|state| *state = None);
        finishing.compute(leader);
    });
    let value = match service.look_up() {
        Found::Value(value) => Some(value),
        Found::Flight(flight) => wait(flight),
        Found::New(..) => panic!("neither flight nor value"),
    };
    assert_eq!(value, Some(1));
    finishing.join().unwrap();
}
