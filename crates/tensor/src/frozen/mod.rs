//! Weights that never change: a type of their own, never on the tape, never with a gradient.
//!
//! How a weight is stored and how its products are computed are two choices: the storage decides what lies in memory,
//! the workspace's [`Precision`] the arithmetic. Products in float32 see the stored values exactly; products in bf16 see
//! them rounded to bf16, together with the other factor. A weight stored in float32 is always multiplied in float32.

mod bf16;
mod float32;
mod format;

pub(crate) use format::WeightFormat;

use std::fmt;
use std::sync::Arc;

use crate::kernels::bf16::{Columns, LowRank, LowRankFactors, Product, RowResults, Vocabulary, cross_entropy};
use crate::kernels::blocks::{ScaledBlock, keep_blocks};
use crate::kernels::{Factors, Parallelism, View, ViewMut};
use crate::shelf::Shelf;
use crate::workspace::Workspace;
use crate::{FourBitWeight, GgmlWeight, Matrix, Precision};

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
    /// The right factor `Wᵀ` `[in, out]` of the forward product in bf16, where the storage has products in bf16.
    fn forward_columns(&self) -> Option<Box<dyn Columns + '_>> {
        None
    }
    /// The right factor `W` `[out, in]` of the input's gradient in bf16, where the storage has products in bf16.
    fn gradient_columns(&self) -> Option<Box<dyn Columns + '_>> {
        None
    }
    /// The weight as float32 values, where that is how it is stored.
    fn as_float32(&self) -> Option<&Matrix> {
        None
    }
    /// Writes row `row` of the weight to `out` as float32.
    fn read_row(&self, row: usize, out: &mut [f32]);
    /// Bytes in memory.
    fn bytes(&self) -> usize;
    /// The weight as 4-bit codes, where that is how it is stored.
    fn as_four_bit(&self) -> Option<&FourBitWeight> {
        None
    }
    /// See [`FrozenWeight::unpacks_fast`].
    fn unpacks_fast(&self) -> bool {
        false
    }
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

    /// A weight `[out, in]` rounded to bf16 for as long as one pass needs it, in a buffer of the workspace.
    pub(crate) fn for_a_pass(workspace: &Workspace, weight: &Matrix) -> Self {
        Self { storage: Arc::new(bf16::Bf16::pack_in(workspace, weight)) }
    }

    /// A copy of a weight as `precision` wants it, on a shelf where it is in bf16.
    pub(crate) fn on(shelf: &mut Shelf, weight: &Matrix, precision: Precision) -> Self {
        match precision {
            Precision::Float32 => Self::float32(Matrix::from_vec(weight.rows(), weight.cols(), weight.to_vec())),
            Precision::Bf16 => Self { storage: Arc::new(bf16::Bf16::pack_on(shelf, weight)) },
        }
    }

    /// A weight as `precision` wants it: float32, or rounded to bf16.
    pub fn in_precision(weight: Matrix, precision: Precision) -> Self {
        match precision {
            Precision::Float32 => Self::float32(weight),
            Precision::Bf16 => Self::bf16(&weight),
        }
    }

    /// A weight in a format that is unpacked as products need it.
    pub(crate) fn stored(format: impl WeightFormat + 'static) -> Self {
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

    /// The weight as 4-bit codes, where that is how it is stored.
    pub fn as_four_bit(&self) -> Option<&FourBitWeight> {
        self.storage.as_four_bit()
    }

    /// Whether it is stored quantised, and this processor unpacks it to bf16 about as fast as it would read bf16.
    pub fn unpacks_fast(&self) -> bool {
        self.storage.unpacks_fast()
    }

    /// Whether the two share one storage, as tied weights do.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage)
    }

    /// `x·Wᵀ` `[tokens, out]` for `x` `[tokens, in]`, outside any tape.
    ///
    /// # Panics
    /// If the widths disagree.
    pub fn product(&self, workspace: &Workspace, x: &Matrix) -> Matrix {
        let mut y = Matrix::uninitialised(workspace, x.rows(), self.rows());
        self.forward(workspace, ViewMut::of(&mut y), 0.0, 1.0, View::of(x));
        y
    }

    /// `dy·W` `[tokens, in]` for `dy` `[tokens, out]`: what a gradient of the product is to its input.
    ///
    /// # Panics
    /// If the widths disagree.
    pub fn product_gradient(&self, workspace: &Workspace, dy: &Matrix) -> Matrix {
        let mut dx = Matrix::uninitialised(workspace, dy.rows(), self.cols());
        self.input_gradient(workspace, ViewMut::of(&mut dx), 0.0, 1.0, View::of(dy));
        dx
    }

    pub(crate) fn forward(&self, workspace: &Workspace, y: ViewMut<'_>, beta: f32, alpha: f32, x: View<'_>) {
        self.storage.forward(workspace, y, beta, alpha, x);
    }

    /// `y[tokens, out] ← x[tokens, in]·Wᵀ` for several weights, in one go where all of them have products in bf16.
    pub(crate) fn forward_each(workspace: &Workspace, weights: Vec<(&Self, &mut Matrix)>, x: View<'_>) {
        let columns: Option<Vec<_>> = weights.iter().map(|(weight, _)| weight.forward_columns()).collect();
        match columns.filter(|_| workspace.kernels().precision() == Precision::Bf16) {
            None => {
                for (weight, y) in weights {
                    weight.forward(workspace, ViewMut::of(y), 0.0, 1.0, x);
                }
            }
            Some(columns) => {
                let products = weights
                    .into_iter()
                    .zip(&columns)
                    .map(|((_, y), b)| (ViewMut::of(y), Product { a: x, scale: 1.0, b: b.as_ref(), low_rank: None }));
                workspace.kernels().several_in_bf16(products.collect());
            }
        }
    }

    /// `Wᵀ` as a right factor in bf16; `None` where the weight has no products in bf16.
    pub(crate) fn forward_columns(&self) -> Option<Box<dyn Columns + '_>> {
        self.storage.forward_columns()
    }

    /// `W` as a right factor in bf16; `None` where the weight has no products in bf16.
    pub(crate) fn gradient_columns(&self) -> Option<Box<dyn Columns + '_>> {
        self.storage.gradient_columns()
    }

    pub(crate) fn input_gradient(&self, workspace: &Workspace, dx: ViewMut<'_>, beta: f32, alpha: f32, dy: View<'_>) {
        self.storage.input_gradient(workspace, dx, beta, alpha, dy);
    }
}

