//! The tiny encoder-decoder study, shortened: all weights of a T5 and a BART learn to reverse strings, and the frozen
//! result learns a shifted alphabet with LoRA; all other methods take a few steps of it.

#[path = "../examples/encoder_decoder_study/study.rs"]
mod study;

use std::path::Path;

use study::{METHODS, Study};

#[test]
fn strings_are_reversed_and_then_shifted() {
    let study = Study { letters: 6, longest: 4, batch: 32, pretraining: 2500, adaptation: 500, tested: 200 };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    for folder in ["flan-t5", "bart"] {
        let pretrained = study.pretrain(&fixtures.join(folder).join("model"));
        let reversed = pretrained.exact_match;
        assert!(reversed >= 0.99, "{folder}: {reversed} of strings are reversed");
        let lora = r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}"#;
        let adapted = study.adapt(&pretrained, lora, 1e-2);
        let [before, after] = adapted.exact_match;
        assert!(before <= 0.05 && after >= 0.9, "{folder}: {before} of strings are shifted before, {after} after");
        assert!(adapted.values < 30_000, "{folder}: {} trainable values", adapted.values);
        let few = Study { adaptation: 80, tested: 20, ..study };
        for (method, config, learning_rate) in METHODS {
            let [first, last] = few.adapt(&pretrained, config, *learning_rate).loss;
            assert!(last < 0.9 * first, "{folder}, {method}: the loss is {first} at first and {last} at last");
        }
    }
}
