//! What a method puts at a site: one trait a kind of site. Methods implement them; models never see which.

use std::sync::Arc;

use crate::{FrozenTuner, FrozenWeight, Matrix, Parameter, Tape, Var};

/// The frozen weight, and bias if any, of a weight site.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    /// `[out, in]`.
    pub weight: &'a FrozenWeight,
    /// `[1, out]`.
    pub bias: Option<&'a FrozenWeight>,
}

/// A weight and bias after tuning, differentiable.
#[derive(Clone, Debug)]
pub struct Tuned {
    /// `[out, in]`.
    pub weight: Var,
    /// `[1, out]`.
    pub bias: Option<Var>,
}

/// `scale · input · weightᵀ`, a term of an [`Affine`].
#[derive(Clone, Debug)]
pub struct Term {
    /// `[tokens, k]`.
    pub input: Var,
    /// `[out, k]`.
    pub weight: Var,
    /// A constant factor.
    pub scale: f32,
}

/// What a tuned linear computes: `y = (x·W₀ᵀ (if base) + Σ terms) ⊙ scale + plus + bias`.
#[derive(Clone, Debug)]
pub struct Affine {
    /// Whether the frozen product `x·W₀ᵀ` is part of the sum.
    pub base: bool,
    /// What goes into the frozen product `[tokens, in]`, where it is not `x` itself.
    pub input: Option<Var>,
    /// The other products.
    pub terms: Vec<Term>,
    /// A factor for each output feature `[1, out]`; `None` is one.
    pub scale: Option<Var>,
    /// Anything else that is added `[tokens, out]`.
    pub plus: Option<Var>,
    /// A bias `[1, out]` in place of the frozen one; `None` keeps the frozen one.
    pub bias: Option<Var>,
}

impl Affine {
    /// The frozen linear alone.
    pub fn frozen() -> Self {
        Self { base: true, input: None, terms: Vec::new(), scale: None, plus: None, bias: None }
    }

    /// The linear of a whole weight `[out, in]`, with the frozen bias where `bias` is none.
    pub fn of(x: &Var, tuned: Tuned) -> Self {
        let Tuned { weight, bias } = tuned;
        let terms = vec![Term { input: x.clone(), weight, scale: 1.0 }];
        Self { base: false, terms, bias, ..Self::frozen() }
    }
}

/// The update of a low-rank method: `scale·(x·aᵀ)·bᵀ`.
#[derive(Clone, Debug)]
pub struct LowRankUpdate {
    /// `[r, in]`.
    pub a: Var,
    /// `[out, r]`.
    pub b: Var,
    /// A constant factor.
    pub scale: f32,
}

/// What stands in for the frozen weight and bias of a linear.
#[derive(Clone, Debug)]
pub struct Replacement {
    /// `[out, in]`; `None` keeps the frozen one.
    pub weight: Option<Var>,
    /// `[1, out]`; `None` keeps the frozen one.
    pub bias: Option<Var>,
}

/// Holds trainable tensors.
pub trait Trainable: Send + Sync {
    /// The trainable tensors, in the order of the adapter file's keys for this site.
    fn parameters(&self) -> Vec<&Parameter>;
    /// The same tensors in the same order, for updating.
    fn parameters_mut(&mut self) -> Vec<&mut Parameter>;

    /// What an adapter file holds for this tuner: the trainable tensors, unless a method keeps less, more or other.
    fn stored(&self) -> Vec<Stored> {
        self.parameters().into_iter().map(Stored::from).collect()
    }
}

/// A tensor of an adapter file.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Its key.
    pub name: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    /// Its values, row by row.
    pub value: Arc<Matrix>,
}

impl From<&Parameter> for Stored {
    fn from(parameter: &Parameter) -> Self {
        Self { name: parameter.name().to_owned(), shape: parameter.shape(), value: parameter.value() }
    }
}

