//! AdaLoRA's tuner of one linear layer: an update in the form of a singular value decomposition.
//!
//! ```text
//! y = W₀·x + b + s·B·diag(E)·A·dropout(x),   A [r, in], E [r, 1], B [out, r],   s = alpha/(init_r + 10⁻⁵)
//! ```

use tunesmith_tensor::{
    Affine, Base, FrozenWeight, Matrix, Parameter, Site, Stored, Tape, Term, Trainable, Tuned, Var, WeightTuner,
};

use crate::adalora_budget::{Masks, kept};
use crate::build::parameter_name;

/// Tunes one linear layer by a product of three.
#[derive(Debug)]
pub struct AdaLoraTuner {
    pub(crate) a: Parameter,
    pub(crate) e: Parameter,
    pub(crate) b: Parameter,
    scale: f32,
    dropout: f32,
    /// The layer's own bias, where it is trained too.
    bias: Option<Parameter>,
    /// Path of the module, under which its mask stands.
    path: String,
    /// Which ranks are kept at the end of the budget's schedule.
    masks: Masks,
}

impl AdaLoraTuner {
    /// A tuner from `a` `[r, in]`, `e` `[r, 1]` and `b` `[out, r]`.
    pub(crate) fn new(site: &Site, parts: [Matrix; 3], scale: f32, dropout: f32, masks: &Masks) -> Self {
        let [a, e, b] = parts;
        let parameter = |suffix: &str, value| Parameter::new(parameter_name(&site.path, suffix), value);
        Self {
            a: parameter("lora_A", a),
            e: parameter("lora_E", e),
            b: parameter("lora_B", b),
            scale,
            dropout,
            bias: None,
            path: site.path.clone(),
            masks: masks.clone(),
        }
    }

    pub(crate) fn with_bias(self, site: &Site, bias: &FrozenWeight) -> Self {
        let name = parameter_name(&site.path, "base_layer.bias");
        Self { bias: Some(Parameter::vector(name, bias.to_matrix())), ..self }
    }

    /// Whether every rank was pruned.
    fn is_empty(&self) -> bool {
        self.e.value().rows() == 0
    }
}

impl Trainable for AdaLoraTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        self.bias.iter().chain([&self.a, &self.e, &self.b]).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.bias.iter_mut().chain([&mut self.a, &mut self.e, &mut self.b]).collect()
    }

    /// Ranks that were pruned for good are left out, as PEFT leaves them out.
    fn stored(&self) -> Vec<Stored> {
        let mut stored: Vec<Stored> = self.parameters().into_iter().map(Stored::from).collect();
        let Some(mask) = kept(&self.masks, &self.path) else { return stored };
        let ranks: Vec<usize> = (0..mask.len()).filter(|rank| mask[*rank]).collect();
        for tensor in &mut stored {
            let value = if tensor.name == self.b.name() {
                let rows = (0..tensor.value.rows()).flat_map(|row| ranks.iter().map(move |rank| (row, *rank)));
                let values = rows.map(|(row, rank)| tensor.value.row(row)[rank]).collect();
                Matrix::from_vec(tensor.value.rows(), ranks.len(), values)
            } else if [self.a.name(), self.e.name()].contains(&tensor.name.as_str()) {
                let values = ranks.iter().flat_map(|rank| tensor.value.row(*rank).to_vec()).collect();
                Matrix::from_vec(ranks.len(), tensor.value.cols(), values)
            } else {
                continue;
            };
            tensor.shape = vec![value.rows(), value.cols()];
            tensor.value = value.into();
        }
        stored
    }
}

impl WeightTuner for AdaLoraTuner {
    fn tuned(&self, tape: &mut Tape, base: Base<'_>) -> Tuned {
        let frozen = tape.constant(base.weight.to_matrix());
        let weight = if self.is_empty() {
            frozen
        } else {
            let (a, e, b) = (tape.parameter(&self.a), tape.parameter(&self.e), tape.parameter(&self.b));
            let e = tape.transpose(&e);
            let scaled = tape.scale_rows(&a, &e);
            let scaled_transposed = tape.transpose(&scaled);
            tape.add_product(frozen, 0..b.rows(), &b, &scaled_transposed, self.scale)
        };
        let bias = match &self.bias {
            Some(bias) => Some(tape.parameter(bias)),
            None => base.bias.map(|bias| tape.constant(bias.to_matrix())),
        };
        Tuned { weight, bias }
    }

    fn affine(&self, tape: &mut Tape, _base: Base<'_>, x: &Var) -> Affine {
        let bias = self.bias.as_ref().map(|bias| tape.parameter(bias));
        if self.is_empty() {
            return Affine { bias, ..Affine::frozen() };
        }
        let x = tape.dropout(x, self.dropout);
        let (a, e, b) = (tape.parameter(&self.a), tape.parameter(&self.e), tape.parameter(&self.b));
        let low = tape.matmul_nt(&x, &a);
        let e = tape.transpose(&e);
        let input = tape.scale_columns(low, 0..x.rows(), &e);
        Affine { terms: vec![Term { input, weight: b, scale: self.scale }], bias, ..Affine::frozen() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::{Layer, check_linear};

    #[test]
    fn both_forms_agree_and_so_do_their_gradients() {
        let layer = Layer::new(5, 4, true);
        let parts = || [layer.random(3, 4, 4), layer.random(3, 1, 5), layer.random(5, 3, 6)];
        check_linear(&layer, || AdaLoraTuner::new(&layer.site, parts(), 1.5, 0.0, &Masks::default()));
    }
}
