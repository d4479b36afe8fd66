//! What must hold of every method on weights: a start at the base, files that are read as they were written, merging, counts.

use serde_json::{Value, json};
use tunesmith_methods::{
    BuiltAdapter, MethodConfig, at_rank, build, load_adapter, load_checkpoint, merged, save_adapter, save_checkpoint,
    with_rank,
};
use tunesmith_tensor::{Gradients, Parameter, Role, Seed, Site, SiteKind, Workspace};

use crate::model::Model;

/// A configuration of every method, and whether its start is the base to the last bit.
fn configs() -> Vec<(Value, bool)> {
    vec![
        (json!({"peft_type": "LORA", "r": 3}), true),
        (json!({"peft_type": "LORA", "r": 3, "use_dora": true}), false),
        (json!({"peft_type": "LORA", "r": 3, "target_modules": ["q_proj", "embed_tokens"]}), true),
        (json!({"peft_type": "LORA", "r": 3, "use_dora": true, "target_modules": ["embed_tokens"]}), false),
        (json!({"peft_type": "LORA", "r": 3, "trainable_token_indices": [7, 2, 90]}), true),
        (json!({"peft_type": "ADALORA", "init_r": 4, "target_r": 2, "total_step": 10}), true),
        (json!({"peft_type": "DYLORA", "r": 4, "rank": 3}), true),
        (json!({"peft_type": "VERA", "r": 5}), true),
        (json!({"peft_type": "VERA", "r": 5, "save_projection": false, "projection_prng_key": 3}), true),
        (json!({"peft_type": "IA3"}), true),
        (json!({"peft_type": "LN_TUNING", "target_modules": ["input_layernorm", "norm"]}), true),
        (json!({"peft_type": "TRAINABLE_TOKENS", "token_indices": [3, 4]}), true),
        (json!({"peft_type": "FULL"}), true),
        (json!({"peft_type": "INTRINSIC", "intrinsic_dimension": 50}), true),
        (
            json!({"peft_type": "INTRINSIC", "intrinsic_dimension": 9, "projection": "dense", "projection_scope": "per_layer",
                "target_modules": "all-linear"}),
            true,
        ),
        (json!({"peft_type": "SAID", "intrinsic_dimension": 50, "projection": "sparse"}), true),
        (
            json!([{"peft_type": "LORA", "target_modules": ["q_proj"]}, {"peft_type": "IA3", "target_modules": ["v_proj"]},
                {"peft_type": "LN_TUNING", "target_modules": ["norm"]}]),
            true,
        ),
    ]
}

fn method(config: &Value) -> MethodConfig {
    MethodConfig::from_run_file(config).unwrap_or_else(|error| panic!("{config}: {error}"))
}

/// Moves every trainable value by chance.
fn shake(built: &mut BuiltAdapter) {
    for parameter in built.adapter.parameters_mut() {
        let mut stream = Seed(9).stream(parameter.name(), 1);
        parameter.value_mut().data_mut().iter_mut().for_each(|value| *value += 0.1 * stream.normal());
    }
}

fn bits(built: &BuiltAdapter) -> Vec<(String, Vec<u32>)> {
    let bits = |parameter: &&Parameter| parameter.value().data().iter().map(|value| value.to_bits()).collect();
    built.adapter.parameters().iter().map(|parameter| (parameter.name().to_owned(), bits(parameter))).collect()
}

#[test]
fn a_saved_adapter_of_every_method_is_read_as_it_was() {
    for architecture in ["llama", "qwen2", "mistral"] {
        let model = Model::of_fixtures(architecture);
        for (config, _) in configs() {
            model.describe(|description| {
                let mut built =
                    build(&method(&config), description, Seed(1)).unwrap_or_else(|e| panic!("{config}: {e}"));
                shake(&mut built);
                let folder = tempfile::tempdir().unwrap();
                save_adapter(folder.path(), &built).unwrap();
                let loaded = load_adapter(folder.path(), description).unwrap_or_else(|e| panic!("{config}: {e}"));
                assert_eq!(bits(&loaded), bits(&built), "{config}");
                let of = |built: &BuiltAdapter| merged(&built.adapter, description).unwrap();
                for (before, after) in of(&built).iter().zip(of(&loaded)) {
                    assert_eq!((&before.weight, &before.bias), (&after.weight, &after.bias), "{config}");
                }
                let again = tempfile::tempdir().unwrap();
                save_adapter(again.path(), &loaded).unwrap();
                for file in ["adapter_config.json", "adapter_model.safetensors", "adapters.json"] {
                    let read = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(file)).ok();
                    assert_eq!(read(&folder), read(&again), "{config} {file}");
                }
            });
        }
    }
}

