//! The output and each row's log-sum-exp. A task is a block of one sequence's queries and one head of keys and values.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use rayon::prelude::*;

use super::softmax::{Running, Scores, accumulate};
use super::{By, KEYS, PackedSide, QueryBlock, add_bias, dropped, head_views, padded, row_masks};
use crate::kernels::bf16::{DEPTH, Padded, Stack};
use crate::ops::attention::backward::column_blocks;
use crate::ops::attention::{Attention, Bias, Mask, Sequence};
use crate::{Matrix, Segments, Workspace};

/// The output, shaped as `query`, and the log-sum-exp of each query's scores, `[query tokens, heads]`.
pub(in crate::ops::attention) fn attend(
    workspace: &Workspace,
    options: &Attention,
    query: &Matrix,
    segments: &Segments,
    sequences: &[Sequence<'_>],
) -> (Matrix, Matrix) {
    let mut output = Matrix::uninitialised(workspace, query.rows(), query.cols());
    let mut lse = Matrix::uninitialised(workspace, query.rows(), options.heads);
    let ranges: Vec<Range<usize>> = segments.ranges().collect();
    let outputs = column_blocks(Some(&mut output), options.kv_heads, &ranges);
    let lses = column_blocks(Some(&mut lse), options.kv_heads, &ranges);
    let heads = outputs.into_iter().zip(lses).enumerate().map(|(number, (output, lse))| {
        let (sequence, kv_head) = (number / options.kv_heads, number % options.kv_heads);
        let range = &ranges[sequence];
        let query = &query.data()[range.start * query.cols()..range.end * query.cols()];
        (sequence, kv_head, query, output, lse)
    });
    let heads: Vec<_> = heads.collect();
    if heads.len() >= MANY * rayon::current_num_threads() {
        heads.into_par_iter().for_each(|(sequence, kv_head, query, output, lse)| {
            attend_alone(workspace, options, kv_head, query, sequences[sequence], output, lse);
        });
        return (output, lse);
    }
    let keys = PackedSide::pack_all(workspace, options, sequences, |rows| rows.keys, By::Row);
    let values = PackedSide::pack_all(workspace, options, sequences, |rows| rows.values, By::Feature);
    let mut tasks = Vec::new();
    for (number, (sequence, kv_head, query, output, lse)) in heads.into_iter().enumerate() {
        let sides = [&keys[number], &values[number]];
        tasks.extend(tasks_of(options, kv_head, query, sequences[sequence], sides, output, lse));
    }
    tasks.into_par_iter().for_each(|task| task.run(workspace, options));
    (output, lse)
}

/// Sequences times heads of keys and values for each thread, from which each is a task of its own.
const MANY: usize = 8;

/// The same for one sequence and head of keys and values on the calling thread: writes the group's columns of each query's
/// output and log-sum-exp. `query` has all heads.
pub(in crate::ops::attention) fn attend_alone(
    workspace: &Workspace,
    options: &Attention,
    kv_head: usize,
    query: &[f32],
    sequence: Sequence<'_>,
    output: Vec<&mut [f32]>,
    lse: Vec<&mut [f32]>,
) {
    let Sequence { prefix, own, .. } = sequence;
    let keys = PackedSide::pack(workspace, options, [prefix.keys, own.keys], kv_head, By::Row);
    let values = PackedSide::pack(workspace, options, [prefix.values, own.values], kv_head, By::Feature);
    let tasks = tasks_of(options, kv_head, query, sequence, [&keys, &values], output, lse);
    tasks.into_iter().for_each(|task| task.run(workspace, options));
}

/// The blocks of queries of one sequence and head of keys and values.
fn tasks_of<'a>(
    options: &Attention,
    kv_head: usize,
    query: &'a [f32],
    sequence: Sequence<'a>,
    [keys, values]: [&'a PackedSide; 2],
    mut output: Vec<&'a mut [f32]>,
    mut lse: Vec<&'a mut [f32]>,
) -> Vec<Task<'a>> {
    let length = output.len();
    let counts = [sequence.prefix.count(options), sequence.own.count(options)];
    let first = sequence.first_position(options, length);
    let mut tasks = Vec::new();
    for start in (0..length).step_by(QueryBlock::size(options)) {
        let queries = QueryBlock::size(options).min(length - start);
        let (rest, rest_lse) = (output.split_off(queries), lse.split_off(queries));
        tasks.push(Task {
            block: QueryBlock { position: first.saturating_add_unsigned(start), queries, counts },
            kv_head,
            bias: sequence.bias,
            dropout: sequence.dropout,
            query: &query[start * options.heads * options.head_dim..],
            keys,
            values,
            output: std::mem::replace(&mut output, rest),
            lse: std::mem::replace(&mut lse, rest_lse),
        });
    }
    tasks
}

