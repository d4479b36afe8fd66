//! Keys and values outside the tape: in pieces, in float32 or rounded to bf16.

use super::{Attention, KeyValueRows};
use crate::kernels::bf16::{from_bf16, to_bf16};
use crate::kernels::stored::{CHUNK, Stored, read_pairs, store_pairs};
use crate::kernels::vectorised;

/// Keys and values of one sequence outside the tape, in pieces that follow one another.
#[derive(Clone, Debug, Default)]
pub struct KeyValuePages<'a> {
    /// The pieces, in order; each holds whole rows.
    pub pages: Vec<PageRows<'a>>,
}

impl<'a> From<KeyValueRows<'a>> for KeyValuePages<'a> {
    fn from(rows: KeyValueRows<'a>) -> Self {
        Self { pages: vec![PageRows::Float32(rows)] }
    }
}

/// A piece of keys and values.
#[derive(Clone, Copy, Debug)]
pub enum PageRows<'a> {
    /// As they are.
    Float32(KeyValueRows<'a>),
    /// Rounded, where heads are a multiple of 32 features wide.
    Bf16(KeyValuePairs<'a>),
}

/// Keys and values in bf16, as [`KeyValuePairs::store_keys`] and [`KeyValuePairs::store_values`] put them.
#[derive(Clone, Copy, Debug)]
pub struct KeyValuePairs<'a> {
    /// Features of a row, of all heads.
    pub width: usize,
    /// `[rows, width / 2]`: of each 32 features the first and the second half in pairs, as products sum them.
    pub keys: &'a [u32],
    /// `[⌈rows / 2⌉, width]`: each two rows in pairs, as sums over rows take them.
    pub values: &'a [u32],
}

impl KeyValuePairs<'_> {
    /// Whether heads of so many features can be stored.
    pub fn suit(head_dim: usize) -> bool {
        head_dim.is_multiple_of(CHUNK)
    }

    /// Rounds rows of keys to bf16.
    ///
    /// # Panics
    /// If heads are not a multiple of 32 features wide, or `pairs` is not half as long.
    pub fn store_keys(rows: &[f32], pairs: &mut [u32]) {
        store_pairs(rows, pairs);
    }

    /// Rounds rows of values, `width` features each, to bf16, as rows `first` and so on of `pairs`, whose rows are written in
    /// order.
    ///
    /// # Panics
    /// If `pairs` is too short.
    pub fn store_values(rows: &[f32], width: usize, first: usize, pairs: &mut [u32]) {
        vectorised(
            #[inline(always)]
            || {
                for (number, row) in (first..).zip(rows.chunks_exact(width)) {
                    let pairs = &mut pairs[number / 2 * width..][..width];
                    if number.is_multiple_of(2) {
                        // Of the pair's other row nothing is left, in case that it never comes.
                        pairs.iter_mut().zip(row).for_each(|(pair, value)| *pair = u32::from(to_bf16(*value)));
                    } else {
                        pairs.iter_mut().zip(row).for_each(|(pair, value)| *pair |= u32::from(to_bf16(*value)) << 16);
                    }
                }
            },
        );
    }

    /// How many rows.
    fn count(&self) -> usize {
        2 * self.keys.len() / self.width.max(1)
    }
}

impl<'a> PageRows<'a> {
    /// How many rows.
    pub(super) fn count(&self, options: &Attention) -> usize {
        match self {
            Self::Float32(rows) => rows.count(options),
            Self::Bf16(rows) => rows.count(),
        }
    }

    /// Whether each row of keys, `width` features wide, has its row of values.
    pub(super) fn fits(&self, width: usize) -> bool {
        match self {
            Self::Float32(rows) => rows.keys.len() == rows.values.len() && rows.keys.len().is_multiple_of(width),
            Self::Bf16(rows) => {
                let (keys, values) = (2 * rows.keys.len(), rows.values.len());
                rows.width == width && keys.is_multiple_of(width) && values == rows.count().div_ceil(2) * width
            }
        }
    }

    /// The keys, or the values, in float32.
    pub fn to_floats(&self, keys: bool) -> Vec<f32> {
        let floats = match self {
            Self::Float32(rows) => rows.keys.len(),
            Self::Bf16(rows) => 2 * rows.keys.len(),
        };
        let mut out = vec![0.0; floats];
        self.read(keys, &mut out);
        out
    }

    /// Writes the keys, or the values, in float32.
    pub(super) fn read(&self, keys: bool, out: &mut [f32]) {
        match self {
            Self::Float32(rows) => out.copy_from_slice(if keys { rows.keys } else { rows.values }),
            Self::Bf16(rows) if keys => read_pairs(rows.keys, out),
            Self::Bf16(rows) => {
                for (number, row) in out.chunks_exact_mut(rows.width).enumerate() {
                    let pairs = &rows.values[number / 2 * rows.width..][..rows.width];
                    let shift = 16 * (number % 2);
                    row.iter_mut().zip(pairs).for_each(|(value, pair)| *value = from_bf16((pair >> shift) as u16));
                }
            }
        }
    }

    /// The memory of the keys, and of the values.
    pub(super) fn bytes(&self) -> [&'a [u8]; 2] {
        match *self {
            Self::Float32(KeyValueRows { keys, values }) => [bytes_of(keys), bytes_of(values)],
            Self::Bf16(KeyValuePairs { keys, values, .. }) => [bytes_of(keys), bytes_of(values)],
        }
    }
}

/// The bytes of plain values.
fn bytes_of<V: Stored>(values: &[V]) -> &[u8] {
    // SAFETY: values of these types are bytes without gaps.
    #[allow(unsafe_code)]
    unsafe {
        std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values))
    }
}

impl KeyValuePages<'_> {
    /// Whether all rows lie in one piece, in float32.
    pub(super) fn is_one_piece(&self) -> bool {
        matches!(self.pages[..], [] | [PageRows::Float32(_)])
    }

    /// How many rows.
    pub(super) fn count(&self, options: &Attention) -> usize {
        self.pages.iter().map(|page| page.count(options)).sum()
    }
}