#[test]
fn trained_rows_of_tied_embeddings_may_be_in_the_file_once_for_each_name() {
    let (config, model) =
        (json!({"peft_type": "TRAINABLE_TOKENS", "token_indices": [3, 4]}), Model::of_fixtures("llama"));
    model.describe(|description| {
        let mut built = build(&method(&config), description, Seed(1)).unwrap();
        shake(&mut built);
        let folder = tempfile::tempdir().unwrap();
        save_adapter(folder.path(), &built).unwrap();
        let file = folder.path().join("adapter_model.safetensors");
        let bytes = std::fs::read(&file).unwrap();
        let mut tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors();
        assert_eq!(tensors.len(), 1);
        let (rows, shape) = (tensors[0].1.data(), tensors[0].1.shape().to_vec());
        let again = "base_model.model.lm_head.trainable_tokens_delta".to_owned();
        tensors.push((again.clone(), tensors[0].1.clone()));
        std::fs::write(&file, safetensors::serialize(tensors.clone(), None).unwrap()).unwrap();
        assert_eq!(bits(&load_adapter(folder.path(), description).unwrap()), bits(&built));
        // Other rows are not a copy, and belong nowhere.
        let others = vec![0; rows.len()];
        tensors[1].1 = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &others).unwrap();
        std::fs::write(&file, safetensors::serialize(tensors, None).unwrap()).unwrap();
        let error = load_adapter(folder.path(), description).err().unwrap().to_string();
        assert!(error.contains("unexpected (1)") && error.contains(&again), "{error}");
    });
}

#[test]
fn every_method_begins_at_the_base() {
    for architecture in ["llama", "qwen2"] {
        let model = Model::of_fixtures(architecture);
        for (config, exact) in configs() {
            model.describe(|description| {
                let built = build(&method(&config), description, Seed(1)).unwrap();
                for weight in merged(&built.adapter, description).unwrap() {
                    let base = (description.base)(weight.site).unwrap();
                    let frozen = base.weight.to_matrix();
                    let largest = frozen.data().iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                    for (found, expected) in weight.weight.data().iter().zip(frozen.data()) {
                        let tolerance = if exact { 0.0 } else { 1e-5 * largest };
                        assert!((found - expected).abs() <= tolerance, "{config}: {found} {expected}");
                    }
                    assert_eq!(weight.bias, base.bias.map(|bias| bias.to_matrix()), "{config}");
                }
                let other = build(&method(&config), description, Seed(1)).unwrap();
                assert_eq!(bits(&built), bits(&other), "{config}");
            });
        }
    }
}

#[test]
fn a_checkpoint_of_every_method_goes_on_with_the_same_bits() {
    let model = Model::of_fixtures("qwen2");
    let starts =
        ["pissa", "olora"].map(|init| (json!({"peft_type": "LORA", "r": 2, "init_lora_weights": init}), false));
    for (config, _) in configs().into_iter().chain(starts) {
        model.describe(|description| {
            let seed = Seed(4);
            let mut built = build(&method(&config), description, seed).unwrap();
            built.begin(10).unwrap();
            for step in 0..3 {
                built.before_step(step);
                let mut gradients = Gradients::new(&Workspace::new());
                built.regularise(&Workspace::new(), &mut gradients);
                shake(&mut built);
                built.after_step(&gradients, 1.0, step);
            }
            let folder = tempfile::tempdir().unwrap();
            save_checkpoint(folder.path(), &built).unwrap();
            let mut resumed = load_checkpoint(folder.path(), &built.config, description, seed).unwrap();
            assert_eq!(bits(&resumed), bits(&built), "{config}");
            resumed.begin(10).unwrap();
            for built in [&mut built, &mut resumed] {
                built.before_step(3);
                shake(built);
                built.after_step(&Gradients::new(&Workspace::new()), 1.0, 3);
            }
            assert_eq!(bits(&resumed), bits(&built), "{config}");
        });
    }
}

