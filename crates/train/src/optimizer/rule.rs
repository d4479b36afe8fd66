//! What an optimiser is but for bookkeeping: its name, its state, and one update of one tensor.

use std::fmt::Debug;

use super::state::StateTensor;

/// A rule by which a tensor follows its gradient.
pub trait UpdateRule: Debug + Send + Sync {
    /// Its name, the value of `optim`.
    fn name(&self) -> &'static str;

    /// The state of a tensor of that shape before its first update.
    fn state(&self, rows: usize, cols: usize) -> Vec<StateTensor>;

    /// One update of `values` by `gradient`, both `[rows, cols]`; `state` is what [`UpdateRule::state`] made, as the
    /// update before left it. The result does not depend on the number of threads.
    fn update(&self, update: &Update, values: &mut [f32], gradient: &[f32], state: &mut [StateTensor]);
}

/// What an update of one tensor needs beside gradient and state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Which update it is, from 1.
    pub number: u64,
    /// What the gradient is multiplied by first.
    pub gradient_scale: f32,
    /// The tensor's learning rate.
    pub learning_rate: f64,
    /// The tensor's weight decay.
    pub weight_decay: f64,
    /// Rows and columns.
    pub shape: (usize, usize),
}
