//! Adapters that PEFT wrote, loaded and written back.

use std::fs;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tunesmith_methods::{LoraConfig, LoraPlus, MethodConfig, load_adapter, save_adapter};

use crate::model::{Model, fixture, floats};

const ARCHITECTURES: [&str; 3] = ["llama", "mistral", "qwen2"];
const METHODS: [&str; 4] = ["lora", "lora-all-linear", "lora-rslora", "lora-plus"];

#[test]
fn what_peft_wrote_is_written_back_byte_for_byte() {
    for architecture in ARCHITECTURES {
        let model = Model::of_fixtures(architecture);
        for method in METHODS {
            let folder = fixture(architecture).join(method);
            let out = tempfile::tempdir().unwrap();
            let out = out.path().join("new");
            model.describe(|description| {
                let loaded = load_adapter(&folder, description).unwrap();
                assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
                save_adapter(&out, &loaded).unwrap();
            });
            for file in ["adapter_config.json", "adapter_model.safetensors"] {
                let (read, written) = (fs::read(folder.join(file)).unwrap(), fs::read(out.join(file)).unwrap());
                assert_eq!(read, written, "{architecture}/{method}/{file}");
            }
            assert_eq!(fs::read_dir(&out).unwrap().count(), 2, "nothing else is left in the folder");
        }
    }
}

#[test]
fn loaded_tensors_have_the_values_of_the_file() {
    let model = Model::of_fixtures("qwen2");
    let folder = fixture("qwen2").join("lora-rslora");
    let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    model.describe(|description| {
        let loaded = load_adapter(&folder, description).unwrap();
        let parameters = loaded.adapter.parameters();
        assert_eq!(parameters.len(), tensors.len());
        for parameter in parameters {
            let tensor = tensors.tensor(parameter.name()).unwrap();
            assert_eq!(parameter.value().data(), floats(tensor.data()), "{}", parameter.name());
        }
    });
}

#[test]
fn the_configuration_says_what_the_reference_was_made_with() {
    let text = fs::read_to_string(fixture("llama").join("lora-rslora/adapter_config.json")).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let (config, warnings) = MethodConfig::from_adapter_config(&value, "fixture").unwrap();
    assert!(warnings.is_empty());
    assert_eq!(config.get::<LoraConfig>().unwrap().scaling("model.layers.0.self_attn.q_proj").unwrap(), 4.0);
    assert_eq!(config.common().base_model_name_or_path.as_deref(), Some("llama/model"));
}

#[test]
fn lora_plus_gives_b_a_rate_of_its_own() {
    let plus: LoraPlus = serde_json::from_value(json!({"loraplus_lr_ratio": 4.0})).unwrap();
    assert!(serde_json::from_value::<LoraPlus>(json!({"loraplus_lr_ration": 4.0})).is_err());
    let model = Model::of_fixtures("qwen2");
    let config = MethodConfig::from_run_file(&json!({
        "peft_type": "LORA", "bias": "all", "modules_to_save": ["norm", "lm_head"],
    }));
    model.describe(|description| {
        let built = tunesmith_methods::build(&config.unwrap(), description, tunesmith_tensor::Seed(0)).unwrap();
        let mut fast = 0;
        for parameter in built.adapter.parameters() {
            let name = parameter.name();
            let vector = name.ends_with(".bias") || name.ends_with("norm.weight");
            let expected = if name.contains("lora_B") || vector { 4.0 } else { 1.0 };
            assert_eq!(plus.learning_rate_scale(parameter, 1e-3), expected, "{name}");
            let decaying = LoraPlus { loraplus_weight_decay: 0.1, ..plus };
            assert_eq!(decaying.weight_decay(parameter), if vector { 0.0 } else { 0.1 }, "{name}");
            fast += usize::from(expected == 4.0);
        }
        let embedding = tunesmith_tensor::Parameter::new("x.lora_embedding_A", tunesmith_tensor::Matrix::zeros(1, 1));
        assert!((plus.learning_rate_scale(&embedding, 1e-3) * 1e-3 - 1e-6).abs() < 1e-12);
        // B of q and v, the biases of q, k and v in two layers, five norms.
        assert_eq!(fast, 4 + 6 + 5);
    });
}
