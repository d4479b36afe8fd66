//! Small pieces that lie ready: operations take and give back hundreds of them a millisecond on all threads at once, and
//! would wait for each other at the slabs.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Part;
use crate::workspace::LINE;

/// Floats of a part that is kept, at the most.
const LARGEST: usize = 64 << 10;
/// Parts of one size that a drawer keeps: so many for the largest, more of small ones.
const FEWEST: usize = 4;
const MOST: usize = 32;
/// Drawers; threads beyond them share.
pub(super) const DRAWERS: usize = 16;
/// Sizes: four for each power of two.
const SIZES: usize = 4 * (LARGEST / LINE).ilog2() as usize + 1;

/// Free parts, in a drawer for each thread.
#[derive(Debug)]
pub(super) struct Drawers([Drawer; DRAWERS]);

/// On cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Drawer(Mutex<[Vec<Part>; SIZES]>);

impl Default for Drawers {
    fn default() -> Self {
        Self([(); DRAWERS].map(|()| Drawer(Mutex::new([const { Vec::new() }; SIZES]))))
    }
}

/// The size, of those that drawers keep, that has room for `floats` floats: its number, and its floats. `None` for larger ones.
pub(super) fn size(floats: usize) -> Option<(usize, usize)> {
    if floats > LARGEST {
        return None;
    }
    let lines = floats.div_ceil(LINE).max(1);
    let step = 1 << lines.ilog2().saturating_sub(2);
    let lines: usize = lines.next_multiple_of(step);
    let power = lines.ilog2();
    let quarter = ((lines - (1 << power)) * 4) >> power;
    Some((4 * power as usize + quarter, lines * LINE))
}

impl Drawers {
    /// A free part of size number `size`, if this thread's drawer has one.
    pub(super) fn take(&self, size: usize) -> Option<Part> {
        self.own()[size].pop()
    }

    /// Keeps a part, or gives it back where there are enough, or it is of none of the sizes.
    pub(super) fn keep(&self, part: Part) -> Option<Part> {
        let Some((number, _)) = size(part.floats).filter(|(_, floats)| *floats == part.floats) else {
            return Some(part);
        };
        let mut own = self.own();
        if own[number].len() >= (LARGEST / part.floats).clamp(FEWEST, MOST) {
            return Some(part);
        }
        own[number].push(part);
        None
    }

    /// All parts, which are in no drawer then.
    pub(super) fn empty(&self) -> Vec<Part> {
        self.0.iter().flat_map(|drawer| lock(drawer).each_mut().map(std::mem::take)).flatten().collect()
    }

    /// Floats of all parts.
    pub(super) fn floats(&self) -> usize {
        let of = |drawer: &Drawer| lock(drawer).iter().flatten().map(|part| part.floats).sum::<usize>();
        self.0.iter().map(of).sum()
    }

    fn own(&self) -> MutexGuard<'_, [Vec<Part>; SIZES]> {
        lock(&self.0[own()])
    }
}

/// The number of the calling thread's drawer.
pub(super) fn own() -> usize {
    rayon::current_thread_index().map_or(DRAWERS - 1, |index| index % DRAWERS)
}

fn lock(drawer: &Drawer) -> MutexGuard<'_, [Vec<Part>; SIZES]> {
    drawer.0.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_room_and_waste_a_quarter_at_the_most() {
        let mut before = None;
        for floats in 1..=LARGEST {
            let (number, room) = size(floats).unwrap();
            assert!(room >= floats && number < SIZES, "{floats}");
            assert!(room <= floats.next_multiple_of(LINE) * 5 / 4, "{floats} in {room}");
            assert_eq!(size(room), Some((number, room)), "a size is its own");
            assert!(before.is_none_or(|before| before <= (number, room)), "{floats}");
            before = Some((number, room));
        }
        assert_eq!(size(LARGEST + 1), None);
    }
}
