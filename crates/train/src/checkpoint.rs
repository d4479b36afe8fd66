//! Checkpoints of a run: `checkpoint-N` folders from which it continues bit for bit.
//!
//! A checkpoint holds the adapter's files, `optimizer.safetensors` and `trainer_state.json`. The order of the data, the
//! dropout masks and the initial values are functions of the seed and the step, so no generator's state is saved.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tunesmith_models::atomic::{remove_folder, remove_leftovers, write_folder};

use crate::TrainError;
use crate::optimizer::Optimizer;

/// The optimiser's state within a checkpoint.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// The run's state within a checkpoint.
pub const STATE_FILE: &str = "trainer_state.json";
const PREFIX: &str = "checkpoint-";

/// Where a run stands, under the Hugging Face names where there are such.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerState {
    /// Updates made.
    pub global_step: u64,
    /// The epoch of the next update, from 0.
    pub epoch: u64,
    /// Updates already made within that epoch.
    pub step_in_epoch: u64,
    /// Updates of the whole run.
    pub max_steps: u64,
    /// Tokens trained on, prompts included.
    pub num_input_tokens_seen: u64,
    /// The best metric of an evaluation so far.
    pub best_metric: Option<f64>,
    /// The update after which it was measured, which is the number of its checkpoint.
    pub best_global_step: Option<u64>,
    /// Evaluations since the metric last improved by more than `early_stopping_threshold`.
    #[serde(default)]
    pub evaluations_since_best: u64,
    /// The configuration that made the run; see [`TrainerState::check_config`].
    pub config: Map<String, Value>,
}

/// One key of the configuration that is not what it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The key, with dots between levels.
    pub key: String,
    /// The checkpoint's value, if it has the key.
    pub saved: Option<Value>,
    /// The value now, if it has the key.
    pub now: Option<Value>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Option<Value>| value.as_ref().map_or("not set".to_owned(), Value::to_string);
        write!(f, "{}: was {}, is {}", self.key, text(&self.saved), text(&self.now))
    }
}

impl TrainerState {
    /// Reads the state of a checkpoint.
    ///
    /// # Errors
    /// [`TrainError::Io`], [`TrainError::Damaged`].
    pub fn load(checkpoint: &Path) -> Result<Self, TrainError> {
        let path = checkpoint.join(STATE_FILE);
        let bytes = fs::read(&path).map_err(TrainError::io("read", &path))?;
        serde_json::from_slice(&bytes).map_err(|error| TrainError::Damaged { path, reason: error.to_string() })
    }

    /// Checks that `now` is the configuration that made `checkpoint`, except for `free` keys (dotted, with all below
    /// them), which do not change what is computed.
    ///
    /// # Errors
    /// [`TrainError::ConfigurationChanged`] with every key that differs.
    pub fn check_config(&self, checkpoint: &Path, now: &Map<String, Value>, free: &[&str]) -> Result<(), TrainError> {
        let mut differences = Vec::new();
        compare("", &self.config, now, &mut differences);
        let is_free = |key: &str| {
            free.iter().any(|free| key.strip_prefix(free).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
        };
        differences.retain(|difference| !is_free(&difference.key));
        match differences.is_empty() {
            true => Ok(()),
            false => Err(TrainError::ConfigurationChanged { checkpoint: checkpoint.to_path_buf(), differences }),
        }
    }
}

fn compare(path: &str, saved: &Map<String, Value>, now: &Map<String, Value>, differences: &mut Vec<Difference>) {
    let added = now.keys().filter(|key| !saved.contains_key(*key));
    for name in saved.keys().chain(added) {
        let key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match (saved.get(name), now.get(name)) {
            (Some(Value::Object(saved)), Some(Value::Object(now))) => compare(&key, saved, now, differences),
            (saved, now) if saved != now => {
                differences.push(Difference { key, saved: saved.cloned(), now: now.cloned() });
            }
            _ => {}
        }
    }
}

/// The checkpoints in a run's folder.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
}

