//! A block's attention over its own rows, some sequences at a time: everything between a row's input and its output stays
//! in the second-level cache, and only what the way back needs is written out, in bf16.
//!
//! `y = attend(turn(x·W_qᵀ), turn(x·W_kᵀ), x·W_vᵀ)·W_oᵀ`; each linear may have a bias and a low-rank update. A task takes
//! some whole sequences and goes over the heads of keys and values, as many at a time as linears unpack in whole panels.

mod backward;
mod forward;

use std::ops::Range;

use super::rows::{Packed, Part};
use super::tile::{DEPTH, LANES, TileBuffer};
use crate::{Matrix, Segments};

pub(crate) use backward::{Inputs, backward};
pub(crate) use forward::forward;

/// The four linears, one way.
pub(crate) struct Parts<'a> {
    pub(crate) query: Part<'a>,
    pub(crate) keys: Part<'a>,
    pub(crate) values: Part<'a>,
    pub(crate) output: Part<'a>,
}

/// Places among them.
const VALUES: usize = 2;
const OUTPUT: usize = 3;

impl<'a> Parts<'a> {
    /// `[query, keys, values, output]`.
    fn all(&self) -> [&Part<'a>; 4] {
        [&self.query, &self.keys, &self.values, &self.output]
    }

    /// Tiles that unpacking a panel of any of them takes.
    fn scratch(&self) -> usize {
        let at_once = self.all().into_iter().map(|part| part.columns.strips_at_once()).max();
        let depth = self.all().into_iter().map(|part| part.columns.depth().div_ceil(DEPTH)).max();
        at_once.unwrap_or(0) * depth.unwrap_or(0)
    }
}

/// Queries, keys and values of one sequence and some heads, whose features lie side by side in each row.
#[derive(Clone, Copy)]
pub(crate) struct Projected<'a> {
    pub(crate) query: &'a [f32],
    pub(crate) keys: &'a [f32],
    pub(crate) values: &'a [f32],
}

/// Some heads of keys and values of one sequence, and the queries' heads that share them.
#[derive(Clone, Copy)]
pub(crate) struct Which {
    /// Number of the sequence in the batch.
    pub(crate) sequence: usize,
    /// Number of the block of heads.
    pub(crate) block: usize,
}

/// What queries, keys and values go through.
pub(crate) trait Heads: Sync {
    /// Turns heads, side by side in `rows` of `width` floats, by their positions; `back` turns them back. The first row is
    /// number `first` of the batch.
    fn turn(&self, rows: &mut [f32], width: usize, first: usize, back: bool);

    /// Writes the attention of some heads to `output`, shaped as the queries, and what the way back needs of the scores to
    /// `lse` `[rows, query heads]`.
    fn attend(&self, which: Which, projected: Projected<'_>, output: &mut [f32], lse: &mut [f32]);

    /// Room for the gradients of what several sequences attend to, which the sequences of a task are added to; `None` where
    /// there is nothing, or nobody wants them.
    fn shared(&self) -> Option<Matrix>;

    /// Writes the gradients of queries, keys and values, given that of the `output`, and adds to those of what is shared.
    fn differentiate(
        &self,
        which: Which,
        projected: Projected<'_>,
        attended: Attended<'_>,
        gradients: [&mut [f32]; 3],
        shared: Option<&mut Matrix>,
    );
}

/// What [`Heads::attend`] wrote, and the gradient of its output.
#[derive(Clone, Copy)]
pub(crate) struct Attended<'a> {
    pub(crate) output: &'a [f32],
    pub(crate) lse: &'a [f32],
    pub(crate) gradient: &'a [f32],
}

/// The heads, and how they are cut.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Features of a head, a multiple of [`DEPTH`].
    pub(crate) head_dim: usize,
    pub(crate) kv_heads: usize,
    /// Heads of queries for each of keys and values.
    pub(crate) group: usize,
    /// Heads of keys and values that are computed at one time.
    pub(crate) at_once: usize,
}

impl Shape {
    /// Blocks of heads, from the first on.
    fn blocks(&self) -> impl Iterator<Item = HeadBlock> + use<> {
        let Self { kv_heads, at_once, head_dim, group } = *self;
        (0..kv_heads).step_by(at_once).enumerate().map(move |(number, first)| {
            let heads = kv_heads.min(first + at_once) - first;
            // Tiles of all queries come first, then those of the keys, then those of the values.
            let side = |size: usize, before: usize| {
                let range = first * size * head_dim..(first + heads) * size * head_dim;
                Features { first_tile: (before * kv_heads * head_dim + range.start) / DEPTH, range }
            };
            let sides = [side(group, 0), side(1, group), side(1, group + 1)];
            HeadBlock { number, kv_heads: heads, sides }
        })
    }

