//! Folders that cannot be loaded, and what is said of them.

use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;
use tunesmith_methods::{MethodError, load_adapter, save_adapter};

use crate::model::{Model, fixture};

/// A copy of the fixture `llama/lora`.
fn copy() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(fixture("llama").join("lora").join(file), folder.path().join(file)).unwrap();
    }
    folder
}

/// Changes keys of a folder's configuration.
fn configure(folder: &Path, keys: &[(&str, Value)]) {
    let file = folder.join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for (key, value) in keys {
        config[*key] = value.clone();
    }
    fs::write(&file, config.to_string()).unwrap();
}

fn refusal(folder: &Path, architecture: &str) -> MethodError {
    Model::of_fixtures(architecture).describe(|model| match load_adapter(folder, model) {
        Ok(_) => panic!("{} loads", folder.display()),
        Err(error) => error,
    })
}

#[test]
fn every_missing_unexpected_and_misshapen_tensor_is_listed() {
    let folder = copy();
    let file = folder.path().join("adapter_model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors.drain(..2);
    tensors[0].1 = TensorView::new(Dtype::F32, vec![2, 8], &bytes[..64]).unwrap();
    tensors[1].0 = "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight".to_owned();
    let halves = TensorView::new(Dtype::F64, tensors[2].1.shape().to_vec(), &[0; 4 * 32 * 8]).unwrap();
    tensors[2].1 = halves;
    fs::write(&file, safetensors::serialize(tensors, None).unwrap()).unwrap();
    let text = refusal(folder.path(), "llama").to_string();
    for part in [
        "missing (3):",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.0.self_attn.q_proj.lora_B.weight",
        "unexpected (1):",
        "model.layers.7.self_attn.q_proj.lora_A.weight",
        "of another shape (1):",
        "model.layers.0.self_attn.v_proj.lora_A.weight is [2, 8] in the file, [4, 32] expected",
        "of a type other than float32, float16 and bfloat16 (1):",
        "model.layers.1.self_attn.q_proj.lora_A.weight (F64)",
        "made for the base model 'llama/model'",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn an_adapter_for_another_model_names_its_own() {
    let folder = copy();
    let table: Value = serde_json::from_str(include_str!("../data/targets.json")).unwrap();
    let deeper = Model::from_sites(&table["models"]["deep"]);
    let error = deeper.describe(|model| load_adapter(folder.path(), model).err().unwrap());
    let text = error.to_string();
    assert!(text.contains("missing (40)") && text.contains("of another shape (8)"), "{text}");
    assert!(text.contains("this llama model (tiny/model)") && text.contains("'llama/model'"), "{text}");

    configure(folder.path(), &[("target_modules", serde_json::json!(["c_attn"]))]);
    let text = refusal(folder.path(), "llama").to_string();
    assert!(text.contains("[\"c_attn\"]") && text.contains("'llama/model'"), "{text}");
}

#[test]
fn a_rank_that_is_not_the_files_is_an_error_about_ranks() {
    let folder = copy();
    configure(folder.path(), &[("r", 8.into())]);
    let text = refusal(folder.path(), "llama").to_string();
    assert!(text.contains("is [4, 32] in the file, [8, 32] expected"), "{text}");
    assert!(text.contains("Only ranks differ: r and rank_pattern"), "{text}");
    configure(folder.path(), &[("r", 4.into()), ("rank_pattern", serde_json::json!({"layers.1.self_attn.q_proj": 3}))]);
    let text = refusal(folder.path(), "llama").to_string();
    assert!(text.contains("of another shape (2)") && text.contains("Only ranks differ"), "{text}");
}

#[test]
fn pickled_and_missing_weights_are_told_apart() {
    let folder = copy();
    fs::remove_file(folder.path().join("adapter_model.safetensors")).unwrap();
    assert!(matches!(refusal(folder.path(), "llama"), MethodError::NoWeights { .. }));
    fs::write(folder.path().join("adapter_model.bin"), [0x80, 2]).unwrap();
    let text = refusal(folder.path(), "llama").to_string();
    assert!(text.contains("pickle") && text.contains("save_file(torch.load('adapter_model.bin'"), "{text}");
}

#[test]
fn truncated_files_are_named() {
    let folder = copy();
    let file = folder.path().join("adapter_model.safetensors");
    let bytes = fs::read(&file).unwrap();
    for length in [0, 5, 200, bytes.len() - 1] {
        fs::write(&file, &bytes[..length]).unwrap();
        let error = refusal(folder.path(), "llama");
        assert!(matches!(&error, MethodError::DamagedWeights { file: named, .. } if *named == file), "{error}");
    }
    fs::write(folder.path().join("adapter_config.json"), "{\"peft_type\": \"LORA\"").unwrap();
    assert!(matches!(refusal(folder.path(), "llama"), MethodError::Json { .. }));
}

#[test]
fn a_folder_without_an_adapter_says_where_one_is() {
    let outer = tempfile::tempdir().unwrap();
    fs::rename(copy().keep(), outer.path().join("checkpoint-10")).unwrap();
    let text = refusal(outer.path(), "llama").to_string();
    assert!(text.contains("no adapter_config.json in") && text.contains("adapters: checkpoint-10"), "{text}");
    let text = refusal(&outer.path().join("nowhere"), "llama").to_string();
    assert!(text.starts_with("cannot read") && text.contains("nowhere"), "{text}");
}

#[test]
fn what_would_change_the_meaning_is_refused_by_name() {
    let folder = copy();
    configure(folder.path(), &[("use_qalora", true.into()), ("init_lora_weights", "pissa".into())]);
    let text = refusal(folder.path(), "llama").to_string();
    assert!(text.contains("use_qalora: true is not supported") && text.contains("a part taken out"), "{text}");
    assert!(text.contains("adapter_config.json cannot be used"), "{text}");
}

#[test]
fn a_failing_save_leaves_the_earlier_adapter() {
    let folder = copy();
    let before = fs::read(folder.path().join("adapter_config.json")).unwrap();
    // A folder in the place of the file that is written first cannot be replaced.
    fs::create_dir(folder.path().join("adapter_model.safetensors.partial")).unwrap();
    Model::of_fixtures("llama").describe(|model| {
        let mut loaded = load_adapter(folder.path(), model).unwrap();
        loaded.config = loaded.config.with_common(|common| common.revision = Some("another".to_owned()));
        let saved = save_adapter(folder.path(), &loaded);
        assert!(matches!(saved, Err(MethodError::Io { action: "write", .. })));
        assert!(load_adapter(folder.path(), model).is_ok());
    });
    assert_eq!(fs::read(folder.path().join("adapter_config.json")).unwrap(), before);
}
