//! The two factors of a bf16 product: packed rows on the left, columns that come as panels of tiles on the right.

use std::ops::Range;

use rayon::prelude::*;

use super::pack::{Corner, Order, pack};
use super::tile::{DEPTH, LANES, Tile, TileBuffer};
use crate::Workspace;
use crate::kernels::View;

/// The left factor `[rows, depth]` as tiles in rows order: strips of 16 rows, each along the inner dimension.
#[derive(Debug)]
pub(crate) struct PackedRows {
    tiles: TileBuffer,
    rows: usize,
    depth: usize,
}

impl PackedRows {
    /// Packs `scale · a`.
    pub(crate) fn pack(workspace: &Workspace, a: View<'_>, scale: f32) -> Self {
        let (rows, depth) = (a.rows, a.cols);
        let tiles = strips(workspace, a, scale, Order::Rows);
        Self { tiles, rows, depth }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// The tiles of one strip of 16 rows.
    pub(crate) fn strip(&self, strip: usize) -> &[Tile] {
        let tiles = self.depth.div_ceil(DEPTH);
        &self.tiles[strip * tiles..(strip + 1) * tiles]
    }
}

/// The right factor `[depth, cols]`, asked for in panels: some strips of 16 columns by some tiles of the inner dimension.
pub(crate) trait Columns: Sync {
    /// The inner dimension.
    fn depth(&self) -> usize;

    /// The number of columns.
    fn cols(&self) -> usize;

    /// Strips that a panel should have, because unpacking fewer would waste work; a multiple of 2. Panels begin at
    /// multiples of it.
    fn strips_at_once(&self) -> usize {
        2
    }

    /// The tiles, in pairs order, of `strips` (of 16 columns; those past the last column are zero or absent) by `depth`
    /// (of 32 places; a range that exists). `scratch` holds `strips.len() · depth.len()` tiles and may be written to.
    fn panel<'a>(&'a self, strips: Range<usize>, depth: Range<usize>, scratch: &'a mut [Tile]) -> Panel<'a>;
}

/// Strips of tiles along the inner dimension, `stride` tiles apart.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    pub(crate) tiles: &'a [Tile],
    pub(crate) stride: usize,
}

impl<'a> Panel<'a> {
    pub(crate) fn strip(&self, strip: usize, depth: usize) -> &'a [Tile] {
        &self.tiles[strip * self.stride..strip * self.stride + depth]
    }
}

/// A right factor packed whole.
pub(crate) struct PackedColumns {
    tiles: TileBuffer,
    cols: usize,
    depth: usize,
}

impl PackedColumns {
    /// Packs `b` `[depth, cols]`.
    pub(crate) fn pack(workspace: &Workspace, b: View<'_>) -> Self {
        let (depth, cols) = (b.rows, b.cols);
        Self { tiles: strips(workspace, b.transposed(), 1.0, Order::Pairs), cols, depth }
    }
}

impl Columns for PackedColumns {
    fn depth(&self) -> usize {
        self.depth
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn panel<'a>(&'a self, strips: Range<usize>, depth: Range<usize>, _: &'a mut [Tile]) -> Panel<'a> {
        let stride = self.depth.div_ceil(DEPTH);
        Panel { tiles: &self.tiles[strips.start * stride + depth.start..], stride }
    }
}

/// All strips of `lanes` `[lanes, depth]`.
fn strips(workspace: &Workspace, lanes: View<'_>, scale: f32, order: Order) -> TileBuffer {
    /// Tiles a task should at least have, so that spreading over threads pays.
    const TASK_TILES: usize = 64;
    let depth_tiles = lanes.cols.div_ceil(DEPTH);
    let mut tiles = TileBuffer::new(workspace, lanes.rows.div_ceil(LANES) * depth_tiles);
    if depth_tiles > 0 {
        let strips = tiles.par_chunks_exact_mut(depth_tiles).enumerate();
        strips.with_min_len(TASK_TILES.div_ceil(depth_tiles)).for_each(|(strip, tiles)| {
            for (place, tile) in tiles.iter_mut().enumerate() {
                pack(corner(lanes, strip, place, scale), order, tile);
            }
        });
    }
    tiles
}

/// The corner of `lanes` `[lanes, depth]` that tile `depth_tile` of strip `strip` stands for.
pub(crate) fn corner(lanes: View<'_>, strip: usize, depth_tile: usize, scale: f32) -> Corner<'_> {
    let (first, start) = (strip * LANES, depth_tile * DEPTH);
    Corner {
        data: &lanes.data[first * lanes.row_stride + start * lanes.col_stride..],
        lanes: LANES.min(lanes.rows - first),
        depth: DEPTH.min(lanes.cols - start),
        lane_stride: lanes.row_stride,
        depth_stride: lanes.col_stride,
        scale,
    }
}
