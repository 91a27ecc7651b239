//! Simulates a fleet of servers: `cargo run --release` prints the tables of docs/scale.md, and
//! `cargo run --release -- calibrate RATE SERVICE SPREAD OVERHEAD SECONDS` one line for calibrate.py.

mod fleet;

use fleet::{Balance, Fleet, Outcome, Retry, Settings, Signal};

/// A replica with two cores captions this many images in a second.
const SPEED: f64 = 1.0 / 0.28;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("calibrate") => calibrate(&arguments[1..]),
        None => {
            signals();
            capacities();
            retries();
            balancing();
        }
        Some(other) => {
            eprintln!("unknown command {other}");
            std::process::exit(2);
        }
    }
}

fn calibrate(arguments: &[String]) {
    let numbers: Vec<f64> = arguments.iter().filter_map(|text| text.parse().ok()).collect();
    let [rate, service, spread, overhead, duration] = numbers[..] else {
        eprintln!("give five numbers");
        std::process::exit(2);
    };
    // The mean of many runs of this length: one has as much chance in it as the measured one.
    let runs = 200;
    let (mut mean, mut median, mut tail) = (Vec::new(), Vec::new(), Vec::new());
    for seed in 0..runs {
        let outcome = Fleet::run(Settings {
            seed,
            load: rate,
            most: rate,
            service,
            spread,
            overhead,
            duration,
            ..Settings::default()
        });
        mean.push(outcome.mean());
        median.push(outcome.quantile(0.5));
        tail.push(outcome.quantile(0.95));
    }
    for (name, mut values) in [("mean", mean), ("p50", median), ("p95", tail)] {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values[(share * (values.len() - 1) as f64) as usize];
        println!("{name} {:.4} {:.4} {:.4}", at(0.5), at(0.05), at(0.95));
    }
}

/// Ten minutes of calm, then five times the load for half an hour, then calm.
fn burst(load: f64, now: f64) -> f64 {
    if (600.0..2400.0).contains(&now) { load } else { load / 5.0 }
}

fn row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}

fn header(title: &str, cells: &[&str]) {
    println!("\n{title}\n");
    row(&cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>());
    println!("|{}", " --- |".repeat(cells.len()));
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole as f64)
}

fn common(outcome: &Outcome) -> Vec<String> {
    vec![
        percent(outcome.lost, outcome.requests),
        percent(outcome.rejected, outcome.attempts),
        format!("{:.1}", outcome.quantile(0.5)),
        format!("{:.1}", outcome.quantile(0.95)),
    ]
}

fn signals() {
    header(
        "Signals: five times the load (30 requests/s) for half an hour, clients that try 8 times",
        &[
            "cold start",
            "signal",
            "lost",
            "429 of attempts",
            "p50, s",
            "p95, s",
            "most replicas",
            "replica hours",
        ],
    );
    let named = [
        ("busy time, target 70 %", Signal::Busy(0.7)),
        ("images, target 48", Signal::Images(48.0)),
        ("images, target 12", Signal::Images(12.0)),
        ("images, target 6", Signal::Images(6.0)),
        ("images 48, 429 at 1/s", Signal::ImagesAndRejected(48.0, 1.0)),
        ("images 12, 429 at 1/s", Signal::ImagesAndRejected(12.0, 1.0)),
    ];
    for cold_start in [2.0, 30.0, 240.0] {
        for (name, signal) in named {
            let outcome = Fleet::run(Settings {
                rate: burst,
                load: 30.0,
                most: 30.0,
                duration: 4200.0,
                signal,
                cold_start,
                ..Settings::default()
            });
            let mut cells = vec![format!("{cold_start:.0} s"), name.to_owned()];
            cells.extend(common(&outcome));
            cells.push(outcome.most_replicas.to_string());
            cells.push(format!("{:.1}", outcome.replica_seconds / 3600.0));
            row(&cells);
        }
    }
    header(
        "Windows: how long the largest wish counts before the fleet shrinks; bursts of 5 minutes every 20",
        &["cold start", "window", "lost", "429 of attempts", "p50, s", "p95, s", "replica hours"],
    );
    for cold_start in [2.0, 30.0, 240.0] {
        for down_window in [0.0, 60.0, 300.0, 900.0] {
            let outcome = Fleet::run(Settings {
                rate: |load, now| if now % 1200.0 >= 900.0 { load } else { load / 5.0 },
                load: 30.0,
                most: 30.0,
                duration: 14_400.0,
                signal: Signal::ImagesAndRejected(12.0, 1.0),
                cold_start,
                down_window,
                ..Settings::default()
            });
            let mut cells = vec![format!("{cold_start:.0} s"), format!("{down_window:.0} s")];
            cells.extend(common(&outcome));
            cells.push(format!("{:.1}", outcome.replica_seconds / 3600.0));
            row(&cells);
        }
    }
}

