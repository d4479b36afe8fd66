//! Products of a float32 left factor, packed on the way, and a right factor in tiles: how the work is cut into blocks.
//!
//! A task takes some rows by some columns. It packs its rows for a stretch of the inner dimension into a buffer that stays
//! in the second-level cache, and then goes over the columns, two strips at a time, which stay in the first-level cache
//! while the rows pass. Memory beyond these caches is far slower than the arithmetic: each operand is read once a task and
//! nothing but the result is written.

use std::cell::RefCell;
use std::ops::Range;

use super::Unit;
use super::low_rank::{LowRank, LowRankFactors, Second};
use super::operand::{Columns, Lines, Runs};
use super::pack::{Order, pack_strip};
use super::tile::{DEPTH, LANES, Tile};
use crate::kernels::{Parallelism, View, ViewMut, in_turn};

/// Strips of tiles along the inner dimension: `ROWS` of the left factor, `COLS` of the right one, `depth` tiles each.
#[derive(Clone, Copy)]
pub(super) struct Strips<const ROWS: usize, const COLS: usize> {
    pub(super) a: [*const Tile; ROWS],
    pub(super) b: [*const Tile; COLS],
    pub(super) depth: usize,
}

/// Multiplies strips of tiles into a block of the result.
pub(super) trait Block {
    /// `C ← C (if accumulate) + Σ A·B` over `strips`, tile after tile of the inner dimension in order. Rows of `c` lie
    /// `stride` floats apart. Fetches `ahead` on the way.
    ///
    /// # Safety
    /// The strips exist, and the block of `c` is memory that nobody else uses.
    #[allow(unsafe_code)]
    unsafe fn block<const ROWS: usize, const COLS: usize>(
        &self,
        strips: &[Strips<ROWS, COLS>],
        c: *mut f32,
        stride: usize,
        accumulate: bool,
        ahead: Lines,
    );
}

/// A product to compute: `C ← C (if accumulate) + scale·A·B + low rank`.
pub(crate) struct Product<'a> {
    /// `[rows, depth]`.
    pub(crate) a: View<'a>,
    /// `A` is multiplied by it before it is rounded.
    pub(crate) scale: f32,
    /// `[depth, cols]`.
    pub(crate) b: &'a dyn Columns,
    /// A second product of the same left factor.
    pub(crate) low_rank: Option<LowRank<'a>>,
}

/// Tiles of the inner dimension for which a task packs its rows at one time: all of `tiles`, or as many as leave the packed
/// rows, and unpacked panels of `at_once` strips, in the second-level cache.
fn stretch(tiles: usize, at_once: usize) -> usize {
    const WHOLE: usize = 64;
    const NARROW: usize = 32;
    const WIDE: usize = 16;
    match (tiles <= WHOLE, at_once <= 2) {
        (true, true) => tiles.max(1),
        (false, true) => NARROW,
        (_, false) => WIDE.min(tiles.max(1)),
    }
}

/// Tiles of the inner dimension, of `tiles`, that blocks of `rows` strips of rows take in one pass: strips this deep of two
/// of the columns and two of the rows stay in the first-level cache together.
fn pass(tiles: usize, rows: usize) -> usize {
    const DEEPEST: usize = 12;
    if rows <= 2 { tiles.max(1) } else { tiles.div_ceil(tiles.div_ceil(DEEPEST).max(1)).max(1) }
}

/// Strips of rows and of columns that a task takes of a result that has so many: some of the rows where there are many, and
/// some of the columns where there are few. Depends on the shape alone.
fn task_size(row_strips: usize, b: &dyn Columns) -> (usize, usize) {
    let (column_strips, depth) = (b.cols().div_ceil(LANES), b.depth().div_ceil(DEPTH));
    let at_once = b.strips_at_once();
    const MANY_ROWS: usize = 8;
    const MOST_ROWS: usize = 32;
    /// Tiles of packed rows, which leave half of the second-level cache to the rest.
    const MOST_TILES: usize = 768;
    const FEWEST_COLUMNS: usize = 8;
    if row_strips >= MANY_ROWS {
        // Where columns are unpacked, more rows share that work.
        let most = if b.is_packed() { MOST_ROWS } else { (MOST_TILES / stretch(depth, at_once)).clamp(8, MOST_ROWS) };
        (row_strips.div_ceil(2).next_multiple_of(2).min(most / 2 * 2), column_strips)
    } else {
        (row_strips, column_strips.div_ceil(4).max(FEWEST_COLUMNS).next_multiple_of(at_once))
    }
}

