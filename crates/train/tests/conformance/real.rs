//! The real model: tokenizer, chat template, per-token losses and greedy continuations of SmolLM2-135M-Instruct.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tunesmith_models::{Inputs, LoadOptions, load};
use tunesmith_tensor::{Forward, IGNORED_TARGET, Segments, Tape, Workspace};

use crate::Outcome;
use crate::compare::Errors;
use crate::task::greedy;

const FILE: &str = "smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf";
/// Losses are given to five decimals.
const LOSS_TOLERANCE: f32 = 1e-3;

/// All of `smollm2.json`; skipped where the model has not been pulled.
pub(crate) fn smollm2(folder: &Path) -> Outcome {
    let Some(path) = crate::base_model(FILE) else {
        return Outcome::Skipped("the base model is absent: run `tunesmith pull smollm2-135m-instruct`".to_owned());
    };
    let text = fs::read_to_string(folder.join("smollm2.json")).expect("the fixture is readable");
    let expected: Value = serde_json::from_str(&text).expect("the fixture is JSON");
    let pretrained = load(&path, &LoadOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    let (model, tokenizer) = (&*pretrained.model, &pretrained.tokenizer);
    let mut errors = Errors::default();

    for case in list(&expected["tokenizer"]) {
        let text = case["text"].as_str().expect("a text");
        let found = tokenizer.encode(text, false).expect("text is tokenised");
        errors.require(found == ids(&case["ids"]), &format!("{text:?} is tokenised as {found:?}"));
    }
    let chat = &expected["chat"];
    let messages = serde_json::from_value::<Vec<tunesmith_models::Message>>(chat["messages"].clone());
    let rendered = tokenizer.render(&messages.expect("messages"), true).expect("the template renders");
    errors.require(rendered == chat["text"].as_str().expect("a text"), &format!("the chat is rendered {rendered:?}"));
    errors.require(
        tokenizer.encode(&rendered, false).expect("text is tokenised") == ids(&chat["ids"]),
        "the chat's tokens differ",
    );

    let mut worst = 0.0f32;
    for case in list(&expected["nll"]) {
        let ids = ids(&case["ids"]);
        let reference: Vec<f32> = serde_json::from_value(case["nll"].clone()).expect("numbers");
        let mut tape = Tape::evaluating(&Workspace::new());
        let mut forward = Forward::new(&mut tape, Segments::from_lengths([ids.len()]), None);
        let hidden = model.hidden_states(&mut forward, &Inputs::tokens(&ids), None);
        let targets: Vec<u32> = ids[1..].iter().copied().chain([IGNORED_TARGET]).collect();
        let losses = model.cross_entropy(&mut forward, &hidden, &targets).per_row;
        errors.require(losses.len() == reference.len(), "there is a loss for every token but the first");
        for (place, (found, reference)) in losses.iter().zip(&reference).enumerate() {
            worst = worst.max((found - reference).abs());
            let close = (found - reference).abs() <= LOSS_TOLERANCE;
            errors.require(close, &format!("token {place}: loss {found}, the reference {reference}"));
        }
    }
    for case in list(&expected["greedy"]) {
        let (prompt, reference) = (ids(&case["prompt_ids"]), ids(&case["new_ids"]));
        let found = greedy(model, None, &prompt, reference.len(), &[]);
        errors.require(found == reference, &format!("greedy continuation is {found:?}, not {reference:?}"));
    }
    match errors.outcome() {
        Outcome::Passed(_) => Outcome::Passed(format!("nll={worst:.1e} (absolute)")),
        other => other,
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("token ids")
}
