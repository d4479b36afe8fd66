//! The right factor of a bf16 product: columns that come as panels of tiles.

use std::ops::Range;

use rayon::prelude::*;

use super::coded::CodedStrip;
use super::pack::{Corner, Order, pack, prefetch_part};
use super::tile::{DEPTH, LANES, Tile, TileBuffer};
use crate::Workspace;
use crate::kernels::{View, prefetch_for_later};

/// The right factor `[depth, cols]`, asked for in panels: some strips of 16 columns by some tiles of the inner dimension.
pub(crate) trait Columns: Sync {
    /// The inner dimension.
    fn depth(&self) -> usize;

    /// The number of columns.
    fn cols(&self) -> usize;

    /// Whether panels lie in memory as they are, and need no unpacking.
    fn is_packed(&self) -> bool {
        false
    }

    /// Strips that a panel should have, because unpacking fewer would waste work; a multiple of 2. Panels begin at
    /// multiples of it.
    fn strips_at_once(&self) -> usize {
        2
    }

    /// The tiles, in pairs order, of `strips` (of 16 columns; those past the last column are zero or absent) by `depth`
    /// (of 32 places; a range that exists). `scratch` holds `strips.len() · depth.len()` tiles and may be written to.
    fn panel<'a>(&'a self, strips: Range<usize>, depth: Range<usize>, scratch: &'a mut [Tile]) -> Panel<'a>;

    /// A strip of 16 columns as codes, where columns lie as codes that unpack fast.
    fn coded(&self, _strip: usize) -> Option<CodedStrip<'_>> {
        None
    }

    /// Fetches part `part.0` of `part.1` equal ones of what [`panel`](Self::panel) reads into the second-level cache.
    /// Nothing where unpacking takes longer than reading.
    fn fetch(&self, _strips: Range<usize>, _depth: Range<usize>, _part: (usize, usize)) {}
}

/// A panel that comes next: what it reads is fetched while another one is multiplied, because it comes from far away.
pub(crate) struct Ahead<'a> {
    columns: &'a dyn Columns,
    strips: Range<usize>,
    depth: Range<usize>,
}

impl<'a> Ahead<'a> {
    /// The two strips from `strip` on, of those that exist.
    pub(crate) fn new(columns: &'a dyn Columns, strip: usize, depth: &Range<usize>) -> Option<Self> {
        let end = columns.cols().div_ceil(LANES).min(strip + 2);
        (strip < end).then(|| Self { columns, strips: strip..end, depth: depth.clone() })
    }

    /// Fetches a part of it.
    pub(crate) fn fetch(&self, part: (usize, usize)) {
        self.columns.fetch(self.strips.clone(), self.depth.clone(), part);
    }
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

/// A right factor packed whole: a small one that many tasks use.
pub(crate) struct PackedColumns {
    tiles: TileBuffer,
    cols: usize,
    depth: usize,
}

impl PackedColumns {
    /// Packs `b` `[depth, cols]`.
    pub(crate) fn pack(workspace: &Workspace, b: View<'_>) -> Self {
        let (depth, cols) = (b.rows, b.cols);
        Self { tiles: strips(workspace, b.transposed()), cols, depth }
    }

    /// Room for `[depth, cols]`, which holds nothing yet.
    pub(crate) fn with_room(workspace: &Workspace, depth: usize, cols: usize) -> Self {
        Self { tiles: TileBuffer::new(workspace, cols.div_ceil(LANES) * depth.div_ceil(DEPTH)), cols, depth }
    }

    /// Takes another shape, for which there is room; what it held is lost.
    pub(crate) fn reshape(&mut self, depth: usize, cols: usize) {
        assert!(cols.div_ceil(LANES) * depth.div_ceil(DEPTH) <= self.tiles.len(), "there is room for the new shape");
        (self.cols, self.depth) = (cols, depth);
    }

    /// The tiles, strip by strip.
    pub(crate) fn tiles(&self) -> &[Tile] {
        &self.tiles
    }

    /// The tiles, strip by strip.
    pub(crate) fn tiles_mut(&mut self) -> &mut [Tile] {
        &mut self.tiles
    }
}

impl Columns for PackedColumns {
    fn is_packed(&self) -> bool {
        true
    }

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

