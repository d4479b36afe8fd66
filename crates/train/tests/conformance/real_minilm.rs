//! The real sentence encoder: tokenizer and pooled embeddings of all-MiniLM-L6-v2.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tunesmith_models::{Inputs, LoadOptions, load};
use tunesmith_tensor::{Forward, Segments, Tape, Workspace};

use crate::Outcome;
use crate::compare::Errors;

const FOLDER: &str = "minilm-l6";

/// All of `minilm.json`; skipped where the model has not been pulled.
pub(crate) fn minilm(folder: &Path) -> Outcome {
    let Some(path) = crate::base_model(FOLDER) else {
        return Outcome::Skipped("the base model is absent: run `tunesmith pull minilm-l6`".to_owned());
    };
    let text = fs::read_to_string(folder.join("minilm.json")).expect("the fixture is readable");
    let expected: Value = serde_json::from_str(&text).expect("the fixture is JSON");
    let pretrained = load(&path, &LoadOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    let (model, tokenizer) = (&*pretrained.model, &pretrained.tokenizer);
    let mut errors = Errors::default();

    let cases = expected["embeddings"].as_array().expect("a list");
    let mut batch = Vec::new();
    for case in cases {
        let text = case["text"].as_str().expect("a text");
        let found = tokenizer.encode_pair(text, None, None).expect("text is tokenised").ids;
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).expect("token ids");
        errors.require(found == ids, &format!("{text:?} is tokenised as {found:?}"));
        batch.push(ids);
    }
    let pair = &expected["pair"];
    let texts: Vec<String> = serde_json::from_value(pair["texts"].clone()).expect("two texts");
    let found = tokenizer.encode_pair(&texts[0], Some(&texts[1]), None).expect("text is tokenised");
    let ids = |key: &str| -> Vec<u32> { serde_json::from_value(pair[key].clone()).expect("token ids") };
    errors.require(found.ids == ids("ids"), &format!("the pair is tokenised as {:?}", found.ids));
    errors.require(found.token_type_ids == ids("token_type_ids"), "the pair's token types differ");

    // All texts in one batch, mean-pooled and normalised.
    let segments = Segments::from_lengths(batch.iter().map(Vec::len));
    let mut tape = Tape::evaluating(&Workspace::new());
    let mut forward = Forward::new(&mut tape, segments.clone(), None);
    let hidden = model.hidden_states(&mut forward, &Inputs::tokens(&batch.concat()), None);
    let pooled = forward.tape().mean_rows(&hidden, &segments);
    for (row, case) in cases.iter().enumerate() {
        let pooled = pooled.value().row(row);
        let length = pooled.iter().map(|value| value * value).sum::<f32>().sqrt();
        let found: Vec<f32> = pooled.iter().map(|value| value / length).collect();
        let reference: Vec<f32> = serde_json::from_value(case["embedding"].clone()).expect("numbers");
        errors.compare("embeddings", case["text"].as_str().expect("a text"), &found, &reference);
    }
    errors.outcome()
}
