//! Subspaces that adapters of two runs share (Hu et al. 2021, §7.2), as a file of the study keeps them.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tunesmith_models::atomic::write_file;
use tunesmith_tensor::{Matrix, Seed};
use tunesmith_train::statistics::subspace_similarities;

use crate::StudyError;

/// `φ` of the `A` matrices of two runs at one module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Similarity {
    /// The module's path.
    pub module: String,
    /// The row and seed of the one side, in words.
    pub left: String,
    /// Those of the other.
    pub right: String,
    /// `φ(A, A′, i, j)` at `[i − 1][j − 1]`.
    pub values: Vec<Vec<f64>>,
}

/// The file of a study's similarities.
const FILE: &str = "similarities.json";

impl Similarity {
    /// `φ` for the first `directions` of either side.
    ///
    /// # Panics
    /// If the matrices differ in their columns.
    pub fn of(module: &str, (left, a): (&str, &Matrix), (right, b): (&str, &Matrix), directions: usize) -> Self {
        let mut values = subspace_similarities(a, b);
        values.truncate(directions);
        values.iter_mut().for_each(|row| row.truncate(directions));
        Self { module: module.to_owned(), left: left.to_owned(), right: right.to_owned(), values }
    }

    /// A matrix of as many columns that knows nothing of the data, for comparison.
    pub fn random(rows: usize, columns: usize, seed: u64) -> Matrix {
        let mut stream = Seed(seed).stream("random subspace", 0);
        Matrix::from_vec(rows, columns, (0..rows * columns).map(|_| stream.normal()).collect())
    }

    /// Those of a study; none where it has none.
    ///
    /// # Errors
    /// [`StudyError::Damaged`], [`StudyError::Io`].
    pub fn read(study: &Path) -> Result<Vec<Self>, StudyError> {
        let path = study.join(FILE);
        if !path.is_file() {
            return Ok(Vec::new());
        }
        let text = fs::read(&path).map_err(StudyError::io("read", &path))?;
        serde_json::from_slice(&text).map_err(|error| StudyError::Damaged { path, reason: error.to_string() })
    }

    /// Writes those of a study.
    ///
    /// # Errors
    /// [`StudyError::Train`] with the file's problem.
    pub fn write(study: &Path, all: &[Self]) -> Result<(), StudyError> {
        let path = study.join(FILE);
        let text = serde_json::to_string(all).map_err(std::io::Error::from).map_err(StudyError::io("write", &path))?;
        Ok(write_file(&path, format!("{text}\n").as_bytes())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_shares_all_with_itself_and_chance_with_a_random_one() {
        let (a, b) = (Similarity::random(4, 200, 1), Similarity::random(8, 200, 2));
        let own = Similarity::of("q_proj", ("a", &a), ("a", &a), 3);
        assert_eq!((own.values.len(), own.values[0].len()), (3, 3));
        assert!(own.values.iter().flatten().all(|value| (value - 1.0).abs() < 1e-9));
        let other = Similarity::of("q_proj", ("a", &a), ("b", &b), 8);
        assert!(other.values[3][7] < 0.15, "{:?}", other.values);
        let folder = tempfile::tempdir().unwrap();
        Similarity::write(folder.path(), &[own.clone(), other.clone()]).unwrap();
        assert_eq!(Similarity::read(folder.path()).unwrap(), [own, other]);
    }
}
