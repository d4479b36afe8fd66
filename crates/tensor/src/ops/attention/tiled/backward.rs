//! The gradients of queries, keys and values. A task is one sequence and one head of keys and values.

use std::f32::consts::LOG2_E;

use super::softmax::{Rows, Scores, Weighted, differentiate as differentiate_rows};
use super::{By, KEYS, KeyBlock, PackedSide, QueryBlock, add_bias, dropped, head_views, padded, row_masks};
use crate::Workspace;
use crate::kernels::bf16::{DEPTH, PackedColumns, Padded, Stack};
use crate::kernels::turned::{Turned, add_turned};
use crate::kernels::{View, vectorised};
use crate::ops::attention::scores::dot;
use crate::ops::attention::{Attention, Sequence};
use crate::random::RowMask;
use crate::workspace::Buffer;

/// One sequence and one head of keys and values; all heads of the sequence's queries, outputs, output gradients and
/// log-sum-exps.
#[derive(Clone, Copy)]
pub(in crate::ops::attention) struct Inputs<'a> {
    pub(in crate::ops::attention) sequence: Sequence<'a>,
    pub(in crate::ops::attention) kv_head: usize,
    pub(in crate::ops::attention) queries: usize,
    pub(in crate::ops::attention) query: &'a [f32],
    pub(in crate::ops::attention) output: &'a [f32],
    pub(in crate::ops::attention) gradient: &'a [f32],
    pub(in crate::ops::attention) lse: &'a [f32],
}

/// Sums of gradients of one head of keys and of values, `[rows, head_dim]` each; `None` where nobody wants them. The
/// prefix comes first.
pub(in crate::ops::attention) struct Sums<'a> {
    pub(in crate::ops::attention) keys: [Option<&'a mut [f32]>; 2],
    pub(in crate::ops::attention) values: [Option<&'a mut [f32]>; 2],
}

/// Adds to `sums`, and writes the group's columns of each query's gradient to `dq`, which is empty where nobody wants it.
pub(in crate::ops::attention) fn differentiate(
    workspace: &Workspace,
    options: &Attention,
    inputs: Inputs<'_>,
    dq: &mut [&mut [f32]],
    mut sums: Sums<'_>,
) {
    let counts = [inputs.sequence.prefix.count(options), inputs.sequence.own.count(options)];
    let turned = |wanted: &Option<&mut [f32]>, rows: usize| {
        wanted.as_ref().map(|_| {
            let mut sums = workspace.take(padded(options.head_dim) * rows.next_multiple_of(DEPTH));
            sums.fill(0.0);
            sums
        })
    };
    let Sequence { prefix, own, .. } = inputs.sequence;
    let pack = |rows, by| PackedSide::pack(workspace, options, rows, inputs.kv_head, by);
    let mut pass = Pass {
        workspace,
        options,
        inputs,
        counts,
        keys: pack([prefix.keys, own.keys], By::Row),
        values: pack([prefix.values, own.values], By::Row),
        key_features: (!dq.is_empty()).then(|| pack([prefix.keys, own.keys], By::Feature)),
        dk: [0, 1].map(|part| turned(&sums.keys[part], counts[part])),
        dv: [0, 1].map(|part| turned(&sums.values[part], counts[part])),
    };
    let position = inputs.sequence.first_position(options, inputs.queries);
    for start in (0..inputs.queries).step_by(QueryBlock::size(options)) {
        let queries = QueryBlock::size(options).min(inputs.queries - start);
        let block = QueryBlock { position: position.saturating_add_unsigned(start), queries, counts };
        let dq = if dq.is_empty() { &mut [] } else { &mut dq[start..start + queries] };
        pass.queries(block, start, dq);
    }
    for part in [0, 1] {
        for (sums, turned) in [(&mut sums.keys[part], &pass.dk[part]), (&mut sums.values[part], &pass.dv[part])] {
            if let (Some(sums), Some(turned)) = (sums, turned) {
                let turned = Turned { data: turned, stride: counts[part].next_multiple_of(DEPTH) };
                add_turned(sums, options.head_dim, turned);
            }
        }
    }
}

struct Pass<'a> {
    workspace: &'a Workspace,
    options: &'a Attention,
    inputs: Inputs<'a>,
    counts: [usize; 2],
    keys: PackedSide,
    values: PackedSide,
    /// Where the queries' gradient is wanted.
    key_features: Option<PackedSide>,
    /// Gradients of keys and values, turned: `[head_dim, rows]` of the prefix and of the own ones, with room for tiles.
    dk: [Option<Buffer>; 2],
    dv: [Option<Buffer>; 2],
}

/// What a block of queries needs again for each block of keys.
struct Operands {
    rows: usize,
    width: usize,
    /// `[rows, head_dim]`, and turned.
    queries: Stack,
    queries_turned: Stack,
    gradients: Stack,
    gradients_turned: Stack,
    lse: Vec<f32>,
    delta: Vec<f32>,
    masks: Vec<RowMask>,
    scores: Buffer,
    dp: Buffer,
    weights: PackedColumns,
    score_gradients: PackedColumns,
    score_gradient_rows: Stack,
}

