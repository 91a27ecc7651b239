//! The state machine as a whole: what it must never do, and an outage of three hours.

#![allow(clippy::unwrap_used, reason = "a panic here is a failed test")]

use std::time::Duration;

use cutline_route::{
    Attempt, BreakerState, Config, End, Failure, Journey, Moment, Needs, Outcome, Router, Step,
    Tally, Usage,
};
use proptest::prelude::*;

const FILE: &str = r#"
[[backend]]
name = "box"
kind = "ollama"
base_url = "http://127.0.0.1:11434"
model = "llava"

[[backend]]
name = "cloud"
kind = "openai"
base_url = "https://api.example.com/v1/"
model = "vision-mini"
price = { per_image = 0.01 }

[[backend]]
name = "small"
kind = "local"
supports = ["caption", "stream"]

[[route]]
name = "best"
match = { default = true }
backends = [["box"], [{ name = "cloud", weight = 3 }, "small"]]
allow_remote = true
retry = { attempts = 2, base_ms = 100, cap_ms = 1000 }
deadline_s = 30

[[route]]
name = "quick"
backends = [["small"], ["box"]]
escalate_below = 0.5
"#;

const LIMIT: Duration = Duration::from_secs(60);

fn router() -> Router {
    Router::new(Config::parse(FILE).unwrap())
}

fn half() -> f64 {
    0.5
}

const ANSWERED: Outcome =
    Outcome::Answered { usage: Usage { input: None, output: None, cached: false } };

/// Sends one request; `answer` says what a backend does at a time. Returns who answered, the number of
/// attempts, and when.
fn drive(
    router: &mut Router,
    route: usize,
    start: Moment,
    mut answer: impl FnMut(usize, Moment) -> Option<Failure>,
) -> (Result<usize, End>, u32, Moment) {
    let mut now = start;
    let mut random = half;
    let mut journey = router.begin(route, Needs::default(), now, LIMIT);
    loop {
        match router.next(&mut journey, now, &mut random) {
            Step::Wait(until) => now = until,
            Step::GiveUp(end) => return (Err(end), journey.attempts(), now),
            Step::Try(attempt) => {
                now += Duration::from_millis(10);
                match answer(attempt.backend, now) {
                    None => {
                        router.report(&mut journey, &attempt, ANSWERED, now, &mut random);
                        return (Ok(attempt.backend), journey.attempts(), now);
                    }
                    Some(failure) => {
                        let outcome = Outcome::Failed(failure);
                        router.report(&mut journey, &attempt, outcome, now, &mut random);
                    }
                }
            }
        }
    }
}

fn at(seconds: u64) -> Moment {
    Moment::from_secs(seconds)
}

#[test]
fn the_next_tier_answers_at_once_and_a_backend_is_tried_again_after_a_pause() {
    let mut router = router();
    let (answer, attempts, now) =
        drive(&mut router, 1, at(0), |backend, _| (backend == 2).then_some(Failure::Timeout));
    assert_eq!((answer, attempts, now), (Ok(0), 2, Duration::from_millis(20)));
    let mut left = 4;
    let (answer, attempts, now) = drive(&mut router, 0, at(100), |_, _| {
        left -= 1;
        (left > 0).then_some(Failure::Status(503, None))
    });
    assert_eq!((answer, attempts), (Ok(0), 4), "after all three have failed, the first one again");
    // Its pause of 50 ms has begun with its failure, 20 ms before the others had failed as well.
    assert_eq!(now, at(100) + Duration::from_millis(70), "half of 100 ms");
}

#[test]
fn a_request_that_all_would_refuse_is_sent_once() {
    for failure in [Failure::Status(400, None), Failure::Status(413, None), Failure::Request] {
        let (answer, attempts, _) = drive(&mut router(), 0, at(0), |_, _| Some(failure));
        assert_eq!((answer, attempts), (Err(End::Refused), 1), "{failure:?}");
    }
}

