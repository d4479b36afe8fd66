//! Heads: which hidden states a task reads, and the linears that turn them into its outputs.

use tunesmith_tensor::{Activation, Forward, Role, Segments, SiteId, Var};

use crate::site_table::{Layout, SiteTable};

/// Which hidden states a head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// Those of every token.
    EveryToken,
    /// That of each sequence's first row: the class token, or a virtual one before it, as in transformers with PEFT.
    First,
    /// That of the last token of each sequence with this id; of the last token where there is none.
    LastOf(u32),
}

/// A head as an architecture describes it; paths are Hugging Face's.
#[derive(Clone, Debug)]
pub(crate) struct HeadPlan {
    pub(crate) pooling: Pooling,
    /// A linear of the hidden size and an activation, before the output.
    pub(crate) dense: Option<(String, Activation)>,
    pub(crate) output: String,
    /// Number of outputs.
    pub(crate) outputs: usize,
    /// Dropout before each linear.
    pub(crate) dropout: f32,
    /// Dropout before the first linear, where it has one of its own.
    pub(crate) first_dropout: f32,
}

/// A head in a network.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pooling: Pooling,
    dense: Option<(SiteId, Activation)>,
    output: SiteId,
    dropout: f32,
    first_dropout: f32,
}

impl Head {
    /// Where the rows that a head reads lie; without a head these are all tokens.
    pub(crate) fn rows(head: Option<&Self>, tokens: &Segments) -> Segments {
        match head.map(|head| head.pooling) {
            None | Some(Pooling::EveryToken) => tokens.clone(),
            Some(Pooling::First | Pooling::LastOf(_)) => Segments::from_lengths((0..tokens.len()).map(|_| 1)),
        }
    }

    /// Adds the sites of a head to a layout.
    pub(crate) fn lay_out(plan: &HeadPlan, hidden: usize, layout: &mut Layout) -> Self {
        let mut add = |path: &str, role, rows| {
            let site = layout.linear(path.to_owned(), role, None, rows, hidden);
            layout.may_be_new(site);
            site
        };
        let dense = plan.dense.as_ref().map(|(path, activation)| {
            let role = if path.ends_with("pooler.dense") { Role::Pooler } else { Role::Head };
            (add(path, role, hidden), *activation)
        });
        let output = add(&plan.output, Role::Head, plan.outputs);
        Self { pooling: plan.pooling, dense, output, dropout: plan.dropout, first_dropout: plan.first_dropout }
    }

    /// The hidden states that the head reads, of `hidden` `[tokens, hidden]`. `ids` are the tokens of the sequences,
    /// without virtual ones. Takes the rows of virtual tokens out.
    pub(crate) fn pool(&self, forward: &mut Forward<'_>, hidden: Var, ids: &[u32]) -> Var {
        match self.pooling {
            Pooling::EveryToken => forward.output(hidden),
            Pooling::First => {
                let rows = forward.segments().ranges().map(|range| range.start).collect();
                let pooled = forward.tape().gather_rows(&hidden, rows);
                // The segments of the batch are those of its tokens again.
                forward.output(hidden);
                pooled
            }
            Pooling::LastOf(token) => {
                let hidden = forward.output(hidden);
                let rows = forward.segments().ranges().map(|range| {
                    let last = range.clone().rev().find(|row| ids[*row] == token);
                    last.unwrap_or(range.end.saturating_sub(1))
                });
                let rows = rows.collect();
                forward.tape().gather_rows(&hidden, rows)
            }
        }
    }

    /// The outputs `[rows, outputs]` of pooled hidden states.
    pub(crate) fn logits(&self, table: &SiteTable, forward: &mut Forward<'_>, hidden: &Var, rows: &Segments) -> Var {
        let mut x = forward.tape().dropout(hidden, self.first_dropout);
        if let Some((site, activation)) = self.dense {
            x = table.linear_rows(forward, site, &x, rows);
            x = forward.tape().activation(activation, &x);
            x = forward.tape().dropout(&x, self.dropout);
        }
        table.linear_rows(forward, self.output, &x, rows)
    }
}
