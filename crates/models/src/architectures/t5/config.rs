//! T5's configuration, from Hugging Face's `config.json`. Missing keys take the defaults of transformers; all problems of
//! a file are reported together.

use std::path::Path;

use serde_json::{Map, Value};
use tunesmith_tensor::Activation;

use crate::error::ModelError;
use crate::fields::Fields;
use crate::head::{HeadPlan, plan_head};
use crate::task::{HeadInfo, HeadOptions, Task};

/// A T5.
#[derive(Clone, Debug)]
pub(super) struct T5Config {
    pub(super) model_type: String,
    pub(super) vocab_size: usize,
    pub(super) d_model: usize,
    /// Width of a head.
    pub(super) d_kv: usize,
    pub(super) d_ff: usize,
    pub(super) num_layers: usize,
    pub(super) num_decoder_layers: usize,
    pub(super) num_heads: usize,
    pub(super) buckets: usize,
    pub(super) max_distance: usize,
    pub(super) dropout: f32,
    pub(super) norm_epsilon: f32,
    pub(super) activation: Activation,
    pub(super) is_gated: bool,
    /// Whether the decoder's outputs are divided by `√d_model` before the output embedding.
    pub(super) scale_decoder_outputs: bool,
    pub(super) decoder_start_token_id: u32,
    /// Whether the encoder stands alone.
    pub(super) is_encoder_only: bool,
    /// Standard deviation of a new head's weights.
    pub(super) head_deviation: f32,
    pub(super) head: Option<HeadPlan>,
    pub(super) head_info: HeadInfo,
    pub(super) head_options: HeadOptions,
    /// The whole `config.json`, for saving.
    pub(super) json: Map<String, Value>,
}

impl T5Config {
    /// Reads a configuration. `path` is the file it came from, for messages.
    ///
    /// # Errors
    /// [`ModelError::Config`] with every problem found.
    pub(super) fn from_json(json: &Map<String, Value>, path: &Path, options: &HeadOptions) -> Result<Self, ModelError> {
        let mut fields = Fields::new(json);
        fields.refuse_quantisation();
        let model_type = fields.text("model_type", "t5");
        let is_multilingual = model_type == "mt5";
        let num_layers = fields.size("num_layers", if is_multilingual { 8 } else { 6 });
        let num_decoder_layers = fields.size("num_decoder_layers", num_layers);
        fields.check_blocks("num_layers", num_layers);
        fields.check_blocks("num_decoder_layers", num_decoder_layers);
        let (is_gated, activation) = feed_forward(&mut fields, is_multilingual);
        let buckets = fields.size("relative_attention_num_buckets", 32);
        let max_distance = fields.size("relative_attention_max_distance", 128);
        if buckets < 4 || !buckets.is_multiple_of(2) || max_distance <= buckets / 2 {
            fields.problems.push(format!(
                "relative_attention_num_buckets {buckets} and relative_attention_max_distance {max_distance} do not go \
                 together: buckets are an even number from 4 on, and the distance is more than half of it"
            ));
        }
        // The original T5 scaled its outputs and tied its embeddings; later ones do neither, and older files say only the
        // second.
        let was_tied = fields.flag("tie_word_embeddings", !is_multilingual);
        let scale_decoder_outputs = !is_multilingual && fields.flag("scale_decoder_outputs", was_tied);
        let pad_token_id = fields.token_id("pad_token_id", 0);
        let dropout = fields.fraction("classifier_dropout", 0.0);
        let class = if is_multilingual { "MT5" } else { "T5" };
        let (head, head_info, mut json) =
            plan_head(&mut fields, options, class, Task::Seq2SeqLm, &|task, fields| head(task, fields, dropout));
        json.insert("scale_decoder_outputs".to_owned(), Value::Bool(scale_decoder_outputs));
        let is_encoder_only = match head_info.task {
            Task::TokenCls => true,
            // What transformers calls T5Model has both stacks; features are the encoder's unless that is what is there.
            Task::FeatureExtraction => options.task.is_some() || fields.class() != Some(&format!("{class}Model")),
            _ => false,
        };
        if is_encoder_only && fields.flag("is_decoder", false) {
            fields.problems.push("is_decoder is true: an encoder that stands alone sees both ways".to_owned());
        }
        if is_encoder_only && head_info.task == Task::FeatureExtraction {
            json.insert("architectures".to_owned(), Value::from(vec![format!("{class}EncoderModel")]));
        }
        let d_model = fields.size("d_model", 512);
        let factor = fields.positive("initializer_factor", 1.0) as f32;
        let by_width = if head_info.task == Task::TokenCls { 1.0 } else { (d_model as f32).sqrt().recip() };
        let config = Self {
            vocab_size: fields.size("vocab_size", if is_multilingual { 250_112 } else { 32_128 }),
            d_kv: fields.size("d_kv", 64),
            d_ff: fields.size("d_ff", if is_multilingual { 1024 } else { 2048 }),
            num_heads: fields.size("num_heads", if is_multilingual { 6 } else { 8 }),
            dropout: fields.fraction("dropout_rate", 0.1),
            norm_epsilon: fields.positive("layer_norm_epsilon", 1e-6) as f32,
            decoder_start_token_id: fields.token_id("decoder_start_token_id", pad_token_id),
            is_encoder_only,
            head_deviation: factor * by_width,
            model_type,
            d_model,
            num_layers,
            num_decoder_layers,
            buckets,
            max_distance,
            activation,
            is_gated,
            scale_decoder_outputs,
            head,
            head_info,
            head_options: options.clone(),
            json,
        };
        fields.finish(config, path)
    }

