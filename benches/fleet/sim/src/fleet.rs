//! The model: clients, a load balancer, servers with bounded queues, and an autoscaler.
//!
//! Time is in seconds. Events are in a heap; events of the same time keep the order in which they were
//! made, so a seed gives the same run everywhere.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// How the load balancer chooses a server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Balance {
    RoundRobin,
    LeastConnections,
}

/// What a client does after 429.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Retry {
    Never,
    /// Sends again after a second, whatever the server says.
    Stubborn,
    /// As `Retry-After` says: the whole seconds that the queue will take.
    AsTold,
    /// As `Retry-After` says, and up to as long again, by chance.
    AsToldWithJitter,
}

/// What the autoscaler looks at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Signal {
    /// The size stays as it is.
    None,
    /// Images that wait or are in the model; target for each server.
    Images(f64),
    /// The same, and the rate of 429; target for each server and second.
    ImagesAndRejected(f64, f64),
    /// The busy share of the servers' time since the last look; target.
    Busy(f64),
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub seed: u64,
    pub duration: f64,
    /// Requests per second at a time.
    pub rate: fn(f64, f64) -> f64,
    /// The first parameter of `rate`, and an upper bound of its results.
    pub load: f64,
    pub most: f64,
    /// Seconds that the model takes for an image; one after the other. The spread is the share by which
    /// it varies in either direction.
    pub service: f64,
    pub spread: f64,
    /// Seconds of a request that are not the model's: network, decoding.
    pub overhead: f64,
    /// Places of the queue, and rows of the model in addition.
    pub capacity: usize,
    pub rows: usize,
    pub balance: Balance,
    pub retry: Retry,
    pub attempts: u32,
    /// How much slower the first server is.
    pub slow: f64,
    pub signal: Signal,
    pub replicas: usize,
    pub max_replicas: usize,
    /// Seconds from the decision until a server is ready.
    pub cold_start: f64,
    /// Seconds between looks of the autoscaler, and how old its numbers are.
    pub period: f64,
    pub lag: f64,
    /// Seconds for which the largest wish counts before the fleet shrinks.
    pub down_window: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 1,
            duration: 3600.0,
            rate: |load, _| load,
            load: 10.0,
            most: 10.0,
            service: 0.28,
            spread: 0.1,
            overhead: 0.01,
            capacity: 64,
            rows: 8,
            balance: Balance::LeastConnections,
            retry: Retry::AsToldWithJitter,
            attempts: 8,
            slow: 1.0,
            signal: Signal::None,
            replicas: 2,
            max_replicas: 40,
            cold_start: 30.0,
            period: 15.0,
            lag: 15.0,
            down_window: 300.0,
        }
    }
}

#[derive(Debug, Default)]
pub struct Outcome {
    pub requests: u64,
    pub attempts: u64,
    pub answered: u64,
    pub rejected: u64,
    pub lost: u64,
    /// Seconds from the first attempt to the answer, sorted.
    pub latencies: Vec<f64>,
    /// The most attempts in one second.
    pub peak_attempts: u64,
    pub replica_seconds: f64,
    pub most_replicas: usize,
}

impl Outcome {
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get((share * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
    }

    pub fn mean(&self) -> f64 {
        self.latencies.iter().sum::<f64>() / self.latencies.len() as f64
    }
}

#[derive(Debug, Clone, Copy)]
struct Request {
    begin: f64,
    attempt: u32,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    /// The next new request.
    Arrival,
    Attempt(Request),
    /// A server is done with its first image.
    Done(usize),
    Ready(usize),
    Look,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    time: f64,
    number: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    /// The earliest first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.time.total_cmp(&self.time).then(other.number.cmp(&self.number))
    }
}

#[derive(Debug, PartialEq, Clone, Copy)]
enum State {
    Starting,
    Ready,
    /// Finishes what it has and gets nothing new.
    Stopping,
    Gone,
}

#[derive(Debug)]
struct Server {
    state: State,
    images: VecDeque<Request>,
    since: f64,
    busy: f64,
    speed: f64,
}

/// A run in progress.
pub struct Fleet {
    settings: Settings,
    random: SmallRng,
    now: f64,
    heap: BinaryHeap<Entry>,
    number: u64,
    servers: Vec<Server>,
    next: usize,
    outcome: Outcome,
    second: (u64, u64),
    /// Rejections of the last minute, by time.
    rejections: VecDeque<f64>,
    /// What the autoscaler could see, by time; and what it wished.
    seen: VecDeque<(f64, f64, f64)>,
    wishes: VecDeque<(f64, usize)>,
    last_growth: f64,
    last_busy: f64,
}

