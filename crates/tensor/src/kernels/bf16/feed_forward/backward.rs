//! The way back.

use std::ops::Range;

use rayon::prelude::*;

use super::{Kept, Middle, Packed, Part, Parts, Sharing, fill, on_unit, packed, unpack};
use crate::kernels::bf16::Unit;
use crate::kernels::bf16::product::{Block, Output, Target, panels};
use crate::kernels::bf16::tile::{DEPTH, LANES, TileBuffer};
use crate::kernels::gradient::sum_by_tokens;
use crate::kernels::{View, ViewMut, vectorised};
use crate::{Matrix, Workspace};

/// The gradients of a linear's update, as sums over pieces of the rows.
pub(crate) struct Sums {
    rank: usize,
    /// `s·uᵀ·input` `[pieces · r, in]`, with `u = dy·B`.
    a: Matrix,
    /// `s·tᵀ·dy` `[pieces · r, out]`, with `t = input·Aᵀ`.
    b: Matrix,
}

impl Sums {
    fn with_room(workspace: &Workspace, part: &Part<'_>, pieces: usize) -> Option<Self> {
        let (out, rank, width) = part.low_rank.as_ref()?.sizes();
        let room = |cols| Matrix::uninitialised(workspace, pieces * rank, cols);
        Some(Self { rank, a: room(width), b: room(out) })
    }

    /// Adds the pieces up, in order: what remains is the first rows.
    fn reduce(&mut self) {
        let rank = self.rank;
        rayon::join(|| add_pieces(&mut self.a, rank), || add_pieces(&mut self.b, rank));
    }

    /// Writes the gradient of `A` `[r, in]`, or adds it.
    pub(crate) fn add_a(&self, da: &mut Matrix, beta: f32) {
        let keep = |value: f32| if beta == 0.0 { 0.0 } else { value };
        da.data_mut().iter_mut().zip(self.a.data()).for_each(|(out, value)| *out = keep(*out) + value);
    }

    /// Writes the gradient of `B` `[out, r]`, or adds it.
    pub(crate) fn add_b(&self, db: &mut Matrix, beta: f32) {
        let keep = |value: f32| if beta == 0.0 { 0.0 } else { value };
        let out = self.b.cols();
        for (place, row) in db.data_mut().chunks_exact_mut(self.rank).enumerate() {
            let values = self.b.data()[place..].iter().step_by(out);
            row.iter_mut().zip(values).for_each(|(out, value)| *out = keep(*out) + value);
        }
    }
}

fn add_pieces(sums: &mut Matrix, rank: usize) {
    let size = (rank * sums.cols()).max(1);
    let (total, others) = sums.data_mut().split_at_mut(size);
    for other in others.chunks_exact(size) {
        vectorised(
            #[inline(always)]
            || total.iter_mut().zip(other).for_each(|(total, value)| *total += value),
        );
    }
}

