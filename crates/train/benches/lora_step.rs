//! Speed and memory of a LoRA training step: random tokens, every position labelled, LoRA on all linears, AdamW; the
//! whole step (forward, backward, update) is timed, the first left out.
//!
//! `cargo bench -p tunesmith-train --bench lora_step -- MODEL [PRECISION [BATCH [SEQUENCE [RANK [STEPS [ADAPTERS]]]]]]`,
//! MODEL being a Hugging Face folder or a GGUF file, PRECISION `float32` or `bf16`, ADAPTERS how many are trained together,
//! each on a batch of its own. Prints the time of each operation, and one line of JSON. `tunesmith bench` does more.

#![allow(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::path::Path;

use serde_json::json;
use tunesmith_models::{LoadOptions, load};
use tunesmith_tensor::{Precision, Workspace};
use tunesmith_train::StepBenchmark;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let Some(path) = arguments.first() else {
        println!("lora_step: name a model to measure; nothing was run");
        return;
    };
    let number = |place: usize, default: usize| {
        arguments.get(place).map_or(default, |text| text.parse().expect("sizes are whole numbers"))
    };
    let precision = match arguments.get(1) {
        None => Precision::detect(),
        Some(name) => {
            let named = Precision::NAMED.into_iter().find(|(known, _)| known == name);
            named.expect("a precision is float32 or bf16").1
        }
    };
    let (batch, sequence, rank, steps, adapters) =
        (number(2, 4), number(3, 256), number(4, 8), number(5, 6), number(6, 1));
    let options = LoadOptions { precision, ..LoadOptions::default() };
    let pretrained = load(Path::new(path), &options).expect("the model loads");
    let peft = json!({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear"});
    let benchmark = StepBenchmark { adapters, batch, sequence, steps, peft };
    let workspace = Workspace::with_precision(precision);
    let measured = benchmark.run(&*pretrained.model, &workspace).expect("the adapter fits");
    for operation in &measured.operations {
        let (name, direction) = (operation.name, format!("{:?}", operation.direction));
        println!("{name:24} {direction:9} {:9.2} ms {:7.1} calls", operation.seconds * 1e3, operation.calls);
    }
    let result = json!({
        "adapters": adapters, "batch": batch, "seq": sequence, "rank": rank, "precision": precision.name(),
        "threads": rayon::current_num_threads(),
        "tokens_per_s": measured.tokens_per_second(),
        "peak_rss_gb": measured.peak_memory.map(|bytes| bytes as f64 / 1e9),
        "page_faults": measured.page_faults, "loss": measured.loss,
        "steps_s": measured.seconds,
    });
    println!("{result}");
}
