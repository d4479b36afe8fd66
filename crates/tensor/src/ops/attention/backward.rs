//! Attention backward. A task is one sequence and one head of keys and values with the query heads that share it: what
//! it adds up is its own, so the result doesn't depend on the number of threads.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::scores::{Block, Queries, Side, Sums};
use super::{Attention, BLOCK, Dropout, KeptBias, KeyValueRows, Prefix, Sequence, tiled};
use crate::tape::{Backward, Flow, NodeId};
use crate::workspace::Buffer;
use crate::{Matrix, Segments, Var, Workspace};

/// Pieces for each thread that tasks are shared out in, at the least, if there are as many.
const TASKS: usize = 8;

/// What backward needs of an attention.
pub(super) struct AttentionBackward {
    pub(super) options: Attention,
    pub(super) query: Arc<Matrix>,
    pub(super) query_segments: Segments,
    pub(super) query_node: Option<NodeId>,
    pub(super) own: KeyValues,
    pub(super) prefix: Option<KeyValues>,
    pub(super) bias: Option<KeptBias>,
    pub(super) dropout: Option<Dropout>,
    /// The output, where it went through tiles: backward then does, too.
    pub(super) tiled_output: Option<Arc<Matrix>>,
    /// The log-sum-exp of each query's scores, `[query tokens, heads]`.
    pub(super) lse: Matrix,
}

/// Keys and values on the tape, and the rows of them that each sequence sees.
pub(super) struct KeyValues {
    pub(super) keys: Arc<Matrix>,
    pub(super) values: Arc<Matrix>,
    pub(super) key_node: Option<NodeId>,
    pub(super) value_node: Option<NodeId>,
    pub(super) ranges: Vec<Range<usize>>,
}

impl KeyValues {
    /// A batch's own keys and values.
    pub(super) fn new(keys: &Var, values: &Var, ranges: Vec<Range<usize>>) -> Self {
        Self { keys: keys.shared(), values: values.shared(), key_node: keys.node(), value_node: values.node(), ranges }
    }

    /// The keys and values of a prefix.
    pub(super) fn of_prefix(prefix: &Prefix) -> Self {
        Self::new(&prefix.keys, &prefix.values, prefix.ranges.clone())
    }

    /// What each sequence sees.
    pub(super) fn rows(&self, options: &Attention) -> Vec<KeyValueRows<'_>> {
        let width = options.key_width();
        assert_eq!(self.keys.cols(), width, "keys are kv_heads·head_dim wide");
        assert_eq!(self.keys.shape(), self.values.shape(), "each row of keys has its row of values");
        let floats = self.ranges.iter().map(|range| range.start * width..range.end * width);
        floats
            .map(|range| KeyValueRows { keys: &self.keys.data()[range.clone()], values: &self.values.data()[range] })
            .collect()
    }
}

impl Backward for AttentionBackward {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let workspace = flow.workspace();
        let like = |node: Option<NodeId>, matrix: &Matrix| {
            node.map(|_| Matrix::uninitialised(workspace, matrix.rows(), matrix.cols()))
        };
        let mut dq = like(self.query_node, &self.query);
        let mut dk = like(self.own.key_node, &self.own.keys);
        let mut dv = like(self.own.value_node, &self.own.values);
        let tasks = self.tasks(&gradient, dq.as_mut(), dk.as_mut(), dv.as_mut());
        // Short sequences are many small tasks.
        let most = tasks.len().div_ceil(TASKS * rayon::current_num_threads());
        let shared_sums: Vec<SharedSums> =
            tasks.into_par_iter().with_max_len(most).map(|task| self.run(workspace, task)).collect();
        let mut gradients = vec![(self.query_node, dq), (self.own.key_node, dk), (self.own.value_node, dv)];
        if let Some(prefix) = &self.prefix {
            let dk = prefix.key_node.map(|_| self.prefix_gradient(workspace, prefix, &shared_sums, |sums| &sums.keys));
            let dv =
                prefix.value_node.map(|_| self.prefix_gradient(workspace, prefix, &shared_sums, |sums| &sums.values));
            gradients.extend([(prefix.key_node, dk), (prefix.value_node, dv)]);
        }
        if let Some(bias) = self.bias.as_ref().filter(|bias| bias.node.is_some()) {
            gradients.push((bias.node, Some(self.bias_gradient(workspace, bias, &shared_sums))));
        }
        for (node, gradient) in gradients {
            if let Some(gradient) = gradient {
                flow.add(node, gradient);
            }
        }
    }
}

