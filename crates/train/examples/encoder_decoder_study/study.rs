//! Tiny encoder-decoders learn to reverse strings, all weights trained from a random start; the frozen result then learns
//! a shifted alphabet with each method.

use std::path::Path;
use std::sync::Arc;

use tunesmith_methods::{BuiltAdapter, FullTuner, MethodConfig, build};
use tunesmith_models::{
    BeamSearch, EarlyStopping, GenerationDefaults, GenerationOptions, LoadedModel, Model, ModelKind, NumberFormat,
    load_model, save_folder, search,
};
use tunesmith_tensor::{Adapter, Gradients, Seed, SiteId, Stream, Workspace};
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
}

impl Study {
    /// Trains all weights of the randomly initialised model in `folder` to reverse strings, and freezes them.
    pub(crate) fn pretrain(&self, folder: &Path) -> Pretrained {
        let LoadedModel { model, generation, .. } = load_model(folder).expect("the model loads");
        let end = generation.eos_token_ids[0];
        let mut adapter = Adapter::new();
        for (number, site) in model.sites().iter().enumerate() {
            if let Some(base) = model.base(SiteId(number)) {
                adapter.insert_weight(SiteId(number), Box::new(FullTuner::new(site, base)));
            }
        }
        self.train(&*model, &mut adapter, end, 0, self.pretraining, 3e-3);
        let replaced =
            describe(&*model, None, None, |description| merged_tensors(&adapter, description)).expect("weights merge");
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
        let value = serde_json::from_str(method).expect("the method is JSON");
        let config = MethodConfig::from_run_file(&value).unwrap_or_else(|error| panic!("{method}: {error}"));
        let built = describe(&**model, None, None, |description| build(&config, description, Seed(1)));
        let BuiltAdapter { mut adapter, .. } = built.unwrap_or_else(|error| panic!("{method}: {error}"));
        let before = self.exact_match(&**model, Some(&adapter), *end, SHIFT);
        self.train(&**model, &mut adapter, *end, SHIFT, self.adaptation, learning_rate);
        let after = self.exact_match(&**model, Some(&adapter), *end, SHIFT);
        Adapted { values: adapter.trainable_values(), exact_match: [before, after] }
    }

    fn train(&self, model: &dyn Model, adapter: &mut Adapter, end: u32, shift: u32, steps: u64, learning_rate: f64) {
        let ModelKind::EncoderDecoder { decoder_start_token_id, .. } = model.info().kind else {
            panic!("the study is of encoder-decoders")
        };
        let workspace = Workspace::new();
        let group = |_: &_| ParameterGroup::default();
        let mut optimizer = Optimizer::new(AdamW::default(), 0.0, &adapter.parameters(), group);
        let mut gradients = Gradients::new(&workspace);
        for step in 0..steps {
            let mut stream = Seed(0).stream("training strings", step);
            let pairs: Vec<Pair> = (0..self.batch).map(|_| self.pair(&mut stream, end, shift)).collect();
            let examples = pairs.iter().map(|(source, labels)| (&source[..], &labels[..]));
            let batch = Batch::seq2seq(examples, decoder_start_token_id, 0);
            gradients.clear();
            mean_loss(&[batch], model, adapter, &workspace, None, &mut gradients);
            let rise = ((step + 1) as f64 / WARMUP as f64).min(1.0);
            let fall = 1.0 - step as f64 / steps as f64;
            let rate = learning_rate * rise * fall;
            optimizer.step(&mut adapter.parameters_mut(), &gradients, rate).expect("every tensor has a gradient");
        }
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
