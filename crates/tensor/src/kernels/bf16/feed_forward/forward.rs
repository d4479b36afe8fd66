//! The way forward.

use rayon::prelude::*;

use super::{Kept, Parts, fill, tiles_of};
use crate::kernels::View;
use crate::kernels::bf16::Unit;
use crate::kernels::bf16::pack::{Written, keep};
use crate::kernels::bf16::product::{Block, Output, Target, Term, panels};
use crate::kernels::bf16::rows::{Middle, Packed, Part, Sharing, add_bias, linear_block, on_unit, packed};
use crate::kernels::bf16::tile::{DEPTH, LANES, Tile, TileBuffer};
use crate::{Matrix, Workspace};

/// Writes the feed-forward of `x` `[rows, in]` to `y` `[rows, out]`, and gives what the way back needs if `keep`.
pub(crate) fn forward(
    unit: Unit,
    workspace: &Workspace,
    parts: &Parts<'_>,
    x: View<'_>,
    y: &mut Matrix,
    keep: bool,
) -> Option<Kept> {
    let sharing = Sharing::of(x.rows);
    let hidden = parts.up.columns.cols();
    assert!(hidden.is_multiple_of(DEPTH), "hidden features fill tiles");
    assert_eq!(y.shape(), (x.rows, parts.down.columns.cols()), "a feed-forward's output is as wide as its last linear");
    let tiles = hidden / DEPTH;
    let room = || TileBuffer::new(workspace, sharing.strips * tiles);
    let mut kept = keep.then(|| Kept {
        gate: parts.gate.as_ref().map(|_| room()),
        up: room(),
        middles: parts.all().map(|part| {
            let rank = part?.low_rank.as_ref()?.rank();
            Some(Matrix::uninitialised(workspace, x.rows, rank))
        }),
    });
    let mut tasks = Vec::new();
    let mut outputs = y.data_mut();
    let mut rest = kept.as_mut().map(|Kept { gate, up, middles }| KeptRows {
        gate: gate.as_deref_mut(),
        up,
        middles: middles.each_mut().map(|middle| middle.as_mut().map(|middle| (middle.cols(), middle.data_mut()))),
    });
    let width = parts.down.columns.cols();
    for rows in sharing.tasks(x.rows) {
        let (y, after) = std::mem::take(&mut outputs).split_at_mut(rows.len() * width);
        outputs = after;
        let kept = rest.take().map(|kept| {
            let (own, after) = kept.split(rows.len(), tiles);
            rest = Some(after);
            own
        });
        tasks.push(Task { workspace, parts, sharing, x, rows, y, kept });
    }
    tasks.into_par_iter().for_each(|task| on_unit!(unit, task));
    kept
}