impl Checkpoints {
    /// The checkpoints in `folder`, which is made if absent; what an interrupted write left there is removed.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn open(folder: &Path) -> Result<Self, TrainError> {
        fs::create_dir_all(folder).map_err(TrainError::io("create", folder))?;
        remove_leftovers(folder)?;
        Ok(Self { folder: folder.to_path_buf() })
    }

    /// Where the checkpoint after `step` updates lies or would lie.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{PREFIX}{step}"))
    }

    /// Writes the checkpoint after `state.global_step` updates, whole or not at all, and returns its folder.
    /// `write_adapter` writes the adapter's files into the folder it is given.
    ///
    /// # Errors
    /// Whatever `write_adapter` returns, and [`TrainError::Io`]. Earlier checkpoints are untouched then.
    pub fn save(
        &self,
        state: &TrainerState,
        optimizer: &Optimizer,
        write_adapter: impl FnOnce(&Path) -> Result<(), TrainError>,
    ) -> Result<PathBuf, TrainError> {
        let path = self.path(state.global_step);
        write_folder(&path, |folder| {
            write_adapter(folder)?;
            optimizer.save(&folder.join(OPTIMIZER_FILE))?;
            let file = folder.join(STATE_FILE);
            let text = serde_json::to_vec_pretty(state).map_err(std::io::Error::from);
            text.and_then(|text| fs::write(&file, text)).map_err(TrainError::io("write", &file))
        })?;
        Ok(path)
    }

    /// A checkpoint, complete or not, if there is one.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn any(&self) -> Result<Option<PathBuf>, TrainError> {
        Ok(self.numbered()?.pop().map(|(_, path)| path))
    }

    /// The complete checkpoints, `(step, folder)`, by step. A folder without a readable state or without the
    /// optimiser's is not complete.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn complete(&self) -> Result<Vec<(u64, PathBuf)>, TrainError> {
        let mut found = self.numbered()?;
        found.retain(|(step, path)| {
            path.join(OPTIMIZER_FILE).is_file()
                && TrainerState::load(path).is_ok_and(|state| state.global_step == *step)
        });
        Ok(found)
    }

    /// The complete checkpoint with the most updates.
    ///
    /// # Errors
    /// [`TrainError::NoCheckpoint`], [`TrainError::Io`].
    pub fn latest(&self) -> Result<PathBuf, TrainError> {
        let last = self.complete()?.pop();
        last.map(|(_, path)| path).ok_or_else(|| TrainError::NoCheckpoint { folder: self.folder.clone() })
    }

    /// Removes all but the last `limit` checkpoints and that of step `best`.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn prune(&self, limit: usize, best: Option<u64>) -> Result<(), TrainError> {
        let found = self.complete()?;
        for (step, path) in &found[..found.len().saturating_sub(limit.max(1))] {
            if Some(*step) != best {
                remove_folder(path)?;
            }
        }
        Ok(())
    }

    /// Removes the checkpoints of more than `step` updates, which a run that goes on from there will write again.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn remove_after(&self, step: u64) -> Result<(), TrainError> {
        for (found, path) in self.numbered()? {
            if found > step {
                remove_folder(&path)?;
            }
        }
        Ok(())
    }

    fn numbered(&self) -> Result<Vec<(u64, PathBuf)>, TrainError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(TrainError::io("read", &self.folder))? {
            let entry = entry.map_err(TrainError::io("read", &self.folder))?;
            let step = entry.file_name().to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
            if let (Some(step), true) = (step, entry.path().is_dir()) {
                found.push((step, entry.path()));
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use serde_json::json;
    use tunesmith_tensor::{Matrix, Parameter};

    use super::*;
    use crate::optimizer::{AdamW, ParameterGroup};

    fn state(step: u64) -> TrainerState {
        let Value::Object(config) = json!({
            "learning_rate": 1e-4, "logging_steps": 10, "peft": {"peft_type": "LORA", "r": 8}, "data": {"rows": 1}
        }) else {
            panic!()
        };
        TrainerState {
            global_step: step,
            epoch: 1,
            step_in_epoch: 3,
            max_steps: 100,
            num_input_tokens_seen: 12_345,
            best_metric: Some(0.1 + 0.2),
            best_global_step: Some(4),
            evaluations_since_best: 2,
            config,
        }
    }

    fn optimizer() -> Optimizer {
        let parameter = Parameter::new("w", Matrix::zeros(2, 2));
        Optimizer::new(AdamW::default(), 0.0, &[&parameter], |_| ParameterGroup::default())
    }

    fn save(checkpoints: &Checkpoints, step: u64) -> PathBuf {
        let adapter = |folder: &Path| {
            let file = folder.join("adapter_model.safetensors");
            fs::write(&file, format!("adapter {step}")).map_err(TrainError::io("write", &file))
        };
        checkpoints.save(&state(step), &optimizer(), adapter).unwrap()
    }

    fn steps(checkpoints: &Checkpoints) -> Vec<u64> {
        checkpoints.complete().unwrap().into_iter().map(|(step, _)| step).collect()
    }

    #[test]
    fn a_checkpoint_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = save(&Checkpoints::open(&folder.path().join("run")).unwrap(), 7);
        assert_eq!(path, folder.path().join("run/checkpoint-7"));
        assert_eq!(TrainerState::load(&path).unwrap(), state(7));
        assert_eq!(fs::read_to_string(path.join("adapter_model.safetensors")).unwrap(), "adapter 7");
        optimizer().load(&path.join(OPTIMIZER_FILE)).unwrap();
    }

    #[test]
    fn the_latest_is_the_largest_number_among_complete_ones() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path()).unwrap();
        assert!(matches!(checkpoints.latest(), Err(TrainError::NoCheckpoint { .. })));
        for step in [90, 100, 110, 120] {
            save(&checkpoints, step);
        }
        fs::remove_file(checkpoints.path(110).join(OPTIMIZER_FILE)).unwrap();
        fs::write(checkpoints.path(120).join(STATE_FILE), "{\"global_step\":").unwrap();
        fs::create_dir(folder.path().join("checkpoint-last")).unwrap();
        assert_eq!(steps(&checkpoints), [90, 100]);
        assert_eq!(checkpoints.latest().unwrap(), checkpoints.path(100));
    }

    #[test]
    fn an_interrupted_write_is_no_checkpoint_and_is_cleaned_up() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path()).unwrap();
        save(&checkpoints, 10);
        let half = folder.path().join(".checkpoint-20.unfinished-4242");
        fs::rename(save(&checkpoints, 20), &half).unwrap();
        assert_eq!(checkpoints.latest().unwrap(), checkpoints.path(10));

        let checkpoints = Checkpoints::open(folder.path()).unwrap();
        assert!(!half.exists());
        assert_eq!(steps(&checkpoints), [10]);
    }

    #[test]
    fn a_full_disk_leaves_the_last_checkpoint_and_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path()).unwrap();
        save(&checkpoints, 10);
        for step in [10, 20] {
            let failed = checkpoints.save(&state(step), &optimizer(), |folder| {
                fs::write(folder.join("adapter_model.safetensors"), "ada").unwrap();
                Err(TrainError::io("write", folder)(ErrorKind::StorageFull.into()))
            });
            assert!(matches!(failed, Err(TrainError::Io { .. })));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let kept = checkpoints.latest().unwrap().join("adapter_model.safetensors");
        assert_eq!(fs::read_to_string(kept).unwrap(), "adapter 10");
    }

    #[test]
    fn pruning_keeps_the_last_ones_and_the_best() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path()).unwrap();
        for step in [5, 10, 15, 20] {
            save(&checkpoints, step);
        }
        checkpoints.prune(2, Some(5)).unwrap();
        assert_eq!(steps(&checkpoints), [5, 15, 20]);
        checkpoints.prune(1, None).unwrap();
        assert_eq!(steps(&checkpoints), [20]);
        save(&checkpoints, 30);
        checkpoints.remove_after(20).unwrap();
        assert_eq!(steps(&checkpoints), [20]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn another_configuration_is_refused_with_every_key_that_differs() {
        let saved = state(7);
        let path = Path::new("run/checkpoint-7");
        saved.check_config(path, &saved.config, &[]).unwrap();

        let mut now = saved.config.clone();
        now["learning_rate"] = json!(2e-4);
        now["logging_steps"] = json!(1);
        now["peft"] = json!({"peft_type": "LORA", "use_rslora": true});
        now["data"] = json!({"rows": 2});
        let error = saved.check_config(path, &now, &["logging_steps", "data"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "run/checkpoint-7 was made with another configuration, so the run cannot be resumed from it:\n  \
             learning_rate: was 0.0001, is 0.0002\n  peft.r: was 8, is not set\n  \
             peft.use_rslora: was not set, is true\n\
             restore these values, or start a new run in another folder"
        );
    }
}
