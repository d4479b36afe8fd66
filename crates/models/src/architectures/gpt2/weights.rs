//! Builds a GPT-2 from its configuration and a source of weights. Checkpoints of the bare model, without `transformer.`
//! before their names, are read like those with it; models are always saved with it.

use serde_json::Value;
use tunesmith_tensor::{FrozenWeight, Matrix, Role, Site, SiteId, SiteKind};

use crate::architectures::gpt2::{Gpt2, Gpt2Block, Gpt2Config};
use crate::error::ModelError;
use crate::model::{ModelInfo, ModelKind};
use crate::renamed::Renamed;
use crate::task::{HeadInfo, Task};
use crate::weights::{SiteWeight, WeightSource, check, take, transposed};

const PREFIX: &str = "transformer.";
const LM_HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "transformer.wte.weight";

impl Gpt2 {
    /// Reads the weights that `config` asks for.
    ///
    /// A tied model whose files hold another output embedding is read as untied, as transformers does.
    ///
    /// # Errors
    /// [`ModelError::Tensors`] with every tensor that is missing, misshapen, unexpected or of an unsupported format;
    /// or a reading error.
    pub fn from_source(mut config: Gpt2Config, source: &mut dyn WeightSource) -> Result<Self, ModelError> {
        let is_bare = !source.stored().keys().any(|name| name.starts_with(PREFIX));
        let mut bare;
        let source: &mut dyn WeightSource = if is_bare {
            bare = Renamed::new(source, |name| {
                Some(if name == LM_HEAD { name.to_owned() } else { format!("{PREFIX}{name}") })
            });
            &mut bare
        } else {
            source
        };
        let sites = sites(&config);
        let tied = config.tie_word_embeddings;
        // Old checkpoints keep the causal mask beside the weights.
        check(source, &expected(&sites, tied), |name| {
            name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") || (tied && name == LM_HEAD)
        })?;
        let wte = take(source, EMBEDDING, &[config.vocab_size, config.n_embd])?;
        let lm_head = lm_head(&mut config, source, &wte)?;

        let mut numbered = sites.iter().enumerate().map(|(index, site)| (SiteId(index), site));
        let mut next = || numbered.next().expect("the sites were laid out by this same configuration");
        let mut weight = |(site, place): (SiteId, &Site)| -> Result<SiteWeight, ModelError> {
            let weight = take_weight(source, place)?;
            let bias = place
                .has_bias
                .then(|| take(source, &format!("{}.bias", place.path), &[bias_width(place)]))
                .transpose()?;
            Ok(SiteWeight { site, weight, bias })
        };
        let (input, _) = next();
        let wte = SiteWeight { site: next().0, weight: wte, bias: None };
        let wpe = weight(next())?;
        let mut blocks = Vec::with_capacity(config.n_layer);
        for _ in 0..config.n_layer {
            blocks.push(Gpt2Block {
                ln_1: weight(next())?,
                c_attn: weight(next())?,
                c_proj: weight(next())?,
                attention: next().0,
                after_attention: next().0,
                ln_2: weight(next())?,
                c_fc: weight(next())?,
                mlp_c_proj: weight(next())?,
                after_feed_forward: next().0,
            });
        }
        let ln_f = weight(next())?;
        let lm_head = SiteWeight { site: next().0, weight: lm_head, bias: None };
        let info = ModelInfo {
            model_type: "gpt2".to_owned(),
            kind: ModelKind::Decoder,
            vocab_size: config.vocab_size,
            hidden_size: config.n_embd,
            blocks: config.n_layer,
            heads: config.n_head,
            kv_heads: config.n_head,
            head_dim: config.n_embd / config.n_head,
            max_positions: config.n_positions,
            tied: config.tie_word_embeddings,
            head: HeadInfo::language_model(Task::CausalLm),
        };
        Ok(Self { info, config, sites, input, wte, wpe, blocks, ln_f, lm_head })
    }
}

/// The weight of a site, turned to `[out, in]` where the file keeps `[in, out]`.
fn take_weight(source: &mut dyn WeightSource, site: &Site) -> Result<FrozenWeight, ModelError> {
    let name = format!("{}.weight", site.path);
    if site.stored_transposed {
        let stored = Matrix::from_vec(site.cols, site.rows, source.read(&name)?);
        return source.keep(&name, transposed(&stored));
    }
    take(source, &name, &saved_shape(site))
}