/// What is kept of some rows.
struct KeptRows<'a> {
    gate: Option<&'a mut [Tile]>,
    up: &'a mut [Tile],
    /// With their ranks.
    middles: [Option<(usize, &'a mut [f32])>; 3],
}

impl<'a> KeptRows<'a> {
    /// The first `rows` rows, whose strips have `tiles` tiles, and the others.
    fn split(self, rows: usize, tiles: usize) -> (Self, Self) {
        let tiles = rows.div_ceil(LANES) * tiles;
        let (gate, later_gate) = self.gate.map(|gate| gate.split_at_mut(tiles)).unzip();
        let (up, later_up) = self.up.split_at_mut(tiles);
        let mut later = [const { None }; 3];
        let mut own = [const { None }; 3];
        for (place, middle) in self.middles.into_iter().enumerate() {
            let Some((rank, values)) = middle else { continue };
            let (first, rest) = values.split_at_mut(rows * rank);
            (own[place], later[place]) = (Some((rank, first)), Some((rank, rest)));
        }
        (Self { gate, up, middles: own }, Self { gate: later_gate, up: later_up, middles: later })
    }
}

/// Some rows.
struct Task<'a, 'b> {
    workspace: &'a Workspace,
    parts: &'a Parts<'a>,
    sharing: Sharing,
    x: View<'a>,
    rows: std::ops::Range<usize>,
    y: &'b mut [f32],
    kept: Option<KeptRows<'b>>,
}

impl Task<'_, '_> {
    fn run(mut self, unit: &impl Block) {
        let Self { workspace, parts, x, .. } = self;
        let rows = self.rows.clone();
        let x = packed(workspace, x, rows.clone());
        let strips = x.strips;
        let mut middles = parts.all().map(|part| Middle::new(workspace, part, strips, rows.start));
        for middle in middles[..2].iter_mut().flatten() {
            middle.add(unit, &x.strips(), 0..x.depth, false);
            middle.pack();
        }
        self.keep_middles(&middles[..2], 0);
        let [gate_middle, up_middle, down_middle] = &mut middles;
        let gate_second = gate_middle.as_ref().map(Middle::second);
        let up_second = up_middle.as_ref().map(Middle::second);
        let (hidden, block_strips) = (parts.up.columns.cols(), parts.block_strips());
        let (tiles, block_tiles) = (hidden / DEPTH, block_strips * LANES / DEPTH);
        let chunk = self.sharing.chunk(tiles, x.depth, 1, block_tiles);
        let mut gate = Matrix::uninitialised(workspace, strips * LANES, block_strips * LANES);
        let mut up = Matrix::uninitialised(workspace, strips * LANES, block_strips * LANES);
        let mut scratch = TileBuffer::new(workspace, block_strips * x.depth.max(chunk));
        let width = parts.down.columns.cols();
        let y = Output { c: self.y.as_mut_ptr(), stride: width, rows: rows.len(), cols: width };
        let y = Target { output: &y, first_row: 0, first_strip: 0 };
        let written = Written::begin();
        for start in (0..tiles).step_by(chunk) {
            let end = tiles.min(start + chunk);
            let mut inner = Packed::with_room(workspace, strips, end - start);
            for place in (start..end).step_by(block_tiles) {
                let columns = place * DEPTH..hidden.min((place + block_tiles) * DEPTH);
                let block = |values: &mut Matrix, part: &Part<'_>, second, scratch: &mut [Tile]| {
                    let values = &mut values.data_mut()[..strips * LANES * columns.len()];
                    linear_block(unit, x.strips(), part, columns.clone(), second, values, scratch);
                };
                if let Some(part) = &parts.gate {
                    block(&mut gate, part, gate_second, &mut scratch);
                }
                block(&mut up, &parts.up, up_second, &mut scratch);
                let width = columns.len();
                for strip in 0..strips {
                    // A strip of the block stays in the first-level cache through all of this.
                    let floats = strip * LANES * width..(strip + 1) * LANES * width;
                    let gate = if parts.gate.is_some() { &gate.data()[floats.clone()] } else { &[] };
                    let up = &mut up.data_mut()[floats];
                    if let Some(kept) = &mut self.kept {
                        for (block, place) in (place..place + width / DEPTH).enumerate() {
                            let own = self.sharing.kept_at(strip, strips, tiles, place);
                            if let Some(tiles) = &mut kept.gate {
                                keep(gate, block, &mut tiles[own], &written);
                            }
                            keep(up, block, &mut kept.up[own], &written);
                        }
                    }
                    (parts.gating.forward)(gate, up);
                    fill(&mut inner.tiles[tiles_of(strip, end - start, place - start, width / DEPTH)], up);
                }
            }
            let mut second = None;
            if let Some(middle) = down_middle {
                middle.add(unit, &inner.strips(), start..end, start > 0);
                if end == tiles {
                    middle.pack();
                    second = Some(middle.second());
                }
            }
            let strips = 0..width.div_ceil(LANES);
            let term = Term::new(inner.strips(), &*parts.down.columns, start, second);
            panels(unit, &y, &[term], strips, start > 0, &mut scratch);
        }
        if let Some(bias) = &parts.down.bias {
            add_bias(self.y, bias);
        }
        self.keep_middles(&middles[2..], 2);
    }

    /// Gives out middles, from place `first` of the three on.
    fn keep_middles(&mut self, middles: &[Option<Middle<'_>>], first: usize) {
        let Some(kept) = &mut self.kept else { return };
        for (middle, kept) in middles.iter().zip(&mut kept.middles[first..]) {
            if let (Some(middle), Some((_, kept))) = (middle, kept) {
                middle.copy_to(kept);
            }
        }
    }
}
