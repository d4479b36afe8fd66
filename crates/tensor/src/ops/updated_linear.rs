//! A frozen linear with a low-rank update as a part of a larger operation: `x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ`.

use std::sync::Arc;

use crate::kernels::View;
use crate::kernels::bf16::{LowRankFactors, Part, Sums};
use crate::kernels::blocks::ScaledBlock;
use crate::tape::{Flow, NodeId};
use crate::tuner::LowRankUpdate;
use crate::{Base, FrozenWeight, Matrix, Workspace};

/// A frozen linear with a low-rank update, if any.
pub(crate) struct UpdatedLinear<'a> {
    pub(crate) base: Base<'a>,
    pub(crate) update: Option<BlockUpdate>,
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
        let columns = self.base.weight.forward_columns().expect("the weight has products in bf16");
        Part { columns, bias: self.base.bias.map(|bias| bias.to_matrix().to_vec()), low_rank }
    }

    /// Of the update's factors.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = Option<NodeId>> + use<> {
        let nodes = self.update.as_ref().map(|update| [update.factors.a.node(), update.factors.b.node()]);
        nodes.into_iter().flatten()
    }
}

/// What the way back needs of a linear.
pub(crate) struct Linear {
    weight: FrozenWeight,
    update: Option<Update>,
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
        Self { weight: linear.base.weight.clone(), update }
    }

    /// The linear on the way back.
    pub(crate) fn part(&self, workspace: &Workspace) -> Part<'_> {
        let low_rank = self.update.as_ref().map(|Update { a, b, scale, blocks, .. }| {
            LowRankFactors::pack(workspace, View::of(b), View::of(a), *scale, blocks.clone())
        });
        let columns = self.weight.gradient_columns().expect("the weight has products in bf16");
        Part { columns, bias: None, low_rank }
    }

    /// Hands on the gradients of the update.
    pub(crate) fn add(&self, sums: Option<Sums>, flow: &mut Flow<'_>) {
        if let (Some(update), Some(sums)) = (&self.update, sums) {
            flow.accumulate(update.nodes[0], update.a.shape(), |_, da, beta| sums.add_a(da, beta));
            flow.accumulate(update.nodes[1], update.b.shape(), |_, db, beta| sums.add_b(db, beta));
        }
    }
}
