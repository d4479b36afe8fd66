//! LoRA's tuner of one linear layer, with what belongs to the family: rsLoRA's scale, DoRA's magnitudes, a bias of `B`, and
//! starts that are taken out of the base weight.
//!
//! ```text
//! v = W₀ − s·B₀·A₀ + s·B·A                        (B₀·A₀ with PiSSA and OLoRA only)
//! y = (m/‖v‖)·v·x + b + s·b_B                      (m/‖v‖ with DoRA only, ‖v‖ by rows; b_B with lora_bias only)
//! ```
//!
//! DoRA (Liu et al. 2024, <https://arxiv.org/abs/2402.09353>, equation 5) takes `‖v‖` as a constant on the way back
//! (its section 4.3), as PEFT does. It is computed without the tuned weight:
//! `‖w + s·b·A‖² = ‖w‖² + 2s·(w·Aᵀ)·b + s²·b·(A·Aᵀ)·b` for a row `w` of `W₀` and `b` of `B`.

use tunesmith_tensor::{
    Affine, Base, FrozenWeight, LowRankUpdate, Matrix, Parameter, Site, Stored, Tape, Term, Trainable, Tuned, Var,
    WeightTuner,
};

use crate::build::parameter_name;

pub(crate) const A: &str = "lora_A.weight";
pub(crate) const B: &str = "lora_B.weight";
pub(crate) const EMBEDDING_A: &str = "lora_embedding_A";
pub(crate) const EMBEDDING_B: &str = "lora_embedding_B";
pub(crate) const MAGNITUDE: &str = "lora_magnitude_vector";

/// Tunes one linear layer by a product of two thin matrices.
#[derive(Debug)]
pub struct LoraTuner {
    /// `A` `[r, in]`.
    a: Parameter,
    /// `B` `[out, r]`.
    b: Parameter,
    /// `s`.
    scale: f32,
    dropout: f32,
    /// The layer's own bias `[1, out]`, where it is trained too.
    bias: Option<Parameter>,
    /// A bias of `B` `[1, out]`.
    bias_of_b: Option<Parameter>,
    magnitude: Option<Magnitude>,
    /// `A₀` and `B₀`.
    taken_out: Option<(Matrix, Matrix)>,
}

/// DoRA's magnitudes.
#[derive(Debug)]
struct Magnitude {
    /// `m` `[1, out]`.
    m: Parameter,
    /// `‖w‖²` of the rows of `W₀`.
    squares: Vec<f64>,
}

