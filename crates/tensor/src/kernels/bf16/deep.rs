//! Products of many rows over a long inner dimension, as large models have them: neither rows nor results of such sizes stay
//! in a cache from one stretch of the inner dimension to the next.
//!
//! All rows are packed once, some hundred at a time. A task takes a panel of columns, which nobody else reads, and goes
//! along the inner dimension: a stretch of the columns is unpacked into the second-level cache and multiplied by that
//! stretch of all rows, while the sums stay in the same cache, block by block. They are written out once, in the end.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::Unit;
use super::low_rank::{LowRank, LowRankFactors, Second};
use super::operand::{Columns, Lines, Runs};
use super::pack::{Order, pack_strip};
use super::product::{Block, Output, PackedStrips, Product, Strips, resize};
use super::rows::on_unit;
use super::tile::{DEPTH, LANES, Tile};
use crate::kernels::{Parallelism, View, ViewMut, in_turn};

/// Strips of rows that are packed at one time, at the most: their sums for a panel take a quarter of the second-level cache,
/// and a stretch of them another.
const MOST_ROWS: usize = 32;
/// Strips of rows from which unpacking columns for all of them at once pays.
const FEWEST_ROWS: usize = 8;
/// Strips of columns of a panel: a multiple of what any right factor unpacks at once.
const PANEL: usize = 16;
/// Panels from which there is one for each of several threads.
const FEWEST_PANELS: usize = 2;
/// Tiles of the inner dimension from which it is long.
const LONG: usize = 64;
/// Tiles of a stretch: strips this deep of two of the columns and two of the rows, and their sums, stay in the first-level
/// cache together. As many values as [`WeightFormat::unpack`](crate::frozen::WeightFormat::unpack) can be asked for.
const STRETCH: usize = 8;
/// Rows and columns of a block of sums.
const SIDE: usize = 2 * LANES;

/// Whether an inner dimension of `depth` is long.
pub(crate) fn is_long(depth: usize) -> bool {
    depth.div_ceil(DEPTH) > LONG
}

/// Whether `product` is computed here.
pub(super) fn suits(product: &Product<'_>) -> bool {
    let Product { a, b, .. } = product;
    a.rows.div_ceil(LANES) >= FEWEST_ROWS
        && is_long(a.cols)
        && b.cols().div_ceil(LANES).div_ceil(PANEL) >= FEWEST_PANELS
        && PANEL.is_multiple_of(b.strips_at_once())
}

thread_local! {
    /// The rows that a thread packs for all.
    static PACKED: RefCell<Packed> = RefCell::default();
    /// What a task works on.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Rows in tiles, and what a low-rank product makes of them.
#[derive(Default)]
struct Packed {
    rows: Vec<Tile>,
    middle: Vec<f32>,
    packed_middle: Vec<Tile>,
}

#[derive(Default)]
struct Scratch {
    panel: Vec<Tile>,
    sums: Vec<Sums>,
}

/// A block of the result, row by row.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Sums([f32; SIDE * SIDE]);

/// `C ← C (if accumulate) + product`, each value summed along the inner dimension in order.
pub(super) fn product(unit: Unit, c: ViewMut<'_>, accumulate: bool, product: Product<'_>, parallelism: Parallelism) {
    let Product { a, scale, b, mut low_rank } = product;
    let output = Output { c: c.data.as_mut_ptr(), stride: c.row_stride, rows: c.rows, cols: c.cols };
    let strips = a.rows.div_ceil(LANES);
    let chunk = strips.div_ceil(strips.div_ceil(MOST_ROWS)).next_multiple_of(2);
    // Taken out, because a thread that waits for others may begin another product.
    let mut packed = PACKED.take();
    for first in (0..strips).step_by(chunk) {
        let rows = first..strips.min(first + chunk);
        let whole = Whole { unit, output: &output, accumulate, a, scale, b, rows };
        whole.run(&mut packed, low_rank.as_mut(), parallelism);
    }
    PACKED.set(packed);
}

/// Some strips of rows of a product.
struct Whole<'a> {
    unit: Unit,
    output: &'a Output,
    accumulate: bool,
    a: View<'a>,
    scale: f32,
    b: &'a dyn Columns,
    rows: Range<usize>,
}

