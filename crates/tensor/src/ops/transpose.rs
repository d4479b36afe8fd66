//! Exchange of rows and columns.

use std::sync::Arc;

use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Tape, Var};

impl Tape {
    /// `xᵀ`.
    pub fn transpose(&mut self, x: &Var) -> Var {
        self.output(x.value().transposed(), &[x.node()], || Transpose { x: x.node() })
    }
}

struct Transpose {
    x: Option<NodeId>,
}

impl Backward for Transpose {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        flow.add(self.x, gradient.transposed());
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::finite_differences::{check, random};

    #[test]
    fn gradient() {
        check(&[random(3, 5, 0)], |tape, inputs| tape.transpose(&inputs[0]));
    }
}