fn capacities() {
    header(
        "Queue capacity: 4 replicas, clients that do not try again",
        &["load", "capacity", "429", "p50, s", "p95, s"],
    );
    for share in [0.8, 0.95, 1.2] {
        for capacity in [1, 8, 16, 64, 256] {
            let load = share * 4.0 * SPEED;
            let outcome = Fleet::run(Settings {
                load,
                most: load,
                replicas: 4,
                capacity,
                retry: Retry::Never,
                duration: 7200.0,
                ..Settings::default()
            });
            let cells = common(&outcome);
            let [_, rejected, median, tail] = &cells[..] else { continue };
            row(&[
                format!("{:.0} %", share * 100.0),
                capacity.to_string(),
                rejected.clone(),
                median.clone(),
                tail.clone(),
            ]);
        }
    }
}

fn retries() {
    header(
        "Retry-After: 4 replicas, a minute of ten times their speed, then 70 % load",
        &["clients", "lost", "attempts for each request", "most attempts in a second", "p95, s"],
    );
    for (name, retry) in [
        ("never try again", Retry::Never),
        ("try again after 1 s", Retry::Stubborn),
        ("wait as Retry-After says", Retry::AsTold),
        ("wait up to twice as long, by chance", Retry::AsToldWithJitter),
    ] {
        let speed = 4.0 * SPEED;
        let outcome = Fleet::run(Settings {
            rate: |load, now| if (300.0..360.0).contains(&now) { load } else { load * 0.07 },
            load: 10.0 * speed,
            most: 10.0 * speed,
            replicas: 4,
            retry,
            duration: 1800.0,
            ..Settings::default()
        });
        row(&[
            name.to_owned(),
            percent(outcome.lost, outcome.requests),
            format!("{:.2}", outcome.attempts as f64 / outcome.requests as f64),
            outcome.peak_attempts.to_string(),
            format!("{:.1}", outcome.quantile(0.95)),
        ]);
    }
}

fn balancing() {
    header(
        "Balancing: 4 replicas, clients that do not try again",
        &["load", "first replica", "algorithm", "429", "p50, s", "p95, s"],
    );
    for share in [0.5, 0.8] {
        for slow in [1.0, 3.0] {
            for (name, balance) in [
                ("round robin", Balance::RoundRobin),
                ("least connections", Balance::LeastConnections),
            ] {
                let load = share * SPEED * (3.0 + 1.0 / slow);
                let outcome = Fleet::run(Settings {
                    load,
                    most: load,
                    replicas: 4,
                    balance,
                    slow,
                    retry: Retry::Never,
                    duration: 7200.0,
                    ..Settings::default()
                });
                let cells = common(&outcome);
                let [_, rejected, median, tail] = &cells[..] else { continue };
                let first = if slow > 1.0 { "3 × slower" } else { "equal" };
                row(&[
                    format!("{:.0} %", share * 100.0),
                    first.to_owned(),
                    name.to_owned(),
                    rejected.clone(),
                    median.clone(),
                    tail.clone(),
                ]);
            }
        }
    }
}
