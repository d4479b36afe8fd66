//! What a run came to, as its file keeps it: everything a report says is from these files.

use std::fs;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use tunesmith_models::atomic::write_file;
use tunesmith_train::Sample;

use crate::StudyError;
use crate::plan::RunSpec;

/// The version of the files' format.
pub const FORMAT: u32 = 1;

/// A run and what it came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// [`FORMAT`].
    pub format: u32,
    /// What was run.
    pub spec: RunSpec,
    /// By what, and where.
    pub environment: Environment,
    /// When it ended, in UTC.
    pub ended: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// The program and the machine of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// The program's version.
    pub version: String,
    /// The commit that it was built from.
    pub commit: String,
    /// The processor.
    pub processor: String,
    /// Threads that products ran on.
    pub threads: usize,
    /// Operating system and architecture.
    pub platform: String,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was measured.
    Measured(Box<Measured>),
    /// It failed; the same run would fail again.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What was measured of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {
    /// Values that were trained.
    pub trainable_parameters: u64,
    /// Values of the base.
    pub base_parameters: u64,
    /// Bytes of the adapter's file.
    pub file_size: u64,
    /// Updates.
    pub steps: u64,
    /// Tokens trained on, prompts included.
    pub train_tokens: u64,
    /// Runs that were trained in the same pass, this one left out.
    #[serde(skip_serializing_if = "is_zero")]
    pub trained_beside: u64,
    /// Seconds of training, evaluations and saving left out; of a pass of several runs, its share.
    pub train_seconds: f64,
    /// The largest resident size while training, in bytes, the base included.
    pub peak_memory: Option<u64>,
    /// Metrics of the held-out set, which learning rates are chosen by.
    pub validation: IndexMap<String, f64>,
    /// Metrics of each file that is tested on.
    pub tests: IndexMap<String, IndexMap<String, f64>>,
    /// What a prediction costs.
    pub prediction: Cost,
    /// Metrics of each order of the demonstrations, where there are several.
    pub orders: Vec<IndexMap<String, f64>>,
    /// Training losses and evaluations as the run went.
    pub curve: Curve,
    /// Outputs of the first examples of the first test.
    pub samples: Vec<Sample>,
}

/// Results of runs that were trained alone look as they did before there were others.
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What predictions cost, on average.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Examples that were predicted.
    pub examples: u64,
    /// Tokens that one of them makes the model read, demonstrations and virtual tokens included.
    pub tokens: f64,
    /// Seconds it takes.
    pub seconds: f64,
}

/// How a run went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// `[tokens trained on, mean training loss since the point before]`.
    pub train: Vec<(u64, f64)>,
    /// Evaluations.
    pub evaluations: Vec<CurvePoint>,
}

/// An evaluation on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Tokens trained on.
    pub tokens: u64,
    /// What was measured on the held-out set.
    pub metrics: IndexMap<String, f64>,
}

/// Points of a curve that are kept, at most.
const KEPT_POINTS: usize = 120;

impl Curve {
    /// The same with at most 120 points of training loss, neighbours averaged.
    #[must_use]
    pub fn thinned(self) -> Self {
        let each = self.train.len().div_ceil(KEPT_POINTS).max(1);
        let mean = |points: &[(u64, f64)]| {
            let sum: f64 = points.iter().map(|(_, loss)| loss).sum();
            (points[points.len() - 1].0, sum / points.len() as f64)
        };
        Self { train: self.train.chunks(each).map(mean).collect(), ..self }
    }
}

impl RunResult {
    /// What was measured, unless it failed.
    pub fn measured(&self) -> Option<&Measured> {
        match &self.outcome {
            Outcome::Measured(measured) => Some(measured),
            Outcome::Failed { .. } => None,
        }
    }

    /// The score on the held-out set, which learning rates are chosen by.
    pub fn validation_score(&self) -> Option<f64> {
        let measured = self.measured()?;
        let own = measured.validation.get(self.spec.metric.key);
        own.or_else(|| measured.tests.values().next()?.get(self.spec.metric.key)).copied()
    }

    /// Where the result of a run lies.
    pub fn path(study: &Path, id: &str) -> PathBuf {
        study.join("runs").join(format!("{id}.json"))
    }

    /// The result of that run, if it has one.
    ///
    /// # Errors
    /// [`StudyError::Damaged`], [`StudyError::Io`].
    pub fn read(study: &Path, id: &str) -> Result<Option<Self>, StudyError> {
        let path = Self::path(study, id);
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs::read(&path).map_err(StudyError::io("read", &path))?;
        let result: Self = serde_json::from_slice(&text)
            .map_err(|error| StudyError::Damaged { path: path.clone(), reason: error.to_string() })?;
        if result.format != FORMAT {
            let reason = format!("it has format {}, this program reads {FORMAT}", result.format);
            return Err(StudyError::Damaged { path, reason });
        }
        Ok(Some(result))
    }

    /// Writes it whole or not at all.
    ///
    /// # Errors
    /// [`StudyError::Train`] with the file's problem.
    pub fn write(&self, study: &Path) -> Result<(), StudyError> {
        let path = Self::path(study, &self.spec.id);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(StudyError::io("make", folder))?;
        }
        let text =
            serde_json::to_string_pretty(self).map_err(std::io::Error::from).map_err(StudyError::io("write", &path))?;
        Ok(write_file(&path, format!("{text}\n").as_bytes())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thinned_curve_keeps_its_mean_and_its_end() {
        let train: Vec<(u64, f64)> = (1..=1000).map(|step| (10 * step, step as f64)).collect();
        let thinned = Curve { train: train.clone(), evaluations: Vec::new() }.thinned();
        assert!(thinned.train.len() <= KEPT_POINTS && thinned.train.last().unwrap().0 == 10_000);
        assert_eq!(thinned.train[0], (90, 5.0));
        let short = Curve { train: train[..50].to_vec(), evaluations: Vec::new() };
        assert_eq!(short.clone().thinned(), short);
    }
}
