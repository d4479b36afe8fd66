//! Trainable tensors and their gradients.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Matrix;
use crate::workspace::Workspace;

/// Identifies a trainable tensor within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParameterId(u64);

/// A trainable tensor: a matrix with a name. Being a `Parameter` is what makes a tensor trainable; nothing else is.
#[derive(Debug)]
pub struct Parameter {
    id: ParameterId,
    name: String,
    value: Arc<Matrix>,
}

impl Parameter {
    /// A trainable tensor; `name` is its key in the adapter file.
    pub fn new(name: impl Into<String>, value: Matrix) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = ParameterId(NEXT.fetch_add(1, Ordering::Relaxed));
        Self { id, name: name.into(), value: Arc::new(value) }
    }

    /// Its identity, for looking up its gradient.
    pub fn id(&self) -> ParameterId {
        self.id
    }

    /// Its key in the adapter file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its value.
    pub fn value(&self) -> &Matrix {
        &self.value
    }

    /// Its value, for an update. Copies it first if a tape still holds it.
    pub fn value_mut(&mut self) -> &mut Matrix {
        Arc::make_mut(&mut self.value)
    }

    pub(crate) fn shared_value(&self) -> Arc<Matrix> {
        Arc::clone(&self.value)
    }
}

/// Gradients of trainable tensors, accumulated over one or more backward passes.
#[derive(Debug)]
pub struct Gradients {
    workspace: Workspace,
    by_parameter: HashMap<ParameterId, Matrix>,
}

impl Gradients {
    /// No gradients yet.
    pub fn new(workspace: &Workspace) -> Self {
        Self { workspace: workspace.clone(), by_parameter: HashMap::new() }
    }

    /// The gradient of a parameter, shaped as its value; `None` where no backward pass has reached it.
    pub fn get(&self, parameter: ParameterId) -> Option<&Matrix> {
        self.by_parameter.get(&parameter)
    }

    /// The gradient of a parameter, shaped as its value; `None` where no backward pass has reached it.
    pub fn get_mut(&mut self, parameter: ParameterId) -> Option<&mut Matrix> {
        self.by_parameter.get_mut(&parameter)
    }

    /// Sets all gradients to zero and keeps their buffers.
    pub fn clear(&mut self) {
        self.by_parameter.clear();
    }

    /// The accumulator of a parameter, zero at first.
    pub(crate) fn accumulator(&mut self, parameter: ParameterId, shape: (usize, usize)) -> &mut Matrix {
        let workspace = &self.workspace;
        self.by_parameter.entry(parameter).or_insert_with(|| Matrix::zeros_in(workspace, shape.0, shape.1))
    }
}
