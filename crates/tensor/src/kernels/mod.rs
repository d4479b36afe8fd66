//! What touches the hardware: matrix products. Operations call these and never know which path runs.

pub(crate) mod bf16;
mod blocked;
pub(crate) mod blocks;
mod erf;
mod exp;
#[cfg(target_arch = "x86_64")]
mod float32;
mod gradient;
mod in_turn;
mod independent;
mod plain;
mod precision;
mod prefetch;
#[cfg(target_arch = "x86_64")]
mod share;
#[cfg(target_arch = "x86_64")]
mod split;
pub(crate) mod stored;
pub(crate) mod turned;
mod vectorised;

use std::fmt;
use std::ops::Range;

use crate::Workspace;
use bf16::{Columns, PackedColumns, Product, Tokens, Unit, ViewColumns, weight_gradient};

pub(crate) use erf::erf;
pub(crate) use exp::{exp, exp2_rough, reciprocal_rough};
pub(crate) use in_turn::{chunks_in_turn, in_pieces, in_turn};
pub use precision::Precision;
pub(crate) use prefetch::{LINE, fetch_lines, prefetch, prefetch_beyond, prefetch_for_later};
pub(crate) use vectorised::dispatch;
pub use vectorised::vectorised;

/// `C ← beta·C + Σ alpha·A·B` over strided float32 views.
pub(crate) trait Gemm: Send + Sync + fmt::Debug {
    /// `beta` is 0 (what `c` holds is ignored) or 1. `parallelism` is how many threads may share the product; the
    /// result doesn't depend on it.
    fn gemm(&self, c: ViewMut<'_>, beta: f32, sum: &[Factors<'_>], parallelism: Parallelism);

    /// Whether a row's result is the same bits however many rows there are.
    fn has_independent_rows(&self) -> bool {
        false
    }

    /// Whether sums over tokens of thin factors are better computed by [`gradient::thin_gradient`] where it is direct.
    fn leaves_thin_sums(&self) -> bool {
        false
    }
}

/// A product `alpha·A·B`.
#[derive(Clone, Copy)]
pub(crate) struct Factors<'a> {
    pub(crate) alpha: f32,
    /// `[rows, depth]`.
    pub(crate) a: View<'a>,
    /// `[depth, cols]`.
    pub(crate) b: View<'a>,
}

/// Whether a product may spread over the thread pool or runs inside one task of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parallelism {
    /// All threads of the pool.
    Pool,
    /// The calling thread alone.
    Single,
}

/// The kernels in use, and the precision they compute in; chosen once, when the program starts.
#[derive(Clone, Copy)]
pub struct Kernels {
    gemm: &'static dyn Gemm,
    unit: Unit,
    precision: Precision,
    independent: bool,
}

impl Kernels {
    /// The fastest kernels that this processor runs, in float32.
    pub fn detect() -> Self {
        let gemm = tiles().unwrap_or_else(vectors);
        Self { gemm, unit: Unit::detect(), precision: Precision::Float32, independent: false }
    }

    /// The plain definition, three loops with float64 accumulation: what the others are tested against.
    pub fn plain() -> Self {
        Self { gemm: &plain::Plain, ..Self::detect() }
    }

    /// Products in bf16 by AMX's tile unit; `None` where the processor has none.
    pub fn amx() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return Self::of(Unit::Amx);
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// Products in bf16 by AVX-512's dot products; `None` where the processor has none.
    pub fn avx512_bf16() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return Self::of(Unit::Avx512);
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// Products of bf16 operands by float32 arithmetic, which every processor has.
    pub fn bf16_in_float32() -> Self {
        Self { unit: Unit::Float32, precision: Precision::Bf16, ..Self::detect() }
    }

    /// Products in bf16 by one unit; `None` where the processor has none.
    pub(crate) fn of(unit: Unit) -> Option<Self> {
        unit.is_supported().then(|| Self { unit, precision: Precision::Bf16, ..Self::detect() })
    }

    /// The same kernels computing in `precision`.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The same kernels, of which none is chosen by a number of rows: a row of a product is the same bits whatever the
    /// others are and however many. In bf16 it always is.
    pub fn with_independent_rows(self) -> Self {
        let gemm = if self.gemm.has_independent_rows() { self.gemm } else { vectors() };
        Self { gemm, independent: true, ..self }
    }

    /// The precision of products, of two values or with a frozen weight.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// `C ← beta·C + alpha·A·B` in float32, whatever the precision.
    pub(crate) fn gemm(&self, c: ViewMut<'_>, beta: f32, alpha: f32, a: View<'_>, b: View<'_>, par: Parallelism) {
        self.gemm_sum(c, beta, &[Factors { alpha, a, b }], par);
    }

