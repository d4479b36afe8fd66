//! Runs over one base that are trained in one pass.

use std::cell::Cell;
use std::rc::Rc;

use tunesmith_methods::BuiltAdapter;
use tunesmith_train::{Observer, Report, Run, Start, TrainError, Trainee, train_together};

use crate::interrupt::Interrupt;
use crate::training::{Pieces, Training};
use crate::watcher::{Detail, Watcher};

/// Trains the adapters `built`, one of each of `trainings`, which have the same base. Says of each as much as `detail` of its
/// place tells.
///
/// # Errors
/// [`TrainError`] of a run that cannot begin; none has begun then.
pub(crate) fn train_in_one_pass(
    trainings: &[&Training],
    built: &mut [BuiltAdapter],
    start: Start,
    interrupt: &Interrupt,
    detail: impl Fn(usize) -> Detail,
) -> Result<Vec<Result<Report, TrainError>>, TrainError> {
    let Some(workspace) = trainings.first().map(|first| &first.workspace) else { return Ok(Vec::new()) };
    let pieces: Vec<Pieces<'_>> =
        trainings.iter().zip(&*built).map(|(training, built)| training.pieces(built.config.clone())).collect();
    let runs: Vec<Run<'_>> =
        pieces.iter().zip(trainings).map(|(pieces, training)| pieces.run(training, workspace)).collect();
    let tokens: Rc<Cell<u64>> = Rc::default();
    let watched = trainings.iter().enumerate();
    let mut watchers: Vec<Watcher<'_>> = watched
        .map(|(place, training)| Watcher::counting(&training.config, interrupt, detail(place), Rc::clone(&tokens)))
        .collect();
    let parts = runs.iter().zip(built).zip(&mut watchers);
    let mut trainees: Vec<Trainee<'_>> =
        parts.map(|((run, built), observer)| Trainee { run, built, observer: observer as &mut dyn Observer }).collect();
    let reports = train_together(&mut trainees, start);
    drop(trainees);
    watchers.iter().for_each(Watcher::finish);
    reports
}
