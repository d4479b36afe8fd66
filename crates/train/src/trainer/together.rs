//! Runs over one base, an update of each in one pass: what the base computes, it computes once for all of them.

use std::time::Instant;

use tunesmith_methods::BuiltAdapter;
use tunesmith_tensor::{Gradients, Workspace};

use super::session::{Session, Window};
use super::{Ending, Observer, Progress, Report, Run, Start};
use crate::joint::{Part, joint_loss};
use crate::{Batch, MemoryEstimate, TrainError, grad_norm};

/// A run, the adapter that it trains, and who follows it.
pub struct Trainee<'a> {
    /// The run. All that are trained together have the same model and workspace.
    pub run: &'a Run<'a>,
    /// The adapter, which gets the values trained.
    pub built: &'a mut BuiltAdapter,
    /// Who follows it.
    pub observer: &'a mut dyn Observer,
}

/// A run's share of an update.
struct Share {
    /// Which run's.
    place: usize,
    window: Window,
    batches: Vec<Batch>,
    /// Labelled values of all batches.
    labelled: usize,
    /// The mean over them, and what regularises the adapter.
    loss: f64,
    /// The global norm of its gradients.
    grad_norm: f64,
}

/// Trains adapters as [`Run::train`] does, each on its own data in its own order with its own optimiser and at its own step;
/// runs end one by one. A run comes to what it comes to alone, but for rounding and, where there is dropout, for other masks.
///
/// # Errors
/// [`TrainError`] of a run that cannot begin: nothing was trained then. What a run that has begun ends with is among the
/// results and does not end the others.
pub fn train_together(
    trainees: &mut [Trainee<'_>],
    start: Start,
) -> Result<Vec<Result<Report, TrainError>>, TrainError> {
    let Some(Run { model, workspace, .. }) = trainees.first().map(|trainee| trainee.run) else { return Ok(Vec::new()) };
    if let (true, Some(shifted)) = (trainees.len() > 1, trainees.iter().find(|trainee| is_shifted(trainee))) {
        let name = shifted.built.config.peft_type();
        let problem = format!("peft_type {name} attends in shifted groups, which is for a run of its own");
        return Err(TrainError::InvalidArguments { problems: vec![problem] });
    }
    let plans = trainees.iter().map(|trainee| trainee.run.plan()).collect::<Result<Vec<_>, _>>()?;
    let trained = trainees.iter().flat_map(|trainee| trainee.built.adapter.parameters());
    let trained = trained.map(|parameter| parameter.value().data().len()).sum();
    let tokens = plans.iter().map(|plan| plan.most_tokens()).sum();
    let estimate = MemoryEstimate::new(*model, trained, tokens);
    let mut checkpointing = false;
    for Run { arguments, .. } in trainees.iter().map(|trainee| trainee.run) {
        checkpointing |= estimate.plan(arguments.gradient_checkpointing, arguments.memory_budget)?;
    }
    let mut sessions = Vec::new();
    for (trainee, plan) in trainees.iter_mut().zip(plans) {
        sessions.push(Session::begin(trainee.run, plan, trainee.built, start, trainee.observer)?);
    }
    let workspace = (*workspace).clone().checkpointing(checkpointing);
    let mut gradients = Gradients::new(&workspace);
    let mut endings: Vec<Option<Result<Ending, TrainError>>> = sessions.iter().map(|_| None).collect();
    loop {
        let began = Instant::now();
        let mut shares = Vec::new();
        for (place, (session, ending)) in sessions.iter_mut().zip(&mut endings).enumerate() {
            if ending.is_some() {
                continue;
            }
            match session.next_window() {
                Ok(window) => shares.push(Share::of(place, window, session.run)),
                Err(ended) => *ending = Some(Ok(ended)),
            }
        }
        if shares.is_empty() {
            break;
        }
        gradients.clear();
        for share in &shares {
            trainees[share.place].built.before_step(share.window.step);
        }
        pass(&mut shares, trainees, &workspace, &mut gradients);
        if shares.len() > 1 && shares.iter().any(|share| !share.is_finite()) {
            // Zero times infinity is no number: who has left the numbers must not take the others along.
            gradients.clear();
            shares.iter_mut().for_each(|share| pass(std::slice::from_mut(share), trainees, &workspace, &mut gradients));
        }
        let passed = began.elapsed().as_secs_f64();
        for share in shares {
            let (session, trainee) = (&mut sessions[share.place], &mut trainees[share.place]);
            let began = Instant::now();
            let found = (share.loss, share.grad_norm);
            let made = session.update(trainee.built, &share.window, found, share.tokens(), &gradients);
            let after = made.and_then(|made| {
                let made = Progress { seconds: passed + began.elapsed().as_secs_f64(), ..made };
                session.after_update(trainee.built, &made, trainee.observer)
            });
            endings[share.place] = after.transpose();
        }
    }
    let mut reports = Vec::new();
    for ((session, ending), trainee) in sessions.into_iter().zip(endings).zip(trainees) {
        let ending = ending.unwrap_or(Ok(Ending::Finished));
        reports.push(ending.and_then(|ending| session.end(trainee.built, ending)));
    }
    Ok(reports)
}

/// Computes the loss of each share and its gradients, of which there are none yet: a batch of each in one pass.
fn pass(shares: &mut [Share], trainees: &[Trainee<'_>], workspace: &Workspace, gradients: &mut Gradients) {
    let longest = shares.iter().map(|share| share.batches.len()).max().unwrap_or(0);
    shares.iter_mut().for_each(|share| share.loss = 0.0);
    for number in 0..longest {
        let (places, parts): (Vec<usize>, Vec<Part<'_>>) =
            shares.iter().enumerate().filter_map(|(at, share)| Some((at, share.part(number, trainees)?))).unzip();
        // One run has the masks that its own seed draws.
        let dropout = Some(shares[places[0]].window.dropout.derive("batch", number as u64));
        let sums = joint_loss(&parts, trainees[0].run.model, workspace, dropout, gradients);
        for (at, sum) in places.into_iter().zip(sums) {
            shares[at].loss += sum / shares[at].labelled as f64;
        }
    }
    for share in shares {
        let built = &trainees[share.place].built;
        share.loss += built.regularise(workspace, gradients);
        share.grad_norm = grad_norm(&built.adapter.parameters(), gradients);
    }
}

/// Whether training groups tokens for attention, which a pass does for one adapter alone (LongLoRA).
fn is_shifted(trainee: &Trainee<'_>) -> bool {
    trainee.built.adapter.shifted_groups().is_some()
}

impl Share {
    fn of(place: usize, window: Window, run: &Run<'_>) -> Self {
        let batches: Vec<Batch> = window.batches.iter().map(|indices| run.examples.batch(indices)).collect();
        let labelled = batches.iter().map(Batch::labelled).sum();
        Self { place, window, batches, labelled, loss: 0.0, grad_norm: 0.0 }
    }

    /// The part of a pass over batch number `number` of each run; none where this run has no such batch.
    fn part<'a>(&'a self, number: usize, trainees: &'a [Trainee<'_>]) -> Option<Part<'a>> {
        let batch = self.batches.get(number)?;
        Some(Part { batch, adapter: &trainees[self.place].built.adapter, labelled: self.labelled })
    }

    /// Whether the loss and all gradients are numbers.
    fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }

    /// Tokens of all batches, prompts included.
    fn tokens(&self) -> u64 {
        self.batches.iter().map(|batch| batch.ids.len() as u64).sum()
    }
}
