//! The commands on a model and an adapter that work.

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::scene::Scene;

/// A scene with an adapter in `out` that says what it was taught.
fn trained() -> Scene {
    let scene = Scene::new();
    scene.run(&["train", "run.yaml", "max_steps=360", "peft.lora_dropout=0", "peft.r=8"]).succeeds();
    scene
}

#[test]
fn training_writes_what_it_says_and_the_loss_falls() {
    let scene = Scene::new();
    let ended = scene.run(&["train", "run.yaml", "max_steps=60", "eval_steps=30", "peft.lora_dropout=0"]);
    let out = ended.succeeds();
    for part in ["60 steps, ", "tokens/s)", "loss        5.", "validation  loss ", "adapter     out"] {
        assert!(out.contains(part), "no {part:?} in:\n{out}");
    }
    for part in
        ["36 examples with", "8 for validation", "trainable", "step 30: validation loss", "saved out/checkpoint-60"]
    {
        assert!(ended.err.contains(part), "no {part:?} in:\n{}", ended.err);
    }
    assert!(scene.read("out/loss.svg").contains("validation"));
    let log = scene.read("out/log.jsonl");
    let losses: Vec<f64> =
        log.lines().filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64()).collect();
    assert_eq!(losses.len(), 60);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert!(mean(&losses[50..]) < 0.7 * mean(&losses[..5]), "{losses:?}");
    let first: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    for key in ["step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "peak_memory"] {
        assert!(first[key].is_number(), "no {key} in {first}");
    }
}

#[test]
fn a_merged_model_says_what_base_and_adapter_say() {
    let scene = trained();
    let prompts = ["07 is ", "18 is ", "41 is "];
    let say = |args: &[&str]| -> Vec<String> {
        let ended = scene.run(
            &[&["generate", "--json", "--precision", "float32", "--max-new-tokens", "12"], args, &prompts].concat(),
        );
        let text = |line: &str| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_owned();
        ended.succeeds().lines().map(text).collect()
    };
    let tuned = say(&["-m", "model", "-a", "out"]);
    assert_eq!(tuned[0], "zero seven");
    assert_ne!(tuned, say(&["-m", "model"]));
    assert_eq!(tuned, say(&["-a", "out"]), "the adapter names its base");

    let merged = scene.run(&["merge", "-a", "out", "-o", "merged"]);
    assert_eq!(merged.succeeds().trim(), "merged");
    assert!(merged.err.contains("merged 14 modules, saved as float32"), "{}", merged.err);
    assert_eq!(say(&["-m", "merged"]), tuned);
    scene.run(&["merge", "-a", "out", "-o", "merged"]).fails(1, &["merged exists and is not an empty folder"]);
    scene.run(&["merge", "-a", "out", "-o", "half", "--dtype", "bf16"]).succeeds();
    assert_eq!(say(&["-m", "half"])[0], "zero seven");
    let (half, full) = (scene.bytes("half/model.safetensors").len(), scene.bytes("merged/model.safetensors").len());
    assert!(half < full * 6 / 10, "{half} {full}");
    let written = scene.run(&["merge", "-m", "model", "-o", "copy"]);
    written.succeeds();
    assert!(written.err.contains("merged 0 modules, saved as float32"), "{}", written.err);
    assert_eq!(say(&["-m", "copy"]), say(&["-m", "model"]));
    scene.run(&["merge", "-o", "x"]).fails(2, &["--model"]);
}

