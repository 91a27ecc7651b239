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
    /// What is expected of its log-probability without an image: the part of each token, and in the end the
    /// part of not being continued. Stands for what is not read because of
    /// [`with_steps`](ClosedSet::with_steps). What is missing counts as 0.
    pub expected: Vec<f32>,
}

impl Entry {
    /// What is expected of the tokens after the first `depth`.
    fn rest(&self, depth: usize) -> f64 {
        self.expected.iter().skip(depth).map(|log| f64::from(*log)).sum()
    }
}

/// The texts to rank, and how many of the best are of interest.
#[derive(Debug, Clone, PartialEq)]
pub struct ClosedSet {
    /// Sorted by tokens, so that the texts of a branch are neighbours, and a text precedes its
    /// continuations.
    entries: Vec<Entry>,
    best: usize,
    rows: usize,
    /// The most steps; `None` for as many as it takes.
    steps: Option<usize>,
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
        Ok(Self { entries, best, rows, steps: None })
    }

    /// Takes no more than `steps` steps, at least one. Then every text has a score: where tokens were not
    /// read, what is expected of them stands for them, and the text ends with [`FinishReason::Length`].
    #[must_use]
    pub fn with_steps(self, steps: usize) -> Self {
        Self { steps: Some(steps.max(1)), ..self }
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
    /// Branches for which there were not enough rows, or steps.
    left_out: Vec<Branch>,
    /// Steps so far.
    taken: usize,
}

impl Search {
    pub(super) fn new(set: Arc<ClosedSet>, input: DecoderInput) -> Self {
        let root = Branch {
            entries: 0..set.entries.len(),
            log_probability: 0.0,
            log_probabilities: Vec::new(),
        };
        Self { set, input, reading: vec![root], scored: Vec::new(), left_out: Vec::new(), taken: 0 }
    }

    pub(super) fn advance(&mut self, logits: &[f32]) -> Step {
        self.taken += 1;
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
        let mut promising: Vec<(f64, usize, Branch)> = Vec::new();
        for (row, branch) in branches {
            match self.promise(&branch, &thresholds) {
                Some(promise) => promising.push((promise, row, branch)),
                None if self.set.steps.is_some() => self.left_out.push(branch),
                None => {}
            }
        }
        promising.sort_by(|a, b| b.0.total_cmp(&a.0));
        let rows =
            if self.set.steps.is_some_and(|most| self.taken >= most) { 0 } else { self.set.rows };
        let rest = promising.split_off(promising.len().min(rows));
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

    /// By how much the branch's best text may exceed its group's threshold; `None` if it cannot. With few
    /// steps, by how much it is expected to.
    fn promise(&self, branch: &Branch, thresholds: &HashMap<u32, f64>) -> Option<f64> {
        let few = self.set.steps.is_some();
        let excess = |entry: &Entry| {
            let threshold = thresholds.get(&entry.group).copied().unwrap_or(f64::NEG_INFINITY);
            let rest = if few { entry.rest(branch.depth()) } else { 0.0 };
            branch.log_probability + f64::from(entry.offset) + rest - threshold
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
            if self.set.steps.is_none() && self.promise(&branch, &thresholds).is_none() {
                continue;
            }
            for entry in branch.entries.clone() {
                let known = entry > branch.entries.start
                    && self.set.entries[entry - 1].ids == self.set.entries[entry].ids;
                if known {
                    continue;
                }
                let mut sequence = self.sequence(entry, &branch, FinishReason::Length);
                if self.set.steps.is_some() {
                    let rest = self.set.entries[entry].rest(branch.depth());
                    sequence.score = Some((branch.log_probability + rest) as f32);
                }
                sequences.push(sequence);
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
mod tests;
