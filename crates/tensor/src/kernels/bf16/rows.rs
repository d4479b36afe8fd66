//! Products of which a task takes some rows through everything: what such operations share.

use std::ops::Range;

use super::low_rank::{LowRankFactors, Second};
use super::operand::Columns;
use super::pack::{Order, pack_strip, unpack};
use super::product::{Block, Output, PackedStrips, Target, Term, panels};
use super::tile::{DEPTH, LANES, Tile, TileBuffer};
use crate::kernels::{View, vectorised};
use crate::{Matrix, Workspace};

/// A linear on the way forward, or back to its input's gradient.
pub(crate) struct Part<'a> {
    pub(crate) columns: Box<dyn Columns + 'a>,
    /// Added on the way forward.
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) low_rank: Option<LowRankFactors>,
}

/// How the rows are shared. Sums over rows are made piece by piece, which depend on the number of rows alone.
#[derive(Clone, Copy)]
pub(super) struct Sharing {
    /// Strips of rows in all, and of a piece.
    pub(super) strips: usize,
    pub(super) piece: usize,
    /// How many tasks, whose numbers of pieces differ by one at the most.
    tasks: usize,
}

/// Pieces of a task, at the most.
const MOST_PIECES: usize = 5;

impl Sharing {
    pub(super) fn of(rows: usize) -> Self {
        const MOST_STRIPS: usize = 8;
        let strips = rows.div_ceil(LANES);
        let count = strips.div_ceil(MOST_STRIPS).next_multiple_of(2);
        let piece = strips.div_ceil(count).max(1);
        let pieces = strips.div_ceil(piece);
        let tasks = pieces.div_ceil(MOST_PIECES).next_multiple_of(rayon::current_num_threads()).min(pieces);
        Self { strips, piece, tasks }
    }

    /// Strips of a task, at the most, however many threads there are.
    pub(super) fn most_strips(&self) -> usize {
        let pieces = self.count();
        pieces.div_ceil(pieces.div_ceil(MOST_PIECES).max(1)) * self.piece
    }

    /// The rows of each task, of `rows` in all.
    pub(super) fn tasks(self, rows: usize) -> impl Iterator<Item = Range<usize>> {
        let start = move |task: usize| rows.min(self.count() * task / self.tasks * self.piece * LANES);
        (0..self.tasks).map(move |task| start(task)..start(task + 1))
    }

    /// Pieces in all.
    pub(super) fn count(&self) -> usize {
        self.strips.div_ceil(self.piece)
    }

    /// The rows of each piece of a task of `rows` rows.
    pub(super) fn rows_of_pieces(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let piece = self.piece * LANES;
        (0..rows).step_by(piece).map(move |first| first..rows.min(first + piece))
    }
}

/// Rows `rows` of `view` in tiles.
pub(super) fn packed(workspace: &Workspace, view: View<'_>, rows: Range<usize>) -> Packed {
    let (strips, depth) = (rows.len().div_ceil(LANES), view.cols.div_ceil(DEPTH));
    let mut tiles = TileBuffer::new(workspace, strips * depth);
    for (strip, tiles) in tiles.chunks_exact_mut(depth.max(1)).enumerate() {
        let first = rows.start + strip * LANES;
        pack_strip(view, first..rows.end.min(first + LANES), 0, 1.0, Order::Rows, tiles);
    }
    Packed { tiles, depth, strips }
}

/// Rows in tiles.
pub(super) struct Packed {
    pub(super) tiles: TileBuffer,
    pub(super) depth: usize,
    pub(super) strips: usize,
}

impl Packed {
    /// Room for so many tiles, which hold nothing yet.
    pub(super) fn with_room(workspace: &Workspace, strips: usize, depth: usize) -> Self {
        Self { tiles: TileBuffer::new(workspace, strips * depth), depth, strips }
    }

    /// Packs `view`, which has as many strips of rows, from tile `first` of each strip on.
    pub(super) fn fill(&mut self, view: View<'_>, first: usize) {
        let count = view.cols.div_ceil(DEPTH);
        for (strip, tiles) in self.tiles.chunks_exact_mut(self.depth.max(1)).enumerate() {
            let lanes = strip * LANES..view.rows.min((strip + 1) * LANES);
            pack_strip(view, lanes, 0, 1.0, Order::Rows, &mut tiles[first..first + count]);
        }
    }

