//! Products of packed operands: how the work is cut into blocks.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::Unit;
use super::operand::{Columns, PackedRows};
use super::tile::{DEPTH, LANES, Tile};
use crate::kernels::{Parallelism, ViewMut};

/// Multiplies strips of tiles into a block of the result.
pub(super) trait Block {
    /// `C ← C (if accumulate) + A·B` for `ROWS` strips of 16 rows by `COLS` strips of 16 columns over `depth` tiles of the
    /// inner dimension, one after the other in that order. Rows of `c` lie `stride` floats apart. May fetch memory from
    /// `ahead` on into the cache.
    ///
    /// # Safety
    /// Each strip has `depth` tiles, and the block of `c` is memory that nobody else uses.
    #[allow(clippy::too_many_arguments, reason = "a micro-kernel's natural arguments")]
    #[allow(unsafe_code)]
    unsafe fn block<const ROWS: usize, const COLS: usize>(
        &self,
        a: [*const Tile; ROWS],
        b: [*const Tile; COLS],
        depth: usize,
        c: *mut f32,
        stride: usize,
        accumulate: bool,
        ahead: *const u8,
    );
}

/// Tiles of the inner dimension that one pass takes, all of `tiles` or some: two strips of columns this deep stay in the
/// first-level cache while rows stream by.
fn depth_step(tiles: usize) -> usize {
    const WHOLE: usize = 20;
    const STEP: usize = 16;
    if tiles <= WHOLE { tiles.max(1) } else { STEP }
}

/// Strips of rows a task takes: at full depth they fit the second-level cache.
const ROW_STRIPS: usize = 64;
/// Strips of columns a task takes.
const COLUMN_STRIPS: usize = 16;

/// `C ← C (if accumulate) + A·B`. Every value of the result is a sum over the inner dimension in one fixed order,
/// whatever the other rows and columns and however the work is shared.
pub(super) fn product(
    unit: Unit,
    c: ViewMut<'_>,
    accumulate: bool,
    a: &PackedRows,
    b: &dyn Columns,
    parallelism: Parallelism,
) {
    let row_strips = a.rows().div_ceil(LANES);
    let column_strips = b.cols().div_ceil(LANES);
    let column_task = COLUMN_STRIPS.next_multiple_of(b.strips_at_once());
    let columns = column_strips.div_ceil(column_task);
    let rows = row_strips.div_ceil(ROW_STRIPS);
    let output = Output { c: c.data.as_mut_ptr(), stride: c.row_stride, rows: c.rows, cols: c.cols };
    let task = |task: usize| {
        let (row, column) = (task / columns, task % columns);
        let rows = row * ROW_STRIPS..row_strips.min((row + 1) * ROW_STRIPS);
        let columns = column * column_task..column_strips.min((column + 1) * column_task);
        let part = Part { output: &output, accumulate, a, b, rows, columns };
        match unit {
            #[cfg(target_arch = "x86_64")]
            Unit::Amx => part.run(&super::amx::TileUnit::configure()),
            #[cfg(target_arch = "x86_64")]
            Unit::Avx512 => part.run(&super::avx512::VectorUnit::new()),
            Unit::Float32 => part.run(&super::float32::FloatUnit),
        }
    };
    match parallelism {
        Parallelism::Pool if rows * columns > 1 => (0..rows * columns).into_par_iter().for_each(task),
        _ => (0..rows * columns).for_each(task),
    }
}

/// Where the result goes; tasks write to parts that don't overlap.
struct Output {
    c: *mut f32,
    stride: usize,
    rows: usize,
    cols: usize,
}

#[allow(unsafe_code)]
// SAFETY: tasks write to disjoint parts of memory that is borrowed for as long as they run.
unsafe impl Sync for Output {}

/// One task: some strips of rows by some strips of columns.
struct Part<'a> {
    output: &'a Output,
    accumulate: bool,
    a: &'a PackedRows,
    b: &'a dyn Columns,
    rows: Range<usize>,
    columns: Range<usize>,
}

thread_local! {
    /// Where panels are unpacked.
    static SCRATCH: RefCell<Vec<Tile>> = const { RefCell::new(Vec::new()) };
}

