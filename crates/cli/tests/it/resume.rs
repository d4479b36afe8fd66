//! Runs that are stopped, killed or fail, and go on.

use std::fs;

use serde_json::Value;

use crate::scene::{RUN, Scene};

const ADAPTER: &str = "out/adapter_model.safetensors";

/// The adapter of a run that was never stopped, and its log without what depends on the clock.
fn straight() -> (Vec<u8>, Vec<Value>) {
    let scene = Scene::new();
    scene.run(&["train", "run.yaml"]).succeeds();
    (scene.bytes(ADAPTER), log(&scene))
}

fn log(scene: &Scene) -> Vec<Value> {
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        let values = line.as_object_mut().unwrap();
        for key in ["tokens_per_second", "peak_memory", "eval_runtime"] {
            values.remove(key);
        }
        line
    };
    scene.read("out/log.jsonl").lines().map(line).collect()
}

#[test]
fn a_run_that_was_killed_stopped_and_short_of_disk_equals_one_that_was_not() {
    let scene = Scene::new();
    let killed = scene.start_until(&["train", "run.yaml"], "out/checkpoint-20/trainer_state.json").kill();
    assert_eq!(killed.code, None, "it was over before it could be killed: {killed:?}");
    assert!(!scene.path(ADAPTER).exists());

    let resume = ["train", "run.yaml", "--resume"];
    let stopped = scene.start_until(&resume, "out/checkpoint-60/trainer_state.json").interrupt();
    stopped.fails(
        130,
        &["interrupted: finishing the step", "stopped after step", "of 300", "tunesmith train run.yaml --resume"],
    );
    let step = stopped.err.split("stopped after step ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    assert!(stopped.err.contains(&format!("saved in out/checkpoint-{step}")), "{}", stopped.err);

    // Room for the log, but not for the optimiser's state.
    let full = scene.run_on_full_disk(60, &resume);
    full.fails(1, &["error: cannot write", "File too large"]);
    let left: Vec<_> = fs::read_dir(scene.path("out")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().any(|name| *name == *format!("checkpoint-{step}")), "{left:?}");

    let resumed = scene.run(&resume);
    resumed.succeeds();
    let (adapter, lines) = straight();
    assert!(scene.bytes(ADAPTER) == adapter, "the resumed run's adapter is another");
    assert_eq!(log(&scene), lines);
    assert_eq!(lines.len(), 301, "a line a step, and one for the evaluation at the end");

    let again = scene.run(&resume);
    assert!(again.succeeds().contains("finished already, after 300 steps"), "{again:?}");
    assert!(scene.bytes(ADAPTER) == adapter);
}

#[test]
fn a_changed_configuration_does_not_resume() {
    let scene = Scene::new();
    scene.start_until(&["train", "run.yaml"], "out/checkpoint-10/trainer_state.json").interrupt();
    let changed = scene.run(&["train", "run.yaml", "learning_rate=1e-3", "peft.r=8", "--resume"]);
    changed.fails(2, &["learning_rate: was 0.01, is 0.001", "peft.r: was 4, is 8"]);
    // What only says how often to write may change.
    let checkpoints = scene.run(&["train", "run.yaml", "save_steps=100", "logging_steps=50", "--resume"]);
    checkpoints.succeeds();
}

#[test]
fn results_are_not_written_over_unless_asked() {
    let scene = Scene::new();
    scene.train(&[]).succeeds();
    let adapter = scene.bytes(ADAPTER);
    scene.train(&[]).fails(2, &["holds", "--resume", "--overwrite"]);
    scene.train(&["--overwrite", "seed=1"]).succeeds();
    assert!(scene.bytes(ADAPTER) != adapter);
    scene.train(&["output_dir=new", "--resume"]).fails(1, &["new holds no complete checkpoint to resume from"]);
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint() {
    let scene = Scene::new();
    let ended = scene.train(&["learning_rate=1e38", "lr_scheduler_type=constant", "warmup_steps=0", "save_steps=1"]);
    ended.fails(1, &["update 2 (epoch 0) has loss NaN", "The last good checkpoint is out/checkpoint-1"]);
    assert!(scene.path("out/checkpoint-1/adapter_model.safetensors").is_file());
    assert!(!scene.path(ADAPTER).exists());
}

#[test]
fn the_best_checkpoint_is_the_result_where_asked() {
    let scene = Scene::new();
    let more = ["eval_steps=2", "save_steps=4", "load_best_model_at_end=true", "learning_rate=0.3"];
    scene.train(&more).succeeds();
    let losses: Vec<(u64, f64)> = log(&scene)
        .iter()
        .filter_map(|line| Some((line["step"].as_u64()?, line.get("eval_loss")?.as_f64()?)))
        .collect();
    assert_eq!(losses.len(), 6, "{losses:?}");
    let best = losses.iter().min_by(|left, right| left.1.total_cmp(&right.1)).unwrap().0;
    let kept = format!("out/checkpoint-{best}/adapter_model.safetensors");
    assert!(scene.bytes(ADAPTER) == scene.bytes(&kept), "the result is not checkpoint-{best}");
}

#[test]
fn one_evaluation_follows_the_last_step_where_there_is_a_validation_file() {
    let scene = Scene::new();
    let out = scene.train(&[]);
    assert!(out.succeeds().contains("validation  loss "), "{out:?}");
    let evaluated: Vec<Value> = log(&scene).into_iter().filter(|line| line.get("eval_loss").is_some()).collect();
    assert_eq!(evaluated.len(), 1);
    assert_eq!(evaluated[0]["step"], 12);
}

#[test]
fn a_run_that_gets_no_better_stops_early_and_stays_stopped() {
    let scene = Scene::new();
    // At this rate the loss on the validation file rises from the beginning.
    let more = ["learning_rate=0.3", "eval_steps=1", "early_stopping_patience=2", "load_best_model_at_end=true"];
    let stopped = scene.train(&more);
    let out = stopped.succeeds();
    assert!(
        out.contains("stopped early, after step ") && out.contains("2 evaluations brought nothing better"),
        "{out}"
    );
    let losses: Vec<f64> = log(&scene).iter().filter_map(|line| line.get("eval_loss")?.as_f64()).collect();
    assert!(losses.len() < 12, "{losses:?}");
    let best = 1 + losses.iter().enumerate().min_by(|left, right| left.1.total_cmp(right.1)).unwrap().0;
    assert_eq!(losses.len(), best + 2);
    assert!(scene.bytes(ADAPTER) == scene.bytes(&format!("out/checkpoint-{best}/adapter_model.safetensors")));
    let resumed = scene.train(&[&more[..], &["--resume"]].concat());
    assert!(resumed.succeeds().contains(&format!("finished already, after {} steps", best + 2)), "{resumed:?}");
}

#[test]
fn what_was_resolved_repeats_the_run() {
    let scene = Scene::new();
    scene.train(&[]).succeeds();
    let text = scene.read("out/config.yaml");
    assert!(text.contains(concat!("tunesmith ", env!("CARGO_PKG_VERSION"))), "{text}");
    assert!(text.contains("adam_beta2: 0.999") && text.contains("seed: 42"), "{text}");
    let adapter = scene.bytes(ADAPTER);
    scene.run(&["train", "out/config.yaml", "output_dir=again"]).succeeds();
    assert!(scene.bytes("again/adapter_model.safetensors") == adapter);
    assert!(RUN.lines().all(|line| !line.contains("adam_beta2")));
}

#[test]
fn training_goes_on_from_an_adapter() {
    let scene = Scene::new();
    scene.train(&[]).succeeds();
    let from = ["train", "run.yaml", "adapter_name_or_path=out", "max_steps=3"];
    let more = |extra: &[&str]| scene.run(&[&from[..], extra].concat());
    // A rate too small to change any value shows what training begins with.
    more(&["peft=null", "output_dir=same", "learning_rate=1e-30"]).succeeds();
    assert!(scene.bytes("same/adapter_model.safetensors") == scene.bytes(ADAPTER));
    assert!(scene.read("same/adapter_config.json").contains("\"r\": 4"));
    more(&["peft=null", "output_dir=more"]).succeeds();
    assert!(scene.bytes("more/adapter_model.safetensors") != scene.bytes(ADAPTER));
    scene.run(&["train", "more/config.yaml", "output_dir=again"]).succeeds();
    assert!(scene.bytes("again/adapter_model.safetensors") == scene.bytes("more/adapter_model.safetensors"));

    more(&["output_dir=both"]).fails(2, &["peft: the adapter that adapter_name_or_path names has a method"]);
    let nothing = ["train", "run.yaml", "peft=null", "adapter_name_or_path=model", "output_dir=none"];
    scene.run(&nothing).fails(2, &["adapter_name_or_path: ", "model"]);
}
