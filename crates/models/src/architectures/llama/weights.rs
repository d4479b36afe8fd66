//! Builds a Llama from its configuration and a source of weights: the sites first, then every tensor they need is
//! compared with what the files hold, then the tensors are read one by one.

use serde_json::Value;
use tunesmith_tensor::{FrozenWeight, Role, Site, SiteId, SiteKind};

use crate::architectures::llama::{Llama, LlamaConfig, LlamaLayer};
use crate::error::ModelError;
use crate::model::{ModelInfo, ModelKind};
use crate::task::{HeadInfo, Task};
use crate::weights::{SiteWeight, WeightSource, check, take};

const LM_HEAD: &str = "lm_head.weight";

impl Llama {
    /// Reads the weights that `config` asks for.
    ///
    /// A tied model whose files hold another output embedding is read as untied, as transformers does.
    ///
    /// # Errors
    /// [`ModelError::Tensors`] with every tensor that is missing, misshapen, unexpected or of an unsupported format;
    /// or a reading error.
    pub fn from_source(mut config: LlamaConfig, source: &mut dyn WeightSource) -> Result<Self, ModelError> {
        let sites = sites(&config);
        check(source, &expected(&sites, &config), |name| {
            name.ends_with("rotary_emb.inv_freq") || (config.tie_word_embeddings && name == LM_HEAD)
        })?;
        let embed_tokens = take(source, "model.embed_tokens.weight", &[config.vocab_size, config.hidden_size])?;
        let lm_head = lm_head(&mut config, source, &embed_tokens)?;
        let mut numbered = sites.iter().enumerate().map(|(index, site)| (SiteId(index), site));
        let mut next = || numbered.next().expect("the sites were laid out by this same configuration");
        let mut weight = |(site, place): (SiteId, &Site)| -> Result<SiteWeight, ModelError> {
            let weight = take(source, &format!("{}.weight", place.path), &saved_shape(place))?;
            let bias =
                place.has_bias.then(|| take(source, &format!("{}.bias", place.path), &[place.rows])).transpose()?;
            Ok(SiteWeight { site, weight, bias })
        };
        let (input, _) = next();
        let embed_tokens = SiteWeight { site: next().0, weight: embed_tokens, bias: None };
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        let (query_key_norm, output_norms) = (config.query_key_norm, config.output_norms);
        for sliding_window in &config.sliding_windows {
            layers.push(LlamaLayer {
                input_layernorm: weight(next())?,
                q_proj: weight(next())?,
                k_proj: weight(next())?,
                v_proj: weight(next())?,
                query_key_norms: if query_key_norm { Some([weight(next())?, weight(next())?]) } else { None },
                attention: next().0,
                o_proj: weight(next())?,
                attention_output_norm: if output_norms { Some(weight(next())?) } else { None },
                after_attention: next().0,
                feed_forward_norm: weight(next())?,
                gate_proj: weight(next())?,
                up_proj: weight(next())?,
                down_proj: weight(next())?,
                feed_forward_output_norm: if output_norms { Some(weight(next())?) } else { None },
                after_feed_forward: next().0,
                sliding_window: *sliding_window,
            });
        }
        let norm = weight(next())?;
        let lm_head = SiteWeight { site: next().0, weight: lm_head, bias: None };
        let info = ModelInfo {
            model_type: config.model_type.clone(),
            kind: ModelKind::Decoder,
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            blocks: config.num_hidden_layers,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            max_positions: config.max_position_embeddings,
            tied: config.tie_word_embeddings,
            head: HeadInfo::language_model(Task::CausalLm),
        };
        Ok(Self { info, config, sites, input, embed_tokens, layers, norm, lm_head })
    }
}

