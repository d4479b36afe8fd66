//! The definition of a matrix product.

use super::{Factors, Gemm, Parallelism, ViewMut};

#[derive(Debug)]
pub(super) struct Plain;

impl Gemm for Plain {
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