/// Every value of the result is a sum over the inner dimension in one fixed order, whatever the other rows and columns and
/// however the work is shared.
pub(super) fn product(unit: Unit, c: ViewMut<'_>, accumulate: bool, product: Product<'_>, parallelism: Parallelism) {
    products(unit, vec![(c, product)], accumulate, parallelism);
}

/// Several products, whose tasks are shared out together.
pub(super) fn products(
    unit: Unit,
    products: Vec<(ViewMut<'_>, Product<'_>)>,
    accumulate: bool,
    parallelism: Parallelism,
) {
    #[cfg(target_arch = "x86_64")]
    if unit == Unit::Amx && !accumulate && products.iter().all(|(_, product)| super::few_rows::suits(product)) {
        return super::few_rows::products(products, parallelism);
    }
    let (deep, products): (Vec<_>, Vec<_>) = products.into_iter().partition(|(_, product)| super::deep::suits(product));
    deep.into_iter().for_each(|(c, product)| super::deep::product(unit, c, accumulate, product, parallelism));
    by_rows(unit, products, accumulate, parallelism);
}

/// The same, of which a task takes some rows.
pub(super) fn by_rows(
    unit: Unit,
    products: Vec<(ViewMut<'_>, Product<'_>)>,
    accumulate: bool,
    parallelism: Parallelism,
) {
    let wholes: Vec<Whole<'_>> = products.into_iter().map(|(c, product)| Whole::new(c, accumulate, product)).collect();
    let tasks: usize = wholes.iter().map(Whole::tasks).sum();
    let task = |mut task: usize| {
        for whole in &wholes {
            match task.checked_sub(whole.tasks()) {
                None => return whole.run(unit, task),
                Some(after) => task = after,
            }
        }
    };
    match parallelism {
        Parallelism::Pool => in_turn(tasks, task),
        Parallelism::Single => (0..tasks).for_each(task),
    }
}

/// A product, and how it is cut.
struct Whole<'a> {
    output: Output,
    accumulate: bool,
    a: View<'a>,
    scale: f32,
    b: &'a dyn Columns,
    low_rank: Option<SharedLowRank>,
    /// Strips of rows and of columns.
    strips: (usize, usize),
    /// Those of a task.
    task: (usize, usize),
}

impl<'a> Whole<'a> {
    fn new(c: ViewMut<'a>, accumulate: bool, product: Product<'a>) -> Self {
        let Product { a, scale, b, low_rank } = product;
        let strips = (a.rows.div_ceil(LANES), b.cols().div_ceil(LANES));
        let low_rank = low_rank.map(|low_rank| {
            let LowRank { factors, middle } = low_rank;
            SharedLowRank { factors, middle: Output::new(middle) }
        });
        let task = task_size(strips.0, b);
        Self { output: Output::new(c), accumulate, a, scale, b, low_rank, strips, task }
    }

    fn tasks(&self) -> usize {
        self.strips.0.div_ceil(self.task.0) * self.strips.1.div_ceil(self.task.1)
    }

