//! Where captions lie while they are written: buffers with a slot for each image, one pool of them
//! for each number of rows (beams or samples) and of image tokens.

use std::sync::Arc;

use candle_core::{self as candle, DType, Device, Tensor};

use super::attend::{PromptAttend, StepAttend, causal_mask};
use super::best::best_tokens;
use super::item::{GpuRead, GpuScores, GpuSlot, LastLogits};
use super::launch::keeping_shapes;
use super::shape::{Constants, Shape};
use super::slots::{Slots, runs};
use super::text::TextDecoder;
use crate::arithmetic;
use crate::config::TextConfig;
use cutline_error::{Error, Result};

/// Tokens by which caches grow, and by which steps look back.
pub(super) const PLACES: usize = 32;

/// Slots of a new pool.
const FIRST_SLOTS: usize = 4;

/// Elements of the keys and values that are made at once of new images.
const MAX_NEW: usize = 1 << 27;

/// Stands for "write nothing" among the indices of a scatter.
const NOWHERE: u32 = u32::MAX;

/// Everything that changes while captions are written.
#[derive(Debug)]
pub struct GpuState {
    pools: Vec<Pool>,
    next: u64,
    shape: Shape,
    constants: Constants,
}

/// Where in the pools an item lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pool: usize,
    key: u64,
}

#[derive(Debug)]
pub(super) struct Pool {
    id: u64,
    /// Rows of every slot.
    pub(super) lanes: usize,
    /// Tokens of every image.
    tokens: usize,
    slots: Slots,
    /// By layer, the images' keys and values: `[layers, slots, heads, image tokens, d]` each.
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
    /// By layer, keys and values of the captions' tokens: `[layers, slots · lanes, heads, 2, places,
    /// d]`.
    pub(super) own: Tensor,
    /// Images that have a slot with nothing in it yet.
    fresh: Vec<(u64, Tensor)>,
}

impl GpuState {
    pub(super) fn new(
        config: &TextConfig,
        dtype: DType,
        device: &Device,
        step: usize,
    ) -> candle::Result<Self> {
        let shape = Shape::new(config, dtype, device, step);
        let constants = Constants::new(&shape)?;
        Ok(Self { pools: Vec::new(), next: 0, shape, constants })
    }

    /// Forgets everybody, and gives all memory back.
    pub fn clear(&mut self) {
        self.pools.clear();
    }

    /// A slot for an image, in the pool of those like it.
    pub(super) fn begin(
        &mut self,
        image: &Tensor,
        capacity: usize,
        lanes: usize,
    ) -> Result<GpuSlot> {
        let tokens = image.dim(0).map_err(arithmetic)?;
        self.next += 1;
        let key = self.next;
        let like = |pool: &Pool| pool.lanes == lanes && pool.tokens == tokens;
        for pool in &mut self.pools {
            pool.release();
        }
        let index = match self.pools.iter().position(like) {
            Some(index) => index,
            None => {
                // Memory that nobody uses is worth more to the new pool.
                self.pools.retain(|pool| pool.slots.taken() > 0);
                self.pools.push(Pool::new(key, &self.shape, lanes, tokens)?);
                self.pools.len() - 1
            }
        };
        let pool = &mut self.pools[index];
        let lease: Arc<()> = match pool.slots.take(key) {
            Some(lease) => lease,
            None => {
                pool.grow(&self.shape)?;
                pool.slots.take(key).ok_or_else(|| Error::internal("a pool has not grown"))?
            }
        };
        pool.fresh.push((key, image.clone()));
        Ok(GpuSlot::new(pool.id, key, lease, capacity, lanes))
    }

    /// Checks the reads, and says where the items are.
    pub(super) fn find(&self, reads: &[GpuRead<'_>], config: &TextConfig) -> Result<Vec<Place>> {
        let place = |read: &GpuRead<'_>| {
            let item = &*read.item;
            let places = item.capacity.min(self.shape.max_positions);
            let count = read.tokens.len();
            let fits = if item.position == 0 {
                item.rows() == 1 && count > 0 && count <= places
            } else {
                count == item.rows() && item.position < places
            };
            if !fits {
                let (rows, position) = (item.rows(), item.position);
                return Err(Error::internal(format!(
                    "{count} tokens for {rows} rows of {position} tokens with {places} places"
                )));
            }
            config.check_tokens(read.tokens)?;
            let pool = self.pools.iter().position(|pool| pool.id == item.pool);
            pool.filter(|&pool| self.pools[pool].slots.find(item.key).is_some())
                .map(|pool| Place { pool, key: item.key })
                .ok_or_else(|| Error::internal("the item's state is gone"))
        };
        reads.iter().map(place).collect()
    }

