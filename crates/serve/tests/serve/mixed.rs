//! What a request gets doesn't depend on what is served beside it, to the bit.

use std::sync::Arc;

use tokio::sync::oneshot;
use tunesmith_models::Task;
use tunesmith_serve::{AdapterLimits, EngineOptions, Pooled, Resident};
use tunesmith_tensor::Precision;

use crate::model::{Answer, Files, answer, engine, methods, prompt, request, submit};

/// Prompts of lengths that are cut in different places.
const LENGTHS: [usize; 3] = [5, 67, 150];

fn every_pair(architecture: &str, precision: Precision, lengths: &[usize]) {
    every_pair_of(&Files::new(architecture, precision), architecture, lengths);
}

fn every_pair_of(files: &Files, architecture: &str, lengths: &[usize]) {
    let base = files.base();
    let configs = methods();
    // GPT-2 has other names for what some methods act on.
    let fits = |config: &str| match architecture {
        "gpt2" => !config.contains("_proj") && !config.contains("norm"),
        "qwen2" => true,
        _ => !config.contains("\"bias\""),
    };
    let configs: Vec<_> = configs.into_iter().filter(|(_, config)| fits(&config.to_string())).collect();
    for (number, (name, config)) in configs.iter().enumerate() {
        files.write(&base, name, config, number as u64);
    }
    let store = files.store(&base, AdapterLimits::default());
    let adapters: Vec<Option<Arc<Resident>>> =
        std::iter::once(None).chain(configs.iter().map(|(name, _)| Some(store.get(name, None).unwrap()))).collect();
    let names: Vec<&str> = std::iter::once("base").chain(configs.iter().map(|(name, _)| *name)).collect();
    let ask = |number: usize, place: usize| {
        let temperature = if place.is_multiple_of(2) { 0.0 } else { 0.9 };
        request(adapters[number].clone(), &prompt(lengths[place], number as u64), 6, temperature)
    };
    let options = EngineOptions::default();
    // Each alone in an engine of its own, without anything kept from others.
    let alone: Vec<Vec<Answer>> = (0..adapters.len())
        .map(|number| {
            let one = |place: usize| answer(submit(&engine(&base, options), ask(number, place)));
            (0..lengths.len()).map(one).collect()
        })
        .collect();
    for (number, answers) in alone.iter().enumerate().skip(1) {
        assert_ne!(answers[0], alone[0][0], "{} changes the base", names[number]);
    }
    let shared = engine(&base, options);
    for first in 0..adapters.len() {
        for second in 0..=first {
            let pairs: Vec<(usize, usize)> =
                (0..lengths.len()).flat_map(|place| [(first, place), (second, place)]).collect();
            let events: Vec<_> = pairs.iter().map(|(number, place)| submit(&shared, ask(*number, *place))).collect();
            for ((number, place), events) in pairs.into_iter().zip(events) {
                let found = answer(events);
                let (names, length) = ((names[first], names[second]), lengths[place]);
                assert_eq!(found, alone[number][place], "{architecture}: {names:?}, {length} tokens of {}", names.0);
            }
        }
    }
    let all: Vec<(usize, usize)> =
        (0..adapters.len()).flat_map(|number| (0..lengths.len()).map(move |place| (number, place))).collect();
    let events: Vec<_> = all.iter().map(|(number, place)| submit(&shared, ask(*number, *place))).collect();
    for ((number, place), events) in all.into_iter().zip(events) {
        assert_eq!(answer(events), alone[number][place], "all together: {}", names[number]);
    }
}

#[test]
fn every_pair_of_methods_in_bf16() {
    every_pair("llama", Precision::Bf16, &LENGTHS);
}

#[test]
fn every_pair_of_methods_in_float32() {
    every_pair("llama", Precision::Float32, &LENGTHS);
}

#[test]
fn every_pair_of_methods_over_biases() {
    every_pair("qwen2", Precision::Bf16, &LENGTHS);
}

#[test]
fn every_pair_of_methods_in_a_sliding_window() {
    every_pair("mistral", Precision::Bf16, &LENGTHS);
}

