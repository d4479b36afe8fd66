//! Tiny models, batches for them, and a configuration of every method.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tunesmith_methods::{BuiltAdapter, MethodConfig, MethodError, ModelDescription, build};
use tunesmith_models::{Model, ModelKind, load_model};
use tunesmith_tensor::{Gradients, IGNORED_TARGET, Seed, Segments, Workspace};
use tunesmith_train::{AdamW, Batch, Example, Optimizer, ParameterGroup, Targets, describe, mean_loss};

/// A model with a batch to train on.
pub(crate) struct Scene {
    /// The folder's name.
    pub(crate) name: String,
    pub(crate) model: Arc<dyn Model>,
    pub(crate) batch: Batch,
}

/// Every architecture among the fixtures, one folder each.
const ARCHITECTURES: &[&str] = &[
    "gpt2/model",
    "llama/model",
    "mistral/model",
    "qwen2/model",
    "qwen3/model",
    "gemma3/model",
    "bert/model",
    "roberta/model",
    "heads/distilbert-classes",
    "t5/model",
    "flan-t5/model",
    "bart/model",
];

/// All of them.
pub(crate) fn scenes() -> Vec<Scene> {
    ARCHITECTURES.iter().map(|name| Scene::new(name)).collect()
}

impl Scene {
    /// The model in a folder of the fixtures.
    pub(crate) fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name);
        let model = load_model(&folder).unwrap_or_else(|error| panic!("{name}: {error}")).model;
        let batch = batch(&*model);
        Self { name: name.to_owned(), model, batch }
    }

    pub(crate) fn build(&self, config: &Value) -> Result<BuiltAdapter, MethodError> {
        let config = MethodConfig::from_run_file(config).unwrap_or_else(|error| panic!("{config}: {error}"));
        self.describe(|model| build(&config, model, Seed(5)))
    }

    /// Calls `work` with what methods may know of the model.
    pub(crate) fn describe<R>(&self, work: impl FnOnce(&ModelDescription<'_>) -> R) -> R {
        describe(&*self.model, None, None, |model| work(&ModelDescription { tokenize: Some(&words), ..*model }))
    }

    /// The mean loss and its gradients in training; the models drop nothing out.
    pub(crate) fn loss(&self, built: &BuiltAdapter) -> (f64, Gradients) {
        let workspace = Workspace::new();
        let mut gradients = Gradients::new(&workspace);
        let loss = mean_loss(
            std::slice::from_ref(&self.batch),
            &*self.model,
            &built.adapter,
            &workspace,
            Some(Seed(3)),
            &mut gradients,
        );
        (loss + built.regularise(&workspace, &mut gradients), gradients)
    }

    pub(crate) fn optimizer(built: &BuiltAdapter) -> Optimizer {
        Optimizer::new(AdamW::default(), 0.0, &built.adapter.parameters(), |_| ParameterGroup::default())
    }

    /// Updates with these numbers; the loss before each.
    pub(crate) fn train(
        &self,
        built: &mut BuiltAdapter,
        optimizer: &mut Optimizer,
        steps: std::ops::Range<u64>,
        learning_rate: f64,
    ) -> Vec<f64> {
        let update = |step| {
            built.before_step(step);
            let (loss, gradients) = self.loss(built);
            optimizer.step(&mut built.adapter.parameters_mut(), &gradients, 1.0, learning_rate).unwrap();
            built.after_step(&gradients, 1.0, step);
            loss
        };
        steps.map(update).collect()
    }
}

/// A token a letter.
pub(crate) fn words(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| u32::from(byte) % 40 + 3).collect()
}

/// Two short sequences with labels of the model's task.
fn batch(model: &dyn Model) -> Batch {
    let info = model.info();
    let token = |place: u32| 3 + (place * 11 + place * place * 5) % (info.vocab_size as u32 - 4);
    let ids: Vec<Vec<u32>> = [9, 6]
        .iter()
        .enumerate()
        .map(|(row, length)| (0..*length).map(|at| token(at + 20 * row as u32)).collect())
        .collect();
    match info.kind {
        ModelKind::Decoder => {
            let example = |ids: &Vec<u32>| {
                let labels = ids.iter().enumerate().map(|(at, id)| if at < 2 { IGNORED_TARGET } else { *id }).collect();
                Example { ids: ids.clone(), labels }
            };
            Batch::new(&ids.iter().map(example).collect::<Vec<_>>())
        }
        ModelKind::EncoderDecoder { decoder_start_token_id, .. } => {
            let labels: Vec<Vec<u32>> = ids.iter().map(|ids| ids.iter().rev().take(5).copied().collect()).collect();
            let pairs = ids.iter().map(Vec::as_slice).zip(labels.iter().map(Vec::as_slice));
            Batch::seq2seq(pairs, decoder_start_token_id, 0)
        }
        ModelKind::Encoder => Batch {
            segments: Segments::from_lengths(ids.iter().map(Vec::len)),
            ids: ids.concat(),
            token_type_ids: Vec::new(),
            decoder: None,
            targets: Targets::Classes(vec![1, 0]),
        },
    }
}

