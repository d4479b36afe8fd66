//! Where frozen weights come from: one seam for every file format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tunesmith_tensor::{FrozenWeight, Matrix};

use crate::error::{ModelError, TensorProblem};

/// A tensor in a file, not yet read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Its shape as saved: `[out, in]` or `[n]`.
    pub shape: Vec<usize>,
    /// The file it is in.
    pub file: PathBuf,
    /// The name of its number format, where that cannot be read.
    pub unsupported: Option<String>,
}

/// The tensors of a model's files under their Hugging Face names, read one at a time so that a model never lies in
/// memory twice.
pub trait WeightSource {
    /// The model's folder or file, for messages.
    fn path(&self) -> &Path;

    /// All tensors by Hugging Face name.
    fn stored(&self) -> &BTreeMap<String, StoredTensor>;

    /// The number formats that can be read, for messages.
    fn supported_formats(&self) -> &'static str;

    /// The values of tensor `name`, row by row, in Hugging Face's layout.
    ///
    /// # Errors
    /// If the file ends early or cannot be read.
    fn read(&mut self, name: &str) -> Result<Vec<f32>, ModelError>;

    /// The matrix `name` `[out, in]` as the file has it, where that is quantised and shall stay so.
    ///
    /// # Errors
    /// As [`WeightSource::read`].
    fn encoded(&mut self, _name: &str) -> Result<Option<FrozenWeight>, ModelError> {
        Ok(None)
    }

    /// The matrix `name` `[out, in]`, which has been read, as it shall be kept in memory.
    ///
    /// # Errors
    /// If it cannot be quantised.
    fn keep(&self, _name: &str, matrix: Matrix) -> Result<FrozenWeight, ModelError> {
        Ok(FrozenWeight::float32(matrix))
    }
}

/// Compares all tensors of `source` with those that the model expects, and reports everything that does not fit at
/// once. Tensors for which `harmless` holds may be there or not.
pub(crate) fn check(
    source: &dyn WeightSource,
    expected: &[(String, Vec<usize>)],
    harmless: impl Fn(&str) -> bool,
) -> Result<(), ModelError> {
    let stored = source.stored();
    let mut problems = Vec::new();
    let mut known: BTreeMap<&str, ()> = BTreeMap::new();
    for (name, shape) in expected {
        known.insert(name, ());
        match stored.get(name) {
            None => problems.push(TensorProblem::Missing { name: name.clone(), expected: shape.clone() }),
            Some(tensor) if tensor.shape != *shape => problems.push(TensorProblem::Shape {
                name: name.clone(),
                file: tensor.file.clone(),
                expected: shape.clone(),
                found: tensor.shape.clone(),
            }),
            Some(StoredTensor { file, unsupported: Some(format), .. }) => problems.push(TensorProblem::Format {
                name: name.clone(),
                file: file.clone(),
                found: format.clone(),
                supported: source.supported_formats(),
            }),
            Some(_) => {}
        }
    }
    problems.extend(stored.iter().filter(|(name, _)| !known.contains_key(name.as_str()) && !harmless(name)).map(
        |(name, tensor)| TensorProblem::Unexpected {
            name: name.clone(),
            file: tensor.file.clone(),
            found: tensor.shape.clone(),
        },
    ));
    if problems.is_empty() { Ok(()) } else { Err(ModelError::Tensors { path: source.path().to_path_buf(), problems }) }
}

/// Reads a tensor of known shape as a frozen weight, kept as the source wants it: `[out, in]`, or `[1, n]` for a vector.
pub(crate) fn take(source: &mut dyn WeightSource, name: &str, shape: &[usize]) -> Result<FrozenWeight, ModelError> {
    if let [_, _] = shape
        && let Some(weight) = source.encoded(name)?
    {
        return Ok(weight);
    }
    let values = source.read(name)?;
    match shape {
        [rows, cols] => source.keep(name, Matrix::from_vec(*rows, *cols, values)),
        _ => Ok(FrozenWeight::vector(values)),
    }
}

/// Rows become columns: from a file's `[in, out]` to `[out, in]`, and back.
pub(crate) fn transposed(matrix: &Matrix) -> Matrix {
    let (rows, cols) = matrix.shape();
    let columns = (0..cols).flat_map(|col| (0..rows).map(move |row| matrix.data()[row * cols + col]));
    Matrix::from_vec(cols, rows, columns.collect())
}
