//! Memory for buffers that come and go: pieces of a few large slabs, which lie on large pages.
//!
//! Pieces that are given back join their free neighbours, so that what was many small buffers serves as a few large ones:
//! the gradients of a pass take the place of the values that they were made from. The first touch of a page costs more than
//! most uses of what lies there; a slab is touched once. Some small pieces stay as they are, ready for the same thread.

mod drawers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::workspace::{LINE, zeros};
use drawers::{DRAWERS, Drawers};

/// Floats of a slab, at the least and at the most: as many as there are already in between.
const SMALLEST: usize = (2 << 20) / size_of::<f32>();
const LARGEST: usize = (256 << 20) / size_of::<f32>();
/// Floats from which a piece is a slab of its own.
const APART: usize = LARGEST / 4;

/// Slabs, and which parts of them are free. Each thread counts the pieces that it took for itself: threads that count on one
/// cache line wait for each other.
#[derive(Debug)]
pub(crate) struct Arena {
    memory: Arc<Memory>,
    owners: [Arc<Owner>; DRAWERS],
}

#[derive(Debug, Default)]
struct Memory {
    slabs: Mutex<Slabs>,
    drawers: Drawers,
}

/// What keeps the memory of a thread's pieces; how many hold it stands on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Owner(Arc<Memory>);

impl Default for Arena {
    fn default() -> Self {
        let memory = Arc::<Memory>::default();
        Self { owners: std::array::from_fn(|_| Arc::new(Owner(Arc::clone(&memory)))), memory }
    }
}

/// Some floats of a slab.
#[derive(Clone, Copy, Debug)]
struct Part {
    slab: usize,
    /// In the slab.
    start: usize,
    floats: usize,
    pointer: *mut f32,
}

// SAFETY: a part that is free is nobody's way to its memory, one in use is its piece's.
#[allow(unsafe_code)]
unsafe impl Send for Part {}

#[derive(Debug, Default)]
struct Slabs {
    by_number: BTreeMap<usize, Slab>,
    /// Of the next slab.
    number: usize,
    /// `(floats, slab, start)` of every free part of slabs that are shared.
    free: BTreeSet<(usize, usize, usize)>,
    /// `(floats, slab)` of every free slab that is one piece.
    apart: BTreeSet<(usize, usize)>,
    /// Floats of the slabs that are shared.
    shared: usize,
}

#[derive(Debug)]
struct Slab {
    memory: Vec<f32>,
    /// Where the first line of `memory` begins.
    first: *mut f32,
    floats: usize,
    /// Floats of the free parts, by where they start.
    free: BTreeMap<usize, usize>,
    is_apart: bool,
}

// SAFETY: a slab's memory is reached through pieces alone.
#[allow(unsafe_code)]
unsafe impl Send for Slab {}

/// Some floats of an arena, aligned to a cache line, which nobody else reaches; given back when dropped.
#[derive(Debug)]
pub(crate) struct Piece {
    owner: Arc<Owner>,
    part: Part,
    /// Floats asked for.
    len: usize,
}

// SAFETY: a piece is the only way to its memory, and hands out references as borrows of itself.
#[allow(unsafe_code)]
unsafe impl Send for Piece {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Piece {}

impl Arena {
    /// `len` floats with unspecified (initialised, possibly stale) contents.
    pub(crate) fn take(&self, len: usize) -> Piece {
        let size = drawers::size(len);
        let ready = size.and_then(|(number, _)| self.memory.drawers.take(number));
        let part = ready.unwrap_or_else(|| {
            let floats = size.map_or_else(|| len.next_multiple_of(LINE), |(_, floats)| floats);
            let mut slabs = self.memory.lock();
            let (slab, start, floats) = if floats > APART { slabs.take_apart(floats) } else { slabs.take(floats) };
            Part { slab, start, floats, pointer: slabs.by_number[&slab].first.wrapping_add(start) }
        });
        Piece { owner: Arc::clone(&self.owners[drawers::own()]), part, len }
    }

    /// Bytes that wait for reuse.
    pub(crate) fn idle_bytes(&self) -> usize {
        let slabs = self.memory.lock();
        let parts = slabs.free.iter().map(|(floats, ..)| floats);
        let free = parts.chain(slabs.apart.iter().map(|(floats, _)| floats)).sum::<usize>();
        (free + self.memory.drawers.floats()) * size_of::<f32>()
    }

