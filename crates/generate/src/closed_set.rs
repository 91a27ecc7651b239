//! Ranks a closed set of texts by how probable the model finds them after the prompt.
//!
//! The texts form a tree of tokens, which is read level by level: one step gives the probability of
//! every first token, the next one that of the second tokens, and so on. Most texts end after one or
//! two tokens. A branch is dropped as soon as none of its texts can be among the best, because a text is
//! never more probable than its beginning. So the best texts and their scores are those of an exhaustive
//! search, at the cost of a few steps.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::params::{FinishReason, Sequence};
use super::{DecoderInput, Progress, Step, confidence, math};
use cutline_error::{Error, Result};

/// A text of a [`ClosedSet`].
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its tokens, at least one.
    pub ids: Vec<u32>,
    /// Added to its log-probability before texts are compared, for example to make up for what the model
    /// expects without an image. Finite.
    pub offset: f32,
    /// What the text is a name of. Several texts may be names of one thing; the best of them counts.
    pub name_of: u32,
    /// The things of a group are compared with each other only.
    pub group: u32,
}

/// The texts to rank, and how many of the best are of interest.
#[derive(Debug, Clone, PartialEq)]
pub struct ClosedSet {
    /// Sorted by tokens, so that the texts of a branch are neighbours, and a text precedes its
    /// continuations.
    entries: Vec<Entry>,
    best: usize,
    rows: usize,
}

impl ClosedSet {
    /// Of each group, the `best` things are of interest. A step reads at most `rows` branches.
    ///
    /// # Errors
    /// There is no text, a text has no tokens, an offset is not finite, or `best` or `rows` is 0.
    pub fn new(mut entries: Vec<Entry>, best: usize, rows: usize) -> Result<Self> {
        let valid = |entry: &Entry| !entry.ids.is_empty() && entry.offset.is_finite();
        if entries.is_empty() || !entries.iter().all(valid) || best == 0 || rows == 0 {
            return Err(Error::internal("a closed set needs texts with tokens and finite offsets"));
        }
        entries.sort_by(|a, b| a.ids.cmp(&b.ids));
        Ok(Self { entries, best, rows })
    }

    /// The most branches that a step reads.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Tokens of the longest text.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.entries.iter().map(|entry| entry.ids.len()).max().unwrap_or(0)
    }

    /// The greatest token.
    #[must_use]
    pub fn greatest_token(&self) -> u32 {
        self.entries.iter().flat_map(|entry| &entry.ids).copied().max().unwrap_or(0)
    }
}

/// A beginning that some of the texts have in common.
#[derive(Debug, Clone)]
struct Branch {
    /// These texts.
    entries: Range<usize>,
    log_probability: f64,
    /// Of each token.
    log_probabilities: Vec<f32>,
}

impl Branch {
    fn depth(&self) -> usize {
        self.log_probabilities.len()
    }
}

/// The search for the best texts of a set.
#[derive(Debug)]
pub(super) struct Search {
    set: Arc<ClosedSet>,
    input: DecoderInput,
    /// What the next logits belong to, row by row.
    reading: Vec<Branch>,
    /// Scores of texts, of which each has its first entry's index.
    scored: Vec<(usize, Branch)>,
    /// Branches for which there were not enough rows.
    left_out: Vec<Branch>,
}

impl Search {
    pub(super) fn new(set: Arc<ClosedSet>, input: DecoderInput) -> Self {
        let root = Branch {
            entries: 0..set.entries.len(),
            log_probability: 0.0,
            log_probabilities: Vec::new(),
        };
        Self { set, input, reading: vec![root], scored: Vec::new(), left_out: Vec::new() }
    }