impl LoraTuner {
    /// A tuner for the linear layer `site` from `a` `[r, in]` and `b` `[out, r]`.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn new(site: &Site, a: Matrix, b: Matrix, scale: f32, dropout: f32) -> Self {
        let shapes = (a.shape(), b.shape());
        assert_eq!(shapes, ((b.cols(), site.cols), (site.rows, a.rows())), "A is [r, in] and B is [out, r]");
        let parameter = |suffix, value| Parameter::new(parameter_name(&site.path, suffix), value);
        let (a, b) = (parameter(A, a), parameter(B, b));
        Self { a, b, scale, dropout, bias: None, bias_of_b: None, magnitude: None, taken_out: None }
    }

    /// The same with the layer's bias `[1, out]` trained from `bias` on.
    pub fn with_bias(self, site: &Site, bias: &FrozenWeight) -> Self {
        let name = parameter_name(&site.path, "base_layer.bias");
        Self { bias: Some(Parameter::vector(name, bias.to_matrix())), ..self }
    }

    /// The same with a bias of `B`, which is zero at first.
    pub fn with_bias_of_b(self, site: &Site) -> Self {
        let name = parameter_name(&site.path, "lora_B.bias");
        Self { bias_of_b: Some(Parameter::vector(name, Matrix::zeros(1, site.rows))), ..self }
    }

    /// The same with DoRA's magnitudes, which are the lengths of the rows of the tuned weight at first.
    pub fn with_magnitude(mut self, site: &Site, weight: &FrozenWeight) -> Self {
        let mut row = vec![0.0; weight.cols()];
        let square = |place: usize| {
            weight.read_row(place, &mut row);
            row.iter().map(|value| f64::from(*value).powi(2)).sum()
        };
        let squares: Vec<f64> = (0..weight.rows()).map(square).collect();
        let m = Parameter::vector(parameter_name(&site.path, MAGNITUDE), Matrix::zeros(1, site.rows));
        self.magnitude = Some(Magnitude { m, squares });
        let lengths = self.lengths(&Tape::evaluating(&tunesmith_tensor::Workspace::new()), weight);
        if let Some(magnitude) = &mut self.magnitude {
            magnitude.m.value_mut().data_mut().copy_from_slice(&lengths);
        }
        self
    }

    /// The same with the product that it begins with taken out of the base weight.
    pub fn taking_out_its_start(self) -> Self {
        let start = (Matrix::clone(&self.a.value()), Matrix::clone(&self.b.value()));
        Self { taken_out: Some(start), ..self }
    }

    /// `‖v‖` of each row, as a constant.
    fn lengths(&self, tape: &Tape, weight: &FrozenWeight) -> Vec<f32> {
        let Some(Magnitude { squares, .. }) = &self.magnitude else { return Vec::new() };
        let mut apart = Tape::evaluating(tape.workspace());
        let (a, b) = (apart.parameter(&self.a), apart.parameter(&self.b));
        // [r, out] and [r, r].
        let across = apart.linear(&a, weight, None);
        let within = apart.matmul_nt(&a, &a);
        let r = b.cols();
        let s = f64::from(self.scale);
        let length = |(out, square): (usize, &f64)| {
            let b = b.value().row(out);
            let linear: f64 = (0..r).map(|k| f64::from(across.value().row(k)[out]) * f64::from(b[k])).sum();
            let quadratic: f64 = (0..r)
                .map(|k| {
                    let row = within.value().row(k);
                    let product: f64 = (0..r).map(|l| f64::from(row[l]) * f64::from(b[l])).sum();
                    f64::from(b[k]) * product
                })
                .sum();
            (square + 2.0 * s * linear + s * s * quadratic).max(0.0).sqrt() as f32
        };
        squares.iter().enumerate().map(length).collect()
    }

    /// `m/‖v‖` `[1, out]`.
    fn factors(&self, tape: &mut Tape, weight: &FrozenWeight) -> Option<Var> {
        let magnitude = self.magnitude.as_ref()?;
        let inverse: Vec<f32> = self.lengths(tape, weight).into_iter().map(|length| 1.0 / length).collect();
        let inverse = tape.constant(Matrix::from_vec(1, inverse.len(), inverse));
        let m = tape.parameter(&magnitude.m);
        Some(tape.scale_columns(m, 0..1, &inverse))
    }

    /// The bias, where it is not the frozen one.
    fn bias(&self, tape: &mut Tape, base: Base<'_>) -> Option<Var> {
        let own = self.bias.as_ref().map(|bias| tape.parameter(bias));
        let Some(bias_of_b) = &self.bias_of_b else { return own };
        let bias_of_b = tape.parameter(bias_of_b);
        let scale = tape.constant(Matrix::from_vec(1, bias_of_b.cols(), vec![self.scale; bias_of_b.cols()]));
        let added = tape.scale_columns(bias_of_b, 0..1, &scale);
        let own = own.or_else(|| base.bias.map(|bias| tape.constant(bias.to_matrix())));
        Some(match own {
            Some(own) => tape.add(&own, added),
            None => added,
        })
    }

    /// The products with `x` that are added to the frozen one.
    fn terms(&self, tape: &mut Tape, x: &Var) -> Vec<Term> {
        let (a, b) = (tape.parameter(&self.a), tape.parameter(&self.b));
        let input = tape.matmul_nt(x, &a);
        let mut terms = vec![Term { input, weight: b, scale: self.scale }];
        if let Some((a, b)) = &self.taken_out {
            let (a, b) = (tape.constant(a.clone()), tape.constant(b.clone()));
            terms.push(Term { input: tape.matmul_nt(x, &a), weight: b, scale: -self.scale });
        }
        terms
    }
}

