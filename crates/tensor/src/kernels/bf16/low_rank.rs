//! The thin product beside a wide one of the same left factor: `scale·(A·inner)·outer`, with the middle result rounded to
//! bf16 like any left factor.

use std::ops::Range;

use super::operand::{Columns, PackedColumns, Runs, corner};
use super::pack::{Order, pack};
use super::product::{Block, Output, PackedStrips, Target, columns};
use super::tile::{DEPTH, LANES, Tile};
use crate::Workspace;
use crate::kernels::blocks::{ScaledBlock, keep_blocks};
use crate::kernels::{View, ViewMut};

/// The two thin factors.
pub(crate) struct LowRankFactors {
    /// `[depth, r]`.
    pub(super) inner: PackedColumns,
    /// `[r, cols]`.
    pub(super) outer: PackedColumns,
    scale: f32,
    /// What is kept of the middle; empty: everything.
    blocks: Vec<ScaledBlock>,
}

/// A low-rank product, and where its middle goes.
pub(crate) struct LowRank<'a> {
    pub(crate) factors: LowRankFactors,
    /// Gets `A·inner` `[rows, r]`, of which the factors' blocks keep what is multiplied further.
    pub(crate) middle: ViewMut<'a>,
}

/// The second half of a low-rank product.
#[derive(Clone, Copy)]
pub(super) struct Second<'a> {
    pub(super) a: PackedStrips<'a>,
    pub(super) b: &'a PackedColumns,
}

impl LowRankFactors {
    /// Packs `inner` `[depth, r]` and `outer` `[r, cols]`; `blocks` say what is kept of the middle, all if there are none.
    pub(crate) fn pack(
        workspace: &Workspace,
        inner: View<'_>,
        outer: View<'_>,
        scale: f32,
        blocks: Vec<ScaledBlock>,
    ) -> Self {
        assert_eq!(inner.cols, outer.rows, "the factors share their rank");
        let pack = |view| PackedColumns::pack(workspace, view);
        Self { inner: pack(inner), outer: pack(outer), scale, blocks }
    }

    pub(super) fn blocks(&self) -> &[ScaledBlock] {
        &self.blocks
    }

    /// Leaves of rows of a middle, the first being number `first`, what the blocks keep.
    pub(super) fn keep_blocks(&self, middle: &mut [f32], first: usize) {
        keep_blocks(middle, self.width(), self.rank(), first, &self.blocks);
    }

    /// `(depth, r, cols)`.
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.inner.depth(), self.inner.cols(), self.outer.cols())
    }

    pub(super) fn scale(&self) -> f32 {
        self.scale
    }

    pub(super) fn rank(&self) -> usize {
        self.inner.cols()
    }

    /// Floats from one row of a middle to the next.
    pub(super) fn width(&self) -> usize {
        self.rank().next_multiple_of(2 * LANES)
    }

    /// Tiles of a strip of the packed middle.
    pub(super) fn middle_depth(&self) -> usize {
        self.rank().div_ceil(DEPTH)
    }

    /// Adds to `middle`, rows of [`width`](Self::width) floats, or puts there the product of `a` and the tiles `depth` of
    /// `inner`.
    pub(super) fn add_middle(
        &self,
        unit: &impl Block,
        a: &PackedStrips<'_>,
        depth: &Range<usize>,
        accumulate: bool,
        middle: &mut [f32],
    ) {
        let (strips, width) = (self.rank().div_ceil(LANES), self.width());
        assert!(a.strips * LANES * width <= middle.len(), "there is room for the middle");
        let output = Output { c: middle.as_mut_ptr(), stride: width, rows: a.strips * LANES, cols: width };
        let target = Target { output: &output, first_row: 0, first_strip: 0 };
        let panel = self.inner.panel(0..strips, depth.clone(), &mut []);
        for strip in 0..strips {
            let b = [panel.strip(strip, depth.len())];
            columns(unit, &target, a, b, strip, None, accumulate, Runs::NONE);
        }
    }

    /// Packs `rows` rows of a middle into `tiles`, whose strips have [`middle_depth`](Self::middle_depth) tiles.
    pub(super) fn pack_middle(&self, middle: &[f32], rows: usize, tiles: &mut [Tile]) {
        let view = View::rows_of(middle, rows, self.rank(), self.width());
        for (strip, tiles) in tiles.chunks_exact_mut(self.middle_depth().max(1)).enumerate() {
            for (place, tile) in tiles.iter_mut().enumerate() {
                pack(corner(view, strip, place, self.scale), Order::Rows, tile);
            }
        }
    }

    /// The second half of the product, of packed rows of the middle.
    pub(super) fn second<'a>(&'a self, tiles: &'a [Tile]) -> Second<'a> {
        let depth = self.middle_depth();
        Second { a: PackedStrips { tiles, depth, strips: tiles.len() / depth.max(1) }, b: &self.outer }
    }
}