    pub(super) fn advance(&mut self, logits: &[f32]) -> Step {
        let mut next = Vec::new();
        let rows = logits.chunks(self.input.vocabulary);
        for (row, (branch, logits)) in
            std::mem::take(&mut self.reading).into_iter().zip(rows).enumerate()
        {
            let children = self.children(&branch, logits);
            self.score_end(&branch, &children);
            for child in children {
                if self.ends_here(&child) == child.entries.len() {
                    self.score(child);
                } else {
                    next.push((row, child));
                }
            }
        }
        let (tokens, sources) = self.keep(next);
        let progress = if tokens.is_empty() {
            Progress::Finished(self.take_sequences())
        } else {
            Progress::Continue { tokens, sources }
        };
        Step { newest: None, progress }
    }

    /// The branches that a token leads to.
    fn children(&self, branch: &Branch, logits: &[f32]) -> Vec<Branch> {
        let depth = branch.depth();
        let normalisation = math::Normalisation::of(logits);
        let mut begin = branch.entries.start + self.ends_here(branch);
        let mut children = Vec::new();
        while begin < branch.entries.end {
            let token = self.set.entries[begin].ids[depth];
            let same = |entry: &Entry| entry.ids[depth] == token;
            let end = begin + self.set.entries[begin..branch.entries.end].partition_point(same);
            let log_probability = normalisation.log_probability(logits[token as usize]);
            let mut log_probabilities = branch.log_probabilities.clone();
            log_probabilities.push(log_probability);
            let total = branch.log_probability + f64::from(log_probability);
            children.push(Branch {
                entries: begin..end,
                log_probability: total,
                log_probabilities,
            });
            begin = end;
        }
        children
    }

    /// How many entries are this beginning and nothing more. They come first.
    fn ends_here(&self, branch: &Branch) -> usize {
        let texts = &self.set.entries[branch.entries.clone()];
        texts.iter().take_while(|entry| entry.ids.len() == branch.depth()).count()
    }

    /// Scores the text that ends where other texts continue. What the model expects to continue as one of
    /// them is not that text: a "hot dog" is nothing hot.
    fn score_end(&mut self, branch: &Branch, children: &[Branch]) {
        if self.ends_here(branch) == 0 {
            return;
        }
        let last = |child: &Branch| {
            child.log_probabilities.last().map_or(0.0, |&log| f64::from(log).exp())
        };
        let others: f64 = children.iter().map(last).sum();
        let log_probability =
            branch.log_probability + (1.0 - others).max(f64::from(f32::EPSILON)).ln();
        self.score(Branch { log_probability, ..branch.clone() });
    }

    fn score(&mut self, branch: Branch) {
        self.scored.push((branch.entries.start, branch));
    }

    /// The branches with a text that may be among the best: the next tokens and what they continue. The
    /// least promising ones are left out if there are too many.
    fn keep(&mut self, branches: Vec<(usize, Branch)>) -> (Vec<u32>, Vec<usize>) {
        let thresholds = self.thresholds();
        let mut promising: Vec<(f64, usize, Branch)> = branches
            .into_iter()
            .filter_map(|(row, branch)| Some((self.promise(&branch, &thresholds)?, row, branch)))
            .collect();
        promising.sort_by(|a, b| b.0.total_cmp(&a.0));
        let rest = promising.split_off(promising.len().min(self.set.rows));
        self.left_out.extend(rest.into_iter().map(|(_, _, branch)| branch));
        let last = |branch: &Branch| self.set.entries[branch.entries.start].ids[branch.depth() - 1];
        let step = promising.iter().map(|(_, row, branch)| (last(branch), *row)).unzip();
        self.reading = promising.into_iter().map(|(_, _, branch)| branch).collect();
        step
    }

