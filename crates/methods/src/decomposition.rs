//! The leading parts of a matrix: its largest singular values, and the first columns of its QR decomposition. In float64,
//! on one thread of fixed order, so that the same matrix always gives the same bits.

use rayon::prelude::*;
use tunesmith_tensor::{Matrix, Stream};

/// Vectors beyond those asked for, so that the last ones converge too.
const OVERSAMPLING: usize = 8;

/// The `r` largest singular values of `w` `[m, n]`, with left vectors as rows `[r, m]` and right vectors as rows `[r, n]`:
/// subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4) from random directions.
pub(crate) fn largest_singular(
    w: &Matrix,
    r: usize,
    iterations: usize,
    mut stream: Stream,
) -> (Matrix, Vec<f32>, Matrix) {
    let (m, n) = w.shape();
    let width = (r + OVERSAMPLING).min(m).min(n);
    let transposed = w.transposed();
    // Rows are the vectors throughout.
    let mut q: Vec<Vec<f64>> = (0..width).map(|_| (0..n).map(|_| f64::from(stream.normal())).collect()).collect();
    orthonormalise(&mut q);
    for _ in 0..iterations.max(1) {
        let mut p = apply(w, &q);
        orthonormalise(&mut p);
        q = apply(&transposed, &p);
        orthonormalise(&mut q);
    }
    // Rayleigh and Ritz: the rows of `w·q` are orthogonal once turned by the eigenvectors of their products.
    let p = apply(w, &q);
    let products = (0..width).map(|i| (0..width).map(|j| dot(&p[i], &p[j])).collect()).collect();
    let (values, vectors) = eigen(products);
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    let combine = |rows: &[Vec<f64>], k: usize, scale: f64| -> Vec<f32> {
        let mut sum = vec![0.0f64; rows[0].len()];
        for (row, turn) in rows.iter().zip(&vectors) {
            sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += turn[k] * value);
        }
        sum.into_iter().map(|value| (value * scale) as f32).collect()
    };
    let largest = &order[..r.min(width)];
    let singular: Vec<f64> = largest.iter().map(|k| values[*k].max(0.0).sqrt()).collect();
    let inverse = |value: f64| if value > 0.0 { 1.0 / value } else { 0.0 };
    let left = largest.iter().zip(&singular).flat_map(|(k, value)| combine(&p, *k, inverse(*value))).collect();
    let right = largest.iter().flat_map(|k| combine(&q, *k, 1.0)).collect();
    let singular = singular.into_iter().map(|value| value as f32).collect();
    (Matrix::from_vec(largest.len(), m, left), singular, Matrix::from_vec(largest.len(), n, right))
}

/// The first `r` rows of `R` `[r, n]` and columns of `Q` `[m, r]` of `w = Q·R` `[m, n]`.
pub(crate) fn first_of_qr(w: &Matrix, r: usize) -> (Matrix, Matrix) {
    let (m, n) = w.shape();
    let column = |col: usize| (0..m).map(|row| f64::from(w.row(row)[col])).collect();
    let mut q: Vec<Vec<f64>> = (0..r).map(column).collect();
    orthonormalise(&mut q);
    let rows = apply(&w.transposed(), &q);
    let a = rows.into_iter().flatten().map(|value| value as f32).collect();
    let b = (0..m).flat_map(|row| q.iter().map(move |vector| vector[row] as f32)).collect();
    (Matrix::from_vec(r, n, a), Matrix::from_vec(m, r, b))
}

/// `w` times each vector.
fn apply(w: &Matrix, vectors: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let product = |vector: &Vec<f64>| (0..w.rows()).map(|row| mixed_dot(w.row(row), vector)).collect();
    vectors.par_iter().map(product).collect()
}

/// Gram and Schmidt, twice over, which is enough (Giraud et al. 2005). A vector that lies in the others' span is replaced by a
/// unit vector that does not.
fn orthonormalise(vectors: &mut [Vec<f64>]) {
    for place in 0..vectors.len() {
        let (before, rest) = vectors.split_at_mut(place);
        let vector = &mut rest[0];
        let length = norm(vector);
        project_out(before, vector);
        for unit in 0..vector.len() {
            if norm(vector) > 1e-10 * length.max(f64::MIN_POSITIVE) {
                break;
            }
            vector.fill(0.0);
            vector[(place + unit) % before.first().map_or(1, Vec::len).max(1)] = length.max(1.0);
            project_out(before, vector);
        }
        let scale = 1.0 / norm(vector).max(f64::MIN_POSITIVE);
        vector.iter_mut().for_each(|value| *value *= scale);
    }
}

fn project_out(before: &[Vec<f64>], vector: &mut [f64]) {
    for _ in 0..2 {
        for other in before {
            let along = dot(other, vector);
            vector.iter_mut().zip(other).for_each(|(value, other)| *value -= along * other);
        }
    }
}

/// Eigenvalues of a symmetric matrix, and eigenvectors as columns, by Jacobi's rotations.
fn eigen(mut a: Vec<Vec<f64>>) -> (Vec<f64>, Vec<Vec<f64>>) {
    const SWEEPS: usize = 60;
    let n = a.len();
    let mut vectors: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for _ in 0..SWEEPS {
        let off: f64 = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i][j] * a[i][j]).sum();
        let total: f64 = (0..n).map(|i| a[i][i] * a[i][i]).sum();
        if off <= 1e-30 * total {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                if a[p][q] == 0.0 {
                    continue;
                }
                let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let t = if theta == 0.0 { 1.0 } else { t };
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for row in &mut a {
                    (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                }
                let (above, below) = a.split_at_mut(q);
                for (first, second) in above[p].iter_mut().zip(&mut below[0]) {
                    (*first, *second) = (c * *first - s * *second, s * *first + c * *second);
                }
                for row in &mut vectors {
                    (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                }
            }
        }
    }
    ((0..n).map(|i| a[i][i]).collect(), vectors)
}

fn norm(vector: &[f64]) -> f64 {
    dot(vector, vector).sqrt()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn mixed_dot(a: &[f32], b: &[f64]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| f64::from(*a) * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..8 {
            lanes[lane] += f64::from(a[lane]) * b[lane];
        }
    }
    lanes.iter().sum::<f64>() + tail
}
