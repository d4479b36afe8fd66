//! A block's attention over its own rows in one operation: `y = attend(turn(x·W_qᵀ), turn(x·W_kᵀ), x·W_vᵀ)·W_oᵀ`, each linear
//! with its bias and low-rank update, queries and keys turned by their positions; the rows of a prefix are attended to as well.

use std::sync::Arc;

use crate::kernels::bf16::self_attention::{
    Attended, Heads, Inputs, Kept, LONGEST, Parts, Projected, Shape, Which, backward, forward, tasks,
};
use crate::kernels::{View, ViewMut};
use crate::ops::attention::{Alone, Attention, Beside, KeyValueRows, Prefix, goes_through_tiles};
use crate::ops::rotary::Rotary;
use crate::ops::updated_linear::{Linear, UpdatedLinear};
use crate::tape::{Backward, Flow, NodeId};
use crate::{FrozenWeight, Matrix, Segments, Tape, Var};

/// The linears of an attention.
pub(crate) struct AttentionLinears<'a> {
    pub(crate) query: UpdatedLinear<'a>,
    pub(crate) keys: UpdatedLinear<'a>,
    pub(crate) values: UpdatedLinear<'a>,
    pub(crate) output: UpdatedLinear<'a>,
}

impl<'a> AttentionLinears<'a> {
    fn all(&self) -> [&UpdatedLinear<'a>; 4] {
        [&self.query, &self.keys, &self.values, &self.output]
    }
}

/// Floats of a tile's row, which features of heads have to fill.
const TILE: usize = 32;
/// Columns of a strip of tiles.
const STRIP: usize = 16;

impl Tape {
    /// Whether [`Tape::self_attention`] computes the attention of these sequences with these weights (query, keys, values,
    /// output). It depends on shapes and weights alone. Sequences that are too long, or too few to be shared out, are better
    /// off with one operation after the other.
    pub(crate) fn has_self_attention(
        &self,
        options: &Attention,
        segments: &Segments,
        weights: [&FrozenWeight; 4],
    ) -> bool {
        let in_bf16 = |weight: &FrozenWeight| weight.forward_columns().is_some() && weight.gradient_columns().is_some();
        let lengths = (0..segments.len()).map(|sequence| segments.length(sequence));
        goes_through_tiles(self.workspace(), segments)
            && options.head_dim.is_multiple_of(TILE)
            && lengths.max().is_some_and(|longest| longest <= LONGEST)
            && tasks(segments).len() > 1
            && weights.into_iter().all(in_bf16)
    }

    /// The attention of the rows of each sequence of `x` `[tokens, in]` among themselves, and to the rows of a prefix,
    /// `[tokens, out]`, in bf16. It is what its linears, [`Tape::rotary`] and [`Tape::attention`] make one after the other, but
    /// for the rounding of queries, keys and values to bf16; what lies between is not written out but in bf16 for the way back.
    ///
    /// # Panics
    /// If [`Tape::has_self_attention`] says that it doesn't, or the shapes disagree.
    pub(crate) fn self_attention(
        &mut self,
        options: &Attention,
        rotary: Option<&Rotary>,
        prefix: Option<&Prefix>,
        segments: &Segments,
        x: &Var,
        linears: AttentionLinears<'_>,
    ) -> Var {
        let shape = shape(options, &linears);
        let beside = Beside::new(self, options, segments, prefix, shape.at_once);
        let nodes = linears.all().into_iter().flat_map(UpdatedLinear::nodes).chain(beside.nodes()).chain([x.node()]);
        let nodes: Vec<Option<NodeId>> = nodes.collect();
        let workspace = self.workspace();
        let [query, keys, values, output] = linears.all().map(|linear| linear.part(workspace));
        let parts = Parts { query, keys, values, output };
        let mut y = Matrix::uninitialised(workspace, x.rows(), linears.output.base.weight.rows());
        let keep = nodes.iter().any(Option::is_some);
        let unit = workspace.kernels().unit();
        let heads = Turned { beside, rotary: rotary.cloned() };
        let kept = forward(unit, workspace, shape, &heads, &parts, segments, View::of(x.value()), &mut y, keep);
        drop(parts);
        let AttentionLinears { query, keys, values, output } = linears;
        let record = || SelfAttention {
            heads,
            shape,
            segments: segments.clone(),
            x: x.shared(),
            x_node: x.node(),
            linears: [query, keys, values, output].map(Linear::of),
            kept: kept.expect("what a gradient flows through is kept"),
        };
        self.output(y, &nodes, record)
    }
}

