//! Lays out the sites of a Llama and reads its weights.

use tunesmith_tensor::Role;

use crate::architectures::llama::{Llama, LlamaConfig, LlamaLayer};
use crate::error::ModelError;
use crate::model::{ModelInfo, ModelKind};
use crate::network::Parts;
use crate::renamed::Renamed;
use crate::site_table::{Layout, NewHeads};
use crate::task::{HeadInfo, Task};
use crate::weights::WeightSource;

impl Llama {
    /// Reads the weights that `config` asks for.
    ///
    /// A tied model whose files hold another output embedding is read as untied, as transformers does.
    ///
    /// # Errors
    /// [`ModelError::Tensors`] with every tensor that is missing, misshapen, unexpected or of an unsupported format;
    /// or a reading error.
    pub fn from_source(config: LlamaConfig, source: &mut dyn WeightSource) -> Result<Self, ModelError> {
        let mut layout = Layout::default();
        let hidden = config.hidden_size;
        let input = layout.input("model".to_owned(), Role::Input, hidden);
        let embed_tokens =
            layout.embedding("model.embed_tokens".to_owned(), Role::TokenEmbedding, config.vocab_size, hidden);
        let windows = config.sliding_windows.iter().enumerate();
        let layers = windows.map(|(block, window)| layer(&config, &mut layout, block, *window)).collect();
        let norm = layout.rms_norm("model.norm".to_owned(), Role::FinalNorm, None, hidden);
        let path = "lm_head".to_owned();
        let lm_head = layout.linear_without_bias(path, Role::OutputEmbedding, None, config.vocab_size, hidden);
        if config.tie_word_embeddings {
            layout.tie(lm_head, embed_tokens);
        }
        // Old files hold what follows from the configuration.
        let needed = |name: &str| (!name.ends_with("rotary_emb.inv_freq")).then(|| name.to_owned());
        let table = layout.read(&mut Renamed::new(source, needed), &NewHeads::none())?;
        let info = ModelInfo {
            model_type: config.model_type.clone(),
            kind: ModelKind::Decoder,
            vocab_size: config.vocab_size,
            hidden_size: hidden,
            blocks: config.num_hidden_layers,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            max_positions: config.max_position_embeddings,
            tied: config.tie_word_embeddings,
            head: HeadInfo::language_model(Task::CausalLm),
        };
        let parts = Parts::language_model(info, config.json.clone(), table, lm_head, config.tie_word_embeddings);
        Ok(Self { parts, config, input, embed_tokens, layers, norm })
    }
}

