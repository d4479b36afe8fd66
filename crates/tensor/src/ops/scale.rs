//! Every value times a constant.

use std::sync::Arc;

use crate::ops::for_each_row_block;
use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Tape, Var};

impl Tape {
    /// `factor·x`, value by value. Works in place where `x` has no other user. Backward: `dx = factor·dy`.
    pub fn scale(&mut self, x: Var, factor: f32) -> Var {
        let node = x.node();
        let mut y = x.into_matrix(self.workspace());
        multiply(&mut y, factor);
        self.output(y, &[node], || Scale { node, factor })
    }
}

fn multiply(matrix: &mut Matrix, factor: f32) {
    let cols = matrix.cols();
    for_each_row_block(
        matrix.data_mut(),
        cols,
        #[inline(always)]
        |_, rows| rows.iter_mut().for_each(|value| *value *= factor),
    );
}

struct Scale {
    node: Option<NodeId>,
    factor: f32,
}

impl Backward for Scale {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let mut gradient = flow.owned(gradient);
        multiply(&mut gradient, self.factor);
        flow.add(self.node, gradient);
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::finite_differences::{check, random};
    use crate::{Tape, Workspace};

    #[test]
    fn multiplies_every_value_of_a_copy() {
        let mut tape = Tape::evaluating(&Workspace::new());
        let x = tape.constant(random(2, 3, 0));
        let y = tape.scale(x.clone(), -2.5);
        assert!(x.value().data().iter().zip(y.value().data()).all(|(x, y)| *y == -2.5 * x));
    }

    #[test]
    fn gradient() {
        check(&[random(2, 3, 0)], |tape, inputs| tape.scale(inputs[0].clone(), -2.5));
    }
}