/// One head of keys and values at a time, where the weights give its columns apart; else all of them.
fn shape(options: &Attention, linears: &AttentionLinears<'_>) -> Shape {
    let (kv_heads, head_dim, group) = (options.kv_heads, options.head_dim, options.group());
    let [query, keys, values, output] = linears.all().map(|linear| linear.base.weight);
    assert_eq!(query.rows(), options.heads * head_dim, "queries are heads·head_dim wide");
    assert_eq!([keys, values].map(FrozenWeight::rows), [kv_heads * head_dim; 2], "keys are kv_heads·head_dim wide");
    assert_eq!(output.cols(), query.rows(), "the last linear takes what attends");
    let panels = [
        (query.forward_columns(), group),
        (keys.forward_columns(), 1),
        (values.forward_columns(), 1),
        (output.gradient_columns(), group),
    ];
    let is_apart = panels.iter().all(|(columns, size)| {
        let panel = columns.as_ref().map_or(usize::MAX, |columns| columns.strips_at_once());
        (size * head_dim).is_multiple_of(panel.saturating_mul(STRIP))
    });
    Shape { head_dim, kv_heads, group, at_once: if is_apart { 1 } else { kv_heads } }
}

/// Attention through tiles, of queries and keys that are turned by their positions.
struct Turned {
    beside: Beside,
    rotary: Option<Rotary>,
}

impl Turned {
    fn alone<'a>(&'a self, which: Which, projected: Projected<'a>) -> Alone<'a> {
        let Projected { query, keys, values } = projected;
        self.beside.alone(which.sequence, which.block, query, KeyValueRows { keys, values })
    }
}

impl Heads for Turned {
    fn turn(&self, rows: &mut [f32], width: usize, first: usize, back: bool) {
        if let Some(rotary) = &self.rotary {
            rotary.turn(rows, width, first, back);
        }
    }

    fn attend(&self, which: Which, projected: Projected<'_>, output: &mut [f32], lse: &mut [f32]) {
        self.alone(which, projected).attend(output, lse);
    }

    fn shared(&self) -> Option<Matrix> {
        self.beside.sums()
    }

    fn differentiate(
        &self,
        which: Which,
        projected: Projected<'_>,
        attended: Attended<'_>,
        gradients: [&mut [f32]; 3],
        shared: Option<&mut Matrix>,
    ) {
        let Attended { output, lse, gradient } = attended;
        let sums = shared.map(|sums| self.beside.sums_of(sums, which.sequence, which.block)).unwrap_or_default();
        self.alone(which, projected).differentiate(output, lse, gradient, gradients, sums);
    }
}

struct SelfAttention {
    heads: Turned,
    shape: Shape,
    segments: Segments,
    x: Arc<Matrix>,
    x_node: Option<NodeId>,
    /// Query, keys, values, output.
    linears: [Linear; 4],
    kept: Kept,
}

