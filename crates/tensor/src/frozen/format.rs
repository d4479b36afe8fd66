//! Weights in formats that no kernel multiplies directly: they are unpacked piece by piece, into caches, while a product
//! runs.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::Storage;
use crate::kernels::bf16::{Columns, DEPTH, LANES, Order, Panel, Product, Tile, corner, pack};
use crate::kernels::{Parallelism, View, ViewMut};
use crate::{FourBitWeight, Matrix, Precision, Workspace};

/// A storage format of a weight `[out, in]`, such as 4-bit blocks. It only knows how to unpack itself; products, row
/// reading and gradients of the input follow.
pub trait WeightFormat: Send + Sync {
    /// `(out, in)`.
    fn shape(&self) -> (usize, usize);

    /// Writes the values of `rows` by `cols` to `out` (`rows.len() · cols.len()` places), row by row. `cols` begins at a
    /// multiple of 256 and ends at one or with the row, so that it cuts no block of up to 256 values of a row.
    fn unpack(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]);

    /// Bytes in memory.
    fn bytes(&self) -> usize;

    /// The weight as 4-bit codes, where that is its format.
    fn as_four_bit(&self) -> Option<&FourBitWeight> {
        None
    }
}

pub(super) struct Unpacked<F>(pub(super) F);

impl<F: WeightFormat> Storage for Unpacked<F> {
    fn shape(&self) -> (usize, usize) {
        self.0.shape()
    }

    fn forward(&self, workspace: &Workspace, y: ViewMut<'_>, beta: f32, alpha: f32, x: View<'_>) {
        match workspace.kernels().precision() {
            Precision::Float32 => forward_in_float32(&self.0, workspace, y, beta, alpha, x),
            Precision::Bf16 => {
                let product = Product { a: x, scale: alpha, b: &Forward(&self.0), low_rank: None };
                workspace.kernels().in_bf16(y, beta, product);
            }
        }
    }

    fn input_gradient(&self, workspace: &Workspace, dx: ViewMut<'_>, beta: f32, alpha: f32, dy: View<'_>) {
        match workspace.kernels().precision() {
            Precision::Float32 => input_gradient_in_float32(&self.0, workspace, dx, beta, alpha, dy),
            Precision::Bf16 => {
                let product = Product { a: dy, scale: alpha, b: &InputGradient(&self.0), low_rank: None };
                workspace.kernels().in_bf16(dx, beta, product);
            }
        }
    }

    fn forward_columns(&self) -> Option<Box<dyn Columns + '_>> {
        Some(Box::new(Forward(&self.0)))
    }

    fn gradient_columns(&self) -> Option<Box<dyn Columns + '_>> {
        Some(Box::new(InputGradient(&self.0)))
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        self.0.unpack(row..row + 1, 0..self.0.shape().1, out);
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn as_four_bit(&self) -> Option<&FourBitWeight> {
        self.0.as_four_bit()
    }
}

/// Output features that are unpacked to float32 at one time.
const UNPACKED_ROWS: usize = 256;
/// Rows that one task unpacks.
const TASK_ROWS: usize = 16;

/// `y ← beta·y + alpha·x·Wᵀ` in float32.
pub(super) fn forward_in_float32(
    weight: &impl WeightFormat,
    workspace: &Workspace,
    mut y: ViewMut<'_>,
    beta: f32,
    alpha: f32,
    x: View<'_>,
) {
    for_each_block(weight, workspace, |rows, block| {
        workspace.kernels().gemm(y.columns(rows), beta, alpha, x, View::of(block).transposed(), Parallelism::Pool);
    });
}

/// `dx ← beta·dx + alpha·dy·W` in float32.
pub(super) fn input_gradient_in_float32(
    weight: &impl WeightFormat,
    workspace: &Workspace,
    mut dx: ViewMut<'_>,
    beta: f32,
    alpha: f32,
    dy: View<'_>,
) {
    let all = 0..weight.shape().1;
    for_each_block(weight, workspace, |rows, block| {
        let beta = if rows.start == 0 { beta } else { 1.0 };
        let dy = dy.columns(rows);
        workspace.kernels().gemm(dx.columns(all.clone()), beta, alpha, dy, View::of(block), Parallelism::Pool);
    });
}

/// Calls `work(rows, values)` for blocks of output features, one after the other.
fn for_each_block(weight: &impl WeightFormat, workspace: &Workspace, mut work: impl FnMut(Range<usize>, &Matrix)) {
    let (rows, cols) = weight.shape();
    for start in (0..rows).step_by(UNPACKED_ROWS) {
        let block = start..rows.min(start + UNPACKED_ROWS);
        let mut values = Matrix::uninitialised(workspace, block.len(), cols);
        values.data_mut().par_chunks_mut((TASK_ROWS * cols).max(1)).enumerate().for_each(|(task, values)| {
            let first = start + task * TASK_ROWS;
            weight.unpack(first..block.end.min(first + TASK_ROWS), 0..cols, values);
        });
        work(block, &values);
    }
}