    /// `C ← beta·C + Σ alpha·A·B` in float32, whatever the precision, in one pass over `C`.
    pub(crate) fn gemm_sum(&self, c: ViewMut<'_>, beta: f32, sum: &[Factors<'_>], par: Parallelism) {
        for Factors { a, b, .. } in sum {
            assert_eq!(a.rows, c.rows, "a product's rows are its left factor's");
            assert_eq!(b.cols, c.cols, "a product's columns are its right factor's");
            assert_eq!(a.cols, b.rows, "a product's factors share their inner size");
        }
        if c.rows > 0 && c.cols > 0 {
            if self.independent && par == Parallelism::Pool && !self.gemm.has_independent_rows() {
                independent::products(self.gemm, c, beta, sum, par);
            } else {
                self.gemm.gemm(c, beta, sum, par);
            }
        }
    }

    /// `C ← beta·C + alpha·A·B` in the precision in use; in bf16 one factor times `alpha`, and the other, are rounded,
    /// but for sums over tokens that need no packing.
    pub(crate) fn product(
        &self,
        workspace: &Workspace,
        c: ViewMut<'_>,
        beta: f32,
        alpha: f32,
        a: View<'_>,
        b: View<'_>,
    ) {
        match self.precision {
            // A left factor that lies transposed: a sum over the tokens, the gradient of a weight.
            Precision::Float32
                if a.col_stride > 1 && self.gemm.leaves_thin_sums() && gradient::is_direct(c.rows > c.cols, a, b) =>
            {
                gradient::thin_gradient(self.unit, workspace, c, beta, alpha, a, b);
            }
            Precision::Float32 => self.gemm(c, beta, alpha, a, b, Parallelism::Pool),
            Precision::Bf16 if a.col_stride > 1 && c.rows.min(c.cols) <= gradient::THIN => {
                gradient::thin_gradient(self.unit, workspace, c, beta, alpha, a, b);
            }
            Precision::Bf16 if a.col_stride > 1 && b.col_stride == 1 => {
                let (dy, x) = (Tokens::Floats(a.transposed()), Tokens::Floats(b));
                weight_gradient(self.unit, c, beta, alpha, dy, &x.columns(workspace));
            }
            Precision::Bf16 => {
                /// Rows from which several tasks pack the right factor, each for itself.
                const MANY: usize = 256;
                let product =
                    |b: &dyn Columns, c| self.in_bf16(c, beta, Product { a, scale: alpha, b, low_rank: None });
                if b.cols <= gradient::THIN || c.rows >= MANY {
                    product(&PackedColumns::pack(workspace, b), c)
                } else {
                    product(&ViewColumns(b), c)
                }
            }
        }
    }

    /// `C ← beta·C + product` in bf16.
    pub(crate) fn in_bf16(&self, c: ViewMut<'_>, beta: f32, product: Product<'_>) {
        self.unit.product(c, beta, product, Parallelism::Pool);
    }

    /// `C ← product` for several in bf16, in one go.
    pub(crate) fn several_in_bf16(&self, products: Vec<(ViewMut<'_>, Product<'_>)>) {
        self.unit.products(products, Parallelism::Pool);
    }

    /// What multiplies bf16 tiles.
    pub(crate) fn unit(&self) -> Unit {
        self.unit
    }
}

/// float32 products by a tile unit, where the processor has one.
fn tiles() -> Option<&'static dyn Gemm> {
    #[cfg(target_arch = "x86_64")]
    return split::Split::detect().map(|split| -> &'static dyn Gemm { split });
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// float32 products by vector instructions.
fn vectors() -> &'static dyn Gemm {
    #[cfg(target_arch = "x86_64")]
    if let Some(packed) = float32::Packed::detect() {
        return packed;
    }
    &blocked::Blocked
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernels({:?}, {:?}, {:?})", self.precision, self.gemm, self.unit)
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

    /// Some of its columns.
    pub(crate) fn columns(self, columns: Range<usize>) -> Self {
        assert!(columns.end <= self.cols, "a view's columns are among its own");
        let start = (columns.start * self.col_stride).min(self.data.len());
        Self { data: &self.data[start..], cols: columns.len(), ..self }
    }

    /// Some of its rows.
    pub(crate) fn rows(self, rows: Range<usize>) -> Self {
        self.transposed().columns(rows).transposed()
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

    /// One row.
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.row_stride..row * self.row_stride + self.cols]
    }

    /// The same view for a shorter time.
    pub(crate) fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { data: &mut *self.data, ..*self }
    }

    /// Some of its columns.
    pub(crate) fn columns(&mut self, columns: Range<usize>) -> ViewMut<'_> {
        assert!(columns.end <= self.cols, "a view's columns are among its own");
        let start = columns.start.min(self.data.len());
        ViewMut { data: &mut self.data[start..], cols: columns.len(), ..*self }
    }
}
