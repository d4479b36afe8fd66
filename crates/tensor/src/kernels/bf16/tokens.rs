//! Factors of a sum over tokens: matrices `[tokens, features]` whose rows are the inner dimension of a product.

use std::ops::Range;

use rayon::prelude::*;

use super::operand::{PackedColumns, SIDE_BY_SIDE, pack_side_by_side};
use super::pack::{Order, turn};
use super::tile::{DEPTH, LANES, Tile, from_bf16};
use crate::Workspace;
use crate::kernels::View;

/// A factor `[tokens, features]`, as it lies in memory.
#[derive(Clone, Copy)]
pub(crate) enum Tokens<'a> {
    /// float32, features side by side.
    Floats(View<'a>),
    /// Strips of 16 tokens, each as tiles in rows order along the features.
    Tiles(TokenTiles<'a>),
}

/// What a larger operation made of some tokens. A last strip that is not full ends with rows of zeros, or whose tokens have
/// zeros in the other factor.
#[derive(Clone, Copy)]
pub(crate) struct TokenTiles<'a> {
    pub(crate) tiles: &'a [Tile],
    pub(crate) tokens: usize,
    /// A multiple of [`DEPTH`].
    pub(crate) features: usize,
}

impl<'a> Tokens<'a> {
    pub(crate) fn tokens(&self) -> usize {
        match self {
            Self::Floats(view) => view.rows,
            Self::Tiles(tiles) => tiles.tokens,
        }
    }

    pub(crate) fn features(&self) -> usize {
        match self {
            Self::Floats(view) => view.cols,
            Self::Tiles(tiles) => tiles.features,
        }
    }

    /// The sum over all tokens of each feature, of values rounded to bf16 where that is how they lie.
    pub(crate) fn add_sums(self, sums: &mut [f32]) {
        assert_eq!(sums.len(), self.features(), "each feature has a sum");
        sums.par_chunks_mut(DEPTH).enumerate().for_each(|(place, sums)| match self {
            Self::Floats(view) => {
                for token in 0..view.rows {
                    let row = &view.data[token * view.row_stride + place * DEPTH..];
                    sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
                }
            }
            Self::Tiles(TokenTiles { tiles, features, .. }) => {
                for tile in tiles.iter().skip(place).step_by(features / DEPTH) {
                    for row in tile.0.chunks_exact(DEPTH) {
                        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += from_bf16(*value));
                    }
                }
            }
        });
    }

    /// The right factor of a product, packed whole.
    pub(crate) fn columns(self, workspace: &Workspace) -> PackedColumns {
        let TokenTiles { tokens, features, .. } = match self {
            Self::Floats(view) => return PackedColumns::pack(workspace, view),
            Self::Tiles(tiles) => tiles,
        };
        let mut columns = PackedColumns::with_room(workspace, tokens, features);
        let depth = tokens.div_ceil(DEPTH);
        if depth > 0 {
            let groups = columns.tiles_mut().par_chunks_mut(SIDE_BY_SIDE * depth).enumerate();
            groups.for_each(|(group, tiles)| {
                let first = group * SIDE_BY_SIDE;
                self.pack(first..first + tiles.len() / depth, 0..depth, 1.0, Order::Pairs, tiles);
            });
        }
        columns
    }

    /// Packs `scale ·` the features of `strips` over the tiles `depth` of tokens as rows of a left factor, strip by strip.
    pub(super) fn pack_rows(self, strips: Range<usize>, depth: Range<usize>, scale: f32, tiles: &mut [Tile]) {
        let stride = depth.len();
        for group in strips.clone().step_by(SIDE_BY_SIDE) {
            let own = group..strips.end.min(group + SIDE_BY_SIDE);
            let tiles = &mut tiles[(own.start - strips.start) * stride..(own.end - strips.start) * stride];
            self.pack(own, depth.clone(), scale, Order::Rows, tiles);
        }
    }

    fn pack(self, strips: Range<usize>, depth: Range<usize>, scale: f32, order: Order, tiles: &mut [Tile]) {
        match self {
            Self::Floats(view) => pack_side_by_side(view.transposed(), strips, depth, scale, order, tiles),
            Self::Tiles(source) => {
                let stride = depth.len();
                for (at, place) in depth.enumerate() {
                    for (row, strip) in strips.clone().enumerate() {
                        source.turn(strip, place, scale, order, &mut tiles[row * stride + at]);
                    }
                }
            }
        }
    }
}

impl TokenTiles<'_> {
    /// Fills `tile` with `scale ·` 16 features, those of strip `strip`, of 32 tokens, those of place `place`.
    fn turn(self, strip: usize, place: usize, scale: f32, order: Order, tile: &mut Tile) {
        assert!(scale == 1.0, "what lies in tiles is not scaled");
        let (stride, half) = (self.features / DEPTH, strip % 2 * LANES);
        let source = |part: usize| self.tiles.get((2 * place + part) * stride + strip / 2);
        let (first, second) = (source(0).unwrap_or(&Tile::ZERO), source(1).unwrap_or(&Tile::ZERO));
        turn(first, second, half, order, tile);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::bf16::pack::pack_strip;
    use crate::ops::finite_differences::random;

    /// What lies in tiles is packed as floats are, and sums as they do.
    #[test]
    fn tiles_and_floats_are_one_factor() {
        for tokens in [1, 16, 30, 33, 70] {
            let values = random(tokens, 3 * DEPTH, 0);
            let mut tiles = vec![Tile::ZERO; tokens.div_ceil(LANES) * 3];
            for (strip, tiles) in tiles.chunks_exact_mut(3).enumerate() {
                let rows = strip * LANES..tokens.min((strip + 1) * LANES);
                pack_strip(View::of(&values), rows, 0, 1.0, Order::Rows, tiles);
            }
            let floats = Tokens::Floats(View::of(&values));
            let tiles = Tokens::Tiles(TokenTiles { tiles: &tiles, tokens, features: 3 * DEPTH });
            let depth = 0..tokens.div_ceil(DEPTH);
            for order in [Order::Rows, Order::Pairs] {
                let pack = |factor: Tokens<'_>| {
                    let mut packed = vec![Tile([7; 512]); 5 * depth.len()];
                    factor.pack(1..6, depth.clone(), 1.0, order, &mut packed);
                    packed
                };
                assert_eq!(pack(floats), pack(tiles), "{tokens} tokens, {order:?}");
            }
            let sums = |factor: Tokens<'_>| {
                let mut sums = vec![0.5; 3 * DEPTH];
                factor.add_sums(&mut sums);
                sums
            };
            let close = |(a, b): (&f32, &f32)| (a - b).abs() < 0.01 * tokens as f32;
            assert!(sums(floats).iter().zip(&sums(tiles)).all(close));
        }
    }
}