impl Trainable for LoraTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        let beside = self.bias_of_b.iter().chain(self.magnitude.iter().map(|magnitude| &magnitude.m));
        self.bias.iter().chain([&self.a, &self.b]).chain(beside).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let beside = self.bias_of_b.iter_mut().chain(self.magnitude.iter_mut().map(|magnitude| &mut magnitude.m));
        self.bias.iter_mut().chain([&mut self.a, &mut self.b]).chain(beside).collect()
    }

    /// With `B₀·A₀` taken out, files hold a plain LoRA of twice the rank, as PEFT converts it:
    /// `A' = [A; A₀]`, `B' = [B, −B₀]`.
    fn stored(&self) -> Vec<Stored> {
        let mut stored: Vec<Stored> = self.parameters().into_iter().map(Stored::from).collect();
        let Some((a0, b0)) = &self.taken_out else { return stored };
        let (a, b) = (self.a.value(), self.b.value());
        let joined_a = [a.data(), a0.data()].concat();
        let joined_b: Vec<f32> = (0..b.rows())
            .flat_map(|row| b.row(row).iter().copied().chain(b0.row(row).iter().map(|value| -value)))
            .collect();
        for (name, (rows, cols), values) in
            [(self.a.name(), (2 * a.rows(), a.cols()), joined_a), (self.b.name(), (b.rows(), 2 * b.cols()), joined_b)]
        {
            let Some(tensor) = stored.iter_mut().find(|tensor| tensor.name == name) else { continue };
            tensor.shape = vec![rows, cols];
            tensor.value = Matrix::from_vec(rows, cols, values).into();
        }
        stored
    }
}

impl WeightTuner for LoraTuner {
    fn tuned(&self, tape: &mut Tape, base: Base<'_>) -> Tuned {
        let mut weight = tape.constant(base.weight.to_matrix());
        let mut add = |tape: &mut Tape, a: &Var, b: &Var, scale: f32| {
            let a_transposed = tape.transpose(a);
            weight = tape.add_product(weight.clone(), 0..b.rows(), b, &a_transposed, scale);
        };
        let (a, b) = (tape.parameter(&self.a), tape.parameter(&self.b));
        add(tape, &a, &b, self.scale);
        if let Some((a, b)) = &self.taken_out {
            let (a, b) = (tape.constant(a.clone()), tape.constant(b.clone()));
            add(tape, &a, &b, -self.scale);
        }
        if let Some(factors) = self.factors(tape, base.weight) {
            weight = tape.scale_rows(&weight, &factors);
        }
        let frozen = base.bias.map(|bias| tape.constant(bias.to_matrix()));
        Tuned { weight, bias: self.bias(tape, base).or(frozen) }
    }

    fn affine(&self, tape: &mut Tape, base: Base<'_>, x: &Var) -> Affine {
        let bias = self.bias(tape, base);
        let dropped = tape.dropout(x, self.dropout);
        let terms = self.terms(tape, &dropped);
        let factors = self.factors(tape, base.weight);
        let drops = tape.is_training() && self.dropout > 0.0;
        let Some(factors) = factors.clone().filter(|_| drops) else {
            return Affine { terms, scale: factors, bias, ..Affine::frozen() };
        };
        // With dropout, DoRA's scale acts on the dropped input only:
        // y = W₀·x + (m/‖v‖ − 1)·W₀·x' + (m/‖v‖)·s·B·A·x' + b.
        let mut plus = tape.linear(&dropped, base.weight, None);
        let minus_one = tape.constant(Matrix::from_vec(1, plus.cols(), vec![-1.0; plus.cols()]));
        let factors_minus_one = tape.add(&factors, minus_one);
        plus = tape.scale_columns(plus, 0..x.rows(), &factors_minus_one);
        let mut update = tape.constant(Matrix::zeros(plus.rows(), plus.cols()));
        for Term { input, weight, scale } in terms {
            update = tape.add_product(update, 0..x.rows(), &input, &weight, scale);
        }
        let update = tape.scale_columns(update, 0..x.rows(), &factors);
        Affine { plus: Some(tape.add(&plus, update)), bias, ..Affine::frozen() }
    }

    fn low_rank(&self, tape: &mut Tape) -> Option<LowRankUpdate> {
        let drops = self.dropout > 0.0 && tape.is_training();
        let is_plain = self.bias.is_none() && self.bias_of_b.is_none() && self.magnitude.is_none();
        let is_plain = is_plain && self.taken_out.is_none() && !drops;
        is_plain.then(|| LowRankUpdate { a: tape.parameter(&self.a), b: tape.parameter(&self.b), scale: self.scale })
    }
}

#[cfg(test)]
mod tests {
    use tunesmith_tensor::{Gradients, Role, Seed, SiteKind, Workspace};

