//! Linear with a frozen weight and a trainable low-rank update, in one: `y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ`.

use std::sync::Arc;

use crate::frozen::{ThinFactors, keep_blocks_of};
use crate::kernels::blocks::{ScaledBlock, shares};
use crate::kernels::{View, ViewMut};
use crate::ops::linear::add_frozen_row;
use crate::ops::updated_linear::BlockUpdate;
use crate::tape::{Backward, Flow, NodeId};
use crate::tuner::LowRankUpdate;
use crate::{Base, FrozenWeight, Matrix, Tape, Var};

impl Tape {
    /// `y[tokens, out] = x[tokens, in]·Wᵀ + b + s·(x·Aᵀ)·Bᵀ` with frozen `W` `[out, in]` and `b` `[1, out]`, and an
    /// `update` of `A` `[r, in]` and `B` `[out, r]`. It is what [`Tape::linear`], [`Tape::matmul_nt`] and
    /// [`Tape::add_product`] make one after the other, to the bit, with fewer ways through memory.
    ///
    /// Backward, with `t = x·Aᵀ` and `u = dy·B`: `dx = dy·W + s·u·A`, `dA = s·uᵀ·x`, `dB = s·dyᵀ·t`.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn linear_low_rank(&mut self, x: &Var, base: Base<'_>, update: &LowRankUpdate) -> Var {
        self.linear_block_update(x, base, &BlockUpdate { factors: update.clone(), blocks: Vec::new() })
    }

    /// The same with a `t` of which each row keeps the columns of its block, scaled, and nothing else: the factors of several
    /// updates side by side, each for rows of its own. Without blocks all of it is kept.
    pub(crate) fn linear_block_update(&mut self, x: &Var, base: Base<'_>, update: &BlockUpdate) -> Var {
        let BlockUpdate { factors: LowRankUpdate { a, b, scale }, blocks } = update;
        let weight = base.weight;
        assert_eq!(x.cols(), weight.cols(), "a linear's input is as wide as its weight");
        let shapes = (a.value().shape(), b.value().shape());
        assert_eq!(shapes, ((b.cols(), weight.cols()), (weight.rows(), a.rows())), "A is [r, in] and B is [out, r]");
        let mut y = Matrix::uninitialised(self.workspace(), x.rows(), weight.rows());
        let mut t = Matrix::uninitialised(self.workspace(), x.rows(), a.rows());
        let thin = ThinFactors {
            inner: View::of(a.value()).transposed(),
            outer: View::of(b.value()).transposed(),
            scale: *scale,
            blocks,
            middle: &mut t,
        };
        weight.forward_with(self.workspace(), ViewMut::of(&mut y), View::of(x.value()), thin);
        if let Some(bias) = base.bias {
            add_frozen_row(&mut y, bias);
        }
        self.output(y, &[x.node(), a.node(), b.node()], || LinearLowRank {
            weight: weight.clone(),
            x: x.shared(),
            a: a.shared(),
            b: b.shared(),
            t,
            scale: *scale,
            blocks: blocks.clone(),
            nodes: [x.node(), a.node(), b.node()],
        })
    }
}

struct LinearLowRank {
    weight: FrozenWeight,
    x: Arc<Matrix>,
    a: Arc<Matrix>,
    b: Arc<Matrix>,
    t: Matrix,
    scale: f32,
    blocks: Vec<ScaledBlock>,
    /// Of `x`, `A`, `B`.
    nodes: [Option<NodeId>; 3],
}

