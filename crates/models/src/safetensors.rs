//! Weights in the safetensors format: one file, or shards with an index.
//!
//! Only the header is kept; a tensor's bytes are read when it is asked for and converted in passing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::error::ModelError;
use crate::json;
use crate::number_format::NumberFormat;
use crate::weights::{StoredTensor, WeightSource};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Larger headers are refused by the format.
const LARGEST_HEADER: u64 = 100_000_000;
/// Bytes converted at a time; divisible by every width.
const CHUNK: usize = 1 << 20;

/// A model's safetensors, open for reading.
#[derive(Debug)]
pub struct Safetensors {
    folder: PathBuf,
    stored: BTreeMap<String, StoredTensor>,
    places: BTreeMap<String, Place>,
}

/// Where a tensor's bytes lie.
#[derive(Clone, Copy, Debug)]
struct Place {
    format: Dtype,
    start: u64,
    bytes: usize,
}

impl Safetensors {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists, in a model folder.
    ///
    /// # Errors
    /// If there is neither (pickled weights are named with the way to convert them), or a file is missing, truncated
    /// or damaged.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        if folder.join(SINGLE).is_file() {
            return Self::open_file(folder, &folder.join(SINGLE));
        }
        if folder.join(INDEX).is_file() {
            return Self::open_shards(folder);
        }
        let pickled = pickled_files(folder)?;
        if pickled.is_empty() {
            let reason = format!("it has neither {SINGLE} nor {INDEX}");
            return Err(ModelError::NotAModel { path: folder.to_path_buf(), reason });
        }
        Err(ModelError::Pickled { folder: folder.to_path_buf(), files: pickled })
    }

    /// The number format of most values.
    pub(crate) fn format(&self) -> NumberFormat {
        let bytes = |format: NumberFormat| -> usize {
            self.places.values().filter(|place| place.format == format.dtype()).map(|place| place.bytes).sum()
        };
        let formats = [NumberFormat::F16, NumberFormat::Bf16, NumberFormat::F32];
        formats.into_iter().max_by_key(|format| bytes(*format) / format.width()).unwrap_or(NumberFormat::F32)
    }

    fn open_file(folder: &Path, file: &Path) -> Result<Self, ModelError> {
        let mut checkpoint = Self { folder: folder.to_path_buf(), stored: BTreeMap::new(), places: BTreeMap::new() };
        checkpoint.add(file)?;
        Ok(checkpoint)
    }

    fn open_shards(folder: &Path) -> Result<Self, ModelError> {
        let index = folder.join(INDEX);
        let damaged = |reason: String| ModelError::Damaged { path: index.clone(), reason };
        let contents = json::read_object(&index)?;
        let map = contents.get("weight_map").and_then(|map| map.as_object());
        let map = map.ok_or_else(|| damaged("it has no object weight_map".to_owned()))?;
        let mut shards = BTreeSet::new();
        for (tensor, shard) in map {
            let shard = shard.as_str().ok_or_else(|| damaged(format!("weight_map[{tensor:?}] is not a file name")))?;
            if Path::new(shard).file_name().is_none_or(|name| name != shard) {
                return Err(damaged(format!("weight_map[{tensor:?}] is {shard:?}, not the name of a file beside it")));
            }
            shards.insert(shard);
        }
        let missing: Vec<&str> = shards.iter().copied().filter(|shard| !folder.join(shard).is_file()).collect();
        if !missing.is_empty() {
            return Err(damaged(format!("shards are missing: {}; fetch the model again", missing.join(", "))));
        }
        let mut checkpoint = Self { folder: folder.to_path_buf(), stored: BTreeMap::new(), places: BTreeMap::new() };
        for shard in shards {
            checkpoint.add(&folder.join(shard))?;
        }
        let absent: Vec<&str> =
            map.keys().map(String::as_str).filter(|name| !checkpoint.stored.contains_key(*name)).collect();
        if !absent.is_empty() {
            return Err(damaged(format!("the shards lack tensors that it lists: {}", absent.join(", "))));
        }
        Ok(checkpoint)
    }

    /// Reads a file's header and adds its tensors.
    fn add(&mut self, file: &Path) -> Result<(), ModelError> {
        let damaged = |reason: String| ModelError::Damaged { path: file.to_path_buf(), reason };
        let unreadable = |source| ModelError::Read { path: file.to_path_buf(), source };
        let mut reader = File::open(file).map_err(unreadable)?;
        let length = reader.metadata().map_err(unreadable)?.len();
        let mut prefix = [0; 8];
        if length < 8 {
            return Err(damaged(format!("not a safetensors file: it has only {length} bytes; fetch it again")));
        }
        reader.read_exact(&mut prefix).map_err(unreadable)?;
        let header_length = u64::from_le_bytes(prefix);
        if header_length > LARGEST_HEADER {
            return Err(damaged(
                "not a safetensors file: its header would be larger than the format allows (is it a pickled file or \
                 an error page under this name?)"
                    .to_owned(),
            ));
        }
        if 8 + header_length > length {
            return Err(damaged(format!(
                "truncated: its header says {header_length} bytes, the file has {length}; fetch it again"
            )));
        }
        let mut header = vec![0; header_length as usize];
        reader.read_exact(&mut header).map_err(unreadable)?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|error| damaged(format!("not a safetensors file: its header is damaged ({error})")))?;
        let expected = 8 + header_length + header.data_len() as u64;
        if length < expected {
            return Err(damaged(format!("truncated: expected {expected} bytes, found {length}; fetch it again")));
        }
        if length > expected {
            return Err(damaged(format!("{} bytes too long for its header; fetch it again", length - expected)));
        }
        for name in header.offset_keys() {
            let Some(info) = header.info(&name) else { continue };
            let readable = NumberFormat::of(info.dtype).is_some();
            let (start, end) = info.data_offsets;
            let place = Place { format: info.dtype, start: 8 + header_length + start as u64, bytes: end - start };
            let tensor = StoredTensor {
                shape: info.shape.clone(),
                file: file.to_path_buf(),
                unsupported: (!readable).then(|| info.dtype.to_string()),
            };
            self.places.insert(name.clone(), place);
            if let Some(other) = self.stored.insert(name.clone(), tensor) {
                return Err(damaged(format!("tensor {name} is also in {}", other.file.display())));
            }
        }
        Ok(())
    }
}

