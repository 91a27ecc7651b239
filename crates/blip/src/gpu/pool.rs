//! A pool: the buffers in which captions of one kind are decoded, with a slot for each image.

use std::sync::Arc;

use candle_core::{self as candle, Device, Tensor};

use super::buffers::{Buffers, PoolShape, causal_mask};
use super::cache_shapes;
use super::layers::masked_attention;
use super::slot::{GpuSlot, SlotTable, runs};
use super::text::{Attention, TextDecoder};
use crate::{Read, arithmetic};
use cutline_cuda::Operations;
use cutline_error::Result;

/// Positions by which caches grow.
pub(super) const GROWTH: usize = 32;

/// Slots of a new pool.
const FIRST_SLOTS: usize = 4;

/// The position of a row that takes no part in a step.
const NOWHERE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) id: u64,
    pub(super) rows_per_slot: usize,
    image_tokens: usize,
    slots: SlotTable,
    buffers: Buffers,
    /// Slot ids and states of the images that are not in the buffer yet.
    new_images: Vec<(u64, Tensor)>,
}

impl Pool {
    pub(super) fn new(
        id: u64,
        shape: &PoolShape,
        rows_per_slot: usize,
        image_tokens: usize,
    ) -> Result<Self> {
        Ok(Self {
            id,
            rows_per_slot,
            image_tokens,
            slots: SlotTable::new(FIRST_SLOTS),
            buffers: shape.buffers(FIRST_SLOTS, rows_per_slot, image_tokens, shape.growth)?,
            new_images: Vec::new(),
        })
    }

    pub(super) fn is_for(&self, rows_per_slot: usize, image_tokens: usize) -> bool {
        self.rows_per_slot == rows_per_slot && self.image_tokens == image_tokens
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.taken() == 0
    }

    /// Takes a slot for a new image; `None` if all are taken.
    pub(super) fn take(&mut self, id: u64, image: &Tensor) -> Option<Arc<()>> {
        let lease = self.slots.take(id)?;
        self.new_images.push((id, image.clone()));
        Some(lease)
    }

    /// Frees the slots whose owners dropped them.
    pub(super) fn release(&mut self) {
        self.slots.release();
        self.new_images.retain(|(id, _)| self.slots.find(*id).is_some());
    }

    pub(super) fn find(&self, id: u64) -> Option<usize> {
        self.slots.find(id)
    }

    pub(super) fn find_all(&self, ids: &[u64]) -> Vec<usize> {
        ids.iter().filter_map(|id| self.slots.find(*id)).collect()
    }

    /// Doubles the number of slots.
    pub(super) fn grow_slots(&mut self, shape: &PoolShape) -> Result<()> {
        let capacity = 2 * self.slots.capacity();
        let positions = self.buffers.self_kv.dim(4).map_err(arithmetic)?;
        let new = shape.buffers(capacity, self.rows_per_slot, self.image_tokens, positions)?;
        let old = &self.buffers;
        new.states.slice_set(&old.states, 0, 0).map_err(arithmetic)?;
        new.self_kv.slice_set(&old.self_kv, 1, 0).map_err(arithmetic)?;
        self.buffers = new;
        self.slots.grow(capacity);
        Ok(())
    }

    /// Grows the caches to at least so many positions.
    fn grow_positions(&mut self, shape: &PoolShape, needed: usize) -> candle::Result<()> {
        let positions = self.buffers.self_kv.dim(4)?;
        if needed <= positions {
            return Ok(());
        }
        let most = shape.max_positions.next_multiple_of(shape.growth);
        let positions = (2 * positions).min(most).max(needed.next_multiple_of(shape.growth));
        let rows = self.slots.capacity() * self.rows_per_slot;
        let self_kv = shape.zeros(&shape.self_kv(rows, positions))?;
        self_kv.slice_set(&self.buffers.self_kv, 4, 0)?;
        self.buffers.self_kv = self_kv;
        Ok(())
    }

