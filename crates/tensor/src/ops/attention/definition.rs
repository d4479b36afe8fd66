//! Attention by its definition, in float64 and one score at a time: what the operation is tested against.

use std::ops::Range;

use super::{Attention, Prefix};
use crate::ops::finite_differences::random;
use crate::{Gradients, Matrix, Parameter, Segments, Tape, Var, Workspace};

/// An attention over random inputs.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) options: Attention,
    pub(super) queries: Vec<usize>,
    pub(super) keys: Vec<usize>,
    /// Prefix rows of each sequence; empty for none.
    pub(super) prefix: Vec<Range<usize>>,
}

impl Case {
    /// Self-attention of causal sequences, two query heads a head of keys.
    pub(super) fn causal(lengths: &[usize]) -> Self {
        let options =
            Attention { heads: 4, kv_heads: 2, head_dim: 8, scale: 0.4, causal: true, window: None, dropout: 0.0 };
        Self { options, queries: lengths.to_vec(), keys: lengths.to_vec(), prefix: Vec::new() }
    }

    /// Queries see all keys of their sequence.
    pub(super) fn bidirectional(queries: &[usize], keys: &[usize]) -> Self {
        let options = Attention { causal: false, ..Self::causal(&[]).options };
        Self { options, queries: queries.to_vec(), keys: keys.to_vec(), prefix: Vec::new() }
    }

    pub(super) fn window(mut self, window: usize) -> Self {
        self.options.window = Some(window);
        self
    }

    pub(super) fn heads(mut self, heads: usize, kv_heads: usize) -> Self {
        (self.options.heads, self.options.kv_heads) = (heads, kv_heads);
        self
    }

    pub(super) fn prefix(mut self, ranges: &[Range<usize>]) -> Self {
        self.prefix = ranges.to_vec();
        self
    }

    /// Queries, keys, values, prefix keys, prefix values.
    pub(super) fn inputs(&self) -> [Matrix; 5] {
        let (query_width, key_width) = (self.options.heads * self.options.head_dim, self.options.key_width());
        let (queries, keys) = (self.queries.iter().sum(), self.keys.iter().sum());
        let prefix = self.prefix.iter().map(|range| range.end).max().unwrap_or(0);
        let shapes =
            [(queries, query_width), (keys, key_width), (keys, key_width), (prefix, key_width), (prefix, key_width)];
        let mut index = 0;
        shapes.map(|(rows, cols)| {
            index += 1;
            random(rows, cols, index)
        })
    }

    /// The operation on the tape.
    pub(super) fn run(&self, tape: &mut Tape, inputs: &[Var; 5]) -> Var {
        let [query, keys, values, prefix_keys, prefix_values] = inputs;
        let segments = |lengths: &[usize]| Segments::from_lengths(lengths.iter().copied());
        let (query_segments, key_segments) = (segments(&self.queries), segments(&self.keys));
        let ranges = self.prefix.clone();
        let prefix = Prefix { keys: prefix_keys.clone(), values: prefix_values.clone(), ranges };
        let prefix = if self.prefix.is_empty() { None } else { Some(&prefix) };
        tape.attention(&self.options, query, &query_segments, keys, values, &key_segments, prefix, None)
    }

    /// The operation's output.
    pub(super) fn output(&self, workspace: &Workspace, inputs: &[Matrix; 5]) -> Matrix {
        let mut tape = Tape::evaluating(workspace);
        let vars = inputs.clone().map(|input| tape.constant(input));
        self.run(&mut tape, &vars).value().clone()
    }

    /// The gradients of all inputs where the output has the gradient `gradient`; `None` where nothing flowed.
    pub(super) fn gradients(
        &self,
        workspace: &Workspace,
        inputs: &[Matrix; 5],
        wanted: [bool; 5],
        gradient: &Matrix,
    ) -> [Option<Matrix>; 5] {
        let parameters = inputs.clone().map(|input| Parameter::new("input", input));
        let mut tape = Tape::differentiating(workspace);
        let vars: [Var; 5] = std::array::from_fn(|input| {
            if wanted[input] { tape.parameter(&parameters[input]) } else { tape.constant(inputs[input].clone()) }
        });
        let output = self.run(&mut tape, &vars);
        let mut gradients = Gradients::new(workspace);
        tape.backward(output, gradient.clone(), &mut gradients);
        parameters.map(|parameter| gradients.get(parameter.id()).cloned())
    }

