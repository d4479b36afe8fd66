//! Gradients of thin factors: sums over tokens, of a few rows or columns.

use rayon::prelude::*;

use super::bf16::{Product, Unit, ViewColumns};
use super::{Parallelism, View, ViewMut, vectorised};
use crate::{Matrix, Workspace};

/// Rows or columns of a factor that counts as thin.
pub(crate) const THIN: usize = 64;

/// Tokens that are summed in one piece. The pieces' sums are then added in order, so the result depends on the shape
/// alone.
const PIECE: usize = 256;

/// Whether the sum needs no packing, and is then computed in float32 in any precision; `turned` where the thin factor is
/// the right one.
pub(crate) fn is_direct(turned: bool, a: View<'_>, b: View<'_>) -> bool {
    let (left, right) = thin_first(turned, a, b);
    #[cfg(target_arch = "x86_64")]
    return super::float32::is_thin(left, right);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (left, right);
        false
    }
}

fn thin_first<'a>(turned: bool, a: View<'a>, b: View<'a>) -> (View<'a>, View<'a>) {
    if turned { (b.transposed(), a.transposed()) } else { (a, b) }
}

/// `sum ← alpha·left·right` in float32 on the calling thread, for a thin `left` `[rows, tokens]` that lies token by token and
/// `right` `[tokens, cols]`, row by row; tokens are summed in order.
pub(crate) fn sum_by_tokens(alpha: f32, left: View<'_>, right: View<'_>, mut sum: ViewMut<'_>) {
    #[cfg(target_arch = "x86_64")]
    if super::float32::Packed::detect().is_some() {
        return super::float32::thin_sum(alpha, left, right, sum);
    }
    assert!(left.row_stride == 1 && right.col_stride == 1 && left.cols == right.rows, "the factors lie by tokens");
    vectorised(
        #[inline(always)]
        || {
            for row in 0..left.rows {
                let sum = sum.row_mut(row);
                sum.fill(0.0);
                for token in 0..left.cols {
                    let factor = left.data[token * left.col_stride + row];
                    let values = &right.data[token * right.row_stride..][..right.cols];
                    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += factor * value);
                }
                sum.iter_mut().for_each(|sum| *sum *= alpha);
            }
        },
    );
}

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
    let (left, right) = thin_first(turned, a, b);
    let direct = is_direct(turned, a, b);
    let (rows, cols, tokens) = (left.rows, right.cols, left.cols);
    let pieces = tokens.div_ceil(PIECE);
    let mut sums = Matrix::uninitialised(workspace, pieces.max(1) * rows, cols);
    if pieces == 0 {
        sums.data_mut().fill(0.0);
    }
    sums.data_mut().par_chunks_exact_mut(rows * cols).take(pieces).enumerate().for_each(|(piece, sum)| {
        let tokens = piece * PIECE..tokens.min((piece + 1) * PIECE);
        let (left, right) = (left.columns(tokens.clone()), right.rows(tokens));
        let sum = ViewMut::rows_of(sum, rows, cols, cols);
        if direct {
            sum_by_tokens(alpha, left, right, sum);
        } else {
            let part = Product { a: left, scale: alpha, b: &ViewColumns(right), low_rank: None };
            unit.product(sum, 0.0, part, Parallelism::Single);
        }
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
