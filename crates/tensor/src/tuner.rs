//! What a method puts at a site: one trait a kind of site. Methods implement them; models never see which.

use crate::{FrozenWeight, Parameter, Tape, Var};

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

/// What a tuned linear computes, as a sum: `y = x·W₀ᵀ (if base) + Σ terms + bias`.
#[derive(Clone, Debug)]
pub struct Affine {
    /// Whether the frozen product `x·W₀ᵀ` is part of the sum.
    pub base: bool,
    /// The other products.
    pub terms: Vec<Term>,
    /// A bias `[1, out]` in place of the frozen one; `None` keeps the frozen one.
    pub bias: Option<Var>,
}

/// Holds trainable tensors.
pub trait Trainable: Send + Sync {
    /// The trainable tensors, in the order of the adapter file's keys for this site.
    fn parameters(&self) -> Vec<&Parameter>;
    /// The same tensors in the same order, for updating.
    fn parameters_mut(&mut self) -> Vec<&mut Parameter>;
}

/// Tunes the weight and bias of one linear, embedding or norm.
///
/// [`tuned`](WeightTuner::tuned) is the meaning: merging, embeddings and norms use it. A method may override
/// [`affine`](WeightTuner::affine), what linears use, with a faster form; outside training (dropout) the two agree.
pub trait WeightTuner: Trainable {
    /// The tuned weight and bias.
    fn tuned(&self, tape: &mut Tape, base: Base<'_>) -> Tuned;

    /// What the tuned linear computes for `x` `[tokens, in]`.
    fn affine(&self, tape: &mut Tape, base: Base<'_>, x: &Var) -> Affine {
        let Tuned { weight, bias } = self.tuned(tape, base);
        Affine { base: false, terms: vec![Term { input: x.clone(), weight, scale: 1.0 }], bias }
    }
}

/// Tunes a block's hidden states.
pub trait HiddenTuner: Trainable {
    /// From the sub-layer's `input` and `output`, both `[tokens, hidden]`, the output to use instead.
    fn forward(&self, tape: &mut Tape, input: &Var, output: Var) -> Var;
}

/// Gives attention more keys and values, visible to every query of a sequence.
pub trait AttentionTuner: Trainable {
    /// Number of rows.
    fn length(&self) -> usize;
    /// Keys and values, each `[length, kv_heads · head_dim]`.
    fn prefix(&self, tape: &mut Tape) -> (Var, Var);
}

/// Puts virtual tokens before the embedded sequence.
pub trait InputTuner: Trainable {
    /// Number of virtual tokens.
    fn length(&self) -> usize;
    /// Their embeddings `[length, hidden]`.
    fn embeddings(&self, tape: &mut Tape) -> Var;
}
