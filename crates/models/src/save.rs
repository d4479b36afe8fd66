//! Writes a model as a Hugging Face folder, whole or not at all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;
use tunesmith_tensor::{FourBitOptions, FourBitWeight, FrozenWeight, Matrix, Role};

use crate::atomic::write_new_folder;
use crate::error::{ModelError, TensorProblem};
use crate::generation_defaults::GenerationDefaults;
use crate::json;
use crate::model::Model;
use crate::number_format::NumberFormat;
use crate::quantization::is_inner_linear;
use crate::save_four_bit;
use crate::tokenizer::TextTokenizer;
use crate::weights::transposed;

const WEIGHTS: &str = "model.safetensors";

/// Writes `model` to `folder`, with the tensors in `replaced` (by Hugging Face name; a vector is `[1, n]`) in place of
/// its own. A tied model whose token embedding and output embedding no longer agree is written untied.
///
/// A failure leaves nothing.
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
    save(folder, model, tokenizer, generation, replaced, (format, None)).map(|_| ())
}

/// The same with the model's linears, but for its output and heads, in bitsandbytes' 4-bit layout. Weights that the model
/// keeps in 4 bits and that are not replaced are written as they are. Returns how far each other one is from what it was.
///
/// # Errors
/// As [`save_folder`], and [`ModelError::Damaged`] naming a weight whose values are not finite.
pub fn save_four_bit_folder(
    folder: &Path,
    model: &dyn Model,
    tokenizer: Option<&TextTokenizer>,
    generation: &GenerationDefaults,
    replaced: &BTreeMap<String, Matrix>,
    (format, options): (NumberFormat, FourBitOptions),
) -> Result<Vec<QuantizationError>, ModelError> {
    save(folder, model, tokenizer, generation, replaced, (format, Some(options)))
}

/// How far a weight is from what it was before it was quantised.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizationError {
    /// The weight's Hugging Face name.
    pub name: String,
    /// `‖Q(W) − W‖ / ‖W‖`.
    pub relative: f64,
    /// The largest difference of a value.
    pub largest: f32,
}

fn save(
    folder: &Path,
    model: &dyn Model,
    tokenizer: Option<&TextTokenizer>,
    generation: &GenerationDefaults,
    replaced: &BTreeMap<String, Matrix>,
    (format, four_bit): (NumberFormat, Option<FourBitOptions>),
) -> Result<Vec<QuantizationError>, ModelError> {
    if !is_free(folder) {
        return Err(ModelError::Occupied { path: folder.to_path_buf() });
    }
    let (mut tensors, tied) = tensors_to_save(folder, model, replaced)?;
    let errors = four_bit.map_or(Ok(Vec::new()), |options| quantize(folder, &mut tensors, options))?;
    let mut config = model.config_json().clone();
    if weight_name(model, Role::OutputEmbedding).is_some() {
        config.insert("tie_word_embeddings".to_owned(), Value::Bool(tied));
    }
    let dtype = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    config.insert(dtype.to_owned(), format.torch_name().into());
    if let Some(options) = four_bit {
        config.insert("quantization_config".to_owned(), save_four_bit::config(options, format).into());
    }
    let mut files = vec![("config.json", json::to_bytes(&config))];
    files.extend(generation.file());
    if let Some(tokenizer) = tokenizer {
        files.extend(tokenizer.files()?);
    }

    let failed = |source| ModelError::Write { path: folder.to_path_buf(), source };
    write_new_folder(folder, |unfinished| {
        for (name, bytes) in files {
            fs::write(unfinished.join(name), bytes).map_err(failed)?;
        }
        write_weights(&unfinished.join(WEIGHTS), &tensors, format, four_bit.is_some()).map_err(failed)
    })?;
    Ok(errors)
}

