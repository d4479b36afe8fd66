//! Products of small operands that both lie packed, as attention's blocks do: several matrices one under the other on the
//! left, part of packed columns on the right, and a result with room for full tiles. They run on the calling thread.

use std::ops::Range;

use super::Unit;
use super::operand::{Lines, PackedColumns, corner};
use super::pack::{Order, pack};
use super::product::{Block, Strips};
use super::tile::{DEPTH, LANES, Tile, TileBuffer};
use crate::Workspace;
use crate::kernels::View;

/// A left factor `[rows, depth]`: strips of 16 rows in rows order, each along the inner dimension.
pub(crate) struct Stack {
    tiles: TileBuffer,
    rows: usize,
    depth: usize,
}

impl Stack {
    /// Room for `[rows, depth]`, which holds nothing yet.
    pub(crate) fn with_room(workspace: &Workspace, rows: usize, depth: usize) -> Self {
        Self { tiles: TileBuffer::new(workspace, rows.div_ceil(LANES) * depth.div_ceil(DEPTH)), rows, depth }
    }

    /// Takes another shape, for which there is room; what it held is lost.
    pub(crate) fn reshape(&mut self, rows: usize, depth: usize) {
        assert!(rows.div_ceil(LANES) * depth.div_ceil(DEPTH) <= self.tiles.len(), "there is room for the new shape");
        (self.rows, self.depth) = (rows, depth);
    }

    /// The tiles, strip by strip.
    pub(crate) fn tiles_mut(&mut self) -> &mut [Tile] {
        &mut self.tiles
    }

    /// Packs `scale ·` the rows of `views`, equally shaped, one under the other; each takes `height` rows, a multiple of
    /// [`DEPTH`], of which those past its own are zero.
    pub(crate) fn fill(&mut self, views: &[View<'_>], height: usize, scale: f32) {
        let depth = views.first().map_or(0, |view| view.cols);
        self.reshape(views.len() * height, depth);
        let mut tiles = self.tiles.iter_mut();
        for view in views {
            for strip in 0..height / LANES {
                for (place, tile) in (0..depth.div_ceil(DEPTH)).zip(&mut tiles) {
                    fill(*view, strip, place, scale, tile);
                }
            }
        }
    }

    /// The same turned on its side: `[features, views · height]`.
    pub(crate) fn fill_turned(&mut self, views: &[View<'_>], height: usize, scale: f32) {
        let features = views.first().map_or(0, |view| view.cols);
        self.reshape(features, views.len() * height);
        let mut tiles = self.tiles.iter_mut();
        for strip in 0..features.div_ceil(LANES) {
            for view in views {
                for (place, tile) in (0..height / DEPTH).zip(&mut tiles) {
                    fill(view.transposed(), strip, place, scale, tile);
                }
            }
        }
    }
}

fn fill(view: View<'_>, strip: usize, place: usize, scale: f32, tile: &mut Tile) {
    if strip * LANES < view.rows && place * DEPTH < view.cols {
        pack(corner(view, strip, place, scale), Order::Rows, tile);
    } else {
        *tile = Tile::ZERO;
    }
}

/// A result with room for full tiles: as many rows and columns as the factors have strips of 16.
pub(crate) struct Padded<'a> {
    pub(crate) data: &'a mut [f32],
    /// Floats from one row to the next.
    pub(crate) stride: usize,
}

impl Unit {
    /// `C ← C (if accumulate) + A·B` for the columns `columns` of `b`, from a multiple of [`LANES`] on, and the places
    /// `depth` of its inner dimension, from a multiple of [`DEPTH`] on, which are all of `a`'s.
    pub(crate) fn stacked(
        self,
        c: Padded<'_>,
        accumulate: bool,
        a: &Stack,
        b: &PackedColumns,
        columns: Range<usize>,
        depth: Range<usize>,
    ) {
        use super::Columns;
        assert!(columns.start.is_multiple_of(LANES) && columns.end <= b.cols(), "columns begin at a strip");
        assert!(depth.start.is_multiple_of(DEPTH) && depth.end <= b.depth(), "the inner dimension begins at a tile");
        assert_eq!(depth.len(), a.depth, "a product's factors share their inner size");
        let (rows, cols) = (a.rows.div_ceil(LANES), columns.len().div_ceil(LANES));
        if rows == 0 || cols == 0 {
            return;
        }
        let fits = (rows * LANES - 1) * c.stride + cols * LANES <= c.data.len();
        assert!(fits && cols * LANES <= c.stride, "the result has room for full tiles");
        let product = StackedProduct {
            c: c.data.as_mut_ptr(),
            stride: c.stride,
            accumulate,
            a: &a.tiles,
            b: &b.tiles()[columns.start / LANES * b.depth().div_ceil(DEPTH) + depth.start / DEPTH..],
            b_stride: b.depth().div_ceil(DEPTH),
            depth: depth.len().div_ceil(DEPTH),
            rows,
            cols,
        };
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => product.run(&super::amx::TileUnit::configure()),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => product.run(&super::avx512::VectorUnit::new()),
            Self::Float32 => product.run(&super::float32::FloatUnit),
        }
    }
}

/// Sizes are in strips and tiles.
struct StackedProduct<'a> {
    c: *mut f32,
    stride: usize,
    accumulate: bool,
    a: &'a [Tile],
    b: &'a [Tile],
    b_stride: usize,
    depth: usize,
    rows: usize,
    cols: usize,
}

impl StackedProduct<'_> {
    fn run(&self, unit: &impl Block) {
        for col in (0..self.cols).step_by(2) {
            for row in (0..self.rows).step_by(2) {
                match (row + 1 < self.rows, col + 1 < self.cols) {
                    (true, true) => self.block::<2, 2>(unit, row, col),
                    (true, false) => self.block::<2, 1>(unit, row, col),
                    (false, true) => self.block::<1, 2>(unit, row, col),
                    (false, false) => self.block::<1, 1>(unit, row, col),
                }
            }
        }
    }

    #[allow(unsafe_code)]
    fn block<const ROWS: usize, const COLS: usize>(&self, unit: &impl Block, row: usize, col: usize) {
        let strip = |tiles: &[Tile], start: usize| tiles[start..start + self.depth].as_ptr();
        let a = std::array::from_fn(|place| strip(self.a, (row + place) * self.depth));
        let b = std::array::from_fn(|place| strip(self.b, (col + place) * self.b_stride));
        // SAFETY: strips have `depth` tiles; `Unit::stacked` checked that the result, which is borrowed mutably, has room.
        unsafe {
            let c = self.c.add(row * LANES * self.stride + col * LANES);
            let strips = [Strips { a, b, depth: self.depth }];
            unit.block::<ROWS, COLS>(&strips, c, self.stride, self.accumulate, Lines::NONE);
        }
    }
}
