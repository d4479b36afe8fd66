//! The way back.

use std::ops::Range;

use rayon::prelude::*;

use super::{Kept, Parts, fill, tiles_of};
use crate::kernels::bf16::Unit;
use crate::kernels::bf16::pack::unpack;
use crate::kernels::bf16::product::{Block, Output, Target, Term, panels};
use crate::kernels::bf16::rows::{Middle, Packed, Sharing, on_unit, packed};
use crate::kernels::bf16::sums::{Sums, SumsOfRows};
use crate::kernels::bf16::tile::{DEPTH, LANES, Tile, TileBuffer};
use crate::kernels::{View, ViewMut, prefetch_for_later};
use crate::{Matrix, Workspace};

/// Adds to `dx` `[rows, in]`, or writes there, the gradient of the feed-forward's input `x`, given that of its output
/// `dy` `[rows, out]`; gives the gradients of the updates of gate, up and down, and what `keep` asks for. `parts` are the
/// linears' gradients.
#[allow(clippy::too_many_arguments, reason = "the way back needs what came forward, both gradients, and what to keep")]
pub(crate) fn backward(
    unit: Unit,
    workspace: &Workspace,
    parts: &Parts<'_>,
    kept: &Kept,
    x: View<'_>,
    dy: View<'_>,
    dx: Option<(ViewMut<'_>, f32)>,
    keep: [bool; 3],
) -> Made {
    let sharing = Sharing::of(x.rows);
    let mut sums = parts.all().map(|part| Sums::with_room(workspace, part?, sharing.count()));
    let tiles = parts.up.columns.depth() / DEPTH;
    let mut hidden = keep.map(|keep| keep.then(|| TileBuffer::new(workspace, sharing.strips * tiles)));
    let mut hidden_rest = hidden.each_mut().map(|tiles| tiles.as_deref_mut());
    let mut sums_rest = sums.each_mut().map(|sums| sums.as_mut().map(SumsOfRows::all));
    let (mut dx, beta) = dx.map_or((None, 0.0), |(dx, beta)| (Some(dx.data), beta));
    let mut tasks = Vec::new();
    for rows in sharing.tasks(x.rows) {
        let pieces = rows.len().div_ceil(sharing.piece * LANES);
        let own_dx = dx.take().map(|values| {
            let (own, after) = values.split_at_mut(rows.len() * x.cols);
            dx = Some(after);
            (own, beta)
        });
        let own_sums = sums_rest.each_mut().map(|rest| {
            let (own, after) = rest.take()?.split(pieces);
            *rest = Some(after);
            Some(own)
        });
        let own_hidden = hidden_rest.each_mut().map(|rest| {
            let (own, after) = rest.take()?.split_at_mut(rows.len().div_ceil(LANES) * tiles);
            *rest = Some(after);
            Some(own)
        });
        tasks.push(Task {
            workspace,
            parts,
            sharing,
            kept,
            x,
            dy,
            rows,
            dx: own_dx,
            sums: own_sums,
            hidden: own_hidden,
        });
    }
    tasks.into_par_iter().for_each(|task| on_unit!(unit, task));
    sums.par_iter_mut().flatten().for_each(Sums::reduce);
    Made { sums, hidden }
}

/// What the way back makes beside the gradient of the input.
pub(crate) struct Made {
    /// The gradients of the updates of gate, up and down.
    pub(crate) sums: [Option<Sums>; 3],
    /// The gradients of what gate and up computed, and the input of down: strip by strip of the rows, tiles in rows order.
    pub(crate) hidden: [Option<TileBuffer>; 3],
}

/// Some rows.
struct Task<'a, 'b> {
    workspace: &'a Workspace,
    parts: &'a Parts<'a>,
    sharing: Sharing,
    kept: &'a Kept,
    x: View<'a>,
    dy: View<'a>,
    rows: Range<usize>,
    dx: Option<(&'b mut [f32], f32)>,
    sums: [Option<SumsOfRows<'b>>; 3],
    hidden: [Option<&'b mut [Tile]>; 3],
}

/// Of the three linears.
const GATE: usize = 0;
const UP: usize = 1;
const DOWN: usize = 2;

impl Task<'_, '_> {
    fn run(mut self, unit: &impl Block) {
        let Self { workspace, parts, x, dy, kept, .. } = self;
        let rows = self.rows.clone();
        let dy = packed(workspace, dy, rows.clone());
        let strips = dy.strips;
        let mut middles = parts.all().map(|part| Middle::new(workspace, part, strips, rows.start));
        if let Some(middle) = &mut middles[DOWN] {
            middle.add(unit, &dy.strips(), 0..dy.depth, false);
            middle.pack();
        }
        let (hidden, block_strips) = (parts.up.columns.depth(), parts.block_strips());
        let (tiles, block_tiles) = (hidden / DEPTH, block_strips * LANES / DEPTH);
        let kinds = if parts.gate.is_some() { 2 } else { 1 };
        let chunk = self.sharing.chunk(tiles, dy.depth, kinds, block_tiles);
        let [mut gate, mut up, mut inner] =
            [(); 3].map(|()| Matrix::uninitialised(workspace, strips * LANES, block_strips * LANES));
        let mut scratch = TileBuffer::new(workspace, block_strips * dy.depth.max(chunk));
        let first_strip = rows.start / LANES;
        for start in (0..tiles).step_by(chunk) {
            let end = tiles.min(start + chunk);
            let [mut dgate, mut dup] = [(); 2].map(|()| Packed::with_room(workspace, strips, end - start));
            for place in (start..end).step_by(block_tiles) {
                let columns = place * DEPTH..hidden.min((place + block_tiles) * DEPTH);
                let (width, size) = (columns.len(), strips * LANES * columns.len());
                let [gate, up, inner] = [&mut gate, &mut up, &mut inner].map(|block| &mut block.data_mut()[..size]);
                let places = || (place..place + width / DEPTH).enumerate();
                let own = |strip, place| self.sharing.kept_at(first_strip + strip, self.sharing.strips, tiles, place);
                for (_, place) in places() {
                    // What the product is multiplied by comes from far away.
                    for tiles in kept.gate.iter().chain([&kept.up]) {
                        (0..strips)
                            .for_each(|strip| prefetch_for_later(&tiles[own(strip, place)].0, 0..size_of::<Tile>()));
                    }
                }
                let output = Output { c: inner.as_mut_ptr(), stride: width, rows: strips * LANES, cols: width };
                let block = columns.start / LANES..columns.end / LANES;
                let target = Target { output: &output, first_row: 0, first_strip: block.start };
                let second = middles[DOWN].as_ref().map(Middle::second);
                let term = Term::new(dy.strips(), &*parts.down.columns, 0, second);
                panels(unit, &target, &[term], block, false, &mut scratch);
                let gate = if kept.gate.is_some() { gate } else { &mut [] };
                for strip in 0..strips {
                    // A strip of the block stays in the first-level cache through all of this.
                    let floats = strip * LANES * width..(strip + 1) * LANES * width;
                    let gate = gate.get_mut(floats.clone()).unwrap_or_default();
                    let (up, inner) = (&mut up[floats.clone()], &mut inner[floats]);
                    for (block, place) in places() {
                        let (tile, first) = (own(strip, place), block * DEPTH);
                        if let Some(kept) = &kept.gate {
                            unpack(&kept[tile], &mut gate[first..], width);
                        }
                        unpack(&kept.up[tile], &mut up[first..], width);
                    }
                    (parts.gating.backward)(gate, up, inner);
                    let packed = tiles_of(strip, end - start, place - start, width / DEPTH);
                    let whole = tiles_of(strip, tiles, place, width / DEPTH);
                    let [kept_gate, kept_up, kept_inner] = &mut self.hidden;
                    let gradients = [(&*gate, &mut dgate.tiles, kept_gate), (&*up, &mut dup.tiles, kept_up)];
                    for (gradient, tiles, kept) in gradients {
                        if !gradient.is_empty() {
                            fill(&mut tiles[packed.clone()], gradient);
                            if let Some(kept) = kept {
                                kept[whole.clone()].copy_from_slice(&tiles[packed.clone()]);
                            }
                        }
                    }
                    if let Some(kept) = kept_inner {
                        fill(&mut kept[whole], inner);
                    }
                }
                let block = |values| View::rows_of(values, strips * LANES, width, width);
                self.sum_a(DOWN, columns.clone(), middles[DOWN].as_ref(), block(inner));
                for (site, gradient) in [(GATE, &*gate), (UP, &*up)] {
                    if !gradient.is_empty() {
                        self.sum_b(site, columns.clone(), block(gradient));
                    }
                }
            }
            let last = end == tiles;
            let sides = [(GATE, parts.gate.as_ref(), &dgate), (UP, Some(&parts.up), &dup)];
            let mut accumulate = start > 0 || self.dx.as_ref().is_some_and(|(_, beta)| *beta != 0.0);
            for (site, part, gradient) in sides {
                let Some(part) = part else { continue };
                let mut second = None;
                if let Some(middle) = &mut middles[site] {
                    middle.add(unit, &gradient.strips(), start..end, start > 0);
                    if last {
                        middle.pack();
                        second = Some(middle.second());
                    }
                }
                let Some((dx, _)) = &mut self.dx else { continue };
                let dx = Output { c: dx.as_mut_ptr(), stride: x.cols, rows: rows.len(), cols: x.cols };
                let dx = Target { output: &dx, first_row: 0, first_strip: 0 };
                // One after the other: rows of both would not stay in the cache from columns to columns.
                let term = Term::new(gradient.strips(), &*part.columns, start, second);
                panels(unit, &dx, &[term], 0..x.cols.div_ceil(LANES), accumulate, &mut scratch);
                accumulate = true;
            }
        }
        let (x, dy) = (x.rows(rows.clone()), self.dy.rows(rows));
        for site in [GATE, UP] {
            self.sum_a(site, 0..x.cols, middles[site].as_ref(), x);
        }
        self.sum_b(DOWN, 0..dy.cols, dy);
    }

    /// `s·uᵀ·input` for columns of the input: a block of the task's rows.
    fn sum_a(&mut self, site: usize, columns: Range<usize>, u: Option<&Middle<'_>>, input: View<'_>) {
        if let (Some(u), Some(sums)) = (u, &mut self.sums[site]) {
            sums.sum_a(self.rows.start, self.sharing.rows_of_pieces(self.rows.len()), columns, u, input);
        }
    }

    /// `s·tᵀ·dy` for columns of `dy`, that of the linear: a block of the task's rows.
    fn sum_b(&mut self, site: usize, columns: Range<usize>, dy: View<'_>) {
        if let (Some(t), Some(sums)) = (&self.kept.middles[site], &mut self.sums[site]) {
            let t = View::of(t).rows(self.rows.clone());
            sums.sum_b(self.rows.start, self.sharing.rows_of_pieces(self.rows.len()), columns, t, dy);
        }
    }
}
