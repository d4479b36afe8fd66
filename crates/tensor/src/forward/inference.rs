//! Linear sites outside of training. Each row goes through the same sums in the same order whatever the other rows and
//! their adapters are: the frozen product, then the adapter's terms, its scale, what it adds, and last the bias.

use std::ops::Range;

use super::{Forward, Tuners};
use crate::frozen_tuner::FrozenTuner;
use crate::kernels::{View, ViewMut};
use crate::ops::for_each_row_block;
use crate::thin_update::{Updates, add_updates};
use crate::tuner::{Affine, Base};
use crate::{FrozenWeight, Matrix, Segments, SiteId, Var, Workspace};

/// What the adapter of some rows does at a linear site.
enum Plan<'a> {
    Nothing,
    Frozen(&'a FrozenTuner),
    Affine(Affine),
}

/// What happens to rows that follow one another.
type Plans<'a> = Vec<(Range<usize>, Plan<'a>)>;

/// A linear site, and its result.
struct Linear<'a, 'b> {
    base: Base<'a>,
    plans: Plans<'b>,
    y: Matrix,
}

impl Plan<'_> {
    /// Whether the frozen product is part of it.
    fn is_on_base(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Frozen(tuner) => tuner.whole.is_none(),
            Self::Affine(affine) => affine.base,
        }
    }

    /// What goes into the frozen product, where it is not `x`.
    fn input(&self) -> Option<&Matrix> {
        match self {
            Self::Affine(Affine { input: Some(input), .. }) => Some(input.value()),
            _ => None,
        }
    }
}

