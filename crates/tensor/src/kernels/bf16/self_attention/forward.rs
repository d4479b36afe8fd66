//! The way forward.

use std::ops::Range;

use rayon::prelude::*;

use super::{Features, Heads, Kept, KeptRows, OUTPUT, Parts, Projected, Shape, VALUES, Which, padded, tasks};
use crate::kernels::bf16::Unit;
use crate::kernels::bf16::pack::{Written, keep};
use crate::kernels::bf16::product::{Block, Output, Target, Term, panels};
use crate::kernels::bf16::rows::{Middle, Packed, add_bias, linear_block, on_unit, packed};
use crate::kernels::bf16::tile::{DEPTH, LANES, TileBuffer, from_bf16, to_bf16};
use crate::kernels::{View, vectorised};
use crate::{Matrix, Segments, Workspace};

/// Writes the attention of `x` `[rows, in]` to `y` `[rows, out]`, and gives what the way back needs if `keep`.
#[expect(clippy::too_many_arguments, reason = "the linears, what lies between them, and where the rows go")]
pub(crate) fn forward(
    unit: Unit,
    workspace: &Workspace,
    shape: Shape,
    heads: &dyn Heads,
    parts: &Parts<'_>,
    segments: &Segments,
    x: View<'_>,
    y: &mut Matrix,
    keep: bool,
) -> Option<Kept> {
    let width = parts.output.columns.cols();
    assert_eq!(y.shape(), (x.rows, width), "an attention's output is as wide as its last linear");
    assert_eq!(segments.total(), x.rows, "the segments cover the rows");
    let mut outputs = y.data_mut();
    let mut all = Vec::new();
    for sequences in tasks(segments) {
        let rows = segments.rows(&sequences);
        let (y, after) = std::mem::take(&mut outputs).split_at_mut(rows.len() * width);
        outputs = after;
        let sequences = sequences.map(|sequence| (sequence, segments.range(sequence))).collect();
        all.push(Task { workspace, shape, heads, parts, sequences, x, rows, y, keep });
    }
    let kept: Vec<Option<KeptRows>> = all.into_par_iter().with_max_len(1).map(|task| on_unit!(unit, task)).collect();
    kept.into_iter().collect::<Option<Vec<_>>>().map(Kept)
}

/// Some sequences.
struct Task<'a, 'b> {
    workspace: &'a Workspace,
    shape: Shape,
    heads: &'a dyn Heads,
    parts: &'a Parts<'a>,
    /// Number and rows of each of them, among those of the batch.
    sequences: Vec<(usize, Range<usize>)>,
    x: View<'a>,
    rows: Range<usize>,
    y: &'b mut [f32],
    keep: bool,
}

impl Task<'_, '_> {
    fn run(self, unit: &impl Block) -> Option<KeptRows> {
        let Self { workspace, shape, parts, .. } = self;
        let (count, rows) = (self.rows.len(), padded(self.rows.len()));
        let x = packed(workspace, self.x, self.rows.clone());
        let strips = x.strips;
        let mut middles = parts.all().map(|part| Middle::new(workspace, Some(part), strips, self.rows.start));
        for middle in middles[..OUTPUT].iter_mut().flatten() {
            middle.add(unit, &x.strips(), 0..x.depth, false);
            middle.pack();
        }
        let mut projected = shape.widths().map(|width| Matrix::uninitialised(workspace, rows, width));
        let mut output = Matrix::uninitialised(workspace, rows, shape.widths()[0]);
        let heads = shape.at_once * shape.group;
        let mut lse = Matrix::uninitialised(workspace, shape.block_count() * count, heads);
        let mut kept = self.keep.then(|| TileBuffer::new(workspace, strips * shape.tiles()));
        let mut attended = Packed::with_room(workspace, strips, shape.kv_heads * shape.group * shape.head_dim / DEPTH);
        let mut scratch = TileBuffer::new(workspace, parts.scratch());
        let written = Written::begin();
        for block in shape.blocks() {
            for (place, (Features { range, first_tile }, values)) in block.sides.iter().zip(&mut projected).enumerate()
            {
                let width = range.len();
                let values = &mut values.data_mut()[..rows * width];
                let second = middles[place].as_ref().map(Middle::second);
                let (x, part) = (x.strips(), parts.all()[place]);
                linear_block(unit, x, part, range.clone(), second, values, &mut scratch);
                if place != VALUES {
                    self.heads.turn(&mut values[..count * width], width, self.rows.start, false);
                }
                // What attends is what is kept, also where it is scaled first.
                round(values);
                if let Some(kept) = &mut kept {
                    for (strip, values) in values.chunks_exact(LANES * width).enumerate() {
                        for place in 0..width / DEPTH {
                            keep(values, place, &mut kept[(first_tile + place) * strips + strip], &written);
                        }
                    }
                }
            }
            let widths = block.sides.each_ref().map(|side| side.range.len());
            let lse = &mut lse.data_mut()[block.number * count * heads..];
            for (sequence, rows) in &self.sequences {
                let rows = rows.start - self.rows.start..rows.end - self.rows.start;
                let of = |width: usize| rows.start * width..rows.end * width;
                let [query, keys, values] = [0, 1, 2].map(|side| &projected[side].data()[of(widths[side])]);
                let output = &mut output.data_mut()[of(widths[0])];
                let lse = &mut lse[of(block.kv_heads * shape.group)];
                let which = Which { sequence: *sequence, block: block.number };
                self.heads.attend(which, Projected { query, keys, values }, output, lse);
            }
            let output = View::rows_of(output.data(), count, widths[0], widths[0]);
            attended.fill(output, block.sides[0].first_tile);
        }
        if let Some(middle) = &mut middles[OUTPUT] {
            middle.add(unit, &attended.strips(), 0..attended.depth, false);
            middle.pack();
        }
        let width = parts.output.columns.cols();
        let y = Output { c: self.y.as_mut_ptr(), stride: width, rows: count, cols: width };
        let y = Target { output: &y, first_row: 0, first_strip: 0 };
        let second = middles[OUTPUT].as_ref().map(Middle::second);
        let term = Term::new(attended.strips(), &*parts.output.columns, 0, second);
        panels(unit, &y, &[term], 0..width.div_ceil(LANES), false, &mut scratch);
        if let Some(bias) = &parts.output.bias {
            add_bias(self.y, bias);
        }
        drop(written);
        let middles = middles.each_ref().map(|middle| Some(middle.as_ref()?.copied(workspace, count)));
        kept.map(|projected| KeptRows { projected, attended, lse, middles })
    }
}

/// Rounds to bf16.
fn round(values: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || values.iter_mut().for_each(|value| *value = from_bf16(to_bf16(*value))),
    );
}
