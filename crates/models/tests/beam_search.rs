//! Beam search and penalties against transformers' `generate` (`data/make_beam_search.py`).

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use tunesmith_models::{
    BeamSearch, EarlyStopping, FinishReason, Generated, GenerationDefaults, GenerationOptions, Hypothesis, Model,
    TextTokenizer, generate, load_model, search,
};
use tunesmith_tensor::Workspace;

#[derive(Deserialize)]
struct Case {
    model: String,
    settings: Map<String, Value>,
    eos_token_ids: Vec<u32>,
    max_new_tokens: usize,
    prompts: Vec<Vec<u32>>,
    /// For each prompt its texts, best first.
    found: Vec<Vec<Text>>,
}

#[derive(Deserialize)]
struct Text {
    ids: Vec<u32>,
    /// Whether one of `eos_token_ids` ended it.
    ended: bool,
    score: Option<f32>,
}

impl Case {
    fn number<T: serde::de::DeserializeOwned>(&self, key: &str) -> Option<T> {
        self.settings.get(key).map(|value| serde_json::from_value(value.clone()).expect("settings are numbers"))
    }

    fn beams(&self) -> BeamSearch {
        let early_stopping = match self.settings.get("early_stopping") {
            None => EarlyStopping::Heuristic,
            Some(Value::Bool(true)) => EarlyStopping::AtOnce,
            Some(value) => {
                assert_eq!(value, "never");
                EarlyStopping::Never
            }
        };
        BeamSearch {
            num_beams: self.number("num_beams").expect("every case says its beams"),
            length_penalty: self.number("length_penalty").unwrap_or(1.0),
            early_stopping,
            num_return_sequences: self.number("num_return_sequences").unwrap_or(1),
        }
    }

    fn options(&self) -> GenerationOptions {
        let defaults = GenerationDefaults {
            eos_token_ids: self.eos_token_ids.clone(),
            forced_bos_token_id: self.number("forced_bos_token_id"),
            forced_eos_token_id: self.number("forced_eos_token_id"),
            ..GenerationDefaults::default()
        };
        let mut options = GenerationOptions::greedy(self.max_new_tokens, &defaults);
        options.sampling.repetition_penalty = self.number("repetition_penalty").unwrap_or(1.0);
        options.sampling.no_repeat_ngram_size = self.number("no_repeat_ngram_size").unwrap_or(0);
        options
    }

    /// What is found for some of the prompts, together in a batch; without beams, token after token.
    fn search(&self, model: &dyn Model, prompts: &[Vec<u32>]) -> Vec<Vec<Hypothesis>> {
        let adapters = vec![None; prompts.len()];
        if self.beams().num_beams == 1 {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/tests/data/tiny-tokenizer");
            let tokenizer = TextTokenizer::open(&folder).expect("the tokenizer is committed");
            let options = self.options();
            let found = generate(model, &tokenizer, &Workspace::new(), prompts, &adapters, &options, |_, _| {});
            let alone = |one: Generated| vec![Hypothesis { ids: one.ids, score: f32::NAN, finish: one.finish }];
            return found.into_iter().map(alone).collect();
        }
        search(model, &Workspace::new(), prompts, &adapters, &self.options(), &self.beams(), None)
    }
}

#[test]
fn equals_transformers() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("data/beam_search.json")).unwrap();
    let mut models: BTreeMap<String, _> = BTreeMap::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    for case in &cases {
        let folder = fixtures.join(&case.model).join("model");
        let model = models.entry(case.model.clone()).or_insert_with(|| load_model(&folder).unwrap().model);
        let together = case.search(&**model, &case.prompts);
        let name = format!("{} {:?} {:?}", case.model, case.settings, case.eos_token_ids);
        for (number, (found, expected)) in together.iter().zip(&case.found).enumerate() {
            assert_eq!(found.len(), expected.len(), "{name}, prompt {number}");
            for (found, expected) in found.iter().zip(expected) {
                assert_eq!(found.ids, expected.ids, "{name}, prompt {number}: {found:?}");
                assert_eq!(found.finish == FinishReason::EndOfSequence, expected.ended, "{name}, prompt {number}");
                if let Some(score) = expected.score {
                    assert!(
                        (found.score - score).abs() <= 1e-5 * score.abs().max(1.0),
                        "{name}: {found:?}, not {score}"
                    );
                }
            }
        }
        // The company of other prompts changes nothing.
        let alone = case.search(&**model, &case.prompts[1..2]);
        let ids = |found: &[Hypothesis]| found.iter().map(|one| (one.ids.clone(), one.finish)).collect::<Vec<_>>();
        assert_eq!(ids(&alone[0]), ids(&together[1]), "{name}");
    }
}

#[test]
fn text_that_stops_a_beam_ends_it() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let model = load_model(&fixtures.join("llama/model")).unwrap().model;
    let options = GenerationOptions::greedy(6, &GenerationDefaults::default());
    let stops = |ids: &[u32]| ids.len() == 3;
    let prompts = [vec![5, 6, 7]];
    let found = search(&*model, &Workspace::new(), &prompts, &[None], &options, &BeamSearch::new(3), Some(&stops));
    assert_eq!((found[0][0].ids.len(), found[0][0].finish), (3, FinishReason::Stop));
    let none = GenerationOptions { max_new_tokens: 0, ..options };
    let found = search(&*model, &Workspace::new(), &prompts, &[None], &none, &BeamSearch::new(3), None);
    assert_eq!((found[0][0].ids.len(), found[0][0].finish), (0, FinishReason::Length));
}