    /// The score of each group's last thing among the best; none for a group with fewer.
    fn thresholds(&self) -> HashMap<u32, f64> {
        let mut best: HashMap<(u32, u32), f64> = HashMap::new();
        for (first, branch) in &self.scored {
            let texts = &self.set.entries[*first..];
            for entry in texts.iter().take_while(|entry| entry.ids == texts[0].ids) {
                let score = branch.log_probability + f64::from(entry.offset);
                let known = best.entry((entry.group, entry.name_of)).or_insert(score);
                *known = known.max(score);
            }
        }
        let mut groups: HashMap<u32, Vec<f64>> = HashMap::new();
        for ((group, _), score) in best {
            groups.entry(group).or_default().push(score);
        }
        let last = |(group, mut scores): (u32, Vec<f64>)| {
            scores.sort_by(|a, b| b.total_cmp(a));
            Some((group, *scores.get(self.set.best - 1)?))
        };
        groups.into_iter().filter_map(last).collect()
    }

    /// By how much the branch's best text may exceed its group's threshold; `None` if it cannot.
    fn promise(&self, branch: &Branch, thresholds: &HashMap<u32, f64>) -> Option<f64> {
        let excess = |entry: &Entry| {
            let threshold = thresholds.get(&entry.group).copied().unwrap_or(f64::NEG_INFINITY);
            branch.log_probability + f64::from(entry.offset) - threshold
        };
        let texts = self.set.entries[branch.entries.clone()].iter();
        texts.map(excess).max_by(f64::total_cmp).filter(|excess| *excess >= 0.0)
    }

    /// The texts whose scores are known, and those of branches that were left out and may be better than
    /// what was found.
    fn take_sequences(&mut self) -> Vec<Sequence> {
        let thresholds = self.thresholds();
        let mut sequences: Vec<Sequence> = std::mem::take(&mut self.scored)
            .into_iter()
            .map(|(first, branch)| self.sequence(first, &branch, FinishReason::Stop))
            .collect();
        for branch in std::mem::take(&mut self.left_out) {
            if self.promise(&branch, &thresholds).is_none() {
                continue;
            }
            for entry in branch.entries.clone() {
                let known = entry > branch.entries.start
                    && self.set.entries[entry - 1].ids == self.set.entries[entry].ids;
                if !known {
                    sequences.push(self.sequence(entry, &branch, FinishReason::Length));
                }
            }
        }
        sequences.sort_by(|a, b| b.score.unwrap_or(0.0).total_cmp(&a.score.unwrap_or(0.0)));
        sequences
    }

    fn sequence(&self, entry: usize, branch: &Branch, finish_reason: FinishReason) -> Sequence {
        let mut ids = self.input.prompt.clone();
        ids.extend(&self.set.entries[entry].ids);
        Sequence {
            generated: ids.len() - self.input.prompt.len(),
            confidence: confidence(branch.log_probability, branch.depth()),
            log_probabilities: branch.log_probabilities.clone(),
            alternatives: Vec::new(),
            score: Some(branch.log_probability as f32),
            finish_reason,
            ids,
        }
    }
}

#[cfg(test)]
mod tests {
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
            })
            .collect();
        ClosedSet::new(entries, 1 + draw(4), rows).unwrap()
    }

    /// The best things of each group with their scores.
    fn best(
        set: &ClosedSet,
        score: impl Fn(&[u32]) -> Option<f64>,
    ) -> BTreeMap<u32, Vec<(i64, u32)>> {
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
                assert!(
                    (f64::from(*score) - expected).abs() < 1e-4,
                    "{text:?}: {score} {expected}"
                );
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
                    let names =
                        set.entries.iter().filter(|e| (e.group, e.name_of) == (group, thing));
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
        let entry =
            |ids: &[u32], name_of| Entry { ids: ids.to_vec(), offset: 0.0, name_of, group: 0 };
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
        let entry = |ids: Vec<u32>, offset| Entry { ids, offset, name_of: 0, group: 0 };
        assert!(ClosedSet::new(vec![], 1, 1).is_err());
        assert!(ClosedSet::new(vec![entry(vec![], 0.0)], 1, 1).is_err());
        assert!(ClosedSet::new(vec![entry(vec![1], f32::NAN)], 1, 1).is_err());
        assert!(ClosedSet::new(vec![entry(vec![1], 0.0)], 0, 1).is_err());
    }
}
