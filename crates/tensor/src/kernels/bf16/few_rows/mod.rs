//! Products of a left factor with few rows, as generation makes them at every step, by AMX: bound by how fast weights come
//! from memory and are unpacked, and by how fast threads begin and end.
//!
//! Every thread packs the rows once, and takes strips of the right factor's columns, of all products in one row, until there
//! are none. Strips that lie in tiles are read in the order in which they lie. Strips of codes are unpacked in rows order,
//! which is faster than the right factor's pairs order, and so become the left factor of a transposed product. Whichever
//! factor is the left one, a value is the same sum in the same order, to the bit.

mod coded;
mod packed;
mod unit;

use std::cell::RefCell;
use std::ops::Range;

use super::operand::Columns;
use super::pack::{Order, pack_strip};
use super::product::{Output, Product};
use super::tile::{DEPTH, LANES, Tile};
use crate::kernels::{Parallelism, View, ViewMut, in_pieces};
use unit::Groups;

/// Strips of rows, at the most.
const MOST: usize = unit::MOST_GROUPS;

/// Whether [`products`] computes such a product.
pub(super) fn suits(product: &Product<'_>) -> bool {
    let Product { a, b, low_rank, .. } = product;
    low_rank.is_none()
        && a.rows <= MOST * LANES
        && a.cols > 0
        && a.col_stride == 1
        && (b.is_packed() || b.coded(0).is_some())
}

/// `C ← product` for several that [`suits`] speaks for.
pub(super) fn products(products: Vec<(ViewMut<'_>, Product<'_>)>, parallelism: Parallelism) {
    /// Strips that a thread takes at least.
    const LEAST: usize = 2;
    let wholes: Vec<Whole<'_>> = products.into_iter().map(|(c, product)| Whole::new(c, &product)).collect();
    let strips = wholes.iter().map(Whole::strips).sum();
    in_pieces(strips, LEAST, parallelism == Parallelism::Pool, |pieces| {
        ROWS.with_borrow_mut(|rows| {
            // Which product's rows are packed, and whose shape the unit has.
            let mut packed: Option<(&Whole<'_>, Groups)> = None;
            while let Some(piece) = pieces.take() {
                let mut first = 0;
                for whole in &wholes {
                    let strips = piece.start.max(first) - first..piece.end.clamp(first, first + whole.strips()) - first;
                    first += whole.strips();
                    if strips.is_empty() {
                        continue;
                    }
                    if !packed.as_ref().is_some_and(|(other, _)| whole.has_rows_of(other)) {
                        drop(packed.take());
                        packed = Some((whole, whole.pack(rows)));
                    }
                    if let Some((_, groups)) = &packed {
                        whole.run(groups, strips, rows);
                    }
                }
            }
        });
    });
}

thread_local! {
    /// The packed rows, which stay in the thread's caches.
    static ROWS: RefCell<Vec<Tile>> = RefCell::default();
}

/// A product, and where its result goes.
struct Whole<'a> {
    output: Output,
    a: View<'a>,
    scale: f32,
    b: &'a dyn Columns,
}

impl<'a> Whole<'a> {
    fn new(c: ViewMut<'a>, product: &Product<'a>) -> Self {
        let Product { a, scale, b, .. } = *product;
        Self { output: Output::new(c), a, scale, b }
    }

    /// Strips of columns.
    fn strips(&self) -> usize {
        self.b.cols().div_ceil(LANES)
    }

    /// Tiles of the inner dimension.
    fn depth(&self) -> usize {
        self.a.cols.div_ceil(DEPTH)
    }

    /// Whether the packed rows of the other are this one's.
    fn has_rows_of(&self, other: &Self) -> bool {
        let Self { a, scale, b, .. } = self;
        std::ptr::eq(a.data, other.a.data)
            && (a.rows, a.cols, a.row_stride) == (other.a.rows, other.a.cols, other.a.row_stride)
            && scale.to_bits() == other.scale.to_bits()
            && b.is_packed() == other.b.is_packed()
    }

