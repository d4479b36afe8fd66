//! What the tests of tuners of linear layers share.

use tunesmith_tensor::{
    Affine, Base, FrozenWeight, Gradients, Kernels, Matrix, Role, Seed, Site, SiteKind, Tape, Var, WeightTuner,
    Workspace,
};

/// A linear layer with random values.
pub(crate) struct Layer {
    pub(crate) site: Site,
    pub(crate) weight: FrozenWeight,
    pub(crate) bias: Option<FrozenWeight>,
}

impl Layer {
    pub(crate) fn new(rows: usize, cols: usize, has_bias: bool) -> Self {
        let (path, kind, role) = ("model.layers.0.mlp.up_proj".to_owned(), SiteKind::Linear, Role::FeedForwardUp);
        let site = Site { path, kind, role, block: Some(0), rows, cols, has_bias, stored_transposed: false };
        let bias = has_bias.then(|| FrozenWeight::float32(random(1, rows, 1)));
        Self { site, weight: FrozenWeight::float32(random(rows, cols, 0)), bias }
    }

    pub(crate) fn base(&self) -> Base<'_> {
        Base { weight: &self.weight, bias: self.bias.as_ref() }
    }

    pub(crate) fn random(&self, rows: usize, cols: usize, index: u64) -> Matrix {
        random(rows, cols, index)
    }
}

fn random(rows: usize, cols: usize, index: u64) -> Matrix {
    let mut stream = Seed(1).stream("test", index);
    Matrix::from_vec(rows, cols, (0..rows * cols).map(|_| stream.normal()).collect())
}

/// `y` of the fast form.
fn fast(tuner: &dyn WeightTuner, tape: &mut Tape, base: Base<'_>, x: &Var) -> Var {
    let Affine { base: on_base, input, terms, scale, plus, bias } = tuner.affine(tape, base, x);
    let input = input.unwrap_or_else(|| x.clone());
    let mut y = if on_base {
        tape.linear(&input, base.weight, None)
    } else {
        tape.constant(Matrix::zeros(x.rows(), base.weight.rows()))
    };
    for term in terms {
        y = tape.add_product(y, 0..x.rows(), &term.input, &term.weight, term.scale);
    }
    if let Some(scale) = scale {
        y = tape.scale_columns(y, 0..x.rows(), &scale);
    }
    if let Some(plus) = plus {
        y = tape.add(&plus, y);
    }
    match bias.or_else(|| base.bias.map(|bias| tape.constant(bias.to_matrix()))) {
        Some(bias) => tape.add_bias(y, 0..x.rows(), &bias),
        None => y,
    }
}

/// `y` of the meaning.
fn slow(tuner: &dyn WeightTuner, tape: &mut Tape, base: Base<'_>, x: &Var) -> Var {
    let tuned = tuner.tuned(tape, base);
    let y = tape.matmul_nt(x, &tuned.weight);
    match tuned.bias {
        Some(bias) => tape.add_bias(y, 0..x.rows(), &bias),
        None => y,
    }
}

/// One of the forms.
type Form = fn(&dyn WeightTuner, &mut Tape, Base<'_>, &Var) -> Var;

/// Checks that the fast form of a linear tuner computes what it means, and the gradients of both forms against each other and
/// against central differences.
#[track_caller]
pub(crate) fn check_linear<T: WeightTuner>(layer: &Layer, make: impl Fn() -> T) {
    let differences = gradients_by_differences(layer, &make, slow);
    check_with(layer, make, Some(differences));
}

/// The same for a method that holds part of its gradient back, so that differences do not give it.
#[track_caller]
pub(crate) fn check_forms<T: WeightTuner>(layer: &Layer, make: impl Fn() -> T) {
    check_with(layer, make, None);
}

#[track_caller]
fn check_with<T: WeightTuner>(layer: &Layer, make: impl Fn() -> T, differences: Option<Vec<Vec<f32>>>) {
    let x = random(6, layer.site.cols, 2);
    let run = |form: Form| {
        let workspace = Workspace::with_kernels(Kernels::plain());
        let tuner = make();
        let mut tape = Tape::differentiating(&workspace);
        let x = tape.constant(x.clone());
        let y = form(&tuner, &mut tape, layer.base(), &x);
        let values = y.value().to_vec();
        let mut gradients = Gradients::new(&workspace);
        tape.backward(y, weighting(layer), &mut gradients);
        let gradient = |parameter: &tunesmith_tensor::Parameter| {
            gradients.get(parameter.id()).map_or_else(|| vec![0.0; parameter.value().data().len()], Matrix::to_vec)
        };
        (values, tuner.parameters().into_iter().map(gradient).collect::<Vec<_>>())
    };
    let ((fast_values, fast_gradients), (values, gradients)) = (run(fast), run(slow));
    close(&fast_values, &values, 1e-5);
    for (fast, slow) in fast_gradients.iter().zip(&gradients) {
        close(fast, slow, 1e-4);
    }
    for (analytic, difference) in gradients.iter().zip(differences.iter().flatten()) {
        close(analytic, difference, 5e-3);
    }
}

fn weighting(layer: &Layer) -> Matrix {
    random(6, layer.site.rows, 3)
}

fn gradients_by_differences<T: WeightTuner>(layer: &Layer, make: &impl Fn() -> T, form: Form) -> Vec<Vec<f32>> {
    const STEP: f32 = 1e-2;
    let x = random(6, layer.site.cols, 2);
    let workspace = Workspace::with_kernels(Kernels::plain());
    let loss = |tuner: &T| -> f64 {
        let mut tape = Tape::evaluating(&workspace);
        let x = tape.constant(x.clone());
        let y = form(tuner, &mut tape, layer.base(), &x);
        y.value().data().iter().zip(weighting(layer).data()).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum()
    };
    let sizes: Vec<usize> = make().parameters().iter().map(|parameter| parameter.value().data().len()).collect();
    let difference = |parameter: usize, place: usize| {
        let moved = |step: f32| {
            let mut tuner = make();
            tuner.parameters_mut()[parameter].value_mut().data_mut()[place] += step;
            loss(&tuner)
        };
        ((moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP)) as f32
    };
    let all = |(parameter, size): (usize, &usize)| (0..*size).map(|place| difference(parameter, place)).collect();
    sizes.iter().enumerate().map(all).collect()
}

#[track_caller]
pub(crate) fn close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1e-3f32, |largest, value| largest.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance * largest, "{found} and {expected}, the largest is {largest}");
    }
}
