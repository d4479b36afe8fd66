//! The gated feed-forward's product: `silu(gate)·up` (SwiGLU, Shazeer 2020).

use std::sync::Arc;

use rayon::prelude::*;

use crate::kernels::{exp, vectorised};
use crate::ops::{for_each_row_block, rows_per_task};
use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Tape, Var};

impl Tape {
    /// `silu(gate)·up`, value by value, with `silu(x) = x·σ(x)`; all `[tokens, features]`.
    /// Backward: `dgate = dy·up·σ(gate)·(1 + gate·(1 − σ(gate)))`, `dup = dy·silu(gate)`.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn silu_mul(&mut self, gate: &Var, up: &Var) -> Var {
        assert_eq!(gate.value().shape(), up.value().shape(), "a gate is shaped as what it gates");
        let cols = gate.cols();
        let mut y = Matrix::uninitialised(self.workspace(), gate.rows(), cols);
        for_each_row_block(
            y.data_mut(),
            cols,
            #[inline(always)]
            |first, rows| {
                let range = first * cols..first * cols + rows.len();
                let (gate, up) = (&gate.value().data()[range.clone()], &up.value().data()[range]);
                rows.iter_mut().zip(gate).zip(up).for_each(|((out, gate), up)| *out = gate * sigmoid(*gate) * up);
            },
        );
        let (gate_node, up_node) = (gate.node(), up.node());
        self.output(y, &[gate_node, up_node], || SiluMul { gate: gate.shared(), up: up.shared(), gate_node, up_node })
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

struct SiluMul {
    gate: Arc<Matrix>,
    up: Arc<Matrix>,
    gate_node: Option<NodeId>,
    up_node: Option<NodeId>,
}

impl Backward for SiluMul {
    fn backward(self: Box<Self>, gradient: Matrix, flow: &mut Flow<'_>) {
        let (rows, cols) = gradient.shape();
        let mut dgate = Matrix::uninitialised(flow.workspace(), rows, cols);
        // The gradient's buffer becomes that of `up`.
        let mut dup = gradient;
        let block = (rows_per_task(cols) * cols).max(1);
        let inputs = (self.gate.data().par_chunks(block), self.up.data().par_chunks(block));
        let outputs = (dgate.data_mut().par_chunks_mut(block), dup.data_mut().par_chunks_mut(block));
        (inputs, outputs).into_par_iter().for_each(|((gate, up), (dgate, dup))| {
            vectorised(
                #[inline(always)]
                || {
                    for (((gate, up), dgate), dup) in gate.iter().zip(up).zip(dgate).zip(dup) {
                        let dy = *dup;
                        let sigma = sigmoid(*gate);
                        *dgate = dy * up * sigma * (1.0 + gate * (1.0 - sigma));
                        *dup = dy * gate * sigma;
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
        let y = tape.silu_mul(&gate, &up);
        let expected = [-2.0 / (1.0 + 2.0f32.exp()), 0.0, 60.0];
        assert!(y.value().data().iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-5), "{y:?}");
    }

    #[test]
    fn gradients() {
        check(&[random(3, 7, 0), random(3, 7, 1)], |tape, inputs| tape.silu_mul(&inputs[0], &inputs[1]));
    }
}