#[test]
fn what_pissa_and_olora_save_is_plain_lora_with_the_same_weights() {
    let model = Model::of_fixtures("qwen2");
    for init in ["pissa", "pissa_niter_8", "olora"] {
        let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 6, "init_lora_weights": init,
            "rank_pattern": {"v_proj": 3}, "target_modules": ["q_proj", "v_proj"]});
        model.describe(|description| {
            let mut built = build(&method(&config), description, Seed(1)).unwrap();
            shake(&mut built);
            let folder = tempfile::tempdir().unwrap();
            save_adapter(folder.path(), &built).unwrap();
            let loaded = load_adapter(folder.path(), description).unwrap();
            let file: Value = serde_json::from_str(&loaded.config.to_adapter_config()).unwrap();
            assert_eq!((&file["r"], &file["lora_alpha"]), (&json!(4), &json!(12)));
            assert_eq!((&file["init_lora_weights"], &file["rank_pattern"]["v_proj"]), (&json!(true), &json!(6)));
            let of = |built: &BuiltAdapter| merged(&built.adapter, description).unwrap();
            for (before, after) in of(&built).iter().zip(of(&loaded)) {
                for (before, after) in before.weight.data().iter().zip(after.weight.data()) {
                    assert!((before - after).abs() < 1e-5, "{init}: {before} {after}");
                }
            }
        });
    }
}

#[test]
fn every_rank_of_dylora_is_exported_as_lora() {
    let model = Model::of_fixtures("llama");
    model.describe(|description| {
        let config = |rank: usize| json!({"peft_type": "DYLORA", "r": 4, "min_r": 2, "rank": rank});
        for rank in 2..=4 {
            let mut built = build(&method(&config(rank)), description, Seed(1)).unwrap();
            shake(&mut built);
            let plain = at_rank(&built, rank, description).unwrap();
            let folder = tempfile::tempdir().unwrap();
            save_adapter(folder.path(), &plain).unwrap();
            let loaded = load_adapter(folder.path(), description).unwrap();
            assert_eq!(loaded.config.peft_type(), "LORA");
            let of = |built: &BuiltAdapter| merged(&built.adapter, description).unwrap();
            for (before, after) in of(&built).iter().zip(of(&loaded)) {
                assert_eq!(before.weight, after.weight, "rank {rank}");
            }
        }
        let auto = method(&json!({"peft_type": "DYLORA", "r": 4, "min_r": 2, "rank": "auto"}));
        let mut built = build(&auto, description, Seed(1)).unwrap();
        shake(&mut built);
        let folder = tempfile::tempdir().unwrap();
        save_adapter(folder.path(), &built).unwrap();
        let chosen = with_rank(&load_adapter(folder.path(), description).unwrap(), 3, description).unwrap();
        save_adapter(folder.path(), &chosen).unwrap();
        let loaded = load_adapter(folder.path(), description).unwrap();
        let of = |built: &BuiltAdapter| merged(&built.adapter, description).unwrap();
        let plain = of(&at_rank(&built, 3, description).unwrap());
        for ((plain, chosen), (loaded, whole)) in plain.iter().zip(of(&chosen)).zip(of(&loaded).iter().zip(of(&built)))
        {
            assert_eq!((&plain.weight, &chosen.weight), (&chosen.weight, &loaded.weight));
            assert_ne!(plain.weight, whole.weight, "unchosen, the rank is the largest");
        }
        let built = build(&method(&config(2)), description, Seed(1)).unwrap();
        let error = at_rank(&built, 1, description).err().unwrap().to_string();
        assert!(error.contains("trained for ranks 2 to 4"), "{error}");
    });
}

#[test]
fn a_subspace_of_another_base_is_refused_although_its_numbers_fit() {
    let (llama, qwen2) = (Model::of_fixtures("llama"), Model::of_fixtures("qwen2"));
    for peft_type in ["INTRINSIC", "SAID"] {
        let config = json!({"peft_type": peft_type, "intrinsic_dimension": 20});
        let folder = tempfile::tempdir().unwrap();
        llama.describe(|description| {
            save_adapter(folder.path(), &build(&method(&config), description, Seed(1)).unwrap()).unwrap();
            load_adapter(folder.path(), description).unwrap();
        });
        let error = qwen2.describe(|description| load_adapter(folder.path(), description).err().unwrap().to_string());
        assert!(error.contains("projected_values") && error.contains("trained on"), "{error}");
    }
}

