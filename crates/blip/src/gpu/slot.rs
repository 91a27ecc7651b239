//! The slots of a pool: which ones are taken, and the handle that the owner of one holds.

use std::sync::{Arc, Weak};

use candle_core::{self as candle, Tensor};

use cutline_error::{Error, Result};

/// The decoding state of one image in a [`GpuState`](super::GpuState). Dropping it frees the slot.
#[derive(Debug)]
pub struct GpuSlot {
    /// The pool of the slot, and its id there.
    pub(super) pool: u64,
    pub(super) id: u64,
    /// The slot is taken as long as this lives.
    _lease: Arc<()>,
    /// Tokens that each row can hold.
    pub(super) capacity: usize,
    /// Tokens that each row has read; also the position of the next one.
    pub(super) position: usize,
    rows: usize,
    max_rows: usize,
    /// For each row, the row of the last read that it continues, unless every row continues itself.
    pub(super) sources: Option<Vec<usize>>,
    pub(super) last_logits: Option<LastLogits>,
}

/// The logits of a slot's last read.
#[derive(Debug, Clone)]
pub(super) struct LastLogits {
    /// `[rows, vocabulary]`, with the rows of other slots.
    pub(super) logits: Tensor,
    /// The slot's first row.
    pub(super) first: usize,
    /// The slot's number of rows.
    pub(super) count: usize,
    pub(super) vocabulary: usize,
}

impl LastLogits {
    /// `vocabulary` of every row of the slot.
    pub(super) fn to_vec(&self) -> candle::Result<Vec<f32>> {
        let rows = self.logits.narrow(0, self.first, self.count)?;
        // In memory of its own; candle copies the whole memory of a contiguous view from a device.
        rows.narrow(1, 0, self.vocabulary)?.force_contiguous()?.flatten_all()?.to_vec1()
    }
}

impl GpuSlot {
    pub(super) fn new(
        pool: u64,
        id: u64,
        lease: Arc<()>,
        capacity: usize,
        max_rows: usize,
    ) -> Self {
        Self {
            pool,
            id,
            _lease: lease,
            capacity,
            position: 0,
            rows: 1,
            max_rows,
            sources: None,
            last_logits: None,
        }
    }

