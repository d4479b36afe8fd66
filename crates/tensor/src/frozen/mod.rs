//! Weights that never change: a type of their own, never on the tape, never with a gradient.
//!
//! How a weight is stored and how its products are computed are two choices: the storage decides what lies in memory,
//! the workspace's [`Precision`] the arithmetic. Products in float32 see the stored values exactly; products in bf16 see
//! them rounded to bf16, together with the other factor. A weight stored in float32 is always multiplied in float32.

mod bf16;
mod float32;
mod format;

pub use format::WeightFormat;

use std::fmt;
use std::sync::Arc;

use crate::kernels::{View, ViewMut};
use crate::workspace::Workspace;
use crate::{Matrix, Precision};

/// A frozen weight `[out, in]` (a vector is `[1, n]`), shared by cloning. How it is stored is the storage's business;
/// operations ask for products and rows only.
#[derive(Clone)]
pub struct FrozenWeight {
    storage: Arc<dyn Storage>,
}

/// A storage format of frozen weights: what an operation may ask of it.
trait Storage: Send + Sync {
    /// `(out, in)`.
    fn shape(&self) -> (usize, usize);
    /// `y[tokens, out] ← beta·y + alpha·x[tokens, in]·Wᵀ`.
    fn forward(&self, workspace: &Workspace, y: ViewMut<'_>, beta: f32, alpha: f32, x: View<'_>);
    /// `dx[tokens, in] ← beta·dx + alpha·dy[tokens, out]·W`.
    fn input_gradient(&self, workspace: &Workspace, dx: ViewMut<'_>, beta: f32, alpha: f32, dy: View<'_>);
    /// Writes row `row` of the weight to `out` as float32.
    fn read_row(&self, row: usize, out: &mut [f32]);
    /// Bytes in memory.
    fn bytes(&self) -> usize;
}

impl FrozenWeight {
    /// A weight `[out, in]` kept in float32.
    pub fn float32(weight: Matrix) -> Self {
        Self { storage: Arc::new(float32::Float32(weight)) }
    }

    /// A weight `[out, in]` rounded to bf16 and kept in the order in which the kernels take it.
    pub fn bf16(weight: &Matrix) -> Self {
        Self { storage: Arc::new(bf16::Bf16::pack(weight)) }
    }

    /// A weight as `precision` wants it: float32, or rounded to bf16.
    pub fn in_precision(weight: Matrix, precision: Precision) -> Self {
        match precision {
            Precision::Float32 => Self::float32(weight),
            Precision::Bf16 => Self::bf16(&weight),
        }
    }

    /// A weight in a format that is unpacked as products need it.
    pub fn stored(format: impl WeightFormat + 'static) -> Self {
        Self { storage: Arc::new(format::Unpacked(format)) }
    }

    /// A vector `[1, n]` kept in float32, such as a bias or a norm's weight.
    pub fn vector(values: Vec<f32>) -> Self {
        Self::float32(Matrix::from_vec(1, values.len(), values))
    }

    /// Output features, or the number of embeddings of a table; 1 for a vector.
    pub fn rows(&self) -> usize {
        self.storage.shape().0
    }

    /// Input features, or the width of an embedding; the length of a vector.
    pub fn cols(&self) -> usize {
        self.storage.shape().1
    }

    /// `(out, in)`.
    pub fn shape(&self) -> (usize, usize) {
        self.storage.shape()
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.storage.bytes()
    }

    /// The whole weight as float32.
    pub fn to_matrix(&self) -> Matrix {
        let (rows, cols) = self.shape();
        let mut matrix = Matrix::zeros(rows, cols);
        for row in 0..rows {
            self.read_row(row, matrix.row_mut(row));
        }
        matrix
    }

    /// Writes row `row` to `out`, which has `cols()` places.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        self.storage.read_row(row, out);
    }

    /// Whether the two share one storage, as tied weights do.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage)
    }

    pub(crate) fn forward(&self, workspace: &Workspace, y: ViewMut<'_>, beta: f32, alpha: f32, x: View<'_>) {
        self.storage.forward(workspace, y, beta, alpha, x);
    }

    pub(crate) fn input_gradient(&self, workspace: &Workspace, dx: ViewMut<'_>, beta: f32, alpha: f32, dy: View<'_>) {
        self.storage.input_gradient(workspace, dx, beta, alpha, dy);
    }
}

impl fmt::Debug for FrozenWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, cols) = self.shape();
        write!(f, "FrozenWeight [{rows}, {cols}]")
    }
}
