//! The definition of a matrix product.

use super::{Factors, Gemm, Parallelism, ViewMut};

#[derive(Debug)]
pub(super) struct Plain;

impl Gemm for Plain {
    fn has_independent_rows(&self) -> bool {
        true
    }

    fn gemm(&self, c: ViewMut<'_>, beta: f32, sum: &[Factors<'_>], _: Parallelism) {
        for i in 0..c.rows {
            for j in 0..c.cols {
                let product = |Factors { alpha, a, b }: &Factors<'_>| -> f64 {
                    let terms = (0..a.cols).map(|k| {
                        let left = a.data[i * a.row_stride + k * a.col_stride];
                        let right = b.data[k * b.row_stride + j * b.col_stride];
                        f64::from(left) * f64::from(right)
                    });
                    f64::from(*alpha) * terms.sum::<f64>()
                };
                let out = &mut c.data[i * c.row_stride + j];
                let kept = if beta == 0.0 { 0.0 } else { beta * *out };
                *out = kept + sum.iter().map(product).sum::<f64>() as f32;
            }
        }
    }
}

/// Calls `check` with sums of a product `rows × depth × cols` and one of depth 3, however the first one's factors lie, for each
/// `beta`: the sum, `beta`, what the result holds before, and what the definition makes of it.
#[cfg(all(test, target_arch = "x86_64"))]
pub(super) fn for_each_layout(
    shapes: &[(usize, usize, usize)],
    check: impl Fn(&[Factors<'_>], f32, &crate::Matrix, &crate::Matrix),
) {
    use super::View;
    use crate::Matrix;
    use crate::ops::finite_differences::random;

    fn lying(matrix: &Matrix, turned: bool) -> View<'_> {
        if turned { View::of(matrix).transposed() } else { View::of(matrix) }
    }
    for &(rows, depth, cols) in shapes {
        for (turned_a, turned_b) in [(false, false), (false, true), (true, false), (true, true)] {
            let shape = |turned: bool, rows, cols| if turned { (cols, rows) } else { (rows, cols) };
            let (a_rows, a_cols) = shape(turned_a, rows, depth);
            let (b_rows, b_cols) = shape(turned_b, depth, cols);
            let (a, b) = (random(a_rows, a_cols, 0), random(b_rows, b_cols, 1));
            let (low_a, low_b) = (random(rows, 3, 2), random(3, cols, 3));
            let sum = [
                Factors { alpha: 0.5, a: lying(&a, turned_a), b: lying(&b, turned_b) },
                Factors { alpha: 2.0, a: View::of(&low_a), b: View::of(&low_b) },
            ];
            for beta in [0.0, 1.0] {
                let factor = if beta == 0.0 { f32::NAN } else { 1.0 };
                let mut start = random(rows, cols, 4);
                start.data_mut().iter_mut().for_each(|value| *value *= factor);
                let mut expected = start.clone();
                Plain.gemm(ViewMut::of(&mut expected), beta, &sum, Parallelism::Single);
                check(&sum, beta, &start, &expected);
            }
        }
    }
}
