//! Weights that never change: a type of their own, never on the tape, never with a gradient.

use std::fmt;
use std::sync::Arc;

use crate::Matrix;
use crate::kernels::{Parallelism, View, ViewMut};
use crate::workspace::Workspace;

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
        Self { storage: Arc::new(Float32(weight)) }
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

struct Float32(Matrix);

impl Storage for Float32 {
    fn shape(&self) -> (usize, usize) {
        self.0.shape()
    }

    fn forward(&self, workspace: &Workspace, y: ViewMut<'_>, beta: f32, alpha: f32, x: View<'_>) {
        let weight = View::of(&self.0).transposed();
        workspace.kernels().gemm(y, beta, alpha, x, weight, Parallelism::Pool);
    }

    fn input_gradient(&self, workspace: &Workspace, dx: ViewMut<'_>, beta: f32, alpha: f32, dy: View<'_>) {
        workspace.kernels().gemm(dx, beta, alpha, dy, View::of(&self.0), Parallelism::Pool);
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        out.copy_from_slice(self.0.row(row));
    }

    fn bytes(&self) -> usize {
        size_of_val(self.0.data())
    }
}
