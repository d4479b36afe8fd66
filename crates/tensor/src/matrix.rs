//! The one data type: a row-major float32 matrix `[rows, columns]`, mostly `[tokens, features]`.

use std::fmt;

use crate::workspace::{Buffer, Workspace, zeros};

/// A dense row-major float32 matrix.
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: Buffer,
}

impl Matrix {
    /// A matrix from row-major values.
    ///
    /// # Panics
    /// If `data.len() != rows * cols`.
    pub fn from_vec(rows: usize, cols: usize, data: Vec<f32>) -> Self {
        assert_eq!(data.len(), rows * cols, "a [{rows}, {cols}] matrix needs {} values", rows * cols);
        Self { rows, cols, data: Buffer::from_vec(data) }
    }

    /// A matrix of zeros that belongs to no workspace.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self::from_vec(rows, cols, zeros(rows * cols))
    }

    /// A matrix from the workspace's pool, with unspecified contents.
    pub(crate) fn uninitialised(workspace: &Workspace, rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: workspace.take(rows * cols) }
    }

    /// A matrix of zeros from the workspace's pool.
    pub(crate) fn zeros_in(workspace: &Workspace, rows: usize, cols: usize) -> Self {
        let mut matrix = Self::uninitialised(workspace, rows, cols);
        matrix.data.fill(0.0);
        matrix
    }

    /// A copy whose buffer comes from the workspace's pool.
    pub(crate) fn copy_in(&self, workspace: &Workspace) -> Self {
        let mut matrix = Self::uninitialised(workspace, self.rows, self.cols);
        matrix.data.copy_from_slice(&self.data);
        matrix
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// `(rows, columns)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// All values, row by row.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// All values, row by row.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    /// One row.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.cols..(row + 1) * self.cols]
    }

    /// The values as a vector.
    pub fn to_vec(&self) -> Vec<f32> {
        self.data.to_vec()
    }

    /// The matrix with rows and columns exchanged.
    pub fn transposed(&self) -> Self {
        let mut out = Self::zeros(self.cols, self.rows);
        for row in 0..self.rows {
            for (col, value) in self.row(row).iter().enumerate() {
                out.data[col * self.rows + row] = *value;
            }
        }
        out
    }
}

impl Clone for Matrix {
    fn clone(&self) -> Self {
        Self::from_vec(self.rows, self.cols, self.to_vec())
    }
}

impl PartialEq for Matrix {
    fn eq(&self, other: &Self) -> bool {
        self.shape() == other.shape() && self.data() == other.data()
    }
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.data[..self.data.len().min(8)];
        write!(f, "Matrix [{}, {}] {shown:?}", self.rows, self.cols)?;
        if shown.len() < self.data.len() { f.write_str(" …") } else { Ok(()) }
    }
}
