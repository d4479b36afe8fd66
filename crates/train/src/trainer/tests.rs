//! The loop over a tiny model: where it begins, when it evaluates, and what it leaves behind when it ends or fails.

use std::cell::Cell;
use std::fs;
use std::io::ErrorKind;

use serde_json::{Value, json};
use tunesmith_methods::{MethodConfig, build, load_checkpoint, save_adapter, save_checkpoint};
use tunesmith_models::{LoadOptions, Pretrained, load};
use tunesmith_tensor::Seed;

use super::*;
use crate::{Example, Validation, describe};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

struct Scene {
    folder: tempfile::TempDir,
    pretrained: Pretrained,
    workspace: Workspace,
    examples: Vec<Example>,
    validation: Option<Validation>,
    /// Checkpoints of this step cannot be written: the disk is full.
    full_at: Cell<Option<u64>>,
    /// The run is stopped after this step.
    stop_at: Option<u64>,
}

impl Scene {
    fn new() -> Self {
        let repository = Path::new(REPOSITORY);
        let tokenizer = Some(repository.join("crates/cli/tests/data/tiny-tokenizer"));
        let options = LoadOptions { tokenizer, ..LoadOptions::default() };
        let pretrained = load(&repository.join("fixtures/llama/model"), &options).unwrap();
        let example = |number: u32| {
            let ids: Vec<u32> = (0..6).map(|place| 3 + (7 * number + place * (number + 1)) % 40).collect();
            Example { labels: ids.clone(), ids }
        };
        let validation = Validation { examples: (20..23).map(example).collect(), generation: None };
        Self {
            folder: tempfile::tempdir().unwrap(),
            pretrained,
            workspace: Workspace::new(),
            examples: (0..10).map(example).collect(),
            validation: Some(validation),
            full_at: Cell::new(None),
            stop_at: None,
        }
    }