#[test]
fn evaluation_finds_what_training_found() {
    let scene = Scene::new();
    scene.train(&["eval_steps=12", "predict_with_generate=true", "generation_max_new_tokens=10"]).succeeds();
    let log = scene.read("out/log.jsonl");
    let line: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    let args =
        ["evaluate", "--config", "run.yaml", "-a", "out", "--bleu", "--max-new-tokens", "10", "--json", "r.json"];
    let ended = scene.run(&args);
    let out = ended.succeeds();
    let result: Value = serde_json::from_str(&scene.read("r.json")).unwrap();
    for (key, logged) in [("loss", "eval_loss"), ("perplexity", "eval_perplexity"), ("bleu", "eval_bleu")] {
        let (found, expected) = (result[key].as_f64().unwrap(), line[logged].as_f64().unwrap());
        assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{key}: {found}, in training {expected}");
    }
    assert_eq!(result["generations"].as_array().unwrap().len(), 8);
    assert_eq!(result["generations"][0]["prompt"], "40 is ");
    assert!(out.contains("examples    8\n") && out.contains("\nbleu        "), "{out}");

    let columns = "41 is ||four one\n42 is ||four two\n";
    scene.write("valid.txt", columns);
    let options = ["columns=[prompt, completion]", "delimiter=||"];
    let ended =
        scene.run(&[&["evaluate", "-m", "model", "--data", "valid.txt", "--limit", "1"][..], &options].concat());
    assert!(ended.succeeds().contains("examples    1\n"));
    scene
        .run(&["evaluate", "-m", "model", "--data", "valid.jsonl", "delimeter=x"])
        .fails(2, &["did you mean 'delimiter'?"]);
    scene
        .run(&["evaluate", "-m", "model", "--data", "valid.jsonl", "--metric", "blue"])
        .fails(2, &["--metric: there is no metric 'blue'; did you mean 'bleu'?"]);
    scene.run(&["evaluate", "-m", "model"]).fails(2, &["--data"]);
}

#[test]
fn inspection_shows_models_adapters_checkpoints_and_runs() {
    let scene = Scene::new();
    scene.train(&[]).succeeds();
    let show = |target: &str| scene.run(&["inspect", target]).succeeds().to_owned();
    let expect = |text: &str, parts: &[&str]| {
        for part in parts {
            assert!(text.contains(part), "no {part:?} in:\n{text}");
        }
    };
    let model = show("model");
    expect(&model, &["parameters    18592", "context       64 tokens", "down_proj, gate_proj, k_proj"]);
    expect(&model, &["model.layers.*.self_attn.k_proj             linear [16, 32] × 2", "lm_head"]);
    let run = show("out");
    expect(
        &run,
        &["logged until  step 12, loss", "checkpoint    step 12: out/checkpoint-12", "peft_type                 LORA"],
    );
    expect(&run, &["28 tensors", "base_model.model.model.layers.*.self_attn.q_proj.lora_A.weight", "F32 [4, 32] × 2"]);
    expect(&show("out/checkpoint-8"), &["step          8 of 12", "train_file    train.jsonl", "28 tensors"]);
    let all = scene.run(&["inspect", "model", "--all"]);
    expect(all.succeeds(), &["model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.k_proj"]);
}

#[test]
fn generation_takes_prompts_from_everywhere() {
    let scene = trained();
    let options = ["generate", "-a", "out", "--max-new-tokens", "12"];
    let run = |more: &[&str]| scene.run(&[&options, more].concat());
    assert_eq!(run(&["07 is "]).succeeds(), "zero seven\n");
    assert_eq!(run(&["--stop", " ", "07 is "]).succeeds(), "zero\n");
    assert_eq!(run(&["07 is ", "08 is "]).succeeds(), "> 07 is \nzero seven\n\n> 08 is \nzero eight\n\n");
    scene.write("prompts.txt", "07 is \n\n08 is \n");
    assert_eq!(run(&["--prompts-file", "prompts.txt"]).out, run(&["07 is ", "08 is "]).out);

    let mut child =
        scene.command(&options).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"07 is \n").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"zero seven\n");

    let sample = |seed: &str| run(&["--temperature", "1.5", "--seed", seed, "07 is "]).succeeds().to_owned();
    assert_eq!(sample("1"), sample("1"));
    assert!((2..8).any(|seed| sample(&seed.to_string()) != sample("1")));

    run(&["--top-k", "5", "x"]).fails(2, &["need a temperature above 0"]);
    run(&[""]).succeeds();
    run(&[&"x".repeat(64)]).fails(2, &["has 64 tokens, but the model takes 64"]);
    scene.run(&["generate", "x"]).fails(2, &["give a model with --model, or an adapter with --adapter"]);
}