impl Whole<'_> {
    fn run(&self, packed: &mut Packed, low_rank: Option<&mut LowRank<'_>>, parallelism: Parallelism) {
        let (strips, depth) = (self.rows.len(), self.a.cols.div_ceil(DEPTH));
        let factors = low_rank.as_ref().map(|low_rank| &low_rank.factors);
        let (width, middle_depth) = factors.map_or((0, 0), |factors| (factors.width(), factors.middle_depth()));
        let rows = resize(&mut packed.rows, strips * depth, Tile::ZERO);
        let middle = resize(&mut packed.middle, strips * LANES * width, 0.0);
        let packed_middle = resize(&mut packed.packed_middle, strips * middle_depth, Tile::ZERO);
        self.pack(rows, middle, packed_middle, factors, parallelism);
        let rows = PackedStrips { tiles: rows, depth, strips };
        let mut second = None;
        if let Some(LowRank { factors, middle: output }) = low_rank {
            let first = self.rows.start * LANES;
            for (row, middle) in (first..output.rows).zip(middle.chunks_exact(width)) {
                let start = row * output.row_stride;
                output.data[start..start + factors.rank()].copy_from_slice(&middle[..factors.rank()]);
            }
            second = Some(factors.second(packed_middle));
        }
        let columns = self.b.cols().div_ceil(LANES);
        let task = |panel: usize| {
            let columns = panel * PANEL..columns.min((panel + 1) * PANEL);
            on_unit!(self.unit, Task { whole: self, rows, second, columns });
        };
        let panels = columns.div_ceil(PANEL);
        match parallelism {
            Parallelism::Pool => in_turn(panels, task),
            Parallelism::Single => (0..panels).for_each(task),
        }
    }

    /// Packs the rows, and the middle that `factors` make of them.
    fn pack(
        &self,
        rows: &mut [Tile],
        middle: &mut [f32],
        packed_middle: &mut [Tile],
        factors: Option<&LowRankFactors>,
        parallelism: Parallelism,
    ) {
        let depth = self.a.cols.div_ceil(DEPTH);
        let mut tasks = Vec::new();
        let (mut middle, mut packed_middle) = (middle, packed_middle);
        for (pair, tiles) in rows.chunks_mut(2 * depth).enumerate() {
            let strips = tiles.len() / depth;
            let (width, middle_depth) = factors.map_or((0, 0), |factors| (factors.width(), factors.middle_depth()));
            let own_middle = middle.split_off_mut(..strips * LANES * width).unwrap_or_default();
            let own_packed = packed_middle.split_off_mut(..strips * middle_depth).unwrap_or_default();
            let first = self.rows.start + 2 * pair;
            tasks.push(Pack { whole: self, first, tiles, middle: own_middle, packed_middle: own_packed, factors });
        }
        match parallelism {
            Parallelism::Pool => tasks.into_par_iter().for_each(|task| on_unit!(self.unit, task)),
            Parallelism::Single => tasks.into_iter().for_each(|task| on_unit!(self.unit, task)),
        }
    }
}

/// Two strips of rows that are packed, from strip `first` on.
struct Pack<'a> {
    whole: &'a Whole<'a>,
    first: usize,
    tiles: &'a mut [Tile],
    middle: &'a mut [f32],
    packed_middle: &'a mut [Tile],
    factors: Option<&'a LowRankFactors>,
}

impl Pack<'_> {
    fn run(self, unit: &impl Block) {
        let Self { whole, first, tiles, middle, packed_middle, factors } = self;
        let depth = whole.a.cols.div_ceil(DEPTH);
        for (strip, tiles) in (first..).zip(tiles.chunks_exact_mut(depth)) {
            let lanes = strip * LANES..whole.a.rows.min((strip + 1) * LANES);
            pack_strip(whole.a, lanes, 0, whole.scale, Order::Rows, tiles);
        }
        let Some(factors) = factors else { return };
        let strips = tiles.len() / depth;
        factors.add_middle(unit, &PackedStrips { tiles, depth, strips }, &(0..depth), false, middle);
        let rows = (strips * LANES).min(whole.a.rows - first * LANES);
        factors.keep_blocks(&mut middle[..rows * factors.width()], first * LANES);
        factors.pack_middle(middle, rows, packed_middle);
    }
}

/// All packed rows by a panel of columns.
struct Task<'a> {
    whole: &'a Whole<'a>,
    rows: PackedStrips<'a>,
    second: Option<Second<'a>>,
    columns: Range<usize>,
}

