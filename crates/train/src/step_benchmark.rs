//! Speed and memory of a training step on random tokens with AdamW, every position labelled, or every text where the model
//! judges texts: the whole step (forward, backward, update) is timed.

use std::time::Instant;

use serde_json::Value;
use tunesmith_methods::{BuiltAdapter, MethodConfig, MethodError, build};
use tunesmith_models::{Model, Task};
use tunesmith_tensor::{Adapter, Direction, Gradients, Parameter, Profile, Seed, Workspace};

use crate::{
    AdamW, Batch, Example, Optimizer, ParameterGroup, Part, Targets, clip_factor, describe, grad_norm, joint_loss,
    page_faults, peak_memory,
};

/// What to measure.
#[derive(Clone, Debug)]
pub struct StepBenchmark {
    /// Adapters that are trained together, each on a batch of its own.
    pub adapters: usize,
    /// Sequences in a batch.
    pub batch: usize,
    /// Tokens in a sequence.
    pub sequence: usize,
    /// Steps, the first of which is left out of every result.
    pub steps: usize,
    /// The method's configuration, as in a run file.
    pub peft: Value,
}

/// What a step came to.
#[derive(Clone, Debug)]
pub struct StepMeasurement {
    /// Seconds of each step after the first.
    pub seconds: Vec<f64>,
    /// Tokens of a step.
    pub tokens: usize,
    /// Trained values of all adapters.
    pub trainable: usize,
    /// The largest resident size that the process has had, in bytes.
    pub peak_memory: Option<u64>,
    /// Page faults of a step after the first, the fewest; 0 where all memory is reused.
    pub page_faults: Option<u64>,
    /// Mean seconds and calls of a step's operations, the slowest first.
    pub operations: Vec<OperationTime>,
    /// The loss of the last step, in nats.
    pub loss: f64,
}

/// What one operation takes of a step.
#[derive(Clone, Debug)]
pub struct OperationTime {
    /// Its name.
    pub name: &'static str,
    /// Which way.
    pub direction: Direction,
    /// Seconds a step.
    pub seconds: f64,
    /// Calls a step.
    pub calls: f64,
}

impl StepMeasurement {
    /// Tokens a second, by the median step.
    pub fn tokens_per_second(&self) -> f64 {
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        seconds.get(seconds.len() / 2).map_or(0.0, |median| self.tokens as f64 / median)
    }
}

