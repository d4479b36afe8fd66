//! Heads: which hidden states a task reads, and the linears that turn them into its outputs.

use serde_json::{Map, Value};
use tunesmith_tensor::{Activation, Forward, Role, Segments, SiteId, Var};

use crate::fields::Fields;
use crate::site_table::{Layout, SiteTable};
use crate::task::{HeadInfo, HeadOptions, Task, describe_head};

/// Which hidden states a head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// Those of every token.
    EveryToken,
    /// That of each sequence's first row: the class token, or a virtual one before it, as in transformers with PEFT.
    First,
    /// That of the last token of each sequence that has another id.
    LastBut(Option<u32>),
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
    /// Whether the outputs have a bias.
    pub(crate) output_bias: bool,
    /// Dropout before each linear.
    pub(crate) dropout: f32,
    /// Dropout before the first linear, where it has one of its own.
    pub(crate) first_dropout: f32,
}

impl HeadPlan {
    /// A head over every token: one linear after `dropout`. Its outputs are counted by [`plan_head`].
    pub(crate) fn of_tokens(output: &str, dropout: f32) -> Self {
        Self {
            pooling: Pooling::EveryToken,
            dense: None,
            output: output.to_owned(),
            outputs: 0,
            output_bias: true,
            dropout: 0.0,
            first_dropout: dropout,
        }
    }

    /// The head of encoder-decoders over the last token `end` of a sequence: a linear, tanh, and the output.
    pub(crate) fn of_last(end: u32, dropout: f32) -> Self {
        Self {
            pooling: Pooling::LastOf(end),
            dense: Some(("classification_head.dense".to_owned(), Activation::Tanh)),
            dropout,
            ..Self::of_tokens("classification_head.out_proj", dropout)
        }
    }

    /// Whether a tensor of a checkpoint is this head's.
    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        let module = name.rsplit_once('.').map(|(module, _)| module);
        module
            .is_some_and(|module| module == self.output || self.dense.as_ref().is_some_and(|(path, _)| module == path))
    }
}

/// The head of an architecture for a task, apart from the number of its outputs; `None` for tasks without one.
pub(crate) type PlanHead<'a> = &'a dyn Fn(Task, &mut Fields<'_>) -> Option<HeadPlan>;

/// Plans the head that the options and files ask for, and counts its outputs. Also gives `config.json` as it will be
/// saved, with `class` as the beginning of transformers' class. Problems go to `fields`.
pub(crate) fn plan_head(
    fields: &mut Fields<'_>,
    options: &HeadOptions,
    class: &str,
    otherwise: Task,
    plan: PlanHead<'_>,
) -> (Option<HeadPlan>, HeadInfo, Map<String, Value>) {
    let task = options.task_of(fields.json, otherwise);
    let mut problems = Vec::new();
    let labels = if task.has_labels() { options.labels_of(fields.json, &mut problems) } else { Vec::new() };
    let problem_type = if task == Task::SeqCls { options.problem_type_of(fields.json, &mut problems) } else { None };
    fields.problems.extend(problems);
    let outputs = if task == Task::QuestionAns { 2 } else { labels.len() };
    let head = plan(task, fields).map(|head| HeadPlan { outputs, ..head });
    let info = HeadInfo { task, labels, problem_type, new_modules: Vec::new() };
    let mut json = fields.json.clone();
    describe_head(&mut json, &info, &format!("{class}{}", task.class_ending()));
    (head, info, json)
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
            Some(Pooling::First | Pooling::LastBut(_) | Pooling::LastOf(_)) => {
                Segments::from_lengths((0..tokens.len()).map(|_| 1))
            }
        }
    }

    /// Adds the sites of a head to a layout.
    pub(crate) fn lay_out(plan: &HeadPlan, hidden: usize, layout: &mut Layout) -> Self {
        let mut add = |path: &str, role, rows, has_bias| {
            let path = path.to_owned();
            let site = if has_bias {
                layout.linear(path, role, None, rows, hidden)
            } else {
                layout.linear_without_bias(path, role, None, rows, hidden)
            };
            layout.may_be_new(site);
            site
        };
        let dense = plan.dense.as_ref().map(|(path, activation)| {
            let role = if path.ends_with("pooler.dense") { Role::Pooler } else { Role::Head };
            (add(path, role, hidden, true), *activation)
        });
        let output = add(&plan.output, Role::Head, plan.outputs, plan.output_bias);
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
            Pooling::LastBut(padding) => last_rows(forward, hidden, |row| padding.is_none_or(|id| ids[row] != id)),
            Pooling::LastOf(token) => last_rows(forward, hidden, |row| ids[row] == token),
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

/// The last of each sequence's rows for which `counts` holds; the last of all where there is none.
fn last_rows(forward: &mut Forward<'_>, hidden: Var, counts: impl Fn(usize) -> bool) -> Var {
    let hidden = forward.output(hidden);
    let rows = forward.segments().ranges().map(|range| {
        let last = range.clone().rev().find(|row| counts(*row));
        last.unwrap_or(range.end.saturating_sub(1))
    });
    let rows = rows.collect();
    forward.tape().gather_rows(&hidden, rows)
}
