//! Every optimiser against the reference, and what they have in common.

use std::collections::BTreeMap;

use serde::Deserialize;
use tunesmith_tensor::{Gradients, Matrix, Parameter, Tape, Workspace};

use super::*;

#[derive(Deserialize)]
struct Table {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    max_norm: f64,
    start: BTreeMap<String, Vec<f32>>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    learning_rate: f64,
    gradients: BTreeMap<String, Vec<f32>>,
    norm: f64,
    values: BTreeMap<String, Vec<f32>>,
}

const SHAPES: [(&str, usize, usize); 2] = [("a", 2, 3), ("b", 4, 1)];

fn cases() -> Vec<Case> {
    let table: Table = serde_json::from_str(include_str!("../../tests/data/optimizer.json")).unwrap();
    assert_eq!(table.cases.iter().map(|case| case.steps.len()).sum::<usize>(), 16);
    table.cases
}

fn parameters(values: &BTreeMap<String, Vec<f32>>) -> Vec<Parameter> {
    SHAPES.map(|(name, rows, cols)| Parameter::new(name, Matrix::from_vec(rows, cols, values[name].clone()))).into()
}

/// Tensor `b` learns four times as fast and does not decay.
fn group(parameter: &Parameter) -> ParameterGroup {
    match parameter.name() {
        "b" => ParameterGroup { learning_rate_scale: 4.0, weight_decay: false },
        _ => ParameterGroup::default(),
    }
}

fn optimizer(case: &Case, parameters: &[Parameter]) -> Optimizer {
    let Case { beta1, beta2, epsilon, weight_decay, .. } = *case;
    let rule = AdamW { beta1, beta2, epsilon };
    Optimizer::new(rule, weight_decay, &parameters.iter().collect::<Vec<_>>(), group)
}

fn gradients(parameters: &[Parameter], values: &BTreeMap<String, Vec<f32>>) -> Gradients {
    let workspace = Workspace::new();
    let mut gradients = Gradients::new(&workspace);
    for parameter in parameters {
        let Some(values) = values.get(parameter.name()) else { continue };
        let mut tape = Tape::differentiating(&workspace);
        let var = tape.parameter(parameter);
        let (rows, cols) = parameter.value().shape();
        tape.backward(var, Matrix::from_vec(rows, cols, values.clone()), &mut gradients);
    }
    gradients
}

fn update(optimizer: &mut Optimizer, parameters: &mut [Parameter], step: &Step, max_norm: f64) -> f64 {
    let gradients = gradients(parameters, &step.gradients);
    let norm = grad_norm(&parameters.iter().collect::<Vec<_>>(), &gradients);
    let clip = clip_factor(norm, max_norm);
    optimizer.step(&mut parameters.iter_mut().collect::<Vec<_>>(), &gradients, clip, step.learning_rate).unwrap();
    norm
}

#[test]
fn adamw_and_clipping_equal_those_of_torch() {
    for case in cases() {
        let mut parameters = parameters(&case.start);
        let mut adamw = optimizer(&case, &parameters);
        for (index, step) in case.steps.iter().enumerate() {
            let norm = update(&mut adamw, &mut parameters, step, case.max_norm);
            assert!((norm / step.norm - 1.0).abs() < 1e-6, "step {index}: norm {norm}, expected {}", step.norm);
            for parameter in &parameters {
                for (value, expected) in parameter.value().data().iter().zip(&step.values[parameter.name()]) {
                    assert!((value - expected).abs() < 5e-7, "step {index}: {value}, expected {expected}");
                }
            }
        }
        assert_eq!(adamw.updates(), 8);
    }
}

#[test]
fn a_saved_state_of_adamw_continues_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.safetensors");
    for case in cases() {
        let mut straight = parameters(&case.start);
        let mut adamw = optimizer(&case, &straight);
        for step in &case.steps[..5] {
            update(&mut adamw, &mut straight, step, case.max_norm);
        }
        adamw.save(&path).unwrap();
        let named = |parameter: &Parameter| (parameter.name().to_owned(), parameter.value().to_vec());
        let mut resumed = parameters(&straight.iter().map(named).collect());
        for step in &case.steps[5..] {
            update(&mut adamw, &mut straight, step, case.max_norm);
        }

        let mut adamw = optimizer(&case, &resumed);
        adamw.load(&path).unwrap();
        assert_eq!(adamw.updates(), 5);
        for step in &case.steps[5..] {
            update(&mut adamw, &mut resumed, step, case.max_norm);
        }
        for (straight, resumed) in straight.iter().zip(&resumed) {
            assert_eq!(straight.value(), resumed.value());
        }
    }
}

