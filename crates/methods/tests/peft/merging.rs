//! Merging is pure, and refuses what it cannot do.

use serde_json::json;
use tunesmith_methods::{MethodConfig, MethodError, build, load_adapter, merged};
use tunesmith_tensor::{Parameter, Seed, SiteId, Tape, Trainable, Var};

use crate::model::{Model, fixture};

#[test]
fn merged_weights_are_base_and_scaled_product() {
    for (method, scale) in [("lora", 2.0), ("lora-rslora", 4.0), ("lora-all-linear", 4.0)] {
        let model = Model::of_fixtures("qwen2");
        model.describe(|description| {
            let loaded = load_adapter(&fixture("qwen2").join(method), description).unwrap();
            let weights = merged(&loaded.adapter, description).unwrap();
            assert_eq!(weights.len(), loaded.adapter.weight_sites().count());
            for weight in weights {
                let site = &model.sites[weight.site.0];
                let tensor = |suffix: &str| {
                    let name = format!("base_model.model.{}.{suffix}", site.path);
                    let parameters = loaded.adapter.parameters();
                    parameters.into_iter().find(|tensor| tensor.name() == name).unwrap().value()
                };
                let (a, b, base) = (tensor("lora_A.weight"), tensor("lora_B.weight"), model.weight(&site.path));
                for (out, row) in (0..site.rows).map(|out| (out, weight.weight.row(out))) {
                    for (column, value) in row.iter().enumerate() {
                        let product: f64 = (0..a.rows())
                            .map(|rank| f64::from(b.row(out)[rank]) * f64::from(a.row(rank)[column]))
                            .sum();
                        let expected = f64::from(base.row(out)[column]) + scale * product;
                        assert!(
                            (f64::from(*value) - expected).abs() < 1e-5,
                            "{method} {} {value} {expected}",
                            site.path
                        );
                    }
                }
                assert_eq!(weight.bias.is_some(), site.has_bias);
            }
        });
    }
}

#[test]
fn a_copy_of_one_of_two_tied_weights_merges_into_that_one_only() {
    let model = Model::of_fixtures("llama");
    let config = MethodConfig::from_run_file(&json!({"peft_type": "LORA", "modules_to_save": ["embed_tokens"]}));
    model.describe(|description| {
        let mut built = build(&config.unwrap(), description, Seed(0)).unwrap();
        let name = "base_model.model.model.embed_tokens.weight";
        let copy = built.adapter.parameters_mut().into_iter().find(|parameter| parameter.name() == name).unwrap();
        copy.value_mut().data_mut()[5] = 42.0;
        let weights = merged(&built.adapter, description).unwrap();
        let embedding = weights.iter().find(|weight| weight.site.0 == model.index("model.embed_tokens")).unwrap();
        let mut expected = model.weight("model.embed_tokens");
        expected.data_mut()[5] = 42.0;
        assert_eq!(embedding.weight, expected);
        assert!(weights.iter().all(|weight| weight.site.0 != model.index("lm_head")));
        assert_eq!(model.weight("lm_head"), model.weight("model.embed_tokens"), "the base is as it was");
    });
}

#[test]
fn broken_adapters_are_not_merged() {
    let model = Model::of_fixtures("llama");
    model.describe(|description| {
        let mut loaded = load_adapter(&fixture("llama").join("lora"), description).unwrap();
        loaded.adapter.parameters_mut()[0].value_mut().data_mut()[0] = f32::NAN;
        let text = merged(&loaded.adapter, description).unwrap_err().to_string();
        assert!(text.contains("model.layers.0.self_attn.q_proj") && !text.contains("v_proj"), "{text}");
    });
}

struct Prompt;

impl Trainable for Prompt {
    fn parameters(&self) -> Vec<&Parameter> {
        Vec::new()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        Vec::new()
    }
}

impl tunesmith_tensor::HiddenTuner for Prompt {
    fn forward(&self, tape: &mut Tape, sub_layer: tunesmith_tensor::SubLayer<'_>) -> Var {
        sub_layer.stream(tape)
    }
}

#[test]
fn an_adapter_that_changes_more_than_weights_is_not_merged() {
    let model = Model::of_fixtures("llama");
    model.describe(|description| {
        let mut loaded = load_adapter(&fixture("llama").join("lora"), description).unwrap();
        loaded.adapter.insert_hidden(SiteId(1000), Box::new(Prompt));
        assert!(matches!(merged(&loaded.adapter, description), Err(MethodError::NotMergeable)));
    });
}
