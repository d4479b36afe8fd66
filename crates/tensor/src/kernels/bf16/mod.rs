//! Products of bf16 operands with float32 accumulation, on the fastest unit that the processor has.
//!
//! Operands are packed into tiles ([`tile`]). The left factor's rows and the right factor's columns are rounded to bf16
//! once; products of two bf16 numbers are exact in float32, so a result differs from the exact sum of the rounded
//! operands' products by the rounding of a float32 sum alone. Every value is summed along the inner dimension in one fixed
//! order: for one unit, a row's results depend neither on the other rows, nor on their number, nor on the number of
//! threads.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_pack;
pub(crate) mod coded;
#[cfg(target_arch = "x86_64")]
mod coded_rows;
mod cross_entropy;
mod deep;
pub(crate) mod feed_forward;
#[cfg(target_arch = "x86_64")]
mod few_rows;
mod float32;
mod low_rank;
mod operand;
mod pack;
mod product;
mod rows;
pub(crate) mod self_attention;
mod stack;
mod sums;
#[cfg(target_arch = "x86_64")]
mod thin_tiles;
mod tile;
mod tokens;
mod vocabulary_gradient;
mod weight_gradient;

#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::{ShapedTiles, Square, TileUnit};
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512_pack::{Vectors, convert, interleaving, mask, store, transposed};
pub(crate) use cross_entropy::{RowResults, Vocabulary, cross_entropy};
pub(crate) use deep::is_long;
pub(crate) use low_rank::{LowRank, LowRankFactors};
pub(crate) use operand::{Columns, PackedColumns, Panel, Runs, ViewColumns, corner};
pub(crate) use pack::{Order, index, pack, prefetch_tiles, transpose, turn};
pub(crate) use product::Product;
pub(crate) use rows::Part;
pub(crate) use stack::{Padded, Stack};
pub(crate) use sums::Sums;
#[cfg(target_arch = "x86_64")]
pub(crate) use thin_tiles::{ThinAdder, ThinTiles};
pub(crate) use tile::{DEPTH, LANES, Tile, TileBuffer, from_bf16, to_bf16};
pub(crate) use tokens::{TokenTiles, Tokens};
pub(crate) use vocabulary_gradient::{TrainedVocabulary, vocabulary_gradient};
pub(crate) use weight_gradient::weight_gradient;

use crate::kernels::{Parallelism, ViewMut};

/// Whether this processor has the vector instructions that packing is written in.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_vectors() -> bool {
    avx512::is_supported()
}

/// What multiplies tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// AMX: tiles of 16 × 32 by 32 × 16.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// AVX-512's bf16 dot products.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// float32 arithmetic on the rounded operands.
    Float32,
}

impl Unit {
    /// Whether the processor of this unit has AVX-512 with bf16.
    pub(crate) fn has_avx512(self) -> bool {
        cfg!(target_arch = "x86_64") && self != Self::Float32
    }

    /// All units, fastest first.
    pub(crate) const ALL: &[Self] = &[
        #[cfg(target_arch = "x86_64")]
        Self::Amx,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
        Self::Float32,
    ];

    /// The fastest that this processor has.
    pub(crate) fn detect() -> Self {
        Self::ALL.iter().copied().find(|unit| unit.is_supported()).unwrap_or(Self::Float32)
    }

    /// Whether this processor has it.
    pub(crate) fn is_supported(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => amx::is_supported(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::is_supported(),
            Self::Float32 => true,
        }
    }

    /// `C ← product` for several in one go; none has a low rank beside it.
    pub(crate) fn products(self, products: Vec<(ViewMut<'_>, Product<'_>)>, parallelism: Parallelism) {
        products.iter().for_each(|(c, product)| check(c, product));
        let some = products.into_iter().filter(|(c, _)| c.rows > 0 && c.cols > 0);
        product::products(self, some.collect(), false, parallelism);
    }

    /// `C ← beta·C + product`, `beta` being 0 or 1.
    pub(crate) fn product(self, c: ViewMut<'_>, beta: f32, product: Product<'_>, parallelism: Parallelism) {
        check(&c, &product);
        if let Some(low_rank) = &product.low_rank {
            let (depth, rank, cols) = low_rank.factors.sizes();
            assert_eq!((low_rank.middle.rows, low_rank.middle.cols), (c.rows, rank), "the middle is [rows, r]");
            assert_eq!((depth, cols), (product.a.cols, c.cols), "both products have one left factor and one result");
        }
        if c.rows > 0 && c.cols > 0 {
            product::product(self, c, beta != 0.0, product, parallelism);
        }
    }
}

fn check(c: &ViewMut<'_>, product: &Product<'_>) {
    assert_eq!(product.a.rows, c.rows, "a product's rows are its left factor's");
    assert_eq!(product.b.cols(), c.cols, "a product's columns are its right factor's");
    assert_eq!(product.a.cols, product.b.depth(), "a product's factors share their inner size");
}
