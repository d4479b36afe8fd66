//! BART's configuration, from Hugging Face's `config.json`. Missing keys take the defaults of transformers; all problems
//! of a file are reported together.

use std::path::Path;

use serde_json::{Map, Value};
use tunesmith_tensor::Activation;

use crate::error::ModelError;
use crate::fields::Fields;
use crate::head::{HeadPlan, plan_head};
use crate::task::{HeadInfo, HeadOptions, Task};

/// A BART.
#[derive(Clone, Debug)]
pub(super) struct BartConfig {
    pub(super) vocab_size: usize,
    pub(super) d_model: usize,
    pub(super) encoder: StackConfig,
    pub(super) decoder: StackConfig,
    pub(super) max_position_embeddings: usize,
    pub(super) activation: Activation,
    pub(super) dropout: f32,
    pub(super) activation_dropout: f32,
    /// Dropout of attention's weights.
    pub(super) attention_dropout: f32,
    /// Whether token embeddings are multiplied by `√d_model`.
    pub(super) scale_embedding: bool,
    /// Whether both stacks and the outputs share one table of token embeddings.
    pub(super) tie_word_embeddings: bool,
    pub(super) init_std: f32,
    pub(super) decoder_start_token_id: u32,
    pub(super) head: Option<HeadPlan>,
    pub(super) head_info: HeadInfo,
    pub(super) head_options: HeadOptions,
    /// The whole `config.json`, for saving.
    pub(super) json: Map<String, Value>,
}

/// Sizes of the encoder or the decoder.
#[derive(Clone, Copy, Debug)]
pub(super) struct StackConfig {
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) inner_size: usize,
}

impl BartConfig {
    /// Reads a configuration. `path` is the file it came from, for messages.
    ///
    /// # Errors
    /// [`ModelError::Config`] with every problem found.
    pub(super) fn from_json(json: &Map<String, Value>, path: &Path, options: &HeadOptions) -> Result<Self, ModelError> {
        let mut fields = Fields::new(json);
        fields.refuse_quantisation();
        let d_model = fields.size("d_model", 1024);
        let [encoder, decoder] = ["encoder", "decoder"].map(|stack| StackConfig::read(&mut fields, stack, d_model));
        // Forks of the class added these; BART itself has neither.
        for (key, usual) in
            [("normalize_before", false), ("add_final_layer_norm", false), ("normalize_embedding", true)]
        {
            if fields.flag(key, usual) != usual {
                fields.problems.push(format!("{key} is {}: such variants of BART are not supported", !usual));
            }
        }
        for key in ["encoder_layerdrop", "decoder_layerdrop"] {
            if fields.fraction(key, 0.0) > 0.0 {
                fields.problems.push(format!("{key} is not 0: layers are never dropped as a whole"));
            }
        }
        let dropout = fields.fraction("classifier_dropout", 0.0);
        let (head, head_info, json) =
            plan_head(&mut fields, options, "Bart", Task::Seq2SeqLm, &|task, fields| match task {
                Task::SeqCls => Some(HeadPlan::of_last(fields.token_id("eos_token_id", 2), dropout)),
                Task::QuestionAns => Some(HeadPlan::of_tokens("qa_outputs", 0.0)),
                _ => None,
            });
        let config = Self {
            vocab_size: fields.size("vocab_size", 50_265),
            max_position_embeddings: fields.size("max_position_embeddings", 1024),
            activation: fields.activation("activation_function", "gelu"),
            dropout: fields.fraction("dropout", 0.1),
            activation_dropout: fields.fraction("activation_dropout", 0.0),
            attention_dropout: fields.fraction("attention_dropout", 0.0),
            scale_embedding: fields.flag("scale_embedding", false),
            tie_word_embeddings: fields.flag("tie_word_embeddings", true),
            init_std: fields.positive("init_std", 0.02) as f32,
            decoder_start_token_id: fields.token_id("decoder_start_token_id", 2),
            d_model,
            encoder,
            decoder,
            head,
            head_info,
            head_options: options.clone(),
            json,
        };
        fields.finish(config, path)
    }

    /// The path of a part of the bare model.
    pub(super) fn path(&self, part: &str) -> String {
        let prefix = if self.head_info.task == Task::FeatureExtraction { "" } else { "model." };
        format!("{prefix}{part}")
    }
}

impl StackConfig {
    fn read(fields: &mut Fields<'_>, stack: &str, d_model: usize) -> Self {
        let layers = fields.size(&format!("{stack}_layers"), 12);
        let heads = fields.size(&format!("{stack}_attention_heads"), 16);
        fields.check_blocks(&format!("{stack}_layers"), layers);
        fields.check_heads(("d_model", d_model), (&format!("{stack}_attention_heads"), heads));
        Self { layers, heads, inner_size: fields.size(&format!("{stack}_ffn_dim"), 4096) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn missing_keys_take_transformers_defaults() {
        let json = json!({"model_type": "bart"});
        let options = HeadOptions::default();
        let large = BartConfig::from_json(json.as_object().unwrap(), Path::new("config.json"), &options).unwrap();
        assert_eq!((large.d_model, large.encoder.layers, large.decoder.heads), (1024, 12, 16));
        assert_eq!((large.decoder.inner_size, large.max_position_embeddings, large.vocab_size), (4096, 1024, 50_265));
        assert!(!large.scale_embedding && large.activation == Activation::Gelu);
    }

    #[test]
    fn all_problems_are_reported_together() {
        let json = json!({
            "d_model": 10, "encoder_attention_heads": 3, "decoder_attention_heads": 5, "normalize_before": true,
            "encoder_layerdrop": 0.1,
            "activation_function": "mish", "dropout": -0.1,
        });
        let options = HeadOptions::default();
        let found = BartConfig::from_json(json.as_object().unwrap(), Path::new("config.json"), &options);
        let ModelError::Config { problems, .. } = found.unwrap_err() else { panic!("another error") };
        let expected = [
            "encoder_attention_heads 3",
            "normalize_before is true",
            "encoder_layerdrop is not 0",
            "\"mish\"",
            "dropout is -0.1",
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.contains(expected), "{problem:?} does not contain {expected:?}");
        }
    }
}
