//! The global norm of gradients, and clipping by it, as `torch.nn.utils.clip_grad_norm_`. Gradients are not scaled where
//! they lie: an update multiplies them as it reads them.

use rayon::prelude::*;
use tunesmith_tensor::{Gradients, Parameter, vectorised};

/// Values summed by one task; fixed, so that the sum does not depend on the number of threads.
const CHUNK: usize = 1 << 16;
/// Partial sums of a task: four vectors of eight, because one sum waits for the one before.
const LANES: usize = 32;

/// The Euclidean norm of all gradients of `parameters` together, summed in float64. A missing gradient counts as zero.
pub fn grad_norm(parameters: &[&Parameter], gradients: &Gradients) -> f64 {
    let found = parameters.iter().filter_map(|parameter| gradients.get(parameter.id()));
    let chunks: Vec<&[f32]> = found.flat_map(|gradient| gradient.data().chunks(CHUNK)).collect();
    let sum = |chunk| {
        vectorised(
            #[inline(always)]
            || squares(chunk),
        )
    };
    let partial: Vec<f64> = chunks.into_par_iter().map(sum).collect();
    partial.iter().sum::<f64>().sqrt()
}

/// `Σ value²`, in lanes so that it vectorises, in an order that never changes.
#[inline(always)]
fn squares(values: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>()
}

/// What gradients whose global norm is `norm` are multiplied by, so that it is at most `max_norm`.
///
/// As in PyTorch it is `max_norm / (norm + 1e-6)`, at most 1. A `max_norm` of zero only measures. A norm that is not finite
/// leaves the gradients as they are: the caller must not use them.
pub fn clip_factor(norm: f64, max_norm: f64) -> f32 {
    let factor = max_norm / (norm + 1e-6);
    if max_norm > 0.0 && norm.is_finite() && factor < 1.0 { factor as f32 } else { 1.0 }
}
