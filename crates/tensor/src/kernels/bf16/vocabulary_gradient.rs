//! The gradient of a trained projection onto a vocabulary under a cross-entropy, without the logits:
//! `dW = scale·(softmax(x·Wᵀ) − onehot(target))ᵀ·x`.
//!
//! What each row's softmax sums to is known from the way forward. A task takes some rows of `W` and computes their logits
//! for all tokens again, which costs less than keeping them all would, and needs no memory.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use super::Unit;
use super::operand::PackedColumns;
use super::pack::{Order, pack_strip};
use super::product::{Block, Output, PackedStrips, Target, Term, panels};
use super::rows::on_unit;
use super::tile::{DEPTH, LANES, Tile, TileBuffer};
use super::tokens::Tokens;
use crate::kernels::{View, ViewMut, exp2_rough, in_turn, vectorised};
use crate::{Matrix, Workspace};

/// Rows of `W` of a task.
const ROWS: usize = 256;
/// Tokens whose logits exist at one time.
const TOKENS: usize = 512;

/// A trained projection onto a vocabulary, and what is known of each token's logits.
pub(crate) struct TrainedVocabulary<'a> {
    /// `[tokens, in]`.
    pub(crate) x: View<'a>,
    /// `[vocabulary, in]`.
    pub(crate) weight: View<'a>,
    /// `log Σ exp(logits)` of each token.
    pub(crate) log_sums: &'a [f32],
    /// One a token.
    pub(crate) targets: &'a [u32],
}

/// `dw ← beta·dw + scale·(softmax(x·Wᵀ) − onehot(target))ᵀ·x` `[vocabulary, in]`.
pub(crate) fn vocabulary_gradient(
    unit: Unit,
    workspace: &Workspace,
    dw: ViewMut<'_>,
    beta: f32,
    scale: f32,
    vocabulary: &TrainedVocabulary<'_>,
) {
    let TrainedVocabulary { x, weight, .. } = *vocabulary;
    assert_eq!((dw.rows, dw.cols), (weight.rows, weight.cols), "a gradient is shaped as its value");
    let tokens = PackedColumns::pack(workspace, x.transposed());
    let features = Tokens::Floats(x).columns(workspace);
    let output = Output { c: dw.data.as_mut_ptr(), stride: dw.row_stride, rows: dw.rows, cols: dw.cols };
    in_turn(weight.rows.div_ceil(ROWS), |task| {
        let rows = task * ROWS..weight.rows.min((task + 1) * ROWS);
        let (tokens, features, output) = (&tokens, &features, &output);
        let task = Task { workspace, vocabulary, rows, tokens, features, output, accumulate: beta != 0.0, scale };
        on_unit!(unit, task);
    });
}

/// Some rows of the weight.
struct Task<'a> {
    workspace: &'a Workspace,
    vocabulary: &'a TrainedVocabulary<'a>,
    rows: Range<usize>,
    /// `xᵀ`.
    tokens: &'a PackedColumns,
    /// `x`.
    features: &'a PackedColumns,
    output: &'a Output,
    accumulate: bool,
    scale: f32,
}

impl Task<'_> {
    fn run(&self, unit: &impl Block) {
        let Self { workspace, vocabulary, output, .. } = *self;
        let TrainedVocabulary { x, weight, log_sums, targets } = *vocabulary;
        let (rows, width) = (self.rows.len(), TOKENS.min(x.rows.next_multiple_of(DEPTH)));
        let strips = rows.div_ceil(LANES);
        let depth = x.cols.div_ceil(DEPTH);
        let mut packed = TileBuffer::new(workspace, strips * depth);
        pack_rows(weight.rows(self.rows.clone()), 1.0, depth, &mut packed);
        let mut logits = Matrix::uninitialised(workspace, strips * LANES, width);
        let mut differences = TileBuffer::new(workspace, strips * (width / DEPTH));
        let mut scratch = TileBuffer::new(workspace, 2 * depth.max(width / DEPTH));
        for start in (0..x.rows).step_by(width) {
            let end = x.rows.min(start + width);
            let a = PackedStrips { tiles: &packed, depth, strips };
            let block =
                Output { c: logits.data_mut().as_mut_ptr(), stride: width, rows: strips * LANES, cols: end - start };
            let target = Target { output: &block, first_row: 0, first_strip: start / LANES };
            let columns = start / LANES..end.div_ceil(LANES);
            panels(unit, &target, &[Term::new(a, self.tokens, 0, None)], columns, false, &mut scratch);
            for row in logits.data_mut().chunks_exact_mut(width).take(rows) {
                vectorised(
                    #[inline(always)]
                    || {
                        for (value, log_sum) in row.iter_mut().zip(&log_sums[start..end]) {
                            *value = exp2_rough((*value - log_sum) * LOG2_E);
                        }
                    },
                );
            }
            for (token, target) in targets[start..end].iter().enumerate() {
                if self.rows.contains(&(*target as usize)) {
                    logits.row_mut(*target as usize - self.rows.start)[token] -= 1.0;
                }
            }
            let tiles = (end - start).div_ceil(DEPTH);
            let differences = &mut differences[..strips * tiles];
            let view = View::rows_of(logits.data(), rows, end - start, width);
            pack_rows(view, self.scale, tiles, differences);
            let a = PackedStrips { tiles: differences, depth: tiles, strips };
            let target = Target { output, first_row: self.rows.start, first_strip: 0 };
            let (term, columns) = (Term::new(a, self.features, start / DEPTH, None), 0..x.cols.div_ceil(LANES));
            panels(unit, &target, &[term], columns, self.accumulate || start > 0, &mut scratch);
        }
    }
}

/// Packs `scale ·` the rows of `view` as a left factor whose strips have `depth` tiles.
fn pack_rows(view: View<'_>, scale: f32, depth: usize, tiles: &mut [Tile]) {
    for (strip, tiles) in tiles.chunks_exact_mut(depth.max(1)).enumerate() {
        pack_strip(view, strip * LANES..view.rows.min((strip + 1) * LANES), 0, scale, Order::Rows, tiles);
    }
}
