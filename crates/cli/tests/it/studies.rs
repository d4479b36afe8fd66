//! Studies from outside: stopped and gone on with, refused where they cannot work, and reported from their files alone.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::scene::Scene;

/// Two methods and the base, with a search, two seeds, and subspaces.
const STUDY: &str = "\
title: A tiny study
output_dir: study
metric: loss
seeds: [1, 2]
learning_rates: [1e-3, 1e-2]
test_file: valid.jsonl
run:
  model_name_or_path: model
  train_file: train.jsonl
  validation_split_percentage: 20
  max_steps: 10
  per_device_train_batch_size: 3
  save_steps: 4
  logging_steps: 1
methods:
  base: {base: true}
  LoRA, all: {peft: {peft_type: LORA, r: 4, target_modules: all-linear}}
  LoRA: {peft: {peft_type: LORA, r: 2, target_modules: [q_proj]}}
similarities:
  - {left: [\"LoRA, all\", 1], right: [LoRA, 1], modules: [layers.0.self_attn.q_proj]}
published: [lora-rank]
";

fn scene() -> Scene {
    let scene = Scene::new();
    scene.write("study.yaml", STUDY);
    scene
}

/// What runs came to, without what differs from one machine or moment to another.
fn results(scene: &Scene) -> BTreeMap<String, Value> {
    let entries = fs::read_dir(scene.path("study/runs")).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: std::path::PathBuf| {
        let mut result: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        result["ended"] = Value::Null;
        for measured in ["train_seconds", "peak_memory", "prediction"] {
            result["outcome"]["measured"][measured] = Value::Null;
        }
        (path.file_name().unwrap().to_string_lossy().into_owned(), result)
    };
    entries.map(read).collect()
}

/// The table of scores as it was printed.
fn table(out: &str) -> String {
    out.lines().filter(|line| line.starts_with('|')).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_killed_study_goes_on_to_the_same_numbers() {
    let straight = scene();
    let expected = table(straight.run(&["compare", "study.yaml"]).succeeds());
    assert_eq!(expected.lines().count(), 5, "{expected}");
    let killed = scene();
    // In the midst of a run, between two runs, and in the midst of the last one.
    for file in [
        "study/work/lora-all--lr1e-3--seed1/checkpoint-4/trainer_state.json",
        "study/runs/lora-all--lr1e-2--seed1.json",
        "study/runs/lora--lr1e-3--seed1.json",
    ] {
        killed.start_until(&["compare", "study.yaml"], file).kill();
    }
    assert_eq!(table(killed.run(&["compare", "study.yaml"]).succeeds()), expected);
    assert_eq!(results(&killed), results(&straight));
    assert_eq!(killed.read("study/similarities.json"), straight.read("study/similarities.json"));
}

#[test]
fn runs_of_one_pass_come_to_what_they_come_to_alone() {
    let alone = scene();
    alone.run(&["compare", "study.yaml"]).succeeds();
    let together = scene();
    let command = ["compare", "study.yaml", "runs_per_pass=2"];
    // Stopped in the midst of a pass, it goes on there.
    together.start_until(&command, "study/work/lora-all--lr1e-2--seed1/checkpoint-4/trainer_state.json").kill();
    together.run(&command).succeeds();
    let (alone, found) = (results(&alone), results(&together));
    assert_eq!(found.keys().collect::<Vec<_>>(), alone.keys().collect::<Vec<_>>());
    for (file, found) in &found {
        let measured = |result: &Value| result["outcome"]["measured"].clone();
        let (alone, found) = (measured(&alone[file]), measured(found));
        let shares = file.contains("--lr1e-3--seed1") || file.contains("--lr1e-2--seed1");
        assert_eq!(found["trained_beside"].as_u64().unwrap_or(0), u64::from(shares), "{file}");
        let loss = |measured: &Value| measured["tests"]["test"]["loss"].as_f64().unwrap();
        assert!((loss(&found) - loss(&alone)).abs() < 1e-3 * loss(&alone), "{file}: {} {}", loss(&found), loss(&alone));
    }
    let report = together.read("study/report/report.md");
    assert!(report.contains("Runs that were trained in one pass share its seconds evenly"), "{report}");
}

#[test]
fn a_report_is_made_of_result_files_alone_and_always_the_same() {
    let scene = scene();
    scene.run(&["compare", "study.yaml"]).succeeds();
    let files = |folder: &str| -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(scene.path(folder)).unwrap().map(|entry| entry.unwrap().path());
        entries
            .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap()))
            .collect()
    };
    let first = files("study/report");
    for name in ["index.html", "report.md", "runs.csv", "report.json", "parameters.svg", "parameters.png"] {
        assert!(first.contains_key(name), "{name} is not in {:?}", first.keys());
    }
    fs::remove_dir_all(scene.path("model")).unwrap();
    fs::remove_dir_all(scene.path("study/work")).unwrap();
    scene.run(&["report", "study", "-o", "again"]).succeeds();
    assert!(files("again") == first);
    let page = scene.read("again/index.html");
    for part in ["A tiny study", "<svg", "arXiv 2106.09685", "LoRA, all", "prefers-color-scheme", "φ(A, A′, i, j)"] {
        assert!(page.contains(part), "no {part:?}");
    }
    // Nothing is fetched.
    assert!(!page.contains("src=") && !page.contains("<link") && !page.contains("@import"));
}

