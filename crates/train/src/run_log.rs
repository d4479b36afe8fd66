//! The log of a run: one JSON object a line, appended as the run goes.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tunesmith_models::atomic::write_file;

use crate::TrainError;
use crate::evaluate::Evaluation;

/// A line about training: what happened since the line before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingLine {
    /// Updates made.
    pub step: u64,
    /// Passes over the data made, with a fraction.
    pub epoch: f64,
    /// Mean loss a labelled token since the last line.
    pub loss: f64,
    /// The learning rate of the last update.
    pub learning_rate: f64,
    /// The global gradient norm of the last update, before clipping.
    pub grad_norm: f64,
    /// Tokens trained on since the run began, prompts included.
    pub tokens: u64,
    /// Tokens trained on in a second since the last line.
    pub tokens_per_second: f64,
    /// The process's largest resident size, in bytes, where the system tells.
    pub peak_memory: Option<u64>,
}

/// A line about an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluationLine {
    /// Updates made.
    pub step: u64,
    /// Passes over the data made, with a fraction.
    pub epoch: f64,
    /// What was measured: the metrics' keys with `eval_` before them. A value that is not a number is written as null.
    #[serde(flatten)]
    pub metrics: IndexMap<String, f64>,
    /// Seconds it took.
    pub eval_runtime: f64,
}

impl EvaluationLine {
    /// The line about an evaluation after `step` updates, which took `seconds`.
    pub fn new(step: u64, epoch: f64, evaluation: &Evaluation, seconds: f64) -> Self {
        let metrics = evaluation.metrics.iter().map(|(key, value)| (format!("eval_{key}"), *value)).collect();
        Self { step, epoch, metrics, eval_runtime: seconds }
    }
}

/// A line of a log.
#[derive(Clone, Debug, PartialEq)]
pub enum LogLine {
    /// About training.
    Training(TrainingLine),
    /// About an evaluation.
    Evaluation(EvaluationLine),
}

/// Reads a log.
///
/// # Errors
/// [`TrainError::Io`]; [`TrainError::Damaged`] at a line that is not a log's.
pub fn read_log(path: &Path) -> Result<Vec<LogLine>, TrainError> {
    let text = fs::read_to_string(path).map_err(TrainError::io("read", path))?;
    let line = |(index, line): (usize, &str)| {
        parse(line).ok_or_else(|| TrainError::Damaged {
            path: path.to_path_buf(),
            reason: format!("line {} is not a line of a run log", index + 1),
        })
    };
    text.lines().enumerate().map(line).collect()
}

fn parse(line: &str) -> Option<LogLine> {
    let mut fields: serde_json::Map<String, Value> = serde_json::from_str(line).ok()?;
    let Some(seconds) = fields.remove("eval_runtime") else {
        return serde_json::from_value(Value::Object(fields)).ok().map(LogLine::Training);
    };
    let (step, epoch) = (fields.remove("step")?.as_u64()?, fields.remove("epoch")?.as_f64()?);
    let metrics = fields.into_iter().map(|(key, value)| (key, value.as_f64().unwrap_or(f64::NAN))).collect();
    Some(LogLine::Evaluation(EvaluationLine { step, epoch, metrics, eval_runtime: seconds.as_f64()? }))
}

/// The open log of a run.
#[derive(Debug)]
pub struct RunLog {
    path: PathBuf,
    file: File,
}