#[test]
fn a_state_of_other_tensors_is_refused_with_all_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.safetensors");
    let save = |named: &[(&str, usize)]| {
        let parameters: Vec<_> =
            named.iter().map(|(name, rows)| Parameter::new(*name, Matrix::zeros(*rows, 2))).collect();
        let parameters: Vec<_> = parameters.iter().collect();
        Optimizer::new(AdamW::default(), 0.0, &parameters, |_| ParameterGroup::default())
    };
    save(&[("a", 1), ("b", 2), ("c", 3)]).save(&path).unwrap();
    let message = save(&[("a", 1), ("b", 5), ("d", 3)]).load(&path).unwrap_err().to_string();
    for problem in [
        "b.exp_avg is F32 [2, 2], must be F32 [5, 2]",
        "b.exp_avg_sq is F32 [2, 2], must be F32 [5, 2]",
        "d.exp_avg is missing",
        "d.exp_avg_sq is missing",
        "c.exp_avg belongs to no trained tensor",
        "c.exp_avg_sq belongs to no trained tensor",
    ] {
        assert!(message.contains(problem), "{message}");
    }
    assert_eq!(message.lines().count(), 7);

    std::fs::write(&path, b"\x10\0\0\0\0\0\0\0{}").unwrap();
    assert!(matches!(save(&[("a", 1)]).load(&path), Err(crate::TrainError::Damaged { .. })));
}

#[test]
fn a_parameter_without_gradient_is_an_error_and_nothing_changes() {
    let case = cases().remove(0);
    let mut parameters = parameters(&case.start);
    let mut adamw = optimizer(&case, &parameters);
    let mut values = case.steps[0].gradients.clone();
    values.remove("b");
    let gradients = gradients(&parameters, &values);
    let error = adamw.step(&mut parameters.iter_mut().collect::<Vec<_>>(), &gradients, 1.0, 0.1).unwrap_err();
    assert_eq!(error.to_string(), "no gradient reached 1 trainable tensors:\n  b");
    assert_eq!(parameters[0].value().data(), case.start["a"]);
    assert_eq!(adamw.updates(), 0);
}

#[test]
fn a_norm_within_the_limit_or_not_finite_changes_no_gradient() {
    let case = cases().remove(0);
    let parameters = parameters(&case.start);
    let borrowed: Vec<_> = parameters.iter().collect();
    let step = &case.steps[0];
    for max_norm in [0.0, step.norm * 1.01] {
        assert_eq!(clip_factor(step.norm, max_norm), 1.0);
    }
    assert!(clip_factor(step.norm, step.norm / 2.0) < 0.5);
    let mut values = step.gradients.clone();
    values.get_mut("b").unwrap()[2] = f32::NAN;
    let norm = grad_norm(&borrowed, &gradients(&parameters, &values));
    assert!(norm.is_nan());
    assert_eq!(clip_factor(norm, 1.0), 1.0);
}

#[test]
fn the_norm_does_not_depend_on_the_number_of_threads() {
    let values = BTreeMap::from([("w".to_owned(), (0..300_000).map(|i| (i as f32).sin()).collect::<Vec<_>>())]);
    let parameters = [Parameter::new("w", Matrix::from_vec(300, 1000, values["w"].clone()))];
    let gradients = gradients(&parameters, &values);
    let norm_with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| grad_norm(&[&parameters[0]], &gradients)).to_bits()
    };
    assert_eq!(norm_with(1), norm_with(4));
    assert!((f64::from_bits(norm_with(1)) - 150_000f64.sqrt()).abs() < 0.01);
}

/// A run of another optimiser than AdamW.
#[derive(Deserialize)]
struct Run {
    optim: OptimizerName,
    args: BTreeMap<String, serde_json::Value>,
    weight_decay: f64,
    shapes: BTreeMap<String, (usize, usize)>,
    steps: Vec<RunStep>,
}

#[derive(Deserialize)]
struct RunStep {
    learning_rate: f64,
    values: BTreeMap<String, Vec<f32>>,
}

impl Run {
    fn all() -> Vec<Self> {
        #[derive(Deserialize)]
        struct Table {
            cases: Vec<Run>,
        }
        let table: Table = serde_json::from_str(include_str!("../../tests/data/optimizers.json")).unwrap();
        assert_eq!(table.cases.len(), 20);
        table.cases
    }

    fn rule(&self) -> Box<dyn UpdateRule> {
        let args: Vec<String> = self.args.iter().map(|(name, value)| format!("{name}={value}")).collect();
        self.optim.rule(AdamW::default(), &args.join(",")).unwrap()
    }

    fn parameters(&self) -> Vec<Parameter> {
        let named = self.shapes.iter().zip(0..);
        named.map(|((name, shape), salt)| Parameter::new(name, spread(*shape, 0, salt))).collect()
    }

