//! The Llama family's configuration, from Hugging Face's `config.json`.
//!
//! Missing keys take the defaults of the model type's configuration class in transformers. Keys that change the
//! mathematics in a way this crate does not have are errors; all problems of a file are reported together.

use std::path::Path;

use serde_json::{Map, Value, json};
use tunesmith_tensor::Activation;

use crate::architectures::llama::rope::{Rope, RopeScaling};
use crate::error::ModelError;
use crate::fields::{Fields, MOST_BLOCKS};

/// The model types that the Llama architecture covers.
pub const MODEL_TYPES: [&str; 5] = ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"];

/// A model of the Llama family: Llama, Mistral, Qwen2, Qwen3, Gemma 3 (text), SmolLM2.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// One of [`MODEL_TYPES`].
    pub model_type: String,
    /// Number of token embeddings.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated feed-forward.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Longest context, in tokens.
    pub max_position_embeddings: usize,
    /// ε of the RMS norms.
    pub rms_norm_eps: f64,
    /// Dropout of attention's weights.
    pub attention_dropout: f32,
    /// Whether the output embedding is the token embedding.
    pub tie_word_embeddings: bool,
    /// Whether query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward's linears have biases.
    pub mlp_bias: bool,
    /// Per block: a query sees at most this many keys, itself included; `None` sees all earlier ones.
    pub sliding_windows: Vec<Option<usize>>,
    /// Whether queries and keys are normed, each head on its own, before they are turned.
    pub query_key_norm: bool,
    /// Whether what attention and the feed-forward compute is normed before it is added (Gemma).
    pub output_norms: bool,
    /// Whether norms keep their weight as its difference from one (Gemma).
    pub centred_norms: bool,
    /// The gated feed-forward's activation.
    pub activation: Activation,
    /// What token embeddings are multiplied with.
    pub embedding_scale: f32,
    /// What attention's scores are multiplied with.
    pub attention_scale: f32,
    /// Rotary position embeddings.
    pub rope: Rope,
    /// Those of blocks with a sliding window, where they are others.
    pub local_rope: Option<Rope>,
    /// The whole `config.json`, for saving.
    pub json: Map<String, Value>,
}

