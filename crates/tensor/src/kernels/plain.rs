//! The definition of a matrix product.

use super::{Gemm, Parallelism, View, ViewMut};

#[derive(Debug)]
pub(super) struct Plain;

impl Gemm for Plain {
    fn gemm(&self, c: ViewMut<'_>, beta: f32, alpha: f32, a: View<'_>, b: View<'_>, _: Parallelism) {
        for i in 0..c.rows {
            for j in 0..c.cols {
                let sum: f64 = (0..a.cols)
                    .map(|k| {
                        let left = a.data[i * a.row_stride + k * a.col_stride];
                        let right = b.data[k * b.row_stride + j * b.col_stride];
                        f64::from(left) * f64::from(right)
                    })
                    .sum();
                let out = &mut c.data[i * c.row_stride + j];
                let kept = if beta == 0.0 { 0.0 } else { beta * *out };
                *out = kept + (f64::from(alpha) * sum) as f32;
            }
        }
    }
}
