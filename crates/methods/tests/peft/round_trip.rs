//! Adapters that are built here, saved and loaded again.

use std::fs;

use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tunesmith_methods::{LoraConfig, MethodConfig, ModelDescription, build, load_adapter, save_adapter};
use tunesmith_tensor::{Adapter, Seed};

use crate::model::{Model, fixture, floats};

/// An adapter with random values in every tensor, saved into `folder`.
fn save_random(
    folder: &std::path::Path,
    config: &MethodConfig,
    model: &ModelDescription<'_>,
    seed: u64,
) -> (MethodConfig, Adapter) {
    let mut built = build(config, model, Seed(seed)).unwrap();
    for parameter in built.adapter.parameters_mut() {
        let mut stream = Seed(seed).stream(parameter.name(), 1);
        parameter.value_mut().data_mut().iter_mut().for_each(|value| *value = stream.normal());
    }
    save_adapter(folder, &built).unwrap();
    (built.config, built.adapter)
}

fn values(adapter: &Adapter) -> Vec<(String, Vec<f32>)> {
    adapter.parameters().iter().map(|tensor| (tensor.name().to_owned(), tensor.value().to_vec())).collect()
}

/// LoRA configurations that a small qwen2 model accepts.
fn configs() -> impl Strategy<Value = Value> {
    let targets = prop::sample::subsequence(vec!["q_proj", "k_proj", "o_proj", "up_proj", "down_proj"], 1..5);
    let saved = prop::sample::subsequence(vec!["lm_head", "embed_tokens", "norm", "v_proj", "gate_proj"], 0..4);
    let bias = prop::sample::select(vec!["none", "all"]);
    let keys = vec!["(q|k|o)_proj", "layers.0.*", "^model.layers.1.self_attn.q_proj", "up_proj", "proj", "[a-q]_proj"];
    let keys = prop::sample::select(keys);
    let patterns = prop::collection::vec((keys, 1usize..5, 0.5f64..20.0), 0..4);
    (targets, saved, bias, 1usize..6, 0.25f64..40.0, any::<bool>(), patterns).prop_map(
        |(targets, saved, bias, r, alpha, rslora, patterns)| {
            let ranks: serde_json::Map<String, Value> =
                patterns.iter().map(|(key, rank, _)| ((*key).to_owned(), json!(rank))).collect();
            let alphas: serde_json::Map<String, Value> =
                patterns.iter().map(|(key, _, alpha)| ((*key).to_owned(), json!(alpha))).collect();
            json!({
                "peft_type": "LORA", "target_modules": targets, "modules_to_save": saved, "bias": bias, "r": r,
                "lora_alpha": alpha, "use_rslora": rslora, "rank_pattern": ranks, "alpha_pattern": alphas,
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_saved_adapter_loads_as_it_was(config in configs(), seed in any::<u64>()) {
        let table: Value = serde_json::from_str(include_str!("../data/targets.json")).unwrap();
        let model = Model::from_sites(&table["models"]["qwen2"]);
        let config = MethodConfig::from_run_file(&config).unwrap();
        let folder = tempfile::tempdir().unwrap();
        model.describe(|description| {
            let (saved_config, saved) = save_random(folder.path(), &config, description, seed);
            let loaded = load_adapter(folder.path(), description).unwrap();
            prop_assert_eq!(values(&loaded.adapter), values(&saved));
            prop_assert_eq!(loaded.config.to_adapter_config(), saved_config.to_adapter_config());
            let [before, after] = [&saved_config, &loaded.config].map(|config| config.get::<LoraConfig>().unwrap());
            let tuned = model.sites.iter().filter(|site| {
                saved.parameters().iter().any(|tensor| tensor.name().ends_with(&format!("{}.lora_A.weight", site.path)))
            });
            for site in tuned {
                prop_assert_eq!(before.scaling(&site.path).unwrap(), after.scaling(&site.path).unwrap());
            }
            Ok(())
        })?;
    }
}

#[test]
fn vectors_are_saved_as_vectors() {
    let model = Model::of_fixtures("qwen2");
    let config = json!({"peft_type": "LORA", "r": 1, "bias": "all", "modules_to_save": ["norm", "lm_head"]});
    let config = MethodConfig::from_run_file(&config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.describe(|description| save_random(folder.path(), &config, description, 0));
    let bytes = fs::read(folder.path().join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| tensors.tensor(&format!("base_model.model.{name}")).unwrap().shape().to_vec();
    assert_eq!(shape("model.norm.weight"), [32]);
    assert_eq!(shape("model.layers.0.self_attn.q_proj.base_layer.bias"), [32]);
    assert_eq!(shape("model.layers.0.self_attn.k_proj.bias"), [16]);
    assert_eq!(shape("model.layers.0.self_attn.q_proj.lora_A.weight"), [1, 32]);
    assert_eq!(shape("model.layers.0.self_attn.q_proj.lora_B.weight"), [32, 1]);
    assert_eq!(shape("lm_head.weight"), [96, 32]);
}

#[test]
fn a_new_adapter_starts_as_the_base_and_names_it() {
    let model = Model::of_fixtures("llama");
    let config = MethodConfig::from_run_file(&json!({"peft_type": "LORA", "bias": "none"})).unwrap();
    model.describe(|description| {
        let built = build(&config, description, Seed(1)).unwrap();
        let file: Value = serde_json::from_str(&built.config.to_adapter_config()).unwrap();
        assert_eq!(file["base_model_name_or_path"], "tiny/model");
        assert_eq!(file["task_type"], "CAUSAL_LM");
        assert_eq!(file["target_modules"], json!(["q_proj", "v_proj"]));
        for tensor in built.adapter.parameters() {
            let is_zero = tensor.value().data().iter().all(|value| *value == 0.0);
            assert_eq!(is_zero, tensor.name().contains("lora_B"), "{}", tensor.name());
        }
        let again = build(&config, description, Seed(1)).unwrap();
        assert_eq!(values(&built.adapter), values(&again.adapter));
        let other = build(&config, description, Seed(2)).unwrap();
        assert_ne!(values(&built.adapter), values(&other.adapter));
    });
}

/// The bytes of a value in half precision, and the value they stand for.
type Narrow = fn(f32) -> ([u8; 2], f32);

#[test]
fn half_precision_files_are_read() {
    let model = Model::of_fixtures("llama");
    let source = fixture("llama").join("lora");
    let bytes = fs::read(source.join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let to_f16: Narrow = |value| (f16::from_f32(value).to_le_bytes(), f16::from_f32(value).to_f32());
    let to_bf16: Narrow = |value| (bf16::from_f32(value).to_le_bytes(), bf16::from_f32(value).to_f32());
    let cases: [(Dtype, Narrow); 2] = [(Dtype::F16, to_f16), (Dtype::BF16, to_bf16)];
    for (dtype, narrow) in cases {
        let narrowed: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                let data = floats(view.data()).into_iter().flat_map(|value| narrow(value).0).collect();
                (name, view.shape().to_vec(), data)
            })
            .collect();
        let views =
            narrowed.iter().map(|(name, shape, data)| (name, TensorView::new(dtype, shape.clone(), data).unwrap()));
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("adapter_model.safetensors"), safetensors::serialize(views, None).unwrap())
            .unwrap();
        fs::copy(source.join("adapter_config.json"), folder.path().join("adapter_config.json")).unwrap();
        model.describe(|description| {
            let loaded = load_adapter(folder.path(), description).unwrap();
            for parameter in loaded.adapter.parameters() {
                let full = floats(tensors.tensor(parameter.name()).unwrap().data());
                let expected: Vec<f32> = full.into_iter().map(|value| narrow(value).1).collect();
                assert_eq!(parameter.value().data(), expected, "{dtype}");
            }
        });
    }
}

#[test]
fn embeddings_that_peft_saves_beside_an_adapter_are_accepted_where_they_are_the_bases() {
    let model = Model::of_fixtures("mistral");
    let config = MethodConfig::from_run_file(&json!({"peft_type": "LORA", "target_modules": ["lm_head"]})).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("adapter_model.safetensors");
    model.describe(|description| {
        save_random(folder.path(), &config, description, 0);
        let bytes = fs::read(&file).unwrap();
        let with_base = |weight: Vec<f32>| {
            let data: Vec<u8> = weight.iter().flat_map(|value| value.to_le_bytes()).collect();
            let base = TensorView::new(Dtype::F32, vec![96, 32], &data).unwrap();
            let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
            tensors.push(("base_model.model.lm_head.base_layer.weight".to_owned(), base));
            fs::write(&file, safetensors::serialize(tensors, None).unwrap()).unwrap();
        };
        let mut weight = model.weight("lm_head").to_vec();
        with_base(weight.clone());
        assert!(load_adapter(folder.path(), description).is_ok());
        weight[7] += 1.0;
        with_base(weight);
        let Err(error) = load_adapter(folder.path(), description) else { panic!("the base was changed") };
        assert!(error.to_string().contains("lm_head.base_layer.weight (a weight of the base model"), "{error}");
    });
}

#[test]
fn biases_that_old_releases_of_peft_forgot_are_the_bases() {
    let model = Model::of_fixtures("qwen2");
    let config = MethodConfig::from_run_file(&json!({"peft_type": "LORA", "bias": "lora_only"})).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("adapter_model.safetensors");
    model.describe(|description| {
        save_random(folder.path(), &config, description, 0);
        let bytes = fs::read(&file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let kept = tensors.tensors().into_iter().filter(|(name, _)| !name.ends_with(".bias"));
        fs::write(&file, safetensors::serialize(kept, None).unwrap()).unwrap();
        let loaded = load_adapter(folder.path(), description).unwrap();
        assert!(loaded.warnings[0].contains("bias: lora_only"), "{:?}", loaded.warnings);
        let trained =
            loaded.adapter.parameters().into_iter().find(|tensor| tensor.name().ends_with("q_proj.base_layer.bias"));
        let base =
            (description.base)(tunesmith_tensor::SiteId(model.index("model.layers.0.self_attn.q_proj"))).unwrap();
        assert_eq!(*trained.unwrap().value(), base.bias.unwrap().to_matrix());
    });
}
