//! The state that an optimiser keeps of a tensor, and the file that holds it between runs.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, View};
use tunesmith_tensor::zeros;

use crate::TrainError;

/// One tensor of state.
#[derive(Clone, Debug, PartialEq)]
pub struct StateTensor {
    /// What it is, as PyTorch or bitsandbytes name it: `exp_avg`.
    pub kind: &'static str,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values.
    pub values: StateValues,
}

/// Values of a state.
#[derive(Clone, Debug, PartialEq)]
pub enum StateValues {
    /// Numbers.
    F32(Vec<f32>),
    /// Codes of quantised numbers.
    U8(Vec<u8>),
}

impl StateTensor {
    /// Zeros.
    pub fn zeros(kind: &'static str, shape: &[usize]) -> Self {
        Self { kind, shape: shape.to_vec(), values: StateValues::F32(zeros(shape.iter().product())) }
    }

    /// Codes that are zero.
    pub fn codes(kind: &'static str, shape: &[usize]) -> Self {
        Self { kind, shape: shape.to_vec(), values: StateValues::U8(vec![0; shape.iter().product()]) }
    }

    /// Its numbers.
    ///
    /// # Panics
    /// If it holds codes.
    pub fn numbers(&mut self) -> &mut [f32] {
        match &mut self.values {
            StateValues::F32(values) => values,
            StateValues::U8(_) => panic!("{} holds codes, not numbers", self.kind),
        }
    }

    fn describe(&self) -> (Dtype, &[usize]) {
        match self.values {
            StateValues::F32(_) => (Dtype::F32, &self.shape),
            StateValues::U8(_) => (Dtype::U8, &self.shape),
        }
    }

    fn take(&mut self, saved: &TensorView<'_>) {
        match &mut self.values {
            StateValues::F32(values) => {
                let (bytes, _) = saved.data().as_chunks();
                values.iter_mut().zip(bytes).for_each(|(value, bytes)| *value = f32::from_le_bytes(*bytes));
            }
            StateValues::U8(values) => *values = saved.data().to_vec(),
        }
    }
}

impl View for &StateTensor {
    fn dtype(&self) -> Dtype {
        self.describe().0
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.values {
            StateValues::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            StateValues::U8(values) => Cow::Borrowed(values),
        }
    }

    fn data_len(&self) -> usize {
        match &self.values {
            StateValues::F32(values) => size_of_val(values.as_slice()),
            StateValues::U8(values) => values.len(),
        }
    }
}

const OPTIMIZER: &str = "optimizer";
const UPDATES: &str = "updates";

/// Writes the states of `tensors` (each with its name) as safetensors, `NAME.KIND`, with the optimiser's name and its
/// number of updates.
pub(super) fn write<'a>(
    path: &Path,
    optimizer: &str,
    updates: u64,
    tensors: impl Iterator<Item = (&'a str, &'a [StateTensor])>,
) -> Result<(), TrainError> {
    let named = tensors.flat_map(|(name, state)| state.iter().map(move |part| (format!("{name}.{}", part.kind), part)));
    let metadata =
        HashMap::from([(OPTIMIZER.to_owned(), optimizer.to_owned()), (UPDATES.to_owned(), updates.to_string())]);
    let bytes = safetensors::serialize(named, Some(metadata)).map_err(std::io::Error::other);
    bytes.and_then(|bytes| fs::write(path, bytes)).map_err(TrainError::io("write", path))
}

/// Reads what [`write`] wrote into the states of `tensors`, and returns the number of updates.
///
/// # Errors
/// [`TrainError::Io`], [`TrainError::Damaged`]; [`TrainError::OtherOptimizer`]; [`TrainError::OptimizerMismatch`] with
/// every tensor that is missing, unknown or of another shape. No state has changed then.
pub(super) fn read<'a>(
    path: &Path,
    optimizer: &'static str,
    tensors: impl Iterator<Item = (&'a str, &'a mut Vec<StateTensor>)>,
) -> Result<u64, TrainError> {
    let damaged = |reason: String| TrainError::Damaged { path: path.to_path_buf(), reason };
    let bytes = fs::read(path).map_err(TrainError::io("read", path))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| damaged(error.to_string()))?;
    let saved = SafeTensors::deserialize(&bytes).map_err(|error| damaged(error.to_string()))?;
    let said = |key: &str| header.metadata().as_ref().and_then(|metadata| metadata.get(key).cloned());
    let updates = said(UPDATES).and_then(|updates| updates.parse().ok());
    let updates = updates.ok_or_else(|| damaged("it does not say the number of updates".to_owned()))?;
    match said(OPTIMIZER) {
        None => return Err(damaged("it does not say which optimiser it is of".to_owned())),
        Some(other) if other != optimizer => {
            return Err(TrainError::OtherOptimizer { path: path.to_path_buf(), saved: other, now: optimizer });
        }
        Some(_) => {}
    }

    let mut problems = Vec::new();
    let mut known = Vec::new();
    let mut found = Vec::new();
    for (name, state) in tensors {
        for part in state {
            let name = format!("{name}.{}", part.kind);
            let (dtype, shape) = part.describe();
            match saved.tensor(&name) {
                Err(_) => problems.push(format!("{name} is missing")),
                Ok(tensor) if tensor.dtype() != dtype || tensor.shape() != shape => {
                    let (is, of) = (tensor.dtype(), tensor.shape());
                    problems.push(format!("{name} is {is:?} {of:?}, must be {dtype:?} {shape:?}"));
                }
                Ok(tensor) => found.push((part, tensor)),
            }
            known.push(name);
        }
    }
    known.sort_unstable();
    let mut unknown = saved.names();
    unknown.retain(|name| known.binary_search_by(|known| known.as_str().cmp(name)).is_err());
    unknown.sort_unstable();
    problems.extend(unknown.iter().map(|name| format!("{name} belongs to no trained tensor")));
    if !problems.is_empty() {
        return Err(TrainError::OptimizerMismatch { path: path.to_path_buf(), problems });
    }
    for (part, tensor) in found {
        part.take(&tensor);
    }
    Ok(updates)
}
