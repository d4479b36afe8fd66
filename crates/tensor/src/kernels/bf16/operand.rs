//! The right factor of a bf16 product: columns that come as panels of tiles.

use std::ops::Range;

use rayon::prelude::*;

use super::coded::CodedStrip;
use super::pack::{Corner, Order, pack};
use super::tile::{DEPTH, LANES, Tile, TileBuffer};
use crate::Workspace;
use crate::kernels::{LINE, View, fetch_lines, prefetch_for_later};

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

    /// Where what [`panel`](Self::panel) reads lies; nothing where unpacking takes longer than reading.
    fn runs(&self, _strips: Range<usize>, _depth: Range<usize>) -> Runs {
        Runs::NONE
    }

    /// The same of the two strips from `strip` on, of those that exist.
    fn runs_of_pair(&self, strip: usize, depth: Range<usize>) -> Runs {
        let end = self.cols().div_ceil(LANES).min(strip + 2);
        if strip < end { self.runs(strip..end, depth) } else { Runs::NONE }
    }
}

/// Cache lines that somebody reads soon and that come from far away.
#[derive(Clone, Copy)]
pub(crate) struct Lines {
    pub(crate) first: *const Tile,
    pub(crate) count: usize,
}

impl Lines {
    pub(crate) const NONE: Self = Self { first: std::ptr::null(), count: 0 };

    /// Fetches those from number `from` on into the second-level cache.
    #[inline]
    pub(crate) fn fetch(self, from: usize) {
        fetch_lines(self.first.wrapping_byte_add(from * LINE), self.count.saturating_sub(from));
    }
}

/// Runs of tiles, equally long and far apart, that are fetched part by part while something else is multiplied.
#[derive(Clone, Copy)]
pub(crate) struct Runs {
    /// The next tile, and the lines of it that are fetched already.
    first: *const Tile,
    done: usize,
    /// Tiles from one run to the next.
    stride: usize,
    /// Lines of a run, and runs that are left.
    lines: usize,
    count: usize,
    /// Lines of a part.
    part: usize,
}

impl Runs {
    pub(crate) const NONE: Self = Self { first: std::ptr::null(), done: 0, stride: 0, lines: 0, count: 0, part: 0 };

    /// The tiles `depth` of `runs`, which lie `stride` tiles apart.
    pub(crate) fn of(tiles: &[Tile], stride: usize, runs: Range<usize>, depth: Range<usize>) -> Self {
        let first = tiles.as_ptr().wrapping_add(runs.start * stride + depth.start);
        // A lane of a tile is a line.
        let (lines, count) = (depth.len() * LANES, runs.len());
        let (lines, count) = if depth.len() == stride { (lines * count, 1) } else { (lines, count) };
        Self { first, done: 0, stride, lines, count, part: 0 }
    }

    /// To be fetched in so many parts.
    pub(crate) fn in_parts(self, parts: usize) -> Self {
        Self { part: (self.lines * self.count).div_ceil(parts.max(1)), ..self }
    }

    /// The next part, as far as it lies in one run.
    pub(crate) fn next_part(&mut self) -> Lines {
        if self.count == 0 {
            return Lines::NONE;
        }
        let lines = Lines {
            first: self.first.wrapping_byte_add(self.done * LINE),
            count: self.part.min(self.lines - self.done),
        };
        self.done += self.part;
        if self.done >= self.lines {
            (self.first, self.done, self.count) = (self.first.wrapping_add(self.stride), 0, self.count - 1);
        }
        lines
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

    fn runs(&self, strips: Range<usize>, depth: Range<usize>) -> Runs {
        Runs::of(&self.tiles, self.depth.div_ceil(DEPTH), strips, depth)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of the lines of `tiles` that all parts name, in order.
    fn named(tiles: &[Tile], runs: Runs, parts: usize) -> Vec<usize> {
        let mut runs = runs.in_parts(parts);
        let part = |_| {
            let Lines { first, count } = runs.next_part();
            let start = if count == 0 { 0 } else { first.addr() - tiles.as_ptr().addr() };
            (0..count).map(move |line| start / LINE + line)
        };
        (0..parts).flat_map(part).collect()
    }

    #[test]
    fn parts_of_runs_are_all_their_lines_once() {
        let tiles = vec![Tile::ZERO; 30];
        let expected: Vec<usize> = (2..5).flat_map(|run| (run * 6 + 1) * LANES..(run * 6 + 5) * LANES).collect();
        for parts in [3, 6, 12, 48] {
            assert_eq!(named(&tiles, Runs::of(&tiles, 6, 2..5, 1..5), parts), expected, "{parts} parts");
        }
        // Runs that follow each other without a gap are one.
        let whole: Vec<usize> = (6 * LANES..18 * LANES).collect();
        for parts in [1, 5, 7, 100] {
            assert_eq!(named(&tiles, Runs::of(&tiles, 6, 1..3, 0..6), parts), whole, "{parts} parts");
        }
        assert_eq!(named(&tiles, Runs::NONE, 4), []);
    }
}