impl Backward for SelfAttention {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let Self { heads, shape, segments, x, x_node, linears, kept } = *self;
        let workspace = flow.workspace().clone();
        let unit = workspace.kernels().unit();
        let [query, keys, values, output] = linears.each_ref().map(|linear| linear.part(&workspace));
        let parts = Parts { query, keys, values, output };
        let inputs = Inputs { segments: &segments, x: View::of(&x), dy: View::of(&gradient) };
        let run = |dx: Option<(ViewMut<'_>, f32)>| backward(unit, &workspace, shape, &heads, &parts, &kept, inputs, dx);
        let mut made = None;
        flow.accumulate(x_node, x.shape(), |_, dx, beta| made = Some(run(Some((ViewMut::of(dx), beta)))));
        let (sums, shared) = made.unwrap_or_else(|| run(None));
        drop(parts);
        heads.beside.add(&shared, flow);
        linears.iter().zip(sums).for_each(|(linear, sums)| linear.add(sums, flow));
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::kernels::blocks::ScaledBlock;
    use crate::ops::finite_differences::random;
    use crate::ops::updated_linear::BlockUpdate;
    use crate::tuner::LowRankUpdate;
    use crate::{Base, Gradients, Kernels, Parameter, Seed, Workspace};

    /// An attention, its input, and its updates.
    struct Case {
        lengths: &'static [usize],
        width: usize,
        head_dim: usize,
        kv_heads: usize,
        group: usize,
        window: Option<usize>,
        /// Of query, keys, values and output; 0 is no update.
        ranks: [usize; 4],
        has_bias: bool,
        is_turned: bool,
        causal: bool,
        dropout: f32,
        /// The rows of a prefix that each sequence sees.
        prefix: &'static [Range<usize>],
        /// Whether the factors are those of two updates, the first of the first sequence.
        has_blocks: bool,
    }

    const SCALE: f32 = 0.3;

    impl Case {
        fn options(&self) -> Attention {
            let Self { head_dim, kv_heads, group, window, causal, dropout, .. } = *self;
            let scale = 1.0 / (head_dim as f32).sqrt();
            Attention { heads: kv_heads * group, kv_heads, head_dim, scale, causal, window, dropout }
        }

        fn rows(&self) -> usize {
            self.lengths.iter().sum()
        }

        /// `(out, in)` of query, keys, values and output.
        fn shapes(&self) -> [(usize, usize); 4] {
            let Self { width, head_dim, kv_heads, group, .. } = *self;
            let keys = kv_heads * head_dim;
            [(keys * group, width), (keys, width), (keys, width), (width, keys * group)]
        }

        fn update(&self, a: Var, b: Var) -> BlockUpdate {
            if !self.has_blocks {
                return BlockUpdate { factors: LowRankUpdate { a, b, scale: SCALE }, blocks: Vec::new() };
            }
            let (row, column) = (self.lengths[0], a.rows() / 2);
            let block = |rows, columns, scale| ScaledBlock { rows, columns, scale };
            let blocks = vec![block(0..row, 0..column, SCALE), block(row..self.rows(), column..a.rows(), 2.0 * SCALE)];
            BlockUpdate { factors: LowRankUpdate { a, b, scale: 1.0 }, blocks }
        }

        /// The output, and the gradients of the input and of every factor, computed in one or operation by operation.
        fn pass(&self, kernels: Kernels, in_one: bool) -> Vec<Matrix> {
            let workspace = Workspace::with_kernels(kernels);
            let (rows, options, segments) =
                (self.rows(), self.options(), Segments::from_lengths(self.lengths.to_vec()));
            let small = |rows: usize, cols: usize, index: u64| {
                let mut values = random(rows, cols, index);
                values.data_mut().iter_mut().for_each(|value| *value *= 2.0 / (cols as f32).sqrt());
                values
            };
            let shapes = self.shapes();
            let weights = [0, 1, 2, 3].map(|at| FrozenWeight::bf16(&small(shapes[at].0, shapes[at].1, at as u64)));
            let biases = [0, 1, 2, 3]
                .map(|at| self.has_bias.then(|| FrozenWeight::float32(random(1, shapes[at].0, 10 + at as u64))));
            let mut parameters = vec![Parameter::new("x", random(rows, self.width, 20))];
            for (at, (rank, (out, width))) in (0..).zip(self.ranks.into_iter().zip(shapes)) {
                if rank > 0 {
                    parameters.push(Parameter::new("A", small(rank, width, 30 + at)));
                    parameters.push(Parameter::new("B", random(out, rank, 40 + at)));
                }
            }
            let positions: Vec<usize> = segments.ranges().flat_map(|range| 0..range.len()).collect();
            let frequencies: Vec<f32> = (0..self.head_dim / 2).map(|at| 0.5f32.powi(at as i32)).collect();
            let rotary = self.is_turned.then(|| Rotary::new(&frequencies, &positions, 1.0));
            let prefix_rows = self.prefix.iter().map(|range| range.end).max().unwrap_or(0);
            let prefix = [60, 61].map(|index| Parameter::new("p", random(prefix_rows, shapes[1].0, index)));
            let mut tape = Tape::training(&workspace, Seed(3));
            let [prefix_keys, prefix_values] = [0, 1].map(|side: usize| tape.parameter(&prefix[side]));
            let ranges = self.prefix.to_vec();
            let rows_before = Prefix { keys: prefix_keys, values: prefix_values, ranges };
            let rows_before = (prefix_rows > 0).then_some(&rows_before);
            let mut vars = parameters.iter().map(|parameter| tape.parameter(parameter)).collect::<Vec<_>>().into_iter();
            let x = vars.next().unwrap();
            let mut linear = |at: usize| {
                let update = (self.ranks[at] > 0).then(|| {
                    let (a, b) = (vars.next().unwrap(), vars.next().unwrap());
                    self.update(a, b)
                });
                UpdatedLinear {
                    base: Base { weight: &weights[at], bias: biases[at].as_ref() },
                    update,
                    replacement: None,
                }
            };
            let [query, keys, values, output] = [0, 1, 2, 3].map(&mut linear);
            let y = if in_one {
                assert!(tape.has_self_attention(&options, &segments, weights.each_ref()));
                let linears = AttentionLinears { query, keys, values, output };
                tape.self_attention(&options, rotary.as_ref(), rows_before, &segments, &x, linears)
            } else {
                let apply = |tape: &mut Tape, linear: &UpdatedLinear<'_>, x: &Var| match &linear.update {
                    Some(update) => tape.linear_block_update(x, linear.base, update),
                    None => tape.linear(x, linear.base.weight, linear.base.bias),
                };
                let [mut query, mut keys, values] = [query, keys, values].map(|linear| apply(&mut tape, &linear, &x));
                if let Some(rotary) = &rotary {
                    query = tape.rotary(query, rotary);
                    keys = tape.rotary(keys, rotary);
                }
                let attended =
                    tape.attention(&options, &query, &segments, &keys, &values, &segments, rows_before, None);
                apply(&mut tape, &output, &attended)
            };
            let mut results = vec![y.value().clone()];
            let mut gradients = Gradients::new(&workspace);
            tape.backward(y, random(rows, self.width, 50), &mut gradients);
            let prefix = prefix.iter().filter(|_| prefix_rows > 0);
            results.extend(
                parameters.iter().chain(prefix).map(|parameter| gradients.get(parameter.id()).unwrap().clone()),
            );
            results
        }
    }

