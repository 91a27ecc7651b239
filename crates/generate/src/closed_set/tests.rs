use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::script::{VOCABULARY, input};
use super::*;

/// A model whose logits depend on all tokens, in a way that repeats.
fn logits(ids: &[u32], sharpness: f32) -> Vec<f32> {
    let seed = ids.iter().fold(17_u64, |sum, &id| sum.wrapping_mul(31).wrapping_add(id.into()));
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..VOCABULARY).map(|_| sharpness * random.random::<f32>()).collect()
}

/// Runs the search. Returns the score of every text that it found, those that it left out, and steps.
fn run(set: &ClosedSet, sharpness: f32) -> (BTreeMap<Vec<u32>, f32>, Vec<Vec<u32>>, usize) {
    let mut search = Search::new(Arc::new(set.clone()), input(&[9]));
    let mut rows = vec![vec![9]];
    for steps in 1.. {
        let all: Vec<f32> = rows.iter().flat_map(|row| logits(row, sharpness)).collect();
        match search.advance(&all).progress {
            Progress::Continue { tokens, sources } => {
                assert!(tokens.len() <= set.rows() && tokens.len() == sources.len());
                rows = sources.iter().map(|&source| rows[source].clone()).collect();
                rows.iter_mut().zip(tokens).for_each(|(row, token)| row.push(token));
            }
            Progress::Finished(sequences) => {
                let (known, unknown): (Vec<_>, Vec<_>) =
                    sequences.into_iter().partition(|s| s.finish_reason == FinishReason::Stop);
                let known = known.into_iter().map(|s| (s.ids[1..].to_vec(), s.score.unwrap()));
                let unknown = unknown.into_iter().map(|s| s.ids[1..].to_vec());
                return (known.collect(), unknown.collect(), steps);
            }
        }
    }
    unreachable!()
}

/// The score of a text, from the definition.
fn exhaustive(texts: &[Vec<u32>], text: &[u32], sharpness: f32) -> f64 {
    let mut prefix = vec![9];
    let mut total = 0.0;
    for &token in text {
        total += f64::from(math::log_probability(&logits(&prefix, sharpness), token as usize));
        prefix.push(token);
    }
    let mut next: Vec<u32> = texts
        .iter()
        .filter(|other| other.len() > text.len() && other.starts_with(text))
        .map(|other| other[text.len()])
        .collect();
    next.sort_unstable();
    next.dedup();
    let row = logits(&prefix, sharpness);
    let others = next.iter().map(|&t| f64::from(math::log_probability(&row, t as usize)).exp());
    total + (1.0 - others.sum::<f64>()).max(f64::from(f32::EPSILON)).ln()
}

fn random_set(random: &mut ChaCha8Rng, rows: usize) -> ClosedSet {
    let mut draw = |n: usize| random.random_range(0..n);
    let count = 1 + draw(40);
    let entries = (0..count)
        .map(|n| Entry {
            ids: (0..=draw(4)).map(|_| draw(VOCABULARY) as u32).collect(),
            offset: draw(50) as f32 / 10.0,
            name_of: (n / 2) as u32,
            group: draw(3) as u32,
            expected: Vec::new(),
        })
        .collect();
    ClosedSet::new(entries, 1 + draw(4), rows).unwrap()
}

/// The best things of each group with their scores.
fn best(set: &ClosedSet, score: impl Fn(&[u32]) -> Option<f64>) -> BTreeMap<u32, Vec<(i64, u32)>> {
    let mut things: BTreeMap<(u32, u32), i64> = BTreeMap::new();
    for entry in &set.entries {
        let Some(score) = score(&entry.ids) else { continue };
        let score = ((score + f64::from(entry.offset)) * 1e4).round() as i64;
        let known = things.entry((entry.group, entry.name_of)).or_insert(score);
        *known = score.max(*known);
    }
    let mut groups: BTreeMap<u32, Vec<(i64, u32)>> = BTreeMap::new();
    for ((group, name_of), score) in things {
        groups.entry(group).or_default().push((-score, name_of));
    }
    for best in groups.values_mut() {
        best.sort_unstable();
        best.truncate(set.best);
    }
    groups
}

#[test]
fn the_best_texts_and_their_scores_are_those_of_an_exhaustive_search() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut saved = 0;
    for round in 0..500 {
        let sharpness = [1.0, 8.0][round % 2];
        let set = random_set(&mut random, 1000);
        let texts: Vec<Vec<u32>> = set.entries.iter().map(|entry| entry.ids.clone()).collect();
        let (known, unknown, _) = run(&set, sharpness);
        assert_eq!(unknown, Vec::<Vec<u32>>::new());
        for (text, score) in &known {
            let expected = exhaustive(&texts, text, sharpness);
            assert!((f64::from(*score) - expected).abs() < 1e-4, "{text:?}: {score} {expected}");
        }
        let found = best(&set, |text| known.get(text).copied().map(f64::from));
        let expected = best(&set, |text| Some(exhaustive(&texts, text, sharpness)));
        let scores = |best: BTreeMap<u32, Vec<(i64, u32)>>| -> Vec<i64> {
            best.into_values().flatten().map(|(score, _)| score).collect()
        };
        for (a, b) in scores(found).iter().zip(scores(expected)) {
            assert!((a - b).abs() <= 2, "{a} {b}");
        }
        saved += texts.len() - known.len().min(texts.len());
    }
    assert!(saved > 1000, "branches are dropped early: {saved}");
}

