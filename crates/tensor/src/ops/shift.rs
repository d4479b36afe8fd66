//! A constant added to every value.

use std::sync::Arc;

use crate::tape::{Backward, Flow, NodeId};
use crate::{Tape, Var};

impl Tape {
    /// `x + constant`, value by value. Works in place where `x` has no other user. Backward: `dx = dy`.
    pub fn shift(&mut self, x: Var, constant: f32) -> Var {
        let node = x.node();
        let mut y = x.into_matrix(self.workspace());
        y.data_mut().iter_mut().for_each(|value| *value += constant);
        self.output(y, &[node], || Shift { node })
    }
}

struct Shift {
    node: Option<NodeId>,
}

impl Backward for Shift {
    fn backward(self: Box<Self>, gradient: Arc<crate::Matrix>, flow: &mut Flow<'_>) {
        flow.add(self.node, gradient);
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::finite_differences::{check, random};
    use crate::{Tape, Workspace};

    #[test]
    fn adds_to_every_value_of_a_copy() {
        let mut tape = Tape::evaluating(&Workspace::new());
        let x = tape.constant(random(2, 3, 0));
        let y = tape.shift(x.clone(), 1.0);
        assert!(x.value().data().iter().zip(y.value().data()).all(|(x, y)| *y == x + 1.0));
    }

    #[test]
    fn gradient() {
        check(&[random(2, 3, 0)], |tape, inputs| tape.shift(inputs[0].clone(), 1.0));
    }
}
