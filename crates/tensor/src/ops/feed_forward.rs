//! A block's feed-forward in one operation: `y = (f(x·W_gateᵀ)·(x·W_upᵀ))·W_downᵀ` (Shazeer 2020, eq. 6), or
//! `y = f(x·W_upᵀ)·W_downᵀ` without a gate (Vaswani et al. 2017, eq. 2), each linear with its bias and low-rank update.

use std::cell::OnceCell;
use std::sync::Arc;

use crate::kernels::bf16::feed_forward::{Gating, Kept, Made, Parts, backward, forward};
use crate::kernels::bf16::{TokenTiles, Tokens, is_long};
use crate::kernels::{View, ViewMut, vectorised};
use crate::ops::activation::{Function, Rough, with_function};
use crate::ops::updated_linear::{Linear, UpdatedLinear};
use crate::tape::{Backward, Flow, NodeId};
use crate::{Activation, FrozenWeight, Matrix, Precision, Tape, Var};

/// The linears of a feed-forward.
pub(crate) struct FeedForwardLinears<'a> {
    pub(crate) gate: Option<UpdatedLinear<'a>>,
    pub(crate) up: UpdatedLinear<'a>,
    pub(crate) down: UpdatedLinear<'a>,
}

/// Rows from which going over all hidden features for some rows at a time pays.
const WORTH_IT: usize = 64;
/// Hidden features of a tile, which they have to fill.
const TILE: usize = 32;

impl Tape {
    /// Whether [`Tape::feed_forward`] computes the feed-forward of `rows` rows with these weights.
    pub(crate) fn has_feed_forward(&self, rows: usize, weights: &[&FrozenWeight], hidden: usize) -> bool {
        let in_bf16 =
            |weight: &&FrozenWeight| weight.forward_columns().is_some() && weight.gradient_columns().is_some();
        self.workspace().kernels().precision() == Precision::Bf16
            && rows >= WORTH_IT
            && hidden.is_multiple_of(TILE)
            && !weights.iter().any(|weight| is_long(weight.rows().min(weight.cols())))
            && weights.iter().all(in_bf16)
    }

    /// The feed-forward of `x` `[tokens, in]`, `[tokens, out]`, in bf16. It is what its linears and activation make one
    /// after the other, to the bit, but what lies between them is not written out, and is kept for the way back in bf16.
    ///
    /// # Panics
    /// If [`Tape::has_feed_forward`] says that it doesn't, or the shapes disagree.
    pub(crate) fn feed_forward(&mut self, activation: Activation, x: &Var, linears: FeedForwardLinears<'_>) -> Var {
        let FeedForwardLinears { gate, up, down } = linears;
        let all = [gate.as_ref(), Some(&up), Some(&down)];
        let nodes: Vec<Option<NodeId>> =
            all.into_iter().flatten().flat_map(UpdatedLinear::nodes).chain([x.node()]).collect();
        let workspace = self.workspace();
        let gating = gating(activation, gate.is_some());
        let parts = Parts {
            gate: gate.as_ref().map(|linear| linear.part(workspace)),
            up: up.part(workspace),
            down: down.part(workspace),
            gating,
        };
        let mut y = Matrix::uninitialised(workspace, x.rows(), down.base.weight.rows());
        let keep = nodes.iter().any(Option::is_some);
        let unit = workspace.kernels().unit();
        let kept = forward(unit, workspace, &parts, View::of(x.value()), &mut y, keep);
        drop(parts);
        let record = || FeedForward {
            x: x.shared(),
            x_node: x.node(),
            linears: [gate.map(Linear::of), Some(Linear::of(up)), Some(Linear::of(down))],
            gating,
            kept: kept.expect("what a gradient flows through is kept"),
        };
        self.output(y, &nodes, record)
    }
}

struct FeedForward {
    x: Arc<Matrix>,
    x_node: Option<NodeId>,
    /// Gate, up, down.
    linears: [Option<Linear>; 3],
    gating: Gating,
    kept: Kept,
}

