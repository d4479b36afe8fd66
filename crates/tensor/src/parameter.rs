//! Trainable tensors and their gradients.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use crate::Matrix;
use crate::tape::add_assign;
use crate::workspace::Workspace;

/// Identifies a trainable tensor within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParameterId(u64);

/// A trainable tensor: a matrix with a name. Being a `Parameter` is what makes a tensor trainable; nothing else is.
///
/// A clone is the same tensor, not a copy of it: tuners of several sites may hold one tensor, whose gradient is then the
/// sum over the sites.
#[derive(Clone, Debug)]
pub struct Parameter {
    tensor: Arc<Tensor>,
}

#[derive(Debug)]
struct Tensor {
    id: ParameterId,
    name: String,
    is_vector: bool,
    value: RwLock<Arc<Matrix>>,
}

impl Parameter {
    /// A trainable matrix; `name` is its key in the adapter file.
    pub fn new(name: impl Into<String>, value: Matrix) -> Self {
        Self::of(name.into(), value, false)
    }

    /// A trainable vector from `value` `[1, n]`, which files hold with the shape `[n]`.
    ///
    /// # Panics
    /// If `value` has not one row.
    pub fn vector(name: impl Into<String>, value: Matrix) -> Self {
        assert_eq!(value.rows(), 1, "a vector is kept as one row");
        Self::of(name.into(), value, true)
    }

    fn of(name: String, value: Matrix, is_vector: bool) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = ParameterId(NEXT.fetch_add(1, Ordering::Relaxed));
        Self { tensor: Arc::new(Tensor { id, name, is_vector, value: RwLock::new(Arc::new(value)) }) }
    }

    /// Its identity, for looking up its gradient.
    pub fn id(&self) -> ParameterId {
        self.tensor.id
    }

    /// Its key in the adapter file.
    pub fn name(&self) -> &str {
        &self.tensor.name
    }

    /// Whether it is a vector in PyTorch, such as a bias or the weight of a norm.
    pub fn is_vector(&self) -> bool {
        self.tensor.is_vector
    }

    /// Its shape in files: `[columns]` for a vector, else `[rows, columns]`.
    pub fn shape(&self) -> Vec<usize> {
        let value = self.value();
        if self.is_vector() { vec![value.cols()] } else { vec![value.rows(), value.cols()] }
    }

    /// Its value.
    pub fn value(&self) -> Arc<Matrix> {
        Arc::clone(&self.tensor.value.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Its value, for an update. It is copied first if someone else, such as a tape, still holds it.
    pub fn value_mut(&mut self) -> ValueMut<'_> {
        ValueMut(self.tensor.value.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The value of a trainable tensor while it is updated.
#[derive(Debug)]
pub struct ValueMut<'a>(RwLockWriteGuard<'a, Arc<Matrix>>);

impl Deref for ValueMut<'_> {
    type Target = Matrix;

    fn deref(&self) -> &Matrix {
        &self.0
    }
}

impl DerefMut for ValueMut<'_> {
    fn deref_mut(&mut self) -> &mut Matrix {
        Arc::make_mut(&mut self.0)
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

    /// Forgets all gradients, whose memory the next pass takes for its values.
    pub fn clear(&mut self) {
        self.by_parameter.clear();
    }

    /// Lets `write` add to the gradient of a parameter in place. It gets the matrix and `beta`: 0 where the matrix holds
    /// nothing yet and every value must be written, 1 where it must be added to.
    pub(crate) fn accumulate(
        &mut self,
        parameter: ParameterId,
        shape: (usize, usize),
        write: impl FnOnce(&Workspace, &mut Matrix, f32),
    ) {
        match self.by_parameter.entry(parameter) {
            Entry::Occupied(sum) => write(&self.workspace, sum.into_mut(), 1.0),
            Entry::Vacant(place) => {
                let mut matrix = Matrix::uninitialised(&self.workspace, shape.0, shape.1);
                write(&self.workspace, &mut matrix, 0.0);
                place.insert(matrix);
            }
        }
    }

    /// Adds a whole gradient.
    pub(crate) fn add(&mut self, parameter: ParameterId, gradient: &Matrix) {
        self.accumulate(parameter, gradient.shape(), |_, sum, beta| {
            if beta == 0.0 {
                sum.data_mut().copy_from_slice(gradient.data());
            } else {
                add_assign(sum, gradient);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tape;

    #[test]
    fn a_clone_is_the_same_tensor_and_what_holds_its_value_keeps_it() {
        let mut first = Parameter::new("w", Matrix::from_vec(1, 2, vec![1.0, 2.0]));
        let second = first.clone();
        let held = second.value();
        first.value_mut().data_mut()[0] = 5.0;
        assert_eq!(second.value().data(), [5.0, 2.0]);
        assert_eq!(held.data(), [1.0, 2.0]);
        assert_eq!((first.shape(), Parameter::vector("b", Matrix::zeros(1, 3)).shape()), (vec![1, 2], vec![3]));
    }

    #[test]
    fn gradients_of_clones_add_up() {
        let workspace = Workspace::new();
        let parameter = Parameter::new("w", Matrix::from_vec(1, 2, vec![1.0, 2.0]));
        let mut tape = Tape::differentiating(&workspace);
        let (first, second) = (tape.parameter(&parameter), tape.parameter(&parameter.clone()));
        let sum = tape.add(&first, second);
        let mut gradients = Gradients::new(&workspace);
        tape.backward(sum, Matrix::from_vec(1, 2, vec![1.0, 3.0]), &mut gradients);
        assert_eq!(gradients.get(parameter.id()).unwrap().data(), [2.0, 6.0]);
    }
}
