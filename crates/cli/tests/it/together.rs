//! Runs trained together from outside: named, stopped, gone on with, and refused where they share no base.

use crate::scene::{RUN, SHORT, Scene};

const EACH: [&str; 4] = ["--each", "learning_rate=[1e-2, 1e-3]", "--each", "seed=[1, 2]"];

#[test]
fn every_combination_of_values_gets_an_adapter() {
    let scene = Scene::new();
    let run = |more: &[&str]| scene.run(&[&["train", "run.yaml"], SHORT, more].concat());
    let out = run(&EACH);
    assert!(out.succeeds().contains("tokens/s together"), "{}", out.out);
    for (rate, seed) in [("0.01", "1"), ("0.01", "2"), ("0.001", "1"), ("0.001", "2")] {
        let folder = format!("out/learning_rate={rate},seed={seed}");
        let alone = format!("alone-{rate}-{seed}");
        let (output, rate, seed) =
            (format!("output_dir={alone}"), format!("learning_rate={rate}"), format!("seed={seed}"));
        run(&[&output, &rate, &seed]).succeeds();
        for file in ["all_results.json", "config.yaml", "loss.svg", "checkpoint-12/optimizer.safetensors"] {
            assert!(scene.path(&folder).join(file).exists(), "{folder}/{file}");
        }
        let loss = |folder: &str| {
            let results: serde_json::Value =
                serde_json::from_str(&scene.read(&format!("{folder}/all_results.json"))).unwrap();
            results["train_loss"].as_f64().unwrap()
        };
        assert!((loss(&folder) - loss(&alone)).abs() < 0.02, "{folder}: {} {}", loss(&folder), loss(&alone));
    }
    run(&EACH).fails(2, &["holds", "--resume", "--overwrite"]);
}

#[test]
fn runs_stop_together_and_go_on_where_they_were() {
    let scene = Scene::new();
    scene.write(
        "second.yaml",
        &RUN.replace("output_dir: out", "output_dir: second").replace("max_steps: 300", "max_steps: 200"),
    );
    let command = ["train", "run.yaml", "--with", "second.yaml"];
    scene.run(&[&command[..], &["output_dir=straight", "--each", "peft.r=[2, 4]"]].concat()).fails(2, &["two runs"]);
    scene.start_until(&command, "second/checkpoint-10/trainer_state.json").interrupt();
    let out = scene.run(&[&command[..], &["--resume"]].concat());
    let text = out.succeeds();
    assert!(text.contains("run ") && text.contains("second "), "{text}");
    for folder in ["out/checkpoint-300", "second/checkpoint-200"] {
        assert!(scene.path(folder).exists(), "{folder}");
    }
}

#[test]
fn runs_without_a_common_base_are_refused_with_the_reason() {
    let scene = Scene::new();
    scene.write("first.yaml", &format!("{RUN}precision: float32\n"));
    scene.write("other.yaml", &format!("{}precision: bf16\n", RUN.replace("output_dir: out", "output_dir: other")));
    let refused = scene.run(&["train", "first.yaml", "--with", "other.yaml"]);
    refused.fails(2, &["other needs another base than first, because the two differ in precision"]);
    for (each, reason) in [
        ("learning_rate=3", "--each learning_rate=3 is not KEY=[VALUES]"),
        ("learning_rate=[]", "is not KEY=[VALUES]"),
        ("learning_rat=[3]", "did you mean 'learning_rate'?"),
    ] {
        scene.run(&["train", "run.yaml", "--each", each]).fails(2, &[reason]);
    }
    assert!(!scene.path("out").exists() && !scene.path("other").exists());
}