impl<'a> Forward<'a> {
    /// Linear sites of one input for a choice of rows, as in [`Forward::linear_rows`].
    pub(super) fn infer_rows<const SITES: usize>(
        &mut self,
        sites: [(SiteId, Base<'_>); SITES],
        x: &Var,
        segments: &Segments,
    ) -> [Var; SITES] {
        let linears = sites.map(|(site, base)| (base, self.weight_tuners(site, segments)));
        let is_trainable =
            |(_, tuners): &(Base<'_>, Tuners<'_>)| matches!(tuners[..], [(_, Some(tuner))] if tuner.frozen().is_none());
        if !linears.iter().any(is_trainable) {
            return self.infer_together(linears, x);
        }
        // What a single update that is still trained adds is part of the frozen product.
        linears.map(|(base, tuners)| {
            if let [(_, Some(tuner))] = tuners[..]
                && let Some(update) = tuner.low_rank(self.tape)
            {
                return self.tape.linear_low_rank(x, base, &update);
            }
            let [y] = self.infer_together([(base, tuners)], x);
            y
        })
    }

    /// The same where the frozen products of all sites are shared out together, and so are their adapters' updates.
    fn infer_together<const SITES: usize>(
        &mut self,
        linears: [(Base<'_>, Tuners<'a>); SITES],
        x: &Var,
    ) -> [Var; SITES] {
        let workspace = self.tape.workspace().clone();
        let mut linears = linears.map(|(base, tuners)| {
            let plans = self.plans(base, x, tuners);
            let y = Matrix::uninitialised(&workspace, x.rows(), base.weight.rows());
            Linear { base, plans, y }
        });
        let rows = x.value();
        let mut together = Vec::new();
        for Linear { base, plans, y } in &mut linears {
            if plans.iter().all(|(_, plan)| plan.is_on_base() && plan.input().is_none()) {
                together.push((base.weight, y));
            } else {
                products(&workspace, base.weight, y, rows, plans);
            }
        }
        FrozenWeight::forward_each(&workspace, together, View::of(rows));
        let updates = linears.iter_mut().map(|Linear { plans, y, .. }| {
            let updates = plans.iter().filter_map(|(rows, plan)| match plan {
                Plan::Frozen(FrozenTuner { update: Some(update), .. }) => Some((rows.clone(), update)),
                _ => None,
            });
            Updates { y, updates: updates.collect() }
        });
        add_updates(updates.collect(), rows);
        linears.map(|Linear { base, plans, mut y }| {
            let bias = base.bias.map(FrozenWeight::to_matrix);
            for (rows, plan) in &plans {
                finish(&workspace, &mut y, rows, plan, bias.as_ref());
            }
            self.tape.constant(y)
        })
    }

    /// What the tuner of each run of rows does at a linear.
    fn plans(&mut self, base: Base<'_>, x: &Var, tuners: Tuners<'a>) -> Plans<'a> {
        let mut plans = Vec::new();
        for (rows, tuner) in tuners {
            let plan = match tuner {
                None => Plan::Nothing,
                Some(tuner) => match tuner.frozen() {
                    Some(frozen) => Plan::Frozen(frozen),
                    None => {
                        let x = self.tape.slice_rows(x, rows.clone());
                        Plan::Affine(tuner.affine(self.tape, base, &x))
                    }
                },
            };
            plans.push((rows, plan));
        }
        plans
    }
}

/// The frozen products, one for each run of rows that have the same weight.
fn products(
    workspace: &Workspace,
    weight: &FrozenWeight,
    y: &mut Matrix,
    x: &Matrix,
    plans: &[(Range<usize>, Plan<'_>)],
) {
    let mut next = 0;
    while let Some((rows, plan)) = plans.get(next) {
        let run = plans[next..].iter().take_while(|(_, other)| plan.is_on_base() && other.is_on_base()).count().max(1);
        let those = &plans[next..next + run];
        let rows = rows.start..those[run - 1].0.end;
        next += run;
        let product = |y: &mut Matrix, weight: &FrozenWeight, x: View<'_>| {
            weight.forward(workspace, view(y, &rows), 0.0, 1.0, x);
        };
        match plan {
            Plan::Frozen(FrozenTuner { whole: Some(whole), .. }) => product(y, whole, View::of(x).rows(rows.clone())),
            Plan::Affine(affine) if !affine.base => rows_mut(y, &rows).fill(0.0),
            _ if those.iter().all(|(_, plan)| plan.input().is_none()) => {
                product(y, weight, View::of(x).rows(rows.clone()));
            }
            _ => {
                let mut inputs = Matrix::uninitialised(workspace, rows.len(), x.cols());
                let (cols, first) = (x.cols(), rows.start);
                for (rows, plan) in those {
                    let own = plan.input().map_or(&x.data()[rows.start * cols..rows.end * cols], Matrix::data);
                    inputs.data_mut()[(rows.start - first) * cols..][..own.len()].copy_from_slice(own);
                }
                product(y, weight, View::of(&inputs));
            }
        }
    }
}

/// What follows the frozen product and thin updates: other terms, the scale, what is added, the bias.
fn finish(workspace: &Workspace, y: &mut Matrix, rows: &Range<usize>, plan: &Plan<'_>, frozen_bias: Option<&Matrix>) {
    let frozen_bias = frozen_bias.map(Matrix::data);
    let (scale, plus, bias) = match plan {
        Plan::Nothing => (None, None, None),
        Plan::Frozen(tuner) => (tuner.scale.as_deref(), None, tuner.bias.as_deref()),
        Plan::Affine(affine) => {
            for term in &affine.terms {
                let (input, weight) = (View::of(term.input.value()), View::of(term.weight.value()).transposed());
                workspace.kernels().product(workspace, view(y, rows), 1.0, term.scale, input, weight);
            }
            let data = |value: &'_ Option<Var>| value.as_ref().map(|value| value.shared());
            let (scale, plus, bias) = (data(&affine.scale), data(&affine.plus), data(&affine.bias));
            let values = [&scale, &plus, &bias].map(|value| value.as_deref().map(Matrix::data));
            add(y, rows, values[0], values[1], values[2].or(frozen_bias));
            return;
        }
    };
    add(y, rows, scale, plus, bias.or(frozen_bias));
}

/// Rows `rows` of `y`: `y ⊙ scale + plus + bias`.
fn add(y: &mut Matrix, rows: &Range<usize>, scale: Option<&[f32]>, plus: Option<&[f32]>, bias: Option<&[f32]>) {
    if scale.is_none() && plus.is_none() && bias.is_none() {
        return;
    }
    let cols = y.cols();
    for_each_row_block(
        rows_mut(y, rows),
        cols,
        #[inline(always)]
        |first, block| {
            for (row, values) in block.chunks_exact_mut(cols).enumerate() {
                if let Some(scale) = scale {
                    values.iter_mut().zip(scale).for_each(|(value, factor)| *value *= factor);
                }
                if let Some(plus) = plus {
                    let plus = &plus[(first + row) * cols..][..cols];
                    values.iter_mut().zip(plus).for_each(|(value, plus)| *value += plus);
                }
                if let Some(bias) = bias {
                    values.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
                }
            }
        },
    );
}

fn rows_mut<'a>(y: &'a mut Matrix, rows: &Range<usize>) -> &'a mut [f32] {
    let cols = y.cols();
    &mut y.data_mut()[rows.start * cols..rows.end * cols]
}

fn view<'a>(y: &'a mut Matrix, rows: &Range<usize>) -> ViewMut<'a> {
    let cols = y.cols();
    ViewMut::rows_of(rows_mut(y, rows), rows.len(), cols, cols)
}
