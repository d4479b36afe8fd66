//! Adapters on disk, in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, View};
use serde::Deserialize;
use serde_json::{Value, json};
use tunesmith_tensor::{Matrix, Seed, Stored};

use crate::adapter_hub;
use crate::build::{base_tensor, build_at, join};
use crate::common::{Purpose, sorted};
use crate::error::{Misshapen, TensorProblems};
use crate::method::{Place, Routine};
use crate::{BuiltAdapter, MethodConfig, MethodError, ModelDescription};

const CONFIG_FILE: &str = "adapter_config.json";
/// Names the folders of an adapter of several methods.
const PARTS_FILE: &str = "adapters.json";
pub(crate) const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const PICKLE_FILE: &str = "adapter_model.bin";

/// Writes an adapter into `folder`, which is made if it is not there. Each file is written beside and then renamed, so
/// that an earlier adapter in the folder outlives a failure. Of several methods each gets a folder of its own, and
/// `adapters.json` says which belong together.
///
/// # Errors
/// [`MethodError::Io`].
pub fn save_adapter(folder: &Path, built: &BuiltAdapter) -> Result<(), MethodError> {
    let folders = part_folders(&built.config);
    for (part, (config, name)) in built.config.each().zip(&folders).enumerate() {
        let routine = built.routines[part].as_deref();
        let keys = routine.map(Routine::file_keys).unwrap_or_default();
        let config = config.method().written_as().unwrap_or(config);
        let (text, weights) = match config.method().foreign_file() {
            Some(values) => (format!("{:#}", sorted(Value::Object(values))), adapter_hub::WEIGHTS_FILE),
            None => (format!("{:#}", config.to_value(&keys)), WEIGHTS_FILE),
        };
        save_part(&folder.join(name), &text, weights, &built.adapter.stored(part))?;
    }
    if folders.len() > 1 {
        let text = format!("{:#}", json!({ "adapters": folders }));
        replace(&folder.join(PARTS_FILE), text.as_bytes())?;
    }
    Ok(())
}

/// The folder of each method's files, within the adapter's: that itself, if there is only one method.
fn part_folders(config: &MethodConfig) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for config in config.each() {
        let name = config.peft_type().to_lowercase();
        let others = names.iter().filter(|other| other.split('-').next() == Some(&name)).count();
        names.push(if others == 0 { name } else { format!("{name}-{}", others + 1) });
    }
    if names.len() == 1 { vec![String::new()] } else { names }
}

fn save_part(folder: &Path, config: &str, weights: &str, tensors: &[Stored]) -> Result<(), MethodError> {
    fs::create_dir_all(folder).map_err(io_error("write", folder))?;
    write_tensors(&folder.join(weights), tensors)?;
    replace(&folder.join(CONFIG_FILE), config.as_bytes())
}

/// Writes a safetensors file in one step.
pub(crate) fn write_tensors(file: &Path, tensors: &[Stored]) -> Result<(), MethodError> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let named = tensors.iter().map(|tensor| (tensor.name.as_str(), Float32(tensor)));
    let bytes = safetensors::serialize(named, Some(metadata))
        .map_err(|source| io_error("write", file)(io::Error::other(source)))?;
    replace(file, &bytes)
}

/// Reads an adapter for `model` from a folder. Every tensor that the configuration asks for must be there, and no other.
///
/// # Errors
/// Any [`MethodError`] about the folder, the configuration, or tensors that do not fit it or the model.
pub fn load_adapter(folder: &Path, model: &ModelDescription<'_>) -> Result<BuiltAdapter, MethodError> {
    let folders = parts(folder)?;
    join(folders.iter().map(|folder| load_part(folder, model)), model)
}

/// The file of a part's tensors, PEFT's or AdapterHub's.
pub(crate) fn weights_file(folder: &Path) -> PathBuf {
    let foreign = folder.join(adapter_hub::WEIGHTS_FILE);
    if foreign.exists() { foreign } else { folder.join(WEIGHTS_FILE) }
}

