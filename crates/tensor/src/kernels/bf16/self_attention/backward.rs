//! The way back.

use std::ops::Range;

use rayon::prelude::*;

use super::{Attended, Features, Heads, Kept, KeptRows, OUTPUT, Parts, Projected, Shape, VALUES, Which, padded, tasks};
use crate::kernels::bf16::Unit;
use crate::kernels::bf16::pack::unpack;
use crate::kernels::bf16::product::{Block, Output, Target, Term, panels};
use crate::kernels::bf16::rows::{Middle, Packed, linear_block, on_unit, packed};
use crate::kernels::bf16::sums::{Sums, SumsOfRows};
use crate::kernels::bf16::tile::{DEPTH, LANES, TileBuffer};
use crate::kernels::{View, ViewMut, prefetch_for_later};
use crate::{Matrix, Segments, Workspace};

/// What the gradients are computed from.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) segments: &'a Segments,
    /// `[rows, in]`.
    pub(crate) x: View<'a>,
    /// The gradient of the output `[rows, out]`.
    pub(crate) dy: View<'a>,
}

#[expect(
    clippy::too_many_arguments,
    reason = "the linears, what lies between them, and where the rows come from and go"
)]
/// Adds to `dx` `[rows, in]`, or writes there, the gradient of the attention's input; gives the gradients of the updates of
/// query, keys, values and output, and those of what sequences share, to be added up in order. `parts` are the linears'
/// gradients.
pub(crate) fn backward(
    unit: Unit,
    workspace: &Workspace,
    shape: Shape,
    heads: &dyn Heads,
    parts: &Parts<'_>,
    kept: &Kept,
    inputs: Inputs<'_>,
    dx: Option<(ViewMut<'_>, f32)>,
) -> ([Option<Sums>; 4], Vec<Matrix>) {
    let Inputs { segments, x, dy } = inputs;
    let sequences = tasks(segments);
    let mut sums = parts.all().map(|part| Sums::with_room(workspace, part, sequences.len()));
    let mut sums_rest = sums.each_mut().map(|sums| sums.as_mut().map(SumsOfRows::all));
    let (mut dx, beta) = dx.map_or((None, 0.0), |(dx, beta)| (Some(dx.data), beta));
    let mut all = Vec::new();
    for (sequences, kept) in sequences.into_iter().zip(&kept.0) {
        let rows = segments.rows(&sequences);
        let own_dx = dx.take().map(|values| {
            let (own, after) = values.split_at_mut(rows.len() * x.cols);
            dx = Some(after);
            (own, beta)
        });
        let own_sums = sums_rest.each_mut().map(|rest| {
            let (own, after) = rest.take()?.split(1);
            *rest = Some(after);
            Some(own)
        });
        let sequences = sequences.map(|sequence| (sequence, segments.range(sequence))).collect();
        all.push(Task { workspace, shape, heads, parts, kept, sequences, x, dy, rows, dx: own_dx, sums: own_sums });
    }
    let shared: Vec<Option<Matrix>> = all.into_par_iter().with_max_len(1).map(|task| on_unit!(unit, task)).collect();
    sums.par_iter_mut().flatten().for_each(Sums::reduce);
    (sums, shared.into_iter().flatten().collect())
}

/// Some sequences.
struct Task<'a, 'b> {
    workspace: &'a Workspace,
    shape: Shape,
    heads: &'a dyn Heads,
    parts: &'a Parts<'a>,
    kept: &'a KeptRows,
    /// Number and rows of each of them, among those of the batch.
    sequences: Vec<(usize, Range<usize>)>,
    x: View<'a>,
    dy: View<'a>,
    rows: Range<usize>,
    dx: Option<(&'b mut [f32], f32)>,
    sums: [Option<SumsOfRows<'b>>; 4],
}

impl Task<'_, '_> {
    fn run(mut self, unit: &impl Block) -> Option<Matrix> {
        let Self { workspace, shape, parts, kept, x, .. } = self;
        let mut shared = self.heads.shared();
        let (count, rows) = (self.rows.len(), padded(self.rows.len()));
        let dy = packed(workspace, self.dy, self.rows.clone());
        let strips = dy.strips;
        let mut middles = parts.all().map(|part| Middle::new(workspace, Some(part), strips, self.rows.start));
        if let Some(middle) = &mut middles[OUTPUT] {
            middle.add(unit, &dy.strips(), 0..dy.depth, false);
            middle.pack();
        }
        let room = || shape.widths().map(|width| Matrix::uninitialised(workspace, rows, width));
        let (mut projected, mut gradients) = (room(), room());
        let [mut output, mut gradient] = [(); 2].map(|()| Matrix::uninitialised(workspace, rows, shape.widths()[0]));
        let mut packed_gradients = shape.depths().map(|depth| Packed::with_room(workspace, strips, depth));
        let mut scratch = TileBuffer::new(workspace, parts.scratch());
        for block in shape.blocks() {
            let widths = block.sides.each_ref().map(|side| side.range.len());
            let features = block.sides[0].range.clone();
            // What attended comes from far away.
            for Features { range, first_tile } in &block.sides {
                let tiles = &kept.projected[first_tile * strips..(first_tile + range.len() / DEPTH) * strips];
                prefetch_for_later(tiles, 0..size_of_val(tiles));
            }
            let second = middles[OUTPUT].as_ref().map(Middle::second);
            let into = &mut gradient.data_mut()[..rows * widths[0]];
            linear_block(unit, dy.strips(), &parts.output, features.clone(), second, into, &mut scratch);
            kept.attended.unpack(block.sides[0].first_tile, output.data_mut(), widths[0]);
            for (Features { range, first_tile }, values) in block.sides.iter().zip(&mut projected) {
                let width = range.len();
                for (strip, values) in values.data_mut().chunks_exact_mut(LANES * width).take(strips).enumerate() {
                    for place in 0..width / DEPTH {
                        unpack(
                            &kept.projected[(first_tile + place) * strips + strip],
                            &mut values[place * DEPTH..],
                            width,
                        );
                    }
                }
            }
            let heads = block.kv_heads * shape.group;
            let lse = &kept.lse.data()[block.number * count * shape.at_once * shape.group..];
            for (sequence, rows) in &self.sequences {
                let rows = rows.start - self.rows.start..rows.end - self.rows.start;
                let of = |width: usize| rows.start * width..rows.end * width;
                let [query, keys, values] = [0, 1, 2].map(|side| &projected[side].data()[of(widths[side])]);
                let [dquery, dkeys, dvalues] = &mut gradients;
                let gradients = [
                    &mut dquery.data_mut()[of(widths[0])],
                    &mut dkeys.data_mut()[of(widths[1])],
                    &mut dvalues.data_mut()[of(widths[2])],
                ];
                let attended = Attended {
                    output: &output.data()[of(widths[0])],
                    lse: &lse[of(heads)],
                    gradient: &gradient.data()[of(widths[0])],
                };
                let projected = Projected { query, keys, values };
                let which = Which { sequence: *sequence, block: block.number };
                self.heads.differentiate(which, projected, attended, gradients, shared.as_mut());
            }
            self.sum_a(
                OUTPUT,
                features,
                middles[OUTPUT].as_ref(),
                View::rows_of(output.data(), rows, widths[0], widths[0]),
            );
            for (place, (side, values)) in block.sides.iter().zip(&mut gradients).enumerate() {
                let width = side.range.len();
                let values = &mut values.data_mut()[..rows * width];
                if place != VALUES {
                    self.heads.turn(&mut values[..count * width], width, self.rows.start, true);
                }
                let values = View::rows_of(values, count, width, width);
                self.sum_b(place, side.range.clone(), values);
                packed_gradients[place].fill(values, side.range.start / DEPTH);
            }
        }
        for (middle, gradients) in middles.iter_mut().zip(&packed_gradients) {
            if let Some(middle) = middle {
                middle.add(unit, &gradients.strips(), 0..gradients.depth, false);
                middle.pack();
            }
        }
        if let Some((dx, beta)) = &mut self.dx {
            let terms: [Term<'_>; OUTPUT] = std::array::from_fn(|place| {
                let second = middles[place].as_ref().map(Middle::second);
                Term::new(packed_gradients[place].strips(), &*parts.all()[place].columns, 0, second)
            });
            let dx_rows = Output { c: dx.as_mut_ptr(), stride: x.cols, rows: count, cols: x.cols };
            let target = Target { output: &dx_rows, first_row: 0, first_strip: 0 };
            panels(unit, &target, &terms, 0..x.cols.div_ceil(LANES), *beta != 0.0, &mut scratch);
        }
        let (x, dy) = (x.rows(self.rows.clone()), self.dy.rows(self.rows.clone()));
        for (place, middle) in middles[..OUTPUT].iter().enumerate() {
            self.sum_a(place, 0..x.cols, middle.as_ref(), x);
        }
        self.sum_b(OUTPUT, 0..dy.cols, dy);
        shared
    }

    /// `s·uᵀ·input` for columns of the input.
    fn sum_a(&mut self, place: usize, columns: Range<usize>, u: Option<&Middle<'_>>, input: View<'_>) {
        if let (Some(u), Some(sums)) = (u, &mut self.sums[place]) {
            sums.sum_a(self.rows.start, std::iter::once(0..self.rows.len()), columns, u, input);
        }
    }

    /// `s·tᵀ·dy` for columns of `dy`, that of the linear.
    fn sum_b(&mut self, place: usize, columns: Range<usize>, dy: View<'_>) {
        if let (Some(t), Some(sums)) = (&self.kept.middles[place], &mut self.sums[place]) {
            sums.sum_b(self.rows.start, std::iter::once(0..self.rows.len()), columns, View::of(t), dy);
        }
    }
}