    /// Copies the states of new images into their slots.
    pub(super) fn add_new_images(&mut self) -> candle::Result<()> {
        self.release();
        for (id, states) in std::mem::take(&mut self.new_images) {
            if let Some(slot) = self.slots.find(id) {
                self.buffers.states.slice_set(&states.unsqueeze(0)?, 0, slot)?;
            }
        }
        Ok(())
    }

    /// Closes gaps between slots, and moves the caches of rows that continue other rows.
    pub(super) fn compact_and_reorder(
        &mut self,
        shape: &PoolShape,
        reads: &[Read<'_, GpuSlot>],
        steps: &[usize],
    ) -> candle::Result<()> {
        self.release();
        let (per_slot, buffers) = (self.rows_per_slot, &mut self.buffers);
        if let Some(old) = self.slots.compact() {
            let rows = old.iter().flat_map(|slot| slot * per_slot..(slot + 1) * per_slot).collect();
            let slots = indices(old, &shape.device)?;
            buffers.states.slice_set(&buffers.states.index_select(&slots, 0)?, 0, 0)?;
            let rows = indices(rows, &shape.device)?;
            buffers.self_kv.slice_set(&buffers.self_kv.index_select(&rows, 1)?, 1, 0)?;
        }
        let mut rows: Vec<usize> = (0..self.slots.capacity() * per_slot).collect();
        let mut moved = false;
        for &n in steps {
            let read = &*reads[n].slot;
            let (Some(sources), Some(slot)) = (&read.sources, self.slots.find(read.id)) else {
                continue;
            };
            moved = true;
            for (row, source) in sources.iter().enumerate() {
                rows[slot * per_slot + row] = slot * per_slot + source;
            }
        }
        if moved {
            buffers.self_kv = buffers.self_kv.index_select(&indices(rows, &shape.device)?, 1)?;
        }
        Ok(())
    }

    /// Reads one token in every row of these slots. Returns the logits of every row up to the last
    /// of them, whatever slot it belongs to.
    pub(super) fn step(
        &mut self,
        text: &TextDecoder,
        shape: &PoolShape,
        reads: &[Read<'_, GpuSlot>],
        steps: &[usize],
        slots: &[usize],
    ) -> candle::Result<Tensor> {
        let per_slot = self.rows_per_slot;
        let span = slots.iter().max().map_or(0, |last| last + 1);
        let rows = span * per_slot;
        // Tokens, positions for the embedding, and positions in the cache.
        let mut inputs = vec![0; 3 * rows];
        inputs[2 * rows..].fill(NOWHERE);
        let mut longest = 0;
        for (&n, slot) in steps.iter().zip(slots) {
            let Read { slot: state, tokens, .. } = &reads[n];
            longest = longest.max(state.position + 1);
            for n in 0..per_slot {
                let row = slot * per_slot + n;
                // All rows of a new slot read the same token, because any of them may be continued.
                let token = if state.position == 0 { 0 } else { n };
                inputs[row] = tokens.get(token).copied().unwrap_or(0);
                inputs[rows + row] = state.position as u32;
                inputs[2 * rows + row] = state.position as u32;
            }
        }
        self.grow_positions(shape, longest)?;
        let inputs = Tensor::from_vec(inputs, (3, rows), &shape.device)?;
        cache_shapes(&shape.device, || {
            let attention = StepAttention { buffers: &self.buffers, positions: inputs.get(2)? };
            let states = self.buffers.states.narrow(0, 0, span)?;
            let x = text.read(&inputs.get(0)?, &inputs.get(1)?, &states, &attention)?;
            text.logits(&x)
        })
    }

    /// Reads the first tokens of new slots in one pass that is as long as the longest prompt.
    /// Returns the logits after the last token of each, in the order of `prompts`.
    pub(super) fn prompts(
        &mut self,
        text: &TextDecoder,
        shape: &PoolShape,
        reads: &[Read<'_, GpuSlot>],
        prompts: &[usize],
        slots: &[usize],
    ) -> candle::Result<Tensor> {
        let longest = prompts.iter().map(|&n| reads[n].tokens.len()).max().unwrap_or(0);
        self.grow_positions(shape, longest)?;
        let mut tokens = Vec::with_capacity(prompts.len() * longest);
        let mut last = Vec::with_capacity(prompts.len());
        for &n in prompts {
            // The padding behind a shorter prompt is never attended to, and overwritten later.
            tokens.extend(reads[n].tokens.iter().copied());
            last.push(tokens.len() - 1);
            tokens.resize(tokens.len().next_multiple_of(longest), 0);
        }
        let positions = (0..tokens.len()).map(|index| index % longest).collect();
        let device = &shape.device;
        let tokens = Tensor::new(tokens, device)?;
        let (positions, last) = (indices(positions, device)?, indices(last, device)?);
        let attention = PromptAttention {
            buffers: &self.buffers,
            rows_per_slot: self.rows_per_slot,
            tokens: longest,
            slots: slots.to_vec(),
            mask: causal_mask(longest, shape.dtype, device)?,
        };
        let states = match runs(slots)[..] {
            [(first, count)] => self.buffers.states.narrow(0, first, count)?,
            _ => self.buffers.states.index_select(&indices(slots.to_vec(), device)?, 0)?,
        };
        cache_shapes(device, || {
            let x = text.read(&tokens, &positions, &states, &attention)?;
            text.logits(&x.index_select(&last, 0)?)
        })
    }
}

/// Attention of a step: all slots up to the last that takes part, one token per row.
struct StepAttention<'a> {
    buffers: &'a Buffers,
    /// The position of each row's new token, or [`NOWHERE`].
    positions: Tensor,
}

impl Attention for StepAttention<'_> {
    fn over_tokens(&self, with: Operations, layer: usize, qkv: &Tensor) -> candle::Result<Tensor> {
        let self_kv = self.buffers.self_kv.get(layer)?.narrow(0, 0, qkv.dim(0)?)?;
        with.step_store(&self_kv, qkv, &self.positions)?;
        with.step_attend(&self_kv, qkv, &self.positions)
    }
}

/// Attention of prompts: several tokens in each of these new slots.
struct PromptAttention<'a> {
    buffers: &'a Buffers,
    rows_per_slot: usize,
    tokens: usize,
    slots: Vec<usize>,
    /// `[tokens, tokens]`.
    mask: Tensor,
}