impl Safetensors {
    /// The type and the bytes of a tensor.
    ///
    /// # Errors
    /// If there is none of this name, or the file ends early or cannot be read.
    pub(crate) fn bytes(&self, name: &str) -> Result<(Dtype, Vec<u8>), ModelError> {
        let (Some(place), Some(tensor)) = (self.places.get(name), self.stored.get(name)) else {
            let reason = format!("it has no tensor {name}");
            return Err(ModelError::Damaged { path: self.folder.clone(), reason });
        };
        let unreadable = |source| ModelError::Read { path: tensor.file.clone(), source };
        let mut file = File::open(&tensor.file).map_err(unreadable)?;
        file.seek(SeekFrom::Start(place.start)).map_err(unreadable)?;
        let mut bytes = vec![0; place.bytes];
        file.read_exact(&mut bytes).map_err(unreadable)?;
        Ok((place.format, bytes))
    }
}

impl WeightSource for Safetensors {
    fn path(&self) -> &Path {
        &self.folder
    }

    fn stored(&self) -> &BTreeMap<String, StoredTensor> {
        &self.stored
    }

    fn supported_formats(&self) -> &'static str {
        "F32, F16, BF16"
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>, ModelError> {
        let (Some(place), Some(tensor)) = (self.places.get(name), self.stored.get(name)) else {
            let reason = format!("it has no tensor {name}");
            return Err(ModelError::Damaged { path: self.folder.clone(), reason });
        };
        let unreadable = |source| ModelError::Read { path: tensor.file.clone(), source };
        let format = NumberFormat::of(place.format).ok_or_else(|| ModelError::Damaged {
            path: tensor.file.clone(),
            reason: format!("tensor {name} is stored as {}", place.format),
        })?;
        let mut file = File::open(&tensor.file).map_err(unreadable)?;
        file.seek(SeekFrom::Start(place.start)).map_err(unreadable)?;
        let mut values = Vec::with_capacity(tensor.shape.iter().product());
        let mut chunk = vec![0; CHUNK.min(place.bytes)];
        let mut left = place.bytes;
        while left > 0 {
            let part = &mut chunk[..CHUNK.min(left)];
            file.read_exact(part).map_err(unreadable)?;
            format.decode(part, &mut values);
            left -= part.len();
        }
        Ok(values)
    }
}

