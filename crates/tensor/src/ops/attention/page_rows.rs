//! Keys and values outside the tape: in pieces, in float32 or rounded to bf16.

use super::{Attention, KeyValueRows};
use crate::kernels::stored::{CHUNK, Stored, read_pairs, store_pairs};

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

/// Keys and values in bf16, as [`KeyValuePairs::store`] puts them: half as many elements as values.
#[derive(Clone, Copy, Debug)]
pub struct KeyValuePairs<'a> {
    /// `[rows, kv_heads · head_dim / 2]`.
    pub keys: &'a [u32],
    /// The same.
    pub values: &'a [u32],
}

impl KeyValuePairs<'_> {
    /// Whether heads of so many features can be stored.
    pub fn suit(head_dim: usize) -> bool {
        head_dim.is_multiple_of(CHUNK)
    }

    /// Rounds rows of keys, or of values, to bf16.
    ///
    /// # Panics
    /// If heads are not a multiple of 32 features wide, or `pairs` is not half as long.
    pub fn store(rows: &[f32], pairs: &mut [u32]) {
        store_pairs(rows, pairs);
    }
}

impl<'a> PageRows<'a> {
    /// How many rows.
    pub(super) fn count(&self, options: &Attention) -> usize {
        match self {
            Self::Float32(rows) => rows.count(options),
            Self::Bf16(rows) => 2 * rows.keys.len() / options.key_width(),
        }
    }

    /// Floats of the keys, and of the values.
    pub(super) fn lengths(&self) -> [usize; 2] {
        match self {
            Self::Float32(rows) => [rows.keys.len(), rows.values.len()],
            Self::Bf16(rows) => [2 * rows.keys.len(), 2 * rows.values.len()],
        }
    }

    /// The keys, or the values, in float32.
    pub fn to_floats(&self, keys: bool) -> Vec<f32> {
        let [key_floats, value_floats] = self.lengths();
        let mut out = vec![0.0; if keys { key_floats } else { value_floats }];
        self.read(keys, &mut out);
        out
    }

    /// Writes the keys, or the values, in float32.
    pub(super) fn read(&self, keys: bool, out: &mut [f32]) {
        match self {
            Self::Float32(rows) => out.copy_from_slice(if keys { rows.keys } else { rows.values }),
            Self::Bf16(rows) => read_pairs(if keys { rows.keys } else { rows.values }, out),
        }
    }

    /// The memory of the keys, and of the values.
    pub(super) fn bytes(&self) -> [&'a [u8]; 2] {
        match *self {
            Self::Float32(KeyValueRows { keys, values }) => [bytes_of(keys), bytes_of(values)],
            Self::Bf16(KeyValuePairs { keys, values }) => [bytes_of(keys), bytes_of(values)],
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
