//! Gradients of thin factors: sums over tokens, of a few rows or columns.

use rayon::prelude::*;

use super::Unit;
use super::operand::ViewColumns;
use super::product::{Product, product};
use crate::kernels::{Parallelism, View, ViewMut};
use crate::{Matrix, Workspace};

/// Rows or columns of a factor that counts as thin.
pub(crate) const THIN: usize = 64;

/// Tokens that are summed in one piece. The pieces' sums are then added in order, so the result depends on the shape
/// alone.
const PIECE: usize = 256;

/// `C ← beta·C + alpha·A·B` where `C` has few rows or few columns and the inner dimension is long: each task reads whole
/// rows of both factors, as they lie in memory.
pub(crate) fn thin_gradient(
    unit: Unit,
    workspace: &Workspace,
    mut c: ViewMut<'_>,
    beta: f32,
    alpha: f32,
    a: View<'_>,
    b: View<'_>,
) {
    let turned = c.rows > c.cols;
    // The thin factor is the left one.
    let (left, right) = if turned { (b.transposed(), a.transposed()) } else { (a, b) };
    let (rows, cols, tokens) = (left.rows, right.cols, left.cols);
    let pieces = tokens.div_ceil(PIECE);
    let mut sums = Matrix::uninitialised(workspace, pieces.max(1) * rows, cols);
    if pieces == 0 {
        sums.data_mut().fill(0.0);
    }
    sums.data_mut().par_chunks_exact_mut(rows * cols).take(pieces).enumerate().for_each(|(piece, sum)| {
        let tokens = piece * PIECE..tokens.min((piece + 1) * PIECE);
        let right = ViewColumns(right.rows(tokens.clone()));
        let part = Product { a: left.columns(tokens), scale: alpha, b: &right, low_rank: None };
        product(unit, ViewMut::rows_of(sum, rows, cols, cols), false, part, Parallelism::Single);
    });
    let (total, others) = sums.data_mut().split_at_mut(rows * cols);
    for other in others.chunks_exact(rows * cols) {
        total.iter_mut().zip(other).for_each(|(total, value)| *total += value);
    }
    for row in 0..c.rows {
        for (col, out) in c.row_mut(row).iter_mut().enumerate() {
            let value = if turned { total[col * cols + row] } else { total[row * cols + col] };
            *out = if beta == 0.0 { value } else { *out + value };
        }
    }
}
