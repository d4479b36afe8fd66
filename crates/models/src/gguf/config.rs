//! The metadata of a GGUF file as Hugging Face's `config.json`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::metadata::Fields;
use super::names::Family;
use crate::error::ModelError;
use crate::fields::MOST_BLOCKS;
use crate::weights::StoredTensor;

/// Gemma 3 sees everything in every sixth block, where the file does not say.
const GEMMA_PATTERN: u64 = 6;
/// Of the Gemma 3 with this many blocks attention's scale is another, which llama.cpp tells by their number.
const BLOCKS_OF_GEMMA_27B: u64 = 62;

/// The metadata as Hugging Face's `config.json`.
pub(super) fn config_json(
    metadata: &Fields<'_>,
    family: &Family,
    stored: &BTreeMap<String, StoredTensor>,
) -> Result<Map<String, Value>, ModelError> {
    let sizes = Sizes::read(metadata, family)?;
    let number = |key: &str| metadata.number(&format!("{}.{key}", family.name));
    let vocabulary = stored.get("model.embed_tokens.weight").and_then(|tensor| tensor.shape.first().copied());
    let key = format!("{}.attention.sliding_window", family.name);
    // llama.cpp has no windows in Qwen.
    let has_windows = !family.model_type.starts_with("qwen");
    let window = metadata.unsigned(&key)?.filter(|window| has_windows && *window > 0);
    let rope_scaling = match metadata.text(&format!("{}.rope.scaling.type", family.name))? {
        None | Some("none") => Value::Null,
        Some(kind) => {
            let original = metadata.unsigned(&format!("{}.rope.scaling.original_context_length", family.name))?;
            let mut scaling = json!({"rope_type": kind, "factor": number("rope.scaling.factor")?});
            if let Some(original) = original {
                scaling["original_max_position_embeddings"] = original.into();
            }
            scaling
        }
    };
    let rope_theta = number("rope.freq_base")?.unwrap_or(10_000.0);
    let has = |name: &str| stored.contains_key(name);
    let (model_type, class) = match (family.name, window) {
        ("llama", Some(_)) => ("mistral", "MistralForCausalLM"),
        _ => (family.model_type, family.class),
    };
    let token = |key: &str| metadata.unsigned(&format!("tokenizer.ggml.{key}_token_id"));
    let config = json!({
        "architectures": [class],
        // Qwen2 has biases without saying so.
        "attention_bias": (family.name != "qwen2").then(|| has("model.layers.0.self_attn.q_proj.bias")),
        "attention_dropout": 0.0,
        "bos_token_id": token("bos")?,
        "eos_token_id": token("eos")?,
        "head_dim": sizes.head_dim,
        "hidden_size": sizes.hidden,
        "initializer_range": 0.02,
        "intermediate_size": sizes.inner,
        "max_position_embeddings": sizes.context,
        "model_type": model_type,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.blocks,
        "num_key_value_heads": sizes.kv_heads,
        "pad_token_id": token("padding")?,
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
        "sliding_window": window,
        "tie_word_embeddings": !has("lm_head.weight"),
        "torch_dtype": "float32",
        "use_cache": true,
        "vocab_size": vocabulary,
    });
    let own = if family.is_gemma() {
        let local_theta = number("rope.freq_base_swa")?.unwrap_or(10_000.0);
        let mut global = json!({"rope_type": "default"});
        if let (Value::Object(scaling), Value::Object(global)) = (rope_scaling, &mut global) {
            global.extend(scaling);
        }
        global["rope_theta"] = json!(rope_theta);
        let by_hidden = (sizes.blocks == BLOCKS_OF_GEMMA_27B).then(|| sizes.hidden.checked_div(sizes.heads)).flatten();
        json!({
            "final_logit_softcapping": number("final_logit_softcapping")?.filter(|cap| *cap > 0.0),
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": layer_types(metadata, family, sizes.blocks)?,
            "query_pre_attn_scalar": by_hidden.unwrap_or(sizes.head_dim),
            "rope_parameters": {
                "full_attention": global,
                "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
            },
        })
    } else {
        json!({
            "hidden_act": "silu",
            "mlp_bias": (family.name == "llama").then(|| has("model.layers.0.mlp.gate_proj.bias")),
            "rope_scaling": rope_scaling,
            "rope_theta": rope_theta,
        })
    };
    let objects = [config, own].into_iter().filter_map(|object| match object {
        Value::Object(object) => Some(object),
        _ => None,
    });
    Ok(objects.flatten().filter(|(_, value)| !value.is_null()).collect())
}

/// Which of Gemma's blocks have a window: a pattern with one that has none at its end, or said block by block.
fn layer_types(metadata: &Fields<'_>, family: &Family, blocks: u64) -> Result<Vec<&'static str>, ModelError> {
    let key = format!("{}.attention.sliding_window_pattern", family.name);
    let windows = if metadata.is_list(&key) {
        metadata.flags(&key)?.unwrap_or_default()
    } else {
        let pattern = metadata.unsigned(&key)?.unwrap_or(GEMMA_PATTERN).max(1);
        (1..=blocks.min(MOST_BLOCKS as u64)).map(|block| !block.is_multiple_of(pattern)).collect()
    };
    Ok(windows.into_iter().map(|window| if window { "sliding_attention" } else { "full_attention" }).collect())
}

/// The sizes that a file says.
struct Sizes {
    blocks: u64,
    context: u64,
    hidden: u64,
    inner: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
}

impl Sizes {
    fn read(metadata: &Fields<'_>, family: &Family) -> Result<Self, ModelError> {
        let mut problems = Vec::new();
        let mut optional = |key: &str| {
            let value = metadata.unsigned(&format!("{}.{key}", family.name));
            value.unwrap_or_else(|error| {
                problems.push(error.to_string());
                None
            })
        };
        let needed =
            ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"];
        let found = needed.map(&mut optional);
        let kv_heads = optional("attention.head_count_kv");
        let (rotary, key_length) = (optional("rope.dimension_count"), optional("attention.key_length"));
        let value_length = optional("attention.value_length");
        let experts = optional("expert_count").unwrap_or(0);
        let [_, _, hidden, _, heads] = found;
        let head_dim = key_length.or_else(|| hidden?.checked_div(heads?));
        let missing = needed.iter().zip(found).filter(|(_, value)| value.is_none());
        problems.extend(missing.map(|(key, _)| format!("{}.{key} is missing", family.name)));
        if experts > 0 {
            problems.push(format!("it is a mixture of {experts} experts, which is not supported"));
        }
        let differs = |other: Option<u64>| other.is_some() && head_dim.is_some() && other != head_dim;
        if differs(rotary) {
            problems.push("it rotates only a part of each head, which is not supported".to_owned());
        }
        if differs(value_length) {
            problems.push("its values have heads of another width than its keys, which is not supported".to_owned());
        }
        match (found, head_dim) {
            ([Some(blocks), Some(context), Some(hidden), Some(inner), Some(heads)], Some(head_dim))
                if problems.is_empty() =>
            {
                Ok(Self { blocks, context, hidden, inner, heads, kv_heads: kv_heads.unwrap_or(heads), head_dim })
            }
            _ => Err(ModelError::Config { path: metadata.path().to_path_buf(), problems }),
        }
    }
}
