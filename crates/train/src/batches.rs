//! Which examples make up which batch: a pure function of the lengths, the limit, the seed and the epoch.
//!
//! Nothing is carried from batch to batch, so a resumed run asks for the epoch it stopped in and skips what it had. A
//! batch is laid end to end and never padded, so its tokens are the sum of its examples' lengths.

use serde::{Deserialize, Serialize};
use tunesmith_tensor::Seed;

use crate::TrainError;

/// What bounds a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchLimit {
    /// This many sequences; fewer only in the last batch of an epoch.
    Sequences(usize),
    /// At most this many tokens.
    Tokens(usize),
}

/// The order in which an epoch takes the examples, by its Hugging Face name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplingStrategy {
    /// A new random order every epoch.
    #[default]
    Random,
    /// The order of the file.
    Sequential,
    /// Examples of similar length share a batch; examples and batches still come in a random order every epoch.
    GroupByLength,
}

/// Batches of similar lengths are cut from this many batches' worth of randomly chosen examples, at most.
const GROUPED_BATCHES: usize = 50;

/// The batches of every epoch of a run.
#[derive(Clone, Debug)]
pub struct BatchPlan {
    lengths: Vec<usize>,
    limit: BatchLimit,
    sampling: SamplingStrategy,
    seed: Seed,
}

impl BatchPlan {
    /// Tokens of a batch, at most.
    pub fn most_tokens(&self) -> usize {
        match self.limit {
            BatchLimit::Tokens(most) => most.min(self.lengths.iter().sum()),
            BatchLimit::Sequences(most) => {
                let mut lengths = self.lengths.clone();
                lengths.sort_unstable_by(|a, b| b.cmp(a));
                lengths.iter().take(most).sum()
            }
        }
    }

    /// A plan for examples of these lengths, in tokens.
    ///
    /// # Errors
    /// [`TrainError::ExceedsBudget`] if an example alone has more tokens than a batch may have.
    ///
    /// # Panics
    /// If the limit is zero.
    pub fn new(
        lengths: Vec<usize>,
        limit: BatchLimit,
        sampling: SamplingStrategy,
        seed: Seed,
    ) -> Result<Self, TrainError> {
        let (BatchLimit::Sequences(most) | BatchLimit::Tokens(most)) = limit;
        assert!(most > 0, "a batch holds something");
        if let BatchLimit::Tokens(budget) = limit {
            let too_long = lengths.iter().filter(|length| **length > budget);
            if let Some(longest) = too_long.clone().max() {
                return Err(TrainError::ExceedsBudget { count: too_long.count(), longest: *longest, budget });
            }
        }
        Ok(Self { lengths, limit, sampling, seed })
    }

    /// The batches of an epoch, in order, each a list of example indices. Every example occurs once.
    pub fn epoch(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut stream = self.seed.stream("data order", epoch);
        let mut order: Vec<usize> = (0..self.lengths.len()).collect();
        if self.sampling != SamplingStrategy::Sequential {
            stream.shuffle(&mut order);
        }
        if self.sampling != SamplingStrategy::GroupByLength {
            return self.cut(&order);
        }
        for pool in order.chunks_mut(self.pool_size()) {
            pool.sort_by_key(|example| std::cmp::Reverse(self.lengths[*example]));
        }
        let mut batches = self.cut(&order);
        stream.shuffle(&mut batches);
        batches
    }

    /// Updates in an epoch whose updates take `accumulation` batches each; the last one may take fewer.
    pub fn updates_in_epoch(&self, epoch: u64, accumulation: usize) -> u64 {
        let batches = match self.limit {
            BatchLimit::Sequences(size) => self.lengths.len().div_ceil(size),
            BatchLimit::Tokens(_) => self.epoch(epoch).len(),
        };
        batches.div_ceil(accumulation) as u64
    }