impl Backward for LinearLowRank {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let [x_node, a_node, b_node] = self.nodes;
        let dy = View::of(&gradient);
        let mut u = Matrix::uninitialised(flow.workspace(), gradient.rows(), self.a.rows());
        if x_node.is_some() {
            flow.accumulate(x_node, self.x.shape(), |workspace, dx, beta| {
                let thin = ThinFactors {
                    inner: View::of(&self.b),
                    outer: View::of(&self.a),
                    scale: self.scale,
                    blocks: &self.blocks,
                    middle: &mut u,
                };
                self.weight.input_gradient_with(workspace, ViewMut::of(dx), beta, dy, thin);
            });
        } else if a_node.is_some() {
            let workspace = flow.workspace();
            workspace.kernels().product(workspace, ViewMut::of(&mut u), 0.0, 1.0, dy, View::of(&self.b));
            keep_blocks_of(&mut u, &self.blocks);
        }
        flow.accumulate(a_node, self.a.shape(), |workspace, da, beta| {
            let cols = da.cols();
            for (rows, ranks) in shares(&self.blocks, 0, 0..self.x.rows(), self.a.rows()) {
                let (u, x) = (View::of(&u).rows(rows.clone()).columns(ranks.clone()), View::of(&self.x).rows(rows));
                let da = ViewMut::rows_of(&mut da.data_mut()[ranks.start * cols..], ranks.len(), cols, cols);
                workspace.kernels().product(workspace, da, beta, self.scale, u.transposed(), x);
            }
        });
        flow.accumulate(b_node, self.b.shape(), |workspace, db, beta| {
            for (rows, ranks) in shares(&self.blocks, 0, 0..gradient.rows(), self.a.rows()) {
                let (t, dy) = (View::of(&self.t).rows(rows.clone()).columns(ranks.clone()), dy.rows(rows));
                let mut db = ViewMut::of(db);
                workspace.kernels().product(workspace, db.columns(ranks), beta, self.scale, dy.transposed(), t);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, random};
    use crate::{Gradients, Kernels, Parameter, Workspace};

    #[test]
    fn gradients() {
        let (weight, bias) = (FrozenWeight::float32(random(5, 6, 0)), FrozenWeight::float32(random(1, 5, 1)));
        check(&[random(4, 6, 2), random(2, 6, 3), random(5, 2, 4)], |tape, inputs| {
            let update = LowRankUpdate { a: inputs[1].clone(), b: inputs[2].clone(), scale: 1.5 };
            tape.linear_low_rank(&inputs[0], Base { weight: &weight, bias: Some(&bias) }, &update)
        });
    }

    fn blocks(rows: usize) -> Vec<ScaledBlock> {
        vec![
            ScaledBlock { rows: 0..rows / 3, columns: 0..2, scale: 0.5 },
            ScaledBlock { rows: rows / 2..rows, columns: 2..8, scale: 2.0 },
        ]
    }

    #[test]
    fn gradients_with_blocks() {
        let weight = FrozenWeight::float32(random(5, 6, 0));
        check(&[random(6, 6, 2), random(8, 6, 3), random(5, 8, 4)], |tape, inputs| {
            let factors = LowRankUpdate { a: inputs[1].clone(), b: inputs[2].clone(), scale: 1.0 };
            let update = BlockUpdate { factors, blocks: blocks(6) };
            tape.linear_block_update(&inputs[0], Base { weight: &weight, bias: None }, &update)
        });
    }

    /// The output and all gradients are those of the updates one by one, in every storage and precision.
    #[test]
    fn blocks_are_updates_of_their_own_rows() {
        const ROWS: usize = 300;
        let values = random(40, 72, 0);
        let (exact, bf16) = (FrozenWeight::float32(values.clone()), FrozenWeight::bf16(&values));
        let units = [Kernels::amx(), Kernels::avx512_bf16(), Some(Kernels::bf16_in_float32())];
        let rounding = units.into_iter().flatten().map(|kernels| (kernels, &bf16, 1e-2));
        let float32 =
            [(Kernels::plain(), &exact, 1e-5), (Kernels::detect(), &exact, 1e-5), (Kernels::detect(), &bf16, 1e-5)];
        for (kernels, weight, tolerance) in float32.into_iter().chain(rounding) {
            let workspace = Workspace::with_kernels(kernels);
            let shapes = [(ROWS, 72), (8, 72), (40, 8)];
            let parameters: Vec<Parameter> =
                (1..).zip(shapes).map(|(index, (rows, cols))| Parameter::new("p", random(rows, cols, index))).collect();
            let pass = |together: bool| {
                let mut tape = Tape::differentiating(&workspace);
                let [x, a, b] = [0, 1, 2].map(|index| tape.parameter(&parameters[index]));
                let base = Base { weight, bias: None };
                let y = if together {
                    let factors = LowRankUpdate { a, b, scale: 1.0 };
                    tape.linear_block_update(&x, base, &BlockUpdate { factors, blocks: blocks(ROWS) })
                } else {
                    let mut y = tape.linear(&x, weight, None);
                    for ScaledBlock { rows, columns, scale } in blocks(ROWS) {
                        let x = tape.slice_rows(&x, rows.clone());
                        let a = tape.slice_rows(&a, columns.clone());
                        let b = tape.slice_columns(&b, columns);
                        let t = tape.matmul_nt(&x, &a);
                        y = tape.add_product(y, rows, &t, &b, scale);
                    }
                    y
                };
                let mut gradients = Gradients::new(&workspace);
                let mut found = vec![y.value().clone()];
                tape.backward(y, random(ROWS, 40, 9), &mut gradients);
                found.extend(parameters.iter().map(|parameter| gradients.get(parameter.id()).unwrap().clone()));
                found
            };
            for (place, (together, apart)) in pass(true).iter().zip(pass(false)).enumerate() {
                assert_close(together, &apart, tolerance, &format!("{kernels:?}, result {place}"));
            }
        }
    }

    /// The output, and the gradients of `x`, `A` and `B`.
    fn pass(kernels: Kernels, weight: &FrozenWeight, in_one: bool) -> Vec<Matrix> {
        const ROWS: usize = 300;
        let workspace = Workspace::with_kernels(kernels);
        let (out, input) = weight.shape();
        let shapes = [(ROWS, input), (8, input), (out, 8)];
        let parameters: Vec<Parameter> =
            (1..).zip(shapes).map(|(index, (rows, cols))| Parameter::new("p", random(rows, cols, index))).collect();
        let mut tape = Tape::differentiating(&workspace);
        let [x, a, b] = [0, 1, 2].map(|index| tape.parameter(&parameters[index]));
        let y = if in_one {
            let update = LowRankUpdate { a, b, scale: 0.3 };
            tape.linear_low_rank(&x, Base { weight, bias: None }, &update)
        } else {
            let t = tape.matmul_nt(&x, &a);
            let y = tape.linear(&x, weight, None);
            tape.add_product(y, 0..ROWS, &t, &b, 0.3)
        };
        let mut results = vec![y.value().clone()];
        let mut gradients = Gradients::new(&workspace);
        tape.backward(y, random(ROWS, out, 9), &mut gradients);
        results.extend(parameters.iter().map(|parameter| gradients.get(parameter.id()).unwrap().clone()));
        results
    }

    #[track_caller]
    fn assert_close(found: &Matrix, expected: &Matrix, tolerance: f32, what: &str) {
        let largest = expected.data().iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        for (found, expected) in found.data().iter().zip(expected.data()) {
            assert!((found - expected).abs() <= tolerance * largest, "{what}: {found}, expected {expected}");
        }
    }

    #[test]
    fn is_what_its_parts_make() {
        let bf16 = FrozenWeight::bf16(&random(70, 600, 0));
        let exact = pass(Kernels::detect(), &bf16, false);
        for (number, found) in pass(Kernels::detect(), &bf16, true).iter().enumerate() {
            assert_close(found, &exact[number], 1e-5, &format!("result {number} in float32"));
        }
        for kernels in [Kernels::amx(), Kernels::avx512_bf16(), Some(Kernels::bf16_in_float32())].into_iter().flatten()
        {
            let (in_one, parts) = (pass(kernels, &bf16, true), pass(kernels, &bf16, false));
            assert_eq!(in_one[0], parts[0], "{kernels:?}");
            for (number, found) in in_one.iter().enumerate() {
                // Two rounded factors a product, each off by up to 2⁻⁸ of its size, of which sums keep less.
                assert_close(found, &exact[number], 1.0 / 256.0, &format!("result {number}, {kernels:?}"));
            }
        }
    }
}