#[test]
fn what_the_rows_do_not_suffice_for_is_named() {
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let mut left_out = 0;
    for _ in 0..300 {
        let set = random_set(&mut random, 1);
        let texts: Vec<Vec<u32>> = set.entries.iter().map(|entry| entry.ids.clone()).collect();
        let (known, unknown, _) = run(&set, 4.0);
        left_out += unknown.len();
        let expected = best(&set, |text| Some(exhaustive(&texts, text, 4.0)));
        for (group, things) in expected {
            for (score, thing) in things {
                let names = set.entries.iter().filter(|e| (e.group, e.name_of) == (group, thing));
                let ours = names.map(|entry| match known.get(&entry.ids) {
                    Some(known) => -((known + entry.offset) * 1e4).round() as i64,
                    None if unknown.contains(&entry.ids) => score,
                    None => i64::MAX,
                });
                assert!(ours.min().is_some_and(|ours| (ours - score).abs() <= 2));
            }
        }
    }
    assert!(left_out > 100, "{left_out}");
}

#[test]
fn a_text_is_not_what_continues_it() {
    let entry = |ids: &[u32], name_of| Entry {
        ids: ids.to_vec(),
        offset: 0.0,
        name_of,
        group: 0,
        expected: Vec::new(),
    };
    let hot = ClosedSet::new(vec![entry(&[3], 0)], 1, 4).unwrap();
    let both = ClosedSet::new(vec![entry(&[3, 4], 1), entry(&[3], 0)], 2, 4).unwrap();
    let (alone, _, steps) = run(&hot, 1.0);
    assert_eq!(steps, 1);
    let (known, _, steps) = run(&both, 1.0);
    assert_eq!(steps, 2);
    let [with, dog] = [&known[&vec![3][..]], &known[&vec![3, 4][..]]].map(|log| log.exp());
    assert!((with + dog - alone[&vec![3][..]].exp()).abs() < 1e-6, "{known:?}");
}

#[test]
fn sets_without_texts_are_refused() {
    let entry =
        |ids: Vec<u32>, offset| Entry { ids, offset, name_of: 0, group: 0, expected: Vec::new() };
    assert!(ClosedSet::new(vec![], 1, 1).is_err());
    assert!(ClosedSet::new(vec![entry(vec![], 0.0)], 1, 1).is_err());
    assert!(ClosedSet::new(vec![entry(vec![1], f32::NAN)], 1, 1).is_err());
    assert!(ClosedSet::new(vec![entry(vec![1], 0.0)], 0, 1).is_err());
}

#[test]
fn within_few_steps_every_text_has_a_score() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut estimated = 0;
    for round in 0..300 {
        let steps = 1 + round % 3;
        let mut set = random_set(&mut random, 3);
        for entry in &mut set.entries {
            // The last is what not being continued is expected to cost.
            entry.expected = (0..=entry.ids.len()).map(|n| -1.0 - n as f32 / 4.0).collect();
        }
        let set = set.with_steps(steps);
        let texts: Vec<Vec<u32>> = set.entries.iter().map(|entry| entry.ids.clone()).collect();
        let (scores, taken) = all_scores(&set, 4.0);
        assert!(taken <= steps, "{taken}");
        assert_eq!(scores.len(), texts.iter().collect::<std::collections::HashSet<_>>().len());
        for (text, (score, read)) in scores {
            let exact = exhaustive(&texts, &text, 4.0);
            if read == usize::MAX {
                assert!((f64::from(score) - exact).abs() < 1e-4, "{text:?}: {score} {exact}");
                continue;
            }
            estimated += 1;
            // What was read, and what is expected of the rest.
            let mut prefix = vec![9];
            let mut total = 0.0;
            for &token in &text[..read] {
                total += f64::from(math::log_probability(&logits(&prefix, 4.0), token as usize));
                prefix.push(token);
            }
            let rest = (read..=text.len()).map(|n| -1.0 - n as f64 / 4.0).sum::<f64>();
            assert!((f64::from(score) - total - rest).abs() < 1e-4, "{text:?}: {score}");
        }
    }
    assert!(estimated > 1000, "{estimated}");
}

/// The score of each text, the tokens of it that were read (`usize::MAX` for all), and the steps.
#[allow(clippy::type_complexity)]
fn all_scores(set: &ClosedSet, sharpness: f32) -> (BTreeMap<Vec<u32>, (f32, usize)>, usize) {
    let mut search = Search::new(Arc::new(set.clone()), input(&[9]));
    let mut rows = vec![vec![9]];
    for steps in 1.. {
        let all: Vec<f32> = rows.iter().flat_map(|row| logits(row, sharpness)).collect();
        match search.advance(&all).progress {
            Progress::Continue { tokens, sources } => {
                rows = sources.iter().map(|&source| rows[source].clone()).collect();
                rows.iter_mut().zip(tokens).for_each(|(row, token)| row.push(token));
            }
            Progress::Finished(sequences) => {
                let scores = sequences.into_iter().map(|s| {
                    let whole = s.finish_reason == FinishReason::Stop;
                    let read = if whole { usize::MAX } else { s.log_probabilities.len() };
                    (s.ids[1..].to_vec(), (s.score.unwrap(), read))
                });
                return (scores.collect(), steps);
            }
        }
    }
    unreachable!()
}