impl Backward for FeedForward {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let Self { x, x_node, linears, gating, kept } = *self;
        let workspace = flow.workspace().clone();
        let unit = workspace.kernels().unit();
        let [gate, up, down] = linears.each_ref().map(|linear| linear.as_ref().map(|linear| linear.part(&workspace)));
        let (up, down) = up.zip(down).expect("every feed-forward has these linears");
        let parts = Parts { gate, up, down, gating };
        let hidden = parts.up.columns.depth();
        let [gate, up, down] = linears.each_ref().map(Option::as_ref);
        let keep = [gate.is_some_and(Linear::trains_own), up.is_some_and(Linear::trains_own)];
        let keep = [keep[0], keep[1], down.is_some_and(Linear::trains_weight)];
        let run = |dx: Option<(ViewMut<'_>, f32)>| {
            backward(unit, &workspace, &parts, &kept, View::of(&x), View::of(&gradient), dx, keep)
        };
        let mut made = None;
        flow.accumulate(x_node, x.shape(), |_, dx, beta| made = Some(run(Some((ViewMut::of(dx), beta)))));
        let Made { sums, hidden: tiles } = made.unwrap_or_else(|| run(None));
        drop((parts, kept));
        for (linear, sums) in linears.iter().zip(sums) {
            linear.iter().zip([sums]).for_each(|(linear, sums)| linear.add(sums, flow));
        }
        let tokens = |tiles| Tokens::Tiles(TokenTiles { tiles, tokens: x.rows(), features: hidden });
        let (inputs, inner) = (OnceCell::new(), OnceCell::new());
        for (linear, tiles) in [gate, up].into_iter().zip(&tiles) {
            if let (Some(linear), Some(tiles)) = (linear, tiles) {
                let pack = || Tokens::Floats(View::of(&x)).columns(&workspace);
                linear.add_own(tokens(tiles), || inputs.get_or_init(pack), flow);
            }
        }
        if let Some(down) = down {
            let pack = || tokens(tiles[2].as_deref().unwrap_or_default()).columns(&workspace);
            down.add_own(Tokens::Floats(View::of(&gradient)), || inner.get_or_init(pack), flow);
        }
    }
}

fn gating(activation: Activation, has_gate: bool) -> Gating {
    with_function!(activation, gating_of(has_gate))
}

fn gating_of<F: Function>(has_gate: bool) -> Gating {
    if has_gate {
        Gating { forward: gate_forward::<Rough<F>>, backward: gate_backward::<Rough<F>> }
    } else {
        Gating { forward: plain_forward::<Rough<F>>, backward: plain_backward::<Rough<F>> }
    }
}

fn gate_forward<F: Function>(gate: &[f32], up: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || up.iter_mut().zip(gate).for_each(|(up, gate)| *up *= F::value(*gate)),
    );
}

fn gate_backward<F: Function>(gate: &mut [f32], up: &mut [f32], dh: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for ((gate, up), dh) in gate.iter_mut().zip(up).zip(dh) {
                let (value, slope) = F::value_and_slope(*gate);
                (*gate, *up, *dh) = (*dh * *up * slope, *dh * value, value * *up);
            }
        },
    );
}

fn plain_forward<F: Function>(_: &[f32], up: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || up.iter_mut().for_each(|up| *up = F::value(*up)),
    );
}

