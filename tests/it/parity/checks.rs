//! The comparisons, the same for every implementation of the model.

use std::collections::BTreeMap;
use std::sync::Arc;

use cutline::blip::{ImageStates, SlotSize};
use cutline::engine::local::LocalEngine;
use cutline::engine::{Engine, Event, Job, JobId, Sequence};
use cutline::generate::{ClosedSet, Entry, FinishReason, GenerationParams, Task};

use super::set::{RankedText, Ranking, Set, job, params};

const VISION: f32 = 1e-4;
const LOGITS: f32 = 1e-3;

/// The result of a job: its sequences, and the tokens that were reported before.
pub(super) type Outcome = (Vec<Sequence>, Vec<u32>);

/// Runs the jobs to their ends, starting `each` of them before every step.
pub(super) fn run(engine: &mut LocalEngine, jobs: Vec<Job>, each: usize) -> BTreeMap<u64, Outcome> {
    let (mut waiting, mut outcomes) = (jobs.into_iter(), BTreeMap::<u64, Outcome>::new());
    loop {
        for job in waiting.by_ref().take(each) {
            engine.start(job).unwrap();
        }
        if engine.active() == 0 {
            return outcomes;
        }
        let mut events = Vec::new();
        engine.step(&mut events).unwrap();
        for event in events {
            match event {
                Event::Token { job, token } => outcomes.entry(job.0).or_default().1.push(token),
                Event::Done { job, sequences } => outcomes.entry(job.0).or_default().0 = sequences,
                Event::Failed { job, error } => panic!("job {}: {error}", job.0),
                Event::Compared { job, .. } => panic!("job {} writes nothing", job.0),
            }
        }
    }
}