struct Task<'a> {
    block: QueryBlock,
    kv_head: usize,
    bias: Option<Bias<'a>>,
    dropout: Option<Mask>,
    /// All heads, from the block's first query on.
    query: &'a [f32],
    keys: &'a PackedSide,
    values: &'a PackedSide,
    /// The group's columns of each query's output and log-sum-exp.
    output: Vec<&'a mut [f32]>,
    lse: Vec<&'a mut [f32]>,
}

impl Task<'_> {
    fn run(self, workspace: &Workspace, options: &Attention) {
        let Self { block, kv_head, .. } = self;
        let (unit, head_dim, height) = (workspace.kernels().unit(), options.head_dim, block.height());
        let features = padded(head_dim);
        let rows = options.group() * height;
        let blocks = block.key_blocks(options);
        let mut queries = Stack::with_room(workspace, rows, head_dim);
        let views = head_views(options, kv_head, block.queries, self.query);
        queries.fill(&views, height, options.scale * LOG2_E);
        let width = KEYS.min(blocks.iter().map(|block| block.keys.len()).max().unwrap_or(0)).next_multiple_of(DEPTH);
        let mut scores = workspace.take(rows * width);
        let mut weights = Stack::with_room(workspace, rows, width);
        let mut output = workspace.take(rows * features);
        let (mut max, mut sum) = (workspace.take(rows), workspace.take(rows));
        output.fill(0.0);
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        let masks = row_masks(options, self.dropout, &block, kv_head);
        let mut visible = Vec::with_capacity(rows);
        for keys in &blocks {
            visible.clear();
            visible.extend((0..rows).map(|row| block.visible(options, row % height, keys)));
            let target = Padded { data: &mut scores, stride: width };
            unit.stacked(target, false, &queries, &self.keys.parts[keys.part], keys.keys.clone(), 0..head_dim);
            if let Some(bias) = self.bias {
                add_bias(options, bias, &block, keys, kv_head, &visible, (&mut scores, width));
            }
            weights.reshape(rows, keys.keys.len());
            let depth = keys.keys.len().div_ceil(DEPTH);
            let running = Running { max: &mut max, sum: &mut sum, output: &mut output };
            let dropped = dropped(self.dropout, &masks, &block, keys);
            let scores = Scores { data: &scores, stride: width, visible: &visible, dropped };
            accumulate(unit, &scores, running, weights.tiles_mut(), depth);
            let target = Padded { data: &mut output, stride: features };
            unit.stacked(target, true, &weights, &self.values.parts[keys.part], 0..head_dim, keys.keys.clone());
        }
        let scale = self.dropout.map_or(1.0, |mask| mask.scale());
        for (query, (target, lse)) in self.output.into_iter().zip(self.lse).enumerate() {
            for (member, (target, lse)) in target.chunks_exact_mut(head_dim).zip(lse).enumerate() {
                let row = member * height + query;
                // A row that sees no key has the sum 0 and stays 0.
                let factor = if sum[row] == 0.0 { 0.0 } else { scale / sum[row] };
                let values = &output[row * features..][..head_dim];
                target.iter_mut().zip(values).for_each(|(target, value)| *target = value * factor);
                *lse = max[row] + sum[row].log2();
            }
        }
    }
}
