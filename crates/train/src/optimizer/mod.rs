//! Optimisers and what is done to gradients before an update.

mod adamw;
mod clipping;

pub use adamw::{AdamW, AdamWOptions, ParameterGroup};
pub use clipping::{clip_grad_norm, grad_norm};

#[cfg(test)]
mod tests {
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

    fn optimizer(case: &Case, parameters: &[Parameter]) -> AdamW {
        let Case { beta1, beta2, epsilon, weight_decay, .. } = *case;
        let options = AdamWOptions { beta1, beta2, epsilon, weight_decay };
        AdamW::new(options, &parameters.iter().collect::<Vec<_>>(), |parameter| match parameter.name() {
            "b" => ParameterGroup { learning_rate_scale: 4.0, weight_decay: false },
            _ => ParameterGroup::default(),
        })
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

    fn update(adamw: &mut AdamW, parameters: &mut [Parameter], step: &Step, max_norm: f64) -> f64 {
        let mut gradients = gradients(parameters, &step.gradients);
        let norm = clip_grad_norm(&parameters.iter().collect::<Vec<_>>(), &mut gradients, max_norm);
        adamw.step(&mut parameters.iter_mut().collect::<Vec<_>>(), &gradients, step.learning_rate).unwrap();
        norm
    }

    #[test]
    fn values_and_norms_equal_those_of_torch() {
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
    fn a_saved_and_loaded_state_continues_bit_for_bit() {
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
            AdamW::new(AdamWOptions::default(), &parameters, |_| ParameterGroup::default())
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
        let error = adamw.step(&mut parameters.iter_mut().collect::<Vec<_>>(), &gradients, 0.1).unwrap_err();
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
            let mut gradients = gradients(&parameters, &step.gradients);
            clip_grad_norm(&borrowed, &mut gradients, max_norm);
            assert_eq!(gradients.get(parameters[0].id()).unwrap().data(), step.gradients["a"]);
        }
        let mut values = step.gradients.clone();
        values.get_mut("b").unwrap()[2] = f32::NAN;
        let mut gradients = gradients(&parameters, &values);
        assert!(clip_grad_norm(&borrowed, &mut gradients, 1.0).is_nan());
        assert_eq!(gradients.get(parameters[0].id()).unwrap().data(), step.gradients["a"]);
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
}
