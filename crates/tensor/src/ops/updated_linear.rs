//! A linear as a part of a larger operation: `x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ`, frozen with a low-rank update, or with a weight or
//! bias that is trained itself.

use std::sync::Arc;

use crate::kernels::bf16::{Columns, LowRankFactors, PackedColumns, Part, Sums, Tokens, weight_gradient};
use crate::kernels::blocks::ScaledBlock;
use crate::kernels::{View, ViewMut};
use crate::tape::{Flow, NodeId};
use crate::tuner::{LowRankUpdate, Replacement};
use crate::{Base, FrozenWeight, Matrix, Var, Workspace};

/// A frozen linear with a low-rank update, if any, and what stands in for its weight or bias.
pub(crate) struct UpdatedLinear<'a> {
    pub(crate) base: Base<'a>,
    pub(crate) update: Option<BlockUpdate>,
    pub(crate) replacement: Option<Replacement>,
}

/// Low-rank updates side by side, each of rows of its own.
#[derive(Clone, Debug)]
pub(crate) struct BlockUpdate {
    /// All of them.
    pub(crate) factors: LowRankUpdate,
    /// Which rows keep which columns of the middle; empty for one update of all rows.
    pub(crate) blocks: Vec<ScaledBlock>,
}

impl<'a> UpdatedLinear<'a> {
    /// The linear on the way forward.
    pub(crate) fn part(&self, workspace: &Workspace) -> Part<'a> {
        let low_rank = self.update.as_ref().map(|BlockUpdate { factors: LowRankUpdate { a, b, scale }, blocks }| {
            let (inner, outer) = (View::of(a.value()).transposed(), View::of(b.value()).transposed());
            LowRankFactors::pack(workspace, inner, outer, *scale, blocks.clone())
        });
        let own = self.replacement.as_ref();
        let columns: Box<dyn Columns> = match own.and_then(|own| own.weight.as_ref()) {
            Some(weight) => Box::new(PackedColumns::pack(workspace, View::of(weight.value()).transposed())),
            None => self.base.weight.forward_columns().expect(IN_BF16),
        };
        let bias = match own.and_then(|own| own.bias.as_ref()) {
            Some(bias) => Some(bias.value().to_vec()),
            None => self.base.bias.map(|bias| bias.to_matrix().to_vec()),
        };
        Part { columns, bias, low_rank }
    }

    /// Of what is trained.
    pub(crate) fn nodes(&self) -> Vec<Option<NodeId>> {
        let factors = self.update.iter().flat_map(|BlockUpdate { factors, .. }| [&factors.a, &factors.b]);
        let own = self.replacement.iter().flat_map(|own| own.weight.iter().chain(&own.bias));
        factors.chain(own).map(Var::node).collect()
    }
}

const IN_BF16: &str = "the weight has products in bf16";

/// What the way back needs of a linear.
pub(crate) struct Linear {
    weight: FrozenWeight,
    update: Option<Update>,
    own_weight: Option<(Arc<Matrix>, Option<NodeId>)>,
    own_bias: Option<NodeId>,
}

struct Update {
    a: Arc<Matrix>,
    b: Arc<Matrix>,
    scale: f32,
    blocks: Vec<ScaledBlock>,
    nodes: [Option<NodeId>; 2],
}

impl Linear {
    pub(crate) fn of(linear: UpdatedLinear<'_>) -> Self {
        let update = linear.update.map(|BlockUpdate { factors: LowRankUpdate { a, b, scale }, blocks }| Update {
            a: a.shared(),
            b: b.shared(),
            scale,
            blocks,
            nodes: [a.node(), b.node()],
        });
        let (own_weight, own_bias) = linear.replacement.map(|own| (own.weight, own.bias)).unwrap_or_default();
        Self {
            weight: linear.base.weight.clone(),
            update,
            own_weight: own_weight.map(|weight| (weight.shared(), weight.node())),
            own_bias: own_bias.and_then(|bias| bias.node()),
        }
    }

    /// The linear on the way back.
    pub(crate) fn part(&self, workspace: &Workspace) -> Part<'_> {
        let low_rank = self.update.as_ref().map(|Update { a, b, scale, blocks, .. }| {
            LowRankFactors::pack(workspace, View::of(b), View::of(a), *scale, blocks.clone())
        });
        let columns: Box<dyn Columns> = match &self.own_weight {
            Some((weight, _)) => Box::new(PackedColumns::pack(workspace, View::of(weight))),
            None => self.weight.gradient_columns().expect(IN_BF16),
        };
        Part { columns, bias: None, low_rank }
    }

    /// Whether its own weight is trained.
    pub(crate) fn trains_weight(&self) -> bool {
        self.own_weight.as_ref().is_some_and(|(_, node)| node.is_some())
    }

    /// Whether its own weight or bias is trained.
    pub(crate) fn trains_own(&self) -> bool {
        self.trains_weight() || self.own_bias.is_some()
    }

    /// Hands on the gradients of its own weight and bias, given that of its output; `x` is its input, asked for where the
    /// weight is trained.
    pub(crate) fn add_own<'x>(&self, dy: Tokens<'_>, x: impl Fn() -> &'x PackedColumns, flow: &mut Flow<'_>) {
        if let Some((weight, node)) = self.own_weight.as_ref().filter(|_| self.trains_weight()) {
            let x = x();
            flow.accumulate(*node, weight.shape(), |workspace, dw, beta| {
                weight_gradient(workspace.kernels().unit(), ViewMut::of(dw), beta, 1.0, dy, x);
            });
        }
        flow.accumulate(self.own_bias, (1, dy.features()), |_, sums, beta| {
            if beta == 0.0 {
                sums.data_mut().fill(0.0);
            }
            dy.add_sums(sums.data_mut());
        });
    }

    /// Hands on the gradients of the update.
    pub(crate) fn add(&self, sums: Option<Sums>, flow: &mut Flow<'_>) {
        if let (Some(update), Some(sums)) = (&self.update, sums) {
            flow.accumulate(update.nodes[0], update.a.shape(), |_, da, beta| sums.add_a(da, beta));
            flow.accumulate(update.nodes[1], update.b.shape(), |_, db, beta| sums.add_b(db, beta));
        }
    }
}