    fn cases() -> [Case; 8] {
        let case = Case {
            lengths: &[100, 90, 80],
            width: 70,
            head_dim: 32,
            kv_heads: 2,
            group: 3,
            window: None,
            ranks: [8, 8, 8, 8],
            has_bias: false,
            is_turned: true,
            causal: true,
            dropout: 0.0,
            prefix: &[],
            has_blocks: false,
        };
        [
            Case { ..case },
            // Tasks of one sequence and of several, and rows that fill no strip.
            Case { lengths: &[300, 7, 20, 1, 33, 200], ranks: [0, 4, 20, 0], has_bias: true, ..case },
            Case { kv_heads: 3, group: 1, head_dim: 64, ranks: [0; 4], window: Some(40), ..case },
            Case { lengths: &[130, 140], has_blocks: true, ranks: [8, 6, 0, 8], ..case },
            Case { lengths: &[256, 40], width: 33, head_dim: 96, ranks: [3, 0, 0, 40], is_turned: false, ..case },
            // Several heads at a time, and one; short sequences.
            Case { lengths: &[20; 17], is_turned: false, causal: false, has_bias: true, dropout: 0.1, ..case },
            Case { kv_heads: 2, group: 1, head_dim: 64, dropout: 0.4, prefix: &[0..5, 3..40, 7..7], ..case },
            Case { ranks: [0; 4], prefix: &[0..20, 0..20, 0..20], ..case },
        ]
    }

    #[test]
    fn is_what_its_parts_make() {
        for (number, case) in cases().iter().enumerate() {
            let exact = case.pass(Kernels::detect(), false);
            for kernels in [Kernels::amx(), Kernels::avx512_bf16(), Some(Kernels::bf16_in_float32())] {
                let Some(kernels) = kernels else { continue };
                let (in_one, parts) = (case.pass(kernels, true), case.pass(kernels, false));
                for (place, ((found, parts), exact)) in in_one.iter().zip(&parts).zip(&exact).enumerate() {
                    let largest = exact.data().iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                    let off = |values: &Matrix| {
                        let squares =
                            values.data().iter().zip(exact.data()).map(|(value, exact)| (value - exact).powi(2));
                        (squares.sum::<f32>() / exact.data().len() as f32).sqrt()
                    };
                    let (off, off_in_parts) = (off(found), off(parts));
                    // Queries, keys and values are rounded to 8 bits once more.
                    let bound = 1.5 * off_in_parts + largest / 1024.0;
                    assert!(off <= bound, "case {number}, result {place}, {kernels:?}: {off} against {off_in_parts}");
                    assert!(off_in_parts <= largest / 64.0, "case {number}, result {place}: the parts are off");
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let kernels = Kernels::amx().or(Kernels::avx512_bf16()).unwrap_or(Kernels::bf16_in_float32());
        for case in cases() {
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| case.pass(kernels, true))
            };
            let one = with(1);
            for threads in [2, 3, 5] {
                assert!(with(threads) == one, "{threads} threads");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_left_to_its_parts() {
        let workspace = Workspace::with_kernels(Kernels::bf16_in_float32());
        let weights = [0, 1, 2, 3].map(|index| FrozenWeight::bf16(&random(64, 64, index)));
        let options =
            Attention { heads: 2, kv_heads: 2, head_dim: 32, scale: 0.2, causal: true, window: None, dropout: 0.0 };
        let has = |tape: &Tape, options: Attention, lengths: &[usize], weights: [&FrozenWeight; 4]| {
            tape.has_self_attention(&options, &Segments::from_lengths(lengths.to_vec()), weights)
        };
        let all = weights.each_ref();
        let tape = Tape::differentiating(&workspace);
        assert!(has(&tape, options, &[200, 100], all));
        assert!(!has(&tape, options, &[200, 600], all), "a long sequence");
        assert!(!has(&tape, options, &[200], all), "a single task");
        assert!(!has(&tape, Attention { heads: 4, kv_heads: 4, head_dim: 16, ..options }, &[200, 100], all));
        let float32 = FrozenWeight::float32(random(64, 64, 9));
        assert!(!has(&tape, options, &[200, 100], [all[0], all[1], &float32, all[3]]));
        let exact = Workspace::with_kernels(Kernels::detect());
        assert!(!has(&Tape::differentiating(&exact), options, &[200, 100], all), "float32");
    }
}