impl Task<'_> {
    fn run(&self, unit: &impl Block) {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { panel, sums } = scratch;
            let blocks = self.rows.strips.div_ceil(2) * self.columns.len().div_ceil(2);
            let sums = resize(sums, blocks, Sums([0.0; SIDE * SIDE]));
            let panel = resize(panel, self.columns.len() * STRETCH, Tile::ZERO);
            if self.whole.accumulate {
                self.read(sums);
            }
            for first in (0..self.rows.depth).step_by(STRETCH) {
                self.stretch(unit, first..self.rows.depth.min(first + STRETCH), panel, sums);
            }
            self.write(sums);
        });
    }

    /// Adds a stretch of the inner dimension to the sums.
    fn stretch(&self, unit: &impl Block, depth: Range<usize>, panel: &mut [Tile], sums: &mut [Sums]) {
        let Self { whole: Whole { b, accumulate, .. }, rows, ref columns, .. } = *self;
        let panel = b.panel(columns.clone(), depth.clone(), &mut panel[..columns.len() * depth.len()]);
        let is_last = depth.end == rows.depth;
        let second = self.second.filter(|_| is_last);
        let accumulate = *accumulate || depth.start > 0;
        let (pairs, row_blocks) = (columns.len().div_ceil(2), rows.strips.div_ceil(2));
        let next = depth.end..rows.depth.min(depth.end + STRETCH);
        let next = if is_last { Runs::NONE } else { Runs::of(rows.tiles, rows.depth, 0..rows.strips, next) };
        let mut ahead = next.in_parts(pairs * row_blocks);
        for (pair, sums) in sums.chunks_exact_mut(row_blocks).enumerate() {
            let column = 2 * pair;
            let b = |place: usize| panel.strip(column + place, depth.len()).as_ptr();
            for (row, sums) in sums.iter_mut().enumerate() {
                let place = Place { row: 2 * row, column: columns.start + column, depth: &depth, second, accumulate };
                let ahead = ahead.next_part();
                match (2 * row + 1 < rows.strips, column + 1 < columns.len()) {
                    (true, true) => place.add::<2, 2>(unit, &rows, [b(0), b(1)], sums, ahead),
                    (true, false) => place.add::<2, 1>(unit, &rows, [b(0)], sums, ahead),
                    (false, true) => place.add::<1, 2>(unit, &rows, [b(0), b(1)], sums, ahead),
                    (false, false) => place.add::<1, 1>(unit, &rows, [b(0)], sums, ahead),
                }
            }
        }
    }

    /// Calls `work` with each row of a block of sums and where in the result it lies.
    fn for_each_row(&self, sums: &mut [Sums], work: impl Fn(&mut [f32], *mut f32)) {
        let Output { c, stride, rows, cols } = *self.whole.output;
        let row_blocks = self.rows.strips.div_ceil(2);
        for block in 0..row_blocks {
            let first = self.whole.rows.start * LANES + block * SIDE;
            for row in 0..SIDE.min(rows - first) {
                let line = c.wrapping_add((first + row) * stride);
                for (pair, sums) in sums.chunks_exact_mut(row_blocks).enumerate() {
                    let column = self.columns.start * LANES + pair * SIDE;
                    let width = SIDE.min(cols - column);
                    work(&mut sums[block].0[row * SIDE..][..width], line.wrapping_add(column));
                }
            }
        }
    }

    #[allow(unsafe_code)]
    fn read(&self, sums: &mut [Sums]) {
        self.for_each_row(sums, |sums, values| {
            // SAFETY: the values lie in the result, and no other task touches these columns.
            unsafe { std::ptr::copy_nonoverlapping(values, sums.as_mut_ptr(), sums.len()) };
        });
    }

    #[allow(unsafe_code)]
    fn write(&self, sums: &mut [Sums]) {
        self.for_each_row(sums, |sums, values| {
            // SAFETY: the values lie in the result, and no other task touches these columns.
            unsafe { std::ptr::copy_nonoverlapping(sums.as_ptr(), values, sums.len()) };
        });
    }
}

/// Which block of the result, and what is added to it.
struct Place<'a> {
    /// Strips; rows begin with the first that is packed.
    row: usize,
    column: usize,
    depth: &'a Range<usize>,
    second: Option<Second<'a>>,
    accumulate: bool,
}