/// Adds to `dx` `[rows, in]`, or writes there, the gradient of the feed-forward's input `x`, given that of its output
/// `dy` `[rows, out]`; gives the gradients of the updates of gate, up and down. `parts` are the linears' gradients.
pub(crate) fn backward(
    unit: Unit,
    workspace: &Workspace,
    parts: &Parts<'_>,
    kept: &Kept,
    x: View<'_>,
    dy: View<'_>,
    dx: Option<(ViewMut<'_>, f32)>,
) -> [Option<Sums>; 3] {
    let sharing = Sharing::of(x.rows);
    let mut sums = parts.all().map(|part| Sums::with_room(workspace, part?, sharing.count()));
    let mut sums_rest = sums.each_mut().map(|sums| sums.as_mut().map(SumsOfRows::all));
    let (mut dx, beta) = dx.map_or((None, 0.0), |(dx, beta)| (Some(dx.data), beta));
    let task_rows = sharing.task_rows();
    let mut tasks = Vec::new();
    for first in (0..x.rows).step_by(task_rows) {
        let rows = first..x.rows.min(first + task_rows);
        let pieces = rows.len().div_ceil(sharing.piece * LANES);
        let own_dx = dx.take().map(|values| {
            let (own, after) = values.split_at_mut(rows.len() * x.cols);
            dx = Some(after);
            (own, beta)
        });
        let own_sums = sums_rest.each_mut().map(|rest| {
            let (own, after) = rest.take()?.split(pieces);
            *rest = Some(after);
            Some(own)
        });
        tasks.push(Task { workspace, parts, sharing, kept, x, dy, rows, dx: own_dx, sums: own_sums });
    }
    tasks.into_par_iter().for_each(|task| on_unit!(unit, task));
    sums.par_iter_mut().flatten().for_each(Sums::reduce);
    sums
}

/// The sums of some pieces.
struct SumsOfRows<'a> {
    rank: usize,
    a: (&'a mut [f32], usize),
    b: (&'a mut [f32], usize),
}

impl<'a> SumsOfRows<'a> {
    fn all(sums: &'a mut Sums) -> Self {
        let (a_cols, b_cols) = (sums.a.cols(), sums.b.cols());
        Self { rank: sums.rank, a: (sums.a.data_mut(), a_cols), b: (sums.b.data_mut(), b_cols) }
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let Self { rank, a, b } = self;
        let (a_own, a_after) = a.0.split_at_mut(pieces * rank * a.1);
        let (b_own, b_after) = b.0.split_at_mut(pieces * rank * b.1);
        let part = |a_values, b_values| Self { rank, a: (a_values, a.1), b: (b_values, b.1) };
        (part(a_own, b_own), part(a_after, b_after))
    }
}

/// Some rows.
struct Task<'a, 'b> {
    workspace: &'a Workspace,
    parts: &'a Parts<'a>,
    sharing: Sharing,
    kept: &'a Kept,
    x: View<'a>,
    dy: View<'a>,
    rows: Range<usize>,
    dx: Option<(&'b mut [f32], f32)>,
    sums: [Option<SumsOfRows<'b>>; 3],
}

/// Of the three linears.
const GATE: usize = 0;
const UP: usize = 1;
const DOWN: usize = 2;

impl Task<'_, '_> {
    fn run(mut self, unit: &impl Block) {
        let Self { workspace, parts, x, dy, kept, .. } = self;
        let rows = self.rows.clone();
        let dy = packed(workspace, dy, rows.clone());
        let strips = dy.strips;
        let mut middles = parts.all().map(|part| Middle::new(workspace, part, strips));
        if let Some(middle) = &mut middles[DOWN] {
            middle.add(unit, &dy.strips(), 0..dy.depth, false);
            middle.pack();
        }
        let (hidden, block_strips) = (parts.up.columns.depth(), parts.block_strips());
        let (tiles, block_tiles) = (hidden / DEPTH, block_strips * LANES / DEPTH);
        let kinds = if parts.gate.is_some() { 2 } else { 1 };
        let chunk = self.sharing.chunk(tiles, dy.depth, kinds, block_tiles);
        let [mut gate, mut up, mut inner] =
            [(); 3].map(|()| Matrix::uninitialised(workspace, strips * LANES, block_strips * LANES));
        let mut scratch = TileBuffer::new(workspace, block_strips * dy.depth.max(chunk));
        let first_tile = rows.start / LANES * tiles;
        for start in (0..tiles).step_by(chunk) {
            let end = tiles.min(start + chunk);
            let [mut dgate, mut dup] = [(); 2].map(|()| Packed::with_room(workspace, strips, end - start));
            for place in (start..end).step_by(block_tiles) {
                let columns = place * DEPTH..hidden.min((place + block_tiles) * DEPTH);
                let (width, size) = (columns.len(), strips * LANES * columns.len());
                let [gate, up, inner] = [&mut gate, &mut up, &mut inner].map(|block| &mut block.data_mut()[..size]);
                let output = Output { c: inner.as_mut_ptr(), stride: width, rows: strips * LANES, cols: width };
                let block = columns.start / LANES..columns.end / LANES;
                let target = Target { output: &output, first_row: 0, first_strip: block.start };
                let second = middles[DOWN].as_ref().map(Middle::second);
                let down = &*parts.down.columns;
                let a = dy.strips();
                panels(unit, &target, &a, down, block, 0..dy.depth, second.as_ref(), false, &mut scratch);
                let gate = if kept.gate.is_some() { gate } else { &mut [] };
                for (own, pieces) in self.sharing.kept(strips, (place, width / DEPTH, tiles)) {
                    let floats = pieces.start * LANES * width..pieces.end * LANES * width;
                    if let Some(kept) = &kept.gate {
                        unpack(&kept[first_tile..][own.clone()], width, &mut gate[floats.clone()]);
                    }
                    unpack(&kept.up[first_tile..][own], width, &mut up[floats]);
                }
                (parts.gating.backward)(gate, up, inner);
                let block = |values| View::rows_of(values, strips * LANES, width, width);
                self.sum_a(DOWN, columns.clone(), middles[DOWN].as_ref(), block(inner));
                for (site, gradient, packed) in [(GATE, &*gate, &mut dgate), (UP, &*up, &mut dup)] {
                    if !gradient.is_empty() {
                        self.sum_b(site, columns.clone(), block(gradient));
                        fill(&mut packed.tiles, packed.depth, gradient, width, place - start);
                    }
                }
            }
            let last = end == tiles;
            let sides = [(GATE, parts.gate.as_ref(), &dgate), (UP, Some(&parts.up), &dup)];
            let mut accumulate = start > 0 || self.dx.as_ref().is_some_and(|(_, beta)| *beta != 0.0);
            for (site, part, gradient) in sides {
                let Some(part) = part else { continue };
                let mut second = None;
                if let Some(middle) = &mut middles[site] {
                    middle.add(unit, &gradient.strips(), start..end, start > 0);
                    if last {
                        middle.pack();
                        second = Some(middle.second());
                    }
                }
                let Some((dx, _)) = &mut self.dx else { continue };
                let dx = Output { c: dx.as_mut_ptr(), stride: x.cols, rows: rows.len(), cols: x.cols };
                let dx = Target { output: &dx, first_row: 0, first_strip: 0 };
                let (strips, a) = (0..x.cols.div_ceil(LANES), gradient.strips());
                panels(unit, &dx, &a, &*part.columns, strips, start..end, second.as_ref(), accumulate, &mut scratch);
                accumulate = true;
            }
        }
        let (x, dy) = (x.rows(rows.clone()), self.dy.rows(rows));
        for site in [GATE, UP] {
            self.sum_a(site, 0..x.cols, middles[site].as_ref(), x);
        }
        self.sum_b(DOWN, 0..dy.cols, dy);
    }

    /// The rows of each piece, counted from the task's first.
    fn pieces(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, piece) = (self.rows.len(), self.sharing.piece * LANES);
        (0..rows).step_by(piece).map(move |first| first..rows.min(first + piece))
    }

    /// `s·uᵀ·input` for columns of the input: a block of the task's rows.
    fn sum_a(&mut self, site: usize, columns: Range<usize>, u: Option<&Middle<'_>>, input: View<'_>) {
        let pieces = self.pieces();
        let (Some(u), Some(sums)) = (u, &mut self.sums[site]) else { return };
        for (piece, rows) in pieces.enumerate() {
            let sum = of_piece(&mut sums.a, sums.rank, piece, columns.clone());
            sum_by_tokens(u.factors.scale(), u.view(rows.clone()).transposed(), input.rows(rows), sum);
        }
    }

    /// `s·tᵀ·dy` for columns of `dy`, that of the linear: a block of the task's rows.
    fn sum_b(&mut self, site: usize, columns: Range<usize>, dy: View<'_>) {
        let (pieces, first) = (self.pieces(), self.rows.start);
        let factors = self.parts.all()[site].and_then(|part| part.low_rank.as_ref());
        let (Some(factors), Some(t), Some(sums)) = (factors, &self.kept.middles[site], &mut self.sums[site]) else {
            return;
        };
        for (piece, rows) in pieces.enumerate() {
            let sum = of_piece(&mut sums.b, sums.rank, piece, columns.clone());
            let t = View::of(t).rows(first + rows.start..first + rows.end);
            sum_by_tokens(factors.scale(), t.transposed(), dy.rows(rows), sum);
        }
    }
}

/// Columns of a piece's sum.
fn of_piece<'a>(
    (values, cols): &'a mut (&mut [f32], usize),
    rank: usize,
    piece: usize,
    columns: Range<usize>,
) -> ViewMut<'a> {
    let start = piece * rank * *cols + columns.start;
    ViewMut::rows_of(&mut values[start..], rank, columns.len(), *cols)
}