    /// The path of a part of the bare model.
    pub(super) fn path(&self, part: &str) -> String {
        let prefix = if self.head_info.task.has_labels() { "transformer." } else { "" };
        format!("{prefix}{part}")
    }
}

/// Whether the feed-forward is gated, and its activation: `feed_forward_proj` is `relu`, `gated-gelu` and so on.
fn feed_forward(fields: &mut Fields<'_>, is_multilingual: bool) -> (bool, Activation) {
    let name = fields.text("feed_forward_proj", if is_multilingual { "gated-gelu" } else { "relu" });
    let (is_gated, function) = name.strip_prefix("gated-").map_or((false, name.as_str()), |function| (true, function));
    let activation = match function {
        // transformers takes the approximation for the gated one, whatever the name.
        "gelu" if is_gated => Some(Activation::GeluTanh),
        "gelu" => Some(Activation::Gelu),
        "gelu_new" => Some(Activation::GeluTanh),
        "relu" => Some(Activation::Relu),
        "silu" | "swish" => Some(Activation::Silu),
        _ => None,
    };
    let activation = activation.unwrap_or_else(|| {
        let known = "relu, gelu, gelu_new, silu, each perhaps with gated- before it";
        fields.problems.push(format!("feed_forward_proj {name:?} is not supported; known: {known}"));
        Activation::Relu
    });
    (is_gated, activation)
}

fn head(task: Task, fields: &mut Fields<'_>, dropout: f32) -> Option<HeadPlan> {
    match task {
        Task::SeqCls => Some(HeadPlan::of_last(fields.token_id("eos_token_id", 1), dropout)),
        Task::TokenCls => Some(HeadPlan::of_tokens("classifier", dropout)),
        Task::QuestionAns => Some(HeadPlan::of_tokens("qa_outputs", 0.0)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(json: Value) -> Result<T5Config, ModelError> {
        T5Config::from_json(json.as_object().unwrap(), Path::new("config.json"), &HeadOptions::default())
    }

    #[test]
    fn the_versions_differ_by_their_keys() {
        let first = config(json!({"model_type": "t5"})).unwrap();
        assert!(first.scale_decoder_outputs && !first.is_gated && first.activation == Activation::Relu);
        let second = config(json!({"tie_word_embeddings": false, "feed_forward_proj": "gated-gelu"})).unwrap();
        assert!(!second.scale_decoder_outputs && second.is_gated && second.activation == Activation::GeluTanh);
        let newer = config(json!({"tie_word_embeddings": true, "scale_decoder_outputs": false})).unwrap();
        assert!(!newer.scale_decoder_outputs);
        assert_eq!(newer.json["scale_decoder_outputs"], false);
        let multilingual = config(json!({"model_type": "mt5", "tie_word_embeddings": true})).unwrap();
        assert!(!multilingual.scale_decoder_outputs && multilingual.is_gated);
    }

    #[test]
    fn all_problems_are_reported_together() {
        let found = config(json!({
            "feed_forward_proj": "gated-mish", "relative_attention_num_buckets": 3, "dropout_rate": 1.5, "d_kv": 0,
            "pad_token_id": "<pad>",
        }));
        let ModelError::Config { problems, .. } = found.unwrap_err() else { panic!("another error") };
        let expected =
            ["gated-mish", "relative_attention_num_buckets 3", "pad_token_id is", "d_kv is 0", "dropout_rate is 1.5"];
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.contains(expected), "{problem:?} does not contain {expected:?}");
        }
    }
}