impl LlamaConfig {
    /// Reads a configuration. `path` is the file it came from, for messages.
    ///
    /// # Errors
    /// [`ModelError::UnknownModelType`], or [`ModelError::Config`] with every problem found.
    pub fn from_json(json: Map<String, Value>, path: &Path) -> Result<Self, ModelError> {
        let found = json.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let Some(defaults) = Defaults::of(&found) else {
            let known = MODEL_TYPES.map(str::to_owned).to_vec();
            return Err(ModelError::UnknownModelType { path: path.to_path_buf(), found, known });
        };
        let mut fields = Fields::new(&json);
        let hidden_size = fields.size("hidden_size", defaults.hidden_size);
        let num_hidden_layers = fields.size("num_hidden_layers", defaults.num_hidden_layers);
        let num_attention_heads = fields.size("num_attention_heads", defaults.num_attention_heads);
        let num_key_value_heads = match json.get("num_key_value_heads") {
            Some(Value::Null) => num_attention_heads,
            _ => fields.size("num_key_value_heads", defaults.num_key_value_heads.unwrap_or(num_attention_heads)),
        };
        let head_dim = fields.optional_size("head_dim").or(defaults.head_dim).unwrap_or_else(|| {
            if !hidden_size.is_multiple_of(num_attention_heads) {
                fields.problems.push(format!(
                    "hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads}, and \
                     there is no head_dim"
                ));
            }
            hidden_size / num_attention_heads
        });
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            fields.problems.push(format!(
                "num_attention_heads {num_attention_heads} is not a multiple of num_key_value_heads \
                 {num_key_value_heads}"
            ));
        }
        if !head_dim.is_multiple_of(2) || head_dim == 0 {
            fields.problems.push(format!("head_dim {head_dim} is not even, which rotary embeddings need"));
        }
        fields.check_blocks("num_hidden_layers", num_hidden_layers);
        let max_position_embeddings = fields.size("max_position_embeddings", defaults.max_position_embeddings);
        let rms_norm_eps = fields.positive("rms_norm_eps", 1e-6);
        let is_gemma = defaults.model_type == "gemma3_text";
        let activation = if is_gemma {
            fields.activation("hidden_activation", "gelu_pytorch_tanh")
        } else {
            fields.activation("hidden_act", "silu")
        };
        fields.refuse_quantisation();
        let is_llama = defaults.model_type == "llama";
        let has_attention_bias = ["llama", "qwen3", "gemma3_text"].contains(&defaults.model_type);
        let output_bias = has_attention_bias && fields.flag("attention_bias", false);
        let (rope, local_rope) = if is_gemma {
            fields.refuse_unlike_gemma3_text();
            let (global, local) = fields.gemma_ropes(max_position_embeddings);
            (global, Some(local))
        } else {
            (fields.rope(max_position_embeddings), None)
        };
        let attention_width = if is_gemma { fields.positive("query_pre_attn_scalar", 256.0) } else { head_dim as f64 };
        let config = Self {
            vocab_size: fields.size("vocab_size", defaults.vocab_size),
            intermediate_size: fields.size("intermediate_size", defaults.intermediate_size),
            tie_word_embeddings: fields.flag("tie_word_embeddings", is_gemma),
            qkv_bias: output_bias || defaults.model_type == "qwen2",
            output_bias,
            mlp_bias: is_llama && fields.flag("mlp_bias", false),
            sliding_windows: fields.sliding_windows(defaults.model_type, num_hidden_layers.min(MOST_BLOCKS)),
            query_key_norm: ["qwen3", "gemma3_text"].contains(&defaults.model_type),
            output_norms: is_gemma,
            centred_norms: is_gemma,
            activation,
            embedding_scale: if is_gemma { (hidden_size as f64).sqrt() as f32 } else { 1.0 },
            attention_scale: attention_width.powf(-0.5) as f32,
            rope,
            local_rope,
            model_type: found,
            hidden_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps,
            attention_dropout: fields.fraction("attention_dropout", 0.0),
            json: Map::new(),
        };
        let config = fields.finish(config, path)?;
        Ok(Self { json, ..config })
    }

    /// The same with positions divided by `factor` in blocks that see everything (position interpolation, Chen et al.
    /// 2023), in place of what they were divided by before; the context grows with it. What is saved says so, as
    /// transformers reads it.
    ///
    /// # Errors
    /// [`ModelError::Config`] if frequencies are scaled in another way already.
    pub fn interpolated(&self, factor: f64, path: &Path) -> Result<Self, ModelError> {
        let before = match self.rope.scaling {
            RopeScaling::Default => 1.0,
            RopeScaling::Linear { factor } => factor,
            _ => {
                let problem = "the model's rope_scaling is of another type than linear and cannot be interpolated as well: \
                               leave the adapter's rope_scaling out, the model takes long contexts already";
                return Err(ModelError::Config { path: path.to_path_buf(), problems: vec![problem.to_owned()] });
            }
        };
        let mut json = self.json.clone();
        let positions = (self.max_position_embeddings as f64 * factor / before).round() as u64;
        json.insert("max_position_embeddings".to_owned(), positions.into());
        let scaling = json!({"rope_type": "linear", "factor": factor});
        match json.get_mut("rope_parameters").and_then(Value::as_object_mut).filter(|all| !all.is_empty()) {
            Some(parameters) => {
                let mut scaling = scaling;
                scaling["rope_theta"] = self.rope.theta.into();
                match parameters.get_mut("full_attention") {
                    Some(full) => *full = scaling,
                    None => drop(json.insert("rope_parameters".to_owned(), scaling)),
                }
                json.remove("rope_scaling");
            }
            None => drop(json.insert("rope_scaling".to_owned(), scaling)),
        }
        Self::from_json(json, path)
    }
}

/// What a `config.json` says that rotary positions are divided by: the factor of `rope_scaling` of type `linear`, else 1.
pub fn rope_factor(json: &Map<String, Value>) -> f64 {
    let filled = |key: &str| json.get(key).and_then(Value::as_object).filter(|object| !object.is_empty());
    let scaling = filled("rope_scaling").or_else(|| {
        let parameters = filled("rope_parameters")?;
        parameters.get("full_attention").map_or(Some(parameters), Value::as_object)
    });
    let kind = |scaling: &Map<String, Value>| scaling.get("rope_type").or_else(|| scaling.get("type")).cloned();
    let linear = scaling.filter(|scaling| kind(scaling).is_some_and(|kind| kind == "linear"));
    linear.and_then(|scaling| scaling.get("factor")?.as_f64()).unwrap_or(1.0)
}

/// Where the model types' configuration classes differ.
struct Defaults {
    model_type: &'static str,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
}

