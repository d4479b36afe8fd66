//! The tape: what ran forward, kept for the way back.
//!
//! Operations are methods on [`Tape`], one file each under `ops/`. A value that no trainable tensor reaches has no node,
//! so nothing below the lowest trainable part is recorded or differentiated, and a frozen weight is never a value at
//! all. A value's buffer returns to the workspace as soon as neither the caller nor a later backward step needs it; an
//! operation that takes a [`Var`] by value may reuse its buffer.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::checkpoint::{Blocks, Checkpoint, Destination};
use crate::ops::for_each_row_block;
use crate::parameter::{Gradients, Parameter, ParameterId};
use crate::profile::{Direction, Stopwatch, operation_name};
use crate::random::Seed;
use crate::{Matrix, Workspace};

/// A value on (or beside) the tape: a matrix, and whether a gradient must flow back through it.
#[derive(Clone, Debug)]
pub struct Var {
    value: Arc<Matrix>,
    node: Option<NodeId>,
}

/// The place of a value's gradient on the tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeId(usize);

impl NodeId {
    pub(crate) fn at(place: usize) -> Self {
        Self(place)
    }
}

impl Var {
    pub(crate) fn new(value: Arc<Matrix>, node: Option<NodeId>) -> Self {
        Self { value, node }
    }

    /// The value.
    pub fn value(&self) -> &Matrix {
        &self.value
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.value.rows()
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.value.cols()
    }

    /// Whether a trainable tensor lies beneath, so that a gradient flows back through this value.
    pub fn needs_gradient(&self) -> bool {
        self.node.is_some()
    }

    /// The value, for keeping.
    pub fn shared(&self) -> Arc<Matrix> {
        Arc::clone(&self.value)
    }

    pub(crate) fn node(&self) -> Option<NodeId> {
        self.node
    }

    /// The matrix itself where this was its last user, otherwise a copy.
    pub(crate) fn into_matrix(self, workspace: &Workspace) -> Matrix {
        owned(self.value, workspace)
    }
}

/// One recorded operation: knows how to turn the gradient of its output into gradients of its inputs.
pub(crate) trait Backward: Send {
    /// Adds to `flow` the gradients of the inputs, given `gradient`, that of the output, which may have other users:
    /// [`Flow::owned`] gives it for changing.
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>);
}

/// The matrix itself where this was its last user, otherwise a copy.
fn owned(matrix: Arc<Matrix>, workspace: &Workspace) -> Matrix {
    Arc::try_unwrap(matrix).unwrap_or_else(|shared| shared.copy_in(workspace))
}

/// The matrix for changing, as a copy where it has other users.
fn unshared<'a>(matrix: &'a mut Arc<Matrix>, workspace: &Workspace) -> &'a mut Matrix {
    if Arc::get_mut(matrix).is_none() {
        *matrix = Arc::new(matrix.copy_in(workspace));
    }
    Arc::get_mut(matrix).expect("nobody else uses it now")
}

pub(crate) enum Entry {
    Parameter(ParameterId),
    Operation(&'static str, Box<dyn Backward>),
    /// A block that runs again on the way back.
    Block(Checkpoint),
    /// An input, by its number, of the block that runs again.
    Input(usize),
}

/// Records a forward pass. One tape a pass; [`Tape::backward`] consumes it.
pub struct Tape {
    workspace: Workspace,
    pub(crate) entries: Vec<Entry>,
    pub(crate) recording: bool,
    /// Whether nothing is ever differentiated, here or when a block runs again.
    inferring: bool,
    dropout: Option<Seed>,
    pub(crate) dropouts: u64,
    pub(crate) blocks: Blocks,
    pub(crate) shared: HashMap<ParameterId, Arc<[Var]>>,
    stopwatch: Option<Stopwatch>,
}

impl Tape {
    /// A tape for training. Dropout draws from `seed`, which therefore differs from step to step.
    pub fn training(workspace: &Workspace, seed: Seed) -> Self {
        Self { dropout: Some(seed), ..Self::differentiating(workspace) }
    }

    /// A tape that records gradients with dropout off.
    pub fn differentiating(workspace: &Workspace) -> Self {
        Self {
            workspace: workspace.clone(),
            entries: Vec::new(),
            recording: true,
            inferring: false,
            dropout: None,
            dropouts: 0,
            blocks: Blocks::Recorded,
            shared: HashMap::new(),
            stopwatch: workspace.profile().map(Stopwatch::start),
        }
    }

    /// A tape that records nothing: for evaluation and generation.
    pub fn evaluating(workspace: &Workspace) -> Self {
        Self { recording: false, inferring: true, ..Self::differentiating(workspace) }
    }