impl Attention for PromptAttention<'_> {
    fn over_tokens(&self, _: Operations, layer: usize, qkv: &Tensor) -> candle::Result<Tensor> {
        let (rows, heads, _, d) = qkv.dims4()?;
        let (images, per_slot) = (self.slots.len(), self.rows_per_slot);
        let parts = qkv.reshape(&[images, self.tokens, heads, 3, d][..])?;
        let parts = parts.permute([3, 0, 2, 1, 4])?.contiguous()?;
        let (q, k, v) = (parts.get(0)?, parts.get(1)?, parts.get(2)?);
        // Into every row of the slot, because any of them may be continued.
        let both = Tensor::stack(&[&k, &v], 2)?.unsqueeze(1)?;
        let both = both.broadcast_as(&[images, per_slot, heads, 2, self.tokens, d][..])?;
        let both = both.reshape(&[images * per_slot, heads, 2, self.tokens, d][..])?;
        let self_kv = self.buffers.self_kv.get(layer)?;
        let mut done = 0;
        for (first, count) in runs(&self.slots) {
            let target = self_kv.narrow(0, first * per_slot, count * per_slot)?;
            target.slice_set(&both.narrow(0, done * per_slot, count * per_slot)?, 3, 0)?;
            done += count;
        }
        let context = masked_attention(&q, &k, &v, &self.mask)?;
        context.transpose(1, 2)?.reshape((rows, heads * d))
    }
}

fn indices(all: Vec<usize>, device: &Device) -> candle::Result<Tensor> {
    let all: Vec<u32> = all.into_iter().map(|index| index as u32).collect();
    Tensor::new(all, device)
}
