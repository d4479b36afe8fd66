//! Every head of every architecture against transformers' outputs and losses, and what makes a head fail. The models and
//! numbers lie in `fixtures/heads`, with the script that makes them again.

// Functions that tests share unwrap as tests do.
#![allow(clippy::unwrap_used)]

mod configurations;
mod loading;
mod reference;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

/// The folder of one case.
pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/heads").join(name)
}

/// A tensor: its shape and its values, integers as floats.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// All tensors of a safetensors file.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            Dtype::I64 => data.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as f32).collect(),
            other => panic!("{name} is {other:?}"),
        };
        (name, Tensor { shape: view.shape().to_vec(), values })
    };
    file.tensors().into_iter().map(read).collect()
}
