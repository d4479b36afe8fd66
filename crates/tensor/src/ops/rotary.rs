//! Rotary position embedding (Su et al. 2021), in the layout of Hugging Face's Llama: feature `i` of a head turns
//! together with feature `i + head_dim/2`.

use std::sync::Arc;

use crate::kernels::vectorised;
use crate::ops::for_each_row_block;
use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Tape, Var};

/// The angles of one batch: `[tokens, head_dim/2]` cosines and sines, shared by all layers.
#[derive(Clone, Debug)]
pub struct Rotary {
    angles: Arc<Angles>,
}

#[derive(Debug)]
struct Angles {
    cos: Matrix,
    sin: Matrix,
}

impl Rotary {
    /// Angles `positions[t]·inverse_frequencies[i]` for each token `t`; `scale` multiplies cosines and sines
    /// (1 but for scaling kinds with an attention factor).
    pub fn new(inverse_frequencies: &[f32], positions: &[usize], scale: f32) -> Self {
        // Sequences share positions: each one's angles are computed once.
        let count = positions.iter().max().map_or(0, |most| most + 1);
        let table = |function: fn(f32) -> f32| {
            let row = |position: usize| {
                inverse_frequencies.iter().map(move |frequency| scale * function(position as f32 * frequency))
            };
            let values: Vec<f32> = if count < positions.len() {
                let rows: Vec<f32> = (0..count).flat_map(row).collect();
                let cols = inverse_frequencies.len();
                positions.iter().flat_map(|position| &rows[position * cols..(position + 1) * cols]).copied().collect()
            } else {
                positions.iter().flat_map(|position| row(*position)).collect()
            };
            Matrix::from_vec(positions.len(), inverse_frequencies.len(), values)
        };
        Self { angles: Arc::new(Angles { cos: table(f32::cos), sin: table(f32::sin) }) }
    }
}

impl Rotary {
    /// Turns each head in `rows`, `cols` wide, of which the first is token `first`, by its token's angles, or `back`.
    ///
    /// # Panics
    /// If the sizes disagree with the angles.
    pub(crate) fn turn(&self, rows: &mut [f32], cols: usize, first: usize, back: bool) {
        self.angles.check(cols);
        let direction = if back { -1.0 } else { 1.0 };
        vectorised(
            #[inline(always)]
            || self.angles.turn(rows, cols, first, direction),
        );
    }
}

impl Tape {
    /// Turns each head of `x` `[tokens, heads·head_dim]` by its token's angles:
    /// `y₁ = x₁·cos − x₂·sin`, `y₂ = x₂·cos + x₁·sin`. Works in place where `x` has no other user. Backward turns back.
    ///
    /// # Panics
    /// If the sizes disagree with the angles.
    pub fn rotary(&mut self, x: Var, rotary: &Rotary) -> Var {
        let node = x.node();
        let mut y = x.into_matrix(self.workspace());
        turn(&mut y, &rotary.angles, 1.0);
        self.output(y, &[node], || RotaryBackward { x: node, angles: Arc::clone(&rotary.angles) })
    }
}

/// Rotates every head by `direction` times its angle.
fn turn(y: &mut Matrix, angles: &Angles, direction: f32) {
    let cols = y.cols();
    assert_eq!(y.rows(), angles.cos.rows(), "there is an angle for each token");
    angles.check(cols);
    for_each_row_block(
        y.data_mut(),
        cols,
        #[inline(always)]
        |first, rows| angles.turn(rows, cols, first, direction),
    );
}

impl Angles {
    fn check(&self, cols: usize) {
        assert_eq!(cols % (2 * self.cos.cols()), 0, "heads are twice as wide as there are frequencies");
    }

    /// Rotates every head in `rows`, `cols` wide, of which the first is token `first`, by `direction` times its angle.
    #[inline(always)]
    fn turn(&self, rows: &mut [f32], cols: usize, first: usize, direction: f32) {
        let half = self.cos.cols();
        for (offset, row) in rows.chunks_exact_mut(cols).enumerate() {
            let (cos, sin) = (self.cos.row(first + offset), self.sin.row(first + offset));
            for head in row.chunks_exact_mut(2 * half) {
                let (left, right) = head.split_at_mut(half);
                for (((x1, x2), cos), sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
                    let sin = direction * sin;
                    (*x1, *x2) = (*x1 * cos - *x2 * sin, *x2 * cos + *x1 * sin);
                }
            }
        }
    }
}

struct RotaryBackward {
    x: Option<NodeId>,
    angles: Arc<Angles>,
}

impl Backward for RotaryBackward {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let mut gradient = flow.owned(gradient);
        turn(&mut gradient, &self.angles, -1.0);
        flow.add(self.x, gradient);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, random};

    #[test]
    fn turns_pairs_that_lie_half_a_head_apart() {
        let quarter = std::f32::consts::FRAC_PI_2;
        let mut tape = Tape::evaluating(&crate::Workspace::new());
        let x = tape.constant(Matrix::from_vec(2, 4, vec![1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]));
        let y = tape.rotary(x, &Rotary::new(&[quarter, 0.0], &[0, 1], 1.0));
        let expected = [1.0, 2.0, 3.0, 4.0, -3.0, 2.0, 1.0, 4.0];
        assert!(y.value().data().iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-6), "{y:?}");
    }

    #[test]
    fn gradient() {
        let rotary = Rotary::new(&[1.0, 0.1, 0.01], &[0, 5, 2], 1.0);
        check(&[random(3, 12, 0)], |tape, inputs| tape.rotary(inputs[0].clone(), &rotary));
    }
}
