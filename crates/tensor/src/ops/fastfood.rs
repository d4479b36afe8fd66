//! Fastfood: a random projection that takes no memory (Le, Sarlós and Smola 2013; Li et al. 2018, section 7).
//!
//! ```text
//! P = 1/(√(n·ΣG²)·√(D/n)) · [M₁; M₂; …],   M_k = H·G_k·Π_k·H·B_k,   n = d rounded up to a power of two
//! ```
//!
//! `H` is the Walsh–Hadamard matrix, `B` a diagonal of random signs, `Π` a random permutation, `G` a diagonal of standard
//! normal values. `D` values are as many rows of the stacked blocks. Every block is drawn again from its seed whenever it is
//! needed. `E‖P·θ‖ = ‖θ‖` over all `D` values.

use std::sync::Arc;

use rayon::prelude::*;

use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Seed, Tape, Var};

/// A projection of `d` values to as many as a tensor has.
#[derive(Clone, Debug, PartialEq)]
pub struct Fastfood {
    /// What the blocks are drawn from.
    pub seed: Seed,
    /// Names the tensor among those of one seed.
    pub name: String,
    /// `d`.
    pub dimension: usize,
    /// Values of this tensor.
    pub outputs: usize,
    /// `D`: values of all tensors over which the length is kept.
    pub total: usize,
}

/// Blocks whose adjoints are added up before they meet the others'.
const BLOCKS: usize = 64;

/// The random parts of one block.
struct Block {
    signs: Vec<f32>,
    permutation: Vec<u32>,
    normal: Vec<f32>,
    /// `1/(√(n·ΣG²)·√(D/n))`.
    scale: f32,
}

impl Fastfood {
    /// `n`.
    fn width(&self) -> usize {
        self.dimension.next_power_of_two()
    }

    fn block(&self, number: usize) -> Block {
        let width = self.width();
        let mut stream = self.seed.stream(&self.name, number as u64);
        let mut signs = Vec::with_capacity(width);
        while signs.len() < width {
            let bits = stream.next_u64();
            let more = (width - signs.len()).min(64);
            signs.extend((0..more).map(|bit| if bits >> bit & 1 == 0 { 1.0 } else { -1.0 }));
        }
        let mut permutation: Vec<u32> = (0..width as u32).collect();
        stream.shuffle(&mut permutation);
        let normal: Vec<f32> = (0..width).map(|_| stream.normal()).collect();
        let squares: f64 = normal.iter().map(|value| f64::from(*value).powi(2)).sum();
        let scale = 1.0 / ((width as f64 * squares).sqrt() * (self.total as f64 / width as f64).sqrt());
        Block { signs, permutation, normal, scale: scale as f32 }
    }

    /// Writes the block's part of `P·θ` to `out`, which may be shorter than a block.
    fn forward(&self, number: usize, theta: &[f32], out: &mut [f32]) {
        let block = self.block(number);
        let mut values = vec![0.0; self.width()];
        values.iter_mut().zip(theta).zip(&block.signs).for_each(|((value, theta), sign)| *value = theta * sign);
        walsh_hadamard(&mut values);
        let mut mixed: Vec<f32> =
            block.permutation.iter().zip(&block.normal).map(|(from, normal)| values[*from as usize] * normal).collect();
        walsh_hadamard(&mut mixed);
        out.iter_mut().zip(mixed).for_each(|(out, value)| *out = value * block.scale);
    }

    /// Adds the block's part of `Pᵀ·gradient` to `sum`: `B·H·Πᵀ·G·H`.
    fn adjoint(&self, number: usize, gradient: &[f32], sum: &mut [f64]) {
        let block = self.block(number);
        let mut values = vec![0.0; self.width()];
        values.iter_mut().zip(gradient).for_each(|(value, gradient)| *value = gradient * block.scale);
        walsh_hadamard(&mut values);
        let mut mixed = vec![0.0; self.width()];
        for ((to, normal), value) in block.permutation.iter().zip(&block.normal).zip(values) {
            mixed[*to as usize] = value * normal;
        }
        walsh_hadamard(&mut mixed);
        let parts = mixed.into_iter().zip(&block.signs);
        sum.iter_mut().zip(parts).for_each(|(sum, (value, sign))| *sum += f64::from(value * sign));
    }
}

