//! Products of two values on the tape: `x·wᵀ`, alone or added to rows of another value.

use std::ops::Range;
use std::sync::Arc;

use crate::kernels::{View, ViewMut};
use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Tape, Var, Workspace};

impl Tape {
    /// `y[tokens, n] = x[tokens, k]·wᵀ` with `w` `[n, k]`. Backward: `dx = dy·w`, `dw = dyᵀ·x`.
    ///
    /// # Panics
    /// If the inner sizes disagree.
    pub fn matmul_nt(&mut self, x: &Var, w: &Var) -> Var {
        let mut y = Matrix::uninitialised(self.workspace(), x.rows(), w.rows());
        product(self.workspace(), &mut y, 0..x.rows(), 0.0, 1.0, x.value(), w.value());
        self.output(y, &[x.node(), w.node()], || Product::new(x, w, 1.0, 0..x.rows(), None))
    }

    /// `acc` with `scale·x·wᵀ` added to its rows `rows`; `x` is `[rows, k]`, `w` is `[acc columns, k]`. Works in place
    /// where `acc` has no other user.
    ///
    /// # Panics
    /// If the sizes disagree.
    pub fn add_product(&mut self, acc: Var, rows: Range<usize>, x: &Var, w: &Var, scale: f32) -> Var {
        assert_eq!(rows.len(), x.rows(), "a product is added to as many rows as it has");
        let acc_node = acc.node();
        let mut y = acc.into_matrix(self.workspace());
        product(self.workspace(), &mut y, rows.clone(), 1.0, scale, x.value(), w.value());
        let nodes = [acc_node, x.node(), w.node()];
        self.output(y, &nodes, || Product::new(x, w, scale, rows, Some(acc_node)))
    }
}

/// `y[rows] ← beta·y[rows] + scale·x·wᵀ`.
fn product(workspace: &Workspace, y: &mut Matrix, rows: Range<usize>, beta: f32, scale: f32, x: &Matrix, w: &Matrix) {
    let cols = y.cols();
    let target = &mut y.data_mut()[rows.start * cols..rows.end * cols];
    let target = ViewMut::rows_of(target, rows.len(), cols, cols);
    workspace.kernels().product(workspace, target, beta, scale, View::of(x), View::of(w).transposed());
}

struct Product {
    /// Kept only where the other factor needs a gradient.
    x: Option<Arc<Matrix>>,
    w: Option<Arc<Matrix>>,
    x_node: Option<NodeId>,
    w_node: Option<NodeId>,
    x_shape: (usize, usize),
    w_shape: (usize, usize),
    scale: f32,
    rows: Range<usize>,
    /// Whether the product was added to another value, and that value's node.
    acc: Option<Option<NodeId>>,
}

impl Product {
    fn new(x: &Var, w: &Var, scale: f32, rows: Range<usize>, acc: Option<Option<NodeId>>) -> Self {
        Self {
            x: w.needs_gradient().then(|| x.shared()),
            w: x.needs_gradient().then(|| w.shared()),
            x_node: x.node(),
            w_node: w.node(),
            x_shape: x.value().shape(),
            w_shape: w.value().shape(),
            scale,
            rows,
            acc,
        }
    }
}

impl Backward for Product {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let cols = gradient.cols();
        let dy = &gradient.data()[self.rows.start * cols..self.rows.end * cols];
        let dy = View::rows_of(dy, self.rows.len(), cols, cols);
        if let Some(w) = &self.w {
            flow.accumulate(self.x_node, self.x_shape, |workspace, dx, beta| {
                let dx = ViewMut::of(dx);
                workspace.kernels().product(workspace, dx, beta, self.scale, dy, View::of(w));
            });
        }
        if let Some(x) = &self.x {
            flow.accumulate(self.w_node, self.w_shape, |workspace, dw, beta| {
                let dw = ViewMut::of(dw);
                workspace.kernels().product(workspace, dw, beta, self.scale, dy.transposed(), View::of(x));
            });
        }
        if let Some(acc) = self.acc {
            flow.add(acc, gradient);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, random};

    #[test]
    fn gradients_of_both_factors() {
        check(&[random(4, 6, 0), random(3, 6, 1)], |tape, inputs| tape.matmul_nt(&inputs[0], &inputs[1]));
    }

    #[test]
    fn gradients_where_a_product_is_added_to_some_rows() {
        check(&[random(5, 3, 0), random(2, 4, 1), random(3, 4, 2)], |tape, inputs| {
            tape.add_product(inputs[0].clone(), 2..4, &inputs[1], &inputs[2], 1.5)
        });
    }

    #[test]
    fn adds_to_the_named_rows_only() {
        let mut tape = Tape::evaluating(&Workspace::new());
        let acc = tape.constant(Matrix::from_vec(3, 1, vec![1.0, 2.0, 3.0]));
        let x = tape.constant(Matrix::from_vec(1, 2, vec![1.0, 2.0]));
        let w = tape.constant(Matrix::from_vec(1, 2, vec![10.0, 1.0]));
        let y = tape.add_product(acc, 1..2, &x, &w, 0.5);
        assert_eq!(y.value().data(), [1.0, 8.0, 3.0]);
    }
}
