//! Keys and values of the tokens that a model has already seen, one entry a sequence.

use tunesmith_tensor::{KeyValueRows, Matrix, Segments};

/// The caches of a batch's sequences, in the batch's order.
#[derive(Debug, Default)]
pub struct Cache {
    sequences: Vec<SequenceCache>,
}

#[derive(Debug)]
struct SequenceCache {
    /// Keys and values of each block, rows of `[tokens, kv_heads · head_dim]`.
    blocks: Vec<Rows>,
    cols: usize,
}

#[derive(Clone, Debug, Default)]
struct Rows {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Cache {
    /// Empty caches for `sequences` sequences of a model with `blocks` blocks and keys `cols` wide.
    pub fn new(sequences: usize, blocks: usize, cols: usize) -> Self {
        let empty = || SequenceCache { blocks: vec![Rows::default(); blocks], cols };
        Self { sequences: std::iter::repeat_with(empty).take(sequences).collect() }
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there are no sequences.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Tokens (virtual ones included) that a sequence has in its cache.
    pub fn length(&self, sequence: usize) -> usize {
        let cache = &self.sequences[sequence];
        cache.blocks.first().map_or(0, |rows| rows.keys.len() / cache.cols)
    }

    /// Adds the sequences of another cache after this one's.
    pub fn append(&mut self, other: Self) {
        self.sequences.extend(other.sequences);
    }

    /// Keeps the sequences that `keep` marks, in order.
    pub fn retain(&mut self, keep: &[bool]) {
        let mut keep = keep.iter();
        self.sequences.retain(|_| *keep.next().expect("one mark a sequence"));
    }

    /// Adds the batch's keys and values, both `[tokens, kv_heads · head_dim]`, to one block's rows.
    pub(crate) fn push(&mut self, block: usize, segments: &Segments, keys: &Matrix, values: &Matrix) {
        for (cache, range) in self.sequences.iter_mut().zip(segments.ranges()) {
            let floats = range.start * cache.cols..range.end * cache.cols;
            cache.blocks[block].keys.extend_from_slice(&keys.data()[floats.clone()]);
            cache.blocks[block].values.extend_from_slice(&values.data()[floats]);
        }
    }

    /// All rows of one block, sequence by sequence.
    pub(crate) fn rows(&self, block: usize) -> Vec<KeyValueRows<'_>> {
        let rows = self.sequences.iter().map(|cache| &cache.blocks[block]);
        rows.map(|rows| KeyValueRows { keys: &rows.keys, values: &rows.values }).collect()
    }
}