impl StepBenchmark {
    /// Trains new adapters for `steps` steps.
    ///
    /// # Errors
    /// [`MethodError`] if the method's configuration doesn't fit the model.
    ///
    /// # Panics
    /// If the model neither continues texts ([`Task::CausalLm`]) nor judges them ([`Task::SeqCls`]).
    pub fn run(&self, model: &dyn Model, workspace: &Workspace) -> Result<StepMeasurement, MethodError> {
        let task = model.info().head.task;
        assert!(
            matches!(task, Task::CausalLm | Task::SeqCls),
            "a step is measured of models that continue or judge texts"
        );
        let profile = Profile::default();
        let workspace = workspace.clone().profiled(&profile);
        let config = MethodConfig::from_run_file(&self.peft)?;
        let new = |seed| describe(model, None, None, |model| build(&config, model, Seed(seed)));
        let built = (0..self.adapters as u64).map(new).collect::<Result<Vec<_>, _>>()?;
        let mut trained: Vec<(Adapter, Optimizer)> = built
            .into_iter()
            .map(|BuiltAdapter { adapter, .. }| {
                let group = |_: &Parameter| ParameterGroup::default();
                let optimizer = Optimizer::new(AdamW::default(), 0.0, &adapter.parameters(), group);
                (adapter, optimizer)
            })
            .collect();
        let batch = self.batch_for(model);
        let labelled = batch.labelled();
        let mut gradients = Gradients::new(&workspace);
        let (mut seconds, mut faults, mut loss) = (Vec::new(), Vec::new(), 0.0);
        let (mut clip_seconds, mut update_seconds) = (0.0, 0.0);
        for step in 0..self.steps {
            let (start, faults_before) = (Instant::now(), page_faults());
            gradients.clear();
            let parts = trained.iter().map(|(adapter, _)| Part { batch: &batch, adapter, labelled });
            let dropout = Some(Seed(step as u64));
            let sums = joint_loss(&parts.collect::<Vec<_>>(), model, &workspace, dropout, &mut gradients);
            loss = sums.iter().sum::<f64>() / (labelled * self.adapters) as f64;
            let passed = Instant::now();
            let norm = |(adapter, _): &(Adapter, _)| grad_norm(&adapter.parameters(), &gradients);
            let clips: Vec<f32> = trained.iter().map(|trained| clip_factor(norm(trained), 1.0)).collect();
            let clipped = Instant::now();
            for ((adapter, optimizer), clip) in trained.iter_mut().zip(clips) {
                let updated = workspace.run(|| optimizer.step(&mut adapter.parameters_mut(), &gradients, clip, 1e-4));
                updated.expect("every trained tensor of a model is reached");
            }
            if step == 0 {
                profile.reset();
                continue;
            }
            seconds.push(start.elapsed().as_secs_f64());
            faults.extend(faults_before.zip(page_faults()).map(|(before, after)| after - before));
            clip_seconds += (clipped - passed).as_secs_f64();
            update_seconds += clipped.elapsed().as_secs_f64();
        }
        let steps = seconds.len().max(1) as f64;
        let operation = |(name, direction, lap): (_, _, tunesmith_tensor::Lap)| OperationTime {
            name,
            direction,
            seconds: lap.time.as_secs_f64() / steps,
            calls: lap.calls as f64 / steps,
        };
        let mut operations: Vec<OperationTime> = profile.laps().into_iter().map(operation).collect();
        for (name, seconds) in [("Clipping", clip_seconds), ("Optimizer", update_seconds)] {
            operations.push(OperationTime {
                name,
                direction: Direction::Backward,
                seconds: seconds / steps,
                calls: 1.0,
            });
        }
        operations.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Ok(StepMeasurement {
            seconds,
            tokens: self.adapters * self.batch * self.sequence,
            trainable: trained.iter().map(|(adapter, _)| adapter.trainable_values()).sum(),
            peak_memory: peak_memory(),
            page_faults: faults.into_iter().min(),
            operations,
            loss,
        })
    }

    /// Random texts, and what the model should make of them.
    fn batch_for(&self, model: &dyn Model) -> Batch {
        let mut stream = Seed(0).stream("tokens", 0);
        let info = model.info();
        let examples: Vec<Example> = (0..self.batch)
            .map(|_| {
                let ids: Vec<u32> = (0..self.sequence).map(|_| stream.below(info.vocab_size as u64) as u32).collect();
                Example { labels: ids.clone(), ids }
            })
            .collect();
        let batch = Batch::new(&examples);
        if info.head.task != Task::SeqCls {
            return batch;
        }
        let classes = info.head.labels.len().max(1) as u64;
        Batch { targets: Targets::Classes(examples.iter().map(|_| stream.below(classes) as u32).collect()), ..batch }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;
    use tunesmith_models::load_model;
    use tunesmith_tensor::Tape;

    use super::*;

    /// One step of 1e-4 from adapters that change nothing: the loss is still nearly that of the base alone.
    #[test]
    fn steps_are_over_tokens_of_language_models_and_over_texts_of_classifiers() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
        let peft = json!({"peft_type": "LORA", "r": 2, "target_modules": "all-linear"});
        let benchmark = StepBenchmark { adapters: 2, batch: 3, sequence: 7, steps: 2, peft };
        for (model, labelled) in [("llama", 3 * 6), ("bert", 3)] {
            let base = load_model(&fixtures.join(model).join("model")).unwrap().model;
            let workspace = Workspace::new();
            let batch = benchmark.batch_for(&*base);
            assert_eq!(batch.labelled(), labelled, "{model}");
            let alone = batch.loss(&mut Tape::evaluating(&workspace), &*base, None).total / labelled as f64;
            let measured = benchmark.run(&*base, &workspace).unwrap();
            assert_eq!((measured.tokens, measured.seconds.len()), (42, 1), "{model}");
            assert!((measured.loss - alone).abs() < 0.01 * alone, "{model}: {} in place of {alone}", measured.loss);
        }
    }
}