/// The output embedding; makes the configuration untied if the files hold one of its own.
fn lm_head(
    config: &mut LlamaConfig,
    source: &mut dyn WeightSource,
    embed_tokens: &FrozenWeight,
) -> Result<FrozenWeight, ModelError> {
    let shape = vec![config.vocab_size, config.hidden_size];
    let stored = source.stored().get(LM_HEAD);
    let readable = stored.is_some_and(|tensor| tensor.shape == shape && tensor.unsupported.is_none());
    if config.tie_word_embeddings && !readable {
        return Ok(embed_tokens.clone());
    }
    let lm_head = take(source, LM_HEAD, &shape)?;
    if config.tie_word_embeddings {
        if lm_head.to_matrix() == embed_tokens.to_matrix() {
            return Ok(embed_tokens.clone());
        }
        config.tie_word_embeddings = false;
        config.json.insert("tie_word_embeddings".to_owned(), Value::Bool(false));
    }
    Ok(lm_head)
}

/// The shape of a site's weight in a checkpoint.
pub(crate) fn saved_shape(site: &Site) -> Vec<usize> {
    if site.kind == SiteKind::Norm { vec![site.cols] } else { vec![site.rows, site.cols] }
}

/// Names and shapes of all tensors that a configuration asks for.
fn expected(sites: &[Site], config: &LlamaConfig) -> Vec<(String, Vec<usize>)> {
    let mut tensors = Vec::new();
    for site in sites.iter().filter(|site| site.kind.is_weight()) {
        if site.role == Role::OutputEmbedding && config.tie_word_embeddings {
            continue;
        }
        tensors.push((format!("{}.weight", site.path), saved_shape(site)));
        if site.has_bias {
            tensors.push((format!("{}.bias", site.path), vec![site.rows]));
        }
    }
    tensors
}

