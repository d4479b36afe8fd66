//! A feed-forward, some rows at a time: everything between a row's input and its output stays in the second-level cache,
//! and only what the way back needs is written out, in bf16.
//!
//! `y = h·W_downᵀ`, `h = f(gate)·up` or `f(up)`, where `gate`, `up` are linear in `x`; each linear may have a bias and a
//! low-rank update. A task takes some rows and goes over the hidden features block by block. Hidden features that don't
//! fit the cache for all of its rows are cut into chunks, whose products are summed in order: every value is what the
//! products one by one make, to the bit.

mod backward;
mod forward;

use std::ops::Range;

use super::pack::{Order, pack_strip};
use super::rows::{Part, Sharing};
use super::tile::{DEPTH, LANES, Tile, TileBuffer};
use crate::Matrix;
use crate::kernels::View;

pub(crate) use backward::{Made, backward};
pub(crate) use forward::forward;

/// What is made of blocks of hidden values, in place. The first slice is empty where there is no gate.
#[derive(Clone, Copy)]
pub(crate) struct Gating {
    /// `gate`, and `up`, which becomes `h`.
    pub(crate) forward: fn(&[f32], &mut [f32]),
    /// `gate`, `up` and `dh`, which become `dgate`, `dup` and `h`.
    pub(crate) backward: fn(&mut [f32], &mut [f32], &mut [f32]),
}

/// The three linears, one way.
pub(crate) struct Parts<'a> {
    pub(crate) gate: Option<Part<'a>>,
    pub(crate) up: Part<'a>,
    pub(crate) down: Part<'a>,
    pub(crate) gating: Gating,
}

impl<'a> Parts<'a> {
    /// `[gate, up, down]`.
    fn all(&self) -> [Option<&Part<'a>>; 3] {
        [self.gate.as_ref(), Some(&self.up), Some(&self.down)]
    }

    /// Strips of columns of a block: as many as the linears unpack at once.
    fn block_strips(&self) -> usize {
        self.all().into_iter().flatten().map(|part| part.columns.strips_at_once()).max().unwrap_or(2)
    }
}

/// What the way back needs.
pub(crate) struct Kept {
    /// Tiles in rows order, each where [`Sharing::kept_at`] says.
    gate: Option<TileBuffer>,
    up: TileBuffer,
    /// `x·Aᵀ` `[rows, r]` of gate, up and down, where they have an update.
    middles: [Option<Matrix>; 3],
}

impl Sharing {
    /// Tiles of hidden features that are in the cache at one time, of `tiles`, beside `width` tiles of each row and
    /// `kinds` values of each hidden feature; a multiple of `block`. Depends on the number of rows, not of threads.
    fn chunk(&self, tiles: usize, width: usize, kinds: usize, block: usize) -> usize {
        const CACHED_TILES: usize = 1600;
        const FEWEST: usize = 8;
        let strips = self.most_strips();
        let most = (CACHED_TILES.saturating_sub(strips * width) / (kinds * strips)).max(FEWEST);
        tiles.div_ceil(tiles.div_ceil(most).max(1)).max(1).next_multiple_of(block)
    }
}

impl Sharing {
    /// Where tile `place`, of `tiles` a strip, of strip `strip` is kept, of `strips` in whole pieces from there on: piece by
    /// piece of the rows, in each the tiles of a place side by side, because blocks of hidden features come one by one.
    fn kept_at(&self, strip: usize, strips: usize, tiles: usize, place: usize) -> usize {
        let first = strip / self.piece * self.piece;
        first * tiles + place * self.piece.min(strips - first) + strip - first
    }
}

/// Where tiles of strip `strip` lie, `tiles` a strip: `count` from its tile `place` on.
fn tiles_of(strip: usize, tiles: usize, place: usize, count: usize) -> Range<usize> {
    let start = strip * tiles + place;
    start..start + count
}

/// Packs the values of a strip of rows, as many a row as `tiles` hold.
fn fill(tiles: &mut [Tile], values: &[f32]) {
    let width = tiles.len() * DEPTH;
    pack_strip(View::rows_of(values, LANES, width, width), 0..LANES, 0, 1.0, Order::Rows, tiles);
}