/// The folders that an adapter's files lie in.
pub(crate) fn parts(folder: &Path) -> Result<Vec<PathBuf>, MethodError> {
    let file = folder.join(PARTS_FILE);
    if !file.exists() {
        return Ok(vec![folder.to_owned()]);
    }
    #[derive(Deserialize)]
    struct Parts {
        adapters: Vec<String>,
    }
    let text = fs::read(&file).map_err(io_error("read", &file))?;
    let parts: Parts = serde_json::from_slice(&text).map_err(|source| MethodError::Json { path: file, source })?;
    Ok(parts.adapters.iter().map(|name| folder.join(name)).collect())
}

/// The bytes of an adapter's files, a part for each method.
#[derive(Clone, Debug)]
pub struct AdapterFiles {
    /// Where they came from, for messages.
    pub folder: PathBuf,
    /// `adapter_config.json` and the safetensors file of each part.
    pub parts: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The configuration and the safetensors file of each part of the adapter in a folder, whether they exist or not.
///
/// # Errors
/// If the list of parts cannot be read.
pub fn adapter_paths(folder: &Path) -> Result<Vec<(PathBuf, PathBuf)>, MethodError> {
    Ok(parts(folder)?.into_iter().map(|part| (part.join(CONFIG_FILE), weights_file(&part))).collect())
}

/// Makes an adapter for `model` from bytes that have been read, as [`load_adapter`] does from a folder.
///
/// # Errors
/// As [`load_adapter`].
pub fn adapter_from(files: &AdapterFiles, model: &ModelDescription<'_>) -> Result<BuiltAdapter, MethodError> {
    let part = |(config, weights): &(Vec<u8>, Vec<u8>)| {
        let (config, warnings) = config_from(&files.folder.join(CONFIG_FILE), config)?;
        part_from(&files.folder, &files.folder.join(WEIGHTS_FILE), config, warnings, weights, model)
    };
    join(files.parts.iter().map(part), model)
}

fn load_part(folder: &Path, model: &ModelDescription<'_>) -> Result<BuiltAdapter, MethodError> {
    let (config, warnings) = load_part_config(folder)?;
    let foreign = config.method().foreign_file().is_some();
    let (weights, pickle) = match foreign {
        true => (adapter_hub::WEIGHTS_FILE, adapter_hub::PICKLE_FILE),
        false => (WEIGHTS_FILE, PICKLE_FILE),
    };
    let file = folder.join(weights);
    if !file.exists() {
        let pickle = folder.join(pickle);
        let is_pickled = pickle.exists();
        return Err(if is_pickled {
            MethodError::PickledWeights { file: pickle }
        } else {
            MethodError::NoWeights { folder: folder.to_owned() }
        });
    }
    let bytes = fs::read(&file).map_err(io_error("read", &file))?;
    part_from(folder, &file, config, warnings, &bytes, model)
}

/// One part of an adapter from its configuration and the bytes of its weights.
fn part_from(
    folder: &Path,
    file: &Path,
    config: MethodConfig,
    mut warnings: Vec<String>,
    bytes: &[u8],
    model: &ModelDescription<'_>,
) -> Result<BuiltAdapter, MethodError> {
    let tensors = SafeTensors::deserialize(bytes)
        .map_err(|source| MethodError::DamagedWeights { file: file.to_owned(), source })?;
    // What the tensors start from does not matter: every one of them is read.
    let place = Place { model, seed: Seed(0), purpose: Purpose::Loading, file: Some(&tensors), taken: &[] };
    let mut built = build_at(&config, &place).map_err(|source| MethodError::AnotherModel {
        folder: folder.to_owned(),
        made_for: config.common().base_model_name_or_path.clone(),
        source: Box::new(source),
    })?;
    let (values, forgotten) = find_tensors(file, &tensors, &built, model)?;
    for parameter in built.adapter.parameters_mut() {
        if let Some(view) = values.get(parameter.name()) {
            read_into(view, parameter.value_mut().data_mut());
        }
    }
    if forgotten {
        warnings.push(format!(
            "{} has no biases although they were trained (bias: lora_only): PEFT before 0.21 did not save them. The \
             biases of the base model are used",
            file.display()
        ));
    }
    warnings.append(&mut built.warnings);
    // The file's own words, so that it is written back as it was.
    Ok(BuiltAdapter { config, warnings, ..built })
}

/// Reads the configuration of the adapter in a folder, and warnings.
///
/// # Errors
/// Any [`MethodError`] about the folder or the configuration.
pub fn load_config(folder: &Path) -> Result<(MethodConfig, Vec<String>), MethodError> {
    let (mut configs, mut warnings) = (Vec::new(), Vec::new());
    for folder in parts(folder)? {
        let (config, mut of_part) = load_part_config(&folder)?;
        configs.push(config);
        warnings.append(&mut of_part);
    }
    Ok((MethodConfig::join(configs), warnings))
}

fn load_part_config(folder: &Path) -> Result<(MethodConfig, Vec<String>), MethodError> {
    let file = folder.join(CONFIG_FILE);
    let text = fs::read(&file).map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound && folder.is_dir() {
            MethodError::NoAdapter { folder: folder.to_owned(), nested: nested_adapters(folder) }
        } else {
            io_error("read", &file)(error)
        }
    })?;
    config_from(&file, &text)
}

