//! The random projection of intrinsic dimension: what turns `d` numbers into a change of one tensor. Drawn from a seed and never
//! stored; each column of the whole has length one, so that `‖P·θ‖ ≈ ‖θ‖`.
//!
//! ```text
//! dense:    P_ij ~ N(0, 1), columns normalised                           4·D·d bytes in memory
//! sparse:   P_ij = ±1 with probability 1/√D, else 0, columns normalised   (Li, Hastie and Church 2006)
//! fastfood: stacked blocks H·G·Π·H·B                                     no memory
//! ```

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tunesmith_tensor::{Fastfood, FrozenWeight, Matrix, Seed, Sparse, Tape, Var};

/// The kind of projection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectionKind {
    /// A matrix of normal values.
    Dense,
    /// A matrix of few values.
    Sparse,
    /// Products of fast transforms.
    #[default]
    Fastfood,
}

/// Over which values the projection keeps lengths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectionScope {
    /// All trained values of the model together.
    #[default]
    Global,
    /// Each tensor's on their own, so that every tensor changes by the same length.
    PerLayer,
}

/// A tensor that is to be projected to.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Names its part of the projection.
    pub(crate) name: String,
    pub(crate) values: usize,
}

/// The part of the projection that belongs to one tensor.
#[derive(Clone, Debug)]
pub(crate) enum Projection {
    /// `[values, d]`.
    Dense(FrozenWeight),
    Sparse(Arc<Sparse>),
    Fastfood(Fastfood),
}

impl Projection {
    /// `P·θ` as `[rows, cols]`, for `theta` `[1, d]`.
    pub(crate) fn apply(&self, tape: &mut Tape, theta: &Var, (rows, cols): (usize, usize)) -> Var {
        let flat = match self {
            Self::Dense(matrix) => tape.linear(theta, matrix, None),
            Self::Sparse(matrix) => tape.sparse_product(theta, matrix),
            Self::Fastfood(projection) => tape.fastfood(theta, projection),
        };
        tape.reshape(&flat, rows, cols)
    }
}

/// Bytes that a projection to `total` values keeps in memory.
pub(crate) fn bytes(kind: ProjectionKind, total: usize, dimension: usize) -> f64 {
    let (total, dimension) = (total as f64, dimension as f64);
    match kind {
        ProjectionKind::Dense => 4.0 * total * dimension,
        // An entry is a column and a value; each row has a beginning.
        ProjectionKind::Sparse => 8.0 * dimension * total.sqrt() + 8.0 * total,
        ProjectionKind::Fastfood => 0.0,
    }
}

/// The projections to all targets.
pub(crate) fn draw(
    kind: ProjectionKind,
    scope: ProjectionScope,
    targets: &[Target],
    dimension: usize,
    seed: Seed,
) -> Vec<Projection> {
    let total: usize = targets.iter().map(|target| target.values).sum();
    if scope == ProjectionScope::PerLayer && kind != ProjectionKind::Fastfood {
        let one = |target: &Target| draw(kind, ProjectionScope::Global, std::slice::from_ref(target), dimension, seed);
        return targets.iter().flat_map(one).collect();
    }
    match kind {
        ProjectionKind::Dense => dense(targets, dimension, seed),
        ProjectionKind::Sparse => sparse(targets, total, dimension, seed),
        ProjectionKind::Fastfood => targets
            .iter()
            .map(|target| {
                let total = if scope == ProjectionScope::Global { total } else { target.values };
                let name = target.name.clone();
                Projection::Fastfood(Fastfood { seed, name, dimension, outputs: target.values, total })
            })
            .collect(),
    }
}

fn dense(targets: &[Target], dimension: usize, seed: Seed) -> Vec<Projection> {
    let draw = |target: &Target| {
        let mut stream = seed.stream(&target.name, 0);
        let values = std::iter::repeat_with(|| stream.normal()).take(target.values * dimension).collect();
        Matrix::from_vec(target.values, dimension, values)
    };
    let mut matrices: Vec<Matrix> = targets.iter().map(draw).collect();
    let mut squares = vec![0.0f64; dimension];
    for row in matrices.iter().flat_map(|matrix| matrix.data().chunks_exact(dimension)) {
        squares.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value).powi(2));
    }
    let scales: Vec<f32> = squares.into_iter().map(inverse_root).collect();
    for matrix in &mut matrices {
        for row in matrix.data_mut().chunks_exact_mut(dimension) {
            row.iter_mut().zip(&scales).for_each(|(value, scale)| *value *= scale);
        }
    }
    matrices.into_iter().map(|matrix| Projection::Dense(FrozenWeight::float32(matrix))).collect()
}

