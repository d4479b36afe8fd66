//! Columns of a value, such as the queries in a fused projection.

use std::ops::Range;
use std::sync::Arc;

use crate::ops::for_each_row_block;
use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Tape, Var};

impl Tape {
    /// Columns `columns` of `x`, `[rows, columns]`; all of them cost nothing.
    ///
    /// # Panics
    /// If the range exceeds the columns of `x`.
    pub fn slice_columns(&mut self, x: &Var, columns: Range<usize>) -> Var {
        if columns == (0..x.cols()) {
            return x.clone();
        }
        let (width, cols) = (x.cols(), columns.len());
        assert!(columns.end <= width, "columns {columns:?} of {width}");
        let mut y = Matrix::uninitialised(self.workspace(), x.rows(), cols);
        for_each_row_block(
            y.data_mut(),
            cols,
            #[inline(always)]
            |first, rows| {
                for (offset, out) in rows.chunks_exact_mut(cols).enumerate() {
                    out.copy_from_slice(&x.value().row(first + offset)[columns.clone()]);
                }
            },
        );
        let shape = x.value().shape();
        self.output(y, &[x.node()], || SliceColumns { x: x.node(), shape, columns })
    }

    /// The columns of all `parts`, side by side.
    ///
    /// # Panics
    /// If the parts' rows differ.
    pub fn concat_columns(&mut self, parts: &[Var]) -> Var {
        if let [only] = parts {
            return only.clone();
        }
        let (rows, width) = (parts.first().map_or(0, Var::rows), parts.iter().map(Var::cols).sum());
        let mut y = Matrix::uninitialised(self.workspace(), rows, width);
        let mut start = 0;
        for part in parts {
            assert_eq!(part.rows(), rows, "parts that are joined side by side have equally many rows");
            for row in 0..rows {
                y.row_mut(row)[start..start + part.cols()].copy_from_slice(part.value().row(row));
            }
            start += part.cols();
        }
        let nodes: Vec<_> = parts.iter().map(Var::node).collect();
        let widths = parts.iter().map(Var::cols).collect();
        self.output(y, &nodes, || ConcatColumns { nodes: nodes.clone(), widths })
    }
}

struct ConcatColumns {
    nodes: Vec<Option<NodeId>>,
    widths: Vec<usize>,
}

impl Backward for ConcatColumns {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let mut start = 0;
        for (node, width) in self.nodes.into_iter().zip(self.widths) {
            if node.is_some() {
                let mut part = Matrix::uninitialised(flow.workspace(), gradient.rows(), width);
                for row in 0..gradient.rows() {
                    part.row_mut(row).copy_from_slice(&gradient.row(row)[start..start + width]);
                }
                flow.add(node, part);
            }
            start += width;
        }
    }
}

struct SliceColumns {
    x: Option<NodeId>,
    shape: (usize, usize),
    columns: Range<usize>,
}

impl Backward for SliceColumns {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let Self { x, shape, columns } = *self;
        flow.accumulate(x, shape, |_, dx, beta| {
            for_each_row_block(
                dx.data_mut(),
                shape.1,
                #[inline(always)]
                |first, rows| {
                    for (offset, row) in rows.chunks_exact_mut(shape.1).enumerate() {
                        if beta == 0.0 {
                            row.fill(0.0);
                        }
                        let slice = row[columns.clone()].iter_mut();
                        slice.zip(gradient.row(first + offset)).for_each(|(sum, value)| *sum += value);
                    }
                },
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::finite_differences::{check, random};
    use crate::{Matrix, Tape, Workspace};

    #[test]
    fn values() {
        let mut tape = Tape::evaluating(&Workspace::new());
        let x = tape.constant(Matrix::from_vec(2, 3, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        assert_eq!(tape.slice_columns(&x, 1..3).value().data(), [2.0, 3.0, 5.0, 6.0]);
        assert_eq!(tape.slice_columns(&x, 0..3).value().data(), x.value().data());
        assert_eq!(tape.slice_columns(&x, 1..1).value().shape(), (2, 0));
        let last = tape.slice_columns(&x, 2..3);
        assert_eq!(tape.concat_columns(&[last, x]).value().data(), [3.0, 1.0, 2.0, 3.0, 6.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn gradients() {
        check(&[random(5, 7, 0)], |tape, inputs| {
            let (left, right) = (tape.slice_columns(&inputs[0], 0..3), tape.slice_columns(&inputs[0], 2..5));
            tape.add(&left, right)
        });
        check(&[random(2, 3, 0), random(2, 4, 1)], |tape, inputs| {
            tape.concat_columns(&[inputs[0].clone(), inputs[1].clone(), inputs[0].clone()])
        });
    }
}
