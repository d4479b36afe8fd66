//! Weights kept in float32.

use super::Storage;
use crate::kernels::{Parallelism, View, ViewMut};
use crate::{Matrix, Workspace};

pub(super) struct Float32(pub(super) Matrix);

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

    fn as_float32(&self) -> Option<&Matrix> {
        Some(&self.0)
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        out.copy_from_slice(self.0.row(row));
    }

    fn bytes(&self) -> usize {
        size_of_val(self.0.data())
    }
}