    /// Computes keys and values of the new images.
    pub(super) fn prefill_cross_kv(&mut self, text: &TextDecoder) -> candle::Result<()> {
        self.pools.iter_mut().try_for_each(|pool| pool.prefill_cross_kv(text, &self.shape))
    }

    /// Reads the next tokens of items that [`find`](Self::find) has found.
    pub(super) fn read(
        &mut self,
        text: &TextDecoder,
        reads: &mut [GpuRead<'_>],
        places: &[Place],
    ) -> candle::Result<Vec<GpuScores>> {
        self.prefill_cross_kv(text)?;
        let mut passes: Vec<Pass> = Vec::new();
        for (index, pool) in self.pools.iter_mut().enumerate() {
            let here = |first: bool| -> Vec<usize> {
                let prompt = |n: &usize| reads[*n].item.position == 0 && reads[*n].tokens.len() > 1;
                (0..reads.len())
                    .filter(|&n| places[n].pool == index && prompt(&n) == first)
                    .collect()
            };
            let (prompts, steps) = (here(true), here(false));
            let keys = |all: &[usize]| all.iter().map(|&n| places[n].key).collect::<Vec<_>>();
            if !steps.is_empty() {
                pool.tidy(&self.shape, reads, &steps)?;
                let slots = pool.find(&keys(&steps));
                let logits =
                    pool.step(text, &self.shape, &self.constants, reads, &steps, &slots)?;
                let first = slots.iter().map(|slot| slot * pool.lanes).collect();
                passes.push(Pass { reads: steps, first, logits });
            }
            if !prompts.is_empty() {
                let slots = pool.find(&keys(&prompts));
                let logits = pool.prompts(text, &self.shape, reads, &prompts, &slots)?;
                let first = (0..prompts.len()).collect();
                passes.push(Pass { reads: prompts, first, logits });
            }
        }
        let mut scores: Vec<Option<GpuScores>> = reads.iter().map(|_| None).collect();
        for pass in passes {
            pass.give(reads, &mut scores, self.shape.vocabulary)?;
        }
        let all: Option<Vec<_>> = scores.into_iter().collect();
        all.ok_or_else(|| candle::Error::Msg("an item was not read".to_owned()))
    }
}

/// What came of one pass.
struct Pass {
    reads: Vec<usize>,
    /// The first row of each.
    first: Vec<usize>,
    logits: Tensor,
}

impl Pass {
    /// Gives every item its scores and moves it on.
    fn give(
        &self,
        reads: &mut [GpuRead<'_>],
        scores: &mut [Option<GpuScores>],
        vocabulary: usize,
    ) -> candle::Result<()> {
        let wanted = self.reads.iter().filter_map(|&n| reads[n].best).max();
        let best = match wanted {
            Some(wanted) => best_tokens(&self.logits, vocabulary, wanted)?,
            None => None,
        };
        for (&n, &first) in self.reads.iter().zip(&self.first) {
            let GpuRead { item, tokens, best: wanted } = &mut reads[n];
            let count = item.rows();
            let last = LastLogits { logits: self.logits.clone(), first, count, vocabulary };
            scores[n] = Some(match &best {
                Some(best) if wanted.is_some() => {
                    let rows = &best[first..first + count];
                    if rows.iter().all(|row| row.finite) {
                        GpuScores::Best(rows.to_vec())
                    } else {
                        GpuScores::NotFinite
                    }
                }
                _ => GpuScores::Logits(last.copy()?),
            });
            item.position += if item.position == 0 { tokens.len() } else { 1 };
            item.sources = None;
            item.last = Some(last);
        }
        Ok(())
    }
}

impl Pool {
    fn new(id: u64, shape: &Shape, lanes: usize, tokens: usize) -> Result<Self> {
        let (keys, values, own) = shape.buffers(FIRST_SLOTS, lanes, tokens, shape.step)?;
        let slots = Slots::new(FIRST_SLOTS);
        Ok(Self { id, lanes, tokens, slots, keys, values, own, fresh: Vec::new() })
    }

