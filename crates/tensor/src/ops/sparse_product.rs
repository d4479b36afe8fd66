//! Product of a vector with a fixed sparse matrix.

use std::sync::Arc;

use rayon::prelude::*;

use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Tape, Var};

/// A sparse matrix `[rows, cols]`, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Sparse {
    cols: usize,
    /// Where each row's entries begin, and the end of the last.
    starts: Vec<usize>,
    entries: Vec<(u32, f32)>,
}

impl Sparse {
    /// A matrix from `(row, column, value)` entries, in any order.
    ///
    /// # Panics
    /// If an entry lies outside.
    pub fn new(rows: usize, cols: usize, mut entries: Vec<(usize, u32, f32)>) -> Self {
        entries.sort_by_key(|(row, col, _)| (*row, *col));
        assert!(entries.last().is_none_or(|(row, ..)| *row < rows), "an entry lies in the matrix");
        assert!(entries.iter().all(|(_, col, _)| (*col as usize) < cols), "an entry lies in the matrix");
        let starts = (0..=rows).map(|row| entries.partition_point(|(of, ..)| *of < row)).collect();
        Self { cols, starts, entries: entries.into_iter().map(|(_, col, value)| (col, value)).collect() }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// The entries of a row, `(column, value)`.
    fn row(&self, row: usize) -> &[(u32, f32)] {
        &self.entries[self.starts[row]..self.starts[row + 1]]
    }
}

impl Tape {
    /// `y[1, rows] = x[1, cols]·Sᵀ` for a fixed sparse `S`. Backward: `dx = dy·S`.
    ///
    /// # Panics
    /// If `x` is not one row as long as the matrix is wide.
    pub fn sparse_product(&mut self, x: &Var, matrix: &Arc<Sparse>) -> Var {
        assert_eq!(x.value().shape(), (1, matrix.cols), "a vector is as long as the matrix is wide");
        let values = x.value().data();
        let mut y = Matrix::uninitialised(self.workspace(), 1, matrix.rows());
        y.data_mut().par_iter_mut().enumerate().with_min_len(1 << 12).for_each(|(row, out)| {
            *out = matrix.row(row).iter().map(|(col, value)| value * values[*col as usize]).sum();
        });
        let node = x.node();
        self.output(y, &[node], || SparseProduct { node, matrix: Arc::clone(matrix) })
    }
}

struct SparseProduct {
    node: Option<NodeId>,
    matrix: Arc<Sparse>,
}

impl Backward for SparseProduct {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        // In one fixed order: rows share columns.
        let mut sum = vec![0.0f64; self.matrix.cols];
        for (row, dy) in gradient.data().iter().enumerate() {
            for (col, value) in self.matrix.row(row) {
                sum[*col as usize] += f64::from(value * dy);
            }
        }
        let sum = sum.into_iter().map(|value| value as f32).collect();
        flow.add(self.node, Matrix::from_vec(1, self.matrix.cols, sum));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Workspace;
    use crate::ops::finite_differences::{check, random};

    fn matrix() -> Arc<Sparse> {
        Arc::new(Sparse::new(4, 3, vec![(3, 0, -2.0), (0, 1, 1.5), (0, 0, 0.5), (2, 2, 4.0)]))
    }

    #[test]
    fn gradient() {
        check(&[random(1, 3, 0)], |tape, inputs| tape.sparse_product(&inputs[0], &matrix()));
    }

    #[test]
    fn equals_the_dense_product() {
        let mut tape = Tape::evaluating(&Workspace::new());
        let x = tape.constant(Matrix::from_vec(1, 3, vec![1.0, 10.0, 100.0]));
        assert_eq!(tape.sparse_product(&x, &matrix()).value().data(), [15.5, 0.0, 400.0, -2.0]);
    }
}