/// What a configuration promises.
pub(crate) struct Case {
    pub(crate) config: Value,
    /// Whether it begins at the base to the last bit.
    pub(crate) starts_at_base: bool,
    /// Learning rate with which a few updates lower the loss.
    pub(crate) learning_rate: f64,
}

/// A configuration of every method, and of its variants.
pub(crate) fn cases() -> Vec<Case> {
    let case = |config: Value, starts_at_base, learning_rate| Case { config, starts_at_base, learning_rate };
    vec![
        case(json!({"peft_type": "LORA", "r": 3}), true, 1e-2),
        case(json!({"peft_type": "LORA", "r": 3, "use_dora": true}), false, 1e-2),
        case(json!({"peft_type": "LORA", "r": 2, "init_lora_weights": "pissa"}), false, 1e-2),
        case(json!({"peft_type": "ADALORA", "init_r": 4, "target_r": 2, "total_step": 100}), true, 1e-2),
        case(json!({"peft_type": "DYLORA", "r": 4}), true, 1e-2),
        case(json!({"peft_type": "LONG_LORA", "r": 2, "group_size": 4}), true, 1e-3),
        case(json!({"peft_type": "VERA", "r": 5}), true, 1e-2),
        case(json!({"peft_type": "IA3"}), true, 1e-2),
        case(json!({"peft_type": "LN_TUNING"}), true, 1e-2),
        case(json!({"peft_type": "BITFIT"}), true, 1e-2),
        case(json!({"peft_type": "TRAINABLE_TOKENS", "token_indices": [3, 14, 30]}), true, 1e-2),
        case(json!({"peft_type": "FULL"}), true, 1e-3),
        case(json!({"peft_type": "FULL", "top_layers": 1}), true, 1e-3),
        case(json!({"peft_type": "INTRINSIC", "intrinsic_dimension": 40}), true, 1e-1),
        case(json!({"peft_type": "SAID", "intrinsic_dimension": 40}), true, 1e-1),
        case(json!({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}), false, 1e-2),
        case(
            json!({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "ab"}),
            false,
            1e-2,
        ),
        case(json!({"peft_type": "P_TUNING", "num_virtual_tokens": 3}), false, 1e-2),
        case(
            json!({"peft_type": "P_TUNING", "num_virtual_tokens": 3, "encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 6}),
            false,
            1e-2,
        ),
        case(json!({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}), false, 1e-2),
        case(json!({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3, "prefix_projection": true}), false, 1e-3),
        case(json!({"peft_type": "HOULSBY", "reduction_factor": 4}), false, 1e-2),
        case(json!({"peft_type": "PFEIFFER", "reduction_factor": 4}), false, 1e-2),
        // ReLU has a kink, which differences fall over.
        case(json!({"peft_type": "PARALLEL", "reduction_factor": 4, "non_linearity": "gelu"}), false, 1e-2),
        case(json!({"peft_type": "PRE_EMBED", "prefix_tokens": 2, "infix_tokens": 1}), false, 1e-2),
        case(json!({"peft_type": "PRE_LAYER", "prefix_tokens": 2, "infix_tokens": 1}), false, 1e-2),
        case(
            json!([{"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2}, {"peft_type": "PARALLEL", "reduction_factor": 4}]),
            false,
            1e-2,
        ),
        case(
            json!([{"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2}, {"peft_type": "PRE_EMBED", "prefix_tokens": 2, "infix_tokens": 1}]),
            false,
            1e-2,
        ),
        case(
            json!([{"peft_type": "LORA", "r": 2}, {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}]),
            false,
            1e-2,
        ),
    ]
}
