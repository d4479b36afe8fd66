//! Memory for what lives long and is read again and again: weights and adapters.
//!
//! Such values lie side by side in slabs of whole large pages. A tensor on its own is often smaller than such a page, and
//! on pages of 4 KiB a pass over all of a model's weights misses the table of pages at every second line of memory: it
//! then reaches two thirds of the speed.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use crate::workspace::{LINE, alignment, fresh};

/// Hands out pieces of slabs, one after the other. A slab is given back once all of its pieces are dropped.
#[derive(Debug)]
pub(crate) struct Shelf {
    slab: Option<Arc<Slab>>,
    /// Floats of the slab that are taken.
    used: usize,
    /// Floats of a new slab.
    size: usize,
}

/// A run of values on a shelf.
#[derive(Debug)]
pub(crate) struct Shelved<T> {
    slab: Arc<Slab>,
    /// In floats from where the slab begins.
    start: usize,
    /// In values.
    len: usize,
    values: PhantomData<T>,
}

/// Values that any bits are, aligned to a cache line at the most.
///
/// # Safety
/// Every pattern of bits is a value, there are no bits between values, and a slab's pieces are aligned enough.
#[allow(unsafe_code)]
pub(crate) unsafe trait Plain: Copy + Send + Sync {}

// SAFETY: any bits are a float, and floats lie close together.
#[allow(unsafe_code)]
unsafe impl Plain for f32 {}
// SAFETY: any bits are an integer, and integers lie close together.
#[allow(unsafe_code)]
unsafe impl Plain for u32 {}

// SAFETY: any bits are a byte.
#[allow(unsafe_code)]
unsafe impl Plain for u8 {}

#[derive(Debug)]
struct Slab {
    /// Where the first piece lies.
    start: *mut f32,
    floats: usize,
    /// What `start` points into.
    _memory: Vec<f32>,
}

// SAFETY: a slab's memory is reached through pieces alone, which don't overlap and hand out references as borrows of
// themselves.
#[allow(unsafe_code)]
unsafe impl Send for Slab {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Slab {}

impl Shelf {
    /// A shelf that takes memory for `floats` floats at a time.
    pub(crate) const fn new(floats: usize) -> Self {
        Self { slab: None, used: 0, size: floats }
    }

    /// `len` values of zero bits. Large pieces get slabs of their own.
    pub(crate) fn take<T: Plain>(&mut self, len: usize) -> Shelved<T> {
        let floats = (len * size_of::<T>()).div_ceil(size_of::<f32>()).next_multiple_of(LINE);
        let piece = |slab: &Arc<Slab>, start| Shelved { slab: Arc::clone(slab), start, len, values: PhantomData };
        if let Some(slab) = self.slab.as_ref().filter(|slab| self.used + floats <= slab.floats) {
            let start = self.used;
            self.used += floats;
            return piece(slab, start);
        }
        if floats > self.size / 4 {
            return piece(&Arc::new(Slab::new(floats)), 0);
        }
        self.used = floats;
        piece(self.slab.insert(Arc::new(Slab::new(self.size))), 0)
    }
}

impl Slab {
    fn new(floats: usize) -> Self {
        let mut memory = fresh(floats);
        let offset = memory.as_ptr().align_offset(alignment(floats) * size_of::<f32>());
        Self { start: memory[offset..].as_mut_ptr(), floats, _memory: memory }
    }
}

impl<T: Plain> Shelved<T> {
    fn pointer(&self) -> *mut T {
        self.slab.start.wrapping_add(self.start).cast()
    }

    /// The weights' shelf: `len` values of zero bits.
    pub(crate) fn weight(len: usize) -> Self {
        /// 32 MiB.
        static WEIGHTS: Mutex<Shelf> = Mutex::new(Shelf::new(8 << 20));
        WEIGHTS.lock().unwrap_or_else(PoisonError::into_inner).take(len)
    }
}

impl<T> Default for Shelved<T> {
    fn default() -> Self {
        Self { slab: Arc::new(Slab::new(0)), start: 0, len: 0, values: PhantomData }
    }
}

impl<T: Plain> Deref for Shelved<T> {
    type Target = [T];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[T] {
        // SAFETY: the piece lies in its slab, which lives as long as this, and is aligned to a cache line; any bits are
        // values. Only this piece writes to it, and not while it is borrowed.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.len) }
    }
}

impl<T: Plain> DerefMut for Shelved<T> {
    #[allow(unsafe_code)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; pieces of a slab don't overlap, and this one is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_zero_and_do_not_overlap() {
        for size in [100, 4096, 3 << 20] {
            let mut shelf = Shelf::new(size);
            let mut pieces: Vec<Shelved<u32>> = Vec::new();
            for len in [0, 1, 7, 16, 17, 1000, 5, 2_000_000, 33] {
                let mut piece = shelf.take::<u32>(len);
                assert!(piece.len() == len && piece.iter().all(|value| *value == 0), "{len} of {size}");
                assert!(len == 0 || piece.as_ptr().align_offset(64) == 0);
                piece.fill(len as u32 + 1);
                pieces.push(piece);
            }
            for piece in &pieces {
                assert!(piece.iter().all(|value| *value == piece.len() as u32 + 1));
            }
        }
    }

    #[test]
    fn small_pieces_share_a_slab_which_outlives_the_shelf() {
        let mut shelf = Shelf::new(4096);
        let (first, second, large) = (shelf.take::<f32>(100), shelf.take::<f32>(100), shelf.take::<f32>(3000));
        assert!(Arc::ptr_eq(&first.slab, &second.slab));
        assert!(Arc::ptr_eq(&first.slab, &large.slab), "there was room");
        let apart = shelf.take::<f32>(2000);
        assert!(!Arc::ptr_eq(&first.slab, &apart.slab));
        assert!(Arc::ptr_eq(&first.slab, &shelf.take::<f32>(100).slab), "a large piece does not end the slab");
        let slab = Arc::downgrade(&first.slab);
        drop((shelf, second, large));
        assert_eq!(first.iter().sum::<f32>(), 0.0);
        drop(first);
        assert!(slab.upgrade().is_none(), "the last piece gives the slab back");
    }
}