/// Tunes the weight and bias of one linear, embedding or norm.
///
/// [`tuned`](WeightTuner::tuned) is the meaning: merging, embeddings and norms use it. A method may override
/// [`affine`](WeightTuner::affine), what linears use, and [`embedding`](WeightTuner::embedding) with faster forms; outside
/// training (dropout) they agree.
pub trait WeightTuner: Trainable {
    /// The tuned weight and bias.
    fn tuned(&self, tape: &mut Tape, base: Base<'_>) -> Tuned;

    /// What the tuned linear computes for `x` `[tokens, in]`.
    fn affine(&self, tape: &mut Tape, base: Base<'_>, x: &Var) -> Affine {
        let tuned = self.tuned(tape, base);
        Affine::of(x, tuned)
    }

    /// Rows `ids` of the tuned table of an embedding, `[tokens, width]`.
    fn embedding(&self, tape: &mut Tape, base: Base<'_>, ids: &[u32]) -> Var {
        let table = self.tuned(tape, base).weight;
        tape.embedding_in(ids, &table)
    }

    /// The update, where the tuned linear is the frozen one and a low-rank update of the same input: what `affine` then
    /// means too, but computed in one operation. `None`, the default, uses `affine`.
    fn low_rank(&self, _tape: &mut Tape) -> Option<LowRankUpdate> {
        None
    }

    /// The weight and bias that stand in for the frozen ones, where that is all the tuner does to a linear: what `affine` then
    /// means too, but computed in one operation with what surrounds it. `None`, the default, uses `affine`.
    fn replacement(&self, _tape: &mut Tape, _base: Base<'_>) -> Option<Replacement> {
        None
    }

    /// Itself, where it is what [`Adapter::freeze`](crate::Adapter::freeze) made.
    fn frozen(&self) -> Option<&FrozenTuner> {
        None
    }
}

/// The norm after a sub-layer, of `[tokens, hidden]`.
pub type SubLayerNorm<'a> = &'a dyn Fn(&mut Tape, &Var) -> Var;

/// A sub-layer of a block (attention or feed-forward) as a hidden site sees it. Rows are those of one adapter.
pub struct SubLayer<'a> {
    /// The residual stream before the sub-layer, `[tokens, hidden]`.
    pub residual: Var,
    /// What the sub-layer computed, `[tokens, hidden]`, before it is added to the stream.
    pub output: Var,
    /// The norm that follows the addition in post-norm blocks; `None` in pre-norm blocks.
    pub norm: Option<SubLayerNorm<'a>>,
    /// Rows of virtual tokens, sequence by sequence.
    pub virtual_rows: &'a [usize],
}

impl SubLayer<'_> {
    /// The stream after the sub-layer as it is without a tuner: `residual + output`, normed in post-norm blocks.
    pub fn stream(self, tape: &mut Tape) -> Var {
        let sum = tape.add(&self.residual, self.output);
        match self.norm {
            None => sum,
            Some(norm) => norm(tape, &sum),
        }
    }
}

/// Tunes a block's hidden states.
pub trait HiddenTuner: Trainable {
    /// The residual stream after a sub-layer, `[tokens, hidden]`: what takes the place of [`SubLayer::stream`].
    fn forward(&self, tape: &mut Tape, sub_layer: SubLayer<'_>) -> Var;

    /// What it comes to once training has ended: the same result, sooner. `frozen` makes weights `[out, in]` what products
    /// take. `None`, the default, leaves the tuner as it is.
    fn freeze(&self, _frozen: &mut dyn FnMut(&Matrix) -> FrozenWeight) -> Option<Box<dyn HiddenTuner>> {
        None
    }

    /// Bytes of what it keeps beside parameters.
    fn frozen_bytes(&self) -> usize {
        0
    }
}

/// Gives attention more keys and values, visible to every query of a sequence.
pub trait AttentionTuner: Trainable {
    /// Number of rows.
    fn length(&self) -> usize;
    /// Keys and values, each `[length, kv_heads · head_dim]`.
    fn prefix(&self, tape: &mut Tape) -> (Var, Var);
}

/// Puts virtual tokens into the embedded sequence: before it, and perhaps after its prompt.
pub trait InputTuner: Trainable {
    /// Number of virtual tokens before the sequence.
    fn length(&self) -> usize;
    /// Number of virtual tokens after the prompt.
    fn infix_length(&self) -> usize {
        0
    }
    /// Their embeddings `[length + infix_length, hidden]`.
    fn embeddings(&self, tape: &mut Tape) -> Var;
}
