//! The same values row by row in another shape.

use std::sync::Arc;

use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Tape, Var};

impl Tape {
    /// The values of `x`, row by row, as `[rows, cols]`.
    ///
    /// # Panics
    /// If the number of values differs.
    pub fn reshape(&mut self, x: &Var, rows: usize, cols: usize) -> Var {
        let (node, shape) = (x.node(), x.value().shape());
        self.output(reshaped(self, x.value(), (rows, cols)), &[node], || Reshape { node, shape })
    }
}

fn reshaped(tape: &Tape, x: &Matrix, shape: (usize, usize)) -> Matrix {
    assert_eq!(x.data().len(), shape.0 * shape.1, "a matrix keeps its values when it is reshaped");
    let mut y = Matrix::uninitialised(tape.workspace(), shape.0, shape.1);
    y.data_mut().copy_from_slice(x.data());
    y
}

struct Reshape {
    node: Option<NodeId>,
    shape: (usize, usize),
}

impl Backward for Reshape {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let mut dx = Matrix::uninitialised(flow.workspace(), self.shape.0, self.shape.1);
        dx.data_mut().copy_from_slice(gradient.data());
        flow.add(self.node, dx);
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::finite_differences::{check, random};

    #[test]
    fn gradient() {
        check(&[random(2, 6, 0)], |tape, inputs| tape.reshape(&inputs[0], 4, 3));
    }
}
