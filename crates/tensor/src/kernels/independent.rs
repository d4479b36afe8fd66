//! float32 products whose rows don't depend on how many there are: what is served together must give the same bits as
//! alone, and a kernel that is chosen by the number of rows sums in an order that depends on it.

use super::{Factors, Gemm, Parallelism, View, ViewMut};

/// Rows that go through the kernel at one time, always as many.
const ROWS: usize = 16;

/// `C ← beta·C + Σ alpha·A·B`, block of rows by block of rows; the last one is filled with zeros.
pub(super) fn products(gemm: &dyn Gemm, mut c: ViewMut<'_>, beta: f32, sum: &[Factors<'_>], parallelism: Parallelism) {
    for (number, factors) in sum.iter().enumerate() {
        product(gemm, c.reborrow(), if number == 0 { beta } else { 1.0 }, *factors, parallelism);
    }
}

fn product(gemm: &dyn Gemm, mut c: ViewMut<'_>, beta: f32, factors: Factors<'_>, parallelism: Parallelism) {
    let Factors { alpha, a, b } = factors;
    let whole = c.rows / ROWS * ROWS;
    for start in (0..whole).step_by(ROWS) {
        let block = ViewMut::rows_of(&mut c.data[start * c.row_stride..], ROWS, c.cols, c.row_stride);
        gemm.gemm(block, beta, &[Factors { a: a.rows(start..start + ROWS), ..factors }], parallelism);
    }
    let rest = c.rows - whole;
    if rest == 0 {
        return;
    }
    let mut left = vec![0.0; ROWS * a.cols];
    for row in 0..rest {
        for col in 0..a.cols {
            left[row * a.cols + col] = a.data[(whole + row) * a.row_stride + col * a.col_stride];
        }
    }
    let mut result = vec![0.0; ROWS * c.cols];
    if beta != 0.0 {
        for row in 0..rest {
            result[row * c.cols..][..c.cols].copy_from_slice(c.row_mut(whole + row));
        }
    }
    let target = ViewMut::rows_of(&mut result, ROWS, c.cols, c.cols);
    let filled = Factors { alpha, a: View::rows_of(&left, ROWS, a.cols, a.cols), b };
    gemm.gemm(target, beta, &[filled], parallelism);
    for row in 0..rest {
        let cols = c.cols;
        c.row_mut(whole + row).copy_from_slice(&result[row * cols..][..cols]);
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::finite_differences::random;
    use crate::{FrozenWeight, Kernels, Matrix, Precision, Workspace};

    /// The rows of a product, each of which must be the same bits alone, among few and among many.
    #[test]
    fn a_row_is_the_same_whatever_the_number_of_rows() {
        for precision in [Precision::Float32, Precision::Bf16] {
            let kernels = Kernels::detect().with_precision(precision).with_independent_rows();
            let workspace = Workspace::with_kernels(kernels);
            for (out, input) in [(1, 5), (70, 600), (300, 64), (17, 1)] {
                for weight in [FrozenWeight::float32(random(out, input, 0)), FrozenWeight::bf16(&random(out, input, 0))]
                {
                    let x = random(131, input, 1);
                    let whole = weight.product(&workspace, &x);
                    for (start, rows) in
                        [(0, 1), (130, 1), (77, 1), (3, 2), (5, 15), (9, 16), (40, 17), (1, 64), (2, 129)]
                    {
                        let part = x.data()[start * input..(start + rows) * input].to_vec();
                        let found = weight.product(&workspace, &Matrix::from_vec(rows, input, part));
                        let expected = &whole.data()[start * out..(start + rows) * out];
                        assert!(found.data() == expected, "[{out}, {input}] {precision:?}, rows {start}..+{rows}");
                    }
                }
            }
        }
    }
}
