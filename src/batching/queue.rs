//! Who is next. A plain data structure: no threads, no clock, no channels.

use std::collections::VecDeque;

/// A bounded first-in, first-out queue of work, each item counted in rows of the decoding batch.
#[derive(Debug)]
pub(super) struct Queue<T> {
    items: VecDeque<Item<T>>,
    capacity: usize,
}

#[derive(Debug)]
struct Item<T> {
    rows: usize,
    value: T,
}

impl<T> Queue<T> {
    /// A queue that holds at most `capacity` items.
    pub(super) fn new(capacity: usize) -> Self {
        Self { items: VecDeque::new(), capacity }
    }

    /// Adds an item that needs `rows` rows, or gives it back when the queue is full.
    pub(super) fn push(&mut self, rows: usize, value: T) -> Result<(), T> {
        if self.items.len() >= self.capacity {
            return Err(value);
        }
        self.items.push_back(Item { rows, value });
        Ok(())
    }

    /// The oldest item if it fits into `free` rows, or if the batch is empty: an item that is
    /// larger than a whole batch runs alone rather than never. Later items do not overtake it.
    pub(super) fn next(&mut self, free: usize, batch_is_empty: bool) -> Option<T> {
        let first = self.items.front()?;
        if first.rows <= free || batch_is_empty {
            self.items.pop_front().map(|item| item.value)
        } else {
            None
        }
    }

    /// Drops the items for which `gone` says so, before they cost anything.
    pub(super) fn prune(&mut self, mut gone: impl FnMut(&T) -> bool) {
        self.items.retain(|item| !gone(&item.value));
    }

    /// Items that wait.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Takes everything out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.items.drain(..).map(|item| item.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_in_first_out_up_to_the_capacity() {
        let mut queue = Queue::new(2);
        assert_eq!(queue.push(1, 'a'), Ok(()));
        assert_eq!(queue.push(1, 'b'), Ok(()));
        assert_eq!(queue.push(1, 'c'), Err('c'));
        assert_eq!(queue.next(8, true), Some('a'));
        assert_eq!(queue.push(1, 'c'), Ok(()));
        assert_eq!((queue.next(8, false), queue.next(8, false)), (Some('b'), Some('c')));
        assert_eq!(queue.next(8, true), None);
    }

    #[test]
    fn a_wide_item_waits_for_room_and_is_not_overtaken() {
        let mut queue = Queue::new(4);
        queue.push(5, "wide").unwrap();
        queue.push(1, "narrow").unwrap();
        assert_eq!(queue.next(3, false), None);
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.next(5, false), Some("wide"));
        assert_eq!(queue.next(3, false), Some("narrow"));
    }

    #[test]
    fn an_item_wider_than_a_batch_runs_alone() {
        let mut queue = Queue::new(4);
        queue.push(10, "huge").unwrap();
        assert_eq!(queue.next(4, true), Some("huge"));
    }

    #[test]
    fn those_whose_caller_left_are_dropped() {
        let mut queue = Queue::new(4);
        (0..4).for_each(|i| queue.push(1, i).unwrap());
        queue.prune(|i| i % 2 == 0);
        assert_eq!(queue.drain().collect::<Vec<_>>(), [1, 3]);
        assert_eq!(queue.len(), 0);
    }
}