impl Fleet {
    pub fn run(settings: Settings) -> Outcome {
        let mut fleet = Self {
            random: SmallRng::seed_from_u64(settings.seed),
            now: 0.0,
            heap: BinaryHeap::new(),
            number: 0,
            servers: Vec::new(),
            next: 0,
            outcome: Outcome::default(),
            second: (0, 0),
            rejections: VecDeque::new(),
            seen: VecDeque::new(),
            wishes: VecDeque::new(),
            last_growth: f64::NEG_INFINITY,
            last_busy: 0.0,
            settings,
        };
        for number in 0..fleet.settings.replicas {
            let speed = if number == 0 { fleet.settings.slow } else { 1.0 };
            fleet.add_server(State::Ready, speed);
        }
        fleet.push(0.0, Event::Arrival);
        if fleet.settings.signal != Signal::None {
            fleet.push(fleet.settings.period, Event::Look);
        }
        while let Some(entry) = fleet.heap.pop() {
            fleet.now = entry.time;
            fleet.handle(entry.event);
        }
        let end = fleet.now.max(fleet.settings.duration);
        for server in fleet.servers.iter().filter(|server| server.state != State::Gone) {
            fleet.outcome.replica_seconds +=
                end.min(fleet.settings.duration) - server.since.min(fleet.settings.duration);
        }
        fleet.outcome.latencies.sort_by(f64::total_cmp);
        fleet.outcome
    }

    fn push(&mut self, delay: f64, event: Event) {
        self.number += 1;
        self.heap.push(Entry { time: self.now + delay, number: self.number, event });
    }