    /// How many blocks of heads.
    fn block_count(&self) -> usize {
        self.kv_heads.div_ceil(self.at_once)
    }

    /// Tiles of a row of queries, keys and values.
    fn tiles(&self) -> usize {
        (self.group + 2) * self.kv_heads * self.head_dim / DEPTH
    }

    /// Tiles of a row of queries, of keys and of values.
    fn depths(&self) -> [usize; 3] {
        [self.group, 1, 1].map(|size| size * self.kv_heads * self.head_dim / DEPTH)
    }

    /// Features of the queries, keys and values of a block, at the most.
    fn widths(&self) -> [usize; 3] {
        [self.group, 1, 1].map(|size| size * self.at_once * self.head_dim)
    }
}

/// Some heads of keys and values, with those of queries that share them.
struct HeadBlock {
    number: usize,
    kv_heads: usize,
    /// Of queries, keys and values. The features of the queries are those of the attention's output.
    sides: [Features; 3],
}

/// Features of queries, keys or values.
struct Features {
    range: Range<usize>,
    /// The tile that keeps the first of them.
    first_tile: usize,
}

/// The longest sequence, in rows, of which a task keeps everything in the cache.
pub(crate) const LONGEST: usize = 512;

/// The sequences of each task, which depend on their lengths alone: an even number of tasks of nearly as many rows each, as
/// far as whole sequences can be shared so.
pub(crate) fn tasks(segments: &Segments) -> Vec<Range<usize>> {
    const ROWS: usize = 256;
    let total = segments.total().max(1);
    let count = total.div_ceil(ROWS).next_multiple_of(2);
    let mut tasks = Vec::new();
    let (mut start, mut end_of_task, mut done) = (0, total / count, 0);
    for sequence in 0..segments.len() {
        let length = segments.length(sequence);
        if sequence > start && done + length / 2 > end_of_task {
            tasks.push(start..sequence);
            (start, end_of_task) = (sequence, total * (done * count / total + 1) / count);
        }
        done += length;
    }
    if start < segments.len() {
        tasks.push(start..segments.len());
    }
    tasks
}

/// What the way back needs, task by task.
pub(crate) struct Kept(Vec<KeptRows>);

struct KeptRows {
    /// Queries, keys and values in tiles in rows order; those of a place side by side, strip by strip.
    projected: TileBuffer,
    attended: Packed,
    /// `[blocks · rows, query heads of a block]`.
    lse: Matrix,
    /// `input·Aᵀ` `[rows, r]` of each linear that has an update.
    middles: [Option<Matrix>; 4],
}

/// Rows in full strips.
fn padded(rows: usize) -> usize {
    rows.next_multiple_of(LANES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_take_all_sequences_in_order() {
        for lengths in [vec![256; 4], vec![1; 700], vec![500, 3, 90, 100, 300, 1], vec![0, 5, 0], vec![10]] {
            let segments = Segments::from_lengths(lengths.clone());
            let tasks = tasks(&segments);
            let all: Vec<usize> = tasks.iter().flat_map(Clone::clone).collect();
            assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>(), "{lengths:?}");
            for task in &tasks {
                let rows: usize = lengths[task.clone()].iter().sum();
                assert!(rows <= 384 || task.len() == 1, "{lengths:?}: {task:?}");
            }
        }
        assert_eq!(tasks(&Segments::from_lengths([256; 4])).len(), 4);
        assert_eq!(tasks(&Segments::from_lengths([65; 8])), [0..2, 2..4, 4..6, 6..8]);
        assert_eq!(tasks(&Segments::from_lengths([500, 3, 90])), [0..1, 1..3]);
    }

    #[test]
    fn blocks_of_heads_take_all_features() {
        let shape = Shape { head_dim: 32, kv_heads: 5, group: 3, at_once: 2 };
        let blocks: Vec<HeadBlock> = shape.blocks().collect();
        assert_eq!(blocks.iter().map(|block| block.kv_heads).collect::<Vec<_>>(), [2, 2, 1]);
        assert_eq!((blocks.len(), shape.block_count()), (3, 3));
        for (side, size) in [3, 1, 1].into_iter().enumerate() {
            let features = blocks.iter().flat_map(|block| block.sides[side].range.clone());
            assert!(features.eq(0..5 * size * 32));
        }
        let tiles = (0..3).flat_map(|side| blocks.iter().map(move |block| &block.sides[side]));
        let tiles = tiles.flat_map(|side| side.first_tile..side.first_tile + side.range.len() / DEPTH);
        assert!(tiles.eq(0..shape.tiles()));
    }
}
