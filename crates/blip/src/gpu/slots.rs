//! Which slots of a pool are taken. A plain data structure.

use std::sync::{Arc, Weak};

/// Slots, from the first on; a slot is taken as long as somebody holds its lease.
#[derive(Debug, Default)]
pub(super) struct Slots(Vec<Option<Taken>>);

#[derive(Debug)]
struct Taken {
    key: u64,
    lease: Weak<()>,
}

/// Fewer slots than these are never worth moving.
const FEW: usize = 8;

impl Slots {
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

    /// Frees what nobody holds any more.
    pub(super) fn release(&mut self) {
        for slot in &mut self.0 {
            if slot.as_ref().is_some_and(|taken| taken.lease.strong_count() == 0) {
                *slot = None;
            }
        }
    }

    /// The first free slot, for `key`; none if all are taken.
    pub(super) fn take(&mut self, key: u64) -> Option<Arc<()>> {
        let free = self.0.iter_mut().find(|slot| slot.is_none())?;
        let lease = Arc::new(());
        *free = Some(Taken { key, lease: Arc::downgrade(&lease) });
        Some(lease)
    }

    pub(super) fn find(&self, key: u64) -> Option<usize> {
        self.0.iter().position(|slot| slot.as_ref().is_some_and(|taken| taken.key == key))
    }

    pub(super) fn taken(&self) -> usize {
        self.0.iter().flatten().count()
    }

    /// One more than the last slot that is taken: a step computes all before it.
    pub(super) fn span(&self) -> usize {
        self.0.iter().rposition(Option::is_some).map_or(0, |last| last + 1)
    }

    /// Closes the gaps if a step computes twice as many slots as are taken; for each slot the one
    /// that moves there.
    ///
    /// A gap is otherwise left for the next image: moving a slot takes longer than many steps over
    /// an empty one.
    pub(super) fn compact(&mut self) -> Option<Vec<usize>> {
        let span = self.span();
        if span < FEW || 2 * self.taken() > span {
            return None;
        }
        let capacity = self.capacity();
        let (places, taken): (Vec<usize>, Vec<Option<Taken>>) = std::mem::take(&mut self.0)
            .into_iter()
            .enumerate()
            .filter(|(_, slot)| slot.is_some())
            .unzip();
        self.0 = taken;
        self.grow(capacity);
        Some(places)
    }
}

/// Slots, in their order, as runs of neighbours: the first of each, and how many.
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
    fn slots_are_given_from_the_first_and_come_back_with_their_lease() {
        let mut slots = Slots::new(3);
        let mut leases: Vec<_> = (10..13).map(|key| slots.take(key).unwrap()).collect();
        assert!(slots.take(13).is_none());
        drop(leases.remove(1));
        assert_eq!(slots.find(11), Some(1), "until somebody looks");
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
    fn gaps_are_closed_only_when_they_are_half_of_a_step() {
        let mut slots = Slots::new(16);
        let mut leases: Vec<_> = (0..12).map(|key| slots.take(key)).collect();
        assert_eq!(slots.compact(), None);
        for gone in [0, 2, 3, 5, 9] {
            leases[gone] = None;
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
        assert_eq!((slots.span(), slots.compact()), (6, None), "few are never moved");
    }

    #[test]
    fn neighbours_make_a_run() {
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[0, 1, 2, 5, 7, 8]), [(0, 3), (5, 1), (7, 2)]);
    }
}
