//! A pool of float buffers that lives across steps.
//!
//! The first touch of fresh memory costs more than most row-wise operations (a page fault every 4 KiB), so a buffer
//! that an operation no longer needs goes back to the pool and the next operation of a similar size takes it. In the
//! steady state a training step touches no fresh page.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use crate::awake;
use crate::kernels::Kernels;
use crate::profile::Profile;

/// Buffers for reuse, and the kernels that work on them. Cheap to clone; clones share the pool.
#[derive(Clone, Debug)]
pub struct Workspace {
    pool: Arc<Pool>,
    kernels: Kernels,
    profile: Option<Profile>,
    checkpointing: bool,
}

impl Workspace {
    /// An empty pool, with the fastest kernels that this processor runs.
    pub fn new() -> Self {
        Self::with_kernels(Kernels::detect())
    }

    /// An empty pool with the given kernels.
    pub fn with_kernels(kernels: Kernels) -> Self {
        Self { pool: Arc::default(), kernels, profile: None, checkpointing: false }
    }

    /// An empty pool, with the fastest kernels for products in `precision`.
    pub fn with_precision(precision: crate::Precision) -> Self {
        Self::with_kernels(Kernels::detect().with_precision(precision))
    }

    /// The kernels that operations on this workspace use.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// The same workspace, whose passes that train keep only the inputs of a model's blocks, and run each block again on
    /// the way back: less memory for a third more time.
    pub fn checkpointing(self, checkpointing: bool) -> Self {
        Self { checkpointing, ..self }
    }

    /// Whether passes that train keep only the inputs of blocks.
    pub fn is_checkpointing(&self) -> bool {
        self.checkpointing
    }

    /// The same buffers, with other kernels.
    pub fn computing_with(self, kernels: Kernels) -> Self {
        Self { kernels, ..self }
    }

    /// The same workspace, whose tapes add what their operations take to `profile`.
    pub fn profiled(self, profile: &Profile) -> Self {
        Self { profile: Some(profile.clone()), ..self }
    }

    /// Where tapes add their times; `None` where nothing is timed.
    pub(crate) fn profile(&self) -> Option<&Profile> {
        self.profile.as_ref()
    }

    /// A buffer of `len` floats, aligned to cache lines, with unspecified (initialised, possibly stale) contents.
    pub(crate) fn take(&self, len: usize) -> Buffer {
        let class = size_class(len);
        let data = self.pool.take(class).unwrap_or_else(|| fresh(class));
        let start = data.as_ptr().align_offset(alignment(class) * size_of::<f32>());
        Buffer { data, start, len, pool: Some(Arc::clone(&self.pool)) }
    }

    /// Runs `work` on a thread of the pool. Operations that begin there share their work at once; from any other thread
    /// each of them would hand over and wait. The pool's other threads stay awake meanwhile: a pass is hundreds of short
    /// operations, and waking a thread can take longer than one of them.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        awake::run(work)
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

impl Pool {
    /// A free buffer of at least `class` floats and at most twice as many: batches differ in length, and a short one
    /// takes the buffers of a long one. Where there is none, free buffers that the new one outgrows are given up in
    /// exchange, so that the pool holds what the longest batch needs and not the sum over all lengths.
    fn take(&self, class: usize) -> Option<Vec<f32>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = free.range(class..=2 * class).find(|(_, buffers)| !buffers.is_empty()).map(|(size, _)| *size);
        if let Some(size) = fitting {
            return free.get_mut(&size).and_then(Vec::pop);
        }
        let mut given_up = 0;
        for (size, buffers) in free.range_mut(class / 2..class).rev() {
            while given_up < class && buffers.pop().is_some() {
                given_up += size;
            }
        }
        None
    }
}

/// Floats of a cache line, to which buffers are aligned.
pub(crate) const LINE: usize = 16;
/// Floats of a large page, to which buffers of that size or more are aligned.
const PAGE: usize = (2 << 20) / size_of::<f32>();

/// Floats that a buffer of `class` floats is aligned to.
pub(crate) fn alignment(class: usize) -> usize {
    if class >= PAGE { PAGE } else { LINE }
}

/// The class of a buffer of the pool.
fn class_of(data: &[f32]) -> usize {
    data.len() - if data.len() >= 2 * PAGE { PAGE } else { LINE }
}

/// A new buffer of `class` floats, not touched yet. Its whole large pages are asked for as such: that is one page fault in
/// place of 512, and rows that lie far apart still share pages.
pub(crate) fn fresh(class: usize) -> Vec<f32> {
    zeros(class + alignment(class))
}

/// `len` zeros, not touched yet, on large pages as far as they fill such. A walk over values on pages of 4 KiB looks up the
/// table of pages at every 64th line, which on a virtual machine takes about as long as reading them.
pub fn zeros(len: usize) -> Vec<f32> {
    let data = vec![0.0; len];
    #[cfg(target_os = "linux")]
    {
        let start = data.as_ptr().align_offset(PAGE * size_of::<f32>());
        let whole = len.saturating_sub(start) / PAGE * PAGE;
        if whole > 0 {
            #[allow(unsafe_code)]
            // SAFETY: the range lies in the vector; the call changes how its memory is backed, not what it holds. Where
            // it fails, small pages do.
            unsafe {
                let bytes = whole * size_of::<f32>();
                libc::madvise(data.as_ptr().add(start).cast_mut().cast(), bytes, libc::MADV_HUGEPAGE);
            }
        }
    }
    data
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
    start: usize,
    len: usize,
    pool: Option<Arc<Pool>>,
}

impl Buffer {
    /// Wraps a vector that belongs to no pool.
    pub(crate) fn from_vec(data: Vec<f32>) -> Self {
        Self { start: 0, len: data.len(), data, pool: None }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.start..self.start + self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            let data = std::mem::take(&mut self.data);
            let mut free = pool.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.entry(class_of(&data)).or_default().push(data);
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
    fn a_short_batch_takes_the_buffer_of_a_long_one_and_a_longer_one_replaces_it() {
        let workspace = Workspace::new();
        drop(workspace.take(1000));
        let held = workspace.idle_bytes();
        let short = workspace.take(600);
        assert_eq!((short.len(), workspace.idle_bytes()), (600, 0));
        drop(short);
        assert_eq!(workspace.idle_bytes(), held);
        let long = workspace.take(1500);
        assert_eq!(workspace.idle_bytes(), 0, "the outgrown buffer is given up");
        drop(long);
        assert!(workspace.idle_bytes() >= 6000);
    }

    #[test]
    fn size_classes_waste_at_most_an_eighth() {
        for len in (64..5000).chain([1 << 20, (1 << 20) + 1, 123_456_789]) {
            let class = size_class(len);
            assert!(class >= len && class - len <= len / 8 + 8, "{len} -> {class}");
        }
    }
}