/// Names of pickled weight files in a folder, sorted.
fn pickled_files(folder: &Path) -> Result<Vec<String>, ModelError> {
    let unreadable = |source| ModelError::Read { path: folder.to_path_buf(), source };
    let mut names = Vec::new();
    for entry in folder.read_dir().map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
        let pickled = [".bin", ".pt", ".pth", ".ckpt"].iter().any(|ending| name.ends_with(ending));
        if pickled && name != "training_args.bin" {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fixtures::copied;

    fn refusal(folder: &Path) -> String {
        Safetensors::open(folder).unwrap_err().to_string()
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error() {
        let folder = copied("llama");
        let file = folder.path().join(SINGLE);
        let whole = fs::read(&file).unwrap();
        for length in (0..whole.len()).step_by(61).chain([whole.len() - 1]) {
            fs::write(&file, &whole[..length]).unwrap();
            let error = Safetensors::open(folder.path()).unwrap_err();
            assert!(matches!(&error, ModelError::Damaged { path, .. } if *path == file), "{length}: {error}");
        }
        fs::write(&file, &whole[..whole.len() - 1]).unwrap();
        let expected = format!("truncated: expected {} bytes, found {}", whole.len(), whole.len() - 1);
        assert!(refusal(folder.path()).contains(&expected), "{}", refusal(folder.path()));
        fs::write(&file, [&whole[..], &[0; 3]].concat()).unwrap();
        assert!(refusal(folder.path()).contains("3 bytes too long"));
    }

    #[test]
    fn garbage_is_an_error() {
        let folder = copied("llama");
        let file = folder.path().join(SINGLE);
        fs::write(&file, "<html>not found</html>").unwrap();
        assert!(refusal(folder.path()).contains("not a safetensors file"));
        let mut bytes = 30u64.to_le_bytes().to_vec();
        bytes.extend([b'{'; 30]);
        fs::write(&file, bytes).unwrap();
        assert!(refusal(folder.path()).contains("its header is damaged"));
        let header = br#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,4]}}"#;
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
        fs::write(&file, bytes).unwrap();
        assert!(refusal(folder.path()).contains("its header is damaged"));
    }

    #[test]
    fn pickled_weights_are_refused_with_the_way_to_convert_them() {
        let folder = copied("llama");
        fs::remove_file(folder.path().join(SINGLE)).unwrap();
        let text = refusal(folder.path());
        assert!(text.contains("neither model.safetensors nor"), "{text}");
        fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
        fs::write(folder.path().join("training_args.bin"), "").unwrap();
        let text = refusal(folder.path());
        assert!(text.contains("(pytorch_model.bin)") && text.contains("safe_serialization=True"), "{text}");
    }

    #[test]
    fn an_index_that_does_not_fit_its_shards_is_an_error() {
        let folder = copied("llama");
        fs::rename(folder.path().join(SINGLE), folder.path().join("shard.safetensors")).unwrap();
        let with_index = |index: &str| {
            fs::write(folder.path().join(INDEX), index).unwrap();
            refusal(folder.path())
        };
        assert!(with_index("{}").contains("no object weight_map"));
        assert!(with_index("[1]").contains("is not a JSON object"));
        assert!(with_index(r#"{"weight_map": {"a": 1}}"#).contains("not a file name"));
        assert!(with_index(r#"{"weight_map": {"a": "../shard.safetensors"}}"#).contains("not the name of a file"));
        assert!(with_index(r#"{"weight_map": {"a": "shard.safetensors"}}"#).contains("lack tensors that it lists: a"));
    }
}
