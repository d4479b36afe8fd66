//! The global norm of gradients, and clipping by it, as `torch.nn.utils.clip_grad_norm_`.

use rayon::prelude::*;
use tunesmith_tensor::{Gradients, Parameter};

/// Values summed by one task; fixed, so that the sum does not depend on the number of threads.
const CHUNK: usize = 1 << 16;

/// The Euclidean norm of all gradients of `parameters` together, summed in float64. A missing gradient counts as zero.
pub fn grad_norm(parameters: &[&Parameter], gradients: &Gradients) -> f64 {
    let found = parameters.iter().filter_map(|parameter| gradients.get(parameter.id()));
    let chunks: Vec<&[f32]> = found.flat_map(|gradient| gradient.data().chunks(CHUNK)).collect();
    let partial: Vec<f64> = chunks.into_par_iter().map(squares).collect();
    partial.iter().sum::<f64>().sqrt()
}

/// `Σ value²`, in lanes so that it vectorises, in an order that never changes.
fn squares(values: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>()
}

/// Scales the gradients of `parameters` so that their global norm is at most `max_norm`, and returns the norm they had.
///
/// See [`clip_to_norm`].
pub fn clip_grad_norm(parameters: &[&Parameter], gradients: &mut Gradients, max_norm: f64) -> f64 {
    let norm = grad_norm(parameters, gradients);
    clip_to_norm(parameters, gradients, norm, max_norm);
    norm
}

/// Scales the gradients of `parameters`, whose global norm is `norm`, so that it is at most `max_norm`.
///
/// As in PyTorch the factor is `max_norm / (norm + 1e-6)`, at most 1. A `max_norm` of zero only measures. A norm that
/// is not finite leaves the gradients as they are: the caller must not use them.
pub fn clip_to_norm(parameters: &[&Parameter], gradients: &mut Gradients, norm: f64, max_norm: f64) {
    let factor = max_norm / (norm + 1e-6);
    if max_norm > 0.0 && norm.is_finite() && factor < 1.0 {
        for parameter in parameters {
            if let Some(gradient) = gradients.get_mut(parameter.id()) {
                gradient.data_mut().iter_mut().for_each(|value| *value *= factor as f32);
            }
        }
    }
}
