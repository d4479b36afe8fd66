//! Checkpoints of other heads, of other releases and of the bare model; new heads; and what cannot be used.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{SafeTensors, TensorView, serialize_to_file};
use serde_json::{Map, Value, json};
use tunesmith_models::{HeadOptions, Model, ModelKind, Task, load_model, load_model_with};
use tunesmith_tensor::{Precision, Role, SiteId};

use crate::folder;

/// A copy of a case's model that a test may change.
fn copied(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(folder(name).join(file), copy.path().join(file)).unwrap();
    }
    copy
}

/// Renames the tensors of a copy; `None` drops them.
fn rename(copy: &Path, change: impl Fn(&str) -> Option<String>) {
    let file = copy.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let renamed: BTreeMap<String, TensorView<'_>> =
        tensors.iter().filter_map(|(name, view)| Some((change(name)?, view))).collect();
    let renamed: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = renamed
        .into_iter()
        .map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    let views = renamed
        .iter()
        .map(|(name, dtype, shape, data)| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    serialize_to_file(views, None, &file).unwrap();
}

fn set(copy: &Path, key: &str, value: Value) {
    let file = copy.join("config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    config.insert(key.to_owned(), value);
    fs::write(&file, serde_json::to_vec(&config).unwrap()).unwrap();
}

fn with(path: &Path, options: &HeadOptions) -> Result<std::sync::Arc<dyn Model>, String> {
    load_model_with(path, Precision::Float32, options).map(|loaded| loaded.model).map_err(|error| error.to_string())
}

fn refusal(path: &Path, options: &HeadOptions) -> String {
    with(path, options).map(|_| ()).unwrap_err()
}

/// The weight at a path.
fn weight(model: &dyn Model, path: &str) -> Vec<f32> {
    let site = model.sites().iter().position(|site| site.path == path && site.kind.is_weight());
    let site = site.unwrap_or_else(|| panic!("there is no {path}"));
    model.base(SiteId(site)).unwrap().weight.to_matrix().to_vec()
}

#[test]
fn old_names_and_missing_prefixes_are_read() {
    let whole = load_model(&folder("bert-regression")).unwrap().model;
    let copy = copied("bert-regression");
    rename(copy.path(), |name| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        Some(name.strip_prefix("bert.").map_or(name.clone(), str::to_owned))
    });
    let old = load_model(copy.path()).unwrap().model;
    assert_eq!(old.tensors().len(), whole.tensors().len());
    for ((name, left, _), (other, right, _)) in old.tensors().into_iter().zip(whole.tensors()) {
        assert_eq!((name, left.to_matrix()), (other, right.to_matrix()));
    }
}

#[test]
fn a_new_head_is_drawn_from_the_seed_and_named() {
    let options = |seed| HeadOptions {
        labels: Some(vec!["no".into(), "yes".into()]),
        seed,
        ..HeadOptions::for_task(Task::SeqCls)
    };
    for (name, head, others) in [
        ("bert-bare", "classifier", "bert.encoder.layer.0.attention.self.query"),
        ("distilbert-bare", "classifier", "distilbert.transformer.layer.0.attention.q_lin"),
        ("roberta-answers", "classifier.out_proj", "roberta.encoder.layer.0.attention.self.query"),
        ("t5-answers", "classification_head.out_proj", "transformer.encoder.block.0.layer.0.SelfAttention.q"),
        ("bart-answers", "classification_head.out_proj", "model.encoder.layers.0.self_attn.q_proj"),
        ("llama-answers", "score", "model.layers.0.self_attn.q_proj"),
        ("gpt2-tokens", "score", "transformer.h.0.attn.c_attn"),
    ] {
        let [first, again, other] = [1, 1, 2].map(|seed| with(&folder(name), &options(seed)).unwrap());
        let new = &first.info().head.new_modules;
        assert!(new.iter().any(|module| module == head), "{name}: {new:?}");
        assert!(!new.iter().any(|module| module.contains("layer") || module.contains("block")), "{name}: {new:?}");
        assert_eq!(weight(&*first, head), weight(&*again, head), "{name}");
        assert_ne!(weight(&*first, head), weight(&*other, head), "{name}");
        assert_eq!(weight(&*first, others), weight(&*other, others), "{name}");
        assert_eq!(first.info().head.labels, ["no", "yes"]);
        assert_eq!(first.config_json()["id2label"], json!({"0": "no", "1": "yes"}));
    }
}

#[test]
fn the_pooler_belongs_to_the_body_and_comes_from_the_files() {
    let stored = crate::tensors(&folder("bert-bare").join("model.safetensors"));
    let model = with(&folder("bert-bare"), &HeadOptions::for_task(Task::SeqCls)).unwrap();
    assert_eq!(weight(&*model, "bert.pooler.dense"), stored["pooler.dense.weight"].values);
    assert_eq!(model.info().head.new_modules, ["classifier"]);
}

#[test]
fn a_head_of_another_size_is_an_error_unless_it_may_be_replaced() {
    let labels = Some(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]);
    let options = HeadOptions { labels, ..HeadOptions::for_task(Task::TokenCls) };
    let text = refusal(&folder("bert-tokens"), &options);
    assert!(text.contains("classifier.weight has the shape [5, 16]") && text.contains("[3, 16]"), "{text}");
    assert!(text.contains("ignore_mismatched_sizes"), "{text}");
    let replacing = HeadOptions { ignore_mismatched_sizes: true, ..options };
    let model = with(&folder("bert-tokens"), &replacing).unwrap();
    assert_eq!(model.info().head.new_modules, ["classifier"]);
    assert_eq!(weight(&*model, "classifier").len(), 3 * 16);
}