/// The output embedding; makes the configuration untied if the files hold one of its own.
fn lm_head(
    config: &mut Gpt2Config,
    source: &mut dyn WeightSource,
    wte: &FrozenWeight,
) -> Result<FrozenWeight, ModelError> {
    let shape = vec![config.vocab_size, config.n_embd];
    let stored = source.stored().get(LM_HEAD);
    let readable = stored.is_some_and(|tensor| tensor.shape == shape && tensor.unsupported.is_none());
    if config.tie_word_embeddings && !readable {
        return Ok(wte.clone());
    }
    let lm_head = take(source, LM_HEAD, &shape)?;
    if config.tie_word_embeddings {
        if lm_head.to_matrix() == wte.to_matrix() {
            return Ok(wte.clone());
        }
        config.tie_word_embeddings = false;
        config.json.insert("tie_word_embeddings".to_owned(), Value::Bool(false));
    }
    Ok(lm_head)
}

/// The shape of a site's weight in a checkpoint.
pub(super) fn saved_shape(site: &Site) -> Vec<usize> {
    match site.kind {
        SiteKind::Norm => vec![site.cols],
        _ if site.stored_transposed => vec![site.cols, site.rows],
        _ => vec![site.rows, site.cols],
    }
}

/// The width of a site's bias.
fn bias_width(site: &Site) -> usize {
    if site.kind == SiteKind::Norm { site.cols } else { site.rows }
}

/// Names and shapes of all tensors that a configuration asks for.
fn expected(sites: &[Site], tied: bool) -> Vec<(String, Vec<usize>)> {
    let mut tensors = Vec::new();
    for site in sites.iter().filter(|site| site.kind.is_weight()) {
        if site.role == Role::OutputEmbedding && tied {
            continue;
        }
        tensors.push((format!("{}.weight", site.path), saved_shape(site)));
        if site.has_bias {
            tensors.push((format!("{}.bias", site.path), vec![bias_width(site)]));
        }
    }
    tensors
}