    /// Packs the rows, strip by strip, and prepares the unit.
    fn pack(&self, tiles: &mut Vec<Tile>) -> Groups {
        let (rows, depth) = (self.a.rows, self.depth());
        let groups = if self.b.is_packed() { Groups::left(rows) } else { Groups::right(rows) };
        // A single row lies as both orders have it.
        let order = if self.b.is_packed() || rows == 1 { Order::Rows } else { Order::Pairs };
        tiles.resize(tiles.len().max(groups.count() * depth), Tile::ZERO);
        for (strip, tiles) in tiles.chunks_exact_mut(depth).take(groups.count()).enumerate() {
            let lanes = strip * LANES..rows.min((strip + 1) * LANES);
            pack_strip(self.a, lanes, 0, self.scale, order, tiles);
        }
        groups
    }

    /// Computes some strips of the result.
    fn run(&self, groups: &Groups, strips: Range<usize>, rows: &[Tile]) {
        let depth = self.depth();
        let rows = &rows[..groups.count() * depth];
        if self.b.is_packed() {
            let panel = self.b.panel(strips.clone(), 0..depth, &mut []);
            packed::strips(groups, rows, &panel, strips, depth, &self.output);
        } else {
            for strip in strips {
                let codes = self.b.coded(strip).expect("all strips of such columns are codes");
                coded::strip(groups, rows, codes, strip, depth, &self.output);
            }
        }
    }
}

impl Output {
    /// Where the value in the first row and in the first column of strip `strip` goes, and how many columns the strip has.
    fn strip(&self, strip: usize) -> (*mut f32, usize) {
        (self.c.wrapping_add(strip * LANES), LANES.min(self.cols - strip * LANES))
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::finite_differences::random;
    use crate::{FrozenWeight, GgmlFormat, GgmlWeight, Kernels, Matrix, Precision, Workspace};

    /// Weights `[out, in]` in tiles and in codes.
    fn weights(out: usize, input: usize) -> Vec<FrozenWeight> {
        let mut weights = vec![FrozenWeight::bf16(&random(out, input, 0))];
        for format in [GgmlFormat::Q4_0, GgmlFormat::Q4_1, GgmlFormat::Q8_0] {
            if input.is_multiple_of(format.block_values()) {
                let mut stream = crate::Seed(5).stream("blocks", 0);
                let bytes = out * input / format.block_values() * format.block_bytes();
                let mut blocks: Vec<u8> = (0..bytes).map(|_| stream.below(256) as u8).collect();
                for block in blocks.chunks_exact_mut(format.block_bytes()) {
                    // Scales are small.
                    (block[1], block[3]) = (block[1] & 0xb0, block[3] & 0xb0);
                }
                weights.push(GgmlWeight::new((out, input), format, blocks.into()).unwrap().into());
            }
        }
        weights
    }

    fn rows(matrix: &Matrix, count: usize) -> Matrix {
        Matrix::from_vec(count, matrix.cols(), matrix.data()[..count * matrix.cols()].to_vec())
    }

    #[test]
    fn few_rows_have_the_bits_that_they_have_among_many() {
        let Some(kernels) = Kernels::amx() else { return eprintln!("skipped: this processor has no AMX") };
        let workspace = Workspace::with_kernels(kernels);
        for (out, input) in [(1, 32), (16, 576), (100, 96), (70, 45), (33, 3000), (300, 64)] {
            for (number, weight) in weights(out, input).iter().enumerate() {
                let x = random(130, input, 1);
                let many = weight.product(&workspace, &x);
                for count in [1, 2, 5, 15, 16, 17, 31, 32, 33, 47, 48, 49] {
                    let few = weight.product(&workspace, &rows(&x, count));
                    assert_eq!(few, rows(&many, count), "weight {number} [{out}, {input}], {count} rows");
                }
            }
        }
    }

    #[test]
    fn products_of_one_input_are_those_made_alone() {
        let workspace = Workspace::with_precision(Precision::Bf16);
        for count in [1, 20] {
            let x = random(count, 96, 1);
            let all: Vec<FrozenWeight> = [64, 5, 100].into_iter().flat_map(|out| weights(out, 96)).collect();
            let mut together: Vec<Matrix> = all.iter().map(|weight| Matrix::zeros(count, weight.rows())).collect();
            let each = all.iter().zip(&mut together).collect();
            workspace.run(|| FrozenWeight::forward_each(&workspace, each, crate::kernels::View::of(&x)));
            for (weight, y) in all.iter().zip(together) {
                assert_eq!(y, weight.product(&workspace, &x), "{count} rows, {weight:?}");
            }
        }
    }
}