    /// The buffers and kernels in use.
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Whether dropout is on.
    pub fn is_training(&self) -> bool {
        self.dropout.is_some()
    }

    /// A value without a gradient.
    pub fn constant(&self, value: Matrix) -> Var {
        Var { value: Arc::new(value), node: None }
    }

    /// The same of a value that others hold too.
    pub fn shared_constant(&self, value: Arc<Matrix>) -> Var {
        Var { value, node: None }
    }

    /// Whether gradients are recorded.
    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// Whether this is evaluation or generation, where what a row gets must not depend on the other rows.
    pub(crate) fn is_inferring(&self) -> bool {
        self.inferring
    }

    /// The value of a trainable tensor; its gradient goes to [`Gradients`] under its id.
    pub fn parameter(&mut self, parameter: &Parameter) -> Var {
        if let Blocks::Kept { trainable, .. } = &mut self.blocks {
            *trainable = true;
        }
        let node = self.recording.then(|| {
            self.entries.push(Entry::Parameter(parameter.id()));
            NodeId(self.entries.len() - 1)
        });
        Var { value: parameter.value(), node }
    }

    /// Values that tuners of several sites share within a pass: computed when first asked for under `key`, the id of a
    /// trainable tensor that they come from.
    pub fn shared(&mut self, key: ParameterId, compute: impl FnOnce(&mut Self) -> Vec<Var>) -> Arc<[Var]> {
        if let Some(values) = self.shared.get(&key) {
            return Arc::clone(values);
        }
        let values: Arc<[Var]> = compute(self).into();
        self.shared.insert(key, Arc::clone(&values));
        values
    }

    /// The output of an operation; `record` is called only if a gradient must flow through it.
    pub(crate) fn output<B: Backward + 'static>(
        &mut self,
        value: impl Into<Arc<Matrix>>,
        inputs: &[Option<NodeId>],
        record: impl FnOnce() -> B,
    ) -> Var {
        let node = inputs.iter().any(Option::is_some).then(|| {
            self.entries.push(Entry::Operation(operation_name::<B>(), Box::new(record())));
            NodeId(self.entries.len() - 1)
        });
        if let Some(stopwatch) = &mut self.stopwatch {
            stopwatch.lap(operation_name::<B>(), Direction::Forward);
        }
        Var { value: value.into(), node }
    }

    /// The key of the next dropout mask; `None` outside training.
    pub(crate) fn next_dropout(&mut self) -> Option<u64> {
        let seed = self.dropout?;
        self.dropouts += 1;
        Some(seed.stream("dropout", self.dropouts).next_u64())
    }

    /// Runs the tape backwards from `output`, whose gradient is `gradient` (shaped as it), and adds the gradients of
    /// the trainable tensors to `gradients`.
    ///
    /// # Panics
    /// If `gradient` is not shaped as `output`.
    pub fn backward(self, output: Var, gradient: Matrix, gradients: &mut Gradients) {
        self.run_backward(output, gradient, gradients, None, Vec::new());
    }

    /// `inputs` holds, by number, the gradients so far of the inputs of the block that this tape runs again; returns them
    /// with what the block adds.
    pub(crate) fn run_backward(
        mut self,
        output: Var,
        gradient: Matrix,
        gradients: &mut Gradients,
        rerun: Option<&dyn Fn(&mut Tape)>,
        mut inputs: Vec<Option<Matrix>>,
    ) -> Vec<Option<Matrix>> {
        assert_eq!(output.value.shape(), gradient.shape(), "a gradient is shaped as its value");
        let Some(root) = output.node else { return inputs };
        drop(output);
        self.shared.clear();
        let mut pending: Vec<Option<Arc<Matrix>>> = vec![None; self.entries.len()];
        for (entry, pending) in self.entries.iter().zip(&mut pending) {
            if let Entry::Input(number) = entry {
                *pending = inputs[*number].take().map(Arc::new);
            }
        }
        pending[root.0] = Some(Arc::new(gradient));
        while let Some(entry) = self.entries.pop() {
            let Some(gradient) = pending.pop().flatten() else { continue };
            let mut flow =
                Flow { workspace: &self.workspace, entries: &self.entries, pending: &mut pending, gradients };
            match entry {
                Entry::Parameter(id) => gradients.add(id, &gradient),
                Entry::Operation(name, operation) => {
                    operation.backward(gradient, &mut flow);
                    if let Some(stopwatch) = &mut self.stopwatch {
                        stopwatch.lap(name, Direction::Backward);
                    }
                }
                Entry::Block(checkpoint) => {
                    let rerun = rerun.expect("a checkpointing tape goes back by `backward_rerunning`");
                    let tape = Self { dropout: self.dropout, ..Self::differentiating(&self.workspace) };
                    let gradient = owned(gradient, &self.workspace);
                    checkpoint.backward(tape, rerun, gradient, &mut flow);
                    if let Some(stopwatch) = &mut self.stopwatch {
                        stopwatch.skip();
                    }
                }
                Entry::Input(number) => inputs[number] = Some(owned(gradient, &self.workspace)),
            }
        }
        inputs
    }