/// One sequence and one head of keys and values.
struct Task<'a> {
    sequence: Sequence<'a>,
    kv_head: usize,
    /// Queries of the sequence.
    queries: usize,
    /// All heads of the sequence's queries, of the output's gradients, and of the log-sum-exps.
    query: &'a [f32],
    /// All heads of the sequence's outputs, where backward needs them.
    output: Option<&'a [f32]>,
    gradient: &'a [f32],
    lse: &'a [f32],
    /// The task's columns of each row of the gradients; without rows where a gradient isn't wanted.
    dq: Vec<&'a mut [f32]>,
    dk: Vec<&'a mut [f32]>,
    dv: Vec<&'a mut [f32]>,
}

/// A task's share of the gradients of what it shares with other tasks: its sequence's prefix rows, `[rows, head_dim]`
/// each, and the bias of its heads, `[heads, distances]`.
struct SharedSums {
    keys: Option<Buffer>,
    values: Option<Buffer>,
    bias: Option<Buffer>,
}

impl AttentionBackward {
    /// The tasks, by sequence, then by head.
    fn tasks<'a>(
        &'a self,
        gradient: &'a Matrix,
        dq: Option<&'a mut Matrix>,
        dk: Option<&'a mut Matrix>,
        dv: Option<&'a mut Matrix>,
    ) -> Vec<Task<'a>> {
        let heads = self.options.kv_heads;
        let query_ranges: Vec<Range<usize>> = self.query_segments.ranges().collect();
        let own = self.own.rows(&self.options);
        let prefix = self.prefix.as_ref().map(|prefix| prefix.rows(&self.options));
        let sequences =
            Sequence::zip(&own, prefix.as_deref(), &self.options, self.bias.as_ref(), self.dropout.as_ref());
        let gradients = column_blocks(dq, heads, &query_ranges)
            .into_iter()
            .zip(column_blocks(dk, heads, &self.own.ranges))
            .zip(column_blocks(dv, heads, &self.own.ranges));
        let rows = |matrix: &'a Matrix, range: &Range<usize>| {
            &matrix.data()[range.start * matrix.cols()..range.end * matrix.cols()]
        };
        let tasks = gradients.enumerate().map(|(task, ((dq, dk), dv))| {
            let range = &query_ranges[task / heads];
            Task {
                sequence: sequences[task / heads],
                kv_head: task % heads,
                queries: range.len(),
                query: rows(&self.query, range),
                output: self.tiled_output.as_ref().map(|output| rows(output, range)),
                gradient: rows(gradient, range),
                lse: rows(&self.lse, range),
                dq,
                dk,
                dv,
            }
        });
        tasks.collect()
    }

    /// Writes the task's gradients, but for those of the prefix, which it returns.
    fn run(&self, workspace: &Workspace, mut task: Task<'_>) -> SharedSums {
        let options = &self.options;
        let head_dim = options.head_dim;
        let zeros = |node: Option<NodeId>, rows: KeyValueRows<'_>| {
            node.map(|_| {
                let mut sums = workspace.take(rows.count(options) * head_dim);
                sums.fill(0.0);
                sums
            })
        };
        let (own, prefix) = (task.sequence.own, task.sequence.prefix);
        let [prefix_key_node, prefix_value_node] =
            self.prefix.as_ref().map_or([None; 2], |prefix| [prefix.key_node, prefix.value_node]);
        let (mut key_sums, mut value_sums) = (zeros(self.own.key_node, own), zeros(self.own.value_node, own));
        let bias = self.bias.as_ref().filter(|bias| bias.node.is_some()).map(|bias| {
            let mut sums = workspace.take(options.group() * bias.values.cols());
            sums.fill(0.0);
            sums
        });
        let (keys, values) = (zeros(prefix_key_node, prefix), zeros(prefix_value_node, prefix));
        let mut shared_sums = SharedSums { keys, values, bias };
        if let Some(output) = task.output {
            let Task { sequence, kv_head, queries, query, gradient, lse, .. } = task;
            let inputs = tiled::Inputs { sequence, kv_head, queries, query, output, gradient, lse };
            let sums = tiled::Sums {
                keys: [shared_sums.keys.as_deref_mut(), key_sums.as_deref_mut()],
                values: [shared_sums.values.as_deref_mut(), value_sums.as_deref_mut()],
            };
            tiled::differentiate(workspace, options, inputs, &mut task.dq, sums);
        } else {
            self.run_blocks(workspace, &mut task, &mut key_sums, &mut value_sums, &mut shared_sums);
        }
        for (targets, sums) in [(task.dk, key_sums), (task.dv, value_sums)] {
            if let Some(sums) = sums {
                targets
                    .into_iter()
                    .zip(sums.chunks_exact(head_dim))
                    .for_each(|(target, sum)| target.copy_from_slice(sum));
            }
        }
        shared_sums
    }

    /// The gradients in float32, a block of queries at a time.
    fn run_blocks(
        &self,
        workspace: &Workspace,
        task: &mut Task<'_>,
        key_sums: &mut Option<Buffer>,
        value_sums: &mut Option<Buffer>,
        shared_sums: &mut SharedSums,
    ) {
        let options = &self.options;
        let head_dim = options.head_dim;
        let differentiates_scores =
            self.query_node.is_some() || key_sums.is_some() || shared_sums.keys.is_some() || shared_sums.bias.is_some();
        let most = BLOCK.min(task.queries);
        let mut weights = workspace.take(most * task.sequence.rows(options));
        let mut scores = workspace.take(weights.len());
        let mut dq = workspace.take(most * head_dim);
        let first = task.sequence.first_position(options, task.queries);
        for start in (0..task.queries).step_by(BLOCK) {
            let rows = start..task.queries.min(start + BLOCK);
            for member in 0..options.group() {
                let head = task.kv_head * options.group() + member;
                let queries = Queries::of_head(options, head, rows.clone(), first);
                let block = Block::new(options, workspace.kernels(), task.sequence, queries);
                let query = queries.view(task.query, head_dim);
                let gradient = queries.view(task.gradient, head_dim);
                let weights = &mut weights[..block.len()];
                block.scores(weights, query);
                block.weights(weights, |row| task.lse[(rows.start + row) * options.heads + head]);
                let scores = &mut scores[..block.len()];
                if differentiates_scores {
                    // dP first, then dS in its place.
                    block.outer(scores, 1.0, gradient, Side::Values);
                    block.drop_weights(scores);
                    block.score_gradients(scores, weights);
                }
                block.drop_weights(weights);
                let mut sums = Sums { prefix: shared_sums.values.as_deref_mut(), own: value_sums.as_deref_mut() };
                block.add_transposed(&mut sums, 1.0, weights, gradient);
                if !differentiates_scores {
                    continue;
                }
                if let Some(sums) = shared_sums.bias.as_deref_mut() {
                    block.add_bias_gradients(sums, task.kv_head * options.group(), scores);
                }
                let mut sums = Sums { prefix: shared_sums.keys.as_deref_mut(), own: key_sums.as_deref_mut() };
                block.add_transposed(&mut sums, options.scale, scores, query);
                if self.query_node.is_some() {
                    block.inner(&mut dq, head_dim, options.scale, scores, Side::Keys);
                    for (target, value) in task.dq[rows.clone()].iter_mut().zip(dq.chunks_exact(head_dim)) {
                        target[member * head_dim..][..head_dim].copy_from_slice(value);
                    }
                }
            }
        }
    }

    /// The gradient of a prefix's keys or values: the tasks' sums, added up in the order of the sequences.
    fn prefix_gradient(
        &self,
        workspace: &Workspace,
        prefix: &KeyValues,
        tasks: &[SharedSums],
        side: impl Fn(&SharedSums) -> &Option<Buffer>,
    ) -> Matrix {
        let (heads, head_dim) = (self.options.kv_heads, self.options.head_dim);
        let mut gradient = Matrix::zeros_in(workspace, prefix.keys.rows(), prefix.keys.cols());
        for (number, task) in tasks.iter().enumerate() {
            let sums = side(task).iter().flat_map(|sums| sums.chunks_exact(head_dim));
            for (row, sum) in prefix.ranges[number / heads].clone().zip(sums) {
                let target = &mut gradient.row_mut(row)[number % heads * head_dim..][..head_dim];
                target.iter_mut().zip(sum).for_each(|(target, value)| *target += value);
            }
        }
        gradient
    }

    /// The gradient of the bias: the tasks' sums, added up in the order of the sequences.
    fn bias_gradient(&self, workspace: &Workspace, bias: &KeptBias, tasks: &[SharedSums]) -> Matrix {
        let (rows, cols) = bias.values.shape();
        let mut gradient = Matrix::zeros_in(workspace, rows, cols);
        let (heads, share) = (self.options.kv_heads, self.options.group() * cols);
        for (number, task) in tasks.iter().enumerate() {
            let first = bias.table(number / heads) * heads + number % heads;
            let target = &mut gradient.data_mut()[first * share..][..share];
            let sums = task.bias.iter().flat_map(|sums| sums.iter());
            target.iter_mut().zip(sums).for_each(|(target, value)| *target += value);
        }
        gradient
    }
}

