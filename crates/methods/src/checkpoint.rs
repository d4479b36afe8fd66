//! What a run must keep beside the adapter's files to go on: trainable tensors that the files hold in another form or not
//! at all, and the methods' state.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use safetensors::SafeTensors;
use tunesmith_tensor::{Matrix, Seed, Stored};

use crate::files::{float32, io_error, parts, save_adapter, weights_file, write_tensors};
use crate::method::Routine;
use crate::{BuiltAdapter, MethodConfig, MethodError, ModelDescription, build};

/// Written only where there is something to keep.
const TRAINING_FILE: &str = "training.safetensors";
/// Before the names of the state of a method, which its place in the list follows.
const STATE: &str = "state";

/// Writes the adapter's files, and `training.safetensors` where they do not hold all that training needs.
///
/// # Errors
/// [`MethodError::Io`].
pub fn save_checkpoint(folder: &Path, built: &BuiltAdapter) -> Result<(), MethodError> {
    save_adapter(folder, built)?;
    let in_files: Vec<Stored> = (0..built.routines.len()).flat_map(|part| built.adapter.stored(part)).collect();
    let trained = built.adapter.parameters().into_iter().map(Stored::from);
    let mut kept: Vec<Stored> = trained.filter(|tensor| !in_files.contains(tensor)).collect();
    for (place, routine) in built.routines.iter().enumerate() {
        let state = routine.as_deref().map(Routine::state).unwrap_or_default();
        kept.extend(state.into_iter().map(|tensor| Stored { name: state_name(place, &tensor.name), ..tensor }));
    }
    if kept.is_empty() { Ok(()) } else { write_tensors(&folder.join(TRAINING_FILE), &kept) }
}

/// The adapter that `config` and `seed` gave when the run began, with the values of a checkpoint.
///
/// # Errors
/// Any [`MethodError`] about the configuration or the files; [`MethodError::Checkpoint`] with every tensor that is
/// missing.
pub fn load_checkpoint(
    folder: &Path,
    config: &MethodConfig,
    model: &ModelDescription<'_>,
    seed: Seed,
) -> Result<BuiltAdapter, MethodError> {
    let mut built = build(config, model, seed)?;
    let mut values: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for part in parts(folder)? {
        read(&weights_file(&part), &mut values)?;
    }
    let training = folder.join(TRAINING_FILE);
    if training.exists() {
        read(&training, &mut values)?;
    }
    let mut problems = Vec::new();
    let mut take = |name: &str, shape: &[usize]| match values.remove(name) {
        Some((found, values)) if found == shape => Some(values),
        Some((found, _)) => {
            problems.push(format!("{name} is {found:?}, {shape:?} expected"));
            None
        }
        None => {
            problems.push(format!("{name} is missing"));
            None
        }
    };
    for parameter in built.adapter.parameters_mut() {
        if let Some(values) = take(parameter.name(), &parameter.shape()) {
            parameter.value_mut().data_mut().copy_from_slice(&values);
        }
    }
    for (place, routine) in built.routines.iter_mut().enumerate() {
        let Some(routine) = routine else { continue };
        let mut state = routine.state();
        for tensor in &mut state {
            if let Some(values) = take(&state_name(place, &tensor.name), &tensor.shape) {
                tensor.value = Arc::new(Matrix::from_vec(tensor.value.rows(), tensor.value.cols(), values));
            }
        }
        routine.restore(state);
    }
    if problems.is_empty() { Ok(built) } else { Err(MethodError::Checkpoint { folder: folder.to_owned(), problems }) }
}

fn state_name(place: usize, name: &str) -> String {
    format!("{STATE}.{place}.{name}")
}

/// Adds the tensors of a file to `values`; one that is there already is replaced.
fn read(file: &Path, values: &mut BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> Result<(), MethodError> {
    let bytes = fs::read(file).map_err(io_error("read", file))?;
    let damaged = |source| MethodError::DamagedWeights { file: file.to_owned(), source };
    let tensors = SafeTensors::deserialize(&bytes).map_err(damaged)?;
    for (name, view) in tensors.tensors() {
        values.extend(float32(&view).map(|read| (name, (view.shape().to_vec(), read))));
    }
    Ok(())
}
