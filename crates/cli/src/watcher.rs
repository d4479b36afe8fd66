//! Follows runs: shows their progress, writes down what they were made with, and stops them on Ctrl-C.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::rc::Rc;

use anyhow::Context;
use tunesmith_methods::PEFT_VERSION;
use tunesmith_train::{Evaluation, Observer, Progress as Update, TrainerState, peak_memory};

use crate::config::RunConfig;
use crate::failure::told;
use crate::interrupt::Interrupt;
use crate::progress::{Progress, Reading};
use crate::terminal;
use crate::training::describe;

/// The resolved configuration within a run's folder.
const CONFIG_FILE: &str = "config.yaml";

/// Shows a run's progress, and stops it on Ctrl-C.
pub(crate) struct Watcher<'a> {
    config: &'a RunConfig,
    interrupt: &'a Interrupt,
    progress: Option<Progress>,
    detail: Detail,
    /// Tokens trained on, by all runs that are trained together.
    tokens: Rc<Cell<u64>>,
    seconds: f64,
}

/// How much is said of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Steps, evaluations and checkpoints.
    Everything,
    /// Steps: one of many runs.
    Steps,
    /// Nothing: a run that is trained together with one whose steps are shown.
    Nothing,
    /// The same as [`Detail::Everything`] of the first of runs that are trained together, whose name goes before what is
    /// said.
    First(String),
    /// Evaluations and checkpoints, of another of them.
    Other(String),
}

impl<'a> Watcher<'a> {
    pub(crate) fn new(config: &'a RunConfig, interrupt: &'a Interrupt, detail: Detail) -> Self {
        Self::counting(config, interrupt, detail, Rc::default())
    }

    /// The same, which counts its tokens where others do.
    pub(crate) fn counting(
        config: &'a RunConfig,
        interrupt: &'a Interrupt,
        detail: Detail,
        tokens: Rc<Cell<u64>>,
    ) -> Self {
        Self { config, interrupt, progress: None, detail, tokens, seconds: 0.0 }
    }

    /// Takes the progress away.
    pub(crate) fn finish(&self) {
        self.progress.iter().for_each(Progress::finish);
    }

    fn note(&self, text: &str) {
        let text = match &self.detail {
            Detail::Steps | Detail::Nothing => return,
            Detail::Everything => text.to_owned(),
            Detail::First(name) | Detail::Other(name) => format!("{name}: {text}"),
        };
        match &self.progress {
            Some(progress) => progress.note(&text),
            None => terminal::note(text),
        }
    }
}

impl Observer for Watcher<'_> {
    fn on_start(&mut self, state: &TrainerState) {
        if !matches!(self.detail, Detail::Other(_) | Detail::Nothing) {
            self.progress = Some(Progress::new(state.max_steps, state.global_step));
        }
        if let Err(error) = write_config(self.config) {
            terminal::warn(told(&error));
        }
    }

    fn on_step(&mut self, update: &Update) {
        self.tokens.set(self.tokens.get() + update.tokens);
        self.seconds += update.seconds;
        if let Some(progress) = &mut self.progress {
            progress.step(Reading {
                step: update.step,
                loss: update.loss,
                tokens_per_second: self.tokens.get() as f64 / self.seconds.max(f64::MIN_POSITIVE),
                peak_memory: peak_memory(),
            });
        }
    }

    fn on_evaluation(&mut self, step: u64, evaluation: &Evaluation) {
        self.note(&format!("step {step}: validation {}", describe(evaluation)));
    }

    fn on_checkpoint(&mut self, path: &Path) {
        self.note(&format!("saved {}", path.display()));
    }

    fn stop_requested(&self) -> bool {
        self.interrupt.requested()
    }
}

/// Writes what the run was made with beside its results.
fn write_config(config: &RunConfig) -> anyhow::Result<()> {
    let path = config.run.output_dir.join(CONFIG_FILE);
    let text = format!(
        "# Every value of this run, defaults included; `tunesmith train {CONFIG_FILE}` repeats it.\n\
         # Made by tunesmith {} for {} {}; adapter files as of PEFT {PEFT_VERSION}.\n{}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH,
        config.to_yaml()?
    );
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