/// A product of two thin trainable factors beside a frozen one: `scale·(x·inner)·outer`.
pub(crate) struct ThinFactors<'a> {
    /// `[depth, r]`, `depth` being the width of `x`.
    pub(crate) inner: View<'a>,
    /// `[r, columns]`.
    pub(crate) outer: View<'a>,
    pub(crate) scale: f32,
    /// What is kept of the middle; empty: everything.
    pub(crate) blocks: &'a [ScaledBlock],
    /// Gets `x·inner` `[tokens, r]`, of which `blocks` keep what is multiplied further.
    pub(crate) middle: &'a mut Matrix,
}

impl FrozenWeight {
    /// `y[tokens, out] ← x[tokens, in]·Wᵀ + thin`, in one pass over `y`, and over `x` where products are bf16.
    pub(crate) fn forward_with(&self, workspace: &Workspace, mut y: ViewMut<'_>, x: View<'_>, thin: ThinFactors<'_>) {
        if let Some(weight) = self.storage.as_float32() {
            return in_float32(workspace, y, 0.0, Factors { alpha: 1.0, a: x, b: View::of(weight).transposed() }, thin);
        }
        match self.forward_columns().filter(|_| workspace.kernels().precision() == Precision::Bf16) {
            Some(columns) => in_one_pass(workspace, y, 0.0, x, &*columns, thin),
            None => {
                self.forward(workspace, y.reborrow(), 0.0, 1.0, x);
                add_thin(workspace, y, x, thin);
            }
        }
    }