    fn fetch(&self, strips: Range<usize>, depth: Range<usize>, part: (usize, usize)) {
        fetch_strips(&self.tiles, self.depth.div_ceil(DEPTH), strips, depth, part);
    }
}

/// Fetches a part of the tiles `depth` of `strips`, which lie `stride` tiles apart.
pub(crate) fn fetch_strips(
    tiles: &[Tile],
    stride: usize,
    strips: Range<usize>,
    depth: Range<usize>,
    part: (usize, usize),
) {
    let count = strips.len() * depth.len();
    prefetch_part(
        count,
        |place| &tiles[(strips.start + place / depth.len()) * stride + depth.start + place % depth.len()],
        part,
    );
}

/// A right factor in float32, packed panel by panel.
pub(crate) struct ViewColumns<'a>(pub(crate) View<'a>);

impl Columns for ViewColumns<'_> {
    fn depth(&self) -> usize {
        self.0.rows
    }

    fn cols(&self) -> usize {
        self.0.cols
    }

    /// Long stretches of rows where columns are contiguous.
    fn strips_at_once(&self) -> usize {
        16
    }

    fn panel<'a>(&'a self, strips: Range<usize>, depth: Range<usize>, scratch: &'a mut [Tile]) -> Panel<'a> {
        let lanes = self.0.transposed();
        for (place, strip) in strips.enumerate() {
            for (at, tile) in depth.clone().enumerate() {
                pack(corner(lanes, strip, tile, 1.0), Order::Pairs, &mut scratch[place * depth.len() + at]);
            }
        }
        Panel { tiles: scratch, stride: depth.len() }
    }
}

/// All strips of `lanes` `[lanes, depth]`.
fn strips(workspace: &Workspace, lanes: View<'_>) -> TileBuffer {
    /// Tiles a task should at least have, so that spreading over threads pays.
    const TASK_TILES: usize = 64;
    let depth_tiles = lanes.cols.div_ceil(DEPTH);
    let mut tiles = TileBuffer::new(workspace, lanes.rows.div_ceil(LANES) * depth_tiles);
    if depth_tiles > 0 && lanes.row_stride == 1 {
        side_by_side(lanes, &mut tiles);
    } else if depth_tiles > 0 {
        let strips = tiles.par_chunks_exact_mut(depth_tiles).enumerate();
        strips.with_min_len(TASK_TILES.div_ceil(depth_tiles)).for_each(|(strip, tiles)| {
            for (place, tile) in tiles.iter_mut().enumerate() {
                pack(corner(lanes, strip, place, 1.0), Order::Pairs, tile);
            }
        });
    }
    tiles
}

/// Strips of lanes that lie side by side in memory and are packed so: rows are read in stretches of some cache lines.
pub(super) const SIDE_BY_SIDE: usize = 8;

/// Packs all strips of `lanes` `[lanes, depth]`, whose lanes are contiguous.
fn side_by_side(lanes: View<'_>, tiles: &mut [Tile]) {
    let depth = lanes.cols.div_ceil(DEPTH);
    tiles.par_chunks_mut(SIDE_BY_SIDE * depth).enumerate().for_each(|(group, tiles)| {
        let first = group * SIDE_BY_SIDE;
        pack_side_by_side(lanes, first..first + tiles.len() / depth, 0..depth, 1.0, Order::Pairs, tiles);
    });
}

/// Packs the tiles `depth` of `strips` of `lanes` `[lanes, depth]`, whose lanes are contiguous, strip by strip.
pub(super) fn pack_side_by_side(
    lanes: View<'_>,
    strips: Range<usize>,
    depth: Range<usize>,
    scale: f32,
    order: Order,
    tiles: &mut [Tile],
) {
    let stride = depth.len();
    for (at, place) in depth.enumerate() {
        // What comes next is fetched meanwhile: so short stretches are not read ahead by themselves.
        let width = (strips.len() * LANES).min(lanes.rows - strips.start * LANES);
        for row in ((place + 1) * DEPTH..lanes.cols).take(DEPTH) {
            let values = &lanes.data[row * lanes.col_stride + strips.start * LANES..][..width];
            prefetch_for_later(values, 0..size_of_val(values));
        }
        for (row, strip) in strips.clone().enumerate() {
            pack(corner(lanes, strip, place, scale), order, &mut tiles[row * stride + at]);
        }
    }
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
