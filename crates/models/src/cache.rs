//! Keys and values of the tokens that a model has already seen, one entry a sequence.

use tunesmith_tensor::{KeyValueRows, Matrix, Segments};

use crate::model::{ModelInfo, ModelKind};

/// The caches of a batch's sequences, in the batch's order.
#[derive(Debug, Default)]
pub struct Cache {
    sequences: Vec<SequenceCache>,
}

#[derive(Clone, Debug)]
struct SequenceCache {
    /// Keys and values of each block's self-attention, rows of `[tokens, kv_heads · head_dim]`.
    blocks: Vec<Rows>,
    /// Keys and values of each block's attention to the encoder's outputs; without an entry where there is no encoder.
    cross: Vec<Rows>,
    cols: usize,
}

#[derive(Clone, Debug, Default)]
struct Rows {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Cache {
    /// Empty caches for `sequences` sequences of a model.
    pub fn new(sequences: usize, model: &ModelInfo) -> Self {
        let cross = if matches!(model.kind, ModelKind::EncoderDecoder { .. }) { model.blocks } else { 0 };
        let empty = || SequenceCache {
            blocks: vec![Rows::default(); model.blocks],
            cross: vec![Rows::default(); cross],
            cols: model.kv_heads * model.head_dim,
        };
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

    /// Tokens (virtual ones included) that a sequence has in its cache; the decoder's, where there are two stacks.
    pub fn length(&self, sequence: usize) -> usize {
        let cache = &self.sequences[sequence];
        cache.blocks.first().map_or(0, |rows| rows.keys.len() / cache.cols)
    }

    /// The lengths of all sequences.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        (0..self.len()).map(|sequence| self.length(sequence)).collect()
    }

    /// The keys and the values of a sequence in one block, each `[tokens, kv_heads · head_dim]`.
    pub fn keys_and_values(&self, sequence: usize, block: usize) -> (Matrix, Matrix) {
        let cache = &self.sequences[sequence];
        let Rows { keys, values } = &cache.blocks[block];
        let matrix = |rows: &Vec<f32>| Matrix::from_vec(rows.len() / cache.cols, cache.cols, rows.clone());
        (matrix(keys), matrix(values))
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

    /// Makes the sequences those that `chosen` names, in that order; one may be named several times.
    pub(crate) fn select(&mut self, chosen: &[usize]) {
        let mut uses = vec![0; self.sequences.len()];
        chosen.iter().for_each(|sequence| uses[*sequence] += 1);
        let mut old: Vec<Option<SequenceCache>> = std::mem::take(&mut self.sequences).into_iter().map(Some).collect();
        let take = |sequence: &usize| {
            uses[*sequence] -= 1;
            let cache = &mut old[*sequence];
            let taken = if uses[*sequence] == 0 { cache.take() } else { cache.clone() };
            taken.expect("a cache is moved out only at its last use")
        };
        self.sequences = chosen.iter().map(take).collect();
    }

    /// Adds the batch's keys and values, both `[tokens, kv_heads · head_dim]`, to one block's rows.
    pub(crate) fn push(&mut self, block: usize, segments: &Segments, keys: &Matrix, values: &Matrix) {
        self.extend(segments, keys, values, |cache| &mut cache.blocks[block]);
    }

    /// All rows of one block, sequence by sequence.
    pub(crate) fn rows(&self, block: usize) -> Vec<KeyValueRows<'_>> {
        self.views(|cache| &cache.blocks[block])
    }

    /// Adds keys and values of the encoder's outputs, both `[tokens, kv_heads · head_dim]`, to one block's rows.
    pub(crate) fn push_cross(&mut self, block: usize, segments: &Segments, keys: &Matrix, values: &Matrix) {
        self.extend(segments, keys, values, |cache| &mut cache.cross[block]);
    }

    /// All rows of the encoder's outputs of one block, sequence by sequence.
    pub(crate) fn cross_rows(&self, block: usize) -> Vec<KeyValueRows<'_>> {
        self.views(|cache| &cache.cross[block])
    }

    fn extend(
        &mut self,
        segments: &Segments,
        keys: &Matrix,
        values: &Matrix,
        rows: impl Fn(&mut SequenceCache) -> &mut Rows,
    ) {
        for (cache, range) in self.sequences.iter_mut().zip(segments.ranges()) {
            let floats = range.start * cache.cols..range.end * cache.cols;
            let rows = rows(cache);
            rows.keys.extend_from_slice(&keys.data()[floats.clone()]);
            rows.values.extend_from_slice(&values.data()[floats]);
        }
    }

    fn views(&self, rows: impl Fn(&SequenceCache) -> &Rows) -> Vec<KeyValueRows<'_>> {
        let rows = self.sequences.iter().map(rows);
        rows.map(|rows| KeyValueRows { keys: &rows.keys, values: &rows.values }).collect()
    }
}
