//! Who comes next: requests wait by adapter, and the adapter that has been served least goes first (virtual token
//! counters, Sheng et al. 2024), so that one that is asked for often does not shut the others out.

use std::collections::{BTreeMap, VecDeque};

use super::request::{Generation, key};

/// Requests that have not begun.
#[derive(Default)]
pub(super) struct Waiting {
    queues: BTreeMap<String, VecDeque<Box<Generation>>>,
    /// Tokens that each adapter has been served.
    served: BTreeMap<String, u64>,
    count: usize,
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Adds a request.
    pub(super) fn push(&mut self, generation: Box<Generation>) {
        let key = key(generation.adapter.as_ref());
        if !self.queues.contains_key(&key) {
            // Who was away does not save up.
            let least = self.queues.keys().filter_map(|other| self.served.get(other)).min().copied().unwrap_or(0);
            let served = self.served.entry(key.clone()).or_default();
            *served = (*served).max(least);
        }
        self.queues.entry(key).or_default().push_back(generation);
        self.count += 1;
    }

    /// The next request, which stays where it is.
    pub(super) fn peek(&self) -> Option<&Generation> {
        self.queues.get(&self.next()?)?.front().map(AsRef::as_ref)
    }

    /// Takes the next request.
    pub(super) fn pop(&mut self) -> Option<Box<Generation>> {
        let key = self.next()?;
        let queue = self.queues.get_mut(&key)?;
        let generation = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&key);
        }
        self.count -= usize::from(generation.is_some());
        generation
    }

    fn next(&self) -> Option<String> {
        let served = |key: &String| self.served.get(key).copied().unwrap_or(0);
        self.queues.keys().min_by_key(|key| served(key)).cloned()
    }

    /// Counts tokens that an adapter has been served.
    pub(super) fn count(&mut self, key: &str, tokens: u64) {
        *self.served.entry(key.to_owned()).or_default() += tokens;
        // Adapters come and go; only differences between those that wait matter.
        if self.served.len() > 4096 {
            let queues = &self.queues;
            self.served.retain(|key, _| queues.contains_key(key));
        }
    }

    /// Drops requests whose client has gone, and returns how many.
    pub(super) fn drop_cancelled(&mut self) -> usize {
        let before = self.count;
        for queue in self.queues.values_mut() {
            queue.retain(|generation| !generation.events.is_closed());
        }
        self.queues.retain(|_, queue| !queue.is_empty());
        self.count = self.queues.values().map(VecDeque::len).sum();
        before - self.count
    }
}