/// The sites of one block, in the order in which the forward pass meets them.
fn layer(config: &LlamaConfig, layout: &mut Layout, block: usize, sliding_window: Option<usize>) -> LlamaLayer {
    let hidden = config.hidden_size;
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let inner = config.intermediate_size;
    let path = |part: &str| format!("model.layers.{block}.{part}");
    let norm =
        |layout: &mut Layout, part: &str, width| layout.rms_norm(path(part), Role::BlockNorm, Some(block), width);
    let linear = |layout: &mut Layout, part: &str, role, (rows, cols), has_bias| {
        layout.linear_where(path(part), role, Some(block), (rows, cols), has_bias)
    };
    let (qkv_bias, output_bias, mlp_bias) = (config.qkv_bias, config.output_bias, config.mlp_bias);
    let is_normed = config.output_norms;
    let before_feed_forward = if is_normed { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
    LlamaLayer {
        input_layernorm: norm(layout, "input_layernorm", hidden),
        q_proj: linear(layout, "self_attn.q_proj", Role::Query, (queries, hidden), qkv_bias),
        k_proj: linear(layout, "self_attn.k_proj", Role::Key, (keys, hidden), qkv_bias),
        v_proj: linear(layout, "self_attn.v_proj", Role::Value, (keys, hidden), qkv_bias),
        query_key_norms: config
            .query_key_norm
            .then(|| ["self_attn.q_norm", "self_attn.k_norm"].map(|part| norm(layout, part, config.head_dim))),
        attention: layout.attention(path("self_attn"), Role::SelfAttention, block, keys),
        o_proj: linear(layout, "self_attn.o_proj", Role::AttentionOutput, (hidden, queries), output_bias),
        // Gemma calls by Llama's name of the norm before the feed-forward the one after attention.
        attention_output_norm: is_normed.then(|| norm(layout, "post_attention_layernorm", hidden)),
        after_attention: layout.hidden(path("self_attn"), Role::AfterAttention, block, hidden),
        feed_forward_norm: norm(layout, before_feed_forward, hidden),
        gate_proj: linear(layout, "mlp.gate_proj", Role::FeedForwardGate, (inner, hidden), mlp_bias),
        up_proj: linear(layout, "mlp.up_proj", Role::FeedForwardUp, (inner, hidden), mlp_bias),
        down_proj: linear(layout, "mlp.down_proj", Role::FeedForwardDown, (hidden, inner), mlp_bias),
        feed_forward_output_norm: is_normed.then(|| norm(layout, "post_feedforward_layernorm", hidden)),
        after_feed_forward: layout.hidden(path("mlp"), Role::AfterFeedForward, block, hidden),
        sliding_window,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use safetensors::Dtype;
    use safetensors::tensor::{SafeTensors, TensorView, serialize_to_file};
    use serde_json::{Map, Value, json};
    use tunesmith_tensor::{FrozenWeight, SiteId};

    use super::*;
    use crate::error::TensorProblem;
    use crate::fixtures::{copied, llama, path, read_llama};
    use crate::model::Model;
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

    /// The weight at a path.
    fn weight(model: &Llama, path: &str) -> FrozenWeight {
        let site = model.sites().iter().position(|site| site.path == path && site.kind.is_weight()).unwrap();
        model.base(SiteId(site)).unwrap().weight.clone()
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
            assert_eq!(model.sites().len(), 2 + 2 * 12 + 2, "{name}");
            assert_eq!(model.sites().iter().filter(|site| site.has_bias).count(), biases, "{name}");
            assert_eq!(weight(&model, "lm_head").is_same(&weight(&model, "model.embed_tokens")), tied, "{name}");
            assert_eq!(model.info().tied, tied, "{name}");
        }
    }

    #[test]
    fn every_weight_lies_at_the_site_of_its_name() {
        let model = llama("qwen2");
        let mut source = Safetensors::open(&path("qwen2/model")).unwrap();
        let tensors = model.tensors();
        assert_eq!(tensors.len(), source.stored().len());
        for (name, weight, shape) in tensors {
            assert_eq!(shape, source.stored()[&name].shape, "{name}");
            assert_eq!(weight.to_matrix().to_vec(), source.read(&name).unwrap(), "{name}");
        }
        for (index, site) in model.sites().iter().enumerate() {
            assert_eq!(model.base(SiteId(index)).is_some(), site.kind.is_weight(), "{}", site.path);
        }
        let key = model.sites().iter().position(|site| site.path == "model.layers.1.self_attn.k_proj").unwrap();
        let base = model.base(SiteId(key)).unwrap();
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
        assert!(read_llama(folder.path()).unwrap().info().tied);
        rewrite(folder.path(), head(0x80));
        let untied = read_llama(folder.path()).unwrap();
        assert!(!untied.info().tied && untied.config_json()["tie_word_embeddings"] == false);
        let first = |weight: FrozenWeight| weight.to_matrix().data()[0];
        assert_eq!(first(weight(&untied, "lm_head")), -first(weight(&untied, "model.embed_tokens")));
    }

    #[test]
    fn an_untied_model_needs_its_head() {
        let folder = copied("llama");
        set_config(folder.path(), "tie_word_embeddings", json!(false));
        let error = read_llama(folder.path()).unwrap_err();
        let ModelError::Tensors { problems, .. } = error else { panic!("{error}") };
        assert_eq!(problems, [TensorProblem::Missing { name: "lm_head.weight".to_owned(), expected: vec![96, 32] }]);
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
        for ((name, left, _), (other, right, _)) in sharded.tensors().iter().zip(single.tensors()) {
            assert_eq!((name, left.to_matrix()), (&other, right.to_matrix()));
        }
        fs::remove_file(folder.path().join(shard(1))).unwrap();
        let text = read_llama(folder.path()).unwrap_err().to_string();
        assert!(text.contains("shards are missing: model-00002-of-00002.safetensors"), "{text}");
    }
}
