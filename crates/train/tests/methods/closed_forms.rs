//! What papers say of methods in closed form, on whole models.

use serde_json::{Value, json};
use tunesmith_methods::BuiltAdapter;
use tunesmith_models::{Inputs, Model};
use tunesmith_tensor::{Adapter, Forward, Segments, Tape, Workspace};

use crate::scene::{Scene, scenes};

/// Hidden states outside training.
fn hidden(scene: &Scene, model: &dyn Model, adapter: Option<&Adapter>) -> Vec<f32> {
    let mut tape = Tape::evaluating(&Workspace::new());
    let mut forward = Forward::new(&mut tape, scene.batch.segments.clone(), adapter);
    model.hidden_states(&mut forward, &scene.batch.inputs(), None).value().to_vec()
}

fn parameters(scene: &Scene, config: Value) -> usize {
    scene.build(&config).unwrap_or_else(|error| panic!("{config}: {error}")).adapter.trainable_values()
}

/// Checks that two agree but for the order of sums.
#[track_caller]
fn close(found: &[f32], expected: &[f32], what: &str) {
    let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-5 * largest, "{what}: {found} {expected}");
    }
}

/// Sets the values of tensors whose names have `part`.
fn set(built: &mut BuiltAdapter, part: &str, value: f32) {
    for parameter in built.adapter.parameters_mut() {
        if parameter.name().contains(part) {
            parameter.value_mut().data_mut().fill(value);
        }
    }
}

#[test]
fn methods_whose_tensors_have_one_name_are_refused_with_what_works() {
    let prompt = json!({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2});
    let prefix = json!({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2});
    let error = Scene::new("llama/model").build(&json!([prompt, prefix])).err().unwrap().to_string();
    assert!(error.contains("PREFIX_TUNING beside PROMPT_TUNING") && error.contains("those of PRE_EMBED"), "{error}");
}

#[test]
fn counts_are_those_of_the_formulas() {
    let scene = Scene::new("llama/model");
    let info = scene.model.info();
    let (d, blocks, width) = (info.hidden_size, info.blocks, info.kv_heads * info.head_dim);
    for (config, expected) in [
        (json!({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 7}), 7 * d),
        (json!({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 7}), 2 * blocks * 7 * width),
        (
            json!({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 7, "prefix_projection": true, "encoder_hidden_size": 9}),
            7 * width + (width + 1) * 9 + (9 + 1) * 2 * blocks * width,
        ),
        (json!({"peft_type": "PRE_EMBED", "prefix_tokens": 3, "infix_tokens": 2}), 5 * d),
        (json!({"peft_type": "PRE_LAYER", "prefix_tokens": 3, "infix_tokens": 2}), blocks * 5 * d),
        // One adapter has 2·m·d weights and m + d biases.
        (json!({"peft_type": "PFEIFFER", "bottleneck_size": 5}), blocks * (2 * 5 * d + 5 + d)),
        (json!({"peft_type": "PARALLEL", "bottleneck_size": 5}), blocks * (2 * 5 * d + 5 + d)),
        (
            json!({"peft_type": "HOULSBY", "bottleneck_size": 5}),
            2 * blocks * (2 * 5 * d + 5 + d) + (2 * blocks + 1) * d,
        ),
        (json!({"peft_type": "LN_TUNING"}), (2 * blocks + 1) * d),
        (json!({"peft_type": "INTRINSIC", "intrinsic_dimension": 33}), 33),
        (json!({"peft_type": "SAID", "intrinsic_dimension": 33}), 33),
    ] {
        assert_eq!(parameters(&scene, config.clone()), expected, "{config}");
    }
}

#[test]
fn adapters_without_an_upper_half_are_the_base() {
    for scene in scenes() {
        let base = hidden(&scene, &*scene.model, None);
        for method in ["HOULSBY", "PFEIFFER", "PARALLEL"] {
            let mut built = scene.build(&json!({"peft_type": method, "reduction_factor": 4})).unwrap();
            set(&mut built, "adapter_up", 0.0);
            assert_eq!(hidden(&scene, &*scene.model, Some(&built.adapter)), base, "{} {method}", scene.name);
            set(&mut built, "adapter_up.bias", 0.5);
            assert_ne!(hidden(&scene, &*scene.model, Some(&built.adapter)), base, "{} {method}", scene.name);
        }
    }
}

