//! Strips that lie in tiles: read once, in the order in which they lie, each line fetched some time before it is used.

use std::ops::Range;

use super::super::amx::Square;
use super::super::operand::Panel;
use super::super::product::Output;
use super::super::tile::{LANES, Tile};
use super::unit::Groups;
use crate::kernels::prefetch_for_later;

/// How far ahead of what is used memory is fetched, to the second-level cache: more is on its way there at one time than
/// could be on its way to the first.
const AHEAD: usize = 1536;

/// Computes the strips `strips` of the result, whose panel begins with the first of them, from `rows`, strips of `depth`
/// tiles in rows order.
pub(super) fn strips(
    groups: &Groups,
    rows: &[Tile],
    panel: &Panel<'_>,
    strips: Range<usize>,
    depth: usize,
    output: &Output,
) {
    let mut square = Square::ZERO;
    for (place, strip) in strips.enumerate() {
        groups.clear();
        for (at, weight) in panel.strip(place, depth).iter().enumerate() {
            prefetch_for_later(&weight.0, AHEAD..AHEAD + size_of::<Tile>());
            groups.add_left(&rows[at..], depth, weight);
        }
        let (out, cols) = output.strip(strip);
        for group in 0..groups.count() {
            let out = out.wrapping_add(group * LANES * output.stride);
            #[allow(unsafe_code)]
            // SAFETY: the strip's values lie in the output, where no other thread writes; a result fits a square.
            unsafe {
                if cols == LANES {
                    groups.store(group, out, output.stride);
                    continue;
                }
                groups.store(group, square.0.as_mut_ptr(), LANES);
                for row in 0..groups.rows_of(group) {
                    let values = &square.0[row * LANES..][..cols];
                    std::ptr::copy_nonoverlapping(values.as_ptr(), out.add(row * output.stride), cols);
                }
            }
        }
    }
}
