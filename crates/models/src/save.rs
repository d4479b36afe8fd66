//! Writes a model as a Hugging Face folder, whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;
use tunesmith_tensor::{FrozenWeight, Matrix};

use crate::error::{ModelError, TensorProblem};
use crate::generation_defaults::GenerationDefaults;
use crate::json;
use crate::model::Model;
use crate::number_format::NumberFormat;
use crate::tokenizer::TextTokenizer;

const WEIGHTS: &str = "model.safetensors";
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Writes `model` to `folder`, with the tensors in `replaced` (by Hugging Face name; a vector is `[1, n]`) in place of
/// its own. A tied model whose token embedding and output embedding no longer agree is written untied.
///
/// Everything is written to a folder beside the final one, forced to the disk and renamed; a failure leaves nothing.
///
/// # Errors
/// [`ModelError::Occupied`] if `folder` is not new or empty; [`ModelError::Tensors`] with every replaced tensor that the
/// model does not have or that has another shape; [`ModelError::Write`].
pub fn save_folder(
    folder: &Path,
    model: &dyn Model,
    tokenizer: Option<&TextTokenizer>,
    generation: &GenerationDefaults,
    replaced: &BTreeMap<String, Matrix>,
    format: NumberFormat,
) -> Result<(), ModelError> {
    if !is_free(folder) {
        return Err(ModelError::Occupied { path: folder.to_path_buf() });
    }
    let (tensors, tied) = tensors_to_save(folder, model, replaced)?;
    let mut config = model.config_json().clone();
    config.insert("tie_word_embeddings".to_owned(), Value::Bool(tied));
    let dtype = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    config.insert(dtype.to_owned(), format.torch_name().into());
    let mut files = vec![("config.json", json::to_bytes(&config))];
    files.extend(generation.file());
    if let Some(tokenizer) = tokenizer {
        files.extend(tokenizer.files()?);
    }

    let failed = |source| ModelError::Write { path: folder.to_path_buf(), source };
    let unfinished = Unfinished::beside(folder).map_err(failed)?;
    for (name, bytes) in files {
        write_file(&unfinished.path.join(name), |out| out.write_all(&bytes)).map_err(failed)?;
    }
    write_file(&unfinished.path.join(WEIGHTS), |out| write_safetensors(out, &tensors, format)).map_err(failed)?;
    unfinished.finish(folder).map_err(failed)
}

/// A tensor of the new checkpoint.
struct Saved<'a> {
    name: String,
    shape: Vec<usize>,
    value: SavedValue<'a>,
}

enum SavedValue<'a> {
    Own(FrozenWeight),
    Replaced(&'a Matrix),
}

/// All tensors of the new checkpoint, and whether its embeddings are tied.
fn tensors_to_save<'a>(
    folder: &Path,
    model: &dyn Model,
    replaced: &'a BTreeMap<String, Matrix>,
) -> Result<(Vec<Saved<'a>>, bool), ModelError> {
    let mut own = model.tensors();
    let was_tied = model.info().tied;
    let tied = was_tied && replaced.get(EMBEDDING) == replaced.get(HEAD);
    if was_tied && (!tied || replaced.contains_key(HEAD)) {
        let head = own.iter().find(|(name, ..)| name == EMBEDDING).cloned();
        own.extend(head.map(|(_, weight, shape)| (HEAD.to_owned(), weight, shape)));
    }
    let mut problems = Vec::new();
    for (name, matrix) in replaced {
        let found = vec![matrix.rows(), matrix.cols()];
        match own.iter().find(|(own, ..)| own == name) {
            None => {
                problems.push(TensorProblem::Unexpected { name: name.clone(), file: folder.to_path_buf(), found });
            }
            Some((_, weight, shape)) if weight.shape() != matrix.shape() => problems.push(TensorProblem::Shape {
                name: name.clone(),
                file: folder.to_path_buf(),
                expected: shape.clone(),
                found,
            }),
            Some(_) => {}
        }
    }
    if !problems.is_empty() {
        return Err(ModelError::Tensors { path: folder.to_path_buf(), problems });
    }
    own.retain(|(name, ..)| !(tied && name == HEAD));
    let saved = own.into_iter().map(|(name, weight, shape)| {
        let value = replaced.get(&name).map_or(SavedValue::Own(weight), SavedValue::Replaced);
        Saved { name, shape, value }
    });
    Ok((saved.collect(), tied))
}

/// Writes tensors in the safetensors format, one converted row at a time.
fn write_safetensors(out: &mut dyn Write, tensors: &[Saved<'_>], format: NumberFormat) -> io::Result<()> {
    let mut ordered: Vec<&Saved<'_>> = tensors.iter().collect();
    ordered.sort_by(|left, right| left.name.cmp(&right.name));
    let mut offset = 0;
    let infos = ordered.iter().map(|tensor| {
        let start = offset;
        offset += tensor.shape.iter().product::<usize>() * format.width();
        let info = TensorInfo { dtype: format.dtype(), shape: tensor.shape.clone(), data_offsets: (start, offset) };
        (tensor.name.clone(), info)
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(metadata), infos.collect()).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&header)?;
    // Readers map the data, so it begins at a multiple of eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    let mut bytes = Vec::new();
    let mut row = Vec::new();
    for tensor in ordered {
        match &tensor.value {
            SavedValue::Replaced(matrix) => write_row(out, matrix.data(), format, &mut bytes)?,
            SavedValue::Own(weight) => {
                row.resize(weight.cols(), 0.0);
                for index in 0..weight.rows() {
                    weight.read_row(index, &mut row);
                    write_row(out, &row, format, &mut bytes)?;
                }
            }
        }
    }
    Ok(())
}

fn write_row(out: &mut dyn Write, values: &[f32], format: NumberFormat, bytes: &mut Vec<u8>) -> io::Result<()> {
    const CHUNK: usize = 1 << 16;
    for values in values.chunks(CHUNK) {
        bytes.clear();
        format.encode(values, bytes);
        out.write_all(bytes)?;
    }
    Ok(())
}

/// Writes a file and forces it to the disk.
fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    write(&mut out)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// Whether a folder can be made here: there is nothing, or an empty folder.
fn is_free(folder: &Path) -> bool {
    match fs::symlink_metadata(folder) {
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(_) => folder.read_dir().is_ok_and(|mut entries| entries.next().is_none()),
    }
}

/// A folder being written, removed when dropped unless it was finished.
struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    fn beside(folder: &Path) -> io::Result<Self> {
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
        fs::create_dir_all(parent.unwrap_or(Path::new(".")))?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let path = folder.with_file_name(format!(".{name}.unfinished-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self { path })
    }

    /// Gives the folder its name.
    fn finish(self, folder: &Path) -> io::Result<()> {
        sync_folder(&self.path)?;
        if folder.exists() {
            fs::remove_dir(folder)?;
        }
        fs::rename(&self.path, folder)?;
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync_folder(parent.unwrap_or(Path::new(".")))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Other systems cannot open folders as files and force renames to the disk themselves.
#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}