    fn optimizer(&self, parameters: &[Parameter]) -> Optimizer {
        Optimizer::new(self.rule(), self.weight_decay, &parameters.iter().collect::<Vec<_>>(), group)
    }

    fn update(&self, number: usize, optimizer: &mut Optimizer, parameters: &mut [Parameter]) {
        let values = self.shapes.iter().zip(0..);
        let values = values.map(|((name, shape), salt)| (name.clone(), spread(*shape, number as u64, salt).to_vec()));
        let gradients = gradients(parameters, &values.collect());
        let rate = self.steps[number - 1].learning_rate;
        optimizer.step(&mut parameters.iter_mut().collect::<Vec<_>>(), &gradients, 1.0, rate).unwrap();
    }
}

/// The numbers of the same name in `reference_values.py`.
fn spread((rows, cols): (usize, usize), step: u64, salt: u64) -> Matrix {
    let number = |place: u64| {
        let mixed = (place * 2_654_435_761 + step * 40_503 + salt * 97) % (1 << 32);
        ((mixed as f64 / (1u64 << 32) as f64 - 0.5) / (1u64 << (place % 12)) as f64) as f32
    };
    Matrix::from_vec(rows, cols, (0..(rows * cols) as u64).map(number).collect())
}

#[test]
fn every_optimizer_equals_its_reference() {
    for case in Run::all() {
        let mut parameters = case.parameters();
        let mut optimizer = case.optimizer(&parameters);
        for (index, step) in case.steps.iter().enumerate() {
            case.update(index + 1, &mut optimizer, &mut parameters);
            for parameter in &parameters {
                let found: Vec<f32> = parameter.value().data().iter().step_by(61).copied().collect();
                let expected = &step.values[parameter.name()];
                assert_eq!(found.len(), expected.len());
                for (value, expected) in found.iter().zip(expected) {
                    let close = (value - expected).abs() < 1e-6 * expected.abs().max(1.0);
                    let (optim, name) = (case.optim, parameter.name());
                    assert!(close, "{optim:?} {:?}, update {index} of {name}: {value}, expected {expected}", case.args);
                }
            }
        }
    }
}

#[test]
fn every_saved_state_continues_bit_for_bit_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.safetensors");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for case in Run::all() {
        let mut straight = case.parameters();
        let mut optimizer = case.optimizer(&straight);
        for number in 1..=3 {
            case.update(number, &mut optimizer, &mut straight);
        }
        optimizer.save(&path).unwrap();
        let copy = |parameter: &Parameter| Parameter::new(parameter.name(), (*parameter.value()).clone());
        let mut resumed: Vec<_> = straight.iter().map(copy).collect();
        for number in 4..=6 {
            case.update(number, &mut optimizer, &mut straight);
        }

        let mut optimizer = case.optimizer(&resumed);
        optimizer.load(&path).unwrap();
        assert_eq!(optimizer.updates(), 3);
        pool.install(|| {
            for number in 4..=6 {
                case.update(number, &mut optimizer, &mut resumed);
            }
        });
        for (straight, resumed) in straight.iter().zip(&resumed) {
            assert_eq!(straight.value(), resumed.value(), "{:?}", case.optim);
        }
    }
}

#[test]
fn a_state_of_another_optimizer_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.safetensors");
    let parameter = Parameter::new("w", Matrix::zeros(2, 2));
    let optimizer = |name: OptimizerName| {
        let rule = name.rule(AdamW::default(), "").unwrap();
        Optimizer::new(rule, 0.0, &[&parameter], |_| ParameterGroup::default())
    };
    optimizer(OptimizerName::Adafactor).save(&path).unwrap();
    let error = optimizer(OptimizerName::Sgd).load(&path).unwrap_err();
    let expected =
        "holds the state of adafactor, and this run's optimiser is sgd: set optim: adafactor, or start a new run";
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn the_state_of_large_tensors_takes_a_quarter_in_8_bits() {
    let parameter = Parameter::new("w", Matrix::zeros(512, 128));
    let bytes = |name: OptimizerName| {
        let rule = name.rule(AdamW::default(), "").unwrap();
        Optimizer::new(rule, 0.0, &[&parameter], |_| ParameterGroup::default()).state_bytes()
    };
    let values = 512 * 128;
    assert_eq!(bytes(OptimizerName::Adamw), 8 * values);
    assert_eq!(bytes(OptimizerName::Adamw8bit), 2 * values + 8 * values / 256);
    assert_eq!(bytes(OptimizerName::Adafactor), 4 * (512 + 128));
    assert_eq!(bytes(OptimizerName::Sgd), 0);
}
