//! Attention of one sequence on the calling thread, through tiles, over its own keys and values and those of a prefix: what an
//! operation does that takes a sequence through more than attention.

use super::{Attention, KeyValueRows, Mask, Sequence, tiled};
use crate::Workspace;

/// What queries of all heads attend to, and which queries.
#[derive(Clone, Copy)]
pub(crate) struct Alone<'a> {
    pub(super) workspace: &'a Workspace,
    pub(super) options: &'a Attention,
    /// `[rows, heads · head_dim]`.
    pub(super) query: &'a [f32],
    pub(super) own: KeyValueRows<'a>,
    pub(super) prefix: KeyValueRows<'a>,
    pub(super) dropout: Option<Mask>,
}

impl Alone<'_> {
    fn sequence(&self) -> Sequence<'_> {
        Sequence { prefix: self.prefix, own: self.own, bias: None, dropout: self.dropout }
    }

    fn rows(&self) -> usize {
        self.query.len() / (self.options.heads * self.options.head_dim)
    }

    /// Writes the output, shaped as the queries, and the log-sum-exp of each query's scores, `[rows, heads]`.
    pub(crate) fn attend(&self, output: &mut [f32], lse: &mut [f32]) {
        let (options, sequence) = (self.options, self.sequence());
        for kv_head in 0..options.kv_heads {
            let outputs = columns(output, options.kv_heads, kv_head, self.rows());
            let lses = columns(lse, options.kv_heads, kv_head, self.rows());
            tiled::attend_alone(self.workspace, options, kv_head, self.query, sequence, outputs, lses);
        }
    }

    /// Writes the gradients of queries, keys and values, each shaped as they are, given the gradient of the output and what
    /// [`attend`](Self::attend) wrote. Those of the prefix's keys and values are added to `prefix_sums`, which have
    /// `[prefix rows, head_dim]` of each head.
    pub(crate) fn differentiate(
        &self,
        output: &[f32],
        lse: &[f32],
        gradient: &[f32],
        gradients: [&mut [f32]; 3],
        prefix_sums: Vec<[Option<&mut [f32]>; 2]>,
    ) {
        let Self { workspace, options, query, .. } = *self;
        let (sequence, queries, head_dim) = (self.sequence(), self.rows(), options.head_dim);
        let [dquery, dkeys, dvalues] = gradients;
        let prefix_sums = prefix_sums.into_iter().chain(std::iter::repeat_with(|| [None, None]));
        for (kv_head, [prefix_keys, prefix_values]) in (0..options.kv_heads).zip(prefix_sums) {
            let inputs = tiled::Inputs { sequence, kv_head, queries, query, output, gradient, lse };
            let mut dquery = columns(dquery, options.kv_heads, kv_head, queries);
            let mut sums = [(); 2].map(|()| {
                let mut sums = workspace.take(queries * head_dim);
                sums.fill(0.0);
                sums
            });
            let [keys, values] = &mut sums;
            let into = tiled::Sums {
                keys: [prefix_keys, Some(&mut keys[..])],
                values: [prefix_values, Some(&mut values[..])],
            };
            tiled::differentiate(workspace, options, inputs, &mut dquery, into);
            for (target, sums) in [&mut *dkeys, &mut *dvalues].into_iter().zip(&sums) {
                let rows = columns(target, options.kv_heads, kv_head, queries);
                rows.into_iter().zip(sums.chunks_exact(head_dim)).for_each(|(row, sum)| row.copy_from_slice(sum));
            }
        }
    }
}

/// Part `part` of `parts` equal ones of each of `rows` rows.
fn columns(values: &mut [f32], parts: usize, part: usize, rows: usize) -> Vec<&mut [f32]> {
    let width = values.len() / rows.max(1);
    let own = part * width / parts..(part + 1) * width / parts;
    values.chunks_exact_mut(width.max(1)).map(|row| &mut row[own.clone()]).collect()
}