#[test]
fn methods_at_the_same_sites_clash_by_name() {
    let model = Model::of_fixtures("llama");
    let config = json!([{"peft_type": "LORA"}, {"peft_type": "IA3", "target_modules": ["v_proj", "k_proj"]}]);
    model.describe(|description| {
        let error = build(&method(&config), description, Seed(0)).err().unwrap().to_string();
        assert!(error.contains("model.layers.1.self_attn.v_proj") && !error.contains("k_proj"), "{error}");
    });
}

#[test]
fn what_cannot_be_is_refused_with_what_can() {
    let llama = Model::of_fixtures("llama");
    for (config, part) in [
        (json!({"peft_type": "BITFIT"}), "Train the norms with LN_TUNING"),
        (json!({"peft_type": "FULL", "top_layers": 9}), "has 2 blocks in a stack. Name fewer"),
        (json!({"peft_type": "SAID", "intrinsic_dimension": 3}), "Use 4 or more, or INTRINSIC"),
        (
            json!({"peft_type": "INTRINSIC", "projection": "dense", "projection_memory": 0.001}),
            "Use projection: fastfood",
        ),
        (json!({"peft_type": "LORA", "r": 64, "init_lora_weights": "olora"}), "Use r: "),
        (json!({"peft_type": "TRAINABLE_TOKENS", "token_indices": [96]}), "has 96 embeddings"),
        (json!({"peft_type": "IA3", "target_modules": ["embed_tokens"]}), "embed_tokens (an embedding)"),
    ] {
        llama.describe(|description| {
            let error = build(&method(&config), description, Seed(0)).err().map(|error| error.to_string());
            assert!(error.as_ref().is_some_and(|error| error.contains(part)), "{config}: {error:?}");
        });
    }
}

/// A model of a shape that only counts: blocks of attention and feed-forward with biases, as BERT and GPT have them.
fn bert(layers: usize, d: usize) -> Vec<Site> {
    let mut sites = Vec::new();
    let mut add = |path: String, kind, role, block, rows, cols| {
        sites.push(Site {
            path,
            kind,
            role,
            block,
            rows,
            cols,
            has_bias: kind != SiteKind::Embedding,
            stored_transposed: false,
        });
    };
    add("embeddings.LayerNorm".into(), SiteKind::Norm, Role::EmbeddingNorm, None, 1, d);
    for layer in 0..layers {
        let mut linear = |name: &str, role, rows, cols| {
            add(format!("encoder.layer.{layer}.{name}"), SiteKind::Linear, role, Some(layer), rows, cols);
        };
        linear("attention.self.query", Role::Query, d, d);
        linear("attention.self.key", Role::Key, d, d);
        linear("attention.self.value", Role::Value, d, d);
        linear("attention.output.dense", Role::AttentionOutput, d, d);
        linear("intermediate.dense", Role::FeedForwardUp, 4 * d, d);
        linear("output.dense", Role::FeedForwardDown, d, 4 * d);
        for norm in ["attention.output.LayerNorm", "output.LayerNorm"] {
            add(format!("encoder.layer.{layer}.{norm}"), SiteKind::Norm, Role::BlockNorm, Some(layer), 1, d);
        }
    }
    add("pooler.dense".into(), SiteKind::Linear, Role::Pooler, None, d, d);
    sites
}

#[test]
fn trained_values_are_as_many_as_the_papers_say() {
    let bitfit = json!({"peft_type": "BITFIT"});
    let subset = json!({"peft_type": "BITFIT", "biases": "query_and_feedforward"});
    let lora = json!({"peft_type": "LORA", "r": 8, "target_modules": ["query", "value"]});
    let (base, large) = (Model::of_sites("bert", bert(12, 768)), Model::of_sites("bert", bert(24, 1024)));
    for (model, config, expected) in [
        (&base, &bitfit, 102_912),
        (&large, &bitfit, 272_384),
        (&base, &subset, 46_080),
        (&large, &subset, 122_880),
        (&base, &lora, 294_912),
        (&large, &lora, 786_432),
        (&base, &json!({"peft_type": "SAID", "intrinsic_dimension": 1608}), 1608),
        (&base, &json!({"peft_type": "INTRINSIC", "intrinsic_dimension": 1861}), 1861),
    ] {
        model.describe(|description| {
            let built = build(&method(config), description, Seed(0)).unwrap();
            assert_eq!(built.adapter.trainable_values(), expected, "{config}");
        });
    }
}