/// Turns linears within the network into 4-bit weights.
fn quantize(
    folder: &Path,
    tensors: &mut [Saved<'_>],
    options: FourBitOptions,
) -> Result<Vec<QuantizationError>, ModelError> {
    let mut errors = Vec::new();
    for tensor in tensors {
        let module = tensor.name.strip_suffix(".weight").unwrap_or_default();
        let is_linear = tensor.shape.len() == 2 && !tensor.transposed && is_inner_linear(module);
        let as_it_is = matches!(&tensor.value, SavedValue::Own(weight) if weight.as_four_bit().is_some());
        if !is_linear || as_it_is {
            continue;
        }
        let matrix = match &tensor.value {
            SavedValue::Own(weight) => weight.to_matrix(),
            SavedValue::Replaced(matrix) => (*matrix).clone(),
        };
        let weight = FourBitWeight::quantize(matrix.data(), matrix.shape(), options).map_err(|error| {
            let reason = format!("tensor {} cannot be quantised: {error}", tensor.name);
            ModelError::Damaged { path: folder.to_path_buf(), reason }
        })?;
        let weight = FrozenWeight::from(weight);
        let quantized = weight.to_matrix();
        let differences = quantized.data().iter().zip(matrix.data()).map(|(new, old)| new - old);
        let (mut sum, mut largest) = (0.0, 0.0f32);
        for difference in differences {
            sum += f64::from(difference).powi(2);
            largest = largest.max(difference.abs());
        }
        let length = matrix.data().iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        let relative = if length > 0.0 { sum.sqrt() / length } else { 0.0 };
        errors.push(QuantizationError { name: tensor.name.clone(), relative, largest });
        tensor.value = SavedValue::Own(weight);
    }
    Ok(errors)
}

/// A tensor of the new checkpoint.
struct Saved<'a> {
    name: String,
    shape: Vec<usize>,
    value: SavedValue<'a>,
    /// Whether the file keeps `[in, out]`.
    transposed: bool,
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
    let embedding = weight_name(model, Role::TokenEmbedding);
    let head = weight_name(model, Role::OutputEmbedding);
    let replacement = |name: &Option<String>| name.as_ref().and_then(|name| replaced.get(name));
    let tied = was_tied && replacement(&embedding) == replacement(&head);
    if let (true, Some(head)) = (was_tied && (!tied || replacement(&head).is_some()), &head) {
        let embedding = own.iter().find(|(name, ..)| Some(name) == embedding.as_ref()).cloned();
        own.extend(embedding.map(|(_, weight, shape)| (head.clone(), weight, shape)));
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
    own.retain(|(name, ..)| !(tied && Some(name) == head.as_ref()));
    let sites = model.sites().iter().filter(|site| site.stored_transposed);
    let transposed: BTreeSet<String> = sites.map(|site| format!("{}.weight", site.path)).collect();
    let saved = |(name, weight, shape): (String, FrozenWeight, Vec<usize>)| {
        let value = replaced.get(&name).map_or(SavedValue::Own(weight), SavedValue::Replaced);
        let transposed = transposed.contains(&name);
        Saved { name, shape, value, transposed }
    };
    let untied = own.iter().find(|(name, ..)| was_tied && !tied && Some(name) == embedding.as_ref()).cloned();
    let copies = untied.into_iter().flat_map(|embedding| {
        let named = |name| Saved { name, ..saved(embedding.clone()) };
        model.untied_copies().into_iter().map(named).collect::<Vec<_>>()
    });
    let copies: Vec<_> = copies.collect();
    Ok((own.into_iter().map(saved).chain(copies).collect(), tied))
}

/// The name of the weight with a role.
fn weight_name(model: &dyn Model, role: Role) -> Option<String> {
    model.sites().iter().find(|site| site.role == role).map(|site| format!("{}.weight", site.path))
}

/// A tensor of the file.
struct Entry<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    length: usize,
    content: Content<'a>,
}

enum Content<'a> {
    /// Values to convert.
    Values(&'a Saved<'a>),
    /// Bytes as they are.
    Bytes(Vec<u8>),
}