#[test]
fn a_refused_key_is_never_tried_twice_and_rests_for_five_minutes() {
    let mut router = router();
    let mut asked = 0;
    for second in 0..299 {
        let (answer, ..) = drive(&mut router, 0, at(second), |backend, _| {
            asked += u32::from(backend == 0);
            (backend == 0).then_some(Failure::Status(401, None))
        });
        assert!(answer.is_ok());
    }
    assert_eq!(asked, 1);
    let (answer, ..) = drive(&mut router, 0, at(301), |_, _| None);
    assert_eq!(answer, Ok(0));
}

#[test]
fn a_limited_backend_is_left_alone_and_waited_for_only_if_there_is_time() {
    let only = Config::parse(&FILE.replace(r#"[["small"], ["box"]]"#, r#"[["box"]]"#)).unwrap();
    let after = |seconds| Failure::Status(429, Some(Duration::from_secs(seconds)));
    let mut router = Router::new(only.clone());
    let mut first = true;
    let (answer, attempts, now) =
        drive(&mut router, 1, at(0), |_, _| std::mem::take(&mut first).then_some(after(7)));
    assert_eq!((answer, attempts), (Ok(0), 2));
    assert_eq!(now, Duration::from_millis(7020));
    let mut router = Router::new(only);
    let (answer, attempts, now) = drive(&mut router, 1, at(0), |_, _| Some(after(90)));
    assert_eq!((answer, attempts), (Err(End::Exhausted), 1), "it does not fit the deadline");
    assert!(now < at(1), "so nobody waits for it");
}

#[test]
fn a_full_queue_goes_on_only_if_the_route_says_so() {
    let full = |backend: usize, _: Moment| (backend == 2).then_some(Failure::QueueFull);
    assert_eq!(drive(&mut router(), 1, at(0), full).0, Err(End::Refused));
    let file = FILE.replace("escalate_below = 0.5", "overflow = true");
    let mut overflowing = Router::new(Config::parse(&file).unwrap());
    for _ in 0..20 {
        assert_eq!(drive(&mut overflowing, 1, at(0), full).0, Ok(0));
    }
    assert_eq!(overflowing.status(2, at(0)).state, BreakerState::Closed, "busy is not ill");
}

#[test]
fn the_only_backend_of_a_route_never_opens() {
    let file = FILE.replace(r#"[["small"], ["box"]]"#, r#"[["small"]]"#);
    let mut router = Router::new(Config::parse(&file).unwrap());
    for second in 0..100 {
        let (answer, ..) = drive(&mut router, 1, at(second), |_, _| Some(Failure::Timeout));
        assert!(answer.is_err());
        assert_eq!(router.status(2, at(second)).state, BreakerState::Closed);
    }
    assert_eq!(drive(&mut router, 1, at(101), |_, _| None).0, Ok(2));
}

#[test]
fn an_unsure_answer_is_asked_for_again_further_on() {
    let mut router = router();
    let mut random = half;
    let mut journey = router.begin(1, Needs::default(), at(0), LIMIT);
    let Step::Try(first) = router.next(&mut journey, at(0), &mut random) else { panic!() };
    router.report(&mut journey, &first, ANSWERED, at(1), &mut random);
    assert!(!router.escalates(&mut journey, &first, Some(0.5)));
    assert!(!router.escalates(&mut journey, &first, None), "what is not known is not low");
    assert!(router.escalates(&mut journey, &first, Some(0.49)));
    let Step::Try(second) = router.next(&mut journey, at(1), &mut random) else { panic!() };
    assert_eq!((second.backend, second.number), (0, 2));
    router.report(&mut journey, &second, ANSWERED, at(2), &mut random);
    assert!(!router.escalates(&mut journey, &second, Some(0.1)), "there is nothing further on");
}

#[test]
fn a_backend_that_cannot_do_what_is_asked_is_not_asked() {
    let mut router = router();
    let mut random = half;
    let needs = Needs { alt_text: true, ..Needs::default() };
    let mut journey = router.begin(1, needs, at(0), LIMIT);
    let Step::Try(first) = router.next(&mut journey, at(0), &mut random) else { panic!() };
    assert_eq!(first.backend, 0, "the small model has no alternative texts here");
    let needs = Needs { details: true, stream: true, ..Needs::default() };
    let mut journey = router.begin(0, needs, at(0), LIMIT);
    let Step::Try(first) = router.next(&mut journey, at(0), &mut random) else { panic!() };
    assert_eq!(first.backend, 2, "only a local model tells more than a text");
}

#[test]
fn costs_add_up_and_unknown_ones_are_counted_apart() {
    let mut router = router();
    for second in 0..10 {
        let only = |backend: usize, _: Moment| (backend != 1).then_some(Failure::Connect);
        assert_eq!(drive(&mut router, 0, at(second), only).0, Ok(1));
    }
    let status = router.status(1, at(10));
    assert_eq!(status.tally.answered, 10);
    assert!((status.tally.cost.unwrap() - 0.1).abs() < 1e-9);
    assert_eq!(drive(&mut router, 1, at(400), |_, _| None).0, Ok(2));
    let local = router.status(2, at(400)).tally;
    assert_eq!((local.cost, local.without_cost), (None, 1));
}

/// The first backend is away for three hours; one request arrives each second. Someone asks every 15 s
/// whether it is there.
#[test]
fn three_hours_of_outage_lose_nothing_and_end_within_thirty_seconds() {
    let mut router = router();
    let (from, to) = (at(600), at(600 + 3 * 3600));
    let away = |now: Moment| (from..to).contains(&now);
    let (mut wasted, mut back) = (0_u32, None);
    for second in 0..(4 * 3600) {
        let start = at(second);
        if second % 15 == 0 {
            let open: Vec<usize> = router.to_probe().collect();
            for backend in open {
                if backend != 0 || !away(start) {
                    router.seen_alive(backend);
                }
            }
        }
        let (answer, _, end) = drive(&mut router, 0, start, |backend, now| {
            let fails = backend == 0 && away(now);
            wasted += u32::from(fails);
            fails.then_some(Failure::Connect)
        });
        let who = answer.unwrap_or_else(|end| panic!("lost a request at {second} s: {end:?}"));
        assert!(end - start < Duration::from_millis(100), "the others answer at once");
        if start >= to && who == 0 && back.is_none() {
            back = Some(start - to);
        }
        if start < from {
            assert_eq!(who, 0);
        }
    }
    assert!(back.unwrap() <= Duration::from_secs(30), "{back:?}");
    // 5 to open it, and 5 s · 2ⁿ up to five minutes afterwards.
    assert!((30..=50).contains(&wasted), "{wasted} requests found it away");
}

#[derive(Debug, Clone)]
enum Act {
    Begin { route: usize, stream: bool },
    Advance { millis: u64 },
    End { which: usize, how: u8 },
    Alive { backend: usize },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..2_usize, any::<bool>()).prop_map(|(route, stream)| Act::Begin { route, stream }),
        2 => (0..20_000_u64).prop_map(|millis| Act::Advance { millis }),
        6 => (any::<usize>(), any::<u8>()).prop_map(|(which, how)| Act::End { which, how }),
        1 => (0..3_usize).prop_map(|backend| Act::Alive { backend }),
    ];
    prop::collection::vec(act, 1..300)
}

fn outcome(how: u8) -> Outcome {
    let after = Some(Duration::from_secs(u64::from(how)));
    match how % 12 {
        0..=2 => ANSWERED,
        3 => Outcome::Cancelled,
        4 => Outcome::Failed(Failure::Connect),
        5 => Outcome::Failed(Failure::Timeout),
        6 => Outcome::Failed(Failure::BadAnswer),
        7 => Outcome::Failed(Failure::Status(503, after)),
        8 => Outcome::Failed(Failure::Status(429, after)),
        9 => Outcome::Failed(Failure::Status(401, None)),
        10 => Outcome::Failed(Failure::Status(422, None)),
        _ => Outcome::Failed(Failure::QueueFull),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_happens(acts in acts(), seed in 0.0..1.0_f64) {
        let mut router = router();
        let mut at = seed;
        let mut random = || { at = (at + 0.618_034).fract(); at };
        let mut now = Moment::ZERO;
        let mut sent: Vec<(Journey, Attempt)> = Vec::new();
        for act in acts {
            match act {
                Act::Advance { millis } => now += Duration::from_millis(millis),
                Act::Alive { backend } => { router.seen_alive(backend); }
                Act::Begin { route, stream } => {
                    let needs = Needs { stream, ..Needs::default() };
                    let mut journey = router.begin(route, needs, now, LIMIT);
                    match router.next(&mut journey, now, &mut random) {
                        Step::Try(attempt) => sent.push((journey, attempt)),
                        Step::Wait(until) => prop_assert!(until > now && until < journey.deadline()),
                        Step::GiveUp(end) => prop_assert_eq!(end, End::Exhausted),
                    }
                }
                Act::End { which, how } if !sent.is_empty() => {
                    let (mut journey, attempt) = sent.swap_remove(which % sent.len());
                    let outcome = outcome(how);
                    router.report(&mut journey, &attempt, outcome, now, &mut random);
                    if matches!(outcome, Outcome::Failed(_)) {
                        match router.next(&mut journey, now, &mut random) {
                            Step::Try(next) => {
                                prop_assert_eq!(next.number, attempt.number + 1);
                                prop_assert!(next.deadline <= journey.deadline());
                                sent.push((journey, next));
                            }
                            Step::Wait(until) => prop_assert!(until > now),
                            Step::GiveUp(_) => {}
                        }
                    }
                }
                Act::End { .. } => {}
            }
            for route in &router.config().routes {
                let mut members = route.tiers.iter().flatten();
                prop_assert!(
                    members.any(|m| router.status(m.backend, now).state != BreakerState::Open),
                    "the last usable backend of {} has been opened", route.name
                );
            }
            for backend in 0..3 {
                let mine = sent.iter().filter(|(_, attempt)| attempt.backend == backend).count();
                prop_assert_eq!(router.status(backend, now).in_flight, mine);
            }
        }
        for (mut journey, attempt) in sent {
            router.report(&mut journey, &attempt, Outcome::Cancelled, now, &mut random);
        }
        prop_assert!((0..3).all(|backend| router.status(backend, now).in_flight == 0));
    }
}

#[test]
fn another_file_keeps_the_state_of_what_is_the_same_and_ends_what_is_on_its_way() {
    let mut old = router();
    let mut random = half;
    for second in 0..5 {
        drive(&mut old, 0, at(second), |backend, _| (backend == 0).then_some(Failure::Connect))
            .0
            .unwrap();
    }
    assert_eq!(old.status(0, at(5)).state, BreakerState::Open);
    let mut journey = old.begin(0, Needs::default(), at(5), LIMIT);
    let Step::Try(attempt) = old.next(&mut journey, at(5), &mut random) else { panic!("nobody") };
    // The new file has the backends in another order, and a new one in front.
    let kept = [None, Some(0), Some(attempt.backend)];
    let mut new = old.replaced(old.config().clone(), &kept);
    assert_eq!(new.status(1, at(5)), old.status(0, at(5)));
    assert_eq!(new.status(0, at(5)).tally, Tally::default());
    assert_eq!(new.status(2, at(5)).in_flight, 1, "it still works for the old file");
    old.report(&mut journey, &attempt, ANSWERED, at(6), &mut random);
    assert_eq!(new.status(2, at(6)).in_flight, 0);
    assert_eq!(new.status(2, at(6)), old.status(attempt.backend, at(6)));
    // It is found well by the one, and so by the other.
    assert!(new.seen_alive(1).is_some());
    assert_eq!(old.status(0, at(7)).state, BreakerState::HalfOpen);
}