fn config_from(file: &Path, text: &[u8]) -> Result<(MethodConfig, Vec<String>), MethodError> {
    let value = serde_json::from_slice(text).map_err(|source| MethodError::Json { path: file.to_owned(), source })?;
    let value = if adapter_hub::is_file(&value) { adapter_hub::from_file(&value) } else { value };
    MethodConfig::from_adapter_config(&value, &file.display().to_string())
}

/// Names of the folders in `folder` that hold an adapter.
fn nested_adapters(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let adapters = entries.filter(|entry| entry.path().join(CONFIG_FILE).is_file());
    let mut names: Vec<String> = adapters.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Every tensor of the adapter by name, as the file has it, in a type that can be read; and whether trained biases were
/// never saved.
fn find_tensors<'a>(
    file: &Path,
    tensors: &SafeTensors<'a>,
    built: &BuiltAdapter,
    model: &ModelDescription<'_>,
) -> Result<(BTreeMap<String, TensorView<'a>>, bool), MethodError> {
    let mut expected: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let method = built.config.method();
    let stored = built.adapter.stored(0);
    for tensor in &stored {
        expected.insert(&tensor.name, tensor.shape.clone());
    }
    let mut problems = TensorProblems {
        file: file.to_owned(),
        model_type: model.model_type.to_owned(),
        model: model.name_or_path.map(str::to_owned),
        made_for: built.config.common().base_model_name_or_path.clone(),
        missing: Vec::new(),
        unexpected: Vec::new(),
        misshapen: Vec::new(),
        unreadable: Vec::new(),
    };
    let mut found = BTreeMap::new();
    let views: BTreeMap<String, TensorView<'a>> = tensors.tensors().into_iter().collect();
    for (name, view) in &views {
        let Some(shape) = expected.remove(name.as_str()) else {
            if !is_copy_of_rows(name, view, &stored, &views) {
                problems.unexpected.extend(unexpected(name, view, model));
            }
            continue;
        };
        if view.shape() != shape {
            let rank_only = method.differs_in_rank_only(name, view.shape(), &shape);
            let shapes = (view.shape().to_vec(), shape);
            problems.misshapen.push(Misshapen { name: name.clone(), found: shapes.0, expected: shapes.1, rank_only });
        } else if is_readable(view) {
            found.insert(name.clone(), view.clone());
        } else {
            problems.unreadable.push(format!("{name} ({})", view.dtype()));
        }
    }
    let forgotten = expected.keys().any(|name| method.may_be_forgotten(name))
        && !views.keys().any(|name| method.may_be_forgotten(name));
    if forgotten {
        expected.retain(|name, _| !method.may_be_forgotten(name));
    }
    problems.missing = expected.into_keys().map(str::to_owned).collect();
    if problems.is_empty() { Ok((found, forgotten)) } else { Err(MethodError::Tensors(Box::new(problems))) }
}

