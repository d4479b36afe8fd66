//! The unit of packed bf16 operands, and buffers of it.

use std::ops::{Deref, DerefMut};

use crate::Workspace;
use crate::shelf::Plain;
use crate::workspace::Buffer;

/// Rows of the left factor, or columns of the right factor, that a tile spans.
pub(crate) const LANES: usize = 16;
/// Places of the inner (summed) dimension that a tile spans.
pub(crate) const DEPTH: usize = 32;
/// Values of a tile.
pub(crate) const VALUES: usize = LANES * DEPTH;

/// 16 lanes × 32 places of the inner dimension as bf16 bits, 1 KiB, in one of two orders:
///
/// - *rows*, for the left factor: lane by lane, `[lane][depth]`;
/// - *pairs*, for the right factor: pair by pair of the inner dimension, `[depth / 2][lane][depth % 2]`, the order in
///   which AMX and `vdpbf16ps` take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Tile(pub(crate) [u16; VALUES]);

// SAFETY: any bits are values, which lie close together, and tiles are aligned to cache lines.
#[allow(unsafe_code)]
unsafe impl Plain for Tile {}

impl Tile {
    pub(crate) const ZERO: Self = Self([0; VALUES]);

    /// Its values two at a time, the first in the low half.
    #[inline(always)]
    pub(crate) fn words_mut(&mut self) -> &mut [u32; VALUES / 2] {
        let words: *mut [u32; VALUES / 2] = std::ptr::from_mut(self).cast();
        // SAFETY: a tile is as large as so many words, aligned, and any bits are words and values.
        #[allow(unsafe_code)]
        unsafe {
            &mut *words
        }
    }
}

/// Tiles in a buffer of the workspace's pool.
#[derive(Debug)]
pub(crate) struct TileBuffer {
    buffer: Buffer,
    len: usize,
}

const FLOATS: usize = size_of::<Tile>() / size_of::<f32>();

impl TileBuffer {
    /// `len` tiles with unspecified contents.
    pub(crate) fn new(workspace: &Workspace, len: usize) -> Self {
        let buffer = workspace.take(len * FLOATS);
        assert!(buffer.as_ptr().cast::<Tile>().is_aligned(), "the pool's buffers are aligned to cache lines");
        Self { buffer, len }
    }
}

impl Deref for TileBuffer {
    type Target = [Tile];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[Tile] {
        // SAFETY: the buffer holds `len · FLOATS` initialised floats, is aligned as `new` asserted, and every bit
        // pattern is a tile.
        unsafe { std::slice::from_raw_parts(self.buffer.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for TileBuffer {
    #[allow(unsafe_code)]
    fn deref_mut(&mut self) -> &mut [Tile] {
        // SAFETY: as in `deref`; every tile is also a valid run of floats.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.as_mut_ptr().cast(), self.len) }
    }
}

/// bf16 bits of `x`, rounded to the nearest, ties to even; numbers too small for a normal bf16 become 0, as the
/// processors' conversions make them.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let exponent = bits & 0x7f80_0000;
    if exponent == 0 {
        return (bits >> 16) as u16 & 0x8000;
    }
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// The float32 that a bf16 stands for.
#[inline(always)]
pub(crate) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}