    /// `dx[tokens, in] ← beta·dx + dy[tokens, out]·W + thin`, in one pass over `dx`, and over `dy` where products are bf16.
    pub(crate) fn input_gradient_with(
        &self,
        workspace: &Workspace,
        mut dx: ViewMut<'_>,
        beta: f32,
        dy: View<'_>,
        thin: ThinFactors<'_>,
    ) {
        if let Some(weight) = self.storage.as_float32() {
            return in_float32(workspace, dx, beta, Factors { alpha: 1.0, a: dy, b: View::of(weight) }, thin);
        }
        match self.gradient_columns().filter(|_| workspace.kernels().precision() == Precision::Bf16) {
            Some(columns) => in_one_pass(workspace, dx, beta, dy, &*columns, thin),
            None => {
                self.input_gradient(workspace, dx.reborrow(), beta, 1.0, dy);
                add_thin(workspace, dx, dy, thin);
            }
        }
    }
}

impl FrozenWeight {
    /// `−log softmax(x·Wᵀ)[target]` of each row, and the gradients `[rows, in]`, to `results`, where products are bf16;
    /// otherwise does nothing and gives false.
    ///
    /// # Panics
    /// If a target is outside the vocabulary.
    pub(crate) fn cross_entropy(
        &self,
        workspace: &Workspace,
        x: &Matrix,
        targets: &[u32],
        results: RowResults<'_>,
    ) -> bool {
        if workspace.kernels().precision() != Precision::Bf16 {
            return false;
        }
        let (Some(forward), Some(gradient)) = (self.forward_columns(), self.gradient_columns()) else {
            return false;
        };
        let size = self.rows();
        let outside = targets.iter().find(|target| **target as usize >= size);
        assert!(outside.is_none(), "target {} is outside the vocabulary of {size}", outside.unwrap_or(&0));
        let read_row = |row: usize, out: &mut [f32]| self.storage.read_row(row, out);
        let vocabulary =
            Vocabulary { x: View::of(x), forward: &*forward, gradient: &*gradient, read_row: &read_row, targets };
        cross_entropy(workspace.kernels().unit(), &vocabulary, results);
        true
    }
}

fn in_one_pass(
    workspace: &Workspace,
    c: ViewMut<'_>,
    beta: f32,
    a: View<'_>,
    columns: &dyn Columns,
    thin: ThinFactors<'_>,
) {
    let ThinFactors { inner, outer, scale, blocks, middle } = thin;
    let factors = LowRankFactors::pack(workspace, inner, outer, scale, blocks.to_vec());
    let low_rank = Some(LowRank { factors, middle: ViewMut::of(middle) });
    workspace.kernels().in_bf16(c, beta, Product { a, scale: 1.0, b: columns, low_rank });
}

fn in_float32(workspace: &Workspace, c: ViewMut<'_>, beta: f32, frozen: Factors<'_>, thin: ThinFactors<'_>) {
    let ThinFactors { inner, outer, scale, blocks, middle } = thin;
    let kernels = workspace.kernels();
    kernels.product(workspace, ViewMut::of(middle), 0.0, 1.0, frozen.a, inner);
    keep_blocks_of(middle, blocks);
    let thin = Factors { alpha: scale, a: View::of(middle), b: outer };
    kernels.gemm_sum(c, beta, &[frozen, thin], Parallelism::Pool);
}

fn add_thin(workspace: &Workspace, c: ViewMut<'_>, a: View<'_>, thin: ThinFactors<'_>) {
    let ThinFactors { inner, outer, scale, blocks, middle } = thin;
    workspace.kernels().product(workspace, ViewMut::of(middle), 0.0, 1.0, a, inner);
    keep_blocks_of(middle, blocks);
    workspace.kernels().product(workspace, c, 1.0, scale, View::of(middle), outer);
}

/// Leaves of a middle what `blocks` keep.
pub(crate) fn keep_blocks_of(middle: &mut Matrix, blocks: &[ScaledBlock]) {
    let cols = middle.cols();
    keep_blocks(middle.data_mut(), cols, cols, 0, blocks);
}

impl From<FourBitWeight> for FrozenWeight {
    fn from(weight: FourBitWeight) -> Self {
        Self::stored(weight)
    }
}

impl From<GgmlWeight> for FrozenWeight {
    fn from(weight: GgmlWeight) -> Self {
        Self::stored(weight)
    }
}

impl fmt::Debug for FrozenWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, cols) = self.shape();
        write!(f, "FrozenWeight [{rows}, {cols}]")
    }
}
