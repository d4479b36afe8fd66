//! The search for an intrinsic dimension, from its configuration to its table and plot.

use serde_json::Value;

use crate::scene::Scene;
use crate::tasks;

fn scene() -> Scene {
    let file = |count, shift| -> String {
        let line = |(text, is_a)| format!("{{\"text\": \"{text}\", \"label\": \"{is_a}\"}}\n");
        tasks::letters(count, shift).into_iter().map(line).collect()
    };
    tasks::scene("task_type: SEQ_CLS\nmetric_for_best_model: accuracy\n", &file(40, 0), &file(10, 3))
}

const SEARCH: [&str; 14] = [
    "intrinsic-dimension",
    "run.yaml",
    "peft={peft_type: INTRINSIC}",
    "max_steps=60",
    "eval_steps=20",
    "learning_rate=1e-2",
    "--first",
    "1",
    "--last",
    "16",
    "--factor",
    "4",
    "--learning-rates",
    "1e-1",
];

#[test]
fn a_search_ends_in_a_table_and_a_plot_and_goes_on_where_it_was() {
    let scene = scene();
    let out = scene.run(&SEARCH).succeeds().to_owned();
    assert!(out.contains("| d | best learning rate | accuracy | best up to d |"), "{out}");
    assert!(out.contains("d90 = ") || out.contains("no d up to 16 is enough"), "{out}");
    let result: Value = serde_json::from_str(&scene.read("out/intrinsic-dimension.json")).unwrap();
    assert!(result["result"]["baseline"]["metric"].as_f64().unwrap() > 0.9, "{result}");
    assert!(scene.read("out/intrinsic-dimension.svg").contains("what is to be reached"));
    assert!(!scene.path("out/full-lr-1e-2/adapter_model.safetensors").exists());
    assert!(scene.path("out/d-1-lr-1e-1/adapter_model.safetensors").exists());

    // Without its last trial, the search makes that one again and ends the same.
    let trials = scene.read("out/trials.jsonl");
    let kept: Vec<&str> = trials.lines().collect();
    scene.write("out/trials.jsonl", &format!("{}\n", kept[..kept.len() - 1].join("\n")));
    scene.run(&SEARCH).fails(2, &["out holds a search", "--resume"]);
    let again = scene.run(&[&SEARCH[..], &["--resume"]].concat());
    assert_eq!(again.succeeds(), out);
    assert_eq!(scene.read("out/trials.jsonl"), trials);
    let other = scene.run(&[&SEARCH[..], &["--resume", "seed=7"]].concat());
    other.fails(2, &["was begun with seed: 42"]);
}

#[test]
fn what_cannot_be_searched_is_refused_before_anything_is_loaded() {
    let scene = scene();
    let nothing_to_compare = ["metric_for_best_model=loss", "validation_file=null", "eval_steps=null"];
    let refused = scene.run(&[&["intrinsic-dimension", "run.yaml"], &nothing_to_compare[..]].concat());
    refused.fails(
        2,
        &["peft_type is LORA, must be INTRINSIC or SAID", "validation_file is missing", "of which less is better"],
    );
    let refused = scene.run(&["intrinsic-dimension", "run.yaml", "--factor", "1", "--first", "0"]);
    refused.fails(2, &["factor is 1, must be more than 1", "first is 0, must be at least 1"]);
}
