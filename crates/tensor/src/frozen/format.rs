//! Weights in formats that no kernel multiplies directly: they are unpacked piece by piece, into caches, while a product
//! runs.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::Storage;
use crate::kernels::bf16::coded::{self, CodedStrip};
use crate::kernels::bf16::{Columns, DEPTH, LANES, Order, Panel, Product, Tile, corner, pack, turn};
use crate::kernels::{Parallelism, View, ViewMut};
use crate::{FourBitWeight, Matrix, Precision, Workspace};

/// A storage format of a weight `[out, in]`, such as 4-bit blocks. It only knows how to unpack itself; products, row
/// reading and gradients of the input follow.
pub(crate) trait WeightFormat: Send + Sync {
    /// `(out, in)`.
    fn shape(&self) -> (usize, usize);

    /// Writes the values of `rows` by `cols` to `out` (`rows.len() · cols.len()` places), row by row. `cols` begins at a
    /// multiple of 256 and ends at one or with the row, so that it cuts no block of up to 256 values of a row.
    fn unpack(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]);

    /// The rows of strip `strip` (of 16 rows, the last one fewer) as codes, where they become tiles faster than by way of
    /// `unpack`.
    fn coded(&self, _strip: usize) -> Option<CodedStrip<'_>> {
        None
    }

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

    fn unpacks_fast(&self) -> bool {
        coded::is_supported() && self.0.shape().0 > 0 && self.0.coded(0).is_some()
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

/// A strip as codes, where the format has them and the processor a fast way from them to tiles.
fn codes(weight: &impl WeightFormat, strip: usize) -> Option<CodedStrip<'_>> {
    weight.coded(strip).filter(|_| coded::is_supported())
}

/// Fills the tiles of `W` `[out, in]`, at most [`AT_ONCE`] strips of its columns by `depth` of its rows, from codes: each two
/// tiles of `Wᵀ`, turned. Does nothing and gives false where the format has none.
fn turn_coded(weight: &impl WeightFormat, strips: Range<usize>, depth: Range<usize>, scratch: &mut [Tile]) -> bool {
    let rows = weight.shape().0.div_ceil(LANES);
    let inputs = strips.start / 2..strips.end.div_ceil(2);
    let mut tiles = [[Tile::ZERO; AT_ONCE / 2]; 2];
    for (at, outputs) in depth.clone().enumerate() {
        for (half, tiles) in tiles.iter_mut().enumerate() {
            let tiles = &mut tiles[..inputs.len()];
            let strip = 2 * outputs + half;
            if strip >= rows {
                tiles.fill(Tile::ZERO);
                continue;
            }
            match codes(weight, strip) {
                Some(strip) => coded::unpack_rows(strip, inputs.clone(), tiles),
                None => return false,
            }
        }
        for (place, tile) in scratch.chunks_exact_mut(depth.len()).take(strips.len()).enumerate() {
            let (first, second) = (&tiles[0][place / 2], &tiles[1][place / 2]);
            turn(first, second, place % 2 * LANES, Order::Pairs, &mut tile[at]);
        }
    }
    true
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

    fn coded(&self, strip: usize) -> Option<CodedStrip<'_>> {
        codes(self.0, strip)
    }

    fn panel<'a>(&'a self, strips: Range<usize>, depth: Range<usize>, scratch: &'a mut [Tile]) -> Panel<'a> {
        let (rows, cols) = self.0.shape();
        let cols = depth.start * DEPTH..cols.min(depth.end * DEPTH);
        for (place, strip) in strips.enumerate() {
            let tiles = &mut scratch[place * depth.len()..(place + 1) * depth.len()];
            if let Some(strip) = codes(self.0, strip) {
                coded::unpack(&strip, depth.clone(), tiles);
                continue;
            }
            let rows = strip * LANES..rows.min((strip + 1) * LANES);
            with_piece(rows.len() * cols.len(), |piece| {
                self.0.unpack(rows.clone(), cols.clone(), piece);
                let lanes = View::rows_of(piece, rows.len(), cols.len(), cols.len());
                for (place, tile) in tiles.iter_mut().enumerate() {
                    pack(corner(lanes, 0, place, 1.0), Order::Pairs, tile);
                }
            });
        }
        Panel { tiles: scratch, stride: depth.len() }
    }
}

/// Strips of 256 columns, the largest block that [`WeightFormat::unpack`] promises not to cut.
const AT_ONCE: usize = 256 / LANES;

/// `W` `[out, in]`, the right factor of the input's gradient.
struct InputGradient<'a, F>(&'a F);

impl<F: WeightFormat> Columns for InputGradient<'_, F> {
    fn depth(&self) -> usize {
        self.0.shape().0
    }

    fn cols(&self) -> usize {
        self.0.shape().1
    }

    fn strips_at_once(&self) -> usize {
        AT_ONCE
    }

    fn panel<'a>(&'a self, strips: Range<usize>, depth: Range<usize>, scratch: &'a mut [Tile]) -> Panel<'a> {
        let (rows, cols) = self.0.shape();
        if turn_coded(self.0, strips.clone(), depth.clone(), scratch) {
            return Panel { tiles: scratch, stride: depth.len() };
        }
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