fn sparse(targets: &[Target], total: usize, dimension: usize, seed: Seed) -> Vec<Projection> {
    // The distance from one value to the next is geometric.
    let miss = (1.0 - 1.0 / (total as f64).sqrt()).ln();
    let mut counts = vec![0u32; dimension];
    let mut all = Vec::new();
    for target in targets {
        let mut stream = seed.stream(&target.name, 0);
        let mut entries = Vec::new();
        let mut place = 0usize;
        loop {
            let gap = if miss < 0.0 { ((1.0 - f64::from(stream.uniform())).ln() / miss) as usize } else { 0 };
            place = place.saturating_add(gap);
            if place >= target.values * dimension {
                break;
            }
            let (row, col) = (place / dimension, place % dimension);
            let sign = if stream.next_u64() & 1 == 0 { 1.0 } else { -1.0 };
            counts[col] += 1;
            entries.push((row, col as u32, sign));
            place += 1;
        }
        all.push(entries);
    }
    let scales: Vec<f32> = counts.into_iter().map(|count| inverse_root(f64::from(count))).collect();
    let finish = |(target, entries): (&Target, Vec<(usize, u32, f32)>)| {
        let scaled = entries.into_iter().map(|(row, col, sign)| (row, col, sign * scales[col as usize])).collect();
        Projection::Sparse(Arc::new(Sparse::new(target.values, dimension, scaled)))
    };
    targets.iter().zip(all).map(finish).collect()
}

fn inverse_root(square: f64) -> f32 {
    if square > 0.0 { (1.0 / square.sqrt()) as f32 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use tunesmith_tensor::Workspace;

    use super::*;

    const DIMENSION: usize = 8;

    fn targets() -> Vec<Target> {
        [("a", 700), ("b", 300)].map(|(name, values)| Target { name: name.to_owned(), values }).into()
    }

    /// The columns of the whole projection.
    fn columns(kind: ProjectionKind, scope: ProjectionScope) -> Vec<Vec<f32>> {
        let projections = draw(kind, scope, &targets(), DIMENSION, Seed(5));
        let mut tape = Tape::evaluating(&Workspace::new());
        let unit = |column: usize| {
            let mut unit = Matrix::zeros(1, DIMENSION);
            unit.data_mut()[column] = 1.0;
            unit
        };
        (0..DIMENSION)
            .map(|column| {
                let theta = tape.constant(unit(column));
                let parts = projections.iter().zip(targets());
                parts
                    .flat_map(|(projection, target)| {
                        projection.apply(&mut tape, &theta, (1, target.values)).value().to_vec()
                    })
                    .collect()
            })
            .collect()
    }

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn columns_are_nearly_orthonormal() {
        for kind in [ProjectionKind::Dense, ProjectionKind::Sparse, ProjectionKind::Fastfood] {
            let columns = columns(kind, ProjectionScope::Global);
            for (place, column) in columns.iter().enumerate() {
                let length = dot(column, column);
                let near = if kind == ProjectionKind::Fastfood { 0.2 } else { 1e-3 };
                assert!((length - 1.0).abs() < near, "{kind:?}: {length}");
                for other in &columns[..place] {
                    assert!(dot(column, other).abs() < 0.25, "{kind:?}");
                }
            }
        }
    }

    #[test]
    fn per_layer_every_tensor_has_the_whole_length() {
        for kind in [ProjectionKind::Dense, ProjectionKind::Sparse, ProjectionKind::Fastfood] {
            for column in columns(kind, ProjectionScope::PerLayer) {
                for part in [&column[..700], &column[700..]] {
                    assert!((dot(part, part) - 1.0).abs() < 0.25, "{kind:?}");
                }
            }
        }
    }

    #[test]
    fn sparse_projections_have_the_density_of_one_over_the_root() {
        let nonzero: usize = columns(ProjectionKind::Sparse, ProjectionScope::Global)
            .iter()
            .map(|column| column.iter().filter(|value| **value != 0.0).count())
            .sum();
        let expected = (1000.0 * DIMENSION as f64) / 1000f64.sqrt();
        assert!((nonzero as f64 / expected - 1.0).abs() < 0.2, "{nonzero} and {expected}");
    }

    #[test]
    fn a_dense_projection_of_roberta_large_would_take_over_a_terabyte() {
        let bytes = bytes(ProjectionKind::Dense, 355_000_000, 1000);
        assert!((bytes / 1e12 - 1.42).abs() < 0.005);
    }
}
