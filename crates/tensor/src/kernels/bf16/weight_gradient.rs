//! The gradient of a whole weight, `dW[out, in] = scale·dyᵀ·x`: a product whose inner dimension is the tokens.
//!
//! `x` is packed once for all tasks. A task takes some rows of `dW`, packs that part of `dy` into its cache, and goes over
//! the columns. A result larger than the caches is written once, unless there are very many tokens.

use std::cell::RefCell;
use std::ops::Range;

use super::Unit;
use super::operand::{Columns, PackedColumns};
use super::product::{Block, Output, PackedStrips, Target, Term, panels};
use super::rows::on_unit;
use super::tile::{DEPTH, LANES, Tile};
use super::tokens::Tokens;
use crate::kernels::{ViewMut, in_turn};

/// Strips of rows of a task, at the most, and tiles of tokens that it packs at a time: half of the second-level cache.
const MOST_STRIPS: usize = 16;
const MOST_DEPTH: usize = 40;
/// Strips of columns from which half of them are a task's fair share.
const WORTH_HALVING: usize = 8;

/// `dw ← beta·dw + scale·dyᵀ·x` for `dy` `[tokens, out]`, `x` `[tokens, in]` and `dw` `[out, in]`.
pub(crate) fn weight_gradient(unit: Unit, dw: ViewMut<'_>, beta: f32, scale: f32, dy: Tokens<'_>, x: &PackedColumns) {
    assert_eq!(dy.tokens(), x.depth(), "both factors have a row a token");
    assert_eq!((dw.rows, dw.cols), (dy.features(), x.cols()), "a weight's gradient is [out, in]");
    if dw.rows == 0 || dw.cols == 0 {
        return;
    }
    let (row_strips, column_strips) = (dw.rows.div_ceil(LANES), dw.cols.div_ceil(LANES));
    let parts = row_strips.div_ceil(MOST_STRIPS);
    let row_task = row_strips.div_ceil(parts).next_multiple_of(2);
    // An odd number of equal tasks leaves one of two threads idle at the end.
    let halves = parts % 2 == 1 && column_strips >= WORTH_HALVING;
    let column_task = if halves { column_strips.div_ceil(2).next_multiple_of(2) } else { column_strips };
    let (row_tasks, column_tasks) = (row_strips.div_ceil(row_task), column_strips.div_ceil(column_task));
    let output = Output { c: dw.data.as_mut_ptr(), stride: dw.row_stride, rows: dw.rows, cols: dw.cols };
    in_turn(row_tasks * column_tasks, |task| {
        let part = |task: usize, size: usize, all: usize| task * size..all.min((task + 1) * size);
        let task = Task {
            output: &output,
            accumulate: beta != 0.0,
            scale,
            dy,
            x,
            rows: part(task / column_tasks, row_task, row_strips),
            columns: part(task % column_tasks, column_task, column_strips),
        };
        on_unit!(unit, task);
    });
}

/// Some strips of rows by some strips of columns.
struct Task<'a> {
    output: &'a Output,
    accumulate: bool,
    scale: f32,
    dy: Tokens<'a>,
    x: &'a PackedColumns,
    rows: Range<usize>,
    columns: Range<usize>,
}

thread_local! {
    /// A thread's packed rows, which stay in its second-level cache.
    static PACKED: RefCell<Vec<Tile>> = RefCell::default();
}

impl Task<'_> {
    fn run(&self, unit: &impl Block) {
        PACKED.with_borrow_mut(|packed| {
            let tiles = self.dy.tokens().div_ceil(DEPTH);
            let step = tiles.div_ceil(tiles.div_ceil(MOST_DEPTH).max(1)).max(1);
            let size = (self.rows.len() + self.x.strips_at_once()) * step;
            if packed.len() < size {
                packed.resize(size, Tile::ZERO);
            }
            let (scratch, packed) = packed.split_at_mut(self.x.strips_at_once() * step);
            for first in (0..tiles.max(1)).step_by(step) {
                let depth = first..tiles.min(first + step);
                let packed = &mut packed[..self.rows.len() * depth.len()];
                self.dy.pack_rows(self.rows.clone(), depth.clone(), self.scale, packed);
                let a = PackedStrips { tiles: packed, depth: depth.len(), strips: self.rows.len() };
                let target = Target { output: self.output, first_row: self.rows.start * LANES, first_strip: 0 };
                let accumulate = self.accumulate || first > 0;
                let term = Term::new(a, self.x, depth.start, None);
                panels(unit, &target, &[term], self.columns.clone(), accumulate, scratch);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::View;
    use crate::kernels::bf16::tile::{from_bf16, to_bf16};
    use crate::ops::finite_differences::random;
    use crate::{Matrix, Workspace};

    fn rounded(rows: usize, cols: usize, index: u64) -> Matrix {
        let values = random(rows, cols, index).data().iter().map(|value| from_bf16(to_bf16(*value))).collect();
        Matrix::from_vec(rows, cols, values)
    }

    /// Written and added to, for ragged shapes, one and several stretches of tokens, one and several tasks.
    #[test]
    fn equals_its_definition() {
        for (tokens, out, width) in [(1, 1, 1), (33, 17, 40), (70, 300, 33), (1500, 50, 260), (64, 600, 96)] {
            let (dy, x) = (rounded(tokens, out, 0), rounded(tokens, width, 1));
            for unit in Unit::ALL.iter().copied().filter(|unit| unit.is_supported()) {
                let columns = Tokens::Floats(View::of(&x)).columns(&Workspace::new());
                let mut dw = Matrix::from_vec(out, width, vec![f32::NAN; out * width]);
                for (beta, times) in [(0.0, 0.5), (1.0, 1.0)] {
                    let tokens_of_dy = Tokens::Floats(View::of(&dy));
                    weight_gradient(unit, ViewMut::of(&mut dw), beta, 0.5, tokens_of_dy, &columns);
                    for row in 0..out {
                        for col in 0..width {
                            let terms = (0..tokens).map(|token| {
                                let term = f64::from(dy.row(token)[row]) * f64::from(x.row(token)[col]);
                                (term, term.abs())
                            });
                            let (sum, size) = terms.fold((0.0, 0.0), |sum, term| (sum.0 + term.0, sum.1 + term.1));
                            let error = (f64::from(dw.row(row)[col]) - times * sum).abs();
                            assert!(error <= 1e-6 * size + 1e-12, "{tokens} × {out} × {width}, {unit:?}: {error}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (dy, x) = (random(1500, 500, 0), random(1500, 130, 1));
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let columns = Tokens::Floats(View::of(&x)).columns(&Workspace::new());
                let mut dw = Matrix::zeros(500, 130);
                let dy = Tokens::Floats(View::of(&dy));
                weight_gradient(Unit::detect(), ViewMut::of(&mut dw), 0.0, 1.0, dy, &columns);
                dw
            })
        };
        assert!(with(1) == with(2) && with(2) == with(5));
    }
}