/// Cuts the rows of `matrix` into `blocks` equal blocks of columns: a list of pieces, a piece a row, for each range of
/// rows and each block. The lists are empty without a matrix.
pub(super) fn column_blocks<'a>(
    matrix: Option<&'a mut Matrix>,
    blocks: usize,
    ranges: &[Range<usize>],
) -> Vec<Vec<&'a mut [f32]>> {
    let rows = |place: usize| matrix.as_ref().map_or(0, |_| ranges[place / blocks].len());
    let room = (0..ranges.len() * blocks).map(|place| Vec::with_capacity(rows(place)));
    let mut lists: Vec<Vec<&mut [f32]>> = room.collect();
    let Some(matrix) = matrix else { return lists };
    let cols = matrix.cols();
    let mut rows = matrix.data_mut().chunks_exact_mut(cols);
    for (range, lists) in ranges.iter().zip(lists.chunks_exact_mut(blocks)) {
        for row in rows.by_ref().take(range.len()) {
            for (piece, list) in row.chunks_exact_mut(cols / blocks).zip(lists.iter_mut()) {
                list.push(piece);
            }
        }
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::super::definition::{Case, dirty_workspace, widen};
    use super::*;
    use crate::ops::finite_differences::random;

    /// Checks all gradients of a random weighting of the output against central differences of the float64 definition
    /// (whose own error is about 1e-9), at every `stride`-th value of each input, to 2e-6 of the input's largest
    /// gradient or of 1.
    #[track_caller]
    fn check(case: &Case, stride: usize) {
        const STEP: f64 = 1e-4;
        let inputs = case.inputs();
        let weighting = random(inputs[0].rows(), inputs[0].cols(), 99);
        let gradients = case.gradients(&dirty_workspace(), &inputs, [true; 5], &weighting);
        let mut wide = widen(&inputs);
        let loss = |inputs: &[Vec<f64>; 5]| -> f64 {
            case.definition(inputs).iter().zip(weighting.data()).map(|(y, w)| y * f64::from(*w)).sum()
        };
        for (input, gradient) in gradients.iter().enumerate() {
            let Some(gradient) = gradient else {
                assert!(input > 2 && case.prefix.is_empty(), "input {input} got no gradient");
                continue;
            };
            let tolerance = 2e-6 * gradient.data().iter().fold(1.0f32, |most, value| most.max(value.abs()));
            assert!(gradient.data().iter().all(|value| value.is_finite()), "input {input}: {case:?}");
            for place in (0..gradient.data().len()).step_by(stride) {
                let original = wide[input][place];
                let [above, below] = [STEP, -STEP].map(|step| {
                    wide[input][place] = original + step;
                    loss(&wide)
                });
                wide[input][place] = original;
                let difference = (above - below) / (2.0 * STEP);
                let analytic = f64::from(gradient.data()[place]);
                assert!(
                    (analytic - difference).abs() <= f64::from(tolerance),
                    "input {input}, value {place}: analytic {analytic}, by differences {difference}: {case:?}"
                );
            }
        }
    }

    #[test]
    fn gradients_of_causal_sequences() {
        check(&Case::causal(&[5, 1, 3]), 1);
    }

    #[test]
    fn gradients_with_one_head_of_keys_for_each_or_for_all_heads() {
        check(&Case::causal(&[4, 2]).heads(3, 3), 1);
        check(&Case::causal(&[4, 2]).heads(3, 1), 1);
    }

    #[test]
    fn gradients_of_cross_attention() {
        check(&Case::bidirectional(&[3, 2, 1], &[1, 5, 4]), 1);
    }

    #[test]
    fn gradients_within_windows() {
        check(&Case::causal(&[6]).window(2), 1);
        check(&Case::bidirectional(&[6], &[6]).window(2), 1);
    }

    #[test]
    fn gradients_of_a_prefix() {
        check(&Case::causal(&[3, 2]).prefix(&[0..2, 0..2]), 1);
        check(&Case::causal(&[3, 2, 2]).window(1).prefix(&[0..2, 3..3, 1..4]), 1);
        check(&Case::bidirectional(&[2, 3], &[0, 2]).prefix(&[0..1, 1..2]), 1);
    }

    #[test]
    fn gradients_across_blocks() {
        check(&Case::causal(&[130, 65]), 61);
        check(&Case::causal(&[130, 1]).window(66).prefix(&[0..3, 1..2]), 61);
        check(&Case::bidirectional(&[65], &[130]), 61);
    }

    #[test]
    fn gradients_where_nothing_is_seen() {
        check(&Case::bidirectional(&[0, 2, 2, 1], &[3, 0, 2, 0]), 1);
        check(&Case::causal(&[2]).window(0), 1);
        let mut early = Case::bidirectional(&[3], &[1]);
        early.options.causal = true;
        check(&early, 1);
    }

    #[test]
    fn each_input_gets_its_gradient_with_or_without_the_others() {
        let case = Case::causal(&[4, 66]).prefix(&[0..2, 1..3]);
        let inputs = case.inputs();
        let weighting = random(inputs[0].rows(), inputs[0].cols(), 99);
        let all = case.gradients(&Workspace::new(), &inputs, [true; 5], &weighting);
        for wanted in 0..1 << 5 {
            let wanted = std::array::from_fn(|input| wanted >> input & 1 == 1);
            let some = case.gradients(&dirty_workspace(), &inputs, wanted, &weighting);
            for input in 0..5 {
                assert_eq!(some[input].as_ref(), all[input].as_ref().filter(|_| wanted[input]), "input {input}");
            }
        }
    }

    #[test]
    fn one_value_may_be_queries_keys_and_values() {
        let case = Case::bidirectional(&[3, 4], &[3, 4]).heads(2, 2);
        let inputs = case.inputs();
        let inputs = [0, 0, 0, 3, 4].map(|input: usize| inputs[input].clone());
        let weighting = random(7, inputs[0].cols(), 99);
        let workspace = Workspace::new();
        let apart = case.gradients(&workspace, &inputs, [true; 5], &weighting);
        let parameter = crate::Parameter::new("input", inputs[0].clone());
        let mut tape = crate::Tape::differentiating(&workspace);
        let x = tape.parameter(&parameter);
        let none = tape.constant(inputs[3].clone());
        let output = case.run(&mut tape, &[x.clone(), x.clone(), x, none.clone(), none]);
        let mut together = crate::Gradients::new(&workspace);
        tape.backward(output, weighting, &mut together);
        let together = together.get(parameter.id()).unwrap();
        for (place, value) in together.data().iter().enumerate() {
            let sum: f32 = apart[..3].iter().map(|gradient| gradient.as_ref().unwrap().data()[place]).sum();
            assert!((value - sum).abs() < 1e-5, "value {place}: {value} and {sum}");
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let cases = [
            Case::causal(&[130, 70, 1, 200]).heads(6, 3).prefix(&[0..5, 0..5, 2..7, 0..0]),
            Case::bidirectional(&[1, 1, 1], &[600, 500, 700]).heads(6, 3),
        ];
        for case in &cases {
            let inputs = case.inputs();
            let weighting = random(inputs[0].rows(), inputs[0].cols(), 99);
            let [one, two, three] = [1, 2, 3].map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let workspace = dirty_workspace();
                    let output = case.output(&workspace, &inputs);
                    (output, case.gradients(&workspace, &inputs, [true; 5], &weighting))
                })
            });
            assert!(one == two && one == three);
        }
    }
}