    fn run(&self, unit: Unit, task: usize) {
        let Self { ref output, accumulate, a, scale, b, strips, task: (row_task, column_task), .. } = *self;
        let columns = strips.1.div_ceil(column_task);
        let (row, column) = (task / columns, task % columns);
        let rows = row * row_task..strips.0.min((row + 1) * row_task);
        let columns = column * column_task..strips.1.min((column + 1) * column_task);
        let task = Task { output, accumulate, a, scale, b, low_rank: self.low_rank.as_ref(), rows, columns };
        match unit {
            #[cfg(target_arch = "x86_64")]
            Unit::Amx => task.run(&super::amx::TileUnit::configure()),
            #[cfg(target_arch = "x86_64")]
            Unit::Avx512 => task.run(&super::avx512::VectorUnit::new()),
            Unit::Float32 => task.run(&super::float32::FloatUnit),
        }
    }
}

/// Where a result goes; tasks write to parts that don't overlap.
pub(super) struct Output {
    pub(super) c: *mut f32,
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Output {
    pub(super) fn new(c: ViewMut<'_>) -> Self {
        Self { c: c.data.as_mut_ptr(), stride: c.row_stride, rows: c.rows, cols: c.cols }
    }
}

#[allow(unsafe_code)]
// SAFETY: tasks write to disjoint parts of memory that is borrowed for as long as they run.
unsafe impl Sync for Output {}

struct SharedLowRank {
    factors: LowRankFactors,
    middle: Output,
}

/// One task: some strips of rows by some strips of columns.
struct Task<'a> {
    output: &'a Output,
    accumulate: bool,
    a: View<'a>,
    scale: f32,
    b: &'a dyn Columns,
    low_rank: Option<&'a SharedLowRank>,
    rows: Range<usize>,
    columns: Range<usize>,
}

/// A thread's buffers, which stay in its second-level cache.
#[derive(Default)]
struct Scratch {
    /// The packed rows.
    a: Vec<Tile>,
    /// Unpacked panels of columns.
    panel: Vec<Tile>,
    /// The middle of a low-rank product, and packed.
    middle: Vec<f32>,
    packed_middle: Vec<Tile>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The first `len` values of a buffer that grows to as many and keeps what it holds.
pub(super) fn resize<T: Clone>(buffer: &mut Vec<T>, len: usize, value: T) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, value);
    }
    &mut buffer[..len]
}

impl Task<'_> {
    fn run(&self, unit: &impl Block) {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { a, panel, middle, packed_middle } = scratch;
            let tiles = self.a.cols.div_ceil(DEPTH);
            let at_once = self.b.strips_at_once();
            let step = stretch(tiles, at_once);
            let panel = resize(panel, at_once * step, Tile::ZERO);
            let rank = self.low_rank.map_or(0, |low_rank| low_rank.factors.width());
            let middle = resize(middle, rank * self.rows.len() * LANES, 0.0);
            for first in (0..tiles.max(1)).step_by(step) {
                let depth = first..tiles.min(first + step);
                let a = self.pack(resize(a, self.rows.len() * step, Tile::ZERO), &depth);
                let mut second = None;
                if let Some(low_rank) = self.low_rank {
                    low_rank.factors.add_middle(unit, &a, &depth, first > 0, middle);
                    if depth.end == tiles {
                        second = Some(self.finish_middle(low_rank, middle, packed_middle));
                    }
                }
                let target = Target { output: self.output, first_row: self.rows.start * LANES, first_strip: 0 };
                let accumulate = self.accumulate || first > 0;
                let term = Term { a, b: self.b, depth, second };
                panels(unit, &target, &[term], self.columns.clone(), accumulate, panel);
            }
        });
    }

    /// Packs the task's rows for a stretch of the inner dimension.
    fn pack<'b>(&self, tiles: &'b mut [Tile], depth: &Range<usize>) -> PackedStrips<'b> {
        let stride = depth.len();
        for (place, strip) in self.rows.clone().enumerate() {
            let lanes = strip * LANES..self.a.rows.min((strip + 1) * LANES);
            let tiles = &mut tiles[place * stride..(place + 1) * stride];
            pack_strip(self.a, lanes, depth.start * DEPTH, self.scale, Order::Rows, tiles);
        }
        PackedStrips { tiles, depth: stride, strips: self.rows.len() }
    }

    /// Gives out the middle of the low-rank product, and packs it as the left factor of its second half.
    fn finish_middle<'b>(
        &self,
        low_rank: &'b SharedLowRank,
        middle: &mut [f32],
        tiles: &'b mut Vec<Tile>,
    ) -> Second<'b> {
        let SharedLowRank { factors, middle: output } = low_rank;
        let first = self.rows.start * LANES;
        let rows = (self.rows.len() * LANES).min(self.a.rows - first);
        factors.keep_blocks(&mut middle[..rows * factors.width()], first);
        if self.columns.start == 0 {
            for row in 0..rows {
                let values = &middle[row * factors.width()..][..factors.rank()];
                // SAFETY: the rows are this task's, and of the tasks of these rows this is the first.
                #[allow(unsafe_code)]
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        values.as_ptr(),
                        output.c.add((first + row) * output.stride),
                        values.len(),
                    );
                }
            }
        }
        let tiles = resize(tiles, self.rows.len() * factors.middle_depth(), Tile::ZERO);
        factors.pack_middle(middle, rows, tiles);
        factors.second(tiles)
    }
}