impl Defaults {
    fn of(model_type: &str) -> Option<Self> {
        let [llama, mistral, qwen2, qwen3, gemma3] = MODEL_TYPES;
        let of_llama = Self {
            model_type: llama,
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings: 2048,
        };
        let of_qwen2 = Self {
            model_type: qwen2,
            vocab_size: 151_936,
            intermediate_size: 22_016,
            num_key_value_heads: Some(32),
            max_position_embeddings: 32_768,
            ..of_llama
        };
        match model_type {
            "llama" => Some(of_llama),
            "mistral" => Some(Self {
                model_type: mistral,
                intermediate_size: 14_336,
                num_key_value_heads: Some(8),
                max_position_embeddings: 4096 * 32,
                ..of_llama
            }),
            "qwen2" => Some(of_qwen2),
            "qwen3" => Some(Self { model_type: qwen3, head_dim: Some(128), ..of_qwen2 }),
            "gemma3_text" => Some(Self {
                model_type: gemma3,
                vocab_size: 262_208,
                hidden_size: 2304,
                intermediate_size: 9216,
                num_hidden_layers: 26,
                num_attention_heads: 8,
                num_key_value_heads: Some(4),
                head_dim: Some(256),
                max_position_embeddings: 131_072,
            }),
            _ => None,
        }
    }
}

