//! The gated feed-forward's product: `activation(gate)·up` (SwiGLU, GEGLU; Shazeer 2020, eq. 6).

use std::marker::PhantomData;
use std::sync::Arc;

use rayon::prelude::*;

use crate::kernels::vectorised;
use crate::ops::activation::{Function, Rough, with_function};
use crate::ops::{for_each_row_block, rows_per_task};
use crate::tape::{Backward, Flow, NodeId};
use crate::{Activation, Matrix, Precision, Tape, Var};

impl Tape {
    /// `activation(gate)·up`, value by value; all `[tokens, features]`.
    /// Backward: `dgate = dy·up·f′(gate)`, `dup = dy·f(gate)`.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn gated(&mut self, activation: Activation, gate: &Var, up: &Var) -> Var {
        assert_eq!(gate.value().shape(), up.value().shape(), "a gate is shaped as what it gates");
        with_function!(activation, gated(self, gate, up))
    }
}

fn gated<F: Function>(tape: &mut Tape, gate: &Var, up: &Var) -> Var {
    match tape.workspace().kernels().precision() {
        Precision::Float32 => gated_by::<F>(tape, gate, up),
        Precision::Bf16 => gated_by::<Rough<F>>(tape, gate, up),
    }
}

fn gated_by<F: Function>(tape: &mut Tape, gate: &Var, up: &Var) -> Var {
    let cols = gate.cols();
    let mut y = Matrix::uninitialised(tape.workspace(), gate.rows(), cols);
    for_each_row_block(
        y.data_mut(),
        cols,
        #[inline(always)]
        |first, rows| {
            let range = first * cols..first * cols + rows.len();
            let (gate, up) = (&gate.value().data()[range.clone()], &up.value().data()[range]);
            rows.iter_mut().zip(gate).zip(up).for_each(|((out, gate), up)| *out = F::value(*gate) * up);
        },
    );
    let (gate_node, up_node) = (gate.node(), up.node());
    tape.output(y, &[gate_node, up_node], || Gated::<F> {
        gate: gate.shared(),
        up: up.shared(),
        gate_node,
        up_node,
        function: PhantomData,
    })
}

struct Gated<F> {
    gate: Arc<Matrix>,
    up: Arc<Matrix>,
    gate_node: Option<NodeId>,
    up_node: Option<NodeId>,
    function: PhantomData<F>,
}

impl<F: Function> Backward for Gated<F> {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let (rows, cols) = gradient.shape();
        let mut dgate = Matrix::uninitialised(flow.workspace(), rows, cols);
        // The gradient's buffer becomes that of `up`.
        let mut dup = flow.owned(gradient);
        let block = (rows_per_task(cols) * cols).max(1);
        let inputs = (self.gate.data().par_chunks(block), self.up.data().par_chunks(block));
        let outputs = (dgate.data_mut().par_chunks_mut(block), dup.data_mut().par_chunks_mut(block));
        (inputs, outputs).into_par_iter().for_each(|((gate, up), (dgate, dup))| {
            vectorised(
                #[inline(always)]
                || {
                    for (((gate, up), dgate), dup) in gate.iter().zip(up).zip(dgate).zip(dup) {
                        let dy = *dup;
                        let (value, slope) = F::value_and_slope(*gate);
                        *dgate = dy * up * slope;
                        *dup = dy * value;
                    }
                },
            );
        });
        flow.add(self.gate_node, dgate);
        flow.add(self.up_node, dup);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, random};

    #[test]
    fn equals_its_definition() {
        let mut tape = Tape::evaluating(&crate::Workspace::new());
        let gate = tape.constant(Matrix::from_vec(1, 3, vec![-2.0, 0.0, 30.0]));
        let up = tape.constant(Matrix::from_vec(1, 3, vec![1.0, 5.0, 2.0]));
        let y = tape.gated(Activation::Silu, &gate, &up);
        let expected = [-2.0 / (1.0 + 2.0f32.exp()), 0.0, 60.0];
        assert!(y.value().data().iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-5), "{y:?}");
    }

    #[test]
    fn gradients() {
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Tanh] {
            check(&[random(3, 7, 0), random(3, 7, 1)], |tape, inputs| tape.gated(activation, &inputs[0], &inputs[1]));
        }
    }
}
