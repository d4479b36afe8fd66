//! Tuners of linears for inference: what a trained adapter comes to at a linear once nothing of it changes any more, kept
//! small and computed row by row, so that a row's result never depends on what else is in the batch.

use crate::shelf::Shelf;
use crate::thin_update::ThinUpdate;
use crate::{
    Affine, Base, FrozenWeight, LowRankUpdate, Matrix, Parameter, Precision, Tape, Trainable, Tuned, Var, WeightTuner,
    Workspace,
};

/// `y = (x·Wᵀ + s·(x·Aᵀ)·Bᵀ) ⊙ scale + bias`, with the frozen `W` or one of its own.
pub struct FrozenTuner {
    /// In place of the frozen weight.
    pub(crate) whole: Option<FrozenWeight>,
    pub(crate) update: Option<ThinUpdate>,
    /// A factor for each output feature.
    pub(crate) scale: Option<Vec<f32>>,
    /// In place of the frozen bias.
    pub(crate) bias: Option<Vec<f32>>,
}

/// More values of `A` and `B` than this many times the trained ones are not worth keeping: they are made of tensors that
/// many sites or adapters share.
const MOST_VALUES: usize = 4;

impl FrozenTuner {
    /// What `tuner` does to the linear `base`, its factors on `shelf`; `None` where it is no such thing, or would take far
    /// more memory than the trained tensors.
    pub(crate) fn of(
        workspace: &Workspace,
        tuner: &dyn WeightTuner,
        base: Base<'_>,
        shelf: &mut Shelf,
    ) -> Option<Self> {
        let precision = workspace.kernels().precision();
        let mut tape = Tape::evaluating(workspace);
        if let Some(LowRankUpdate { a, b, scale }) = tuner.low_rank(&mut tape) {
            let update = ThinUpdate::new(&[(a.value(), b.value(), scale)], workspace.kernels(), shelf);
            return Some(Self { whole: None, update: Some(update), scale: None, bias: None });
        }
        let row = |value: &Var| value.value().to_vec();
        let (rows, cols) = base.weight.shape();
        let none = tape.constant(Matrix::zeros(0, cols));
        let affine = tuner.affine(&mut tape, base, &none);
        if !affine.base {
            let Tuned { weight, bias } = tuner.tuned(&mut tape, base);
            let whole = Some(FrozenWeight::on(shelf, weight.value(), precision));
            return Some(Self { whole, update: None, scale: None, bias: bias.as_ref().map(row) });
        }
        if affine.input.is_some() || affine.plus.is_some() {
            return None;
        }
        let rank: usize = affine.terms.iter().map(|term| term.weight.cols()).sum();
        let trained: usize = tuner.parameters().iter().map(|parameter| parameter.value().data().len()).sum();
        if rank * (rows + cols) > MOST_VALUES * trained {
            return None;
        }
        let update = (rank > 0).then(|| {
            // The inputs of the terms for the unit vectors are the columns of what they multiply by.
            let exact = workspace.clone().computing_with(workspace.kernels().with_precision(Precision::Float32));
            let mut tape = Tape::evaluating(&exact);
            let mut unit = Matrix::zeros(cols, cols);
            (0..cols).for_each(|place| unit.row_mut(place)[place] = 1.0);
            let unit = tape.constant(unit);
            let terms = tuner.affine(&mut tape, base, &unit).terms;
            let factors: Vec<(Matrix, Var, f32)> =
                terms.into_iter().map(|term| (term.input.value().transposed(), term.weight, term.scale)).collect();
            let factors: Vec<(&Matrix, &Matrix, f32)> =
                factors.iter().map(|(a, b, scale)| (a, b.value(), *scale)).collect();
            ThinUpdate::new(&factors, workspace.kernels(), shelf)
        });
        Some(Self { whole: None, update, scale: affine.scale.as_ref().map(row), bias: affine.bias.as_ref().map(row) })
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let update = self.update.as_ref().map_or(0, ThinUpdate::bytes);
        let vectors = [&self.scale, &self.bias].into_iter().flatten().map(|values| size_of_val(&values[..]));
        self.whole.as_ref().map_or(0, FrozenWeight::bytes) + update + vectors.sum::<usize>()
    }
}

impl Trainable for FrozenTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        Vec::new()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        Vec::new()
    }
}

impl WeightTuner for FrozenTuner {
    fn tuned(&self, tape: &mut Tape, base: Base<'_>) -> Tuned {
        let whole = self.whole.as_ref().unwrap_or(base.weight);
        let mut weight = tape.constant(whole.to_matrix());
        if let Some(update) = &self.update {
            let (a, b) = update.factors();
            let (a, b) = (tape.constant(a.transposed()), tape.constant(b));
            weight = tape.add_product(weight, 0..base.weight.rows(), &b, &a, 1.0);
        }
        let vector = |values: &Vec<f32>| Matrix::from_vec(1, values.len(), values.clone());
        if let Some(scale) = &self.scale {
            let scale = tape.constant(vector(scale));
            weight = tape.scale_rows(&weight, &scale);
        }
        let own = self.bias.as_ref().map(vector);
        Tuned { weight, bias: own.or_else(|| base.bias.map(FrozenWeight::to_matrix)).map(|bias| tape.constant(bias)) }
    }

    fn affine(&self, tape: &mut Tape, base: Base<'_>, x: &Var) -> Affine {
        let tuned = self.tuned(tape, base);
        Affine::of(x, tuned)
    }

    fn frozen(&self) -> Option<&FrozenTuner> {
        Some(self)
    }
}