    /// Runs the tape backwards from a scalar `[1, 1]`, scaled by `scale`.
    pub fn backward_scalar(self, loss: Var, scale: f32, gradients: &mut Gradients) {
        self.backward(loss, Matrix::from_vec(1, 1, vec![scale]), gradients);
    }
}

/// Where gradients go on the way back.
pub(crate) struct Flow<'a> {
    workspace: &'a Workspace,
    entries: &'a [Entry],
    pending: &'a mut Vec<Option<Arc<Matrix>>>,
    gradients: &'a mut Gradients,
}

impl Flow<'_> {
    pub(crate) fn workspace(&self) -> &Workspace {
        self.workspace
    }

    pub(crate) fn gradients(&mut self) -> &mut Gradients {
        self.gradients
    }

    /// Where the gradient of a value goes.
    pub(crate) fn destination(&self, node: NodeId) -> Destination {
        match &self.entries[node.0] {
            Entry::Parameter(id) => Destination::Parameter(*id),
            _ => Destination::Value,
        }
    }

    /// The gradient so far of a value, which begins anew.
    pub(crate) fn take(&mut self, node: Option<NodeId>) -> Option<Matrix> {
        self.pending[node?.0].take().map(|gradient| owned(gradient, self.workspace))
    }

    /// A gradient for changing: itself where this was its last user, otherwise a copy.
    pub(crate) fn owned(&self, gradient: Arc<Matrix>) -> Matrix {
        owned(gradient, self.workspace)
    }

    /// Adds a whole gradient, which may have other users.
    pub(crate) fn add(&mut self, input: Option<NodeId>, gradient: impl Into<Arc<Matrix>>) {
        let Some(node) = input else { return };
        let gradient = gradient.into();
        match &self.entries[node.0] {
            Entry::Parameter(id) => self.gradients.add(*id, &gradient),
            _ => match &mut self.pending[node.0] {
                Some(sum) => add_assign(unshared(sum, self.workspace), &gradient),
                empty => *empty = Some(gradient),
            },
        }
    }

    /// Lets `write` add to the gradient of `input`, shaped `shape`, in place. It gets the matrix and `beta`: 0 where
    /// the matrix holds nothing yet and every value must be written, 1 where it must be added to.
    pub(crate) fn accumulate(
        &mut self,
        input: Option<NodeId>,
        shape: (usize, usize),
        write: impl FnOnce(&Workspace, &mut Matrix, f32),
    ) {
        let Some(node) = input else { return };
        match &self.entries[node.0] {
            Entry::Parameter(id) => self.gradients.accumulate(*id, shape, write),
            _ => match &mut self.pending[node.0] {
                Some(sum) => write(self.workspace, unshared(sum, self.workspace), 1.0),
                empty => {
                    let mut matrix = Matrix::uninitialised(self.workspace, shape.0, shape.1);
                    write(self.workspace, &mut matrix, 0.0);
                    *empty = Some(Arc::new(matrix));
                }
            },
        }
    }

    /// Adds `gradient` to rows `rows` of the gradient of `input`, which has `shape`.
    pub(crate) fn add_rows(
        &mut self,
        input: Option<NodeId>,
        shape: (usize, usize),
        rows: Range<usize>,
        gradient: &Matrix,
    ) {
        self.accumulate(input, shape, |_, sum, beta| {
            if beta == 0.0 {
                sum.data_mut().fill(0.0);
            }
            let cols = sum.cols();
            let target = &mut sum.data_mut()[rows.start * cols..rows.end * cols];
            target.iter_mut().zip(gradient.data()).for_each(|(sum, value)| *sum += value);
        });
    }
}

/// `sum ← sum + value`.
pub(crate) fn add_assign(sum: &mut Matrix, value: &Matrix) {
    assert_eq!(sum.shape(), value.shape(), "gradients of one value share a shape");
    let cols = sum.cols();
    for_each_row_block(
        sum.data_mut(),
        cols,
        #[inline(always)]
        |first, rows| {
            let other = &value.data()[first * cols..first * cols + rows.len()];
            rows.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
        },
    );
}
