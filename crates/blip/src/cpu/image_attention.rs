//! What the decoder's cross-attention reads of an image: its states, or their keys and values.
//!
//! Keys and values have to be computed for all layers, once an image; after that a token costs less
//! than with the states alone. So a job starts with the states, and gets keys and values as soon as
//! it reads more tokens than are faster without them; if it must read as many, or has several rows and
//! will probably do so, then at the start. This depends on the job alone, hence so does its result.

use super::Workspace;
use super::text::{TextDecoder, TextLayer};
use crate::model::SlotSize;
use cutline_kernels::attention::Heads;
use cutline_kernels::buffer::Buffer;
use cutline_kernels::cross_kv::CrossKv;
use cutline_kernels::cross_states::StatesTable;
use cutline_kernels::gemm::{Epilogue, linear};
use cutline_kernels::thread_pool::ThreadPool;
use cutline_kernels::{Isa, Precision};

/// Tokens of a typical caption. A job with many rows may expect as many in each of them.
const TYPICAL_TOKENS: usize = 10;

/// Tokens that a job reads with the states of its image, in all rows together.
///
/// Keys and values take `2 · hidden · width` multiplications for each state and layer; a token takes
/// `2 · heads · width` with the states, and few otherwise. These are equal after `hidden / heads`
/// tokens. But products of few rows are slower: with heads of 64 numbers and one row, both ways were
/// measured to be equal after 23 tokens or more, in every precision and with all kernels.
fn most_tokens(heads: Heads) -> usize {
    heads.size * 3 / 8
}

/// What a slot attends to.
#[derive(Debug)]
pub(super) enum ImageAttention {
    States {
        table: StatesTable,
        /// Tokens that have read it, in all rows.
        tokens: usize,
    },
    /// By layer.
    KeysAndValues(Vec<CrossKv>),
    /// Rows that are read before the first token, and nothing after that.
    Rows(Vec<f32>),
}

impl ImageAttention {
    /// The rows to read, which are gone then.
    pub(super) fn take_rows(&mut self) -> Vec<f32> {
        match self {
            Self::Rows(rows) => std::mem::take(rows),
            Self::States { .. } | Self::KeysAndValues(_) => Vec::new(),
        }
    }
}

/// The memory of finished slots, which the next ones use.
#[derive(Debug, Default)]
pub(super) struct SpareTables {
    states: Vec<StatesTable>,
    keys_and_values: Vec<Vec<CrossKv>>,
}

impl SpareTables {
    /// Takes back the tables of a slot; keeps at most `most` of a kind.
    pub(super) fn recycle(&mut self, image: ImageAttention, most: usize) {
        match image {
            ImageAttention::States { table, .. } if self.states.len() < most => {
                self.states.push(table);
            }
            ImageAttention::KeysAndValues(tables) if self.keys_and_values.len() < most => {
                self.keys_and_values.push(tables);
            }
            _ => {}
        }
    }
}

impl TextDecoder {
    /// What a new slot attends to.
    pub(super) fn attention_to(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        precision: Precision,
        states: &[f32],
        size: SlotSize,
    ) -> ImageAttention {
        let typical = if size.rows > 1 { size.capacity.min(TYPICAL_TOKENS) } else { 0 };
        let expected = size.rows.saturating_mul(size.least.max(typical));
        if expected > most_tokens(self.heads) {
            return self.keys_and_values(pool, work, precision, states);
        }
        let spare = work.spare_tables.states.pop();
        let mut table = spare.unwrap_or_else(|| StatesTable::new(self.isa, precision));
        let width = self.layers.first().map_or(1, |layer| layer.cross_kv.depth());
        table.fill(pool, states, width);
        ImageAttention::States { table, tokens: 0 }
    }

    /// Counts `new` tokens that a slot is about to read. If they are too many for the states, these
    /// are replaced with their keys and values.
    pub(super) fn count_tokens(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        precision: Precision,
        image: &mut ImageAttention,
        new: usize,
    ) {
        let ImageAttention::States { table, tokens } = image else { return };
        *tokens += new;
        if *tokens <= most_tokens(self.heads) {
            return;
        }
        // Taken out, because the projection uses the rest of the workspace.
        let mut states: Buffer<f32> = std::mem::take(&mut work.stream);
        states.resize(table.tokens() * table.width());
        table.read(states.as_mut_slice());
        let tables = self.keys_and_values(pool, work, precision, states.as_slice());
        work.stream = states;
        work.spare_tables.recycle(std::mem::replace(image, tables), super::MAX_SPARE);
    }

    fn keys_and_values(
        &self,
        pool: &ThreadPool,
        work: &mut Workspace,
        precision: Precision,
        states: &[f32],
    ) -> ImageAttention {
        let spare = work.spare_tables.keys_and_values.pop();
        let mut tables = spare.unwrap_or_else(|| {
            self.layers.iter().map(|_| CrossKv::new(precision, self.heads)).collect()
        });
        fill_cross_kv(pool, work, self.isa, &self.layers, states, &mut tables);
        ImageAttention::KeysAndValues(tables)
    }
}

/// Computes the keys and values of all layers from an image's states, or from those of a question.
pub(super) fn fill_cross_kv(
    pool: &ThreadPool,
    work: &mut Workspace,
    isa: Isa,
    layers: &[TextLayer],
    states: &[f32],
    tables: &mut [CrossKv],
) {
    for (index, (layer, table)) in layers.iter().zip(tables).enumerate() {
        let weights = &layer.cross_kv;
        // All layers read the same states in the same form, so they are converted once.
        if index == 0 {
            work.activations.copy_from(pool, weights, states);
        }
        work.product.resize(states.len() / weights.depth() * weights.width());
        let kv = work.product.as_mut_slice();
        linear(pool, &work.activations, weights, kv, Epilogue::STORE);
        table.fill(pool, isa, kv);
    }
}
