//! A pool of float buffers that lives across steps.
//!
//! The first touch of fresh memory costs more than most row-wise operations, so a buffer that an operation no longer needs
//! goes back to the pool and another operation takes its place. In the steady state a training step touches no fresh page.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::arena::{Arena, Piece};
use crate::awake;
use crate::kernels::Kernels;
use crate::profile::Profile;

/// Buffers for reuse, and the kernels that work on them. Cheap to clone; clones share the pool.
#[derive(Clone, Debug)]
pub struct Workspace {
    pool: Arc<Arena>,
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
        Buffer(Memory::Piece(self.pool.take(len)))
    }

    /// Runs `work` on a thread of the pool. Operations that begin there share their work at once; from any other thread
    /// each of them would hand over and wait. The pool's other threads stay awake meanwhile: a pass is hundreds of short
    /// operations, and waking a thread can take longer than one of them.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        awake::run(work)
    }

    /// Bytes that lie in the pool, waiting for reuse.
    pub fn idle_bytes(&self) -> usize {
        self.pool.idle_bytes()
    }

    /// Gives idle memory back to the operating system, as far as no buffer lies beside it.
    pub fn trim(&self) {
        self.pool.trim();
    }
}

impl Default for Workspace {
    fn default() -> Self {
        Self::new()
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

/// Floats that return to their workspace when dropped.
#[derive(Debug)]
pub(crate) struct Buffer(Memory);

#[derive(Debug)]
enum Memory {
    Own(Vec<f32>),
    Piece(Piece),
}

impl Buffer {
    /// Wraps a vector that belongs to no workspace.
    pub(crate) fn from_vec(data: Vec<f32>) -> Self {
        Self(Memory::Own(data))
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.0 {
            Memory::Own(data) => data,
            Memory::Piece(piece) => piece.values(),
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.0 {
            Memory::Own(data) => data,
            Memory::Piece(piece) => piece.values_mut(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_buffer_takes_the_place_of_a_dropped_one() {
        let workspace = Workspace::new();
        let first = workspace.take(1000);
        let address = first.as_ptr();
        let idle = workspace.idle_bytes();
        drop(first);
        assert!(workspace.idle_bytes() >= idle + 4000);
        let second = workspace.take(1001);
        assert_eq!((second.as_ptr(), second.len()), (address, 1001));
        drop(second);
        workspace.trim();
        assert_eq!(workspace.idle_bytes(), 0);
    }
}
