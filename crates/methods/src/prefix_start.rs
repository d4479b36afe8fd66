//! What a prefix begins as, where it begins from real words (Li and Liang 2021, section 7.4): the keys and values that the
//! model computes for them. Where a network makes the prefix, the paper fits it by gradient descent; its last layer is linear,
//! so that here it is solved for, with the smallest change of a random start.

use tunesmith_tensor::Matrix;

use crate::decomposition::first_of_qr;
use crate::virtual_tokens::tokens;
use crate::{MethodError, ModelDescription};

/// Keys and values of `length` tokens of `text`, `[length, 2·blocks·width]`: of each block first the keys, then the values.
pub(crate) fn recorded(
    text: &str,
    length: usize,
    hidden: Option<usize>,
    model: &ModelDescription<'_>,
) -> Result<Matrix, MethodError> {
    if let Some(hidden) = hidden.filter(|hidden| *hidden < length) {
        return Err(MethodError::Impossible {
            what: "prefix_init_text".to_owned(),
            why: format!("a network {hidden} wide cannot give {length} virtual tokens values of their own"),
            instead: format!("Set encoder_hidden_size: {length} or more"),
        });
    }
    let ids: Vec<u32> = tokens(text, model)?.into_iter().cycle().take(length).collect();
    let blocks = model.keys_and_values.and_then(|run| run(&ids)).ok_or_else(|| MethodError::Impossible {
        what: "prefix_init_text".to_owned(),
        why: format!("keys and values are recorded in decoders, and this {} model is none", model.model_type),
        instead: "Leave it out for a random start, or set init_weights: zero".to_owned(),
    })?;
    let width = blocks.first().map_or(0, |(keys, _)| keys.cols());
    let row = |row: usize| blocks.iter().flat_map(move |(keys, values)| [keys.row(row), values.row(row)].concat());
    let values = (0..length).flat_map(row).collect();
    Ok(Matrix::from_vec(length, 2 * width * blocks.len(), values))
}

/// The weight `W₂` `[out, hidden]` nearest to the given one with which the network `P = W₂·tanh(W₀·E + b₀) + b₂` of the
/// embedding, `W₀`, `b₀`, `W₂` and `b₂` gives `values` `[length, out]`. There must be at most `hidden` rows.
pub(crate) fn last_layer(network: [&Matrix; 5], values: &Matrix) -> Matrix {
    let [embedding, first, first_bias, last, last_bias] = network;
    let product = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
    let (length, hidden) = (embedding.rows(), first.rows());
    let activation = |row: usize, unit: usize| {
        (product(embedding.row(row), first.row(unit)) + f64::from(first_bias.data()[unit])).tanh() as f32
    };
    let activations = (0..length).flat_map(|row| (0..hidden).map(move |unit| activation(row, unit))).collect();
    let activations = Matrix::from_vec(length, hidden, activations);
    // Hᵀ = Q·R, so that the smallest X with H·X = D is Q·R⁻ᵀ·D.
    let (r, q) = first_of_qr(&activations.transposed(), length);
    let mut changed = last.clone();
    for out in 0..last.rows() {
        let mut y: Vec<f64> = Vec::with_capacity(length);
        for row in 0..length {
            let found = product(activations.row(row), last.row(out)) + f64::from(last_bias.data()[out]);
            let known: f64 = y.iter().enumerate().map(|(done, y)| f64::from(r.row(done)[row]) * y).sum();
            y.push((f64::from(values.row(row)[out]) - found - known) / f64::from(r.row(row)[row]));
        }
        for (unit, weight) in changed.row_mut(out).iter_mut().enumerate() {
            let change: f64 = q.row(unit).iter().zip(&y).map(|(q, y)| f64::from(*q) * y).sum();
            *weight = (f64::from(*weight) + change) as f32;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use tunesmith_tensor::Seed;

    use super::*;
    use crate::virtual_tokens::{filled, linear_start};

    #[test]
    fn the_solved_network_gives_the_values() {
        let mut stream = Seed(3).stream("start", 0);
        let (length, width, hidden, out) = (5, 4, 7, 12);
        let embedding = filled(length, width, || stream.normal());
        let (first, first_bias) = linear_start(hidden, width, &mut stream);
        let (last, last_bias) = linear_start(out, hidden, &mut stream);
        let values = filled(length, out, || 3.0 * stream.normal());
        let solved = last_layer([&embedding, &first, &first_bias, &last, &last_bias], &values);
        assert_ne!(solved, last);
        for row in 0..length {
            let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
            let units: Vec<f32> = (0..hidden)
                .map(|unit| (dot(embedding.row(row), first.row(unit)) + first_bias.data()[unit]).tanh())
                .collect();
            for (column, expected) in values.row(row).iter().enumerate() {
                let found = dot(&units, solved.row(column)) + last_bias.data()[column];
                assert!((found - expected).abs() < 1e-3, "{found} {expected}");
            }
        }
    }
}