    /// Frees the slots that nobody holds any more.
    fn release(&mut self) {
        self.slots.release();
        self.fresh.retain(|(key, _)| self.slots.find(*key).is_some());
    }

    fn find(&self, keys: &[u64]) -> Vec<usize> {
        keys.iter().filter_map(|key| self.slots.find(*key)).collect()
    }

    /// Twice as many slots.
    fn grow(&mut self, shape: &Shape) -> Result<()> {
        let capacity = 2 * self.slots.capacity();
        let places = self.own.dim(4).map_err(arithmetic)?;
        let (keys, values, own) = shape.buffers(capacity, self.lanes, self.tokens, places)?;
        for (new, old) in [(&keys, &self.keys), (&values, &self.values), (&own, &self.own)] {
            new.slice_set(old, 1, 0).map_err(arithmetic)?;
        }
        (self.keys, self.values, self.own) = (keys, values, own);
        self.slots.grow(capacity);
        Ok(())
    }

    /// Room for so many tokens of every row.
    fn make_room(&mut self, shape: &Shape, tokens: usize) -> candle::Result<()> {
        let places = self.own.dim(4)?;
        if tokens <= places {
            return Ok(());
        }
        let most = shape.max_positions.next_multiple_of(shape.step);
        let places = (2 * places).min(most).max(tokens.next_multiple_of(shape.step));
        let rows = self.slots.capacity() * self.lanes;
        let own = shape.zeros(&shape.own(rows, places))?;
        own.slice_set(&self.own, 4, 0)?;
        self.own = own;
        Ok(())
    }

    /// Computes keys and values of the new images, and clears the places of their tokens: what was
    /// there may be no number, and nothing times that is no number either.
    fn prefill_cross_kv(&mut self, text: &TextDecoder, shape: &Shape) -> candle::Result<()> {
        self.release();
        let mut fresh: Vec<(usize, Tensor)> = std::mem::take(&mut self.fresh)
            .into_iter()
            .filter_map(|(key, states)| Some((self.slots.find(key)?, states)))
            .collect();
        fresh.sort_by_key(|(slot, _)| *slot);
        let each = 2 * shape.layers * shape.heads * self.tokens * shape.d;
        for some in fresh.chunks((MAX_NEW / each).max(1)) {
            let states: Vec<&Tensor> = some.iter().map(|(_, states)| states).collect();
            let (keys, values) = text.keys_and_values(&Tensor::stack(&states, 0)?)?;
            let slots: Vec<usize> = some.iter().map(|(slot, _)| *slot).collect();
            let mut done = 0;
            for (first, count) in runs(&slots) {
                let part = |all: &Tensor| all.narrow(1, done, count)?.contiguous();
                self.keys.slice_set(&part(&keys)?, 1, first)?;
                self.values.slice_set(&part(&values)?, 1, first)?;
                let empty = shape.own(count * self.lanes, self.own.dim(4)?);
                self.own.slice_set(&shape.zeros(&empty)?, 1, first * self.lanes)?;
                done += count;
            }
        }
        Ok(())
    }

