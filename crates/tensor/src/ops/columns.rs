//! Columns of a value, such as the queries in a fused projection.

use std::ops::Range;

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
}

struct SliceColumns {
    x: Option<NodeId>,
    shape: (usize, usize),
    columns: Range<usize>,
}

impl Backward for SliceColumns {
    fn backward(self: Box<Self>, gradient: Matrix, flow: &mut Flow<'_>) {
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
    }

    #[test]
    fn gradients() {
        check(&[random(5, 7, 0)], |tape, inputs| {
            let (left, right) = (tape.slice_columns(&inputs[0], 0..3), tape.slice_columns(&inputs[0], 2..5));
            tape.add(&left, right)
        });
    }
}