/// All sites, in the order in which the forward pass meets them.
fn sites(config: &Gpt2Config) -> Vec<Site> {
    let (hidden, inner) = (config.n_embd, config.n_inner);
    let site = |path: &str, kind, role, block, (rows, cols)| Site {
        path: path.to_owned(),
        kind,
        role,
        block,
        rows,
        cols,
        has_bias: kind == SiteKind::Norm || (kind == SiteKind::Linear && role != Role::OutputEmbedding),
        stored_transposed: kind == SiteKind::Linear && role != Role::OutputEmbedding,
    };
    let (tokens, positions) = (config.vocab_size, config.n_positions);
    let mut sites = vec![
        site("transformer", SiteKind::Input, Role::Input, None, (hidden, hidden)),
        site("transformer.wte", SiteKind::Embedding, Role::TokenEmbedding, None, (tokens, hidden)),
        site("transformer.wpe", SiteKind::Embedding, Role::PositionEmbedding, None, (positions, hidden)),
    ];
    for block in 0..config.n_layer {
        let mut add = |name: &str, kind, role, size| {
            sites.push(site(&format!("transformer.h.{block}.{name}"), kind, role, Some(block), size));
        };
        add("ln_1", SiteKind::Norm, Role::BlockNorm, (1, hidden));
        add("attn.c_attn", SiteKind::Linear, Role::QueryKeyValue, (3 * hidden, hidden));
        add("attn.c_proj", SiteKind::Linear, Role::AttentionOutput, (hidden, hidden));
        add("attn", SiteKind::Attention, Role::SelfAttention, (hidden, hidden));
        add("attn", SiteKind::Hidden, Role::AfterAttention, (hidden, hidden));
        add("ln_2", SiteKind::Norm, Role::BlockNorm, (1, hidden));
        add("mlp.c_fc", SiteKind::Linear, Role::FeedForwardUp, (inner, hidden));
        add("mlp.c_proj", SiteKind::Linear, Role::FeedForwardDown, (hidden, inner));
        add("mlp", SiteKind::Hidden, Role::AfterFeedForward, (hidden, hidden));
    }
    sites.push(site("transformer.ln_f", SiteKind::Norm, Role::FinalNorm, None, (1, hidden)));
    sites.push(site("lm_head", SiteKind::Linear, Role::OutputEmbedding, None, (tokens, hidden)));
    sites
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use safetensors::tensor::{SafeTensors, TensorView, serialize_to_file};

    use crate::fixtures::{copied, path};
    use crate::model::Model;
    use crate::safetensors::Safetensors;
    use crate::weights::WeightSource;
    use crate::{GenerationDefaults, NumberFormat, load_model, save_folder};

    #[test]
    fn linears_are_turned_on_reading_and_turned_back_on_saving() {
        let model = load_model(&path("gpt2/model")).unwrap().model;
        let mut source = Safetensors::open(&path("gpt2/model")).unwrap();
        let name = "transformer.h.1.attn.c_attn.weight";
        assert_eq!(source.stored()[name].shape, [32, 96]);
        let stored = source.read(name).unwrap();
        let (_, weight, shape) = model.tensors().into_iter().find(|(other, ..)| other == name).unwrap();
        assert_eq!((weight.shape(), &shape[..]), ((96, 32), &[32, 96][..]));
        let weight = weight.to_matrix();
        assert!((0..96).all(|out| (0..32).all(|input| weight.row(out)[input] == stored[input * 96 + out])));

        let folder = tempfile::tempdir().unwrap();
        let replaced = BTreeMap::from([("transformer.h.0.mlp.c_fc.weight".to_owned(), doubled(&*model))]);
        let defaults = GenerationDefaults::default();
        save_folder(folder.path(), &*model, None, &defaults, &replaced, NumberFormat::F32).unwrap();
        let mut saved = Safetensors::open(folder.path()).unwrap();
        assert_eq!(saved.stored().keys().collect::<Vec<_>>(), source.stored().keys().collect::<Vec<_>>());
        for name in source.stored().keys().cloned().collect::<Vec<_>>() {
            let factor = if replaced.contains_key(&name) { 2.0 } else { 1.0 };
            let expected: Vec<f32> = source.read(&name).unwrap().iter().map(|value| factor * value).collect();
            assert_eq!(saved.read(&name).unwrap(), expected, "{name}");
        }
    }

    /// Twice the first feed-forward weight of a model, `[out, in]`.
    fn doubled(model: &dyn Model) -> tunesmith_tensor::Matrix {
        let name = "transformer.h.0.mlp.c_fc.weight";
        let mut matrix = model.tensors().into_iter().find(|(other, ..)| other == name).unwrap().1.to_matrix();
        matrix.data_mut().iter_mut().for_each(|value| *value *= 2.0);
        matrix
    }

    #[test]
    fn checkpoints_of_the_bare_model_load() {
        let folder = copied("gpt2");
        let file = folder.path().join("model.safetensors");
        let bytes = fs::read(&file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mask = [1.0f32; 4].iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let bare = tensors.iter().map(|(name, view)| (name.strip_prefix("transformer.").unwrap().to_owned(), view));
        let mask = TensorView::new(safetensors::Dtype::F32, vec![1, 1, 2, 2], &mask).unwrap();
        serialize_to_file(bare.chain([("h.0.attn.bias".to_owned(), mask)]), None, &file).unwrap();
        let bare = load_model(folder.path()).unwrap().model;
        let whole = load_model(&path("gpt2/model")).unwrap().model;
        for ((name, left, _), (other, right, _)) in bare.tensors().iter().zip(whole.tensors()) {
            assert_eq!((name, left.to_matrix()), (&other, right.to_matrix()));
        }
    }

    #[test]
    fn a_missing_tensor_is_named() {
        let folder = copied("gpt2");
        let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
        fs::write(folder.path().join("config.json"), config.replace("\"n_layer\": 2", "\"n_layer\": 3")).unwrap();
        let text = load_model(folder.path()).map(|_| ()).unwrap_err().to_string();
        assert!(text.contains("transformer.h.2.attn.c_attn.weight") && text.contains("[32, 96]"), "{text}");
    }
}