impl Place<'_> {
    #[allow(unsafe_code)]
    fn add<const ROWS: usize, const COLS: usize>(
        &self,
        unit: &impl Block,
        rows: &PackedStrips<'_>,
        b: [*const Tile; COLS],
        sums: &mut Sums,
        ahead: Lines,
    ) {
        let a: [_; ROWS] = std::array::from_fn(|place| rows.strip(self.row + place)[self.depth.clone()].as_ptr());
        let mut strips = [Strips { a, b, depth: self.depth.len() }; 2];
        let mut count = 1;
        if let Some(second) = &self.second {
            let depth = second.a.depth;
            let panel = second.b.panel(self.column..self.column + COLS, 0..depth, &mut []);
            let a: [_; ROWS] = std::array::from_fn(|place| second.a.strip(self.row + place).as_ptr());
            let b = std::array::from_fn(|place| panel.strip(place, depth).as_ptr());
            (strips[1], count) = (Strips { a, b, depth }, 2);
        }
        // SAFETY: the strips have as many tiles, and the sums are a whole block.
        unsafe { unit.block(&strips[..count], sums.0.as_mut_ptr(), SIDE, self.accumulate, ahead) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::bf16::PackedColumns;
    use crate::kernels::bf16::product::by_rows;
    use crate::kernels::blocks::ScaledBlock;
    use crate::ops::finite_differences::random;
    use crate::{FourBitOptions, FourBitType, FourBitWeight, FrozenWeight, Matrix, Workspace};

    const DEPTH: usize = 2100;

    /// Rows of one and of several chunks, full and not, and columns of whole panels and of odd strips.
    const SHAPES: [(usize, usize); 4] = [(128, 512), (145, 300), (520, 257), (1030, 270)];

    /// The result and the middle, computed here and by rows.
    fn both(
        unit: Unit,
        (rows, cols): (usize, usize),
        b: &dyn Columns,
        blocks: Option<Vec<ScaledBlock>>,
        accumulate: bool,
    ) -> [(Matrix, Matrix); 2] {
        const RANK: usize = 20;
        let workspace = Workspace::new();
        let x = random(rows, b.depth(), 1);
        let (inner, outer) = (random(b.depth(), RANK, 2), random(RANK, cols, 3));
        [true, false].map(|deep| {
            let (mut c, mut middle) = (random(rows, cols, 4), Matrix::zeros(rows, RANK));
            let low_rank = blocks.clone().map(|blocks| LowRank {
                factors: LowRankFactors::pack(&workspace, View::of(&inner), View::of(&outer), 0.3, blocks),
                middle: ViewMut::of(&mut middle),
            });
            let product = Product { a: View::of(&x), scale: 0.5, b, low_rank };
            assert!(suits(&product), "{rows} × {cols}");
            let c_view = ViewMut::of(&mut c);
            if deep {
                super::product(unit, c_view, accumulate, product, Parallelism::Pool);
            } else {
                by_rows(unit, vec![(c_view, product)], accumulate, Parallelism::Pool);
            }
            (c, middle)
        })
    }

    #[test]
    fn is_what_tasks_by_rows_make_to_the_bit() {
        let workspace = Workspace::new();
        for unit in Unit::ALL.iter().copied().filter(|unit| unit.is_supported()) {
            for (rows, cols) in SHAPES {
                let weight = PackedColumns::pack(&workspace, View::of(&random(DEPTH, cols, 0)));
                let blocks = |rows, columns, scale| ScaledBlock { rows, columns, scale };
                let halves = vec![blocks(0..100, 0..12, 2.0), blocks(110..rows, 12..20, 0.5)];
                for (low_rank, accumulate) in [(None, false), (Some(Vec::new()), true), (Some(halves), false)] {
                    let [deep, by_rows] = both(unit, (rows, cols), &weight, low_rank, accumulate);
                    assert!(deep == by_rows, "{unit:?}, {rows} × {cols}, accumulate: {accumulate}");
                }
            }
        }
    }

    #[test]
    fn unpacks_codes_as_tasks_by_rows_do() {
        let options = FourBitOptions { quant_type: FourBitType::Nf4, double_quant: true };
        // Rows whose blocks are theirs alone, and rows that share them.
        for (out, input) in [(320, 2112), (2100, 320), (2080, 352)] {
            let values = random(out, input, 0);
            let weight: FrozenWeight =
                FourBitWeight::quantize(values.data(), (out, input), options).expect("numbers can be quantised").into();
            let columns = if input > out { weight.forward_columns() } else { weight.gradient_columns() };
            let columns = columns.expect("a weight of codes has columns");
            for unit in Unit::ALL.iter().copied().filter(|unit| unit.is_supported()) {
                let [deep, by_rows] = both(unit, (150, columns.cols()), &*columns, None, false);
                assert!(deep == by_rows, "{unit:?}, {out} × {input}");
            }
        }
    }
}
