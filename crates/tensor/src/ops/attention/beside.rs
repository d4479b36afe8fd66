//! What the sequences of a batch attend to beside their own rows, and what training drops, for operations that take some
//! heads of one sequence at a time.

use super::{Alone, Attention, Dropout, KeyValueRows, KeyValues, Prefix};
use crate::tape::{Flow, NodeId};
use crate::{Matrix, Segments, Tape, Workspace};

/// A batch's attention to its own rows, cut into blocks of heads of keys and values.
pub(crate) struct Beside {
    workspace: Workspace,
    /// Of a block of heads.
    options: Attention,
    /// Of all heads.
    all: Attention,
    dropout: Option<Dropout>,
    prefix: Option<CutPrefix>,
}

/// A prefix, and its keys and values block by block of the heads.
struct CutPrefix {
    rows: KeyValues,
    /// `[rows, kv_heads of the block · head_dim]`.
    blocks: Vec<[Matrix; 2]>,
}

impl Beside {
    /// Draws the masks; `at_once` heads of keys and values are a block.
    ///
    /// # Panics
    /// If the prefix is not as wide as the keys, or has no range for each sequence.
    pub(crate) fn new(
        tape: &mut Tape,
        options: &Attention,
        segments: &Segments,
        prefix: Option<&Prefix>,
        at_once: usize,
    ) -> Self {
        assert!(options.kv_heads.is_multiple_of(at_once), "blocks have equally many heads");
        let dropout = Dropout::draw(tape, options, segments);
        let workspace = tape.workspace().clone();
        let width = at_once * options.head_dim;
        let prefix = prefix.map(|prefix| {
            let rows = KeyValues::of_prefix(prefix);
            assert_eq!(rows.rows(options).len(), segments.len(), "every sequence has its range of the prefix");
            let part = |matrix: &Matrix, block: usize| {
                let mut part = Matrix::uninitialised(&workspace, matrix.rows(), width);
                for (row, target) in part.data_mut().chunks_exact_mut(width).enumerate() {
                    target.copy_from_slice(&matrix.row(row)[block * width..(block + 1) * width]);
                }
                part
            };
            let blocks =
                (0..options.kv_heads / at_once).map(|block| [&rows.keys, &rows.values].map(|side| part(side, block)));
            CutPrefix { blocks: blocks.collect(), rows }
        });
        let of_block = Attention { heads: at_once * options.group(), kv_heads: at_once, ..*options };
        Self { workspace, options: of_block, all: *options, dropout, prefix }
    }

    /// Where the gradients of a prefix go.
    pub(crate) fn nodes(&self) -> [Option<NodeId>; 2] {
        self.prefix.as_ref().map_or([None; 2], |prefix| [prefix.rows.key_node, prefix.rows.value_node])
    }

    /// The attention of the heads of `block` of sequence number `sequence`; queries, keys and values are those heads'.
    pub(crate) fn alone<'a>(
        &'a self,
        sequence: usize,
        block: usize,
        query: &'a [f32],
        own: KeyValueRows<'a>,
    ) -> Alone<'a> {
        let Self { workspace, options, all, dropout, prefix } = self;
        let prefix = prefix.as_ref().map_or(KeyValueRows::NONE, |prefix| {
            let (range, width) = (&prefix.rows.ranges[sequence], options.key_width());
            let [keys, values] =
                prefix.blocks[block].each_ref().map(|side| &side.data()[range.start * width..range.end * width]);
            KeyValueRows { keys, values }
        });
        let keys = own.count(options);
        let dropout = dropout.as_ref().map(|dropout| dropout.of(sequence, keys, all).of_heads(block * options.heads));
        Alone { workspace, options, query, own, prefix, dropout }
    }

    /// Room for the gradients of a prefix, where somebody wants them: zeros, `[2 · kv_heads, rows · head_dim]`, keys first.
    pub(crate) fn sums(&self) -> Option<Matrix> {
        let prefix = self.prefix.as_ref().filter(|_| self.nodes() != [None; 2])?;
        let floats = prefix.rows.keys.rows() * self.all.head_dim;
        Some(Matrix::zeros_in(&self.workspace, 2 * self.all.kv_heads, floats))
    }

    /// Of `sums` what belongs to the prefix of `sequence` and each head of keys and values of `block`: for keys, and for values.
    pub(crate) fn sums_of<'a>(
        &self,
        sums: &'a mut Matrix,
        sequence: usize,
        block: usize,
    ) -> Vec<[Option<&'a mut [f32]>; 2]> {
        let Some(prefix) = &self.prefix else { return Vec::new() };
        let (width, at_once, head_dim) = (sums.cols(), self.options.kv_heads, self.all.head_dim);
        let range = &prefix.rows.ranges[sequence];
        let (keys, values) = sums.data_mut().split_at_mut(self.all.kv_heads * width);
        let heads = |sums: &'a mut [f32]| sums.chunks_exact_mut(width.max(1)).skip(block * at_once).take(at_once);
        let [wants_keys, wants_values] = self.nodes().map(|node| node.is_some());
        let own = |sums: &'a mut [f32]| &mut sums[range.start * head_dim..range.end * head_dim];
        let both = heads(keys).zip(heads(values));
        both.map(|(keys, values)| [wants_keys.then(|| own(keys)), wants_values.then(|| own(values))]).collect()
    }

    /// Adds the gradients of a prefix to `flow`: those of all `sums`, in order.
    pub(crate) fn add(&self, sums: &[Matrix], flow: &mut Flow<'_>) {
        let Some(prefix) = &self.prefix else { return };
        let (heads, head_dim) = (self.all.kv_heads, self.all.head_dim);
        for (place, node) in self.nodes().into_iter().enumerate().filter(|(_, node)| node.is_some()) {
            let (rows, cols) = prefix.rows.keys.shape();
            let mut gradient = Matrix::zeros_in(&self.workspace, rows, cols);
            for sums in sums {
                for head in 0..heads {
                    let rows = sums.row(place * heads + head).chunks_exact(head_dim);
                    for (row, sum) in rows.enumerate() {
                        let target = &mut gradient.row_mut(row)[head * head_dim..(head + 1) * head_dim];
                        target.iter_mut().zip(sum).for_each(|(target, value)| *target += value);
                    }
                }
            }
            flow.add(node, gradient);
        }
    }
}
