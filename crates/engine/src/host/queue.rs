//! Requests that wait for the engine.
//!
//! The engine gets one of each tenant in turn, and each tenant's in the order in which they came. Requests that share a prompt
//! with another one are deferred: they are not in line until that one's prompt is in the cache. What is done for one request
//! costs the same however many wait.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Unbounded};

/// The line. Requests are named by numbers, later ones by greater ones.
#[derive(Debug)]
pub(super) struct Queue<T> {
    /// Those in line, by tenant and number. No tenant is without one.
    ready: BTreeMap<u64, BTreeMap<u64, T>>,
    /// Those that wait for another one, by its number.
    deferred: BTreeMap<u64, BTreeMap<u64, (u64, T)>>,
    places: HashMap<u64, Place>,
    deferred_len: usize,
    /// The tenant that had the last turn.
    last: u64,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Ready { tenant: u64 },
    Deferred { behind: u64 },
}

impl<T> Queue<T> {
    pub fn new() -> Self {
        Self {
            ready: BTreeMap::new(),
            deferred: BTreeMap::new(),
            places: HashMap::new(),
            deferred_len: 0,
            last: 0,
        }
    }

    /// All that wait.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Those of them that wait for another one.
    pub fn deferred(&self) -> usize {
        self.deferred_len
    }

    /// A request joins the line, or waits for the one with the number `behind`.
    pub fn push(&mut self, number: u64, tenant: u64, behind: Option<u64>, item: T) {
        let place = match behind {
            None => {
                self.ready.entry(tenant).or_default().insert(number, item);
                Place::Ready { tenant }
            }
            Some(behind) => {
                let others = self.deferred.entry(behind).or_default();
                others.insert(number, (tenant, item));
                self.deferred_len += 1;
                Place::Deferred { behind }
            }
        };
        self.places.insert(number, place);
    }

    /// The next one in line, with its number.
    pub fn pop(&mut self) -> Option<(u64, T)> {
        let after = self.ready.range((Excluded(self.last), Unbounded)).next();
        let (&tenant, _) = after.or_else(|| self.ready.first_key_value())?;
        self.last = tenant;
        let (number, item) = self.ready.get_mut(&tenant)?.pop_first()?;
        self.leave(tenant);
        self.places.remove(&number);
        Some((number, item))
    }

    /// Those that wait for `number` join the line, where they would be had they not waited.
    pub fn release(&mut self, number: u64) {
        for (number, (tenant, item)) in self.deferred.remove(&number).unwrap_or_default() {
            self.deferred_len -= 1;
            self.push(number, tenant, None, item);
        }
    }

    /// Takes a request out, wherever it is; none if it is not here. Those that wait for it join the line.
    pub fn remove(&mut self, number: u64) -> Option<T> {
        let item = match self.places.remove(&number)? {
            Place::Ready { tenant } => {
                let item = self.ready.get_mut(&tenant)?.remove(&number)?;
                self.leave(tenant);
                item
            }
            Place::Deferred { behind } => {
                let others = self.deferred.get_mut(&behind)?;
                let (_, item) = others.remove(&number)?;
                if others.is_empty() {
                    self.deferred.remove(&behind);
                }
                self.deferred_len -= 1;
                item
            }
        };
        self.release(number);
        Some(item)
    }

    /// Takes all out.
    pub fn drain(&mut self) -> Vec<T> {
        let numbers: Vec<u64> = self.places.keys().copied().collect();
        let items = numbers.into_iter();
        items.filter_map(|number| self.remove(number)).collect()
    }

    /// A tenant's request has left the line.
    fn leave(&mut self, tenant: u64) {
        if self.ready.get(&tenant).is_some_and(BTreeMap::is_empty) {
            self.ready.remove(&tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn order(queue: &mut Queue<char>) -> String {
        std::iter::from_fn(|| queue.pop())
            .map(|(_, item)| item)
            .collect()
    }

    #[test]
    fn tenants_take_turns_and_each_is_served_in_order() {
        let mut queue = Queue::new();
        for (number, (tenant, item)) in [(7, 'a'), (7, 'b'), (7, 'c'), (2, 'x'), (9, 'p'), (2, 'y')]
            .into_iter()
            .enumerate()
        {
            queue.push(number as u64, tenant, None, item);
        }
        assert_eq!(queue.len(), 6);
        assert_eq!(order(&mut queue), "xapybc");
        assert_eq!((queue.len(), queue.deferred()), (0, 0));
    }

    #[test]
    fn one_that_waits_for_another_keeps_its_place() {
        let mut queue = Queue::new();
        queue.push(1, 1, None, 'a');
        queue.push(2, 1, Some(1), 'b');
        queue.push(3, 1, Some(1), 'c');
        queue.push(4, 1, None, 'd');
        queue.push(5, 1, None, 'e');
        assert_eq!(queue.pop(), Some((1, 'a')));
        assert_eq!(queue.pop(), Some((4, 'd')));
        assert_eq!((queue.len(), queue.deferred()), (3, 2));
        assert_eq!(queue.remove(3), Some('c'));
        assert_eq!(queue.remove(3), None);
        queue.release(1);
        assert_eq!((queue.len(), queue.deferred()), (2, 0));
        assert_eq!(order(&mut queue), "be");
        queue.release(1);
    }

    #[test]
    fn those_that_wait_for_one_that_leaves_wait_no_longer() {
        let mut queue = Queue::new();
        queue.push(1, 1, None, 'a');
        queue.push(2, 1, Some(1), 'b');
        assert_eq!(queue.remove(1), Some('a'));
        assert_eq!((queue.deferred(), order(&mut queue).as_str()), (0, "b"));
        queue.push(3, 1, None, 'c');
        queue.push(4, 2, Some(3), 'd');
        let mut all = queue.drain();
        all.sort_unstable();
        assert_eq!((all, queue.len()), (vec!['c', 'd'], 0));
    }

    proptest! {
        #[test]
        fn nobody_waits_for_more_than_one_of_each_other_tenant(tenants in prop::collection::vec(0u64..5, 1..60)) {
            let mut queue = Queue::new();
            for (number, &tenant) in (0..).zip(&tenants) {
                queue.push(number, tenant, None, tenant);
            }
            let mut since = [0usize; 5];
            let mut numbers = [None; 5];
            while let Some((number, tenant)) = queue.pop() {
                let tenant = tenant as usize;
                prop_assert!(numbers[tenant] < Some(number), "each in order");
                prop_assert!(since[tenant] <= 4, "{since:?}");
                numbers[tenant] = Some(number);
                since.iter_mut().for_each(|turns| *turns += 1);
                since[tenant] = 0;
            }
            prop_assert_eq!(queue.len(), 0);
        }
    }
}