    fn add_server(&mut self, state: State, speed: f64) {
        let since = self.now;
        self.servers.push(Server { state, images: VecDeque::new(), since, busy: 0.0, speed });
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrival => self.arrival(),
            Event::Attempt(request) => self.attempt(request),
            Event::Done(number) => self.done(number),
            Event::Ready(number) => {
                if self.servers[number].state == State::Starting {
                    self.servers[number].state = State::Ready;
                }
            }
            Event::Look => self.look(),
        }
    }

    /// A Poisson process whose rate changes, by thinning.
    fn arrival(&mut self) {
        let Settings { rate, load, most, duration, .. } = self.settings;
        if self.random.random::<f64>() < rate(load, self.now) / most {
            self.outcome.requests += 1;
            self.attempt(Request { begin: self.now, attempt: 1 });
        }
        let wait = -self.random.random::<f64>().max(f64::MIN_POSITIVE).ln() / most;
        if self.now + wait < duration {
            self.push(wait, Event::Arrival);
        }
    }

    fn attempt(&mut self, request: Request) {
        self.outcome.attempts += 1;
        let second = self.now as u64;
        self.second =
            if self.second.0 == second { (second, self.second.1 + 1) } else { (second, 1) };
        self.outcome.peak_attempts = self.outcome.peak_attempts.max(self.second.1);
        let Some(chosen) = self.choose() else { return self.refused(request, 1.0) };
        let Settings { capacity, rows, .. } = self.settings;
        let waiting = self.servers[chosen].images.len();
        if waiting >= capacity + rows {
            let told = (waiting as f64 * self.settings.service * self.servers[chosen].speed).ceil();
            return self.refused(request, told.max(1.0));
        }
        self.servers[chosen].images.push_back(request);
        if waiting == 0 {
            self.serve(chosen);
        }
    }

    fn choose(&mut self) -> Option<usize> {
        let ready = |server: &Server| server.state == State::Ready;
        let count = self.servers.len();
        // From the next one on, so that equal servers take turns.
        let turns: Vec<usize> = (0..count)
            .map(|n| (self.next + n) % count)
            .filter(|n| ready(&self.servers[*n]))
            .collect();
        let chosen = match self.settings.balance {
            Balance::RoundRobin => turns.first().copied(),
            Balance::LeastConnections => {
                turns.into_iter().min_by_key(|n| self.servers[*n].images.len())
            }
        }?;
        self.next = chosen + 1;
        Some(chosen)
    }

    fn refused(&mut self, request: Request, told: f64) {
        self.outcome.rejected += 1;
        self.rejections.push_back(self.now);
        let wait = match self.settings.retry {
            Retry::Never => None,
            Retry::Stubborn => Some(1.0),
            Retry::AsTold => Some(told),
            Retry::AsToldWithJitter => Some(told * (1.0 + self.random.random::<f64>())),
        };
        match wait {
            Some(wait) if request.attempt < self.settings.attempts => {
                self.push(
                    wait,
                    Event::Attempt(Request { attempt: request.attempt + 1, ..request }),
                );
            }
            _ => self.outcome.lost += 1,
        }
    }

    fn serve(&mut self, number: usize) {
        let Settings { service, spread, .. } = self.settings;
        let varied = service * (1.0 + spread * (2.0 * self.random.random::<f64>() - 1.0));
        let time = varied * self.servers[number].speed;
        self.servers[number].busy += time;
        self.push(time, Event::Done(number));
    }

    fn done(&mut self, number: usize) {
        if let Some(request) = self.servers[number].images.pop_front() {
            self.outcome.answered += 1;
            self.outcome.latencies.push(self.now - request.begin + self.settings.overhead);
        }
        if !self.servers[number].images.is_empty() {
            self.serve(number);
        } else if self.servers[number].state == State::Stopping {
            self.remove(number);
        }
    }

    fn remove(&mut self, number: usize) {
        self.servers[number].state = State::Gone;
        let since = self.servers[number].since;
        self.outcome.replica_seconds += self.now - since;
    }

    /// As the HorizontalPodAutoscaler does with the settings of the chart: the largest wish of all signals,
    /// ten percent of tolerance, doubling or two more in 30 s, a window before the fleet shrinks.
    fn look(&mut self) {
        let Settings { signal, period, lag, duration, max_replicas, replicas, down_window, .. } =
            self.settings;
        if self.now + period < duration {
            self.push(period, Event::Look);
        }
        let images: usize = self.servers.iter().map(|server| server.images.len()).sum();
        while self.rejections.front().is_some_and(|time| *time < self.now - 60.0) {
            self.rejections.pop_front();
        }
        let rejected = self.rejections.len() as f64 / 60.0;
        let busy: f64 = self.servers.iter().map(|server| server.busy).sum();
        let share = (busy - self.last_busy) / period;
        self.last_busy = busy;
        let first = if matches!(signal, Signal::Busy(_)) { share } else { images as f64 };
        self.seen.push_back((self.now, first, rejected));
        while self.seen.len() > 1 && self.seen[1].0 <= self.now - lag {
            self.seen.pop_front();
        }
        let (_, first, rejected) = self.seen[0];
        let size = self.count(|state| matches!(state, State::Starting | State::Ready));
        let wish = |value: f64, target: f64| {
            let ratio = value / target / size as f64;
            if (ratio - 1.0).abs() <= 0.1 { size } else { (value / target).ceil() as usize }
        };
        let wished = match signal {
            Signal::None => size,
            Signal::Images(target) | Signal::Busy(target) => wish(first, target),
            Signal::ImagesAndRejected(target, rate) => {
                wish(first, target).max(wish(rejected, rate))
            }
        };
        let wished = wished.clamp(replicas, max_replicas);
        self.wishes.push_back((self.now, wished));
        while self.wishes.front().is_some_and(|(time, _)| *time < self.now - down_window) {
            self.wishes.pop_front();
        }
        if wished > size && self.now - self.last_growth >= 30.0 {
            self.last_growth = self.now;
            self.grow(wished.min((2 * size).max(size + 2)) - size);
        } else if wished < size {
            let floor = self.wishes.iter().map(|(_, wish)| *wish).max().unwrap_or(size);
            self.shrink(size.saturating_sub(floor).min(size.div_ceil(4)));
        }
        self.outcome.most_replicas = self.outcome.most_replicas.max(size);
    }

    fn count(&self, which: impl Fn(State) -> bool) -> usize {
        self.servers.iter().filter(|server| which(server.state)).count()
    }

    fn grow(&mut self, more: usize) {
        for _ in 0..more {
            self.add_server(State::Starting, 1.0);
            self.push(self.settings.cold_start, Event::Ready(self.servers.len() - 1));
        }
    }

    fn shrink(&mut self, fewer: usize) {
        for _ in 0..fewer {
            // The newest first, as Kubernetes prefers pods that are not ready.
            let last = self
                .servers
                .iter()
                .rposition(|server| matches!(server.state, State::Starting | State::Ready));
            let Some(number) = last else { return };
            self.servers[number].state = State::Stopping;
            if self.servers[number].images.is_empty() {
                self.remove(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_is_the_queue_of_the_textbook() {
        // M/D/1: the mean time in the system is s + s * r / (2 (1 - r)).
        for load in [0.3, 0.6, 0.8] {
            let settings = Settings {
                load,
                most: load,
                service: 1.0,
                spread: 0.0,
                overhead: 0.0,
                replicas: 1,
                duration: 400_000.0,
                capacity: 10_000,
                ..Settings::default()
            };
            let mean = Fleet::run(settings).mean();
            let expected = 1.0 + load / (2.0 * (1.0 - load));
            assert!((mean / expected - 1.0).abs() < 0.03, "{load}: {mean}, not {expected}");
        }
    }

    #[test]
    fn every_request_is_answered_or_lost_and_runs_repeat() {
        for retry in [Retry::Never, Retry::Stubborn, Retry::AsTold, Retry::AsToldWithJitter] {
            let run = || {
                Fleet::run(Settings {
                    load: 30.0,
                    most: 30.0,
                    duration: 600.0,
                    retry,
                    signal: Signal::ImagesAndRejected(12.0, 1.0),
                    ..Settings::default()
                })
            };
            let [one, two] = [run(), run()];
            assert_eq!(one.requests, one.answered + one.lost);
            assert_eq!(one.attempts, one.answered + one.rejected);
            assert_eq!((one.attempts, one.latencies), (two.attempts, two.latencies));
        }
    }

    #[test]
    fn an_autoscaler_grows_with_the_load_and_shrinks_after_it() {
        let outcome = Fleet::run(Settings {
            rate: |load, now| if (600.0..1800.0).contains(&now) { load } else { 1.0 },
            load: 30.0,
            most: 30.0,
            duration: 7200.0,
            signal: Signal::Images(12.0),
            ..Settings::default()
        });
        assert!(outcome.most_replicas >= 8, "{outcome:?}");
        assert!(outcome.replica_seconds < 0.5 * outcome.most_replicas as f64 * 7200.0);
    }
}
