#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]
#[path = "../tests/peft/model.rs"]
mod model;
use serde_json::json;
use tunesmith_methods::*;
use tunesmith_tensor::Seed;
fn main() {
    let configs = [
        ("plain", json!({})),
        ("gauss", json!({"init_lora_weights": "gaussian", "target_modules": "all-linear", "r": 3, "lora_alpha": 7})),
        (
            "random",
            json!({"init_lora_weights": false, "target_modules": ".*(q|up)_proj", "use_rslora": true, "lora_dropout": 0.1}),
        ),
        (
            "patterns",
            json!({"target_modules": ["q_proj", "k_proj"], "lora_alpha": 16, "alpha_pattern": {"q_proj": 2.5}, "rank_pattern": {"^model.layers.0.self_attn.k_proj": 2, "(q|k)_proj": 3}}),
        ),
        (
            "layers",
            json!({"target_modules": ["o_proj", "down_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}),
        ),
        ("bias_all", json!({"bias": "all", "r": 1})),
        ("bias_lora", json!({"bias": "lora_only"})),
        ("saved", json!({"modules_to_save": ["norm", "lm_head"]})),
        ("saved_embed", json!({"modules_to_save": ["embed_tokens", "k_proj", "mlp"]})),
        ("head", json!({"target_modules": ["lm_head", "q_proj"]})),
    ];
    for arch in ["llama", "mistral", "qwen2"] {
        let model = model::Model::of_fixtures(arch);
        for (name, config) in &configs {
            if name.starts_with("bias") && arch != "qwen2" {
                continue;
            }
            let mut config = config.clone();
            config["peft_type"] = "LORA".into();
            config["base_model_name_or_path"] = format!("/work/main/fixtures/{arch}/model").into();
            let config = MethodConfig::from_run_file(&config).unwrap();
            let folder = std::path::Path::new("/tmp/ours").join(arch).join(name);
            model.describe(|d| {
                let mut built = build(&config, d, Seed(5)).unwrap();
                for p in built.adapter.parameters_mut() {
                    let mut s = Seed(9).stream(p.name(), 0);
                    p.value_mut().data_mut().iter_mut().for_each(|v| *v += 0.1 * s.normal());
                }
                println!("{arch} {name} {:?}", built.warnings);
                save_adapter(&folder, &built.config, &built.adapter, d).unwrap();
                let mut out = Vec::new();
                for m in merged(&built.adapter, d).unwrap() {
                    let path = &d.sites[m.site.0].path;
                    let mut put = |part: &str, x: &tunesmith_tensor::Matrix| {
                        out.push((
                            format!("{path}.{part}"),
                            vec![x.rows(), x.cols()],
                            x.data().iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>(),
                        ))
                    };
                    put("weight", &m.weight);
                    if let Some(b) = &m.bias {
                        put("bias", b);
                    }
                }
                let views = out.iter().map(|(n, s, b)| {
                    (n.clone(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, s.clone(), b).unwrap())
                });
                std::fs::write(folder.join("merged.st"), safetensors::serialize(views, None).unwrap()).unwrap();
            });
        }
    }
}
