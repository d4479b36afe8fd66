//! The tiny encoder-decoder study: a T5 and a BART of two blocks learn to reverse strings, and then, frozen, a shifted
//! alphabet with each method.
//!
//! ```sh
//! cargo run --release -p tunesmith-train --example encoder_decoder_study
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it finds")]

mod study;

use std::path::Path;
use std::time::Instant;

use study::Study;

const STUDY: Study = Study { letters: 12, longest: 6, batch: 64, pretraining: 3000, adaptation: 1000, tested: 500 };

/// Methods with their learning rates.
const METHODS: [(&str, &str, f64); 4] = [
    (
        "LoRA, rank 4, all linears",
        r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}"#,
        1e-2,
    ),
    ("LoRA, rank 8, attention", r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16}"#, 1e-2),
    ("rsLoRA, rank 4", r#"{"peft_type": "LORA", "r": 4, "use_rslora": true, "target_modules": "all-linear"}"#, 1e-2),
    ("biases and LoRA", r#"{"peft_type": "LORA", "r": 2, "bias": "all", "target_modules": "all-linear"}"#, 1e-2),
];

fn main() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    for (name, folder) in [("T5", "flan-t5"), ("BART", "bart")] {
        let start = Instant::now();
        let pretrained = STUDY.pretrain(&fixtures.join(folder).join("model"));
        let seconds = start.elapsed().as_secs();
        println!("{name}: {:.1} % of held-out strings reversed, after {seconds} s", 100.0 * pretrained.exact_match);
        for (method, config, learning_rate) in METHODS {
            let adapted = STUDY.adapt(&pretrained, config, learning_rate);
            let [before, after] = adapted.exact_match.map(|share| 100.0 * share);
            println!("  {method}: {before:.1} % before, {after:.1} % after, {} values", adapted.values);
        }
    }
}
