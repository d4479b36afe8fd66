//! Reading a fixtures folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

/// The fixtures folder.
pub(crate) fn root() -> PathBuf {
    let committed = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    std::env::var_os("TUNESMITH_FIXTURES").map_or_else(committed, PathBuf::from)
}

/// The folders within `path`, by name.
pub(crate) fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut folders: Vec<PathBuf> =
        entries.map(|entry| entry.expect("a readable folder").path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

/// Whether a folder holds cases of this suite: a model, 4-bit tensors, or real models' numbers. The committed folder also
/// has inputs of other tests.
pub(crate) fn is_cases(folder: &Path) -> bool {
    let known = ["model/config.json", "tensors.safetensors", "smollm2.json", "minilm.json"];
    known.iter().any(|file| folder.join(file).exists()) || folder.join("io.safetensors").exists()
}

/// The last part of a path.
pub(crate) fn name(path: &Path) -> String {
    path.file_name().expect("fixtures have names").to_string_lossy().into_owned()
}

/// The cases of an architecture: its methods, or itself where it has no folders.
pub(crate) fn cases(architecture: &Path) -> Vec<String> {
    let methods: Vec<String> =
        folders(architecture).iter().map(|path| name(path)).filter(|name| !name.starts_with("model")).collect();
    if methods.is_empty() { vec!["all".to_owned()] } else { methods }
}

/// A tensor of a fixture: its shape and its values, integers as floats.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// All tensors of a safetensors file.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let read = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            Dtype::U8 => data.iter().map(|byte| f32::from(*byte)).collect(),
            Dtype::I64 => data.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as f32).collect(),
            other => panic!("{}: {name} is {other:?}", path.display()),
        };
        (name, Tensor { shape: view.shape().to_vec(), values })
    };
    file.tensors().into_iter().map(read).collect()
}

/// The inputs of a case without their padding.
pub(crate) struct Examples {
    pub(crate) sequences: Vec<Vec<u32>>,
    /// As in the file.
    pub(crate) labels: Tensor,
    /// For each real token its row in the padded `[batch · length]` layout.
    pub(crate) rows: Vec<usize>,
    /// Length of the padded sequences.
    pub(crate) length: usize,
}

impl Examples {
    /// From `io.safetensors`.
    pub(crate) fn of(io: &BTreeMap<String, Tensor>) -> Self {
        let (ids, mask) = (&io["input_ids"], &io["attention_mask"]);
        let width = ids.shape[1];
        let mut examples =
            Self { sequences: Vec::new(), labels: io["labels"].clone(), rows: Vec::new(), length: width };
        for sequence in 0..ids.shape[0] {
            let rows: Vec<usize> =
                (sequence * width..(sequence + 1) * width).filter(|row| mask.values[*row] != 0.0).collect();
            examples.sequences.push(rows.iter().map(|row| ids.values[*row] as u32).collect());
            examples.rows.extend(rows);
        }
        examples
    }
}
