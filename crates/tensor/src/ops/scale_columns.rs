//! Scaling of columns by a vector.

use std::ops::Range;
use std::sync::Arc;

use crate::ops::{for_each_row_block, rows_per_task};
use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Tape, Var};

impl Tape {
    /// `x` with its rows `rows` scaled column by column: `y[i, j] = x[i, j]·scale[j]`, `scale` `[1, columns]`. Works in place
    /// where `x` has no other user and `scale` is constant. Backward: `dx = dy·scale`, `dscale = Σ dy·x` over the rows.
    ///
    /// # Panics
    /// If the widths differ.
    pub fn scale_columns(&mut self, x: Var, rows: Range<usize>, scale: &Var) -> Var {
        assert_eq!(scale.value().shape(), (1, x.cols()), "a scale is as wide as what it scales");
        let (x_node, scale_node) = (x.node(), scale.node());
        let kept = scale.needs_gradient().then(|| x.shared());
        let mut y = x.into_matrix(self.workspace());
        scale_rows_of(&mut y, &rows, scale.value());
        let factor = scale.shared();
        self.output(y, &[x_node, scale_node], || ScaleColumns { x: kept, scale: factor, x_node, scale_node, rows })
    }

    /// Each row of `x` times one number: `y[i, j] = x[i, j]·scale[i]`, `scale` `[1, rows]`.
    ///
    /// # Panics
    /// If there is not one number a row.
    pub fn scale_rows(&mut self, x: &Var, scale: &Var) -> Var {
        let transposed = self.transpose(x);
        let scaled = self.scale_columns(transposed, 0..x.cols(), scale);
        self.transpose(&scaled)
    }
}

/// Multiplies the rows `rows` of `y` by `scale`, column by column.
fn scale_rows_of(y: &mut Matrix, rows: &Range<usize>, scale: &Matrix) {
    let cols = y.cols();
    for_each_row_block(
        &mut y.data_mut()[rows.start * cols..rows.end * cols],
        cols,
        #[inline(always)]
        |_, rows| {
            for row in rows.chunks_exact_mut(cols) {
                row.iter_mut().zip(scale.data()).for_each(|(value, factor)| *value *= factor);
            }
        },
    );
}

struct ScaleColumns {
    /// Kept only where the scale needs a gradient.
    x: Option<Arc<Matrix>>,
    scale: Arc<Matrix>,
    x_node: Option<NodeId>,
    scale_node: Option<NodeId>,
    rows: Range<usize>,
}

impl Backward for ScaleColumns {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let mut gradient = flow.owned(gradient);
        if let Some(x) = &self.x {
            let cols = gradient.cols();
            // Blocks of rows in a fixed order, so that the sum does not depend on the number of threads.
            let block = rows_per_task(cols);
            let mut sum = vec![0.0f64; cols];
            for first in self.rows.clone().step_by(block.max(1)) {
                let mut part = vec![0.0f32; cols];
                for row in first..self.rows.end.min(first + block) {
                    let products = gradient.row(row).iter().zip(x.row(row));
                    part.iter_mut().zip(products).for_each(|(sum, (dy, x))| *sum += dy * x);
                }
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += f64::from(part));
            }
            let sum = sum.into_iter().map(|value| value as f32).collect();
            flow.add(self.scale_node, Matrix::from_vec(1, cols, sum));
        }
        if self.x_node.is_some() {
            scale_rows_of(&mut gradient, &self.rows, &self.scale);
            flow.add(self.x_node, gradient);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Workspace;
    use crate::ops::finite_differences::{check, random};

    #[test]
    fn gradients_of_value_and_scale() {
        check(&[random(5, 3, 0), random(1, 3, 1)], |tape, inputs| {
            tape.scale_columns(inputs[0].clone(), 1..4, &inputs[1])
        });
        check(&[random(5, 3, 0), random(1, 5, 1)], |tape, inputs| tape.scale_rows(&inputs[0], &inputs[1]));
        let constant = random(1, 3, 2);
        check(&[random(5, 3, 0)], |tape, inputs| {
            let scale = tape.constant(constant.clone());
            tape.scale_columns(inputs[0].clone(), 0..5, &scale)
        });
    }

    #[test]
    fn scales_the_named_rows_only() {
        let mut tape = Tape::evaluating(&Workspace::new());
        let x = tape.constant(Matrix::from_vec(2, 2, vec![1.0, 2.0, 3.0, 4.0]));
        let scale = tape.constant(Matrix::from_vec(1, 2, vec![10.0, 0.5]));
        assert_eq!(tape.scale_columns(x.clone(), 1..2, &scale).value().data(), [1.0, 2.0, 30.0, 2.0]);
        assert_eq!(tape.scale_rows(&x, &scale).value().data(), [10.0, 20.0, 1.5, 2.0]);
    }
}