/// A product of packed rows, and a thin one of the same rows beside it.
pub(super) struct Term<'a> {
    pub(super) a: PackedStrips<'a>,
    pub(super) b: &'a dyn Columns,
    /// The tiles of `b`'s inner dimension, which are all of `a`'s.
    pub(super) depth: Range<usize>,
    pub(super) second: Option<Second<'a>>,
}

impl<'a> Term<'a> {
    /// `a` by the tiles from `first` on of `b`'s inner dimension.
    pub(super) fn new(a: PackedStrips<'a>, b: &'a dyn Columns, first: usize, second: Option<Second<'a>>) -> Self {
        let depth = first..first + a.depth;
        Self { a, b, depth, second }
    }
}

/// The sum of `terms`, of equally many rows, for the strips `strips` of columns, whose panels begin with the first of them.
/// `scratch` has room for a panel of any of them. What of the result is worked on stays in the cache through all terms.
pub(super) fn panels(
    unit: &impl Block,
    target: &Target<'_>,
    terms: &[Term<'_>],
    strips: Range<usize>,
    accumulate: bool,
    scratch: &mut [Tile],
) {
    let at_once = terms.iter().map(|term| term.b.strips_at_once()).max().unwrap_or(2);
    for start in strips.clone().step_by(at_once) {
        let strips = start..strips.end.min(start + at_once);
        for (number, Term { a, b, depth, second }) in terms.iter().enumerate() {
            let (second, accumulate) = (second.as_ref(), accumulate || number > 0);
            let panel = b.panel(strips.clone(), depth.clone(), &mut scratch[..strips.len() * depth.len()]);
            for pair in strips.clone().step_by(2) {
                let place = pair - start;
                let b0 = panel.strip(place, depth.len());
                let ahead = b.runs_of_pair(pair + 2, depth.clone());
                if pair + 1 < strips.end {
                    let b = [b0, panel.strip(place + 1, depth.len())];
                    columns(unit, target, a, b, pair, second, accumulate, ahead);
                } else {
                    columns(unit, target, a, [b0], pair, second, accumulate, ahead);
                }
            }
        }
    }
}

/// All packed rows by one or two strips of columns; `ahead` is what comes next.
#[allow(clippy::too_many_arguments, reason = "a loop over blocks needs both factors and the result")]
pub(super) fn columns<const COLS: usize>(
    unit: &impl Block,
    target: &Target<'_>,
    a: &PackedStrips<'_>,
    b: [&[Tile]; COLS],
    column_strip: usize,
    second: Option<&Second<'_>>,
    accumulate: bool,
    ahead: Runs,
) {
    let second_b = second.map(|second| {
        let depth = second.a.depth;
        let panel = second.b.panel(column_strip..column_strip + COLS, 0..depth, &mut []);
        std::array::from_fn(|col| panel.strip(col, depth).as_ptr())
    });
    let second = second.zip(second_b);
    let step = pass(a.depth, a.strips);
    let blocks = a.strips.div_ceil(2);
    let mut ahead = ahead.in_parts(a.depth.max(1).div_ceil(step) * blocks);
    for first in (0..a.depth.max(1)).step_by(step) {
        let depth = first..a.depth.min(first + step);
        let b = b.map(|strip| strip[depth.clone()].as_ptr());
        let second = second.filter(|_| depth.end == a.depth);
        let accumulate = accumulate || first > 0;
        for row in (0..a.strips).step_by(2) {
            let place = (row, column_strip);
            let lines = ahead.next_part();
            if row + 1 < a.strips {
                rows::<2, COLS>(unit, target, a, b, &depth, place, second, accumulate, lines);
            } else {
                rows::<1, COLS>(unit, target, a, b, &depth, place, second, accumulate, lines);
            }
        }
    }
}

/// Strips of packed rows, `depth` tiles each.
#[derive(Clone, Copy)]
pub(super) struct PackedStrips<'a> {
    pub(super) tiles: &'a [Tile],
    pub(super) depth: usize,
    pub(super) strips: usize,
}

