//! A pool of float buffers that lives across steps.
//!
//! The first touch of fresh memory costs more than most row-wise operations (a page fault every 4 KiB), so a buffer
//! that an operation no longer needs goes back to the pool and the next operation of a similar size takes it. In the
//! steady state a training step touches no fresh page.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use crate::kernels::Kernels;

/// Buffers for reuse, and the kernels that work on them. Cheap to clone; clones share the pool.
#[derive(Clone, Debug)]
pub struct Workspace {
    pool: Arc<Pool>,
    kernels: Kernels,
}

impl Workspace {
    /// An empty pool, with the fastest kernels that this processor runs.
    pub fn new() -> Self {
        Self::with_kernels(Kernels::detect())
    }

    /// An empty pool with the given kernels.
    pub fn with_kernels(kernels: Kernels) -> Self {
        Self { pool: Arc::default(), kernels }
    }

    /// The kernels that operations on this workspace use.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// A buffer of `len` floats with unspecified (initialised, possibly stale) contents.
    pub(crate) fn take(&self, len: usize) -> Buffer {
        let class = size_class(len);
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        let data = free.get_mut(&class).and_then(Vec::pop);
        drop(free);
        let data = data.unwrap_or_else(|| vec![0.0; class]);
        Buffer { data, len, pool: Some(Arc::clone(&self.pool)) }
    }

    /// Bytes that lie in the pool, waiting for reuse.
    pub fn idle_bytes(&self) -> usize {
        let free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.iter().map(|(class, buffers)| class * buffers.len() * size_of::<f32>()).sum()
    }

    /// Gives the idle buffers back to the operating system.
    pub fn trim(&self) {
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Default for Workspace {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug, Default)]
struct Pool {
    /// Free buffers by size class.
    free: Mutex<BTreeMap<usize, Vec<Vec<f32>>>>,
}

/// Rounds up to one of eight sizes an octave, so that batches of slightly different lengths share buffers and at most
/// an eighth of a buffer is wasted.
fn size_class(len: usize) -> usize {
    const SMALLEST: usize = 64;
    let len = len.max(SMALLEST);
    let step = (len.next_power_of_two() / 16).max(SMALLEST / 8);
    len.div_ceil(step) * step
}

/// Floats that return to their pool when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    data: Vec<f32>,
    len: usize,
    pool: Option<Arc<Pool>>,
}

impl Buffer {
    /// Wraps a vector that belongs to no pool.
    pub(crate) fn from_vec(data: Vec<f32>) -> Self {
        Self { len: data.len(), data, pool: None }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            let data = std::mem::take(&mut self.data);
            let mut free = pool.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.entry(data.len()).or_default().push(data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_the_next_one_of_its_class() {
        let workspace = Workspace::new();
        let first = workspace.take(1000);
        let address = first.as_ptr();
        drop(first);
        assert!(workspace.idle_bytes() >= 4000);
        let second = workspace.take(1001);
        assert_eq!(second.as_ptr(), address);
        assert_eq!(second.len(), 1001);
        assert_eq!(workspace.idle_bytes(), 0);
    }

    #[test]
    fn size_classes_waste_at_most_an_eighth() {
        for len in (64..5000).chain([1 << 20, (1 << 20) + 1, 123_456_789]) {
            let class = size_class(len);
            assert!(class >= len && class - len <= len / 8 + 8, "{len} -> {class}");
        }
    }
}