#[test]
fn a_broken_study_fails_before_its_first_run_with_all_its_problems() {
    let scene = scene();
    let broken = STUDY.replace("target_modules: [q_proj]", "target_modules: [q_porj]").replace("r: 4", "r: 0");
    scene.write("study.yaml", &broken);
    let parts = ["LoRA, all: ", "peft.r", "LoRA: ", "q_porj", "test: there is no file nowhere.jsonl"];
    scene.run(&["compare", "study.yaml", "test_file=nowhere.jsonl"]).fails(2, &parts);
    assert!(!scene.path("study/runs").exists());
    scene
        .run(&["compare", "study.yaml", "metod=x", "seeds=[1, 1]"])
        .fails(2, &["unknown key 'metod'", "seeds names 1 twice"]);
    scene.run(&["sweep", "study.yaml"]).fails(2, &["varies no keys"]);
    scene.run(&["icl", "study.yaml"]).fails(2, &["has no icl: section"]);
    scene.run(&["study", "lora-rnk"]).fails(2, &["did you mean 'lora-rank'?"]);
    scene.run(&["report", "model"]).fails(2, &["holds no study"]);
}

#[test]
fn a_run_that_fails_is_a_row_with_its_reason() {
    let scene = scene();
    let diverging = [
        "methods={good: {learning_rate: 1e-3, peft: {peft_type: LORA}}, bad: {learning_rate: 1e30, peft: {peft_type: FULL}}}",
    ];
    let ended = scene.run(&[&["compare", "study.yaml", "similarities=[]"], &diverging[..]].concat());
    assert!(ended.succeeds().contains("| bad | – | failed |"), "{ended:?}");
    assert!(scene.read("study/report/report.md").contains("Failed and missing runs"));
}

#[test]
fn demonstrations_are_asked_in_every_way() {
    let scene = scene();
    let line =
        |number: usize| format!("{{\"text\": \"{}\", \"label\": {}}}\n", ["aaab", "bbba"][number % 2], number % 2);
    scene.write("train.jsonl", &(0..12).map(line).collect::<String>());
    scene.write("valid.jsonl", &(0..6).map(line).collect::<String>());
    scene.write(
        "icl.yaml",
        "output_dir: icl\nmetric: accuracy\nseeds: [1, 2]\ntest_file: valid.jsonl\nrun:\n  model_name_or_path: model\n  \
         train_file: train.jsonl\n  icl:\n    template: \"{text} is{answer}\"\n    answers: {'0': ' a', '1': ' bb'}\n    \
         orders: 2\n    separator: \"; \"\nvary:\n  icl.demonstrations: [0, 2]\n  icl.scoring: [likelihood, per_token, \
         answer_context, calibrated, generation]\n",
    );
    let printed = table(scene.run(&["icl", "icl.yaml"]).succeeds());
    assert_eq!(printed.lines().count(), 2 + 10, "{printed}");
    let result: Value = serde_json::from_str(
        &scene.read("icl/runs/in-context-learning-demonstrations-2-scoring-calibrated--seed1.json"),
    )
    .unwrap();
    let measured = &result["outcome"]["measured"];
    assert_eq!(measured["orders"].as_array().unwrap().len(), 2);
    assert!(measured["prediction"]["tokens"].as_f64().unwrap() > 10.0);
    scene
        .run(&["icl", "icl.yaml", "output_dir=other", "run.icl.template={txt}{answer}"])
        .fails(2, &["no column 'txt'"]);
}
