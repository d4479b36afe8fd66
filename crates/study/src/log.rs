//! What a run's log tells.

use std::path::Path;

use indexmap::IndexMap;
use tunesmith_train::{LogLine, read_log};

use crate::StudyError;
use crate::result::{Curve, CurvePoint};

/// A run as its log has it, the processes that it was resumed in included.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoggedRun {
    /// Losses and evaluations.
    pub curve: Curve,
    /// Seconds of training.
    pub seconds: f64,
    /// The largest resident size, in bytes.
    pub peak_memory: Option<u64>,
    /// The update of each evaluation.
    steps: Vec<u64>,
}

impl Curve {
    /// Reads a log.
    ///
    /// # Errors
    /// [`StudyError::Train`] where it cannot be read.
    pub fn read(log: &Path) -> Result<LoggedRun, StudyError> {
        let mut run = LoggedRun::default();
        let mut tokens = 0;
        for line in read_log(log)? {
            match line {
                LogLine::Training(line) => {
                    run.seconds += (line.tokens - tokens) as f64 / line.tokens_per_second.max(f64::MIN_POSITIVE);
                    tokens = line.tokens;
                    run.curve.train.push((tokens, line.loss));
                    run.peak_memory = run.peak_memory.max(line.peak_memory);
                }
                LogLine::Evaluation(line) => {
                    let named = |(key, value): (String, f64)| {
                        let key = key.strip_prefix("eval_").map_or(key.clone(), str::to_owned);
                        value.is_finite().then_some((key, value))
                    };
                    let metrics = line.metrics.into_iter().filter_map(named).collect();
                    run.curve.evaluations.push(CurvePoint { tokens, metrics });
                    run.steps.push(line.step);
                }
            }
        }
        Ok(run)
    }
}

impl LoggedRun {
    /// The evaluation after that update, or the last one.
    pub fn evaluation_at(&self, step: Option<u64>) -> Option<IndexMap<String, f64>> {
        let place = step.and_then(|step| self.steps.iter().rposition(|of| *of == step));
        let evaluations = &self.curve.evaluations;
        place.map(|place| &evaluations[place]).or(evaluations.last()).map(|point| point.metrics.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_add_up_and_evaluations_are_found_by_their_update() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log.jsonl");
        let training = |step: u64, tokens: u64, speed: f64, peak: u64| {
            format!(
                r#"{{"step":{step},"epoch":1.0,"loss":{step}.5,"learning_rate":0.1,"grad_norm":1.0,"tokens":{tokens},"tokens_per_second":{speed},"peak_memory":{peak}}}"#
            )
        };
        let evaluation =
            |step: u64, loss: &str| format!(r#"{{"step":{step},"epoch":1.0,"eval_loss":{loss},"eval_runtime":1.0}}"#);
        let lines = [
            training(1, 100, 50.0, 7),
            evaluation(1, "2.0"),
            training(2, 300, 100.0, 9),
            evaluation(2, "null"),
            training(3, 400, 100.0, 8),
        ];
        std::fs::write(&log, lines.join("\n")).unwrap();
        let run = Curve::read(&log).unwrap();
        assert!((run.seconds - 5.0).abs() < 1e-12 && run.peak_memory == Some(9));
        assert_eq!(run.curve.train, [(100, 1.5), (300, 2.5), (400, 3.5)]);
        assert_eq!(run.evaluation_at(Some(1)).unwrap()["loss"], 2.0);
        assert!(run.evaluation_at(None).unwrap().is_empty());
        assert_eq!(run.curve.evaluations[1].tokens, 300);
    }
}
