//! Bad input gets a clear error, the right exit code, and no panic.

use std::fs;

use crate::scene::Scene;

#[test]
fn mistyped_keys_and_wrong_values_are_all_named() {
    let scene = Scene::new();
    scene.train(&["learning_rte=1", "peft.lora_alhpa=2", "seed=x"]).fails(
        2,
        &[
            "run.yaml cannot be used, for 3 reasons:",
            "unknown key 'learning_rte'; did you mean 'learning_rate'?",
            "peft: unknown key 'lora_alhpa'; did you mean 'lora_alpha'?",
            "seed: expected a whole number from 0, found the text \"x\"",
        ],
    );
    scene.write("typo.yaml", "model_name_or_path: model\noutput_dirr: x\n");
    scene.run(&["train", "typo.yaml"]).fails(2, &["line 2: unknown key 'output_dirr'; did you mean 'output_dir'?"]);
    scene.run(&["train", "run.yml"]).fails(2, &["cannot read the configuration run.yml: No such file"]);
    scene.run(&["train", "run.yaml", "learning_rate"]).fails(2, &["'learning_rate' is not KEY=VALUE"]);
    scene.run(&["trian"]).fails(2, &["unrecognized subcommand 'trian'", "train"]);
    assert!(!scene.path("out").exists());
}

#[test]
fn missing_files_and_unknown_models_are_named() {
    let scene = Scene::new();
    scene
        .train(&["train_file=a.jsonl", "validation_file=b.jsonl"])
        .fails(2, &["train_file: there is no file a.jsonl", "b.jsonl"]);
    scene.train(&["model_name_or_path=smollm2-135m-instuct"]).fails(2, &["did you mean 'smollm2-135m-instruct'?"]);
    scene
        .train(&["model_name_or_path=smollm2-135m-instruct"])
        .fails(2, &["run `tunesmith pull smollm2-135m-instruct`"]);
    scene.train(&["model_name_or_path=org/name"]).fails(2, &["`tunesmith pull org/name` fetches it"]);
    scene.train(&["model_name_or_path=run.yaml"]).fails(1, &["run.yaml is not a model"]);
    scene.run(&["pull", "smolm2-135m"]).fails(2, &["did you mean 'smollm2-135m-instruct'?"]);
    scene.run(&["generate", "-a", "nowhere", "x"]).fails(1, &["nowhere"]);
}

#[test]
fn models_that_are_damaged_or_pickled_are_refused() {
    let scene = Scene::new();
    let weights = scene.path("model/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let train = || scene.train(&[]);

    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    train().fails(1, &["model/model.safetensors", "truncated"]);
    fs::remove_file(&weights).unwrap();
    train().fails(1, &["model.safetensors"]);
    scene.write("model/pytorch_model.bin", "pickle");
    train().fails(1, &["pickled weights (pytorch_model.bin)", "save_pretrained"]);
    fs::remove_file(scene.path("model/pytorch_model.bin")).unwrap();
    fs::write(&weights, &bytes).unwrap();

    let config = scene.read("model/config.json");
    scene.write("model/config.json", &config.replace("\"intermediate_size\": 48", "\"intermediate_size\": 40"));
    train().fails(1, &["the tensors do not fit the configuration", "expected [40, 32], found [48, 32]"]);
    scene.write("model/config.json", &config.replace("\"model_type\": \"llama\"", "\"model_type\": \"lama\""));
    train().fails(1, &["model_type \"lama\" is not supported", "llama"]);
    scene.write("model/config.json", &config);

    scene.write("cut.gguf", "GGUF\u{3}\0\0\0");
    scene.run(&["inspect", "cut.gguf"]).fails(1, &["cut.gguf"]);
    assert!(!scene.path("out").exists(), "nothing is written before the model is known to be good");
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let scene = Scene::new();
    scene.train(&[]).succeeds();
    let config = scene.read("model/config.json");
    fs::create_dir(scene.path("narrow")).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(scene.path("model").join(file), scene.path("narrow").join(file)).unwrap();
    }
    scene.run(&["generate", "-m", "narrow", "-a", "out", "x"]).fails(1, &["narrow is not a model"]);
    drop(config);

    let adapter = scene.path("out/adapter_model.safetensors");
    let bytes = fs::read(&adapter).unwrap();
    fs::write(&adapter, &bytes[..100]).unwrap();
    scene.run(&["generate", "-a", "out", "x"]).fails(1, &["adapter_model.safetensors is truncated"]);
    fs::write(&adapter, &bytes).unwrap();
    let settings = scene.read("out/adapter_config.json");
    scene.write("out/adapter_config.json", &settings.replace("\"r\": 4", "\"r\": 8"));
    scene.run(&["generate", "-a", "out", "x"]).fails(1, &["Only ranks differ"]);
    scene.write("out/adapter_config.json", &settings.replace("\"model\"", "\"gone\""));
    scene.run(&["generate", "-a", "out", "x"]).fails(2, &["the base model of out is 'gone'", "--model"]);
    scene.run(&["generate", "-a", "model", "x"]).fails(1, &["no adapter_config.json in model"]);
}

#[test]
fn targets_that_match_nothing_list_near_names() {
    let scene = Scene::new();
    let ended = scene.train(&["peft.target_modules=[q_porj, v_proj]"]);
    ended.fails(2, &["target_modules has entries that match no module", "'q_porj' (near names: q_proj"]);
    scene.train(&["peft.target_modules=nothing"]).fails(2, &["no module of this llama model is targeted"]);
}

#[test]
fn data_that_cannot_be_used_is_named_by_line() {
    let scene = Scene::new();
    let train = |text: &str, more: &[&str]| {
        scene.write("train.jsonl", text);
        scene.train(more)
    };
    train("", &[]).fails(1, &["train.jsonl", "no"]);
    train("{\"prompt\": 1}\n", &[]).fails(1, &["train.jsonl:1:"]);
    train("{\"question\": \"a\", \"answer\": \"b\"}\n", &[])
        .fails(1, &["prompt_column", "it has `question`, `answer`"]);
    let long = format!("{{\"prompt\": \"{}\", \"completion\": \"b\"}}\n", "a".repeat(70));
    train(&long, &[]).fails(1, &["train.jsonl:1: has 72 tokens, more than 64", "truncate: true"]);
    train(&long, &["truncate=true"])
        .fails(1, &["has nothing to learn once it is cut to 64 tokens: every label is masked"]);
    let text = format!("{{\"text\": \"{}\"}}\n{{\"text\": \"short\"}}\n", "a".repeat(70));
    let cut = train(&text, &["truncate=true", "validation_file="]);
    cut.succeeds();
    assert!(cut.err.contains("warning: train.jsonl: 1 of 2 examples were too long and are cut"), "{}", cut.err);
    train("{\"text\": \"a\"}\n", &["max_length=100", "--overwrite"]).fails(2, &["max_length is 100, must be at most"]);
    train("{\"messages\": []}\n", &["--overwrite"]).fails(1, &["train.jsonl:1:"]);
    scene.train(&["train_file=run.yaml", "--overwrite"]).fails(2, &["run.yaml is not a known kind of data file"]);
}
