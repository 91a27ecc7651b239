//! Which job is next. A plain data structure: no threads, no clock, no channels.

use std::collections::VecDeque;

/// The lane in which an item waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Priority {
    /// A caller waits for this one image.
    Interactive,
    /// One image of many. It is taken when no interactive item waits, or when [`MAX_OVERTAKERS`]
    /// interactive items have overtaken it.
    Bulk,
}

/// Interactive items that are taken in a row while a bulk item waits.
pub const MAX_OVERTAKERS: usize = 4;

/// A bounded queue with two lanes, each first in, first out.
///
/// A slot is reserved before there is an item for it, so that a caller with several items knows
/// beforehand that all of them fit. Waiting items and reserved slots together never exceed the
/// capacity.
#[derive(Debug)]
pub(super) struct Queue<T> {
    interactive: VecDeque<QueueItem<T>>,
    bulk: VecDeque<QueueItem<T>>,
    reserved: usize,
    capacity: usize,
    overtakers: usize,
}

#[derive(Debug)]
struct QueueItem<T> {
    /// Rows that it needs in the decoding batch.
    rows: usize,
    value: T,
}

impl<T> Queue<T> {
    /// A queue of `capacity` slots.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            interactive: VecDeque::new(),
            bulk: VecDeque::new(),
            reserved: 0,
            capacity,
            overtakers: 0,
        }
    }

    /// Reserves `count` slots, all or none. The error is the number of missing slots.
    pub(super) fn reserve(&mut self, count: usize) -> Result<(), usize> {
        let wanted = self.occupied().saturating_add(count);
        if wanted > self.capacity {
            return Err(wanted - self.capacity);
        }
        self.reserved += count;
        Ok(())
    }

    /// Frees a reserved slot.
    pub(super) fn release(&mut self) {
        debug_assert!(self.reserved > 0, "no slot is reserved");
        self.reserved = self.reserved.saturating_sub(1);
    }

    /// Puts an item that needs `rows` rows into a reserved slot.
    pub(super) fn push(&mut self, priority: Priority, rows: usize, value: T) {
        self.release();
        self.lane(priority).push_back(QueueItem { rows, value });
    }

    /// Takes the next item if it fits into `free` rows or if the batch is empty: an item that is
    /// larger than a whole batch runs alone. No other item overtakes one that does not fit yet.
    pub(super) fn next(&mut self, free: usize, batch_is_empty: bool) -> Option<T> {
        let priority = self.next_lane()?;
        let lane = self.lane(priority);
        if lane.front()?.rows > free && !batch_is_empty {
            return None;
        }
        let item = lane.pop_front()?;
        let overtook = priority == Priority::Interactive && !self.bulk.is_empty();
        self.overtakers = if overtook { self.overtakers + 1 } else { 0 };
        Some(item.value)
    }

    /// The next item, whether it fits or not.
    pub(super) fn peek(&self) -> Option<&T> {
        let lane = match self.next_lane()? {
            Priority::Interactive => &self.interactive,
            Priority::Bulk => &self.bulk,
        };
        lane.front().map(|item| &item.value)
    }

    /// The lane that is served next.
    fn next_lane(&self) -> Option<Priority> {
        match (self.interactive.is_empty(), self.bulk.is_empty()) {
            (true, true) => None,
            (false, true) => Some(Priority::Interactive),
            (true, false) => Some(Priority::Bulk),
            (false, false) if self.overtakers >= MAX_OVERTAKERS => Some(Priority::Bulk),
            (false, false) => Some(Priority::Interactive),
        }
    }

    /// Drops the items for which `is_unwanted` holds.
    pub(super) fn remove_if(&mut self, is_unwanted: impl Fn(&T) -> bool) {
        self.interactive.retain(|item| !is_unwanted(&item.value));
        self.bulk.retain(|item| !is_unwanted(&item.value));
    }

    /// Waiting items.
    pub(super) fn len(&self) -> usize {
        self.interactive.len() + self.bulk.len()
    }

    /// Reserved slots without an item yet.
    pub(super) fn reserved(&self) -> usize {
        self.reserved
    }

    /// Slots that are not free.
    pub(super) fn occupied(&self) -> usize {
        self.len() + self.reserved
    }

    /// All slots.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Removes and returns all waiting items.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.interactive.drain(..).chain(self.bulk.drain(..)).map(|item| item.value)
    }

    fn lane(&mut self, priority: Priority) -> &mut VecDeque<QueueItem<T>> {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Bulk => &mut self.bulk,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Priority::{Bulk, Interactive};
    use super::*;

    fn put<T>(queue: &mut Queue<T>, priority: Priority, rows: usize, value: T) {
        queue.reserve(1).unwrap();
        queue.push(priority, rows, value);
    }

    fn take_all<T>(queue: &mut Queue<T>) -> Vec<T> {
        std::iter::from_fn(|| queue.next(usize::MAX, true)).collect()
    }

    #[test]
    fn items_leave_in_order_and_the_capacity_holds() {
        let mut queue = Queue::new(2);
        put(&mut queue, Interactive, 1, 'a');
        put(&mut queue, Interactive, 1, 'b');
        assert_eq!(queue.reserve(1), Err(1));
        assert_eq!(queue.next(8, true), Some('a'));
        put(&mut queue, Interactive, 1, 'c');
        assert_eq!((queue.next(8, false), queue.next(8, false)), (Some('b'), Some('c')));
        assert_eq!(queue.next(8, true), None);
    }

    #[test]
    fn slots_are_reserved_all_or_none() {
        let mut queue = Queue::new(4);
        queue.reserve(3).unwrap();
        assert_eq!(queue.reserve(2), Err(1));
        assert_eq!((queue.reserved(), queue.occupied()), (3, 3), "nothing is half reserved");
        queue.push(Bulk, 1, ());
        assert_eq!((queue.reserved(), queue.len(), queue.occupied()), (2, 1, 3));
        queue.release();
        queue.reserve(2).unwrap();
        assert_eq!(queue.reserve(usize::MAX), Err(usize::MAX - 4), "no overflow");
    }

    #[test]
    fn a_wide_item_waits_until_it_fits_and_is_not_overtaken() {
        let mut queue = Queue::new(4);
        put(&mut queue, Interactive, 5, "wide");
        put(&mut queue, Interactive, 1, "narrow");
        put(&mut queue, Bulk, 1, "bulk");
        assert_eq!(queue.next(3, false), None);
        assert_eq!(queue.len(), 3);
        assert_eq!(queue.next(5, false), Some("wide"));
        assert_eq!(queue.next(3, false), Some("narrow"));
    }

    #[test]
    fn an_item_wider_than_a_batch_runs_alone() {
        let mut queue = Queue::new(4);
        put(&mut queue, Interactive, 10, "huge");
        assert_eq!(queue.next(4, true), Some("huge"));
    }

    #[test]
    fn unwanted_items_are_removed_from_both_lanes() {
        let mut queue = Queue::new(4);
        (0..4).for_each(|i| put(&mut queue, if i < 2 { Bulk } else { Interactive }, 1, i));
        queue.remove_if(|i| i % 2 == 0);
        assert_eq!(queue.drain().collect::<Vec<_>>(), [3, 1]);
        assert_eq!(queue.occupied(), 0);
    }

    #[test]
    fn a_bulk_item_is_overtaken_at_most_max_overtakers_times() {
        let mut queue = Queue::new(64);
        (0..3).for_each(|i| put(&mut queue, Bulk, 1, format!("b{i}")));
        (0..10).for_each(|i| put(&mut queue, Interactive, 1, format!("i{i}")));
        let order = take_all(&mut queue).join(" ");
        assert_eq!(order, "i0 i1 i2 i3 b0 i4 i5 i6 i7 b1 i8 i9 b2");
    }

    #[test]
    fn items_taken_before_a_bulk_item_arrived_do_not_count() {
        let mut queue = Queue::new(64);
        for i in 0..10 {
            put(&mut queue, Interactive, 1, i);
            assert_eq!(queue.next(8, false), Some(i));
        }
        put(&mut queue, Bulk, 1, 100);
        (0..5).for_each(|i| put(&mut queue, Interactive, 1, i));
        assert_eq!(take_all(&mut queue), [0, 1, 2, 3, 100, 4]);
    }

    /// An operation on a queue.
    #[derive(Debug, Clone, Copy)]
    enum Action {
        Reserve(usize),
        Release,
        Push(bool, usize),
        Next(usize),
        Remove(usize),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            (1_usize..5).prop_map(Action::Reserve),
            Just(Action::Release),
            (any::<bool>(), 1_usize..6).prop_map(|(bulk, rows)| Action::Push(bulk, rows)),
            (any::<bool>(), 1_usize..6).prop_map(|(bulk, rows)| Action::Push(bulk, rows)),
            (0_usize..7).prop_map(Action::Next),
            (2_usize..9).prop_map(Action::Remove),
        ]
    }

    proptest! {
        #[test]
        fn capacity_order_and_overtaking_bound_always_hold(
            capacity in 1_usize..12,
            actions in prop::collection::vec(action(), 0..200),
        ) {
            let mut queue = Queue::new(capacity);
            let (mut reserved, mut number) = (0, 0);
            let (mut last, mut overtakers) = ([None; 2], 0);
            let mut waiting: Vec<(bool, usize)> = Vec::new();
            for action in actions {
                match action {
                    Action::Reserve(count) => {
                        let fits = reserved + waiting.len() + count <= capacity;
                        prop_assert_eq!(queue.reserve(count).is_ok(), fits);
                        reserved += if fits { count } else { 0 };
                    }
                    Action::Release if reserved > 0 => {
                        queue.release();
                        reserved -= 1;
                    }
                    Action::Push(bulk, rows) if reserved > 0 => {
                        let priority = if bulk { Bulk } else { Interactive };
                        queue.push(priority, rows, (bulk, number, rows));
                        waiting.push((bulk, number));
                        (reserved, number) = (reserved - 1, number + 1);
                    }
                    Action::Next(free) => {
                        let peeked = queue.peek().copied();
                        let Some((bulk, taken, rows)) = queue.next(free, false) else { continue };
                        prop_assert_eq!(peeked, Some((bulk, taken, rows)));
                        prop_assert!(rows <= free);
                        prop_assert!(last[usize::from(bulk)] < Some(taken), "in order");
                        last[usize::from(bulk)] = Some(taken);
                        waiting.retain(|item| *item != (bulk, taken));
                        let overtook = !bulk && waiting.iter().any(|(bulk, _)| *bulk);
                        overtakers = if overtook { overtakers + 1 } else { 0 };
                        prop_assert!(overtakers <= MAX_OVERTAKERS);
                    }
                    Action::Remove(divisor) => {
                        queue.remove_if(|(_, number, _)| number % divisor == 0);
                        waiting.retain(|(_, number)| number % divisor != 0);
                        overtakers *= usize::from(waiting.iter().any(|(bulk, _)| *bulk));
                    }
                    Action::Release | Action::Push(..) => {}
                }
                prop_assert_eq!(queue.len(), waiting.len());
                prop_assert_eq!(queue.reserved(), reserved);
                prop_assert!(queue.occupied() <= capacity);
            }
        }
    }
}