fn plain_backward<F: Function>(_: &mut [f32], up: &mut [f32], dh: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (up, dh) in up.iter_mut().zip(dh) {
                let (value, slope) = F::value_and_slope(*up);
                (*up, *dh) = (*dh * slope, value);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::blocks::ScaledBlock;
    use crate::ops::finite_differences::random;
    use crate::ops::updated_linear::BlockUpdate;
    use crate::tuner::{LowRankUpdate, Replacement};
    use crate::{Base, Gradients, Kernels, Parameter, Workspace};

    /// A feed-forward, its input, and its updates.
    struct Case {
        rows: usize,
        width: usize,
        hidden: usize,
        has_gate: bool,
        /// Of gate, up and down; 0 is no update.
        ranks: [usize; 3],
        has_bias: bool,
        /// Whether the factors are those of two updates, the first of a third of the rows.
        has_blocks: bool,
        /// Whether weights and biases are trained themselves.
        is_trained: bool,
    }

    const SCALE: f32 = 0.3;

    impl Case {
        /// `(out, in)` of gate, up and down.
        fn shapes(&self) -> [(usize, usize); 3] {
            let Self { width, hidden, .. } = *self;
            [(hidden, width), (hidden, width), (width, hidden)]
        }

        fn update(&self, a: Var, b: Var) -> BlockUpdate {
            if !self.has_blocks {
                return BlockUpdate { factors: LowRankUpdate { a, b, scale: SCALE }, blocks: Vec::new() };
            }
            let (row, column) = (self.rows / 3, a.rows() / 2);
            let block = |rows, columns, scale| ScaledBlock { rows, columns, scale };
            let blocks = vec![block(0..row, 0..column, SCALE), block(row..self.rows, column..a.rows(), 2.0 * SCALE)];
            BlockUpdate { factors: LowRankUpdate { a, b, scale: 1.0 }, blocks }
        }

        /// The output, and the gradients of the input and of every factor, computed in one or operation by operation.
        fn pass(&self, kernels: Kernels, in_one: bool) -> Vec<Matrix> {
            let workspace = Workspace::with_kernels(kernels);
            let shapes = self.shapes();
            // Small weights, so that hidden values are neither tiny nor large.
            let small = |rows: usize, cols: usize, index: u64| {
                let mut values = random(rows, cols, index);
                values.data_mut().iter_mut().for_each(|value| *value /= (cols as f32).sqrt());
                values
            };
            let weights = [0, 1, 2].map(|at| FrozenWeight::bf16(&small(shapes[at].0, shapes[at].1, at as u64)));
            let biases = [0, 1, 2]
                .map(|at| self.has_bias.then(|| FrozenWeight::float32(random(1, shapes[at].0, 10 + at as u64))));
            let mut parameters = vec![Parameter::new("x", random(self.rows, self.width, 20))];
            for (at, (rank, (out, width))) in (0..).zip(self.ranks.into_iter().zip(shapes)) {
                if rank > 0 && (at > 0 || self.has_gate) {
                    parameters.push(Parameter::new("A", small(rank, width, 30 + at)));
                    parameters.push(Parameter::new("B", random(out, rank, 40 + at)));
                }
            }
            let first_own = parameters.len();
            for at in (0..3).filter(|at| self.is_trained && (*at > 0 || self.has_gate)) {
                parameters.push(Parameter::new("W", weights[at].to_matrix()));
                parameters.extend(biases[at].as_ref().map(|bias| Parameter::vector("b", bias.to_matrix())));
            }
            let mut tape = Tape::differentiating(&workspace);
            let mut vars: Vec<Var> = parameters.iter().map(|parameter| tape.parameter(parameter)).collect();
            let mut own = vars.split_off(first_own).into_iter();
            let mut vars = vars.into_iter();
            let x = vars.next().unwrap();
            let mut linear = |at: usize| {
                let update = (self.ranks[at] > 0).then(|| {
                    let (a, b) = (vars.next().unwrap(), vars.next().unwrap());
                    self.update(a, b)
                });
                let replacement = self.is_trained.then(|| {
                    let weight = own.next();
                    Replacement { weight, bias: biases[at].as_ref().and_then(|_| own.next()) }
                });
                UpdatedLinear { base: Base { weight: &weights[at], bias: biases[at].as_ref() }, update, replacement }
            };
            let linears = FeedForwardLinears { gate: self.has_gate.then(|| linear(0)), up: linear(1), down: linear(2) };
            let y = if in_one {
                let weights: Vec<&FrozenWeight> = weights.iter().collect();
                assert!(tape.has_feed_forward(self.rows, &weights, self.hidden));
                tape.feed_forward(Activation::Silu, &x, linears)
            } else {
                let apply = |tape: &mut Tape, linear: &UpdatedLinear<'_>, x: &Var| {
                    if let Some(Replacement { weight: Some(weight), bias }) = &linear.replacement {
                        let y = tape.matmul_nt(x, weight);
                        return match bias {
                            Some(bias) => tape.add_bias(y, 0..x.rows(), bias),
                            None => y,
                        };
                    }
                    match &linear.update {
                        Some(update) => tape.linear_block_update(x, linear.base, update),
                        None => tape.linear(x, linear.base.weight, linear.base.bias),
                    }
                };
                let mut inner = apply(&mut tape, &linears.up, &x);
                inner = match &linears.gate {
                    Some(gate) => {
                        let gate = apply(&mut tape, gate, &x);
                        tape.gated(Activation::Silu, &gate, &inner)
                    }
                    None => tape.activation(Activation::Silu, &inner),
                };
                apply(&mut tape, &linears.down, &inner)
            };
            let mut results = vec![y.value().clone()];
            let mut gradients = Gradients::new(&workspace);
            tape.backward(y, random(self.rows, self.width, 50), &mut gradients);
            results.extend(parameters.iter().map(|parameter| gradients.get(parameter.id()).unwrap().clone()));
            results
        }
    }

    fn cases() -> [Case; 9] {
        let case = |rows, width, hidden, has_gate, ranks, has_bias| Case {
            rows,
            width,
            hidden,
            has_gate,
            ranks,
            has_bias,
            has_blocks: false,
            is_trained: false,
        };
        [
            case(65, 70, 96, true, [8, 8, 8], false),
            case(300, 40, 64, false, [0, 4, 20], true),
            case(130, 64, 160, true, [0, 0, 0], true),
            // Several chunks of hidden features.
            case(256, 33, 4480, true, [3, 0, 8], false),
            Case { has_blocks: true, ..case(300, 70, 96, true, [8, 6, 8], false) },
            Case { has_blocks: true, ..case(70, 40, 64, false, [0, 40, 3], true) },
            Case { is_trained: true, ..case(300, 70, 96, true, [0, 0, 0], true) },
            Case { is_trained: true, ..case(70, 33, 64, false, [0, 0, 0], true) },
            Case { is_trained: true, ..case(257, 40, 4480, true, [0, 0, 0], false) },
        ]
    }

    #[test]
    fn is_what_its_parts_make() {
        for (number, case) in cases().iter().enumerate() {
            let exact = case.pass(Kernels::detect(), false);
            for kernels in [Kernels::amx(), Kernels::avx512_bf16(), Some(Kernels::bf16_in_float32())] {
                let Some(kernels) = kernels else { continue };
                let (in_one, parts) = (case.pass(kernels, true), case.pass(kernels, false));
                assert_eq!(in_one[0], parts[0], "case {number}, {kernels:?}");
                for (place, (found, exact)) in in_one.iter().zip(&exact).enumerate() {
                    let largest = exact.data().iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                    for (found, exact) in found.data().iter().zip(exact.data()) {
                        // Operands are rounded four times on the way, each by up to 2⁻⁹ of its size.
                        let bound = largest / 64.0;
                        assert!((found - exact).abs() <= bound, "case {number}, result {place}: {found}, not {exact}");
                    }
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
    fn an_input_without_a_gradient_gets_none() {
        let workspace = Workspace::with_kernels(Kernels::bf16_in_float32());
        let weights = [(64, 32), (32, 64)].map(|(rows, cols)| FrozenWeight::bf16(&random(rows, cols, 0)));
        let factors = [Parameter::new("A", random(4, 32, 1)), Parameter::new("B", random(64, 4, 2))];
        let pass = |needs_gradient: bool| {
            let input = Parameter::new("x", random(70, 32, 3));
            let mut tape = Tape::differentiating(&workspace);
            let [a, b] = [0, 1].map(|at| tape.parameter(&factors[at]));
            let x = if needs_gradient { tape.parameter(&input) } else { tape.constant(random(70, 32, 3)) };
            let base = |at: usize| Base { weight: &weights[at], bias: None };
            let update = LowRankUpdate { a, b, scale: SCALE };
            let update = Some(BlockUpdate { factors: update, blocks: Vec::new() });
            let up = UpdatedLinear { base: base(0), update, replacement: None };
            let down = UpdatedLinear { base: base(1), update: None, replacement: None };
            let linears = FeedForwardLinears { gate: None, up, down };
            let y = tape.feed_forward(Activation::Relu, &x, linears);
            let mut gradients = Gradients::new(&workspace);
            tape.backward(y, random(70, 32, 4), &mut gradients);
            let found = gradients.get(input.id()).is_some();
            (found, [0, 1].map(|at| gradients.get(factors[at].id()).unwrap().clone()))
        };
        let (with, without) = (pass(true), pass(false));
        assert_eq!((with.0, without.0), (true, false));
        assert_eq!(with.1, without.1);
    }
}
