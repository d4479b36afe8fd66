//! What touches the hardware: matrix products. Operations call these and never know which path runs.

mod blocked;
mod erf;
mod exp;
mod plain;
mod vectorised;

use std::fmt;

pub(crate) use erf::erf;
pub(crate) use exp::exp;
pub(crate) use vectorised::vectorised;

/// `C ← beta·C + alpha·A·B` over strided float32 views.
pub(crate) trait Gemm: Send + Sync + fmt::Debug {
    /// `beta` is 0 (what `c` holds is ignored) or 1. `parallelism` is how many threads may share the product; the
    /// result doesn't depend on it.
    fn gemm(&self, c: ViewMut<'_>, beta: f32, alpha: f32, a: View<'_>, b: View<'_>, parallelism: Parallelism);
}

/// Whether a product may spread over the thread pool or runs inside one task of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parallelism {
    /// All threads of the pool.
    Pool,
    /// The calling thread alone.
    Single,
}

/// The kernels in use; chosen once, when the program starts.
#[derive(Clone, Copy)]
pub struct Kernels {
    gemm: &'static dyn Gemm,
}

impl Kernels {
    /// The fastest kernels that this processor runs.
    pub fn detect() -> Self {
        Self::blocked()
    }

    /// Cache-blocked products, vectorised for the processor at run time (AVX-512, AVX2 and FMA, NEON).
    pub fn blocked() -> Self {
        Self { gemm: &blocked::Blocked }
    }

    /// The plain definition, three loops with float64 accumulation: what the others are tested against.
    pub fn plain() -> Self {
        Self { gemm: &plain::Plain }
    }

    pub(crate) fn gemm(&self, c: ViewMut<'_>, beta: f32, alpha: f32, a: View<'_>, b: View<'_>, par: Parallelism) {
        assert_eq!(a.rows, c.rows, "a product's rows are its left factor's");
        assert_eq!(b.cols, c.cols, "a product's columns are its right factor's");
        assert_eq!(a.cols, b.rows, "a product's factors share their inner size");
        if c.rows > 0 && c.cols > 0 {
            self.gemm.gemm(c, beta, alpha, a, b, par);
        }
    }
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernels({:?})", self.gemm)
    }
}

/// A strided read-only view of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix whose rows lie `row_stride` apart.
    pub(crate) fn rows_of(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= data.len(), "the view exceeds its data");
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The whole of a matrix.
    pub(crate) fn of(matrix: &'a crate::Matrix) -> Self {
        Self::rows_of(matrix.data(), matrix.rows(), matrix.cols(), matrix.cols())
    }

    /// The same values with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// A strided view to write to; columns are contiguous.
pub(crate) struct ViewMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> ViewMut<'a> {
    /// A row-major matrix whose rows lie `row_stride` apart.
    pub(crate) fn rows_of(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= data.len(), "the view exceeds its data");
        Self { data, rows, cols, row_stride }
    }

    /// The whole of a matrix.
    pub(crate) fn of(matrix: &'a mut crate::Matrix) -> Self {
        let (rows, cols) = matrix.shape();
        Self::rows_of(matrix.data_mut(), rows, cols, cols)
    }
}