#[test]
fn a_conversation_remembers_and_one_message_is_answered() {
    let scene = Scene::new();
    let talk = |input: &str, args: &[&str]| {
        let args = [&["generate", "-m", "model", "--chat", "--max-new-tokens", "4"], args].concat();
        let mut child = scene.command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let one = talk("", &["Hi"]);
    let two = talk("Hi\nYes\n", &[]);
    let anew = talk("Hi\n/reset\nHi\n", &[]);
    assert!(two.starts_with(&one), "{one:?} {two:?}");
    assert_eq!(anew, format!("{one}{one}"));
    assert_ne!(two, talk("Hi\n/reset\nYes\n", &[]), "the second answer does not depend on the first message");
    assert_ne!(one, talk("", &["--system", "Be brief.", "Hi"]));
}

#[test]
fn beams_give_several_texts_best_first() {
    let scene = Scene::new();
    let generate = ["generate", "-m", "model", "--json", "--max-new-tokens", "6", "Hi", "Hello there"];
    let ended = scene.run(&[&generate[..], &["--num-beams", "3", "--num-return-sequences", "2"]].concat());
    let lines: Vec<Value> = ended.succeeds().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let prompts: Vec<&str> = lines.iter().map(|line| line["prompt"].as_str().unwrap()).collect();
    assert_eq!(prompts, ["Hi", "Hi", "Hello there", "Hello there"]);
    for pair in lines.chunks(2) {
        assert!(
            pair[0]["score"].as_f64() > pair[1]["score"].as_f64() && pair[0]["text"] != pair[1]["text"],
            "{pair:?}"
        );
    }
    let alone = ["generate", "-m", "model", "--max-new-tokens", "6", "--num-beams", "3", "Hi"];
    assert_eq!(scene.run(&alone).succeeds().trim_end_matches('\n'), lines[0]["text"].as_str().unwrap());
    scene.run(&["generate", "-m", "model", "--num-return-sequences", "2", "x"]).fails(2, &["--num-beams"]);
}

#[test]
fn completions_name_every_command() {
    let scene = Scene::new();
    for shell in ["bash", "zsh", "fish"] {
        let ended = scene.run(&["completions", shell]);
        for command in ["quickstart", "pull", "train", "generate", "evaluate", "merge", "inspect"] {
            assert!(ended.succeeds().contains(command), "no {command} for {shell}");
        }
    }
}

#[test]
fn the_end_of_training_chooses_a_rank() {
    let scene = Scene::new();
    let method = "peft={peft_type: DYLORA, r: 4, rank: auto, rank_tolerance: 0.02, target_modules: all-linear}";
    let train = |more: &[&str]| {
        scene.run(&[&["train", "run.yaml", "max_steps=40", "precision=float32", method], more].concat())
    };
    train(&["validation_file=null"]).fails(2, &["peft.rank: auto needs a validation_file"]);
    let trained = train(&[]);
    let out = trained.succeeds();
    let results: Value = serde_json::from_str(&scene.read("out/all_results.json")).unwrap();
    let rank = results["rank"].as_u64().unwrap();
    assert!(out.contains(&format!("rank        {rank}, the smallest within 2 % of the best")), "{out}");
    let losses: Vec<f64> = (1..=4).map(|rank: u64| results["ranks"][rank.to_string()].as_f64().unwrap()).collect();
    let best = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let first = losses.iter().position(|loss| *loss <= best * 1.02).unwrap() as u64 + 1;
    assert_eq!((rank, &results["rank_metric"], &results["rank_tolerance"]), (first, &json!("loss"), &json!(0.02)));
    let config: Value = serde_json::from_str(&scene.read("out/adapter_config.json")).unwrap();
    assert_eq!(config["rank"], json!(rank), "the choice is what the adapter is used at");

    // The adapter, its merged model and the rank as plain LoRA are one.
    let loss = |args: &[&str]| {
        let all = [&["evaluate", "--data", "valid.jsonl", "--precision", "float32"], args].concat();
        let out = scene.run(&all).succeeds().to_owned();
        out.lines().find(|line| line.starts_with("loss")).unwrap().split_whitespace().nth(1).unwrap().to_owned()
    };
    let tuned = loss(&["-a", "out"]);
    assert_eq!(tuned, format!("{:.4}", losses[rank as usize - 1]));
    scene.run(&["merge", "-a", "out", "-o", "merged", "--dtype", "f32"]).succeeds();
    assert_eq!(loss(&["-m", "merged"]), tuned);
    let export = ["evaluate", "--data", "valid.jsonl", "--precision", "float32", "-a", "out", "--ranks", "all"];
    scene.run(&[&export[..], &["--tolerance", "0.02", "--export", "auto=plain"]].concat()).succeeds();
    let plain: Value = serde_json::from_str(&scene.read("plain/adapter_config.json")).unwrap();
    assert_eq!((&plain["peft_type"], &plain["r"]), (&json!("LORA"), &json!(rank)));
    assert_eq!(loss(&["-a", "plain"]), tuned);
}

#[test]
fn interpolated_positions_go_with_the_adapter() {
    let scene = Scene::new();
    let method = "peft={peft_type: LONG_LORA, r: 4, rope_scaling: {rope_type: linear, factor: 4}}";
    let train = scene.run(&["train", "run.yaml", "max_steps=12", "precision=float32", method]);
    train.succeeds();
    let config: Value = serde_json::from_str(&scene.read("out/adapter_config.json")).unwrap();
    assert_eq!(config["rope_scaling"], json!({"rope_type": "linear", "factor": 4.0}));
    assert_eq!(config["peft_type"], json!("LORA"));
    let loss = |args: &[&str]| {
        let all = [&["evaluate", "--data", "valid.jsonl", "--precision", "float32"], args].concat();
        let out = scene.run(&all).succeeds().to_owned();
        out.lines().find(|line| line.starts_with("loss")).unwrap().to_owned()
    };
    let tuned = loss(&["-a", "out"]);
    scene.run(&["generate", "-a", "out", "--max-new-tokens", "2", "41 is"]).succeeds();
    scene.run(&["merge", "-a", "out", "-o", "merged", "--dtype", "f32"]).succeeds();
    assert_eq!(loss(&["-m", "merged"]), tuned, "the merged model's own configuration says it");
    let (base, merged): (Value, Value) = (
        serde_json::from_str(&scene.read("model/config.json")).unwrap(),
        serde_json::from_str(&scene.read("merged/config.json")).unwrap(),
    );
    let positions = |config: &Value| config["max_position_embeddings"].as_u64().unwrap();
    assert_eq!(positions(&merged), 4 * positions(&base));

    // Without the key the same adapter would be used over a base that sees positions otherwise.
    let mut without = config.clone();
    without.as_object_mut().unwrap().remove("rope_scaling");
    scene.write("out/adapter_config.json", &without.to_string());
    assert_ne!(loss(&["-a", "out"]), tuned);
    let wrong = "peft.rope_scaling={rope_type: yarn, factor: 4}";
    scene.train(&[wrong, "output_dir=no"]).fails(2, &["rope_scaling", "yarn", "linear"]);
    scene.train(&["peft.rope_scaling={type: linear, factor: 1}", "output_dir=no"]).fails(2, &["must be more than 1"]);
}

#[test]
fn an_adapter_over_a_4_bit_base_is_evaluated_and_merged_over_it() {
    let scene = Scene::new();
    scene.train(&["load_in_4bit=true", "bnb_4bit_compute_dtype=float32"]).succeeds();
    let loss = |args: &[&str]| {
        let all = [&["evaluate", "--data", "valid.jsonl", "--precision", "float32"], args].concat();
        let out = scene.run(&all).succeeds().to_owned();
        let line = out.lines().find(|line| line.starts_with("loss")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap()
    };
    let four_bit = loss(&["-a", "out", "--load-in-4bit"]);
    assert_ne!(four_bit, loss(&["-a", "out"]), "another base, another loss");
    scene.run(&["merge", "-a", "out", "-o", "floats", "--load-in-4bit", "--dtype", "f32"]).succeeds();
    assert!((loss(&["-m", "floats"]) - four_bit).abs() < 2e-4);
    let merged = scene.run(&["merge", "-a", "out", "-o", "again", "--load-in-4bit", "--requantize"]);
    merged.succeeds();
    assert!(merged.err.contains("saved in 4 bits: quantising moved 14 weights by "), "{}", merged.err);
    let again = loss(&["-m", "again"]);
    assert!((again - four_bit).abs() < 0.2 && again != four_bit, "{again} {four_bit}");
    let config = scene.read("again/config.json");
    assert!(config.contains("\"bnb_4bit_quant_type\": \"nf4\""), "{config}");
}
