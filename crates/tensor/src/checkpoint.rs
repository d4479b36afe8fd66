//! Gradient checkpointing (Chen et al. 2016): of each block of a model only the inputs are kept, and backward runs the
//! block again before it goes through it. Dropout draws the same masks again, so gradients are the same to the bit.
//!
//! A block is what a model runs within [`Forward::block`](crate::Forward::block). Forward, a checkpointing tape records
//! nothing inside it. Backward, it runs the whole model again on a tape of its own, on which all blocks but one are
//! passed over: what lies between blocks is little.

use std::sync::Arc;

use crate::parameter::{Gradients, ParameterId};
use crate::tape::{Entry, Flow, NodeId};
use crate::{Matrix, Tape, Var};

/// How a tape treats blocks.
#[derive(Default)]
pub(crate) enum Blocks {
    /// Records what they do.
    #[default]
    Recorded,
    /// Keeps their inputs.
    Kept {
        /// Blocks so far.
        count: usize,
        /// Whether the block under way has met a trainable tensor.
        trainable: bool,
    },
    /// Passes over all but one.
    Replayed(Replay),
}

/// The block to run again.
pub(crate) struct Replay {
    block: usize,
    inputs: Vec<Arc<Matrix>>,
    /// Where the gradient of each input goes; `None` where nobody wants it.
    destinations: Vec<Option<Destination>>,
    dropouts: u64,
    /// Blocks met so far.
    count: usize,
    output: Option<Var>,
}

/// Where the gradient of an input of a block goes: added up at once, in the order of a tape that records everything.
#[derive(Clone, Copy)]
pub(crate) enum Destination {
    /// To the gradients of trainable tensors.
    Parameter(ParameterId),
    /// To the value's place on the tape that keeps the block.
    Value,
    /// To where that of an earlier input goes, which is the same value.
    Input(usize),
}

/// A block on the tape that keeps its inputs.
pub(crate) struct Checkpoint {
    block: usize,
    inputs: Vec<Arc<Matrix>>,
    nodes: Vec<Option<NodeId>>,
    /// Dropouts before the block.
    dropouts: u64,
}

/// How a block begins.
pub(crate) enum Begin {
    /// It runs on these inputs.
    Run(Vec<Var>, Begun),
    /// It is passed over; a value shaped as its output.
    Skip(Var),
}

/// A block under way.
pub(crate) enum Begun {
    /// Like any other operations.
    Recorded,
    /// Without being recorded.
    Kept(Checkpoint),
    /// Again, recorded.
    Replayed,
}

impl Tape {
    /// The same tape, keeping only the inputs of blocks; [`Tape::backward_rerunning`] goes back.
    #[must_use]
    pub fn checkpointing(mut self) -> Self {
        if self.recording {
            self.blocks = Blocks::Kept { count: 0, trainable: false };
        }
        self
    }

    /// Whether this tape runs one block again and passes over the others; what lies between them has no use.
    pub(crate) fn is_replaying(&self) -> bool {
        matches!(self.blocks, Blocks::Replayed(_)) && !self.recording
    }

    pub(crate) fn begin_block(&mut self, inputs: &[&Var]) -> Begin {
        let dropouts = self.dropouts;
        match &mut self.blocks {
            Blocks::Recorded => Begin::Run(inputs.iter().map(|input| (*input).clone()).collect(), Begun::Recorded),
            Blocks::Kept { count, trainable } => {
                let checkpoint = Checkpoint {
                    block: *count,
                    inputs: inputs.iter().map(|input| input.shared()).collect(),
                    nodes: inputs.iter().map(|input| input.node()).collect(),
                    dropouts,
                };
                (*count, *trainable) = (*count + 1, false);
                self.recording = false;
                self.shared.clear();
                let inputs = checkpoint.inputs.iter().map(|input| Var::new(Arc::clone(input), None)).collect();
                Begin::Run(inputs, Begun::Kept(checkpoint))
            }
            Blocks::Replayed(replay) => {
                replay.count += 1;
                if replay.count - 1 != replay.block {
                    return Begin::Skip(Var::new(inputs[0].shared(), None));
                }
                let (kept, destinations) = (std::mem::take(&mut replay.inputs), replay.destinations.clone());
                self.dropouts = replay.dropouts;
                self.recording = true;
                self.shared.clear();
                let first = self.entries.len();
                let leaf = |(place, (input, destination)): (usize, (Arc<Matrix>, Option<Destination>))| {
                    self.entries.push(match destination {
                        Some(Destination::Parameter(id)) => Entry::Parameter(id),
                        _ => Entry::Input(place),
                    });
                    let at = |destination| match destination {
                        Destination::Input(earlier) => NodeId::at(first + earlier),
                        _ => NodeId::at(first + place),
                    };
                    Var::new(input, destination.map(at))
                };
                Begin::Run(kept.into_iter().zip(destinations).enumerate().map(leaf).collect(), Begun::Replayed)
            }
        }
    }

    pub(crate) fn end_block(&mut self, begun: Begun, output: Var) -> Var {
        match begun {
            Begun::Recorded => output,
            Begun::Kept(checkpoint) => {
                self.recording = true;
                self.shared.clear();
                let Blocks::Kept { trainable, .. } = self.blocks else { return output };
                if !trainable && checkpoint.nodes.iter().all(Option::is_none) {
                    return output;
                }
                self.entries.push(Entry::Block(checkpoint));
                Var::new(output.shared(), Some(NodeId::at(self.entries.len() - 1)))
            }
            Begun::Replayed => {
                self.recording = false;
                self.shared.clear();
                let placeholder = Var::new(output.shared(), None);
                if let Blocks::Replayed(replay) = &mut self.blocks {
                    replay.output = Some(output);
                }
                placeholder
            }
        }
    }

