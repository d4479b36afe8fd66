//! Moving whole rows: slices, gathers, and joining values end to end.

use std::ops::Range;
use std::sync::Arc;

use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Tape, Var};

impl Tape {
    /// Rows `rows` of `x`; the whole of it costs nothing.
    ///
    /// # Panics
    /// If the range exceeds the rows of `x`.
    pub fn slice_rows(&mut self, x: &Var, rows: Range<usize>) -> Var {
        if rows == (0..x.rows()) {
            return x.clone();
        }
        let cols = x.cols();
        let mut y = Matrix::uninitialised(self.workspace(), rows.len(), cols);
        y.data_mut().copy_from_slice(&x.value().data()[rows.start * cols..rows.end * cols]);
        let shape = x.value().shape();
        self.output(y, &[x.node()], || SliceRows { x: x.node(), shape, rows })
    }

    /// The rows of `x` that `rows` names, in that order; a row may be named more than once.
    ///
    /// # Panics
    /// If a row is out of range.
    pub fn gather_rows(&mut self, x: &Var, rows: Vec<usize>) -> Var {
        let mut y = Matrix::uninitialised(self.workspace(), rows.len(), x.cols());
        for (to, from) in rows.iter().enumerate() {
            y.row_mut(to).copy_from_slice(x.value().row(*from));
        }
        let shape = x.value().shape();
        self.output(y, &[x.node()], || GatherRows { x: x.node(), shape, rows })
    }

    /// The rows of all `parts`, end to end.
    ///
    /// # Panics
    /// If the parts' widths differ.
    pub fn concat_rows(&mut self, parts: &[Var]) -> Var {
        if let [only] = parts {
            return only.clone();
        }
        let cols = parts.first().map_or(0, Var::cols);
        let mut y = Matrix::uninitialised(self.workspace(), parts.iter().map(Var::rows).sum(), cols);
        let mut start = 0;
        for part in parts {
            assert_eq!(part.cols(), cols, "parts that are joined end to end are equally wide");
            let end = start + part.rows() * cols;
            y.data_mut()[start..end].copy_from_slice(part.value().data());
            start = end;
        }
        let nodes: Vec<_> = parts.iter().map(Var::node).collect();
        let lengths = parts.iter().map(Var::rows).collect();
        self.output(y, &nodes, || ConcatRows { nodes: nodes.clone(), lengths })
    }
}

struct SliceRows {
    x: Option<NodeId>,
    shape: (usize, usize),
    rows: Range<usize>,
}

impl Backward for SliceRows {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        flow.add_rows(self.x, self.shape, self.rows, &gradient);
    }
}

struct GatherRows {
    x: Option<NodeId>,
    shape: (usize, usize),
    rows: Vec<usize>,
}

impl Backward for GatherRows {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        flow.accumulate(self.x, self.shape, |_, dx, beta| {
            if beta == 0.0 {
                dx.data_mut().fill(0.0);
            }
            for (from, to) in self.rows.iter().enumerate() {
                dx.row_mut(*to).iter_mut().zip(gradient.row(from)).for_each(|(sum, value)| *sum += value);
            }
        });
    }
}

struct ConcatRows {
    nodes: Vec<Option<NodeId>>,
    lengths: Vec<usize>,
}

impl Backward for ConcatRows {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let cols = gradient.cols();
        let mut start = 0;
        for (node, length) in self.nodes.into_iter().zip(self.lengths) {
            let end = start + length * cols;
            if node.is_some() {
                let mut part = Matrix::uninitialised(flow.workspace(), length, cols);
                part.data_mut().copy_from_slice(&gradient.data()[start..end]);
                flow.add(node, part);
            }
            start = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Workspace;
    use crate::ops::finite_differences::{check, random};

    #[test]
    fn gradients() {
        check(&[random(5, 3, 0)], |tape, inputs| tape.slice_rows(&inputs[0], 1..4));
        check(&[random(5, 3, 0)], |tape, inputs| tape.gather_rows(&inputs[0], vec![4, 0, 4]));
        check(&[random(2, 3, 0), random(4, 3, 1)], |tape, inputs| {
            tape.concat_rows(&[inputs[0].clone(), inputs[1].clone(), inputs[0].clone()])
        });
    }

    #[test]
    fn values() {
        let mut tape = Tape::evaluating(&Workspace::new());
        let x = tape.constant(Matrix::from_vec(3, 1, vec![1.0, 2.0, 3.0]));
        assert_eq!(tape.slice_rows(&x, 1..3).value().data(), [2.0, 3.0]);
        assert_eq!(tape.gather_rows(&x, vec![2, 0, 2]).value().data(), [3.0, 1.0, 3.0]);
        assert_eq!(tape.concat_rows(&[x.clone(), x]).value().data(), [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
    }
}
