//! Attention forward: the output and each row's log-sum-exp.

use rayon::prelude::*;

use super::scores::{Block, Queries, Side};
use super::{Attention, BLOCK, Sequence};
use crate::{Matrix, Segments, Workspace};

/// Multiplications from which spreading over threads pays.
const WORTH_THREADS: usize = 256 * 1024;

/// A block of one sequence's queries, all heads; or the heads of a single query that share a head of keys and values,
/// so that decoding spreads over threads as well. Either is a contiguous stretch of the output.
struct Task<'a> {
    sequence: Sequence<'a>,
    /// The first query's position among the keys.
    position: isize,
    queries: usize,
    /// The head of keys and values, where there is one query.
    kv_head: usize,
    query: &'a [f32],
    output: &'a mut [f32],
    /// One entry a query and head.
    lse: &'a mut [f32],
}

/// The output, shaped as `query`, and the log-sum-exp of each query's scores, `[query tokens, heads]`.
pub(super) fn attend(
    workspace: &Workspace,
    options: &Attention,
    query: &Matrix,
    segments: &Segments,
    sequences: &[Sequence<'_>],
) -> (Matrix, Matrix) {
    let mut output = Matrix::uninitialised(workspace, query.rows(), query.cols());
    let mut lse = Matrix::uninitialised(workspace, query.rows(), options.heads);
    let tasks = tasks(options, query, segments, sequences, &mut output, &mut lse);
    let work: usize = tasks.iter().map(|task| task.query.len() * task.sequence.rows(options)).sum();
    if work < WORTH_THREADS {
        tasks.into_iter().for_each(|task| task.run(workspace, options));
    } else {
        tasks.into_par_iter().with_max_len(1).for_each(|task| task.run(workspace, options));
    }
    (output, lse)
}

fn tasks<'a>(
    options: &Attention,
    query: &'a Matrix,
    segments: &Segments,
    sequences: &[Sequence<'a>],
    output: &'a mut Matrix,
    lse: &'a mut Matrix,
) -> Vec<Task<'a>> {
    let (mut query, mut output, mut lse) = (query.data(), output.data_mut(), lse.data_mut());
    let mut tasks = Vec::new();
    for (range, sequence) in segments.ranges().zip(sequences) {
        let position = sequence.first_position(options, range.len());
        for start in (0..range.len()).step_by(BLOCK) {
            let queries = BLOCK.min(range.len() - start);
            let pieces = if queries == 1 { options.kv_heads } else { 1 };
            let heads = queries * options.heads / pieces;
            for kv_head in 0..pieces {
                let (task_query, task_output, task_lse);
                (task_query, query) = query.split_at(heads * options.head_dim);
                (task_output, output) = output.split_at_mut(heads * options.head_dim);
                (task_lse, lse) = lse.split_at_mut(heads);
                tasks.push(Task {
                    sequence: *sequence,
                    position: position.saturating_add_unsigned(start),
                    queries,
                    kv_head,
                    query: task_query,
                    output: task_output,
                    lse: task_lse,
                });
            }
        }
    }
    tasks
}

impl Task<'_> {
    fn run(mut self, workspace: &Workspace, options: &Attention) {
        let rows = if self.queries == 1 { options.group() } else { self.queries };
        let mut scores = workspace.take(rows * self.sequence.rows(options));
        let mut sums = workspace.take(rows);
        if self.queries == 1 {
            let (offset, stride, kv_head) = (0, options.head_dim, self.kv_head);
            let (head, position) = (kv_head * options.group(), self.position);
            let queries = Queries { rows, offset, stride, kv_head, head, head_step: 1, position, step: 0 };
            self.attend(workspace, options, queries, &mut scores, &mut sums);
        } else {
            for head in 0..options.heads {
                let queries = Queries::of_head(options, head, 0..self.queries, self.position);
                self.attend(workspace, options, queries, &mut scores, &mut sums);
            }
        }
    }

    fn attend(
        &mut self,
        workspace: &Workspace,
        options: &Attention,
        queries: Queries,
        scores: &mut [f32],
        sums: &mut [f32],
    ) {
        let head_dim = options.head_dim;
        let block = Block::new(options, workspace.kernels(), self.sequence, queries);
        let scores = &mut scores[..block.len()];
        block.scores(scores, queries.view(self.query, head_dim));
        block.exponentiate(scores, |row, max, sum| {
            self.lse[(queries.offset + row * queries.stride) / head_dim] = max + sum.ln();
            sums[row] = sum;
        });
        block.drop_weights(scores);
        let output = &mut self.output[queries.offset..];
        block.inner(output, queries.stride, 1.0, scores, Side::Values);
        for (row, sum) in sums.iter().enumerate() {
            // A row that sees no key has the sum 0 and stays 0.
            let factor = if *sum == 0.0 { 0.0 } else { 1.0 / sum };
            output[row * queries.stride..][..head_dim].iter_mut().for_each(|value| *value *= factor);
        }
    }
}
