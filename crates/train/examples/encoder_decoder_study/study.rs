//! Tiny encoder-decoders learn to reverse strings, all weights trained from a random start; the frozen result then learns
//! a shifted alphabet with each method.

use std::path::Path;
use std::sync::Arc;

use tunesmith_methods::{BuiltAdapter, MethodConfig, build};
use tunesmith_models::{
    BeamSearch, EarlyStopping, GenerationDefaults, GenerationOptions, LoadedModel, Model, ModelKind, NumberFormat,
    load_model, save_folder, search,
};
use tunesmith_tensor::{Adapter, Gradients, Seed, Stream, Workspace};
use tunesmith_train::{AdamW, Batch, Optimizer, ParameterGroup, describe, mean_loss, merged_tensors};

/// The id of the first letter.
const FIRST_LETTER: u32 = 10;
/// Places by which letters move in the second task.
const SHIFT: u32 = 3;
/// Updates over which the learning rate rises.
const WARMUP: u64 = 50;

/// How large the task is, and how long is trained.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Study {
    /// Number of letters.
    pub(crate) letters: u32,
    /// Letters of the longest string; the shortest has two.
    pub(crate) longest: u32,
    /// Strings of an update.
    pub(crate) batch: usize,
    /// Updates of all weights.
    pub(crate) pretraining: u64,
    /// Updates of a method.
    pub(crate) adaptation: u64,
    /// Held-out strings.
    pub(crate) tested: usize,
}