/// Whether a tensor is the same trained rows of tied embeddings again: PEFT saves them under the name of each.
fn is_copy_of_rows(
    name: &str,
    view: &TensorView<'_>,
    stored: &[Stored],
    views: &BTreeMap<String, TensorView<'_>>,
) -> bool {
    let are_rows = |name: &str| name.ends_with("trainable_tokens_delta");
    let own = stored.iter().filter(|own| are_rows(&own.name)).filter_map(|own| views.get(&own.name));
    are_rows(name) && own.into_iter().any(|own| own.shape() == view.shape() && own.data() == view.data())
}

/// What is wrong with a tensor that the adapter does not ask for; `None` for what PEFT saves beside it: embeddings as
/// they are in the base, and with `bias: all` the biases of `modules_to_save` under two more names.
fn unexpected(name: &str, view: &TensorView<'_>, model: &ModelDescription<'_>) -> Option<String> {
    if name.ends_with(".bias") && [".original_module.", ".modules_to_save."].iter().any(|part| name.contains(part)) {
        return None;
    }
    let stranger = Some(name.to_owned());
    let Some((path, "weight")) = base_tensor(name) else { return stranger };
    let Some((site, _)) = model.weight_sites().find(|(_, site)| site.path == path) else { return stranger };
    let Ok(base) = model.base(site) else { return stranger };
    let frozen = base.weight.to_matrix();
    if view.shape() == [frozen.rows(), frozen.cols()] && is_same(view, &frozen) {
        return None;
    }
    Some(format!("{name} (a weight of the base model that was changed or resized; name it in modules_to_save)"))
}

/// Whether a tensor holds the values of `frozen`, as far as its type can.
fn is_same(view: &TensorView<'_>, frozen: &Matrix) -> bool {
    let rounded = |value: f32| match view.dtype() {
        Dtype::F16 => f16::from_f32(value).to_f32(),
        Dtype::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    };
    float32(view).is_some_and(|values| values.iter().zip(frozen.data()).all(|(value, base)| *value == rounded(*base)))
}

/// The values of a tensor as float32; `None` if it is of a type that adapters are not saved in.
pub(crate) fn float32(view: &TensorView<'_>) -> Option<Vec<f32>> {
    is_readable(view).then(|| {
        let mut values = vec![0.0; view.shape().iter().product()];
        read_into(view, &mut values);
        values
    })
}

/// Whether a tensor is of a type that adapters are saved in.
fn is_readable(view: &TensorView<'_>) -> bool {
    matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// The values of a readable tensor, in `values`, which has as many.
fn read_into(view: &TensorView<'_>, values: &mut [f32]) {
    fn each<const N: usize>(data: &[u8], values: &mut [f32], value: impl Fn([u8; N]) -> f32) {
        let (chunks, _) = data.as_chunks();
        assert_eq!(chunks.len(), values.len(), "a tensor's shape is its parameter's");
        values.iter_mut().zip(chunks).for_each(|(target, bytes)| *target = value(*bytes));
    }
    match view.dtype() {
        Dtype::F32 => each(view.data(), values, f32::from_le_bytes),
        Dtype::F16 => each(view.data(), values, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => each(view.data(), values, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        other => unreachable!("{other} is not a type that adapters are saved in"),
    }
}

/// A tensor on its way into a file.
struct Float32<'a>(&'a Stored);

impl View for Float32<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.0.value.data().iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.0.value.data())
    }
}

/// Puts a file with `bytes` at `path` in one step, durable before it can be seen.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), MethodError> {
    let beside = path.with_added_extension("partial");
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        sync_folder(path)
    };
    write().map_err(|source| {
        // The first error is the one to report; what is left beside is of no use.
        let _ = fs::remove_file(&beside);
        io_error("write", path)(source)
    })
}

/// Makes the renaming of `path` durable, where folders can be opened.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if cfg!(unix) && !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

pub(crate) fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> MethodError {
    move |source| MethodError::Io { action, path: path.to_owned(), source }
}