impl Part<'_> {
    fn run(&self, unit: &impl Block) {
        SCRATCH.with_borrow_mut(|scratch| {
            let depth_tiles = self.a.depth().div_ceil(DEPTH);
            let at_once = self.b.strips_at_once();
            let step = depth_step(depth_tiles);
            scratch.resize(scratch.len().max(at_once * step), Tile::ZERO);
            for first in (0..depth_tiles.max(1)).step_by(step) {
                let depth = first..depth_tiles.min(first + step);
                let accumulate = self.accumulate || first > 0;
                for start in self.columns.clone().step_by(at_once) {
                    let strips = start..self.columns.end.min(start + at_once);
                    self.panel(unit, strips, &depth, accumulate, scratch);
                }
            }
        });
    }

    /// All rows of the task by one panel.
    fn panel(
        &self,
        unit: &impl Block,
        strips: Range<usize>,
        depth: &Range<usize>,
        accumulate: bool,
        scratch: &mut [Tile],
    ) {
        let panel = self.b.panel(strips.clone(), depth.clone(), &mut scratch[..strips.len() * depth.len()]);
        for pair in strips.clone().step_by(2) {
            let place = pair - strips.start;
            let b0 = panel.strip(place, depth.len());
            if pair + 1 < strips.end {
                let columns = [b0, panel.strip(place + 1, depth.len())];
                self.columns(unit, pair, columns, depth, accumulate);
            } else {
                self.columns(unit, pair, [b0], depth, accumulate);
            }
        }
    }

    /// All rows of the task by one or two strips of columns.
    #[allow(unsafe_code)]
    fn columns<const COLS: usize>(
        &self,
        unit: &impl Block,
        column_strip: usize,
        b: [&[Tile]; COLS],
        depth: &Range<usize>,
        accumulate: bool,
    ) {
        let b = b.map(<[Tile]>::as_ptr);
        let mut row = self.rows.start;
        while row < self.rows.end {
            let strip = |row: usize| self.a.strip(row)[depth.clone()].as_ptr();
            if row + 1 < self.rows.end {
                self.block(unit, [strip(row), strip(row + 1)], b, (row, column_strip), depth.len(), accumulate);
                row += 2;
            } else {
                self.block(unit, [strip(row)], b, (row, column_strip), depth.len(), accumulate);
                row += 1;
            }
        }
    }

    #[allow(unsafe_code)]
    fn block<const ROWS: usize, const COLS: usize>(
        &self,
        unit: &impl Block,
        a: [*const Tile; ROWS],
        b: [*const Tile; COLS],
        (row, col): (usize, usize),
        depth: usize,
        accumulate: bool,
    ) {
        let Output { c, stride, rows, cols } = *self.output;
        let (first_row, first_col) = (row * LANES, col * LANES);
        let (rows, cols) = ((ROWS * LANES).min(rows - first_row), (COLS * LANES).min(cols - first_col));
        // The next strips of columns, if they lie behind these.
        let ahead = b[COLS - 1].wrapping_add(depth).cast::<u8>();
        let ahead = ahead.wrapping_add((row - self.rows.start) / 2 * depth * 128);
        // SAFETY: the block lies in the output, which other tasks don't touch here; strips have `depth` tiles.
        unsafe {
            let c = c.add(first_row * stride + first_col);
            if rows == ROWS * LANES && cols == COLS * LANES {
                unit.block(a, b, depth, c, stride, accumulate, ahead);
                return;
            }
            let mut edge = Edge([0.0; 4 * LANES * LANES]);
            let width = COLS * LANES;
            if accumulate {
                for row in 0..rows {
                    std::ptr::copy_nonoverlapping(c.add(row * stride), edge.0.as_mut_ptr().add(row * width), cols);
                }
            }
            unit.block(a, b, depth, edge.0.as_mut_ptr(), width, accumulate, ahead);
            for row in 0..rows {
                std::ptr::copy_nonoverlapping(edge.0.as_ptr().add(row * width), c.add(row * stride), cols);
            }
        }
    }
}

/// A block that reaches over the edge of the result.
#[repr(align(64))]
struct Edge([f32; 4 * LANES * LANES]);