    /// Closes gaps between slots, and lets rows continue the rows that they are to continue.
    fn tidy(
        &mut self,
        shape: &Shape,
        reads: &[GpuRead<'_>],
        steps: &[usize],
    ) -> candle::Result<()> {
        self.release();
        let lanes = self.lanes;
        if let Some(places) = self.slots.compact() {
            let ids = |all: Vec<usize>| indices(all, &shape.device);
            let slots = ids(places.clone())?;
            for buffer in [&self.keys, &self.values] {
                buffer.slice_set(&buffer.index_select(&slots, 1)?, 1, 0)?;
            }
            let rows =
                ids(places.iter().flat_map(|slot| slot * lanes..(slot + 1) * lanes).collect())?;
            self.own.slice_set(&self.own.index_select(&rows, 1)?, 1, 0)?;
        }
        let mut rows: Vec<usize> = (0..self.slots.capacity() * lanes).collect();
        let mut moved = false;
        for &n in steps {
            let item = &*reads[n].item;
            let (Some(sources), Some(slot)) = (&item.sources, self.slots.find(item.key)) else {
                continue;
            };
            moved = true;
            for (lane, source) in sources.iter().enumerate() {
                rows[slot * lanes + lane] = slot * lanes + source;
            }
        }
        if moved {
            self.own = self.own.index_select(&indices(rows, &shape.device)?, 1)?;
        }
        Ok(())
    }

    /// One token for every row of the items in these slots; the logits of every row before the last
    /// of them, whoever it belongs to.
    fn step(
        &mut self,
        text: &TextDecoder,
        shape: &Shape,
        constants: &Constants,
        reads: &[GpuRead<'_>],
        steps: &[usize],
        slots: &[usize],
    ) -> candle::Result<Tensor> {
        let lanes = self.lanes;
        let span = slots.iter().max().map_or(0, |last| last + 1);
        let rows = span * lanes;
        // Tokens, positions, and the places that are written.
        let mut inputs = vec![0; 3 * rows];
        inputs[2 * rows..].fill(NOWHERE);
        let mut most = 0;
        for (&n, slot) in steps.iter().zip(slots) {
            let GpuRead { item, tokens, .. } = &reads[n];
            most = most.max(item.position + 1);
            for lane in 0..lanes {
                let row = slot * lanes + lane;
                // All rows of a new item read the same, whichever of them will be continued.
                let token = if item.position == 0 { 0 } else { lane };
                inputs[row] = tokens.get(token).copied().unwrap_or(0);
                inputs[rows + row] = item.position as u32;
                inputs[2 * rows + row] = item.position as u32;
            }
        }
        self.make_room(shape, most)?;
        let places = most.next_multiple_of(shape.step).min(self.own.dim(4)?);
        let inputs = Tensor::from_vec(inputs, (3, rows), &shape.device)?;
        keeping_shapes(&shape.device, || {
            let (tokens, positions) = (inputs.get(0)?, inputs.get(1)?);
            let written = inputs.get(2)?.reshape((rows, 1, 1, 1, 1))?;
            let new = (rows, shape.heads, 2, 1, shape.d);
            let attend = StepAttend {
                pool: self,
                span,
                places,
                written: written.broadcast_as(new)?.contiguous()?,
                mask: constants.mask(&positions, places)?,
            };
            text.logits(&text.read(&tokens, &positions, &attend)?)
        })
    }

    /// The first tokens of new items, in one pass as long as the longest; the logits of the last of
    /// each, in the order of `prompts`.
    fn prompts(
        &mut self,
        text: &TextDecoder,
        shape: &Shape,
        reads: &[GpuRead<'_>],
        prompts: &[usize],
        slots: &[usize],
    ) -> candle::Result<Tensor> {
        let longest = prompts.iter().map(|&n| reads[n].tokens.len()).max().unwrap_or(0);
        self.make_room(shape, longest)?;
        let mut tokens = Vec::with_capacity(prompts.len() * longest);
        let mut last = Vec::with_capacity(prompts.len());
        for &n in prompts {
            // What stands behind a shorter prompt is seen by nobody, and written over later.
            tokens.extend(reads[n].tokens.iter().copied());
            last.push(tokens.len() - 1);
            tokens.resize(tokens.len().next_multiple_of(longest), 0);
        }
        let positions = (0..tokens.len()).map(|place| place % longest).collect();
        let device = &shape.device;
        let tokens = Tensor::new(tokens, device)?;
        let (positions, last) = (indices(positions, device)?, indices(last, device)?);
        let attend = PromptAttend {
            pool: self,
            tokens: longest,
            slots: slots.to_vec(),
            chosen: indices(slots.to_vec(), device)?,
            mask: causal_mask(longest, shape.dtype, device)?,
        };
        keeping_shapes(device, || {
            let x = text.read(&tokens, &positions, &attend)?;
            text.logits(&x.index_select(&last, 0)?)
        })
    }
}

fn indices(all: Vec<usize>, device: &Device) -> candle::Result<Tensor> {
    let all: Vec<u32> = all.into_iter().map(|index| index as u32).collect();
    Tensor::new(all, device)
}