impl RunLog {
    /// A new, empty log in place of one that may be there.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn create(path: &Path) -> Result<Self, TrainError> {
        write_file(path, b"")?;
        Self::open(path)
    }

    /// The log of a run that goes on after `step` updates: lines of later steps, and a last line that a crash cut
    /// short, are dropped. A log that is absent begins empty.
    ///
    /// # Errors
    /// [`TrainError::Io`]; [`TrainError::Damaged`] if a line before the last is not a line of a log.
    pub fn resume(path: &Path, step: u64) -> Result<Self, TrainError> {
        let mut kept = String::new();
        if path.exists() {
            let bytes = fs::read(path).map_err(TrainError::io("read", path))?;
            let text = String::from_utf8_lossy(&bytes);
            let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
            for (index, line) in whole.lines().enumerate() {
                let of = serde_json::from_str::<Value>(line).ok().and_then(|line| line.get("step")?.as_u64());
                let of = of.ok_or_else(|| TrainError::Damaged {
                    path: path.to_path_buf(),
                    reason: format!("line {} is not a line of a run log", index + 1),
                })?;
                if of <= step {
                    kept.push_str(line);
                    kept.push('\n');
                }
            }
        }
        write_file(path, kept.as_bytes())?;
        Self::open(path)
    }

    fn open(path: &Path) -> Result<Self, TrainError> {
        let file = OpenOptions::new().append(true).open(path).map_err(TrainError::io("open", path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Appends a line, in one write.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn append(&mut self, line: &impl Serialize) -> Result<(), TrainError> {
        let text = serde_json::to_string(line).map_err(std::io::Error::from);
        let written = text.and_then(|text| self.file.write_all(format!("{text}\n").as_bytes()));
        written.map_err(TrainError::io("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> TrainingLine {
        TrainingLine {
            step,
            epoch: step as f64 / 8.0,
            loss: 2.5,
            learning_rate: 1e-4,
            grad_norm: 0.7,
            tokens: 100 * step,
            tokens_per_second: 321.0,
            peak_memory: Some(1 << 30),
        }
    }

    #[test]
    fn a_resumed_log_equals_one_never_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let (stopped, straight) = (folder.path().join("stopped.jsonl"), folder.path().join("straight.jsonl"));
        let evaluation = EvaluationLine::new(4, 0.5, &Evaluation::of_loss(2.0, 7), 1.5);
        let written = serde_json::to_string(&evaluation).unwrap();
        let expected =
            r#"{"step":4,"epoch":0.5,"eval_loss":2.0,"eval_perplexity":7.38905609893065,"eval_runtime":1.5}"#;
        assert_eq!(written, expected);

        let mut log = RunLog::create(&straight).unwrap();
        (1..=4).for_each(|step| log.append(&line(step)).unwrap());
        log.append(&evaluation).unwrap();
        (5..=8).for_each(|step| log.append(&line(step)).unwrap());

        let mut log = RunLog::create(&stopped).unwrap();
        (1..=4).for_each(|step| log.append(&line(step)).unwrap());
        log.append(&evaluation).unwrap();
        (5..=6).for_each(|step| log.append(&line(step)).unwrap());
        log.file.write_all(br#"{"step":7,"epo"#).unwrap();
        drop(log);
        let mut log = RunLog::resume(&stopped, 4).unwrap();
        (5..=8).for_each(|step| log.append(&line(step)).unwrap());

        let read = read_log(&stopped).unwrap();
        assert_eq!(
            (read.len(), &read[4], &read[8]),
            (9, &LogLine::Evaluation(evaluation), &LogLine::Training(line(8)))
        );
        let text = fs::read_to_string(&stopped).unwrap();
        assert_eq!(text, fs::read_to_string(&straight).unwrap());
        assert_eq!(text.lines().count(), 9);
        assert!(text.starts_with(
            r#"{"step":1,"epoch":0.125,"loss":2.5,"learning_rate":0.0001,"grad_norm":0.7,"tokens":100,"tokens_per_second":321.0,"peak_memory":1073741824}"#
        ));
    }

    #[test]
    fn a_file_that_is_no_log_is_not_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.jsonl");
        fs::write(&path, "{\"step\":1}\nnotes\n{\"step\":2}\n").unwrap();
        let message = RunLog::resume(&path, 1).unwrap_err().to_string();
        assert!(message.ends_with("is damaged: line 2 is not a line of a run log"), "{message}");
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 3);
    }
}