fn worst(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Checks the greatest differences of the vision tower's output and of the logits, over all images.
pub(super) fn check_numbers(mut set: Set) {
    let set = &mut set;
    let (mut vision, mut logits) = (0_f32, 0_f32);
    for image in 0..set.images() {
        let pixels = set.pixels(image);
        let states = set.encode(&pixels);
        vision = vision.max(vision_difference(set, image, &states.to_vec().unwrap()));
        logits = logits.max(logits_difference(set, image, &states));
    }
    println!("{}: vision {vision:.1e}, logits {logits:.1e}", set.name);
    assert!(vision < VISION, "{}: vision output differs by {vision}", set.name);
    assert!(logits < LOGITS, "{}: logits differ by {logits}", set.name);
}

fn vision_difference(set: &Set, image: usize, states: &[f32]) -> f32 {
    if let Some(all) = set.rows(&format!("vision.{image}")) {
        return worst(states, &all.concat());
    }
    let width = set.model.describe().config.vision.hidden_size;
    let states: Vec<&[f32]> = states.chunks(width).collect();
    let some: Vec<f32> = states.iter().step_by(32).copied().flatten().copied().collect();
    let power: Vec<f32> = states
        .iter()
        .map(|row| row.iter().map(|v| v * v).sum::<f32>() / row.len() as f32)
        .collect();
    let rows = set.rows(&format!("vision_rows.{image}")).unwrap().concat();
    let powers = set.rows(&format!("vision_power.{image}")).unwrap().concat();
    worst(&some, &rows).max(worst(&power, &powers))
}

/// Ranks the texts of a golden, alone and next to other jobs, with rows for all branches and for few.
pub(super) fn check_rankings(mut set: Set) {
    let name = set.name.clone();
    let rankings = set.take_rankings();
    assert!(!rankings.is_empty(), "{name}");
    let (mut engine, cases, pixels) = set.engine();
    for Ranking { image, prompt, texts } in rankings {
        let entry = |text: &RankedText| Entry {
            ids: text.ids.clone(),
            offset: 0.0,
            name_of: text.ids.iter().fold(0, |sum, id| 31 * sum + id),
            group: 0,
            expected: Vec::new(),
        };
        let all = texts.len();
        for (best, rows, steps) in [(all, 64, 9), (2, 64, 9), (1, 2, 9), (all, 64, 2)] {
            let entries = texts.iter().map(entry).collect();
            let set = ClosedSet::new(entries, best, rows).unwrap();
            let set = if steps < 9 { set.with_steps(steps) } else { set };
            let rank = |id| {
                let task = Task::Rank(Arc::new(set.clone()));
                Job::new(JobId(id), Arc::clone(&pixels[image]), prompt.clone(), task)
            };
            let jobs = vec![rank(1000), job(1, &cases[0], &pixels), rank(1001)];
            let outcomes = run(&mut engine, jobs, 1);
            let (sequences, tokens) = &outcomes[&1000];
            assert!(tokens.is_empty(), "{name}");
            assert!(outcomes[&1001].0.iter().zip(sequences).all(|(a, b)| a.ids == b.ids), "{name}");
            let expected = |ids: &[u32]| texts.iter().find(|text| text.ids == ids).unwrap().score;
            for sequence in sequences {
                let ids = &sequence.ids[1 + prompt.len()..];
                let score = sequence.score.unwrap();
                if sequence.finish_reason == FinishReason::Stop {
                    let difference = (score - expected(ids)).abs();
                    assert!(difference < LOGITS, "{name}: {ids:?}: {score}, not {}", expected(ids));
                } else {
                    // Without expectations, what was read alone. Where other texts go on, one more step
                    // tells how probable it is that they do.
                    let goes_on =
                        |text: &RankedText| text.ids.len() > ids.len() && text.ids.starts_with(ids);
                    let needed = ids.len() + usize::from(texts.iter().any(goes_on));
                    let partly = rows == 2 || steps < needed;
                    assert!(partly && score >= expected(ids) - LOGITS, "{name}: {ids:?}");
                }
            }
            let mut order: Vec<&RankedText> = texts.iter().collect();
            order.sort_by(|a, b| b.score.total_cmp(&a.score));
            for text in &order[..best] {
                assert!(
                    sequences.iter().any(|s| s.ids.ends_with(&text.ids)),
                    "{name}: {:?}",
                    text.ids
                );
            }
        }
    }
}

/// Reads token by token with the cache, and every prefix at once without it. Both are compared with
/// the logits that transformers computes without a cache.
fn logits_difference(set: &mut Set, image: usize, states: &ImageStates) -> f32 {
    let ids = set.ids(image);
    let mut slot = set.model.begin(states, SlotSize::new(ids.len(), 1)).unwrap();
    let mut difference = 0_f32;
    for position in 0..ids.len() {
        let cached = set.read(&mut slot, &ids[position..=position]);
        let mut new = set.model.begin(states, SlotSize::new(ids.len(), 1)).unwrap();
        let at_once = set.read(&mut new, &ids[..=position]);
        for logits in [&cached, &at_once] {
            difference = difference.max(one_position(set, image, position, logits));
        }
    }
    difference
}

fn one_position(set: &Set, image: usize, position: usize, logits: &[f32]) -> f32 {
    if let Some(all) = set.rows(&format!("logits.{image}")) {
        return worst(logits, &all[position]);
    }
    let columns: Vec<f32> = logits.iter().step_by(16).copied().collect();
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let maxima = set.rows(&format!("logits_max.{image}")).unwrap().concat();
    let stored = set.rows(&format!("logits_columns.{image}")).unwrap();
    worst(&columns, &stored[position]).max((max - maxima[position]).abs())
}

pub(super) fn check_captions(set: Set) {
    let name = set.name.clone();
    let (mut engine, cases, pixels) = set.engine();
    for case in &cases {
        let what = format!("{name}, image {}, {:?}", case.image, case.name);
        let outcome = run(&mut engine, vec![job(0, case, &pixels)], 1).remove(&0).unwrap();
        let (sequences, reported) = outcome;
        assert_eq!(sequences.len(), case.sequences.len(), "{what}");
        for (ours, theirs) in sequences.iter().zip(&case.sequences) {
            assert_eq!(ours.ids, theirs.ids, "{what}");
            assert_eq!(ours.generated, theirs.generated, "{what}");
            assert_eq!(ours.finish_reason.as_str(), theirs.finish_reason, "{what}");
            assert!((ours.confidence - theirs.confidence).abs() < 1e-3, "{what}");
            assert_eq!(ours.score.is_some(), theirs.score.is_some(), "{what}");
            let (score, expected) = (ours.score.unwrap_or(0.0), theirs.score.unwrap_or(0.0));
            let scale = expected.abs().max(1.0);
            assert!((score - expected).abs() < 1e-3 * scale, "{what}: {score} {expected}");
        }
        if params(case).num_beams == 1 {
            assert_eq!(reported, sequences[0].ids[1 + case.prompt.len()..], "{what}");
        }
    }
}

/// Compares the alternatives of greedy captions with those of the logits that transformers computes.
pub(super) fn check_alternatives(set: Set) {
    const COUNT: usize = 5;
    let name = set.name.clone();
    let images = set.images();
    let logits: Vec<_> = (0..images).map(|n| set.rows(&format!("logits.{n}")).unwrap()).collect();
    let ids: Vec<_> = (0..images).map(|n| set.ids(n)).collect();
    let (mut engine, _, pixels) = set.engine();
    for image in 0..images {
        // transformers was not allowed to end them either.
        let length = ids[image].len() - 1;
        let params = GenerationParams {
            alternatives: COUNT,
            min_new_tokens: length,
            max_new_tokens: length,
            ..GenerationParams::default()
        };
        let job = Job::new(JobId(0), Arc::clone(&pixels[image]), Vec::new(), params);
        let sequence = run(&mut engine, vec![job], 1).remove(&0).unwrap().0.remove(0);
        assert_eq!(sequence.ids, ids[image], "{name}");
        assert_eq!(sequence.alternatives.len(), sequence.generated, "{name}");
        for (position, ours) in sequence.alternatives.iter().enumerate() {
            let theirs = log_softmax(&logits[image][position]);
            let mut order: Vec<f32> = theirs.clone();
            order.sort_by(|a, b| b.total_cmp(a));
            assert_eq!(ours.len(), COUNT, "{name}");
            for ((token, ours), best) in ours.iter().zip(&order) {
                let same = theirs[*token as usize];
                assert!((ours - same).abs() < LOGITS && (ours - best).abs() < LOGITS, "{name}");
            }
            let chosen = (sequence.ids[1 + position], sequence.log_probabilities[position]);
            assert!(ours.contains(&chosen), "{name}: {chosen:?} is not among {ours:?}");
        }
    }
}

/// In double precision, and not with our arithmetic.
fn log_softmax(row: &[f32]) -> Vec<f32> {
    let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
    row.iter().map(|logit| (f64::from(*logit) - sum.ln()) as f32).collect()
}

/// Whether two outcomes are equal: bit for bit, or in their tokens and nearly in their numbers.
pub(super) fn same(a: &Outcome, b: &Outcome, exact: bool) -> bool {
    let near = |a: f32, b: f32| (a - b).abs() < 1e-4 * a.abs().max(1.0);
    let alike = |a: &Sequence, b: &Sequence| {
        let numbers = near(a.confidence, b.confidence)
            && near(a.score.unwrap_or(0.0), b.score.unwrap_or(0.0));
        numbers && a.ids == b.ids && a.finish_reason == b.finish_reason
    };
    let sequences = a.0.len() == b.0.len() && a.0.iter().zip(&b.0).all(|(a, b)| alike(a, b));
    if exact { a == b } else { sequences && a.1 == b.1 }
}

/// [`same`] of all jobs.
pub(super) fn all_same(
    a: &BTreeMap<u64, Outcome>,
    b: &BTreeMap<u64, Outcome>,
    exact: bool,
) -> bool {
    a.keys().eq(b.keys()) && a.iter().all(|(id, outcome)| same(outcome, &b[id], exact))
}

/// Compares the same jobs alone, all at once, and added in pairs between steps. Takes every
/// `every`th case.
pub(super) fn check_batches(set: Set, every: usize, exact: bool) {
    let name = set.name.clone();
    let (mut engine, cases, pixels) = set.engine();
    let jobs: Vec<Job> =
        cases.iter().enumerate().step_by(every).map(|(id, case)| job(id, case, &pixels)).collect();
    let alone: BTreeMap<u64, Outcome> =
        jobs.iter().flat_map(|job| run(&mut engine, vec![job.clone()], 1)).collect();
    let together = run(&mut engine, jobs.clone(), jobs.len());
    let added_later = run(&mut engine, jobs.into_iter().rev().collect(), 2);
    assert!(all_same(&alone, &together, exact), "{name}: a job in a batch differs from it alone");
    assert!(all_same(&alone, &added_later, exact), "{name}: a job that was added later differs");
}
