//! Sums: of two values, and of a row to every row.

use std::ops::Range;
use std::sync::Arc;

use crate::kernels::vectorised;
use crate::ops::for_each_row_block;
use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Tape, Var};

impl Tape {
    /// `a + b`, of one shape. Works in the buffer of `b` where that has no other user.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn add(&mut self, a: &Var, b: Var) -> Var {
        assert_eq!(a.value().shape(), b.value().shape(), "terms of a sum share a shape");
        let nodes = [a.node(), b.node()];
        let mut y = b.into_matrix(self.workspace());
        let cols = y.cols();
        for_each_row_block(
            y.data_mut(),
            cols,
            #[inline(always)]
            |first, rows| {
                let other = &a.value().data()[first * cols..first * cols + rows.len()];
                rows.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
            },
        );
        self.output(y, &nodes, || Add { nodes })
    }

    /// `acc` with the vector `bias` `[1, columns]` added to each of its rows `rows`. Backward: `dbias` is the sum of
    /// those rows' gradients.
    ///
    /// # Panics
    /// If the widths differ.
    pub fn add_bias(&mut self, acc: Var, rows: Range<usize>, bias: &Var) -> Var {
        assert_eq!(bias.value().shape(), (1, acc.cols()), "a bias is as wide as its output");
        let acc_node = acc.node();
        let mut y = acc.into_matrix(self.workspace());
        let cols = y.cols();
        for_each_row_block(
            &mut y.data_mut()[rows.start * cols..rows.end * cols],
            cols,
            #[inline(always)]
            |_, rows| {
                for row in rows.chunks_exact_mut(cols) {
                    row.iter_mut().zip(bias.value().data()).for_each(|(out, bias)| *out += bias);
                }
            },
        );
        let bias_node = bias.node();
        self.output(y, &[acc_node, bias_node], || AddBias { acc: acc_node, bias: bias_node, rows })
    }
}

struct Add {
    nodes: [Option<NodeId>; 2],
}

impl Backward for Add {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        flow.add(self.nodes[0], Arc::clone(&gradient));
        flow.add(self.nodes[1], gradient);
    }
}

struct AddBias {
    acc: Option<NodeId>,
    bias: Option<NodeId>,
    rows: Range<usize>,
}

impl Backward for AddBias {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let cols = gradient.cols();
        flow.accumulate(self.bias, (1, cols), |_, sum, beta| {
            if beta == 0.0 {
                sum.data_mut().fill(0.0);
            }
            let rows = &gradient.data()[self.rows.start * cols..self.rows.end * cols];
            let sum = sum.data_mut();
            vectorised(
                #[inline(always)]
                || {
                    for row in rows.chunks_exact(cols) {
                        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
                    }
                },
            );
        });
        flow.add(self.acc, gradient);
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::finite_differences::{check, random};

    #[test]
    fn gradients_of_a_sum() {
        check(&[random(3, 4, 0), random(3, 4, 1)], |tape, inputs| tape.add(&inputs[0], inputs[1].clone()));
    }

    #[test]
    fn gradients_of_a_value_added_to_itself() {
        check(&[random(3, 4, 0)], |tape, inputs| tape.add(&inputs[0], inputs[0].clone()));
    }

    #[test]
    fn gradients_of_a_bias_on_some_rows() {
        check(&[random(5, 3, 0), random(1, 3, 1)], |tape, inputs| tape.add_bias(inputs[0].clone(), 1..4, &inputs[1]));
    }
}
