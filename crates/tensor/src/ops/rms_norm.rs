//! RMS norm: `y = x / √(mean(x²) + ε) · w`, over whole rows or over each head of a row.

use std::sync::Arc;

use rayon::prelude::*;

use crate::kernels::vectorised;
use crate::ops::{for_each_row_block, rows_per_task};
use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Tape, Var};

impl Tape {
    /// `y = x / √(mean(x²) + ε) · weight` for each row of `x` `[tokens, features]`; `weight` is `[1, features]`
    /// (Zhang and Sennrich 2019, eq. 4). A weight `[1, features/heads]` norms each head of a row on its own. With `g = dy·w` and `n = x·r`, `r = 1/√(mean(x²) + ε)`:
    /// `dx = r·(g − n·mean(g·n))`, `dw = Σ dy·n`.
    ///
    /// # Panics
    /// If the width of `x` is no multiple of that of `weight`.
    pub fn rms_norm(&mut self, x: &Var, weight: &Var, epsilon: f32) -> Var {
        let cols = weight.cols();
        let fits = weight.rows() == 1 && x.cols().is_multiple_of(cols);
        assert!(fits, "a norm [1, {cols}] is as wide as its input or each of its heads, {} features", x.cols());
        let mut y = Matrix::uninitialised(self.workspace(), x.rows(), x.cols());
        let scale = weight.value().data();
        for_each_row_block(
            y.data_mut(),
            cols,
            #[inline(always)]
            |first, rows| {
                let inputs = x.value().data()[first * cols..].chunks_exact(cols);
                for (out, input) in rows.chunks_exact_mut(cols).zip(inputs) {
                    let factor = inverse_rms(input, epsilon);
                    out.iter_mut().zip(input).zip(scale).for_each(|((out, x), w)| *out = w * (x * factor));
                }
            },
        );
        let (x_node, weight_node) = (x.node(), weight.node());
        self.output(y, &[x_node, weight_node], || RmsNorm {
            x: x.shared(),
            weight: weight.shared(),
            epsilon,
            x_node,
            weight_node,
        })
    }
}

/// `1/√(mean(x²) + ε)`, summed in lanes so that it vectorises, in an order that never changes.
#[inline(always)]
fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + epsilon).sqrt()
}

/// `Σ a·b` in sixteen lanes.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (a_chunks, b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..16 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum::<f32>() + tail
}

struct RmsNorm {
    x: Arc<Matrix>,
    weight: Arc<Matrix>,
    epsilon: f32,
    x_node: Option<NodeId>,
    weight_node: Option<NodeId>,
}

impl Backward for RmsNorm {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let cols = self.weight.cols();
        let weight = self.weight.data();
        if self.weight_node.is_some() {
            let dw = self.weight_gradient(&gradient);
            flow.add(self.weight_node, dw);
        }
        flow.accumulate(self.x_node, gradient.shape(), |_, dx, beta| {
            for_each_row_block(
                dx.data_mut(),
                cols,
                #[inline(always)]
                |first, rows| {
                    let mut scaled = vec![0.0; cols];
                    let inputs = self.x.data()[first * cols..].chunks_exact(cols);
                    let gradients = gradient.data()[first * cols..].chunks_exact(cols);
                    for ((out, x), dy) in rows.chunks_exact_mut(cols).zip(inputs).zip(gradients) {
                        let factor = inverse_rms(x, self.epsilon);
                        scaled.iter_mut().zip(dy).zip(weight).for_each(|((g, dy), w)| *g = dy * w);
                        let mean = dot(&scaled, x) * factor / cols as f32;
                        let keep = |value: f32| if beta == 0.0 { 0.0 } else { value };
                        for ((out, x), g) in out.iter_mut().zip(x).zip(&scaled) {
                            *out = keep(*out) + factor * (g - x * factor * mean);
                        }
                    }
                },
            );
        });
    }
}

impl RmsNorm {
    /// `Σ dy·n` over rows: a partial sum a block of rows, added up in order.
    fn weight_gradient(&self, gradient: &Matrix) -> Matrix {
        let cols = self.weight.cols();
        let block = rows_per_task(cols) * cols;
        let partial: Vec<Vec<f32>> = (gradient.data().par_chunks(block), self.x.data().par_chunks(block))
            .into_par_iter()
            .map(|(dy, x)| {
                let mut sum = vec![0.0; cols];
                vectorised(
                    #[inline(always)]
                    || {
                        for (dy, x) in dy.chunks_exact(cols).zip(x.chunks_exact(cols)) {
                            let factor = inverse_rms(x, self.epsilon);
                            sum.iter_mut().zip(dy).zip(x).for_each(|((sum, dy), x)| *sum += dy * (x * factor));
                        }
                    },
                );
                sum
            })
            .collect();
        let mut dw = Matrix::zeros(1, cols);
        for sum in partial {
            dw.data_mut().iter_mut().zip(sum).for_each(|(total, value)| *total += value);
        }
        dw
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, random};

    #[test]
    fn equals_its_definition() {
        let mut tape = Tape::evaluating(&crate::Workspace::new());
        let x = tape.constant(Matrix::from_vec(1, 2, vec![3.0, 4.0]));
        let weight = tape.constant(Matrix::from_vec(1, 2, vec![1.0, 2.0]));
        let y = tape.rms_norm(&x, &weight, 0.0);
        let root = 12.5f32.sqrt();
        assert!((y.value().data()[0] - 3.0 / root).abs() < 1e-6);
        assert!((y.value().data()[1] - 8.0 / root).abs() < 1e-6);
    }

    #[test]
    fn gradients() {
        check(&[random(5, 19, 0), random(1, 19, 1)], |tape, inputs| tape.rms_norm(&inputs[0], &inputs[1], 1e-5));
        check(&[random(5, 21, 0), random(1, 7, 1)], |tape, inputs| tape.rms_norm(&inputs[0], &inputs[1], 1e-5));
    }

    #[test]
    fn each_head_of_a_row_is_a_row_of_its_own() {
        let mut tape = Tape::evaluating(&crate::Workspace::new());
        let x = random(3, 8, 0);
        let weight = tape.constant(random(1, 4, 1));
        let heads = tape.constant(Matrix::from_vec(6, 4, x.to_vec()));
        let x = tape.constant(x);
        let whole = tape.rms_norm(&x, &weight, 1e-6);
        let apart = tape.rms_norm(&heads, &weight, 1e-6);
        assert_eq!((whole.value().shape(), whole.value().data()), ((3, 8), apart.value().data()));
    }
}
