//! The gradient of every trainable tensor against differences of the loss, through whole models.

use std::sync::Arc;

use tunesmith_methods::BuiltAdapter;
use tunesmith_tensor::{Matrix, Seed};

use crate::scene::{Scene, cases};

/// A decoder, one with learned positions and fused projections, a post-norm encoder, and an encoder-decoder.
const MODELS: [&str; 4] = ["llama/model", "gpt2/model", "bert/model", "flan-t5/model"];

/// Moves every trainable value by chance, away from starts at which gradients vanish.
fn shake(built: &mut BuiltAdapter) {
    for parameter in built.adapter.parameters_mut() {
        let mut stream = Seed(9).stream(parameter.name(), 1);
        parameter.value_mut().data_mut().iter_mut().for_each(|value| *value += 0.05 * stream.normal());
    }
}

#[test]
fn gradients_of_every_method_equal_differences_of_the_loss() {
    let mut problems = Vec::new();
    for name in MODELS {
        let scene = Scene::new(name);
        for case in cases() {
            // DoRA takes its norms for constants (Liu et al. 2024, section 4.3): the gradient is not the slope by design.
            if case.config["use_dora"] == true {
                continue;
            }
            let Ok(mut built) = scene.build(&case.config) else { continue };
            built.begin(100).unwrap();
            shake(&mut built);
            built.before_step(0);
            problems.extend(
                differences(&scene, &mut built).into_iter().map(|text| format!("{name} {}: {text}", case.config)),
            );
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Tensors whose gradient, along the gradient itself, is not the slope of the loss.
fn differences(scene: &Scene, built: &mut BuiltAdapter) -> Vec<String> {
    let (_, gradients) = scene.loss(built);
    let count = built.adapter.parameters().len();
    let mut problems = Vec::new();
    for place in 0..count {
        let (id, name) = {
            let parameter = built.adapter.parameters()[place];
            (parameter.id(), parameter.name().to_owned())
        };
        let Some(gradient) = gradients.get(id).cloned() else { continue };
        let length = gradient.data().iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        // The loss is summed in float32: slopes much below its rounding cannot be seen.
        if length < 1e-3 {
            continue;
        }
        let before: Arc<Matrix> = built.adapter.parameters()[place].value();
        let mut loss_at = |distance: f64| {
            let mut parameters = built.adapter.parameters_mut();
            let mut value = parameters[place].value_mut();
            for ((value, before), slope) in value.data_mut().iter_mut().zip(before.data()).zip(gradient.data()) {
                *value = before + (distance * f64::from(*slope) / length) as f32;
            }
            drop(value);
            drop(parameters);
            scene.loss(built).0
        };
        // Of several distances the best: long ones bend, short ones drown in rounding.
        let slope = |distance: f64, loss_at: &mut dyn FnMut(f64) -> f64| {
            (loss_at(distance) - loss_at(-distance)) / (2.0 * distance)
        };
        let distances = [3e-2, 1e-2, 3e-3, 1e-3];
        let errors = distances.map(|distance| (slope(distance, &mut loss_at) / length - 1.0).abs());
        loss_at(0.0);
        let error = errors.into_iter().fold(f64::INFINITY, f64::min);
        if error > 1e-2 {
            problems.push(format!("{name}: the slope differs by {:.1} % (of {length:.1e})", 100.0 * error));
        }
    }
    problems
}
