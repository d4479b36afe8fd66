//! The similarity of the subspaces that two adaptations use (Hu et al. 2021, section 7.2 and appendix G):
//! `φ(A, B, i, j) = ‖U_Aᵢᵀ U_Bⱼ‖²_F / min(i, j)`, where `U_Aᵢ` are the top `i` right singular vectors of `A`, those of
//! LoRA's `A [r, in]` being directions of the input. 1 where one subspace lies in the other, 0 where they are orthogonal.

use nalgebra::DMatrix;
use tunesmith_tensor::Matrix;

/// `φ(a, b, i, j)` of the rows' spaces of `a` and `b`, both with as many columns.
///
/// # Panics
/// If the columns differ, or `i` or `j` is 0 or more than the rows of its matrix.
pub fn normalized_subspace_similarity(a: &Matrix, b: &Matrix, i: usize, j: usize) -> f64 {
    let inside = (1..=a.rows()).contains(&i) && (1..=b.rows()).contains(&j);
    assert!(inside, "φ of {i} and {j} directions, of {} and {}", a.rows(), b.rows());
    subspace_similarities(a, b)[i - 1][j - 1]
}

/// `φ(a, b, i, j)` for all `i` up to the rows of `a` and `j` up to those of `b`, at `[i − 1][j − 1]`: the paper's figure 3.
///
/// # Panics
/// If the columns differ.
pub fn subspace_similarities(a: &Matrix, b: &Matrix) -> Vec<Vec<f64>> {
    assert_eq!(a.cols(), b.cols(), "subspaces of one space");
    let products = top_directions(a) * top_directions(b).transpose();
    let mut sums = vec![vec![0.0; products.ncols()]; products.nrows()];
    for i in 0..products.nrows() {
        let mut row = 0.0;
        for j in 0..products.ncols() {
            row += products[(i, j)].powi(2);
            sums[i][j] = row + if i > 0 { sums[i - 1][j] } else { 0.0 };
        }
    }
    for (i, row) in sums.iter_mut().enumerate() {
        row.iter_mut().enumerate().for_each(|(j, sum)| *sum /= (i.min(j) + 1) as f64);
    }
    sums
}

/// The right singular vectors as rows, that of the largest singular value first.
fn top_directions(matrix: &Matrix) -> DMatrix<f64> {
    let values = matrix.data().iter().map(|value| f64::from(*value));
    let values = DMatrix::from_row_iterator(matrix.rows(), matrix.cols(), values);
    let svd = values.svd(false, true);
    svd.v_t.expect("the right singular vectors were asked for")
}

#[cfg(test)]
mod tests {
    use tunesmith_tensor::Seed;

    use super::*;

    fn matrix(rows: usize, cols: usize, name: &str) -> Matrix {
        let mut stream = Seed(5).stream(name, 0);
        Matrix::from_vec(rows, cols, (0..rows * cols).map(|_| stream.below(2000) as f32 / 1000.0 - 1.0).collect())
    }

    #[test]
    fn a_subspace_lies_in_itself() {
        let a = matrix(4, 30, "a");
        for i in 1..=4 {
            for j in 1..=4 {
                assert!((normalized_subspace_similarity(&a, &a, i, j) - 1.0).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn orthogonal_subspaces_and_shared_directions() {
        // Singular values in falling order, so that the directions are e1, e2, e3 and e2, e4.
        let a = Matrix::from_vec(3, 5, [[3., 0., 0., 0., 0.], [0., 2., 0., 0., 0.], [0., 0., 1., 0., 0.]].concat());
        let b = Matrix::from_vec(2, 5, [[0., 4., 0., 0., 0.], [0., 0., 0., 1., 0.]].concat());
        let expected = [[0.0, 0.0], [1.0, 0.5], [1.0, 0.5]];
        for (i, row) in subspace_similarities(&a, &b).iter().enumerate() {
            for (j, value) in row.iter().enumerate() {
                assert!((value - expected[i][j]).abs() < 1e-12, "{i} {j}: {value}");
            }
        }
    }

    #[test]
    fn two_planes_at_an_angle() {
        // Lines at an angle α have φ = cos² α, however long the vectors are.
        let angle = 0.7f32;
        let a = Matrix::from_vec(1, 2, vec![2.0, 0.0]);
        let b = Matrix::from_vec(1, 2, vec![5.0 * angle.cos(), 5.0 * angle.sin()]);
        let cosine = f64::from(angle).cos();
        assert!((normalized_subspace_similarity(&a, &b, 1, 1) - cosine * cosine).abs() < 1e-6);
    }

    #[test]
    fn random_directions_share_as_much_as_chance_has_it() {
        // Two random subspaces of i and j dimensions in n share max(i, j)/n on average.
        let (a, b) = (matrix(8, 400, "left"), matrix(8, 400, "right"));
        let similarity = normalized_subspace_similarity(&a, &b, 8, 8);
        assert!((0.005..0.05).contains(&similarity), "{similarity}");
    }
}