#[test]
fn every_pair_of_methods_with_learned_positions() {
    every_pair("gpt2", Precision::Bf16, &[3, 20, 33]);
}

#[test]
fn every_pair_of_methods_with_keys_in_bf16() {
    let files = Files::new("gpt2", Precision::Bf16).with_one_head();
    assert_eq!(files.base().model().info().head_dim, 32, "heads are wide enough for pages in bf16");
    every_pair_of(&files, "gpt2", &[3, 20, 33]);
}

#[test]
fn texts_of_an_encoder_decoder() {
    for architecture in ["t5", "bart"] {
        let files = Files::new(architecture, Precision::Bf16);
        let base = files.base();
        let configs = [
            ("lora", serde_json::json!({ "peft_type": "LORA", "r": 3, "target_modules": "all-linear" })),
            ("prompt", serde_json::json!({ "peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5 })),
            ("prefix", serde_json::json!({ "peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4 })),
        ];
        for (number, (name, config)) in configs.iter().enumerate() {
            files.write(&base, name, config, number as u64);
        }
        let store = files.store(&base, AdapterLimits::default());
        let mut adapters = vec![None];
        adapters.extend(configs.iter().map(|(name, _)| Some(store.get(name, None).unwrap())));
        let ask = |number: usize| request(adapters[number].clone(), &prompt(9 + 8 * number, number as u64), 8, 0.0);
        let options = EngineOptions::default();
        let alone: Vec<Answer> =
            (0..adapters.len()).map(|number| answer(submit(&engine(&base, options), ask(number)))).collect();
        let shared = engine(&base, options);
        let events: Vec<_> = (0..adapters.len()).map(|number| submit(&shared, ask(number))).collect();
        for (events, expected) in events.into_iter().zip(&alone) {
            assert_eq!(answer(events), *expected, "{architecture}");
        }
        assert_ne!(alone[0].0, alone[1].0);
    }
}

#[test]
fn texts_that_are_judged() {
    let cases =
        [("bert", Task::SeqCls), ("bert", Task::TokenCls), ("bert", Task::FeatureExtraction), ("llama", Task::SeqCls)];
    for (architecture, task) in cases {
        let files = Files::for_task(architecture, Precision::Bf16, Some(task));
        let base = files.base();
        let configs = [
            ("lora", serde_json::json!({ "peft_type": "LORA", "r": 3 })),
            ("prompt", serde_json::json!({ "peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5 })),
            ("houlsby", serde_json::json!({ "peft_type": "HOULSBY", "reduction_factor": 4 })),
        ];
        for (number, (name, config)) in configs.iter().enumerate() {
            files.write(&base, name, config, number as u64);
        }
        let store = files.store(&base, AdapterLimits::default());
        let mut adapters = vec![None];
        adapters.extend(configs.iter().map(|(name, _)| Some(store.get(name, None).unwrap())));
        let shared = engine(&base, EngineOptions::default());
        let ask = |number: usize, length: usize| {
            let (answer, receiver) = oneshot::channel();
            let tokens = prompt(length, number as u64);
            shared.pool(Pooled { adapter: adapters[number].clone(), tokens, answer }).unwrap();
            receiver
        };
        let bits = |rows: Vec<Vec<f32>>| rows.iter().flatten().map(|value| value.to_bits()).collect::<Vec<u32>>();
        let all: Vec<(usize, usize)> =
            (0..adapters.len()).flat_map(|number| [3, 7, 8, 40].map(|length| (number, length))).collect();
        let alone: Vec<Vec<u32>> =
            all.iter().map(|(number, length)| bits(ask(*number, *length).blocking_recv().unwrap())).collect();
        let together: Vec<_> = all.iter().map(|(number, length)| ask(*number, *length)).collect();
        for ((case, found), expected) in all.iter().zip(together).zip(&alone) {
            assert_eq!(bits(found.blocking_recv().unwrap()), *expected, "{architecture} {task:?} {case:?}");
        }
        assert_ne!(alone[0], alone[4]);
    }
}
