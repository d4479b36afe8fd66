//! Layer norm: `y = (x − mean(x)) / √(var(x) + ε) · w + b`.

use std::sync::Arc;

use rayon::prelude::*;

use crate::kernels::vectorised;
use crate::ops::{for_each_row_block, rows_per_task};
use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Tape, Var};

impl Tape {
    /// `y = n·weight + bias`, `n = (x − mean(x))·r`, `r = 1/√(var(x) + ε)`, for each row of `x` `[tokens, features]`, with
    /// the biased variance; `weight` and `bias` are `[1, features]` (Ba et al. 2016, eq. 3). With `g = dy·w`:
    /// `dx = r·(g − mean(g) − n·mean(g·n))`, `dw = Σ dy·n`, `db = Σ dy`.
    ///
    /// # Panics
    /// If the widths differ.
    pub fn layer_norm(&mut self, x: &Var, weight: &Var, bias: &Var, epsilon: f32) -> Var {
        let cols = x.cols();
        assert_eq!(weight.value().shape(), (1, cols), "a norm's weight is as wide as its input");
        assert_eq!(bias.value().shape(), (1, cols), "a norm's bias is as wide as its input");
        let mut y = Matrix::uninitialised(self.workspace(), x.rows(), cols);
        let (scale, shift) = (weight.value().data(), bias.value().data());
        for_each_row_block(
            y.data_mut(),
            cols,
            #[inline(always)]
            |first, rows| {
                for (offset, out) in rows.chunks_exact_mut(cols).enumerate() {
                    let input = x.value().row(first + offset);
                    let (mean, factor) = statistics(input, epsilon);
                    for (((out, x), w), b) in out.iter_mut().zip(input).zip(scale).zip(shift) {
                        *out = (x - mean) * factor * w + b;
                    }
                }
            },
        );
        let nodes = [x.node(), weight.node(), bias.node()];
        self.output(y, &nodes, || LayerNorm { x: x.shared(), weight: weight.shared(), epsilon, nodes })
    }
}

/// The mean of a row, and `1/√(var + ε)`.
#[inline(always)]
fn statistics(x: &[f32], epsilon: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = in_lanes(x, x, |x, _| x) / count;
    let variance = in_lanes(x, x, |x, _| (x - mean) * (x - mean)) / count;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

/// `Σ term(a, b)` in sixteen lanes, so that it vectorises, in an order that never changes.
#[inline(always)]
fn in_lanes(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (a_chunks, b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| term(*a, *b)).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..16 {
            lanes[lane] += term(a[lane], b[lane]);
        }
    }
    lanes.iter().sum::<f32>() + tail
}

struct LayerNorm {
    x: Arc<Matrix>,
    weight: Arc<Matrix>,
    epsilon: f32,
    /// Of the input, the weight and the bias.
    nodes: [Option<NodeId>; 3],
}

impl Backward for LayerNorm {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let cols = gradient.cols();
        let [x_node, weight_node, bias_node] = self.nodes;
        if weight_node.is_some() || bias_node.is_some() {
            let (dw, db) = self.parameter_gradients(&gradient);
            flow.add(weight_node, dw);
            flow.add(bias_node, db);
        }
        let weight = self.weight.data();
        flow.accumulate(x_node, gradient.shape(), |_, dx, beta| {
            for_each_row_block(
                dx.data_mut(),
                cols,
                #[inline(always)]
                |first, rows| {
                    let mut scaled = vec![0.0; cols];
                    for (offset, out) in rows.chunks_exact_mut(cols).enumerate() {
                        let (x, dy) = (self.x.row(first + offset), gradient.row(first + offset));
                        let (mean, factor) = statistics(x, self.epsilon);
                        scaled.iter_mut().zip(dy).zip(weight).for_each(|((g, dy), w)| *g = dy * w);
                        let mean_g = in_lanes(&scaled, x, |g, _| g) / cols as f32;
                        let mean_gn = in_lanes(&scaled, x, |g, x| g * (x - mean)) * factor / cols as f32;
                        let keep = |value: f32| if beta == 0.0 { 0.0 } else { value };
                        for ((out, x), g) in out.iter_mut().zip(x).zip(&scaled) {
                            *out = keep(*out) + factor * (g - mean_g - (x - mean) * factor * mean_gn);
                        }
                    }
                },
            );
        });
    }
}

impl LayerNorm {
    /// `Σ dy·n` and `Σ dy` over rows: partial sums a block of rows, added up in order.
    fn parameter_gradients(&self, gradient: &Matrix) -> (Matrix, Matrix) {
        let cols = gradient.cols();
        let block = rows_per_task(cols) * cols;
        let partial: Vec<(Vec<f32>, Vec<f32>)> = (gradient.data().par_chunks(block), self.x.data().par_chunks(block))
            .into_par_iter()
            .map(|(dy, x)| {
                let (mut dw, mut db) = (vec![0.0; cols], vec![0.0; cols]);
                vectorised(
                    #[inline(always)]
                    || {
                        for (dy, x) in dy.chunks_exact(cols).zip(x.chunks_exact(cols)) {
                            let (mean, factor) = statistics(x, self.epsilon);
                            dw.iter_mut().zip(dy).zip(x).for_each(|((sum, dy), x)| *sum += dy * ((x - mean) * factor));
                            db.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
                        }
                    },
                );
                (dw, db)
            })
            .collect();
        let (mut dw, mut db) = (Matrix::zeros(1, cols), Matrix::zeros(1, cols));
        for (block_dw, block_db) in partial {
            dw.data_mut().iter_mut().zip(block_dw).for_each(|(total, value)| *total += value);
            db.data_mut().iter_mut().zip(block_db).for_each(|(total, value)| *total += value);
        }
        (dw, db)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Workspace;
    use crate::ops::finite_differences::{check, random};

    #[test]
    fn equals_its_definition() {
        let mut tape = Tape::evaluating(&Workspace::new());
        let x = tape.constant(Matrix::from_vec(1, 4, vec![1.0, 3.0, 5.0, 7.0]));
        let weight = tape.constant(Matrix::from_vec(1, 4, vec![1.0, 2.0, 3.0, 4.0]));
        let bias = tape.constant(Matrix::from_vec(1, 4, vec![0.5, 0.0, -0.5, 1.0]));
        let y = tape.layer_norm(&x, &weight, &bias, 0.25);
        let root = 5.25f32.sqrt();
        let expected = [-3.0 / root + 0.5, -2.0 / root, 3.0 / root - 0.5, 12.0 / root + 1.0];
        assert!(y.value().data().iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-6), "{y:?}");
    }

    #[test]
    fn a_large_mean_leaves_the_result_exact() {
        let mut tape = Tape::evaluating(&Workspace::new());
        let x = tape.constant(Matrix::from_vec(1, 4, vec![4096.0, 4098.0, 4100.0, 4102.0]));
        let (weight, bias) = (tape.constant(Matrix::from_vec(1, 4, vec![1.0; 4])), tape.constant(Matrix::zeros(1, 4)));
        let y = tape.layer_norm(&x, &weight, &bias, 0.0);
        let root = 5.0f32.sqrt();
        let expected = [-3.0 / root, -1.0 / root, 1.0 / root, 3.0 / root];
        assert!(y.value().data().iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-6), "{y:?}");
    }

    #[test]
    fn gradients() {
        let inputs = [random(5, 19, 0), random(1, 19, 1), random(1, 19, 2)];
        check(&inputs, |tape, inputs| tape.layer_norm(&inputs[0], &inputs[1], &inputs[2], 1e-5));
    }
}