/// The tensors of the file, by name. With `four_bit` weights in 4 bits stay what they are.
fn entries<'a>(tensors: &'a [Saved<'a>], format: NumberFormat, four_bit: bool) -> Vec<Entry<'a>> {
    let mut entries = Vec::new();
    for tensor in tensors {
        let codes = match &tensor.value {
            SavedValue::Own(weight) if four_bit => weight.as_four_bit(),
            _ => None,
        };
        if let Some(weight) = codes {
            entries.extend(save_four_bit::parts(weight, format).into_iter().map(|part| Entry {
                name: format!("{}{}", tensor.name, part.suffix),
                dtype: part.dtype,
                shape: part.shape,
                length: part.bytes.len(),
                content: Content::Bytes(part.bytes),
            }));
            continue;
        }
        let (shape, dtype) = (tensor.shape.clone(), format.dtype());
        let length = shape.iter().product::<usize>() * format.width();
        entries.push(Entry { name: tensor.name.clone(), dtype, shape, length, content: Content::Values(tensor) });
    }
    // Wide types first, so that every tensor begins where its type may.
    entries.sort_by(|left, right| right.dtype.cmp(&left.dtype).then_with(|| left.name.cmp(&right.name)));
    entries
}

/// Writes tensors in the safetensors format, one converted row at a time.
fn write_weights(file: &Path, tensors: &[Saved<'_>], format: NumberFormat, four_bit: bool) -> io::Result<()> {
    let out = &mut BufWriter::new(File::create(file)?);
    let ordered = entries(tensors, format, four_bit);
    let mut offset = 0;
    let infos = ordered.iter().map(|entry| {
        let start = offset;
        offset += entry.length;
        let info = TensorInfo { dtype: entry.dtype, shape: entry.shape.clone(), data_offsets: (start, offset) };
        (entry.name.clone(), info)
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
    for entry in ordered {
        let tensor = match entry.content {
            Content::Values(tensor) => tensor,
            Content::Bytes(bytes) => {
                out.write_all(&bytes)?;
                continue;
            }
        };
        match &tensor.value {
            SavedValue::Replaced(matrix) if tensor.transposed => {
                write_row(out, transposed(matrix).data(), format, &mut bytes)?;
            }
            SavedValue::Own(weight) if tensor.transposed => {
                write_row(out, transposed(&weight.to_matrix()).data(), format, &mut bytes)?;
            }
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
    out.flush()
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

/// Whether nothing stands here, or an empty folder.
fn is_free(folder: &Path) -> bool {
    let nothing = fs::symlink_metadata(folder).is_err();
    nothing || folder.read_dir().is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;
    use tunesmith_tensor::SiteId;

    use super::*;

    const EMBEDDING: &str = "model.embed_tokens.weight";
    const HEAD: &str = "lm_head.weight";
    use crate::fixtures::{self, GgufFile};
    use crate::safetensors::Safetensors;
    use crate::weights::WeightSource;
    use crate::{LoadOptions, load, load_model};

    fn save(model: &dyn Model, folder: &Path, replaced: &BTreeMap<String, Matrix>) -> Result<(), ModelError> {
        let generation = GenerationDefaults::default();
        save_folder(folder, model, None, &generation, replaced, NumberFormat::F32)
    }

    #[test]
    fn four_bit_weights_are_written_as_bitsandbytes_does_and_read_again() {
        let theirs = load_model(&fixtures::path("qlora/model-4bit")).unwrap();
        let floats = load_model(&fixtures::path("qlora/model")).unwrap();
        let options = FourBitOptions { quant_type: tunesmith_tensor::FourBitType::Nf4, double_quant: true };
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, model: &dyn Model, replaced: &BTreeMap<String, Matrix>| {
            let path = folder.path().join(name);
            let with = (NumberFormat::F32, options);
            let errors = save_four_bit_folder(&path, model, None, &GenerationDefaults::default(), replaced, with);
            (path, errors.unwrap())
        };
        let (kept, errors) = write("kept", &*theirs.model, &BTreeMap::new());
        assert_eq!(errors, []);
        let (quantized, errors) = write("quantized", &*floats.model, &BTreeMap::new());
        assert_eq!(errors.len(), 14);
        assert!(errors.iter().all(|error| error.relative > 0.01 && error.relative < 0.12), "{errors:?}");
        let original = fs::read(fixtures::path("qlora/model-4bit/model.safetensors")).unwrap();
        let original = ::safetensors::SafeTensors::deserialize(&original).unwrap();
        for path in [kept, quantized] {
            let bytes = fs::read(path.join(WEIGHTS)).unwrap();
            let found = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(found.len(), original.len());
            for (name, expected) in original.tensors() {
                let found = found.tensor(&name).unwrap();
                if name.contains(".quant_state.") {
                    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
                    assert_eq!(json(found.data()), json(expected.data()), "{name}");
                } else {
                    assert_eq!((found.dtype(), found.shape()), (expected.dtype(), expected.shape()), "{name}");
                    assert_eq!(found.data(), expected.data(), "{name}");
                }
            }
            assert_same_tensors(&*load_model(&path).unwrap().model, &*theirs.model);
        }
        let name = "model.layers.0.mlp.up_proj.weight";
        let changed = BTreeMap::from([(name.to_owned(), {
            let (_, weight, _) = floats.model.tensors().into_iter().find(|(known, ..)| known == name).unwrap();
            weight.to_matrix()
        })]);
        let (_, errors) = write("changed", &*theirs.model, &changed);
        assert_eq!(errors.iter().map(|error| error.name.as_str()).collect::<Vec<_>>(), [name]);
    }

    fn assert_same_tensors(left: &dyn Model, right: &dyn Model) {
        let (left, right) = (left.tensors(), right.tensors());
        assert_eq!(left.len(), right.len());
        for (left, right) in left.iter().zip(&right) {
            assert_eq!((&left.0, &left.2, left.1.to_matrix()), (&right.0, &right.2, right.1.to_matrix()));
        }
    }

    fn entries(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_saved_model_is_the_model_again() {
        for name in ["llama", "mistral", "qwen2"] {
            let folder = tempfile::tempdir().unwrap();
            let original = load_model(&fixtures::path(name).join("model")).unwrap();
            let out = folder.path().join("new").join("out");
            let none = BTreeMap::new();
            save_folder(&out, &*original.model, None, &original.generation, &none, NumberFormat::F32).unwrap();
            let saved = load_model(&out).unwrap();
            assert_same_tensors(&*original.model, &*saved.model);
            assert_eq!((saved.generation, saved.format), (original.generation, NumberFormat::F32));
            assert_eq!(saved.model.config_json(), original.model.config_json(), "{name}");
            assert_eq!(entries(&out), ["config.json", "generation_config.json", WEIGHTS]);
            assert_eq!(entries(&folder.path().join("new")), ["out"]);
        }
    }

    #[test]
    fn a_gguf_model_becomes_a_folder_with_its_tokenizer() {
        let mut file = GgufFile::llama().with_tokenizer("llama-bpe");
        file.set("tokenizer.ggml.eot_token_id", candle_core::quantized::gguf_file::Value::U32(2));
        let file = file.written();
        let original = load(&file.path, &LoadOptions::default()).unwrap();
        assert_eq!(original.generation.eos_token_ids, [1, 2]);
        let out = tempfile::tempdir().unwrap();
        let (model, tokenizer) = (&*original.model, Some(&original.tokenizer));
        save_folder(out.path(), model, tokenizer, &original.generation, &BTreeMap::new(), original.format).unwrap();
        let saved = load(out.path(), &LoadOptions::default()).unwrap();
        assert_same_tensors(&*original.model, &*saved.model);
        assert_eq!(saved.generation, original.generation);
        let encode = |tokenizer: &TextTokenizer| tokenizer.encode("!!two words", true).unwrap();
        assert_eq!(encode(&saved.tokenizer), encode(&original.tokenizer));
    }

    #[test]
    fn replaced_tensors_take_the_place_of_the_models_own() {
        let folder = tempfile::tempdir().unwrap();
        let model = fixtures::llama("qwen2");
        let name = "model.layers.1.self_attn.q_proj.bias";
        let bias = Matrix::from_vec(1, 32, (0..32).map(|value| value as f32).collect());
        let out = folder.path().join("out");
        save(&model, &out, &BTreeMap::from([(name.to_owned(), bias.clone())])).unwrap();
        let mut source = Safetensors::open(&out).unwrap();
        assert_eq!(source.stored()[name].shape, [32]);
        assert_eq!(source.read(name).unwrap(), bias.to_vec());
        for (other, weight, _) in model.tensors().into_iter().filter(|(other, ..)| other != name) {
            assert_eq!(source.read(&other).unwrap(), weight.to_matrix().to_vec(), "{other}");
        }
    }

    #[test]
    fn tensors_that_do_not_fit_are_reported_at_once_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let replaced = BTreeMap::from([
            ("model.layers.0.mlp.up_proj.bias".to_owned(), Matrix::zeros(1, 48)),
            ("model.layers.0.mlp.up_proj.weight".to_owned(), Matrix::zeros(32, 48)),
            ("model.norm.weight".to_owned(), Matrix::zeros(1, 32)),
        ]);
        let error = save(&fixtures::llama("llama"), &folder.path().join("out"), &replaced).unwrap_err();
        let ModelError::Tensors { problems, .. } = error else { panic!("{error}") };
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(entries(folder.path()).is_empty());
    }

    #[test]
    fn an_untied_bart_is_written_with_a_table_for_each_stack() {
        let tied = load_model(&fixtures::path("bart/model")).unwrap().model;
        let table = |model: &dyn Model, name: &str| {
            model.tensors().into_iter().find(|(other, ..)| other == name).map(|(_, weight, _)| weight.to_matrix())
        };
        let shared = table(&*tied, "model.shared.weight").unwrap();
        let mut head = shared.clone();
        head.data_mut().iter_mut().for_each(|value| *value *= 2.0);
        let folder = tempfile::tempdir().unwrap();
        save(&*tied, folder.path(), &BTreeMap::from([("lm_head.weight".to_owned(), head.clone())])).unwrap();
        let untied = load_model(folder.path()).unwrap().model;
        assert!(tied.info().tied && !untied.info().tied);
        for name in ["shared", "encoder.embed_tokens", "decoder.embed_tokens"] {
            assert_eq!(table(&*untied, &format!("model.{name}.weight")).as_ref(), Some(&shared), "{name}");
        }
        assert_eq!(table(&*untied, "lm_head.weight"), Some(head));
    }

    /// The values of a weight; of a tied output embedding those of the token embedding.
    fn matrix(model: &dyn Model, name: &str) -> Matrix {
        let path = name.strip_suffix(".weight").unwrap();
        let site = model.sites().iter().position(|site| site.path == path && site.kind.is_weight()).unwrap();
        model.base(SiteId(site)).unwrap().weight.to_matrix()
    }

    #[test]
    fn a_tied_model_is_untied_only_where_its_embeddings_differ() {
        let tied = fixtures::llama("llama");
        let embedding = matrix(&tied, EMBEDDING);
        let other = Matrix::from_vec(96, 32, vec![0.5; 96 * 32]);
        let saved = |replaced: &[(&str, &Matrix)]| {
            let folder = tempfile::tempdir().unwrap();
            let replaced = replaced.iter().map(|(name, value)| ((*name).to_owned(), (*value).clone())).collect();
            save(&tied, folder.path(), &replaced).unwrap();
            let model = fixtures::read_llama(folder.path()).unwrap();
            (model.info().tied, matrix(&model, EMBEDDING), matrix(&model, HEAD))
        };
        assert_eq!(saved(&[]), (true, embedding.clone(), embedding.clone()));
        assert_eq!(saved(&[(EMBEDDING, &other)]), (false, other.clone(), embedding.clone()));
        assert_eq!(saved(&[(HEAD, &other)]), (false, embedding, other.clone()));
        assert_eq!(saved(&[(EMBEDDING, &other), (HEAD, &other)]), (true, other.clone(), other));
    }

    #[test]
    fn nothing_is_overwritten_and_a_failure_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let model = fixtures::llama("llama");
        let none = BTreeMap::new();
        let occupied = |path: &Path| matches!(save(&model, path, &none), Err(ModelError::Occupied { .. }));
        fs::create_dir(folder.path().join("full")).unwrap();
        fs::write(folder.path().join("full").join("kept"), "kept").unwrap();
        fs::write(folder.path().join("file"), "kept").unwrap();
        assert!(occupied(&folder.path().join("full")) && occupied(&folder.path().join("file")));
        let beneath_a_file = folder.path().join("file").join("out");
        assert!(matches!(save(&model, &beneath_a_file, &none), Err(ModelError::Write { .. })));
        assert_eq!(entries(folder.path()), ["file", "full"]);
        assert_eq!(entries(&folder.path().join("full")), ["kept"]);
    }

    proptest! {
        #[test]
        fn numbers_round_trip_in_every_format(
            values in proptest::collection::vec(proptest::num::f32::ANY, 1..200),
            format in prop_oneof![Just(NumberFormat::F32), Just(NumberFormat::F16), Just(NumberFormat::Bf16)],
        ) {
            let folder = tempfile::tempdir().unwrap();
            let matrix = Matrix::from_vec(1, values.len(), values.clone());
            let tensor = |name: &str, value| Saved { name: name.to_owned(), shape: vec![values.len()], value, transposed: false };
            let tensors = [
                tensor("b", SavedValue::Replaced(&matrix)),
                tensor("a", SavedValue::Own(FrozenWeight::vector(values.clone()))),
            ];
            write_weights(&folder.path().join(WEIGHTS), &tensors, format, false).unwrap();
            let mut source = Safetensors::open(folder.path()).unwrap();
            prop_assert_eq!(source.format(), format);
            let rounded = |value: &f32| match format {
                NumberFormat::F32 => *value,
                NumberFormat::F16 => f16::from_f32(*value).to_f32(),
                NumberFormat::Bf16 => bf16::from_f32(*value).to_f32(),
            };
            let expected: Vec<u32> = values.iter().map(|value| rounded(value).to_bits()).collect();
            for name in ["a", "b"] {
                let found: Vec<u32> = source.read(name).unwrap().into_iter().map(f32::to_bits).collect();
                prop_assert_eq!(&found, &expected);
            }
        }
    }
}