impl PackedStrips<'_> {
    pub(super) fn strip(&self, strip: usize) -> &[Tile] {
        &self.tiles[strip * self.depth..(strip + 1) * self.depth]
    }
}

/// An output, and where in it a task's first row lies.
pub(super) struct Target<'a> {
    pub(super) output: &'a Output,
    pub(super) first_row: usize,
    /// The strip of columns that the output begins with.
    pub(super) first_strip: usize,
}

/// One block, over the tiles `depth` of the rows' strips; `b` begins there.
#[allow(clippy::too_many_arguments, reason = "a block needs both factors and the result")]
#[allow(unsafe_code)]
fn rows<const ROWS: usize, const COLS: usize>(
    unit: &impl Block,
    target: &Target<'_>,
    a: &PackedStrips<'_>,
    b: [*const Tile; COLS],
    depth: &Range<usize>,
    (row, col): (usize, usize),
    second: Option<(&Second<'_>, [*const Tile; COLS])>,
    accumulate: bool,
    ahead: Lines,
) {
    let left: [*const Tile; ROWS] = std::array::from_fn(|strip| a.strip(row + strip)[depth.clone()].as_ptr());
    let mut strips = [Strips { a: left, b, depth: depth.len() }; 2];
    let mut count = 1;
    if let Some((second, b)) = second {
        let depth = second.a.depth;
        strips[1] = Strips { a: std::array::from_fn(|strip| second.a.strip(row + strip).as_ptr()), b, depth };
        count = 2;
    }
    let strips = &strips[..count];
    let Output { c, stride, rows, cols } = *target.output;
    let (first_row, first_col) = (target.first_row + row * LANES, (col - target.first_strip) * LANES);
    let (rows, cols) = ((ROWS * LANES).min(rows - first_row), (COLS * LANES).min(cols - first_col));
    // SAFETY: the block lies in the output, which other tasks don't touch here; strips have `depth` tiles.
    unsafe {
        let c = c.add(first_row * stride + first_col);
        if rows == ROWS * LANES && cols == COLS * LANES {
            unit.block(strips, c, stride, accumulate, ahead);
            return;
        }
        let mut edge = Edge([0.0; 4 * LANES * LANES]);
        let width = COLS * LANES;
        if accumulate {
            for row in 0..rows {
                std::ptr::copy_nonoverlapping(c.add(row * stride), edge.0.as_mut_ptr().add(row * width), cols);
            }
        }
        unit.block(strips, edge.0.as_mut_ptr(), width, accumulate, ahead);
        for row in 0..rows {
            std::ptr::copy_nonoverlapping(edge.0.as_ptr().add(row * width), c.add(row * stride), cols);
        }
    }
}

/// A block that reaches over the edge of the result.
#[repr(align(64))]
struct Edge([f32; 4 * LANES * LANES]);
