//! What the owner of a caption holds, gives and gets.

use std::sync::Arc;

use candle_core::{self as candle, Tensor};

use super::best::BestTokens;
use cutline_error::{Error, Result};

/// One image's place in a [`GpuState`](super::GpuState); dropping it gives the place back.
#[derive(Debug)]
pub struct GpuSlot {
    /// The pool that it lies in, and its name there.
    pub(super) pool: u64,
    pub(super) key: u64,
    /// The slot is taken as long as this lives.
    _lease: Arc<()>,
    /// Tokens that there may be of every row.
    pub(super) capacity: usize,
    /// Tokens that are read of every row; also the position of the next one.
    pub(super) position: usize,
    rows: usize,
    /// Rows that it may have.
    lanes: usize,
    /// For each row, the row of the last reading that it continues, if that is another one.
    pub(super) sources: Option<Vec<usize>>,
    /// The logits of the last reading.
    pub(super) last: Option<LastLogits>,
}

/// Logits, of this item's rows among others.
#[derive(Debug, Clone)]
pub(super) struct LastLogits {
    /// `[rows, vocabulary or more]`.
    pub(super) logits: Tensor,
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) vocabulary: usize,
}

impl LastLogits {
    /// `vocabulary` of every row.
    pub(super) fn copy(&self) -> candle::Result<Vec<f32>> {
        let rows = self.logits.narrow(0, self.first, self.count)?;
        rows.narrow(1, 0, self.vocabulary)?.flatten_all()?.to_vec1()
    }
}

impl GpuSlot {
    pub(super) fn new(pool: u64, key: u64, lease: Arc<()>, capacity: usize, lanes: usize) -> Self {
        let (position, rows, sources, last) = (0, 1, None, None);
        Self { pool, key, _lease: lease, capacity, position, rows, lanes, sources, last }
    }

    /// Sequences that are decoded for this image.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Tokens that are read of every row; also the position of the next one.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether it has no room for another token.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.position == self.capacity
    }

    /// Makes row `n` continue the former row `sources[n]`, from the next reading on.
    ///
    /// # Errors
    /// A source is not a row, or there are more rows than it was begun for.
    pub fn reorder(&mut self, sources: &[usize]) -> Result<()> {
        let (rows, lanes) = (self.rows, self.lanes);
        let known = sources.iter().all(|&source| source < rows);
        if sources.is_empty() || sources.len() > lanes || !known {
            return Err(Error::internal(format!(
                "rows {sources:?} of {rows} cannot go on in {lanes}"
            )));
        }
        let before = self.sources.take();
        let origin = |source: usize| before.as_ref().map_or(source, |before| before[source]);
        let all: Vec<usize> = sources.iter().map(|&source| origin(source)).collect();
        let moves = all.iter().enumerate().any(|(row, &source)| row != source);
        self.sources = moves.then_some(all);
        self.rows = sources.len();
        Ok(())
    }

    /// All logits of the last reading, `vocabulary` of every row that it had then.
    ///
    /// # Errors
    /// Nothing was read, or the copy failed.
    pub fn logits(&self) -> Result<Vec<f32>> {
        let last = self.last.as_ref();
        let last = last.ok_or_else(|| Error::internal("the item has read nothing"))?;
        last.copy().map_err(crate::arithmetic)
    }
}

/// What an item reads next.
#[derive(Debug)]
pub struct GpuRead<'a> {
    /// Who.
    pub item: &'a mut GpuSlot,
    /// Of a new item the first tokens; else one for each row.
    pub tokens: &'a [u32],
    /// How many of the best tokens of each row are wanted; `None` for all logits.
    pub best: Option<usize>,
}

/// What came of it.
#[derive(Debug)]
pub enum GpuScores {
    /// `vocabulary` of every row.
    Logits(Vec<f32>),
    /// At least as many of every row as were wanted.
    Best(Vec<BestTokens>),
    /// A logit of the item's rows is NaN or infinite.
    NotFinite,
}