#[test]
fn heads_that_an_architecture_lacks_are_named() {
    let text = refusal(&folder("bert-bare"), &HeadOptions::for_task(Task::CausalLm));
    assert!(text.contains("\"bert\" have no head for CAUSAL_LM") && text.contains("TOKEN_CLS"), "{text}");
    let text = refusal(&folder("bart-classes"), &HeadOptions::for_task(Task::TokenCls));
    assert!(text.contains("SEQ_2_SEQ_LM, SEQ_CLS, QUESTION_ANS, FEATURE_EXTRACTION"), "{text}");
    let copy = copied("bert-bare");
    set(copy.path(), "model_type", json!("deberta"));
    let text = refusal(copy.path(), &HeadOptions::default());
    assert!(text.contains("model_type \"deberta\" is not supported"), "{text}");
    for known in ["bert", "roberta", "distilbert", "t5", "bart", "gpt2", "llama"] {
        assert!(text.contains(known), "{text}");
    }
}

#[test]
fn labels_that_make_no_sense_are_named() {
    let copy = copied("bert-tokens");
    set(copy.path(), "id2label", json!({"1": "a", "2": "b"}));
    let text = refusal(copy.path(), &HeadOptions::default());
    assert!(text.contains("id2label does not name the labels 0 to 1"), "{text}");
    let none = HeadOptions { labels: Some(Vec::new()), ..HeadOptions::for_task(Task::SeqCls) };
    assert!(refusal(&folder("bert-tokens"), &none).contains("name at least one"));
    let copy = copied("bert-regression");
    set(copy.path(), "problem_type", json!("ranking"));
    assert!(refusal(copy.path(), &HeadOptions::default()).contains("problem_type \"ranking\" is not supported"));
}

#[test]
fn tensors_that_are_missing_or_misshapen_are_reported_together() {
    for (name, lost, wrong) in [
        ("bert-tokens", "bert.encoder.layer.1.output.dense.weight", "bert.embeddings.word_embeddings.weight"),
        ("distilbert-bare", "transformer.layer.1.ffn.lin2.weight", "embeddings.word_embeddings.weight"),
        ("t5-answers", "decoder.block.1.layer.1.EncDecAttention.k.weight", "shared.weight"),
        ("bart-answers", "model.decoder.layers.1.fc2.weight", "model.shared.weight"),
    ] {
        let copy = copied(name);
        rename(copy.path(), |other| (other != lost).then(|| other.to_owned()));
        set(copy.path(), "vocab_size", json!(41));
        let text = refusal(copy.path(), &HeadOptions::default());
        assert!(text.contains(&format!("{lost}: missing")), "{name}: {text}");
        assert!(text.contains(wrong) && text.contains("expected [41, 16], found [40, 16]"), "{name}: {text}");
    }
}

#[test]
fn configurations_that_no_model_has_are_refused_with_every_problem() {
    let copy = copied("bert-tokens");
    set(copy.path(), "hidden_size", json!(15));
    set(copy.path(), "hidden_act", json!("mish"));
    set(copy.path(), "position_embedding_type", json!("relative_key"));
    set(copy.path(), "is_decoder", json!(true));
    let text = refusal(copy.path(), &HeadOptions::default());
    for problem in ["hidden_size 15 is not a multiple", "\"mish\"", "\"relative_key\"", "is_decoder is true"] {
        assert!(text.contains(problem), "{text}");
    }
    let copy = copied("roberta-tokens");
    set(copy.path(), "max_position_embeddings", json!(2));
    let text = refusal(copy.path(), &HeadOptions::default());
    assert!(text.contains("max_position_embeddings 2 leaves no position"), "{text}");
}

#[test]
fn old_copies_of_the_shared_embedding_are_read_once() {
    let copy = copied("bart-answers");
    rename(copy.path(), |name| Some(name.replace("model.shared", "model.encoder.embed_tokens")));
    let old = load_model(copy.path()).unwrap().model;
    let whole = load_model(&folder("bart-answers")).unwrap().model;
    assert_eq!(weight(&*old, "model.shared"), weight(&*whole, "model.shared"));
}

#[test]
fn features_of_a_t5_are_those_of_its_encoder() {
    let encoder = load_model(&folder("t5-encoder")).unwrap().model;
    assert_eq!(encoder.info().kind, ModelKind::Encoder);
    assert_eq!(load_model(&folder("t5-bare")).unwrap().model.info().blocks, 2);
    for name in ["t5-bare", "t5-classes", "t5-answers"] {
        let model = with(&folder(name), &HeadOptions::for_task(Task::FeatureExtraction)).unwrap();
        assert_eq!(model.info().kind, ModelKind::Encoder, "{name}");
        assert_eq!(model.config_json()["architectures"], json!(["T5EncoderModel"]), "{name}");
        let names = |model: &dyn Model| model.tensors().into_iter().map(|(name, ..)| name).collect::<Vec<_>>();
        assert!(names(&*model).iter().all(|name| name == "shared.weight" || name.starts_with("encoder.")), "{name}");
        assert!(model.sites().iter().all(|site| site.role != Role::EncoderAttention), "{name}");
    }
}