impl Pass<'_> {
    fn queries(&mut self, block: QueryBlock, start: usize, dq: &mut [&mut [f32]]) {
        let (options, head_dim, height) = (self.options, self.options.head_dim, block.height());
        let rows = options.group() * height;
        let blocks = block.key_blocks(options);
        let mut operands = self.operands(block, start, &blocks);
        let features = padded(head_dim);
        let mut sums = self.workspace.take(rows * features);
        sums.fill(0.0);
        for keys in &blocks {
            self.keys_of(block, keys, &mut operands, if dq.is_empty() { None } else { Some(&mut sums) });
        }
        for (query, target) in dq.iter_mut().enumerate() {
            for (member, target) in target.chunks_exact_mut(head_dim).enumerate() {
                let values = &sums[(member * height + query) * features..][..head_dim];
                target.iter_mut().zip(values).for_each(|(target, value)| *target = options.scale * value);
            }
        }
    }

    fn operands(&self, block: QueryBlock, start: usize, blocks: &[KeyBlock]) -> Operands {
        let Self { workspace, options, inputs, .. } = self;
        let (heads, head_dim, height, group) = (options.heads, options.head_dim, block.height(), options.group());
        let rows = group * height;
        let width = KEYS.min(blocks.iter().map(|block| block.keys.len()).max().unwrap_or(0)).next_multiple_of(DEPTH);
        let from = |data| head_views(options, inputs.kv_head, block.queries, data);
        let floats = start * heads * head_dim;
        let (queries, gradients) = (from(&inputs.query[floats..]), from(&inputs.gradient[floats..]));
        let stacked = |views: &[View<'_>], scale, turned_scale| {
            let mut stack = Stack::with_room(workspace, rows, head_dim);
            stack.fill(views, height, scale);
            let mut turned = Stack::with_room(workspace, head_dim, rows);
            turned.fill_turned(views, height, turned_scale);
            (stack, turned)
        };
        let (queries, queries_turned) = stacked(&queries, options.scale * LOG2_E, options.scale);
        let (gradients, gradients_turned) = stacked(&gradients, 1.0, 1.0);
        let (mut lse, mut delta) = (vec![0.0; rows], vec![0.0; rows]);
        vectorised(
            #[inline(always)]
            || {
                for row in (0..rows).filter(|row| row % height < block.queries) {
                    let head = (start + row % height) * heads + inputs.kv_head * group + row / height;
                    lse[row] = inputs.lse[head];
                    let floats = head * head_dim..(head + 1) * head_dim;
                    delta[row] = dot(&inputs.gradient[floats.clone()], &inputs.output[floats]);
                }
            },
        );
        Operands {
            rows,
            width,
            queries,
            queries_turned,
            gradients,
            gradients_turned,
            lse,
            delta,
            masks: row_masks(options, inputs.sequence.dropout, &block, inputs.kv_head),
            scores: workspace.take(rows * width),
            dp: workspace.take(rows * width),
            weights: PackedColumns::with_room(workspace, rows, width),
            score_gradients: PackedColumns::with_room(workspace, rows, width),
            score_gradient_rows: Stack::with_room(workspace, rows, width),
        }
    }

    /// What one block of keys contributes to all gradients.
    fn keys_of(&mut self, block: QueryBlock, keys: &KeyBlock, operands: &mut Operands, dq: Option<&mut Buffer>) {
        let (unit, options, head_dim) = (self.workspace.kernels().unit(), self.options, self.options.head_dim);
        let Operands { rows, width, .. } = *operands;
        let (part, range) = (keys.part, keys.keys.clone());
        let count = range.len();
        for (left, side, out) in [
            (&operands.queries, &self.keys, &mut operands.scores),
            (&operands.gradients, &self.values, &mut operands.dp),
        ] {
            let out = Padded { data: out, stride: width };
            unit.stacked(out, false, left, &side.parts[part], range.clone(), 0..head_dim);
        }
        let height = block.height();
        let visible: Vec<_> = (0..rows).map(|row| block.visible(options, row % height, keys)).collect();
        if let Some(bias) = self.inputs.sequence.bias {
            let scores = (&mut operands.scores[..], width);
            add_bias(options, bias, &block, keys, self.inputs.kv_head, &visible, scores);
        }
        operands.weights.reshape(rows, count);
        operands.score_gradients.reshape(rows, count);
        operands.score_gradient_rows.reshape(rows, count);
        let out = Weighted {
            weights: operands.weights.tiles_mut(),
            gradients: operands.score_gradients.tiles_mut(),
            gradient_rows: operands.score_gradient_rows.tiles_mut(),
        };
        let dropped = dropped(self.inputs.sequence.dropout, &operands.masks, &block, keys);
        let scores = Scores { data: &operands.scores, stride: width, visible: &visible, dropped };
        let row_values = Rows { lse: &operands.lse, delta: &operands.delta };
        differentiate_rows(unit, &scores, &operands.dp, &row_values, count, out);

        let stride = self.counts[part].next_multiple_of(DEPTH);
        for (sums, left, columns) in [
            (&mut self.dv[part], &operands.gradients_turned, &operands.weights),
            (&mut self.dk[part], &operands.queries_turned, &operands.score_gradients),
        ] {
            let Some(sums) = sums else { continue };
            let target = Padded { data: &mut sums[range.start..], stride };
            unit.stacked(target, true, left, columns, 0..count, 0..rows);
        }
        if let (Some(sums), Some(features)) = (dq, &self.key_features) {
            let target = Padded { data: sums, stride: padded(head_dim) };
            unit.stacked(target, true, &operands.score_gradient_rows, &features.parts[part], 0..head_dim, range);
        }
    }
}