    /// Whether query `i` of `queries` sees key `j` of `keys`.
    fn sees(&self, i: usize, queries: usize, j: usize, keys: usize) -> bool {
        let ahead = j as i64 - (i as i64 + keys as i64 - queries as i64);
        let in_order = !self.options.causal || ahead <= 0;
        let near = self.options.window.is_none_or(|window| ahead.unsigned_abs() < window as u64);
        in_order && near
    }

    /// The output by the definition.
    pub(super) fn definition(&self, inputs: &[Vec<f64>; 5]) -> Vec<f64> {
        self.masked_definition(inputs, |_, _, _| 1.0)
    }

    /// The same where the weight that a query (row of the batch) and head give a key (prefix first) is multiplied by `keep`.
    pub(super) fn masked_definition(
        &self,
        inputs: &[Vec<f64>; 5],
        keep: impl Fn(usize, usize, usize) -> f64,
    ) -> Vec<f64> {
        let [query, keys, values, prefix_keys, prefix_values] = inputs;
        let Attention { heads, kv_heads, head_dim, scale, .. } = self.options;
        let key_width = kv_heads * head_dim;
        let mut output = vec![0.0; query.len()];
        let (mut first_query, mut first_key) = (0, 0);
        for (sequence, (&queries, &own)) in self.queries.iter().zip(&self.keys).enumerate() {
            for (i, head) in (0..queries).flat_map(|i| (0..heads).map(move |head| (i, head))) {
                let place = ((first_query + i) * heads + head) * head_dim;
                let column = head / (heads / kv_heads) * head_dim;
                let prefix = self.prefix.get(sequence).cloned().unwrap_or(0..0);
                let prefixed = prefix.len();
                let before = prefix.enumerate();
                let seen = before.map(|(j, row)| (prefix_keys, prefix_values, row * key_width + column, j)).chain(
                    (0..own)
                        .filter(|j| self.sees(i, queries, *j, own))
                        .map(|j| (keys, values, (first_key + j) * key_width + column, prefixed + j)),
                );
                let seen: Vec<_> = seen.collect();
                let score = |(keys, _, start, _): &(&Vec<f64>, &Vec<f64>, usize, usize)| -> f64 {
                    (0..head_dim).map(|d| query[place + d] * keys[start + d]).sum::<f64>() * f64::from(scale)
                };
                let weights: Vec<f64> = seen.iter().map(|key| score(key).exp()).collect();
                let total: f64 = weights.iter().sum();
                for ((_, values, start, key), weight) in seen.iter().zip(&weights) {
                    let weight = weight / total * keep(first_query + i, head, *key);
                    (0..head_dim).for_each(|d| output[place + d] += weight * values[start + d]);
                }
            }
            first_query += queries;
            first_key += own;
        }
        output
    }
}

/// The inputs in float64.
pub(super) fn widen(inputs: &[Matrix; 5]) -> [Vec<f64>; 5] {
    std::array::from_fn(|input| inputs[input].data().iter().map(|value| f64::from(*value)).collect())
}

/// A workspace whose pooled buffers hold NaN, so that a value that nobody wrote shows.
pub(super) fn dirty_workspace() -> Workspace {
    let workspace = Workspace::new();
    let lengths = std::iter::successors(Some(64usize), |length| Some(length + length.div_ceil(16))).take(110);
    let buffers: Vec<_> =
        lengths.flat_map(|length| std::iter::repeat_n(length, 6)).map(|length| workspace.take(length)).collect();
    for mut buffer in buffers {
        buffer.fill(f32::NAN);
    }
    workspace
}
