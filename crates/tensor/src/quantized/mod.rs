//! Frozen weights in less than two bytes a value. They stay as they are in memory; products decode them piece by piece.

mod absmax;
mod bytes;
mod four_bit;
mod ggml;
mod k_quants;
mod unpack;

pub use absmax::{Absmax, NESTED_BLOCK_SIZE, NestedAbsmax, dynamic_map};
pub use bytes::{Bytes, MappedFile};
pub use four_bit::{BLOCK_SIZE, FourBitError, FourBitOptions, FourBitType, FourBitWeight};
pub use ggml::{GgmlError, GgmlFormat, GgmlWeight};