/// `values ← H·values` with the unnormalised Walsh–Hadamard matrix in Sylvester's order.
///
/// # Panics
/// If the length is not a power of two.
pub(crate) fn walsh_hadamard(values: &mut [f32]) {
    assert!(values.len().is_power_of_two(), "the Walsh–Hadamard transform needs a power of two");
    let mut half = 1;
    while half < values.len() {
        for pair in values.chunks_exact_mut(2 * half) {
            let (left, right) = pair.split_at_mut(half);
            for (left, right) in left.iter_mut().zip(right) {
                (*left, *right) = (*left + *right, *left - *right);
            }
        }
        half *= 2;
    }
}

impl Tape {
    /// `P·θ` `[1, outputs]` for `theta` `[1, d]`. Backward: the true adjoint `Pᵀ`.
    ///
    /// # Panics
    /// If `theta` has not `d` values.
    pub fn fastfood(&mut self, theta: &Var, projection: &Fastfood) -> Var {
        assert_eq!(theta.value().shape(), (1, projection.dimension), "θ has d values");
        let mut y = Matrix::uninitialised(self.workspace(), 1, projection.outputs);
        let values = theta.value().data();
        let blocks = y.data_mut().par_chunks_mut(projection.width()).enumerate();
        blocks.for_each(|(number, out)| projection.forward(number, values, out));
        let node = theta.node();
        self.output(y, &[node], || FastfoodBackward { node, projection: projection.clone() })
    }
}

struct FastfoodBackward {
    node: Option<NodeId>,
    projection: Fastfood,
}

impl Backward for FastfoodBackward {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let (width, dimension) = (self.projection.width(), self.projection.dimension);
        // Sums of a fixed number of blocks, added in order, so that the number of threads changes no bit.
        let parts: Vec<Vec<f64>> = gradient
            .data()
            .par_chunks(BLOCKS * width)
            .enumerate()
            .map(|(first, gradients)| {
                let mut sum = vec![0.0; dimension];
                for (place, gradient) in gradients.chunks(width).enumerate() {
                    self.projection.adjoint(first * BLOCKS + place, gradient, &mut sum);
                }
                sum
            })
            .collect();
        let mut sum = vec![0.0; dimension];
        for part in parts {
            sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        }
        flow.add(self.node, Matrix::from_vec(1, dimension, sum.into_iter().map(|value| value as f32).collect()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Workspace;
    use crate::ops::finite_differences::{check, random};

    fn projection(dimension: usize, outputs: usize, seed: u64) -> Fastfood {
        Fastfood { seed: Seed(seed), name: "w".into(), dimension, outputs, total: outputs }
    }

    fn project(projection: &Fastfood, theta: Matrix) -> Vec<f32> {
        let mut tape = Tape::evaluating(&Workspace::new());
        let theta = tape.constant(theta);
        tape.fastfood(&theta, projection).value().to_vec()
    }

    #[test]
    fn the_transform_is_sylvesters_matrix_and_its_own_inverse() {
        for n in [1usize, 2, 4, 16] {
            for column in 0..n {
                let mut values = vec![0.0; n];
                values[column] = 1.0;
                walsh_hadamard(&mut values);
                for (row, value) in values.iter().enumerate() {
                    assert_eq!(*value, if (row & column).count_ones() % 2 == 0 { 1.0 } else { -1.0 });
                }
                walsh_hadamard(&mut values);
                values.iter().enumerate().for_each(|(row, value)| {
                    assert_eq!(*value, if row == column { n as f32 } else { 0.0 });
                });
            }
        }
    }

    #[test]
    fn gradient_is_the_true_adjoint() {
        check(&[random(1, 5, 0)], |tape, inputs| tape.fastfood(&inputs[0], &projection(5, 21, 1)));
        check(&[random(1, 8, 0)], |tape, inputs| tape.fastfood(&inputs[0], &projection(8, 3, 1)));
    }

    #[test]
    fn lengths_are_kept_on_average() {
        let theta = random(1, 20, 3);
        let square = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
        let expected = square(theta.data());
        let mean =
            (0..200).map(|seed| square(&project(&projection(20, 500, seed), theta.clone()))).sum::<f64>() / 200.0;
        assert!((mean / expected - 1.0).abs() < 0.05, "{mean} and {expected}");
    }

    #[test]
    fn the_same_seed_is_the_same_projection() {
        let theta = random(1, 6, 3);
        let draw = |seed| project(&projection(6, 40, seed), theta.clone());
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
