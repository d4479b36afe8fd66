//! GPT-2's configuration, from Hugging Face's `config.json`. Missing keys take the defaults of transformers; all problems
//! of a file are reported together.

use std::path::Path;

use serde_json::{Map, Value};
use tunesmith_tensor::Activation;

use crate::error::ModelError;
use crate::fields::Fields;

/// A GPT-2.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpt2Config {
    /// Number of token embeddings.
    pub vocab_size: usize,
    /// Number of position embeddings: the longest context, in tokens.
    pub n_positions: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Attention heads.
    pub n_head: usize,
    /// Width of the feed-forward.
    pub n_inner: usize,
    /// The feed-forward's activation.
    pub activation_function: Activation,
    /// ε of the layer norms.
    pub layer_norm_epsilon: f64,
    /// Dropout of the embeddings.
    pub embd_pdrop: f32,
    /// Dropout of attention's weights.
    pub attn_pdrop: f32,
    /// Dropout of what attention and the feed-forward add.
    pub resid_pdrop: f32,
    /// Whether scores are divided by the root of a head's width.
    pub scale_attn_weights: bool,
    /// Whether scores of block `i` are divided by `i + 1` too.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether the output embedding is the token embedding.
    pub tie_word_embeddings: bool,
    /// The whole `config.json`, for saving.
    pub json: Map<String, Value>,
}

impl Gpt2Config {
    /// Reads a configuration. `path` is the file it came from, for messages.
    ///
    /// # Errors
    /// [`ModelError::Config`] with every problem found.
    pub fn from_json(json: Map<String, Value>, path: &Path) -> Result<Self, ModelError> {
        let mut fields = Fields::new(&json);
        // transformers knows these sizes by two names each.
        let mut size = |own: &str, general: &str, default| {
            let general = fields.optional_size(general);
            fields.optional_size(own).or(general).unwrap_or(default)
        };
        let n_embd = size("n_embd", "hidden_size", 768);
        let n_layer = size("n_layer", "num_hidden_layers", 12);
        let n_head = size("n_head", "num_attention_heads", 12);
        let n_positions = size("n_positions", "max_position_embeddings", 1024);
        fields.check_heads(("n_embd", n_embd), ("n_head", n_head));
        fields.check_blocks("n_layer", n_layer);
        if fields.flag("add_cross_attention", false) {
            fields.problems.push("add_cross_attention is true: a GPT-2 with an encoder is not supported".to_owned());
        }
        fields.refuse_quantisation();
        let config = Self {
            vocab_size: fields.size("vocab_size", 50_257),
            n_inner: fields.size("n_inner", 4 * n_embd),
            activation_function: fields.activation("activation_function", "gelu_new"),
            layer_norm_epsilon: fields.positive("layer_norm_epsilon", 1e-5),
            embd_pdrop: fields.fraction("embd_pdrop", 0.1),
            attn_pdrop: fields.fraction("attn_pdrop", 0.1),
            resid_pdrop: fields.fraction("resid_pdrop", 0.1),
            scale_attn_weights: fields.flag("scale_attn_weights", true),
            scale_attn_by_inverse_layer_idx: fields.flag("scale_attn_by_inverse_layer_idx", false),
            tie_word_embeddings: fields.flag("tie_word_embeddings", true),
            n_positions,
            n_embd,
            n_layer,
            n_head,
            json: Map::new(),
        };
        let config = fields.finish(config, path)?;
        Ok(Self { json, ..config })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(json: Value) -> Result<Gpt2Config, ModelError> {
        Gpt2Config::from_json(json.as_object().unwrap().clone(), Path::new("config.json"))
    }

    #[test]
    fn missing_keys_take_transformers_defaults() {
        let small = config(json!({"model_type": "gpt2"})).unwrap();
        assert_eq!((small.n_embd, small.n_layer, small.n_head, small.n_inner), (768, 12, 12, 3072));
        assert_eq!((small.vocab_size, small.n_positions, small.layer_norm_epsilon), (50_257, 1024, 1e-5));
        assert_eq!([small.embd_pdrop, small.attn_pdrop, small.resid_pdrop], [0.1; 3]);
        assert_eq!(small.activation_function, Activation::GeluTanh);
        assert!(small.tie_word_embeddings && small.scale_attn_weights && !small.scale_attn_by_inverse_layer_idx);
    }

    #[test]
    fn both_names_of_a_size_are_read() {
        let other =
            config(json!({"hidden_size": 12, "num_attention_heads": 3, "n_layer": 2, "n_inner": null})).unwrap();
        assert_eq!((other.n_embd, other.n_head, other.n_layer, other.n_inner), (12, 3, 2, 48));
    }

    #[test]
    fn all_problems_are_reported_together() {
        let found = config(json!({
            "n_embd": 10, "n_head": 3, "activation_function": "mish", "add_cross_attention": true,
            "layer_norm_epsilon": 0, "quantization_config": {"bits": 4},
        }));
        let ModelError::Config { problems, .. } = found.unwrap_err() else { panic!("another error") };
        let expected =
            ["n_embd 10", "add_cross_attention", "quantization_config", "\"mish\"", "layer_norm_epsilon is 0"];
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.contains(expected), "{problem:?} does not contain {expected:?}");
        }
    }
}
