//! The gradients of the thin factors of several products, as sums over rows that tasks make piece by piece.

use std::ops::Range;

use super::rows::{Middle, Part};
use crate::kernels::blocks::{ScaledBlock, shares};
use crate::kernels::gradient::sum_by_tokens;
use crate::kernels::{View, ViewMut, vectorised};
use crate::{Matrix, Workspace};

/// The gradients of a linear's update, as sums over pieces of the rows.
pub(crate) struct Sums {
    rank: usize,
    scale: f32,
    blocks: Vec<ScaledBlock>,
    /// `s·uᵀ·input` `[pieces · r, in]`, with `u = dy·B`.
    a: Matrix,
    /// `s·tᵀ·dy` `[pieces · r, out]`, with `t = input·Aᵀ`.
    b: Matrix,
}

impl Sums {
    pub(super) fn with_room(workspace: &Workspace, part: &Part<'_>, pieces: usize) -> Option<Self> {
        let factors = part.low_rank.as_ref()?;
        let (out, rank, width) = factors.sizes();
        let room = |cols| Matrix::uninitialised(workspace, pieces * rank, cols);
        Some(Self { rank, scale: factors.scale(), blocks: factors.blocks().to_vec(), a: room(width), b: room(out) })
    }

    /// Adds the pieces up, in order: what remains is the first rows.
    pub(super) fn reduce(&mut self) {
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

/// The sums of some pieces.
pub(super) struct SumsOfRows<'a> {
    rank: usize,
    scale: f32,
    blocks: &'a [ScaledBlock],
    a: (&'a mut [f32], usize),
    b: (&'a mut [f32], usize),
}

impl<'a> SumsOfRows<'a> {
    pub(super) fn all(sums: &'a mut Sums) -> Self {
        let (a_cols, b_cols) = (sums.a.cols(), sums.b.cols());
        let Sums { rank, scale, blocks, a, b } = sums;
        Self { rank: *rank, scale: *scale, blocks, a: (a.data_mut(), a_cols), b: (b.data_mut(), b_cols) }
    }

    pub(super) fn split(self, pieces: usize) -> (Self, Self) {
        let Self { rank, scale, blocks, a, b } = self;
        let (a_own, a_after) = a.0.split_at_mut(pieces * rank * a.1);
        let (b_own, b_after) = b.0.split_at_mut(pieces * rank * b.1);
        let part = |a_values, b_values| Self { rank, scale, blocks, a: (a_values, a.1), b: (b_values, b.1) };
        (part(a_own, b_own), part(a_after, b_after))
    }
}

impl SumsOfRows<'_> {
    /// `s·uᵀ·input` of each piece, for columns of the input; `u` and `input` are of the task's rows, the first of which is
    /// number `first`.
    pub(super) fn sum_a(
        &mut self,
        first: usize,
        pieces: impl Iterator<Item = Range<usize>>,
        columns: Range<usize>,
        u: &Middle<'_>,
        input: View<'_>,
    ) {
        for (piece, rows) in pieces.enumerate() {
            for (rows, ranks) in shares(self.blocks, first, rows, self.rank) {
                let sum = of_piece(&mut self.a, piece * self.rank + ranks.start, ranks.len(), columns.clone());
                sum_of_rows(self.scale, u.view(rows.clone()).columns(ranks), input.rows(rows), sum);
            }
        }
    }

    /// `s·tᵀ·dy` of each piece, for columns of the linear's gradient; `t` and `dy` are of the task's rows, the first of which
    /// is number `first`.
    pub(super) fn sum_b(
        &mut self,
        first: usize,
        pieces: impl Iterator<Item = Range<usize>>,
        columns: Range<usize>,
        t: View<'_>,
        dy: View<'_>,
    ) {
        for (piece, rows) in pieces.enumerate() {
            for (rows, ranks) in shares(self.blocks, first, rows, self.rank) {
                let sum = of_piece(&mut self.b, piece * self.rank + ranks.start, ranks.len(), columns.clone());
                sum_of_rows(self.scale, t.rows(rows.clone()).columns(ranks), dy.rows(rows), sum);
            }
        }
    }
}

/// Columns of `rows` rows of the sums, from row `first` on.
fn of_piece<'a>(
    (values, cols): &'a mut (&mut [f32], usize),
    first: usize,
    rows: usize,
    columns: Range<usize>,
) -> ViewMut<'a> {
    let start = first * *cols + columns.start;
    ViewMut::rows_of(&mut values[start..], rows, columns.len(), *cols)
}

/// `sum ← scale·middleᵀ·rows`, zero where there are no rows.
fn sum_of_rows(scale: f32, middle: View<'_>, rows: View<'_>, mut sum: ViewMut<'_>) {
    if rows.rows > 0 {
        return sum_by_tokens(scale, middle.transposed(), rows, sum);
    }
    (0..sum.rows).for_each(|row| sum.row_mut(row).fill(0.0));
}