    use super::*;
    use crate::checks::{Layer, check_forms, check_linear, close};
    use crate::lora_start::filled;

    fn site(rows: usize, cols: usize) -> Site {
        let path = "model.layers.0.mlp.up_proj".to_owned();
        Site {
            path,
            kind: SiteKind::Linear,
            role: Role::FeedForwardUp,
            block: Some(0),
            rows,
            cols,
            has_bias: true,
            stored_transposed: false,
        }
    }

    fn random(rows: usize, cols: usize, index: u64) -> Matrix {
        let mut stream = Seed(1).stream("test", index);
        filled(rows, cols, || stream.normal())
    }

    /// What `affine` and `tuned` make of the same input, which must agree.
    fn both(tuner: &LoraTuner, base: Base<'_>, x: &Matrix) -> (Vec<f32>, Vec<f32>) {
        let mut tape = Tape::evaluating(&Workspace::new());
        let x = tape.constant(x.clone());
        let affine = tuner.affine(&mut tape, base, &x);
        assert!(affine.base && affine.terms.len() == 1);
        let mut fast = tape.linear(&x, base.weight, if affine.bias.is_some() { None } else { base.bias });
        for term in affine.terms {
            fast = tape.add_product(fast, 0..x.rows(), &term.input, &term.weight, term.scale);
        }
        if let Some(bias) = affine.bias {
            fast = tape.add_bias(fast, 0..x.rows(), &bias);
        }
        let tuned = tuner.tuned(&mut tape, base);
        let slow = tape.matmul_nt(&x, &tuned.weight);
        let slow = tape.add_bias(slow, 0..x.rows(), &tuned.bias.unwrap());
        (fast.value().to_vec(), slow.value().to_vec())
    }

    #[test]
    fn the_fast_form_equals_the_meaning_where_alpha_is_not_the_rank() {
        let site = site(7, 5);
        let (weight, bias) = (FrozenWeight::float32(random(7, 5, 0)), FrozenWeight::float32(random(1, 7, 1)));
        let base = Base { weight: &weight, bias: Some(&bias) };
        let mut tuner = LoraTuner::new(&site, random(3, 5, 2), random(7, 3, 3), 2.5, 0.0);
        for _ in 0..2 {
            let (fast, slow) = both(&tuner, base, &random(4, 5, 4));
            for (fast, slow) in fast.iter().zip(&slow) {
                assert!((fast - slow).abs() < 1e-5 * slow.abs().max(1.0), "{fast} and {slow}");
            }
            tuner = tuner.with_bias(&site, &FrozenWeight::float32(random(1, 7, 5)));
        }
    }

    #[test]
    fn the_tuned_weight_is_the_base_and_s_times_b_times_a() {
        let site = site(2, 2);
        let weight = FrozenWeight::float32(Matrix::from_vec(2, 2, vec![1.0, 2.0, 3.0, 4.0]));
        let a = Matrix::from_vec(1, 2, vec![1.0, -1.0]);
        let b = Matrix::from_vec(2, 1, vec![10.0, 20.0]);
        let tuner = LoraTuner::new(&site, a, b, 0.5, 0.0);
        let mut tape = Tape::evaluating(&Workspace::new());
        let tuned = tuner.tuned(&mut tape, Base { weight: &weight, bias: None });
        assert_eq!(tuned.weight.value().data(), [6.0, -3.0, 13.0, -6.0]);
        assert!(tuned.bias.is_none());
    }

    #[test]
    fn gradients_reach_both_factors_and_the_bias_through_the_meaning() {
        let site = site(2, 2);
        let weight = FrozenWeight::float32(random(2, 2, 0));
        let a = Matrix::from_vec(1, 2, vec![3.0, 5.0]);
        let b = Matrix::from_vec(2, 1, vec![7.0, 11.0]);
        let tuner = LoraTuner::new(&site, a, b, 0.5, 0.0);
        let workspace = Workspace::new();
        let mut tape = Tape::differentiating(&workspace);
        let tuned = tuner.tuned(&mut tape, Base { weight: &weight, bias: None });
        let mut gradients = Gradients::new(&workspace);
        tape.backward(tuned.weight, Matrix::from_vec(2, 2, vec![1.0, 0.0, 0.0, 1.0]), &mut gradients);
        let parameters = tuner.parameters();
        assert_eq!(gradients.get(parameters[0].id()).unwrap().data(), [3.5, 5.5]);
        assert_eq!(gradients.get(parameters[1].id()).unwrap().data(), [1.5, 2.5]);
    }

