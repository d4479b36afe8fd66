//! LoRA's tuner of an embedding, as PEFT has it: `W = W₀ + s·(B·A)ᵀ` with `A` `[r, vocabulary]` and `B` `[width, r]`; with DoRA
//! each dimension of the embedding has a magnitude, `W = (W₀ + s·(B·A)ᵀ)·diag(m/‖v‖)` with `‖v‖` by columns.

use tunesmith_tensor::{
    Base, FrozenWeight, Matrix, Parameter, Site, Tape, Trainable, Tuned, Var, WeightTuner, Workspace,
};

use crate::build::parameter_name;
use crate::lora_tuner::{EMBEDDING_A, EMBEDDING_B, MAGNITUDE};

/// Tunes one embedding by a product of two thin matrices.
#[derive(Debug)]
pub struct LoraEmbeddingTuner {
    /// `[r, vocabulary]`.
    a: Parameter,
    /// `[width, r]`.
    b: Parameter,
    scale: f32,
    /// `m` `[1, width]`.
    magnitude: Option<Parameter>,
}

impl LoraEmbeddingTuner {
    /// A tuner for the embedding `site` from `a` `[r, vocabulary]` and `b` `[width, r]`.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn new(site: &Site, a: Matrix, b: Matrix, scale: f32) -> Self {
        let shapes = (a.shape(), b.shape());
        assert_eq!(shapes, ((b.cols(), site.rows), (site.cols, a.rows())), "A is [r, vocabulary], B is [width, r]");
        let parameter = |suffix, value| Parameter::new(parameter_name(&site.path, suffix), value);
        Self { a: parameter(EMBEDDING_A, a), b: parameter(EMBEDDING_B, b), scale, magnitude: None }
    }

    /// The same with DoRA's magnitudes, which are the lengths of the columns of the tuned table at first.
    pub fn with_magnitude(mut self, site: &Site, weight: &FrozenWeight) -> Self {
        let lengths = self.lengths(&Workspace::new(), weight);
        let value = Matrix::from_vec(1, lengths.len(), lengths);
        self.magnitude = Some(Parameter::vector(parameter_name(&site.path, MAGNITUDE), value));
        self
    }

    /// The lengths of the columns of the tuned table, without magnitudes, as constants.
    fn lengths(&self, workspace: &Workspace, weight: &FrozenWeight) -> Vec<f32> {
        let mut apart = Tape::evaluating(workspace);
        let table = self.directions(&mut apart, weight);
        let mut squares = vec![0.0f64; table.cols()];
        for row in 0..table.rows() {
            let values = table.value().row(row).iter();
            squares.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(*value).powi(2));
        }
        squares.into_iter().map(|sum| sum.sqrt() as f32).collect()
    }

    /// `W₀ + s·(B·A)ᵀ`.
    fn directions(&self, tape: &mut Tape, weight: &FrozenWeight) -> Var {
        let (a, b) = (tape.parameter(&self.a), tape.parameter(&self.b));
        let a_transposed = tape.transpose(&a);
        let frozen = tape.constant(weight.to_matrix());
        tape.add_product(frozen, 0..weight.rows(), &a_transposed, &b, self.scale)
    }

    /// `m/‖v‖`.
    fn factors(&self, tape: &mut Tape, weight: &FrozenWeight) -> Option<Var> {
        let magnitude = self.magnitude.as_ref()?;
        let lengths = self.lengths(tape.workspace(), weight);
        let inverse = lengths.into_iter().map(|length| 1.0 / length).collect();
        let inverse = tape.constant(Matrix::from_vec(1, weight.cols(), inverse));
        let magnitude = tape.parameter(magnitude);
        Some(tape.scale_columns(magnitude, 0..1, &inverse))
    }
}

impl Trainable for LoraEmbeddingTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        [&self.a, &self.b].into_iter().chain(&self.magnitude).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        [&mut self.a, &mut self.b].into_iter().chain(&mut self.magnitude).collect()
    }
}

impl WeightTuner for LoraEmbeddingTuner {
    fn tuned(&self, tape: &mut Tape, base: Base<'_>) -> Tuned {
        let mut weight = self.directions(tape, base.weight);
        if let Some(factors) = self.factors(tape, base.weight) {
            let rows = weight.rows();
            weight = tape.scale_columns(weight, 0..rows, &factors);
        }
        Tuned { weight, bias: None }
    }

    fn embedding(&self, tape: &mut Tape, base: Base<'_>, ids: &[u32]) -> Var {
        let (a, b) = (tape.parameter(&self.a), tape.parameter(&self.b));
        let rows = tape.embedding(ids, base.weight);
        let a_transposed = tape.transpose(&a);
        let low = tape.embedding_in(ids, &a_transposed);
        let mut y = tape.add_product(rows, 0..ids.len(), &low, &b, self.scale);
        if let Some(factors) = self.factors(tape, base.weight) {
            y = tape.scale_columns(y, 0..ids.len(), &factors);
        }
        y
    }
}

#[cfg(test)]
mod tests {
    use tunesmith_tensor::{Gradients, SiteKind};

    use super::*;
    use crate::checks::{Layer, close};

    #[test]
    fn looked_up_rows_are_those_of_the_tuned_table_with_the_same_gradients() {
        let mut layer = Layer::new(6, 3, false);
        layer.site.kind = SiteKind::Embedding;
        for dora in [false, true] {
            let run = |fast: bool| {
                let (a, b) = (layer.random(2, 6, 4), layer.random(3, 2, 5));
                let mut tuner = LoraEmbeddingTuner::new(&layer.site, a, b, 1.5);
                if dora {
                    tuner = tuner.with_magnitude(&layer.site, &layer.weight);
                    tuner.a.value_mut().data_mut()[2] += 1.0;
                }
                let workspace = Workspace::new();
                let mut tape = Tape::differentiating(&workspace);
                let y = if fast {
                    tuner.embedding(&mut tape, layer.base(), &[4, 0, 4])
                } else {
                    let table = tuner.tuned(&mut tape, layer.base()).weight;
                    tape.embedding_in(&[4, 0, 4], &table)
                };
                let values = y.value().to_vec();
                let mut gradients = Gradients::new(&workspace);
                tape.backward(y, layer.random(3, 3, 6), &mut gradients);
                let gradient = |parameter: &&Parameter| gradients.get(parameter.id()).unwrap().to_vec();
                (values, tuner.parameters().iter().flat_map(gradient).collect::<Vec<f32>>())
            };
            let (fast, slow) = (run(true), run(false));
            close(&fast.0, &slow.0, 1e-5);
            close(&fast.1, &slow.1, 1e-4);
        }
    }
}
