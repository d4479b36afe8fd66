//! Speed and memory of a LoRA training step: random tokens, every position labelled, LoRA on all linears, AdamW; the
//! whole step (forward, backward, update) is timed, the first left out.
//!
//! `cargo bench -p tunesmith-train --bench lora_step -- MODEL [PRECISION [BATCH [SEQUENCE [RANK [STEPS]]]]]`, MODEL being
//! a Hugging Face folder or a GGUF file, PRECISION `float32` or `bf16`. Prints one line of JSON.

#![allow(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::path::Path;
use std::time::Instant;

use serde_json::json;
use tunesmith_methods::{MethodConfig, ModelDescription, TaskType, build};
use tunesmith_models::{LoadOptions, load};
use tunesmith_tensor::{Gradients, Precision, Seed, Workspace};
use tunesmith_train::{AdamW, AdamWOptions, Batch, Example, ParameterGroup, mean_loss, peak_memory};

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
    let (batch, length, rank, steps) = (number(2, 4), number(3, 256), number(4, 8), number(5, 6));

    let options = LoadOptions { precision, ..LoadOptions::default() };
    let pretrained = load(Path::new(path), &options).expect("the model loads");
    let model = &*pretrained.model;
    let description = ModelDescription {
        model_type: &model.info().model_type,
        name_or_path: None,
        task_type: TaskType::CausalLm,
        sites: model.sites(),
        base: &|site| model.base(site),
    };
    let config = json!({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear"});
    let config = MethodConfig::from_run_file(&config).expect("the configuration is valid");
    let mut adapter = build(&config, &description, Seed(0)).expect("the adapter fits").adapter;

    let workspace = Workspace::with_precision(precision);
    let mut optimizer = AdamW::new(AdamWOptions::default(), &adapter.parameters(), |_| ParameterGroup::default());
    let mut stream = Seed(0).stream("tokens", 0);
    let vocabulary = model.info().vocab_size as u64 - 103;
    let examples: Vec<Example> = (0..batch)
        .map(|_| {
            let ids: Vec<u32> = (0..length).map(|_| 3 + stream.below(vocabulary) as u32).collect();
            Example { labels: ids.clone(), ids }
        })
        .collect();
    let mut gradients = Gradients::new(&workspace);
    let mut seconds = Vec::new();
    for step in 0..steps {
        let start = Instant::now();
        let batch = Batch::new(&examples);
        gradients.clear();
        mean_loss(&[batch], model, &adapter, &workspace, Some(Seed(step as u64)), &mut gradients);
        optimizer.step(&mut adapter.parameters_mut(), &gradients, 1e-4).expect("every tensor has a gradient");
        seconds.push(start.elapsed().as_secs_f64());
    }
    let mut kept = seconds[1..].to_vec();
    kept.sort_by(f64::total_cmp);
    let result = json!({
        "batch": batch, "seq": length, "rank": rank, "precision": precision.name(), "threads": rayon::current_num_threads(),
        "tokens_per_s": (batch * length) as f64 / kept[kept.len() / 2],
        "peak_rss_gb": peak_memory().map(|bytes| bytes as f64 / 1e9),
        "steps_s": seconds,
    });
    println!("{result}");
}