    /// Sequences that are decoded for this image.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Tokens that each row has read; also the position of the next one.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Makes row `n` continue the former row `sources[n]` from the next read on.
    ///
    /// # Errors
    /// A source is not a row, or there are more rows than the slot was made for.
    pub fn reorder(&mut self, sources: &[usize]) -> Result<()> {
        let (rows, max_rows) = (self.rows, self.max_rows);
        let known = sources.iter().all(|&source| source < rows);
        if sources.is_empty() || sources.len() > max_rows || !known {
            return Err(Error::internal(format!(
                "rows {sources:?} cannot continue the {rows} rows of a slot for {max_rows}"
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

    /// All logits of the last read: `vocabulary` of every row that the slot had then.
    ///
    /// # Errors
    /// Nothing was read, or the copy from the device failed.
    pub fn logits(&self) -> Result<Vec<f32>> {
        let last = self.last_logits.as_ref();
        let last = last.ok_or_else(|| Error::internal("the slot has read nothing"))?;
        last.to_vec().map_err(crate::arithmetic)
    }
}

/// Which slots of a pool are taken. A slot is taken as long as its lease lives.
#[derive(Debug, Default)]
pub(super) struct SlotTable(Vec<Option<Occupant>>);

#[derive(Debug)]
struct Occupant {
    id: u64,
    lease: Weak<()>,
}

/// Spans shorter than this are never compacted.
const MIN_COMPACTED: usize = 8;

impl SlotTable {
    pub(super) fn new(capacity: usize) -> Self {
        let mut slots = Self::default();
        slots.grow(capacity);
        slots
    }

    pub(super) fn capacity(&self) -> usize {
        self.0.len()
    }

    pub(super) fn grow(&mut self, capacity: usize) {
        self.0.resize_with(capacity, || None);
    }

    /// Frees the slots whose leases were dropped.
    pub(super) fn release(&mut self) {
        for slot in &mut self.0 {
            if slot.as_ref().is_some_and(|occupant| occupant.lease.strong_count() == 0) {
                *slot = None;
            }
        }
    }

    /// Takes the first free slot for `id`; `None` if all are taken.
    pub(super) fn take(&mut self, id: u64) -> Option<Arc<()>> {
        let free = self.0.iter_mut().find(|slot| slot.is_none())?;
        let lease = Arc::new(());
        *free = Some(Occupant { id, lease: Arc::downgrade(&lease) });
        Some(lease)
    }

    pub(super) fn find(&self, id: u64) -> Option<usize> {
        self.0.iter().position(|slot| slot.as_ref().is_some_and(|occupant| occupant.id == id))
    }

    pub(super) fn taken(&self) -> usize {
        self.0.iter().flatten().count()
    }

    /// One more than the index of the last taken slot: a step computes all slots before it.
    pub(super) fn span(&self) -> usize {
        self.0.iter().rposition(Option::is_some).map_or(0, |last| last + 1)
    }

    /// Closes the gaps if a step computes at least twice as many slots as are taken. Returns for
    /// each slot the old index of what is now in it.
    ///
    /// Smaller gaps are left for the next images: moving a slot takes longer than many steps over
    /// an empty one.
    pub(super) fn compact(&mut self) -> Option<Vec<usize>> {
        let span = self.span();
        if span < MIN_COMPACTED || 2 * self.taken() > span {
            return None;
        }
        let capacity = self.capacity();
        let (old, occupants): (Vec<usize>, Vec<Option<Occupant>>) = std::mem::take(&mut self.0)
            .into_iter()
            .enumerate()
            .filter(|(_, slot)| slot.is_some())
            .unzip();
        self.0 = occupants;
        self.grow(capacity);
        Some(old)
    }
}

/// Splits sorted slot indices into runs of neighbours: the first index of each run and its length.
pub(super) fn runs(slots: &[usize]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &slot in slots {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == slot => *count += 1,
            _ => runs.push((slot, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_again_when_its_lease_is_dropped() {
        let mut slots = SlotTable::new(3);
        let mut leases: Vec<_> = (10..13).map(|id| slots.take(id).unwrap()).collect();
        assert!(slots.take(13).is_none());
        drop(leases.remove(1));
        assert_eq!(slots.find(11), Some(1), "until the next release");
        slots.release();
        assert_eq!((slots.find(11), slots.span(), slots.taken()), (None, 3, 2));
        let _again = slots.take(14).unwrap();
        assert_eq!(slots.find(14), Some(1));
        slots.grow(6);
        assert_eq!((slots.capacity(), slots.span()), (6, 3));
        drop(leases.remove(1));
        slots.release();
        assert_eq!(slots.span(), 2);
    }

    #[test]
    fn gaps_are_closed_only_when_they_are_half_of_the_span() {
        let mut slots = SlotTable::new(16);
        let mut leases: Vec<_> = (0..12).map(|id| slots.take(id)).collect();
        assert_eq!(slots.compact(), None);
        for freed in [0, 2, 3, 5, 9] {
            leases[freed] = None;
        }
        slots.release();
        assert_eq!(slots.compact(), None, "7 of 12");
        leases[7] = None;
        slots.release();
        assert_eq!(slots.compact(), Some(vec![1, 4, 6, 8, 10, 11]));
        assert_eq!((slots.span(), slots.taken(), slots.capacity()), (6, 6, 16));
        assert_eq!((slots.find(10), slots.find(1)), (Some(4), Some(0)));
        leases.iter_mut().take(11).for_each(|lease| *lease = None);
        slots.release();
        assert_eq!((slots.span(), slots.compact()), (6, None), "a short span is never compacted");
    }

    #[test]
    fn neighbours_make_a_run() {
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[0, 1, 2, 5, 7, 8]), [(0, 3), (5, 1), (7, 2)]);
    }
}