impl Fields<'_> {
    /// The window of each block. Mistral's holds everywhere; Qwen's only where `layer_types` (or, without it,
    /// `max_window_layers`) says so, and only with `use_sliding_window`; Gemma's where `layer_types` says so, or in all
    /// blocks but every sixth.
    fn sliding_windows(&mut self, model_type: &str, blocks: usize) -> Vec<Option<usize>> {
        const DEFAULT: usize = 4096;
        if model_type == "llama" {
            return vec![None; blocks];
        }
        let window = match self.json.get("sliding_window") {
            Some(Value::Null) => None,
            _ => Some(self.size("sliding_window", DEFAULT)),
        };
        if model_type == "mistral" {
            return vec![window; blocks];
        }
        let is_gemma = model_type == "gemma3_text";
        let window = window.filter(|_| is_gemma || self.flag("use_sliding_window", false));
        let Some(types) = self.value("layer_types").cloned() else {
            if is_gemma {
                let pattern = self.size("_sliding_window_pattern", 6);
                let pattern = self.size("sliding_window_pattern", pattern);
                return (1..=blocks).map(|block| window.filter(|_| !block.is_multiple_of(pattern))).collect();
            }
            let full = match self.json.get("max_window_layers").and_then(Value::as_u64) {
                Some(0) => 0,
                _ => self.size("max_window_layers", 28),
            };
            return (0..blocks).map(|block| window.filter(|_| block >= full)).collect();
        };
        let types: Vec<&str> = types.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if types.len() != blocks {
            self.problems.push(format!("layer_types names {} layers, num_hidden_layers is {blocks}", types.len()));
        }
        let mut windows = Vec::with_capacity(blocks);
        for (block, layer_type) in types.into_iter().enumerate() {
            match (layer_type, window) {
                ("full_attention", _) => windows.push(None),
                ("sliding_attention", Some(window)) => windows.push(Some(window)),
                ("sliding_attention", None) => self.problems.push(format!(
                    "layer_types[{block}] is \"sliding_attention\", but use_sliding_window is false or sliding_window \
                     is null"
                )),
                (other, _) => self.problems.push(format!("layer_types[{block}] {other:?} is not supported")),
            }
        }
        windows
    }

    /// Notes what Gemma 3's configuration class allows and no published text model uses.
    fn refuse_unlike_gemma3_text(&mut self) {
        for key in ["final_logit_softcapping", "attn_logit_softcapping"] {
            if let Some(value) = self.value(key) {
                let problem = format!("{key} is {value}: logits are not capped, only null is supported");
                self.problems.push(problem);
            }
        }
        if self.flag("use_bidirectional_attention", false) {
            self.problems.push("use_bidirectional_attention is true: only causal attention is supported".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: Value) -> Result<LlamaConfig, ModelError> {
        LlamaConfig::from_json(json.as_object().unwrap().clone(), Path::new("config.json"))
    }

    fn problems(json: Value) -> Vec<String> {
        match config(json).unwrap_err() {
            ModelError::Config { problems, .. } => problems,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn missing_keys_take_the_defaults_of_their_model_type() {
        let llama = config(json!({"model_type": "llama"})).unwrap();
        assert_eq!((llama.vocab_size, llama.intermediate_size, llama.num_key_value_heads), (32_000, 11_008, 32));
        assert_eq!((llama.max_position_embeddings, llama.head_dim, llama.rms_norm_eps), (2048, 128, 1e-6));
        assert_eq!(llama.rope, Rope { theta: 10_000.0, scaling: RopeScaling::Default });
        assert!(!llama.tie_word_embeddings && !llama.qkv_bias && !llama.output_bias && !llama.mlp_bias);
        let mistral = config(json!({"model_type": "mistral"})).unwrap();
        assert_eq!((mistral.intermediate_size, mistral.num_key_value_heads), (14_336, 8));
        assert_eq!(mistral.sliding_windows, vec![Some(4096); 32]);
        let qwen2 = config(json!({"model_type": "qwen2"})).unwrap();
        assert_eq!((qwen2.vocab_size, qwen2.intermediate_size, qwen2.num_key_value_heads), (151_936, 22_016, 32));
        assert_eq!(qwen2.sliding_windows, vec![None; 32]);
        assert!(qwen2.qkv_bias && !qwen2.output_bias);
    }

    #[test]
    fn null_is_not_missing_where_transformers_tells_them_apart() {
        let mistral = config(json!({"model_type": "mistral", "sliding_window": null, "num_key_value_heads": null}));
        let mistral = mistral.unwrap();
        assert_eq!((mistral.sliding_windows[0], mistral.num_key_value_heads), (None, 32));
    }

    #[test]
    fn llama_biases_follow_their_flags() {
        let llama = config(json!({"model_type": "llama", "attention_bias": true, "mlp_bias": true})).unwrap();
        assert!(llama.qkv_bias && llama.output_bias && llama.mlp_bias);
        let mistral = config(json!({"model_type": "mistral", "attention_bias": true})).unwrap();
        assert!(!mistral.qkv_bias && !mistral.output_bias);
    }

    #[test]
    fn qwen2_windows_follow_layers() {
        let windows = |extra: Value| {
            let mut json = json!({
                "model_type": "qwen2", "num_hidden_layers": 3, "sliding_window": 16, "use_sliding_window": true,
            });
            json.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            config(json).unwrap().sliding_windows
        };
        assert_eq!(windows(json!({"max_window_layers": 1})), [None, Some(16), Some(16)]);
        assert_eq!(windows(json!({"max_window_layers": 0})), [Some(16); 3]);
        assert_eq!(windows(json!({"max_window_layers": 1, "use_sliding_window": false})), [None; 3]);
        let types = ["sliding_attention", "full_attention", "sliding_attention"];
        assert_eq!(windows(json!({"layer_types": types})), [Some(16), None, Some(16)]);
    }

    #[test]
    fn both_forms_of_rope_are_read() {
        let llama3 = json!({
            "rope_type": "llama3", "factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
        let old = config(json!({"model_type": "llama", "rope_theta": 5e5, "rope_scaling": llama3})).unwrap();
        let mut parameters = llama3.clone();
        parameters["rope_theta"] = json!(5e5);
        let new = config(json!({"model_type": "llama", "rope_parameters": parameters})).unwrap();
        assert_eq!(old.rope, new.rope);
        assert!(matches!(old.rope.scaling, RopeScaling::Llama3 { factor: 8.0, .. }) && old.rope.theta == 5e5);
        let oldest = json!({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}});
        assert_eq!(config(oldest).unwrap().rope.scaling, RopeScaling::Linear { factor: 2.0 });
    }

    #[test]
    fn yarns_attention_factor_follows_from_what_is_said() {
        let factor = |more: Value| {
            let mut scaling = json!({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096});
            scaling.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            config(json!({"model_type": "qwen2", "rope_scaling": scaling})).unwrap().rope.attention_factor()
        };
        assert_eq!(factor(json!({})), (0.1f64 * 8.0f64.ln() + 1.0) as f32);
        assert_eq!(factor(json!({"mscale": 1.5, "mscale_all_dim": 0.5})), 1.188_36);
        assert_eq!(factor(json!({"attention_factor": 2.0, "mscale": 1.5})), 2.0);
        let without = json!({"rope_type": "yarn", "original_max_position_embeddings": 8192});
        let config = config(json!({"model_type": "qwen2", "rope_scaling": without})).unwrap();
        assert!(matches!(config.rope.scaling, RopeScaling::Yarn { factor: 4.0, .. }), "{:?}", config.rope);
    }

    #[test]
    fn interpolation_keeps_everything_but_positions() {
        let path = Path::new("config.json");
        for old in [
            json!({"model_type": "qwen2", "rope_theta": 5e5, "max_position_embeddings": 64}),
            json!({"model_type": "qwen2", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
                "max_position_embeddings": 64}),
            json!({"model_type": "qwen2", "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0},
                "max_position_embeddings": 128}),
        ] {
            let old = config(old).unwrap();
            let new = old.interpolated(4.0, path).unwrap();
            assert_eq!(new.rope, Rope { theta: 5e5, scaling: RopeScaling::Linear { factor: 4.0 } });
            assert_eq!((new.max_position_embeddings, rope_factor(&new.json)), (256, 4.0));
        }
        let gemma = config(json!({"model_type": "gemma3_text", "layer_types": vec!["full_attention"; 26],
            "rope_parameters": {"full_attention": {"rope_theta": 5e5}, "sliding_attention": {"rope_theta": 2e4}}}));
        let gemma = gemma.unwrap();
        let new = gemma.interpolated(2.0, path).unwrap();
        assert_eq!((new.rope.scaling, new.local_rope), (RopeScaling::Linear { factor: 2.0 }, gemma.local_rope));
        assert_eq!((new.rope.theta, rope_factor(&new.json)), (5e5, 2.0));
        let scaled = json!({"model_type": "llama", "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}});
        let text = config(scaled).unwrap().interpolated(2.0, path).unwrap_err().to_string();
        assert!(text.contains("cannot be interpolated as well"), "{text}");
    }

    #[test]
    fn all_problems_are_reported_together() {
        let found = problems(json!({
            "model_type": "llama", "hidden_size": -1, "num_attention_heads": 6, "num_key_value_heads": 4,
            "head_dim": 7, "hidden_act": "mish", "rms_norm_eps": "small", "tie_word_embeddings": 1,
            "num_hidden_layers": 2_000_000_000, "rope_scaling": {"rope_type": "longrope", "factor": 2.0},
            "quantization_config": {"quant_method": "gptq"},
        }));
        let expected = [
            "hidden_size is -1",
            "not a multiple of num_key_value_heads 4",
            "head_dim 7 is not even",
            "num_hidden_layers 2000000000",
            "rms_norm_eps is \"small\"",
            "hidden_act \"mish\"",
            "quantization_config",
            "rope_scaling: rope_type \"longrope\" is not supported; known: default, dynamic, linear, llama3, yarn",
            "tie_word_embeddings is 1",
        ];
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{found:?} does not contain {expected:?}");
        }
        let llama3 = problems(json!({"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}}));
        assert!(
            llama3.iter().any(|problem| problem.contains("rope_scaling: low_freq_factor is missing")),
            "{llama3:?}"
        );
    }

    #[test]
    fn an_unknown_model_type_lists_the_known_ones() {
        let text = config(json!({"model_type": "gpt9"})).unwrap_err().to_string();
        assert!(text.contains("\"gpt9\"") && text.contains("llama, mistral, qwen2"), "{text}");
    }

    #[test]
    fn qwen3_norms_heads_of_a_width_of_their_own() {
        let qwen3 = config(json!({"model_type": "qwen3", "hidden_size": 64})).unwrap();
        assert_eq!((qwen3.head_dim, qwen3.num_key_value_heads, qwen3.attention_scale), (128, 32, 128f32.powf(-0.5)));
        assert!(qwen3.query_key_norm && !qwen3.qkv_bias && !qwen3.output_norms && !qwen3.centred_norms);
    }

    #[test]
    fn gemma3_has_two_kinds_of_blocks() {
        let gemma = |extra: Value| {
            let mut json = json!({"model_type": "gemma3_text", "num_hidden_layers": 7, "hidden_size": 64});
            json.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            config(json).unwrap()
        };
        let old = gemma(json!({
            "sliding_window": 16, "rope_theta": 5e5, "rope_local_base_freq": 2e4, "query_pre_attn_scalar": 64,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        }));
        assert_eq!(old.sliding_windows, [Some(16), Some(16), Some(16), Some(16), Some(16), None, Some(16)]);
        assert_eq!(old.rope, Rope { theta: 5e5, scaling: RopeScaling::Linear { factor: 8.0 } });
        assert_eq!(old.local_rope, Some(Rope { theta: 2e4, scaling: RopeScaling::Default }));
        assert_eq!((old.embedding_scale, old.attention_scale, old.head_dim), (8.0, 0.125, 256));
        assert!(old.tie_word_embeddings && old.query_key_norm && old.output_norms && old.centred_norms);
        let new = gemma(json!({
            "layer_types": vec!["full_attention"; 7], "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
            },
        }));
        assert_eq!((new.rope, new.local_rope), (old.rope, old.local_rope));
        assert_eq!(new.sliding_windows, [None; 7]);
        let found = problems(json!({"model_type": "gemma3_text", "final_logit_softcapping": 30.0}));
        assert!(found[0].contains("final_logit_softcapping is 30.0"), "{found:?}");
    }
}