    /// [`Tape::backward_scalar`] of a [`Tape::checkpointing`] tape, or any other: `rerun` runs the model's blocks, as they
    /// ran before, on the tape that it is given.
    ///
    /// # Panics
    /// If `rerun` passes other blocks.
    pub fn backward_rerunning(self, loss: Var, scale: f32, gradients: &mut Gradients, rerun: &dyn Fn(&mut Tape)) {
        self.run_backward(loss, Matrix::from_vec(1, 1, vec![scale]), gradients, Some(rerun), Vec::new());
    }
}

impl Checkpoint {
    /// Runs the block again, goes back through it, and adds the gradients of its inputs to `flow`. `tape` is a new one
    /// that draws the same masks.
    pub(crate) fn backward(self, mut tape: Tape, rerun: &dyn Fn(&mut Tape), gradient: Matrix, flow: &mut Flow<'_>) {
        let Self { block, inputs, nodes, dropouts } = self;
        let destination = |(place, node): (usize, &Option<NodeId>)| {
            let earlier = nodes[..place].iter().position(|earlier| earlier == node);
            node.map(|node| earlier.map_or_else(|| flow.destination(node), Destination::Input))
        };
        let destinations = nodes.iter().enumerate().map(destination).collect();
        tape.recording = false;
        tape.blocks = Blocks::Replayed(Replay { block, inputs, destinations, dropouts, count: 0, output: None });
        rerun(&mut tape);
        let Blocks::Replayed(Replay { output: Some(output), .. }) = std::mem::take(&mut tape.blocks) else {
            panic!("a model that runs again passes the same blocks");
        };
        let before = nodes.iter().map(|node| flow.take(*node)).collect();
        let after = tape.run_backward(output, gradient, flow.gradients(), Some(rerun), before);
        for (node, gradient) in nodes.into_iter().zip(after) {
            if let Some(gradient) = gradient {
                flow.add(node, gradient);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::finite_differences::random;
    use crate::{Forward, Gradients, Matrix, Parameter, Seed, Segments, Tape, Var, Workspace};

    const ROWS: usize = 40;

    /// Three blocks with dropout, of which the last also sees the first one's output, between two other operations.
    fn run(tape: &mut Tape, parameters: &[Parameter]) -> Var {
        let mut forward = Forward::new(tape, Segments::from_lengths([ROWS]), None);
        let x = forward.tape().parameter(&parameters[0]);
        let mut x = forward.tape().dropout(&x, 0.2);
        let mut first = None;
        for (number, weight) in parameters.iter().enumerate().skip(1) {
            let inputs: Vec<&Var> = std::iter::once(&x).chain(&first).collect();
            let output = forward.block(&inputs, |forward, inputs| {
                let tape = forward.tape();
                let weight = tape.parameter(weight);
                let y = tape.matmul_nt(&inputs[0], &weight);
                let y = tape.dropout(&y, 0.3);
                let y = inputs[1..].iter().fold(y, |y, other| tape.add(other, y));
                tape.add(&inputs[0], y)
            });
            if number == 1 {
                first = Some(output.clone());
            }
            x = output;
        }
        x
    }

    fn gradients(checkpointing: bool, trained: std::ops::Range<usize>) -> Vec<Option<Matrix>> {
        let workspace = Workspace::new();
        let shapes = [(ROWS, 8), (8, 8), (8, 8), (8, 8)];
        let parameters: Vec<Parameter> =
            (0..4).map(|index| Parameter::new("p", random(shapes[index].0, shapes[index].1, index as u64))).collect();
        let tape = Tape::training(&workspace, Seed(3));
        let mut tape = if checkpointing { tape.checkpointing() } else { tape };
        let hidden = run(&mut tape, &parameters);
        let weight = tape.constant(random(1, 8, 9));
        let scores = tape.matmul_nt(&hidden, &weight);
        let ones = tape.constant(Matrix::from_vec(1, ROWS, vec![1.0; ROWS]));
        let scores = tape.transpose(&scores);
        let loss = tape.matmul_nt(&ones, &scores);
        let mut gradients = Gradients::new(&workspace);
        tape.backward_rerunning(loss, 0.5, &mut gradients, &|tape| {
            run(tape, &parameters);
        });
        parameters[trained].iter().map(|parameter| gradients.get(parameter.id()).cloned()).collect()
    }

    #[test]
    fn gradients_are_those_without_checkpoints_to_the_bit() {
        let (kept, recorded) = (gradients(true, 0..4), gradients(false, 0..4));
        assert!(recorded.iter().all(Option::is_some));
        assert_eq!(kept, recorded);
    }

    #[test]
    fn a_block_without_anything_to_train_is_not_kept() {
        let workspace = Workspace::new();
        let mut tape = Tape::differentiating(&workspace).checkpointing();
        let x = tape.constant(random(2, 2, 0));
        let mut forward = Forward::new(&mut tape, Segments::from_lengths([2]), None);
        let y = forward.block(&[&x], |forward, inputs| forward.tape().add(&inputs[0], inputs[0].clone()));
        assert!(!y.needs_gradient());
    }
}
