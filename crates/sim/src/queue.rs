//! What will happen, soonest first.
//!
//! Invariant: of two things at the same time, the one that was put in first comes out first, so that a run is the
//! same each time.

use crate::time::Time;
use std::{cmp::Ordering, collections::BinaryHeap};

/// Events in the order of their times.
#[derive(Debug)]
pub struct Queue<T> {
    heap: BinaryHeap<Entry<T>>,
    count: u64,
}

#[derive(Debug)]
struct Entry<T> {
    at: Time,
    number: u64,
    event: T,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), count: 0 }
    }
}

impl<T> Queue<T> {
    /// Puts in what happens at `at`.
    pub fn push(&mut self, at: Time, event: T) {
        self.count += 1;
        self.heap.push(Entry { at, number: self.count, event });
    }

    /// Takes out what happens next, if that is not after `end`.
    pub fn pop_until(&mut self, end: Time) -> Option<(Time, T)> {
        if self.heap.peek()?.at > end {
            return None;
        }
        self.heap.pop().map(|entry| (entry.at, entry.event))
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The heap gives its greatest: that is the soonest.
impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn soonest_first_and_then_in_order() {
        let mut queue = Queue::default();
        let at = |seconds| Time(Duration::from_secs(seconds));
        for (when, what) in [(2, "c"), (1, "a"), (2, "d"), (1, "b"), (9, "late")] {
            queue.push(at(when), what);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop_until(at(5))).map(|(_, what)| what).collect();
        assert_eq!(order, ["a", "b", "c", "d"]);
    }
}