    /// Writes as floats the columns from tile `first` on, `width` of them: full strips of rows.
    pub(super) fn unpack(&self, first: usize, out: &mut [f32], width: usize) {
        let strips = self.tiles.chunks_exact(self.depth.max(1)).zip(out.chunks_exact_mut(LANES * width));
        for (tiles, out) in strips {
            for (place, tile) in tiles[first..first + width / DEPTH].iter().enumerate() {
                unpack(tile, &mut out[place * DEPTH..], width);
            }
        }
    }

    pub(super) fn strips(&self) -> PackedStrips<'_> {
        PackedStrips { tiles: &self.tiles, depth: self.depth, strips: self.strips }
    }
}

/// The middle of a low-rank product, of a task's rows.
pub(super) struct Middle<'a> {
    pub(super) factors: &'a LowRankFactors,
    pub(super) values: Matrix,
    tiles: TileBuffer,
    /// Number of the first row.
    first: usize,
}

impl<'a> Middle<'a> {
    /// For `strips` strips of rows, the first row being number `first`.
    pub(super) fn new(workspace: &Workspace, part: Option<&'a Part<'_>>, strips: usize, first: usize) -> Option<Self> {
        let factors = part?.low_rank.as_ref()?;
        let values = Matrix::uninitialised(workspace, strips * LANES, factors.width());
        Some(Self { factors, values, tiles: TileBuffer::new(workspace, strips * factors.middle_depth()), first })
    }

    pub(super) fn add(&mut self, unit: &impl Block, a: &PackedStrips<'_>, depth: Range<usize>, accumulate: bool) {
        self.factors.add_middle(unit, a, &depth, accumulate, self.values.data_mut());
    }

    /// Packs what was added, for [`Middle::second`]; what its blocks don't keep is gone then.
    pub(super) fn pack(&mut self) {
        self.factors.keep_blocks(self.values.data_mut(), self.first);
        self.factors.pack_middle(self.values.data(), self.values.rows(), &mut self.tiles);
    }

    /// The second half of the product.
    pub(super) fn second(&self) -> Second<'_> {
        self.factors.second(&self.tiles)
    }

    /// Writes `[rows, r]` to `out`.
    pub(super) fn copy_to(&self, out: &mut [f32]) {
        let rank = self.factors.rank();
        let rows = self.values.data().chunks_exact(self.values.cols());
        out.chunks_exact_mut(rank).zip(rows).for_each(|(out, row)| out.copy_from_slice(&row[..rank]));
    }

    /// Its first `rows` rows `[rows, r]`.
    pub(super) fn copied(&self, workspace: &Workspace, rows: usize) -> Matrix {
        let mut values = Matrix::uninitialised(workspace, rows, self.factors.rank());
        self.copy_to(values.data_mut());
        values
    }

    /// `[rows, r]`.
    pub(super) fn view(&self, rows: Range<usize>) -> View<'_> {
        View::of(&self.values).rows(rows).columns(0..self.factors.rank())
    }
}

/// Adds `bias` to each of `rows`.
pub(super) fn add_bias(rows: &mut [f32], bias: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for row in rows.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            }
        },
    );
}

/// The columns `columns` of a linear, for all packed rows, in full strips.
pub(super) fn linear_block(
    unit: &impl Block,
    x: PackedStrips<'_>,
    part: &Part<'_>,
    columns: Range<usize>,
    second: Option<Second<'_>>,
    values: &mut [f32],
    scratch: &mut [Tile],
) {
    let width = columns.len();
    let output = Output { c: values.as_mut_ptr(), stride: width, rows: x.strips * LANES, cols: width };
    let strips = columns.start / LANES..columns.end / LANES;
    let target = Target { output: &output, first_row: 0, first_strip: strips.start };
    panels(unit, &target, &[Term::new(x, &*part.columns, 0, second)], strips, false, scratch);
    if let Some(bias) = &part.bias {
        add_bias(values, &bias[columns]);
    }
}

/// Runs `$task.run(unit)` for the unit that `$unit` names.
macro_rules! on_unit {
    ($unit:expr, $task:expr) => {
        match $unit {
            #[cfg(target_arch = "x86_64")]
            Unit::Amx => $task.run(&crate::kernels::bf16::amx::TileUnit::configure()),
            #[cfg(target_arch = "x86_64")]
            Unit::Avx512 => $task.run(&crate::kernels::bf16::avx512::VectorUnit::new()),
            Unit::Float32 => $task.run(&crate::kernels::bf16::float32::FloatUnit),
        }
    };
}
pub(super) use on_unit;