/// Every method that fits an encoder-decoder, as it stands in a run's configuration, with its name and learning rate.
pub(crate) const METHODS: &[(&str, &str, f64)] = &[
    ("full fine-tuning", r#"{"peft_type": "FULL"}"#, 1e-3),
    ("top layer", r#"{"peft_type": "FULL", "top_layers": 1}"#, 3e-3),
    ("layer norms", r#"{"peft_type": "LN_TUNING"}"#, 1e-2),
    ("prompt tuning", r#"{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8}"#, 3e-2),
    ("P-tuning (MLP)", r#"{"peft_type": "P_TUNING", "num_virtual_tokens": 8, "encoder_hidden_size": 32}"#, 1e-2),
    (
        "P-tuning (LSTM)",
        r#"{"peft_type": "P_TUNING", "num_virtual_tokens": 8, "encoder_hidden_size": 16, "encoder_reparameterization_type": "LSTM"}"#,
        1e-2,
    ),
    ("prefix tuning", r#"{"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 8}"#, 3e-2),
    (
        "prefix tuning (MLP)",
        r#"{"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 8, "prefix_projection": true, "encoder_hidden_size": 32}"#,
        1e-2,
    ),
    ("Houlsby adapters", r#"{"peft_type": "HOULSBY", "reduction_factor": 4}"#, 1e-2),
    ("Pfeiffer adapters", r#"{"peft_type": "PFEIFFER", "reduction_factor": 4}"#, 1e-2),
    ("parallel adapters", r#"{"peft_type": "PARALLEL", "reduction_factor": 4}"#, 1e-2),
    ("LoRA, query and value", r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16}"#, 1e-2),
    ("LoRA", r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}"#, 1e-2),
    ("rsLoRA", r#"{"peft_type": "LORA", "r": 8, "use_rslora": true, "target_modules": "all-linear"}"#, 1e-2),
    (
        "DoRA",
        r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "use_dora": true, "target_modules": "all-linear"}"#,
        1e-2,
    ),
    (
        "PiSSA",
        r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 8, "init_lora_weights": "pissa", "target_modules": "all-linear"}"#,
        3e-3,
    ),
    ("DyLoRA", r#"{"peft_type": "DYLORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}"#, 1e-2),
    (
        "AdaLoRA",
        r#"{"peft_type": "ADALORA", "init_r": 12, "target_r": 8, "tinit": 4, "tfinal": 8, "deltaT": 2, "lora_alpha": 16, "target_modules": "all-linear"}"#,
        1e-2,
    ),
    ("VeRA", r#"{"peft_type": "VERA", "r": 32, "target_modules": "all-linear"}"#, 3e-2),
    ("IA3", r#"{"peft_type": "IA3"}"#, 3e-2),
    ("intrinsic dimension, d = 500", r#"{"peft_type": "INTRINSIC", "intrinsic_dimension": 500}"#, 1e-2),
    ("SAID, d = 500", r#"{"peft_type": "SAID", "intrinsic_dimension": 500}"#, 1e-2),
];

/// A string and what it should become.
type Pair = (Vec<u32>, Vec<u32>);

/// A model that has learned to reverse strings, frozen.
pub(crate) struct Pretrained {
    pub(crate) model: Arc<dyn Model>,
    /// Share of held-out strings that it reverses.
    pub(crate) exact_match: f64,
    end: u32,
}

/// What a method came to.
pub(crate) struct Adapted {
    /// Trainable values.
    pub(crate) values: usize,
    /// Share of held-out strings that become what they should, before training and after.
    pub(crate) exact_match: [f64; 2],
    /// Loss of the first update and of the last.
    pub(crate) loss: [f64; 2],
}

impl Study {
    /// Trains all weights of the randomly initialised model in `folder` to reverse strings, and freezes them.
    pub(crate) fn pretrain(&self, folder: &Path) -> Pretrained {
        let LoadedModel { model, generation, .. } = load_model(folder).expect("the model loads");
        let end = generation.eos_token_ids[0];
        let mut full = make(&*model, r#"{"peft_type": "FULL"}"#);
        self.train(&*model, &mut full, end, 0, self.pretraining, 3e-3);
        let adapter = &full.adapter;
        let replaced =
            describe(&*model, None, None, |description| merged_tensors(adapter, description)).expect("weights merge");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let defaults = GenerationDefaults::default();
        save_folder(folder.path(), &*model, None, &defaults, &replaced, NumberFormat::F32).expect("the model saves");
        let model = load_model(folder.path()).expect("the saved model loads").model;
        let exact_match = self.exact_match(&*model, None, end, 0);
        Pretrained { model, exact_match, end }
    }

    /// Trains a method, given as it stands in a run's configuration, to reverse into the shifted alphabet.
    pub(crate) fn adapt(&self, pretrained: &Pretrained, method: &str, learning_rate: f64) -> Adapted {
        let Pretrained { model, end, .. } = pretrained;
        let mut built = make(&**model, method);
        let before = self.exact_match(&**model, Some(&built.adapter), *end, SHIFT);
        let loss = self.train(&**model, &mut built, *end, SHIFT, self.adaptation, learning_rate);
        let after = self.exact_match(&**model, Some(&built.adapter), *end, SHIFT);
        Adapted { values: built.adapter.trainable_values(), exact_match: [before, after], loss }
    }

    /// Returns the losses of the first update and of the last.
    fn train(
        &self,
        model: &dyn Model,
        built: &mut BuiltAdapter,
        end: u32,
        shift: u32,
        steps: u64,
        learning_rate: f64,
    ) -> [f64; 2] {
        let ModelKind::EncoderDecoder { decoder_start_token_id, .. } = model.info().kind else {
            panic!("the study is of encoder-decoders")
        };
        let workspace = Workspace::new();
        let group = |_: &_| ParameterGroup::default();
        let mut optimizer = Optimizer::new(AdamW::default(), 0.0, &built.adapter.parameters(), group);
        let mut gradients = Gradients::new(&workspace);
        built.begin(steps).expect("the method fits the number of updates");
        let mut losses = [0.0; 2];
        for step in 0..steps {
            let mut stream = Seed(0).stream("training strings", step);
            let pairs: Vec<Pair> = (0..self.batch).map(|_| self.pair(&mut stream, end, shift)).collect();
            let examples = pairs.iter().map(|(source, labels)| (&source[..], &labels[..]));
            let batch = Batch::seq2seq(examples, decoder_start_token_id, 0);
            built.before_step(step);
            gradients.clear();
            let loss = mean_loss(&[batch], model, &built.adapter, &workspace, None, &mut gradients);
            losses = [if step == 0 { loss } else { losses[0] }, loss];
            built.regularise(&workspace, &mut gradients);
            let rise = ((step + 1) as f64 / WARMUP as f64).min(1.0);
            let fall = 1.0 - step as f64 / steps as f64;
            let rate = learning_rate * rise * fall;
            optimizer
                .step(&mut built.adapter.parameters_mut(), &gradients, 1.0, rate)
                .expect("every tensor has a gradient");
            built.after_step(&gradients, 1.0, step);
        }
        losses
    }

    fn pair(&self, stream: &mut Stream, end: u32, shift: u32) -> Pair {
        let below = |stream: &mut Stream, bound: u32| ((stream.uniform() * bound as f32) as u32).min(bound - 1);
        let length = 2 + below(stream, self.longest - 1);
        let letters: Vec<u32> = (0..length).map(|_| below(stream, self.letters)).collect();
        let word = |letters: &mut dyn Iterator<Item = u32>| -> Vec<u32> {
            letters.map(|letter| FIRST_LETTER + letter).chain([end]).collect()
        };
        let moved = &mut letters.iter().rev().map(|letter| (letter + shift) % self.letters);
        (word(&mut letters.iter().copied()), word(moved))
    }

    /// The share of held-out strings whose whole output is right.
    fn exact_match(&self, model: &dyn Model, adapter: Option<&Adapter>, end: u32, shift: u32) -> f64 {
        let mut stream = Seed(1).stream("held-out strings", 0);
        let pairs: Vec<Pair> = (0..self.tested).map(|_| self.pair(&mut stream, end, shift)).collect();
        let prompts: Vec<Vec<u32>> = pairs.iter().map(|(source, _)| source.clone()).collect();
        let defaults = GenerationDefaults { eos_token_ids: vec![end], ..GenerationDefaults::default() };
        let options = GenerationOptions::greedy(self.longest as usize + 2, &defaults);
        let greedy = BeamSearch { early_stopping: EarlyStopping::AtOnce, ..BeamSearch::new(1) };
        let adapters = vec![adapter; prompts.len()];
        let found = search(model, &Workspace::new(), &prompts, &adapters, &options, &greedy, None);
        let is_right = |(found, (_, labels)): &(&Vec<_>, &Pair)| {
            let hypothesis: &tunesmith_models::Hypothesis = &found[0];
            hypothesis.ids == labels[..labels.len() - 1]
        };
        found.iter().zip(&pairs).filter(is_right).count() as f64 / self.tested as f64
    }
}

/// A method at its start, given as it stands in a run's configuration.
fn make(model: &dyn Model, method: &str) -> BuiltAdapter {
    let value = serde_json::from_str(method).expect("the method is JSON");
    let config = MethodConfig::from_run_file(&value).unwrap_or_else(|error| panic!("{method}: {error}"));
    let built = describe(model, None, None, |description| build(&config, description, Seed(1)));
    built.unwrap_or_else(|error| panic!("{method}: {error}"))
}