/// All sites, in the order in which the forward pass meets them.
fn sites(config: &LlamaConfig) -> Vec<Site> {
    let hidden = config.hidden_size;
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let inner = config.intermediate_size;
    let site = |path: &str, kind, role, block, rows, cols, has_bias| Site {
        path: path.to_owned(),
        kind,
        role,
        block,
        rows,
        cols,
        has_bias,
        stored_transposed: false,
    };
    let mut sites = vec![
        site("model", SiteKind::Input, Role::Input, None, hidden, hidden, false),
        site("model.embed_tokens", SiteKind::Embedding, Role::TokenEmbedding, None, config.vocab_size, hidden, false),
    ];
    for block in 0..config.num_hidden_layers {
        let mut add = |name: &str, kind, role, (rows, cols), has_bias| {
            let path = format!("model.layers.{block}.{name}");
            sites.push(site(&path, kind, role, Some(block), rows, cols, has_bias));
        };
        let (qkv_bias, output_bias, mlp_bias) = (config.qkv_bias, config.output_bias, config.mlp_bias);
        let norm = (SiteKind::Norm, Role::BlockNorm);
        add("input_layernorm", norm.0, norm.1, (1, hidden), false);
        add("self_attn.q_proj", SiteKind::Linear, Role::Query, (queries, hidden), qkv_bias);
        add("self_attn.k_proj", SiteKind::Linear, Role::Key, (keys, hidden), qkv_bias);
        add("self_attn.v_proj", SiteKind::Linear, Role::Value, (keys, hidden), qkv_bias);
        if config.query_key_norm {
            add("self_attn.q_norm", norm.0, norm.1, (1, config.head_dim), false);
            add("self_attn.k_norm", norm.0, norm.1, (1, config.head_dim), false);
        }
        add("self_attn", SiteKind::Attention, Role::SelfAttention, (keys, keys), false);
        add("self_attn.o_proj", SiteKind::Linear, Role::AttentionOutput, (hidden, queries), output_bias);
        // Gemma calls by Llama's name of the norm before the feed-forward the one after attention.
        if config.output_norms {
            add("post_attention_layernorm", norm.0, norm.1, (1, hidden), false);
        }
        add("self_attn", SiteKind::Hidden, Role::AfterAttention, (hidden, hidden), false);
        let before = if config.output_norms { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        add(before, norm.0, norm.1, (1, hidden), false);
        add("mlp.gate_proj", SiteKind::Linear, Role::FeedForwardGate, (inner, hidden), mlp_bias);
        add("mlp.up_proj", SiteKind::Linear, Role::FeedForwardUp, (inner, hidden), mlp_bias);
        add("mlp.down_proj", SiteKind::Linear, Role::FeedForwardDown, (hidden, inner), mlp_bias);
        if config.output_norms {
            add("post_feedforward_layernorm", norm.0, norm.1, (1, hidden), false);
        }
        add("mlp", SiteKind::Hidden, Role::AfterFeedForward, (hidden, hidden), false);
    }
    sites.push(site("model.norm", SiteKind::Norm, Role::FinalNorm, None, 1, hidden, false));
    let vocabulary = config.vocab_size;
    sites.push(site("lm_head", SiteKind::Linear, Role::OutputEmbedding, None, vocabulary, hidden, false));
    sites
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use safetensors::Dtype;
    use safetensors::tensor::{SafeTensors, TensorView, serialize_to_file};
    use serde_json::{Map, json};

    use super::*;
    use crate::error::TensorProblem;
    use crate::fixtures::{copied, llama, path, read_llama};
    use crate::safetensors::Safetensors;

    /// A tensor as bytes: type, shape, data.
    type Raw = (Dtype, Vec<usize>, Vec<u8>);

    /// Rewrites the tensors of a copied model.
    fn rewrite(folder: &Path, change: impl FnOnce(&mut BTreeMap<String, Raw>)) {
        let file = folder.join("model.safetensors");
        let bytes = fs::read(&file).unwrap();
        let mut tensors: BTreeMap<String, Raw> = SafeTensors::deserialize(&bytes)
            .unwrap()
            .iter()
            .map(|(name, view)| (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
            .collect();
        change(&mut tensors);
        let views = tensors
            .iter()
            .map(|(name, (dtype, shape, data))| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
        serialize_to_file(views, None, &file).unwrap();
    }

    fn set_config(folder: &Path, key: &str, value: Value) {
        let file = folder.join("config.json");
        let mut config: Map<String, Value> = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config.insert(key.to_owned(), value);
        fs::write(&file, serde_json::to_vec(&config).unwrap()).unwrap();
    }

    #[test]
    fn fixtures_load_with_all_sites() {
        for (name, biases, tied) in [("llama", 0, true), ("mistral", 0, false), ("qwen2", 6, false)] {
            let model = llama(name);
            assert_eq!(model.sites.len(), 2 + 2 * 12 + 2, "{name}");
            assert_eq!(model.sites.iter().filter(|site| site.has_bias).count(), biases, "{name}");
            assert_eq!(model.lm_head.weight.is_same(&model.embed_tokens.weight), tied, "{name}");
            assert_eq!(model.info.tied, tied, "{name}");
        }
    }

    #[test]
    fn every_weight_lies_at_the_site_of_its_name() {
        let model = llama("qwen2");
        let mut source = Safetensors::open(&path("qwen2/model")).unwrap();
        let tensors = model.named_tensors();
        assert_eq!(tensors.len(), source.stored().len());
        for (name, weight, shape) in tensors {
            assert_eq!(shape, source.stored()[&name].shape, "{name}");
            assert_eq!(weight.to_matrix().to_vec(), source.read(&name).unwrap(), "{name}");
        }
        for (index, site) in model.sites.iter().enumerate() {
            assert_eq!(model.site_base(SiteId(index)).is_some(), site.kind.is_weight(), "{}", site.path);
        }
        let key = model.sites.iter().position(|site| site.path == "model.layers.1.self_attn.k_proj").unwrap();
        let base = model.site_base(SiteId(key)).unwrap();
        assert_eq!((base.weight.shape(), base.bias.unwrap().shape()), ((16, 32), (1, 16)));
    }

    #[test]
    fn every_tensor_that_does_not_fit_is_reported_at_once() {
        let folder = copied("mistral");
        rewrite(folder.path(), |tensors| {
            let norm = tensors.remove("model.norm.weight").unwrap();
            tensors.insert("model.final_norm.weight".to_owned(), norm);
            tensors.get_mut("model.layers.0.self_attn.q_proj.weight").unwrap().1 = vec![16, 64];
            let down = tensors.get_mut("model.layers.1.mlp.down_proj.weight").unwrap();
            *down = (Dtype::I8, down.1.clone(), down.2[..down.2.len() / 4].to_vec());
            tensors
                .insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), (Dtype::I64, vec![1], vec![0; 8]));
        });
        let error = read_llama(folder.path()).unwrap_err();
        let ModelError::Tensors { problems, .. } = &error else { panic!("{error}") };
        let file = folder.path().join("model.safetensors");
        let name = |name: &str| format!("model.{name}.weight");
        assert_eq!(
            problems[..],
            [
                TensorProblem::Shape {
                    name: name("layers.0.self_attn.q_proj"),
                    file: file.clone(),
                    expected: vec![32, 32],
                    found: vec![16, 64],
                },
                TensorProblem::Format {
                    name: name("layers.1.mlp.down_proj"),
                    file: file.clone(),
                    found: "I8".to_owned(),
                    supported: "F32, F16, BF16",
                },
                TensorProblem::Missing { name: name("norm"), expected: vec![32] },
                TensorProblem::Unexpected { name: name("final_norm"), file, found: vec![32] },
            ]
        );
        let text = error.to_string();
        assert!(text.contains("q_proj.weight in ") && text.contains("expected [32, 32], found [16, 64]"), "{text}");
    }

    #[test]
    fn a_config_of_another_size_is_an_error_that_names_the_shapes() {
        let folder = copied("llama");
        set_config(folder.path(), "intermediate_size", json!(64));
        let text = read_llama(folder.path()).unwrap_err().to_string();
        assert!(text.contains("model.layers.1.mlp.up_proj.weight"), "{text}");
        assert!(text.contains("expected [64, 32], found [48, 32]"), "{text}");
    }

    #[test]
    fn a_tied_model_may_store_its_head_and_is_untied_if_it_is_another() {
        let folder = copied("llama");
        let head = |scale: u8| {
            move |tensors: &mut BTreeMap<String, Raw>| {
                let mut head = tensors["model.embed_tokens.weight"].clone();
                head.2[3] ^= scale;
                tensors.insert("lm_head.weight".to_owned(), head);
            }
        };
        rewrite(folder.path(), head(0));
        assert!(read_llama(folder.path()).unwrap().info.tied);
        rewrite(folder.path(), head(0x80));
        let untied = read_llama(folder.path()).unwrap();
        assert!(!untied.info.tied && untied.json()["tie_word_embeddings"] == false);
        let first = |weight: &FrozenWeight| weight.to_matrix().data()[0];
        assert_eq!(first(&untied.lm_head.weight), -first(&untied.embed_tokens.weight));
    }

    #[test]
    fn an_untied_model_needs_its_head() {
        let folder = copied("llama");
        set_config(folder.path(), "tie_word_embeddings", json!(false));
        let error = read_llama(folder.path()).unwrap_err();
        let ModelError::Tensors { problems, .. } = error else { panic!("{error}") };
        assert_eq!(problems, [TensorProblem::Missing { name: LM_HEAD.to_owned(), expected: vec![96, 32] }]);
    }

    #[test]
    fn shards_make_the_same_model() {
        let folder = copied("qwen2");
        let whole = fs::read(folder.path().join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&whole).unwrap();
        let shard = |index: usize| format!("model-0000{}-of-00002.safetensors", index + 1);
        let mut map = Map::new();
        for index in 0..2 {
            let part: Vec<_> = tensors.iter().enumerate().filter(|(at, _)| at % 2 == index).map(|(_, t)| t).collect();
            map.extend(part.iter().map(|(name, _)| ((*name).to_owned(), json!(shard(index)))));
            serialize_to_file(part, None, &folder.path().join(shard(index))).unwrap();
        }
        let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
        fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        fs::remove_file(folder.path().join("model.safetensors")).unwrap();

        let (sharded, single) = (read_llama(folder.path()).unwrap(), llama("qwen2"));
        for ((name, left, _), (other, right, _)) in sharded.named_tensors().iter().zip(single.named_tensors()) {
            assert_eq!((name, left.to_matrix()), (&other, right.to_matrix()));
        }
        fs::remove_file(folder.path().join(shard(1))).unwrap();
        let text = read_llama(folder.path()).unwrap_err().to_string();
        assert!(text.contains("shards are missing: model-00002-of-00002.safetensors"), "{text}");
    }
}