thread_local! {
    /// Where a piece of a weight is unpacked to float32 before it becomes tiles.
    static PIECE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn with_piece(floats: usize, work: impl FnOnce(&mut [f32])) {
    PIECE.with_borrow_mut(|piece| {
        piece.resize(piece.len().max(floats), 0.0);
        work(&mut piece[..floats]);
    });
}

/// `Wᵀ` `[in, out]`, the right factor of the forward product.
struct Forward<'a, F>(&'a F);

impl<F: WeightFormat> Columns for Forward<'_, F> {
    fn depth(&self) -> usize {
        self.0.shape().1
    }

    fn cols(&self) -> usize {
        self.0.shape().0
    }

    fn panel<'a>(&'a self, strips: Range<usize>, depth: Range<usize>, scratch: &'a mut [Tile]) -> Panel<'a> {
        let (rows, cols) = self.0.shape();
        let cols = depth.start * DEPTH..cols.min(depth.end * DEPTH);
        for (place, strip) in strips.enumerate() {
            let rows = strip * LANES..rows.min((strip + 1) * LANES);
            with_piece(rows.len() * cols.len(), |piece| {
                self.0.unpack(rows.clone(), cols.clone(), piece);
                let lanes = View::rows_of(piece, rows.len(), cols.len(), cols.len());
                for tile in 0..depth.len() {
                    pack(corner(lanes, 0, tile, 1.0), Order::Pairs, &mut scratch[place * depth.len() + tile]);
                }
            });
        }
        Panel { tiles: scratch, stride: depth.len() }
    }
}

/// `W` `[out, in]`, the right factor of the input's gradient.
struct InputGradient<'a, F>(&'a F);

impl<F: WeightFormat> Columns for InputGradient<'_, F> {
    fn depth(&self) -> usize {
        self.0.shape().0
    }

    fn cols(&self) -> usize {
        self.0.shape().1
    }

    /// 256 columns, the largest block that [`WeightFormat::unpack`] promises not to cut.
    fn strips_at_once(&self) -> usize {
        256 / LANES
    }

    fn panel<'a>(&'a self, strips: Range<usize>, depth: Range<usize>, scratch: &'a mut [Tile]) -> Panel<'a> {
        let (rows, cols) = self.0.shape();
        let cols = strips.start * LANES..cols.min(strips.end * LANES);
        for (place, tile) in depth.clone().enumerate() {
            let rows = tile * DEPTH..rows.min((tile + 1) * DEPTH);
            with_piece(rows.len() * cols.len(), |piece| {
                self.0.unpack(rows.clone(), cols.clone(), piece);
                let lanes = View::rows_of(piece, rows.len(), cols.len(), cols.len()).transposed();
                for strip in 0..strips.len() {
                    pack(corner(lanes, strip, 0, 1.0), Order::Pairs, &mut scratch[strip * depth.len() + place]);
                }
            });
        }
        Panel { tiles: scratch, stride: depth.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::random;
    use crate::{FrozenWeight, Kernels};

    /// bf16 values kept as float32, which must give what other storages of the same values give.
    struct Values(Matrix);

    impl WeightFormat for Values {
        fn shape(&self) -> (usize, usize) {
            self.0.shape()
        }

        fn unpack(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
            assert!(cols.start.is_multiple_of(256) && (cols.end.is_multiple_of(256) || cols.end == self.0.cols()));
            for (row, out) in rows.zip(out.chunks_exact_mut(cols.len())) {
                out.copy_from_slice(&self.0.row(row)[cols.clone()]);
            }
        }

        fn bytes(&self) -> usize {
            size_of_val(self.0.data())
        }
    }

    #[test]
    fn gives_the_products_of_the_values_it_unpacks() {
        for (rows, cols) in [(5, 7), (300, 40), (40, 900), (33, 257), (700, 580)] {
            let bf16 = FrozenWeight::bf16(&random(rows, cols, 0));
            let values = bf16.to_matrix();
            let stored = FrozenWeight::stored(Values(values.clone()));
            assert_eq!(stored.to_matrix(), values);
            for precision in [Precision::Float32, Precision::Bf16] {
                let workspace = Workspace::with_kernels(Kernels::detect().with_precision(precision));
                let forward = |weight: &FrozenWeight| {
                    let mut y = random(19, rows, 1);
                    weight.forward(&workspace, ViewMut::of(&mut y), 1.0, 0.5, View::of(&random(19, cols, 2)));
                    y
                };
                assert_eq!(forward(&stored), forward(&bf16), "[{rows}, {cols}], {precision:?}");
                let backward = |weight: &FrozenWeight| {
                    let mut dx = random(19, cols, 1);
                    weight.input_gradient(&workspace, ViewMut::of(&mut dx), 1.0, 0.5, View::of(&random(19, rows, 2)));
                    dx
                };
                assert_eq!(backward(&stored), backward(&bf16), "[{rows}, {cols}], {precision:?}");
            }
        }
    }
}