    /// Trains in `output`, and returns the report with the tuned values.
    fn train(&self, output: &str, start: Start, arguments: Value) -> Result<Trained, TrainError> {
        let lora = json!({"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]});
        self.train_together(&[(output, lora, arguments)], start)?.remove(0)
    }

    /// Trains with a method and arguments for each output folder, together.
    fn train_together(
        &self,
        runs: &[(&str, Value, Value)],
        start: Start,
    ) -> Result<Vec<Result<Trained, TrainError>>, TrainError> {
        let model = &*self.pretrained.model;
        let arguments_of = |given: &Value| -> TrainingArguments {
            let mut all = json!({"learning_rate": 1e-2, "max_steps": 6, "per_device_train_batch_size": 4});
            all.as_object_mut().unwrap().extend(given.as_object().unwrap().clone());
            serde_json::from_value(all).unwrap()
        };
        let arguments: Vec<_> = runs.iter().map(|(_, _, given)| arguments_of(given)).collect();
        let configs: Vec<_> = runs.iter().map(|(_, peft, _)| MethodConfig::from_run_file(peft).unwrap()).collect();
        let folders: Vec<PathBuf> = runs.iter().map(|(output, ..)| self.path(output)).collect();
        let build = |config| describe(model, None, None, |model| build(config, model, Seed(1))).unwrap();
        let mut adapters: Vec<BuiltAdapter> = configs.iter().map(build).collect();
        let write_checkpoint = |built: &BuiltAdapter, folder: &Path| {
            let step = self.full_at.get().map(|step| format!("checkpoint-{step}."));
            if step.is_some_and(|step| folder.to_string_lossy().contains(&step)) {
                fs::write(folder.join("adapter_model.safetensors"), "half").unwrap();
                return Err(TrainError::io("write", folder)(ErrorKind::StorageFull.into()));
            }
            Ok(save_checkpoint(folder, built)?)
        };
        let readers: Vec<_> = configs
            .iter()
            .map(|config| {
                move |folder: &Path| {
                    Ok(describe(model, None, None, |model| load_checkpoint(folder, config, model, Seed(1)))?)
                }
            })
            .collect();
        let run = |place: usize| Run {
            model,
            tokenizer: &self.pretrained.tokenizer,
            workspace: &self.workspace,
            arguments: &arguments[place],
            examples: &self.examples,
            validation: self.validation.as_ref().map(|set| set as &dyn HeldOut),
            output_dir: &folders[place],
            config: Map::new(),
            group: &|_| ParameterGroup::default(),
            write_adapter: &|built, folder| Ok(save_adapter(folder, built)?),
            write_checkpoint: &write_checkpoint,
            read_checkpoint: &readers[place],
        };
        let all: Vec<Run<'_>> = (0..runs.len()).map(run).collect();
        let mut watchers: Vec<_> = runs.iter().map(|_| Watcher { stop_at: self.stop_at, step: 0 }).collect();
        let parts = all.iter().zip(&mut adapters).zip(&mut watchers);
        let mut trainees: Vec<_> = parts
            .map(|((run, built), observer)| Trainee { run, built, observer: observer as &mut dyn Observer })
            .collect();
        let reports = train_together(&mut trainees, start)?;
        drop(trainees);
        let values = |built: &BuiltAdapter| {
            built.adapter.parameters().iter().map(|parameter| parameter.value().to_vec()).collect::<Vec<_>>()
        };
        Ok(reports.into_iter().zip(&adapters).map(|(report, built)| Ok((report?, values(built)))).collect())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Steps with an evaluation in a run's log.
    fn evaluated(&self, output: &str) -> Vec<u64> {
        let log = fs::read_to_string(self.path(output).join(LOG_FILE)).unwrap();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line.get("eval_loss").is_some()).map(|line| line["step"].as_u64().unwrap()).collect()
    }
}

/// A report, and the values trained.
type Trained = (Report, Vec<Vec<f32>>);

struct Watcher {
    stop_at: Option<u64>,
    step: u64,
}

impl Observer for Watcher {
    fn on_start(&mut self, _: &TrainerState) {}

    fn on_step(&mut self, progress: &Progress) {
        self.step = progress.step;
    }

    fn on_evaluation(&mut self, _: u64, _: &Evaluation) {}

    fn on_checkpoint(&mut self, _: &Path) {}

    fn stop_requested(&self) -> bool {
        self.stop_at == Some(self.step)
    }
}

#[test]
fn without_examples_there_is_an_error_and_no_endless_loop() {
    let mut scene = Scene::new();
    scene.validation = Some(Validation { examples: Vec::new(), generation: None });
    let error = scene.train("out", Start::New, json!({})).unwrap_err();
    assert_eq!(error.to_string(), "there is no example to evaluate on");
    scene.examples.clear();
    let error = scene.train("other", Start::New, json!({})).unwrap_err();
    assert_eq!(error.to_string(), "there is no example to train on");
    assert!(!scene.path("other").exists());
}

#[test]
fn a_new_run_removes_checkpoints_only_if_asked() {
    let scene = Scene::new();
    scene.train("out", Start::New, json!({"save_steps": 2})).unwrap();
    let error = scene.train("out", Start::New, json!({"max_steps": 1})).unwrap_err();
    let TrainError::FolderInUse { found } = &error else { panic!("{error}") };
    assert_eq!(*found, scene.path("out/checkpoint-6"));
    assert!(scene.path("out/checkpoint-2").exists() && scene.path("out/checkpoint-6").exists());
    scene.train("out", Start::Overwrite, json!({"max_steps": 1})).unwrap();
    assert!(scene.path("out/checkpoint-1").exists() && !scene.path("out/checkpoint-6").exists());
}

#[test]
fn the_last_update_is_followed_by_an_evaluation() {
    let scene = Scene::new();
    let (report, _) = scene.train("once", Start::New, json!({})).unwrap();
    assert_eq!(scene.evaluated("once"), [6]);
    assert_eq!(
        (report.state.best_global_step, report.state.best_metric),
        (Some(6), report.evaluation.unwrap().get("loss"))
    );
    scene.train("often", Start::New, json!({"eval_steps": 4})).unwrap();
    assert_eq!(scene.evaluated("often"), [4, 6]);
}

#[test]
fn a_run_stops_when_its_metric_gets_no_better_and_does_not_go_on() {
    let scene = Scene::new();
    // With a rate of zero the first evaluation stays the best.
    let arguments = json!({"learning_rate": 0.0, "eval_steps": 1, "early_stopping_patience": 2});
    for start in [Start::New, Start::Resume] {
        let (report, _) = scene.train("out", start, arguments.clone()).unwrap();
        assert_eq!(report.ending, Ending::StoppedEarly);
        assert_eq!((report.state.global_step, report.state.best_global_step), (3, Some(1)));
        assert_eq!(scene.evaluated("out"), [1, 2, 3]);
    }
    assert!(scene.path("out/checkpoint-3").exists() && scene.path("out/adapter_model.safetensors").exists());

    // An improvement that is too small does not count, though it is the best.
    let mut arguments = json!({"eval_steps": 1, "early_stopping_patience": 2, "early_stopping_threshold": 1e3});
    let (report, _) = scene.train("small", Start::New, arguments.clone()).unwrap();
    assert_eq!((report.ending, report.state.global_step), (Ending::StoppedEarly, 3));
    arguments["early_stopping_patience"] = json!(9);
    assert_eq!(scene.train("patient", Start::New, arguments).unwrap().0.ending, Ending::Finished);
}

#[test]
fn a_metric_that_is_not_measured_cannot_say_what_is_best() {
    let scene = Scene::new();
    let error = scene.train("out", Start::New, json!({"metric_for_best_model": "bleu"})).unwrap_err();
    let expected = "metric_for_best_model is bleu, which an evaluation does not measure: it measures loss, perplexity";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_loss_that_is_no_number_names_update_and_examples_and_keeps_the_last_checkpoint() {
    let scene = Scene::new();
    let arguments = json!({"learning_rate": 1e38, "lr_scheduler_type": "constant", "save_steps": 1,
                           "train_sampling_strategy": "sequential"});
    let error = scene.train("out", Start::New, arguments).unwrap_err();
    let TrainError::NotFinite { step, epoch, examples, last_checkpoint, .. } = error else { panic!("{error}") };
    assert_eq!((step, epoch, examples), (2, 0, vec![4, 5, 6, 7]));
    assert_eq!(last_checkpoint, Some(scene.path("out/checkpoint-1")));
}

#[test]
fn every_optimizer_goes_on_bit_for_bit_after_a_stop_and_after_a_full_disk() {
    for (optim, args) in [("adamw", ""), ("adafactor", ""), ("sgd", "momentum=0.9"), ("adamw_8bit", "min_8bit_size=1")]
    {
        let mut scene = Scene::new();
        let arguments = json!({"optim": optim, "optim_args": args, "weight_decay": 0.01, "save_steps": 2});
        let (_, straight) = scene.train("straight", Start::New, arguments.clone()).unwrap();

        scene.full_at.set(Some(4));
        let error = scene.train("out", Start::New, arguments.clone()).unwrap_err();
        assert!(matches!(&error, TrainError::Io { source, .. } if source.kind() == ErrorKind::StorageFull), "{error}");
        assert!(scene.path("out/checkpoint-2").exists() && !scene.path("out/checkpoint-4").exists());

        scene.full_at.set(None);
        scene.stop_at = Some(5);
        let (report, _) = scene.train("out", Start::Resume, arguments.clone()).unwrap();
        assert_eq!(report.ending, Ending::Stopped(scene.path("out/checkpoint-5")));
        scene.stop_at = None;
        let (report, resumed) = scene.train("out", Start::Resume, arguments).unwrap();
        assert_eq!(report.ending, Ending::Finished);
        assert!(resumed == straight, "{optim}");
    }
}

/// Runs that differ in method, order, rate, length and window.
fn differing() -> [(&'static str, Value, Value); 4] {
    [
        ("lora", json!({"peft_type": "LORA", "r": 2, "target_modules": "all-linear"}), json!({"seed": 1})),
        ("prompt", json!({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}), json!({"seed": 2, "max_steps": 4})),
        (
            "prefix",
            json!({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2}),
            json!({"learning_rate": 1e-3, "gradient_accumulation_steps": 2, "gradient_checkpointing": "blocks"}),
        ),
        ("full", json!({"peft_type": "FULL"}), json!({"learning_rate": 1e-3, "per_device_train_batch_size": 1})),
    ]
}

#[test]
fn runs_trained_together_come_to_what_each_comes_to_alone() {
    check_together(&differing());
    // Low-rank updates of several go through one product.
    let lora =
        |r: u64, alpha: u64| json!({"peft_type": "LORA", "r": r, "lora_alpha": alpha, "target_modules": "all-linear"});
    check_together(&[
        ("two", lora(2, 8), json!({"seed": 1})),
        ("five", lora(5, 5), json!({"seed": 2, "max_steps": 5})),
        ("prompt", json!({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}), json!({})),
        ("one", json!({"peft_type": "LORA", "r": 1, "target_modules": ["v_proj"]}), json!({"learning_rate": 1e-3})),
    ]);
}

fn check_together(runs: &[(&str, Value, Value)]) {
    let scene = Scene::new();
    let together = scene.train_together(runs, Start::New).unwrap();
    for ((name, peft, arguments), found) in runs.iter().cloned().zip(together) {
        let (report, values) = found.unwrap();
        let alone = scene.train_together(&[(&format!("{name}-alone"), peft, arguments)], Start::New).unwrap();
        let (alone, expected) = alone.into_iter().next().unwrap().unwrap();
        assert_eq!((report.state.global_step, report.train_tokens), (alone.state.global_step, alone.train_tokens));
        assert!((report.mean_loss - alone.mean_loss).abs() < 1e-5, "{name}: {} {}", report.mean_loss, alone.mean_loss);
        for (found, expected) in values.iter().zip(&expected) {
            let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            let differs = |(found, expected): (&f32, &f32)| (found - expected).abs() > 1e-4 * largest;
            assert!(!found.iter().zip(expected).any(differs), "{name}");
        }
        assert_eq!(values.len(), expected.len());
        assert!(scene.path(name).join("adapter_config.json").exists());
    }
}

#[test]
fn runs_trained_together_stop_and_go_on_bit_for_bit() {
    let mut scene = Scene::new();
    let train = |scene: &Scene, output: &str, start| {
        let runs = differing().map(|(name, peft, arguments)| (format!("{output}{name}"), peft, arguments));
        let runs: Vec<_> =
            runs.iter().map(|(name, peft, given)| (name.as_str(), peft.clone(), given.clone())).collect();
        scene.train_together(&runs, start).unwrap().into_iter().map(|found| found.unwrap().1).collect::<Vec<_>>()
    };
    let straight = train(&scene, "straight-", Start::New);
    scene.stop_at = Some(3);
    train(&scene, "", Start::New);
    scene.stop_at = None;
    assert!(train(&scene, "", Start::Resume) == straight);
}

#[test]
fn a_run_that_diverges_ends_alone() {
    let scene = Scene::new();
    let lora = || json!({"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]});
    let wild = json!({"learning_rate": 1e38, "lr_scheduler_type": "constant"});
    let runs = [("tame", lora(), json!({})), ("wild", lora(), wild), ("tame too", lora(), json!({}))];
    let mut ended = scene.train_together(&runs, Start::New).unwrap();
    let (last, wild, first) = (ended.remove(2).unwrap(), ended.remove(1), ended.remove(0).unwrap());
    assert!(matches!(wild, Err(TrainError::NotFinite { step: 2, .. })), "{wild:?}");
    assert_eq!((first.0.state.global_step, last.0.state.global_step), (6, 6));
    assert!(first.1.iter().flatten().all(|value| value.is_finite()));
    // What cannot run together, or begin, is told before any begins.
    let shifted = json!({"peft_type": "LONG_LORA", "r": 2, "target_modules": ["q_proj"]});
    let runs_with = [("one", lora(), json!({})), ("other", shifted, json!({}))];
    let error = scene.train_together(&runs_with, Start::New).unwrap_err().to_string();
    assert!(error.contains("LONG_LORA attends in shifted groups"), "{error}");
    let mut runs = runs;
    (runs[0].0, runs[2].0, runs[2].2) = ("new", "newer", json!({"metric_for_best_model": "bleu"}));
    scene.train_together(&runs, Start::Overwrite).unwrap_err();
    assert!(!scene.path("new").exists());
}