/// With so small a start the change is of second order: both factors shrink.
#[test]
fn houlsbys_start_is_near_the_identity_to_second_order() {
    let scene = Scene::new("bert/model");
    let base = hidden(&scene, &*scene.model, None);
    let change = |scale: f32| {
        let mut built = scene.build(&json!({"peft_type": "HOULSBY", "reduction_factor": 4})).unwrap();
        for parameter in built.adapter.parameters_mut().into_iter().filter(|tensor| tensor.name().contains("adapter")) {
            parameter.value_mut().data_mut().iter_mut().for_each(|value| *value *= scale);
        }
        let found = hidden(&scene, &*scene.model, Some(&built.adapter));
        found.iter().zip(&base).map(|(found, base)| (found - base).powi(2)).sum::<f32>().sqrt()
    };
    let ratio = change(4.0) / change(2.0);
    assert!((ratio - 4.0).abs() < 0.4, "{ratio}");
}

#[test]
fn dylora_at_full_rank_is_lora() {
    for name in ["llama/model", "gpt2/model", "bert/model"] {
        let scene = Scene::new(name);
        let lora = scene.build(&json!({"peft_type": "LORA", "r": 4, "lora_alpha": 16})).unwrap();
        let dylora = scene.build(&json!({"peft_type": "DYLORA", "r": 4, "min_r": 4, "lora_alpha": 16})).unwrap();
        let mut ends: Vec<(Vec<f64>, Vec<f32>)> = Vec::new();
        for mut built in [lora, dylora] {
            built.begin(10).unwrap();
            let mut optimizer = Scene::optimizer(&built);
            let losses = scene.train(&mut built, &mut optimizer, 0..5, 1e-2);
            let values = built.adapter.parameters().iter().flat_map(|tensor| tensor.value().to_vec()).collect();
            ends.push((losses, values));
        }
        let [(lora_losses, lora), (losses, dylora)] = &ends[..] else { panic!() };
        // The columns of B are copied out of the whole, so that products may be summed in another order.
        close(dylora, lora, name);
        assert!(losses.iter().zip(lora_losses).all(|(loss, lora)| (loss - lora).abs() < 1e-6), "{losses:?}");
    }
}

#[test]
fn longlora_trains_with_groups_and_is_used_without() {
    let scene = Scene::new("llama/model");
    let config = |ratio: f64| json!({"peft_type": "LONG_LORA", "r": 2, "group_size_ratio": ratio});
    let base = scene.build(&json!({"peft_type": "LORA", "r": 2})).unwrap();
    let (whole, _) = scene.loss(&base);
    let (grouped, _) = scene.loss(&scene.build(&config(0.25)).unwrap());
    assert_ne!(whole, grouped, "training sees groups");
    let built = scene.build(&config(0.25)).unwrap();
    assert_eq!(hidden(&scene, &*scene.model, Some(&built.adapter)), hidden(&scene, &*scene.model, None));
    let names: Vec<String> = built.adapter.parameters().iter().map(|tensor| tensor.name().to_owned()).collect();
    for part in
        ["embed_tokens", "input_layernorm", "post_attention_layernorm", "model.norm", "q_proj.lora_A", "o_proj.lora_B"]
    {
        assert!(names.iter().any(|name| name.contains(part)), "{part} in {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("lm_head") || name.contains("mlp")), "{names:?}");
}

#[test]
fn prompts_of_a_batch_are_each_sequences_own() {
    let scene = Scene::new("llama/model");
    let built = |seed_text: &str| {
        let config = json!({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, "prompt_tuning_init": "TEXT",
            "prompt_tuning_init_text": seed_text});
        scene.build(&config).unwrap().adapter
    };
    let (one, two) = (built("abc"), built("xyz"));
    let ids: Vec<u32> = vec![5, 9, 33, 3, 30];
    let run = |adapters: &[Option<&Adapter>]| {
        let mut tape = Tape::evaluating(&Workspace::new());
        let segments = Segments::from_lengths(adapters.iter().map(|_| ids.len()));
        let mut forward = Forward::mixed(&mut tape, segments, adapters);
        let hidden = scene.model.hidden_states(&mut forward, &Inputs::tokens(&ids.repeat(adapters.len())), None);
        let size = hidden.value().data().len() / adapters.len();
        hidden.value().data().chunks(size).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    let mixed = run(&[Some(&one), Some(&two), None]);
    let moved = run(&[None, Some(&one), Some(&two)]);
    for (row, adapter) in [Some(&one), Some(&two), None].into_iter().enumerate() {
        close(&run(&[adapter])[0], &mixed[row], "alone");
        close(&moved[(row + 1) % 3], &mixed[row], "in another place");
    }
    assert_ne!(mixed[0], mixed[1]);
}