    /// Gives slabs of which nothing is in use back to the operating system.
    pub(crate) fn trim(&self) {
        let mut slabs = self.memory.lock();
        self.memory.drawers.empty().into_iter().for_each(|part| slabs.give_back(part));
        let idle = |slab: &Slab| slab.free.get(&0) == Some(&slab.floats);
        let idle: Vec<usize> =
            slabs.by_number.iter().filter(|(_, slab)| idle(slab)).map(|(number, _)| *number).collect();
        idle.into_iter().for_each(|number| slabs.drop_idle(number));
    }
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Slabs> {
        self.slabs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slabs {
    /// A part of a shared slab, the smallest that is large enough: its slab, where it starts, and its floats.
    fn take(&mut self, floats: usize) -> (usize, usize, usize) {
        let found = self.free.range((floats, 0, 0)..).next().copied();
        let (size, number, start) = found.unwrap_or_else(|| {
            let size = self.shared.clamp(SMALLEST, LARGEST).max(floats);
            self.shared += size;
            (size, self.add(size, false), 0)
        });
        self.free.remove(&(size, number, start));
        let slab = self.by_number.get_mut(&number).expect("free parts are of slabs that exist");
        slab.free.remove(&start);
        if size > floats {
            slab.free.insert(start + floats, size - floats);
            self.free.insert((size - floats, number, start + floats));
        }
        (number, start, floats)
    }

    /// A slab of its own, up to twice as large. Where there is none, idle ones that are too small are given up in exchange:
    /// batches differ in length, and what the longest needs serves them all.
    fn take_apart(&mut self, floats: usize) -> (usize, usize, usize) {
        let found = self.apart.range((floats, 0)..=(2 * floats, usize::MAX)).next().copied();
        let (size, number) = found.unwrap_or_else(|| {
            let outgrown: Vec<usize> = self.apart.range(..(floats, 0)).map(|(_, number)| *number).collect();
            outgrown.into_iter().for_each(|number| self.drop_idle(number));
            (floats, self.add(floats, true))
        });
        self.apart.remove(&(size, number));
        self.by_number.get_mut(&number).expect("idle slabs exist").free.clear();
        (number, 0, size)
    }

    /// A new slab, all of it free.
    fn add(&mut self, floats: usize, is_apart: bool) -> usize {
        let number = self.number;
        self.number += 1;
        let mut memory = zeros(floats + LINE);
        let offset = memory.as_ptr().align_offset(LINE * size_of::<f32>());
        let first = memory[offset..].as_mut_ptr();
        self.by_number.insert(number, Slab { memory, first, floats, free: BTreeMap::from([(0, floats)]), is_apart });
        if is_apart {
            self.apart.insert((floats, number));
        } else {
            self.free.insert((floats, number, 0));
        }
        number
    }

    /// Joins a part with its free neighbours.
    fn give_back(&mut self, part: Part) {
        let Part { slab: number, mut start, mut floats, .. } = part;
        let slab = self.by_number.get_mut(&number).expect("slabs with pieces exist");
        if slab.is_apart {
            slab.free.insert(start, floats);
            self.apart.insert((floats, number));
            return;
        }
        let before = slab.free.range(..start).next_back().map(|(start, floats)| (*start, *floats));
        if let Some((first, size)) = before.filter(|(first, size)| first + size == start) {
            self.free.remove(&(size, number, first));
            (start, floats) = (first, size + floats);
        }
        if let Some(size) = slab.free.remove(&(start + floats)) {
            self.free.remove(&(size, number, start + floats));
            floats += size;
        }
        slab.free.insert(start, floats);
        self.free.insert((floats, number, start));
    }

    fn drop_idle(&mut self, number: usize) {
        let Some(Slab { floats, is_apart, memory, .. }) = self.by_number.remove(&number) else { return };
        drop(memory);
        if is_apart {
            self.apart.remove(&(floats, number));
        } else {
            self.free.remove(&(floats, number, 0));
            self.shared -= floats;
        }
    }
}

impl Piece {
    #[allow(unsafe_code)]
    pub(crate) fn values(&self) -> &[f32] {
        // SAFETY: the piece lies in its slab, which lives as long as it has pieces, and whose memory is initialised floats;
        // no other piece overlaps.
        unsafe { std::slice::from_raw_parts(self.part.pointer, self.len) }
    }

    #[allow(unsafe_code)]
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `values`, and this piece is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.part.pointer, self.len) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let Owner(memory) = &*self.owner;
        if let Some(part) = memory.drawers.keep(self.part) {
            memory.lock().give_back(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Seed;

    #[test]
    fn pieces_never_overlap_and_are_aligned() {
        let arena = Arena::default();
        let mut stream = Seed(0).stream("sizes", 0);
        let mut pieces: Vec<(Piece, f32)> = Vec::new();
        for number in 0..2000 {
            if stream.below(2) == 0 && !pieces.is_empty() {
                let (piece, value) = pieces.swap_remove(stream.below(pieces.len() as u64) as usize);
                assert!(piece.values().iter().all(|found| *found == value));
            }
            let mut piece = arena.take(stream.below(20_000) as usize);
            assert!(piece.values().as_ptr().cast::<[f32; LINE]>().align_offset(64) == 0);
            piece.values_mut().fill(number as f32);
            pieces.push((piece, number as f32));
        }
        assert!(pieces.iter().all(|(piece, value)| piece.values().iter().all(|found| found == value)));
        drop(pieces);
        arena.memory.drawers.empty().into_iter().for_each(|part| arena.memory.lock().give_back(part));
        let whole: usize = arena.memory.lock().by_number.values().map(|slab| slab.floats).sum();
        assert_eq!(arena.idle_bytes(), whole * size_of::<f32>(), "all parts are free and joined");
        let slabs = arena.memory.lock();
        assert_eq!(slabs.free.len(), slabs.by_number.len());
        drop(slabs);
        arena.trim();
        assert_eq!(arena.idle_bytes(), 0);
        let slabs = arena.memory.lock();
        assert_eq!((slabs.by_number.len(), slabs.shared), (0, 0));
    }

    #[test]
    fn neighbours_that_are_given_back_serve_a_larger_piece() {
        let arena = Arena::default();
        let pieces = [0; 4].map(|_| arena.take(SMALLEST / 4));
        let start = pieces[0].values().as_ptr();
        drop(pieces);
        let large = arena.take(SMALLEST);
        assert_eq!(large.values().as_ptr(), start);
        assert_eq!(arena.idle_bytes(), 0);
    }

    #[test]
    fn a_very_large_piece_is_a_slab_that_serves_smaller_ones_until_it_is_outgrown() {
        let arena = Arena::default();
        let first = arena.take(2 * APART);
        let address = first.values().as_ptr();
        drop(first);
        let second = arena.take(APART + 1);
        assert_eq!((second.values().as_ptr(), second.values().len()), (address, APART + 1));
        drop(second);
        drop(arena.take(3 * APART));
        assert_eq!(arena.idle_bytes(), 3 * APART * size_of::<f32>());
    }
}