    #[test]
    fn dropout_acts_on_the_update_only_and_only_in_training() {
        let site = site(4, 64);
        let weight = FrozenWeight::float32(random(4, 64, 0));
        let tuner = LoraTuner::new(&site, random(2, 64, 1), random(4, 2, 2), 1.0, 0.5);
        let x = random(3, 64, 3);
        let input = |mut tape: Tape| {
            let x = tape.constant(x.clone());
            let affine = tuner.affine(&mut tape, Base { weight: &weight, bias: None }, &x);
            assert!(affine.base);
            affine.terms[0].input.value().to_vec()
        };
        let workspace = Workspace::new();
        let clean = input(Tape::evaluating(&workspace));
        assert_eq!(clean, input(Tape::differentiating(&workspace)));
        assert_ne!(clean, input(Tape::training(&workspace, Seed(1))));
    }

    #[test]
    fn every_member_of_the_family_computes_what_it_means() {
        for has_bias in [true, false] {
            let layer = Layer::new(5, 4, has_bias);
            let plain = || LoraTuner::new(&layer.site, random(2, 4, 2), random(5, 2, 3), 1.5, 0.0);
            check_linear(&layer, plain);
            check_linear(&layer, || plain().with_bias_of_b(&layer.site));
            let moved = |mut tuner: LoraTuner| {
                tuner.parameters_mut()[0].value_mut().data_mut()[1] += 0.5;
                tuner
            };
            check_linear(&layer, || moved(plain().taking_out_its_start()));
            // DoRA's norm is a constant on the way back, so differences do not give its gradients.
            check_forms(&layer, || moved(plain().with_magnitude(&layer.site, &layer.weight)));
        }
    }

    #[test]
    fn dora_begins_as_lora_and_its_rows_have_the_trained_lengths() {
        let layer = Layer::new(5, 4, false);
        let plain = LoraTuner::new(&layer.site, random(2, 4, 2), random(5, 2, 3), 1.5, 0.0);
        let expected = plain.tuned(&mut Tape::evaluating(&Workspace::new()), layer.base()).weight;
        let mut tuner = plain.with_magnitude(&layer.site, &layer.weight);
        let tuned = tuner.tuned(&mut Tape::evaluating(&Workspace::new()), layer.base()).weight;
        close(tuned.value().data(), expected.value().data(), 1e-5);
        tuner.magnitude.as_mut().unwrap().m.value_mut().data_mut()[3] = 7.0;
        tuner.b.value_mut().data_mut()[6] += 2.0;
        let tuned = tuner.tuned(&mut Tape::evaluating(&Workspace::new()), layer.base()).weight;
        let length = tuned.value().row(3).iter().map(|value| value * value).sum::<f32>().sqrt();
        assert!((length - 7.0).abs() < 1e-4, "{length}");
    }

    #[test]
    fn a_start_taken_out_is_saved_as_lora_of_twice_the_rank() {
        let layer = Layer::new(5, 4, false);
        let (a, b) = (random(2, 4, 2), random(5, 2, 3));
        let mut tuner = LoraTuner::new(&layer.site, a, b, 1.5, 0.0).taking_out_its_start();
        let begins = tuner.tuned(&mut Tape::evaluating(&Workspace::new()), layer.base()).weight;
        close(begins.value().data(), layer.weight.to_matrix().data(), 1e-5);
        tuner.a.value_mut().data_mut()[1] = 3.0;
        let tuned = tuner.tuned(&mut Tape::evaluating(&Workspace::new()), layer.base()).weight;
        let stored = tuner.stored();
        assert_eq!((&stored[0].shape, &stored[1].shape), (&vec![4, 4], &vec![5, 4]));
        let [a, b] = [0, 1].map(|place: usize| Matrix::clone(&stored[place].value));
        let plain = LoraTuner::new(&layer.site, a, b, 1.5, 0.0);
        let expected = plain.tuned(&mut Tape::evaluating(&Workspace::new()), layer.base()).weight;
        close(tuned.value().data(), expected.value().data(), 1e-5);
    }
}
