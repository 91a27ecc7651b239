//! Everything that changes while captions are written.

use std::sync::Arc;

use candle_core::{self as candle, DType, Device, Tensor};

use super::buffers::PoolShape;
use super::pool::Pool;
use super::slot::{GpuSlot, LastLogits};
use super::text::TextDecoder;
use super::top_logits::top_logits;
use crate::config::{BlipConfig, TextConfig};
use crate::model::check_read;
use crate::{Read, Scores, arithmetic};
use cutline_cuda::Operations;
use cutline_error::{Error, Result};

/// The captions that are being written: one pool of slots for each number of rows (beams or
/// samples) and of image tokens.
#[derive(Debug)]
pub struct GpuState {
    pools: Vec<Pool>,
    /// The id of the last slot; ids are never reused.
    last_id: u64,
    shape: PoolShape,
}

/// Where a slot is.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlotAddress {
    /// Index of the pool.
    pool: usize,
    /// The slot's id there.
    id: u64,
}

impl GpuState {
    pub(super) fn new(config: &BlipConfig, dtype: DType, device: &Device, growth: usize) -> Self {
        let shape = PoolShape::new(config, dtype, device, growth);
        Self { pools: Vec::new(), last_id: 0, shape }
    }

    /// Drops all slots and frees their memory.
    pub fn clear(&mut self) {
        self.pools.clear();
    }

    /// A slot for an image, in the pool of its kind.
    pub(super) fn begin(
        &mut self,
        image: &Tensor,
        capacity: usize,
        rows: usize,
    ) -> Result<GpuSlot> {
        let image_tokens = image.dim(0).map_err(arithmetic)?;
        self.last_id += 1;
        let id = self.last_id;
        for pool in &mut self.pools {
            pool.release();
        }
        let index = match self.pools.iter().position(|pool| pool.is_for(rows, image_tokens)) {
            Some(index) => index,
            None => {
                // The new pool needs the memory of pools that are not used.
                self.pools.retain(|pool| !pool.is_empty());
                self.pools.push(Pool::new(id, &self.shape, rows, image_tokens)?);
                self.pools.len() - 1
            }
        };
        let pool = &mut self.pools[index];
        let lease: Arc<()> = match pool.take(id, image) {
            Some(lease) => lease,
            None => {
                pool.grow_slots(&self.shape)?;
                pool.take(id, image).ok_or_else(|| Error::internal("a pool has not grown"))?
            }
        };
        Ok(GpuSlot::new(pool.id, id, lease, capacity, rows))
    }

    /// Checks the reads and finds their slots.
    pub(super) fn find(
        &self,
        reads: &[Read<'_, GpuSlot>],
        config: &TextConfig,
    ) -> Result<Vec<SlotAddress>> {
        let address = |read: &Read<'_, GpuSlot>| {
            let slot = &*read.slot;
            check_read(config, (slot.rows(), slot.position, slot.capacity), read.tokens)?;
            let pool = self.pools.iter().position(|pool| pool.id == slot.pool);
            pool.filter(|&pool| self.pools[pool].find(slot.id).is_some())
                .map(|pool| SlotAddress { pool, id: slot.id })
                .ok_or_else(|| Error::internal("the state of the slot was dropped"))
        };
        reads.iter().map(address).collect()
    }

    /// Copies the states of new images into their slots.
    pub(super) fn add_new_images(&mut self) -> candle::Result<()> {
        self.pools.iter_mut().try_for_each(Pool::add_new_images)
    }

    /// Reads the next tokens of slots that [`find`](Self::find) has found.
    pub(super) fn read(
        &mut self,
        text: &TextDecoder,
        reads: &mut [Read<'_, GpuSlot>],
        addresses: &[SlotAddress],
    ) -> candle::Result<Vec<Scores>> {
        self.add_new_images()?;
        let mut passes: Vec<PassOutput> = Vec::new();
        for (index, pool) in self.pools.iter_mut().enumerate() {
            let is_prompt = |n: usize| reads[n].slot.position == 0 && reads[n].tokens.len() > 1;
            let (prompts, steps): (Vec<usize>, Vec<usize>) = (0..reads.len())
                .filter(|&n| addresses[n].pool == index)
                .partition(|&n| is_prompt(n));
            let ids = |all: &[usize]| all.iter().map(|&n| addresses[n].id).collect::<Vec<_>>();
            if !steps.is_empty() {
                pool.compact_and_reorder(&self.shape, reads, &steps)?;
                let slots = pool.find_all(&ids(&steps));
                let logits = pool.step(text, &self.shape, reads, &steps, &slots)?;
                let first_rows = slots.iter().map(|slot| slot * pool.rows_per_slot).collect();
                passes.push(PassOutput { reads: steps, first_rows, logits });
            }
            if !prompts.is_empty() {
                let slots = pool.find_all(&ids(&prompts));
                let logits = pool.prompts(text, &self.shape, reads, &prompts, &slots)?;
                let first_rows = (0..prompts.len()).collect();
                passes.push(PassOutput { reads: prompts, first_rows, logits });
            }
        }
        let mut scores: Vec<Option<Scores>> = reads.iter().map(|_| None).collect();
        for pass in passes {
            pass.distribute(text.operations, reads, &mut scores, self.shape.vocabulary)?;
        }
        let all: Option<Vec<_>> = scores.into_iter().collect();
        all.ok_or_else(|| candle::Error::Msg("a slot was not read".to_owned()))
    }
}

/// The logits of one pass.
struct PassOutput {
    /// Indices of the reads that took part.
    reads: Vec<usize>,
    /// The first row of each of them.
    first_rows: Vec<usize>,
    logits: Tensor,
}

impl PassOutput {
    /// Gives every read its scores and advances its slot.
    fn distribute(
        &self,
        with: Operations,
        reads: &mut [Read<'_, GpuSlot>],
        scores: &mut [Option<Scores>],
        vocabulary: usize,
    ) -> candle::Result<()> {
        let wanted = self.reads.iter().filter_map(|&n| reads[n].top).max();
        let top = match wanted {
            Some(wanted) => top_logits(with, &self.logits, wanted)?,
            None => None,
        };
        for (&n, &first) in self.reads.iter().zip(&self.first_rows) {
            let Read { slot, tokens, top: wanted } = &mut reads[n];
            let count = slot.rows();
            let last = LastLogits { logits: self.logits.clone(), first, count, vocabulary };
            scores[n] = Some(match &top {
                Some(top) if wanted.is_some() => {
                    let rows: Option<Vec<_>> = top[first..first + count].iter().cloned().collect();
                    rows.map_or(Scores::NotFinite, Scores::Top)
                }
                _ => Scores::Logits(last.to_vec()?),
            });
            slot.position += if slot.position == 0 { tokens.len() } else { 1 };
            slot.sources = None;
            slot.last_logits = Some(last);
        }
        Ok(())
    }
}