    /// Updates in `epochs` passes over the data; of a fractional pass the updates that begin within it.
    pub fn updates(&self, epochs: f64, accumulation: usize) -> u64 {
        let whole = epochs.floor() as u64;
        let begun = match self.limit {
            BatchLimit::Sequences(_) => whole * self.updates_in_epoch(0, accumulation),
            BatchLimit::Tokens(_) => (0..whole).map(|epoch| self.updates_in_epoch(epoch, accumulation)).sum(),
        };
        let rest = epochs.fract();
        if rest == 0.0 {
            begun
        } else {
            begun + (rest * self.updates_in_epoch(whole, accumulation) as f64).ceil() as u64
        }
    }

    /// Number of examples.
    pub fn examples(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens of all examples together.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Examples among which those of similar length are found: [`GROUPED_BATCHES`] batches' worth, but at most a
    /// quarter of the data, so that small data sets stay random, too.
    fn pool_size(&self) -> usize {
        let per_batch = match self.limit {
            BatchLimit::Sequences(size) => size,
            BatchLimit::Tokens(budget) => (budget * self.lengths.len() / self.tokens().max(1)).max(1),
        };
        let batches = (self.lengths.len() / (per_batch * 4)).clamp(1, GROUPED_BATCHES);
        per_batch * batches
    }

    /// Cuts an order of examples into batches, each as large as the limit allows.
    fn cut(&self, order: &[usize]) -> Vec<Vec<usize>> {
        let budget = match self.limit {
            BatchLimit::Sequences(size) => return order.chunks(size).map(<[usize]>::to_vec).collect(),
            BatchLimit::Tokens(budget) => budget,
        };
        let mut batches: Vec<Vec<usize>> = Vec::new();
        let mut tokens = 0;
        for example in order {
            let length = self.lengths[*example];
            match batches.last_mut() {
                Some(batch) if tokens + length <= budget => batch.push(*example),
                _ => {
                    batches.push(vec![*example]);
                    tokens = 0;
                }
            }
            tokens += length;
        }
        batches
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(lengths: &[usize], limit: BatchLimit, sampling: SamplingStrategy, seed: u64) -> BatchPlan {
        BatchPlan::new(lengths.to_vec(), limit, sampling, Seed(seed)).unwrap()
    }

    fn strategies() -> impl Strategy<Value = (Vec<usize>, BatchLimit, SamplingStrategy)> {
        let lengths = prop::collection::vec(1usize..50, 1..300);
        let limit =
            prop_oneof![(1usize..20).prop_map(BatchLimit::Sequences), (50usize..400).prop_map(BatchLimit::Tokens),];
        let sampling = prop_oneof![
            Just(SamplingStrategy::Random),
            Just(SamplingStrategy::Sequential),
            Just(SamplingStrategy::GroupByLength),
        ];
        (lengths, limit, sampling)
    }

    proptest! {
        #[test]
        fn every_example_once_an_epoch_and_no_batch_over_its_limit(
            (lengths, limit, sampling) in strategies(), seed: u64, epoch in 0u64..5
        ) {
            let batches = plan(&lengths, limit, sampling, seed).epoch(epoch);
            let mut seen = batches.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for batch in &batches {
                prop_assert!(!batch.is_empty());
                match limit {
                    BatchLimit::Sequences(size) => prop_assert!(batch.len() <= size),
                    BatchLimit::Tokens(budget) => {
                        prop_assert!(batch.iter().map(|example| lengths[*example]).sum::<usize>() <= budget);
                    }
                }
            }
        }

        #[test]
        fn the_plan_is_a_function_of_seed_and_epoch(
            (lengths, limit, sampling) in strategies(), seed: u64, epoch in 0u64..5
        ) {
            let (first, second) = (plan(&lengths, limit, sampling, seed), plan(&lengths, limit, sampling, seed));
            second.epoch(epoch + 1);
            prop_assert_eq!(first.epoch(epoch), second.epoch(epoch));
        }

        #[test]
        fn updates_are_counted_as_the_epochs_cut_them(
            (lengths, limit, sampling) in strategies(), seed: u64, epochs in 1u64..4, accumulation in 1usize..5
        ) {
            let plan = plan(&lengths, limit, sampling, seed);
            let cut: usize = (0..epochs).map(|epoch| plan.epoch(epoch).chunks(accumulation).count()).sum();
            prop_assert_eq!(plan.updates(epochs as f64, accumulation), cut as u64);
        }
    }

    #[test]
    fn orders_differ_between_epochs_and_seeds_unless_sequential() {
        let lengths: Vec<usize> = (0..100).map(|index| 1 + index % 17).collect();
        for sampling in [SamplingStrategy::Random, SamplingStrategy::GroupByLength] {
            let plan_of = |seed| plan(&lengths, BatchLimit::Sequences(4), sampling, seed);
            assert_ne!(plan_of(1).epoch(0), plan_of(1).epoch(1));
            assert_ne!(plan_of(1).epoch(0), plan_of(2).epoch(0));
        }
        let sequential = plan(&[3, 3, 3, 4, 1], BatchLimit::Tokens(6), SamplingStrategy::Sequential, 1);
        assert_eq!(sequential.epoch(7), [vec![0, 1], vec![2], vec![3, 4]]);
    }

    #[test]
    fn grouping_brings_similar_lengths_together_and_keeps_batch_order_random() {
        let mut stream = Seed(9).stream("lengths", 0);
        let lengths: Vec<usize> = (0..2000).map(|_| 1 + stream.below(500) as usize).collect();
        let spread = |sampling| {
            let batches = plan(&lengths, BatchLimit::Sequences(8), sampling, 3).epoch(0);
            let range = |batch: &Vec<usize>| {
                let of = || batch.iter().map(|example| lengths[*example]);
                of().max().unwrap() - of().min().unwrap()
            };
            batches.iter().map(range).sum::<usize>() as f64 / batches.len() as f64
        };
        assert!(spread(SamplingStrategy::Random) > 350.0);
        assert!(spread(SamplingStrategy::GroupByLength) < 20.0);

        let batches = plan(&lengths, BatchLimit::Sequences(8), SamplingStrategy::GroupByLength, 3).epoch(0);
        let falls = batches.windows(2).filter(|pair| lengths[pair[0][0]] > lengths[pair[1][0]]).count();
        assert!((80..170).contains(&falls), "{falls} of 249 batches are shorter than the one before");
    }

    #[test]
    fn a_token_budget_is_used_well() {
        let mut stream = Seed(4).stream("lengths", 0);
        let lengths: Vec<usize> = (0..1000).map(|_| 20 + stream.below(80) as usize).collect();
        for sampling in [SamplingStrategy::Random, SamplingStrategy::GroupByLength] {
            let plan = plan(&lengths, BatchLimit::Tokens(1024), sampling, 5);
            let used = plan.tokens() as f64 / (plan.epoch(0).len() * 1024) as f64;
            assert!(used > 0.93, "{sampling:?} uses {used}");
        }
    }

    #[test]
    fn a_fractional_epoch_counts_the_updates_that_begin_in_it() {
        let plan = plan(&[5; 25], BatchLimit::Sequences(2), SamplingStrategy::Random, 0);
        assert_eq!(plan.updates_in_epoch(0, 4), 4);
        assert_eq!(plan.updates(2.0, 4), 8);
        assert_eq!(plan.updates(2.3, 4), 10);
        assert_eq!(plan.updates(0.1, 4), 1);
    }

    #[test]
    fn an_example_over_the_budget_is_an_error_with_numbers() {
        let error = BatchPlan::new(vec![5, 11, 12], BatchLimit::Tokens(10), SamplingStrategy::Random, Seed(0));
        let message = error.unwrap_err().to_string();
        assert!(message.starts_with("2 examples are longer than max_tokens_per_batch = 10 (the longest has 12"));
    }
}
