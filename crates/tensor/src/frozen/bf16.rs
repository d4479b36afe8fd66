//! Weights kept in bf16, packed once in the order in which the kernels take the forward product's right factor. The
//! gradient of the input wants the other order: its panels are turned, tile by tile, while the product runs, which costs
//! a few hundredths of the product's time where there are some hundred rows, and saves a second copy.

use std::ops::{DerefMut, Range};

use rayon::prelude::*;

use super::Storage;
use super::format::{WeightFormat, forward_in_float32, input_gradient_in_float32};
use crate::kernels::bf16::{
    Columns, DEPTH, LANES, Order, Panel, Product, Runs, Tile, TileBuffer, corner, from_bf16, index, pack,
    prefetch_tiles, transpose,
};
use crate::kernels::{View, ViewMut};
use crate::shelf::{Shelf, Shelved};
use crate::{Matrix, Precision, Workspace};

/// A weight `[out, in]`: strips of 16 output features, an even number of them, each as tiles along the input features.
pub(super) struct Bf16<Tiles = Shelved<Tile>> {
    tiles: Tiles,
    rows: usize,
    cols: usize,
}

impl Bf16 {
    pub(super) fn pack(weight: &Matrix) -> Self {
        Self::packed(weight, Shelved::weight)
    }

    pub(super) fn pack_on(shelf: &mut Shelf, weight: &Matrix) -> Self {
        Self::packed(weight, |tiles| shelf.take(tiles))
    }
}

impl Bf16<TileBuffer> {
    /// In a buffer of the workspace.
    pub(super) fn pack_in(workspace: &Workspace, weight: &Matrix) -> Self {
        Self::packed(weight, |tiles| TileBuffer::new(workspace, tiles))
    }
}

/// Where tiles lie.
pub(super) trait Tiles: DerefMut<Target = [Tile]> + Send + Sync {}

impl<T: DerefMut<Target = [Tile]> + Send + Sync> Tiles for T {}

impl<T: Tiles> Bf16<T> {
    fn packed(weight: &Matrix, room: impl FnOnce(usize) -> T) -> Self {
        let (rows, cols) = weight.shape();
        let depth = cols.div_ceil(DEPTH);
        let strips = rows.div_ceil(2 * LANES) * 2;
        let mut tiles = room(strips * depth);
        let view = View::of(weight);
        tiles.par_chunks_mut(depth.max(1)).enumerate().for_each(|(strip, tiles)| {
            for (place, tile) in tiles.iter_mut().enumerate() {
                if strip * LANES < rows {
                    pack(corner(view, strip, place, 1.0), Order::Pairs, tile);
                } else {
                    *tile = Tile::ZERO;
                }
            }
        });
        Self { tiles, rows, cols }
    }

    /// Tiles of a strip.
    fn depth(&self) -> usize {
        self.cols.div_ceil(DEPTH)
    }

    fn tile(&self, strip: usize, depth: usize) -> &Tile {
        &self.tiles[strip * self.depth() + depth]
    }
}

impl<T: Tiles> WeightFormat for Bf16<T> {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn unpack(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        for (row, out) in rows.zip(out.chunks_exact_mut(cols.len().max(1))) {
            for (col, out) in cols.clone().zip(out) {
                let tile = self.tile(row / LANES, col / DEPTH);
                *out = from_bf16(tile.0[index(Order::Pairs, row % LANES, col % DEPTH)]);
            }
        }
    }

    fn bytes(&self) -> usize {
        size_of_val(&self.tiles[..])
    }
}

impl<T: Tiles> Storage for Bf16<T> {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn forward(&self, workspace: &Workspace, y: ViewMut<'_>, beta: f32, alpha: f32, x: View<'_>) {
        match workspace.kernels().precision() {
            Precision::Float32 => forward_in_float32(self, workspace, y, beta, alpha, x),
            Precision::Bf16 => {
                let product = Product { a: x, scale: alpha, b: &Forward(self), low_rank: None };
                workspace.kernels().in_bf16(y, beta, product);
            }
        }
    }

    fn input_gradient(&self, workspace: &Workspace, dx: ViewMut<'_>, beta: f32, alpha: f32, dy: View<'_>) {
        match workspace.kernels().precision() {
            Precision::Float32 => input_gradient_in_float32(self, workspace, dx, beta, alpha, dy),
            Precision::Bf16 => {
                let product = Product { a: dy, scale: alpha, b: &InputGradient(self), low_rank: None };
                workspace.kernels().in_bf16(dx, beta, product);
            }
        }
    }

    fn forward_columns(&self) -> Option<Box<dyn Columns + '_>> {
        Some(Box::new(Forward(self)))
    }

    fn gradient_columns(&self) -> Option<Box<dyn Columns + '_>> {
        Some(Box::new(InputGradient(self)))
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        self.unpack(row..row + 1, 0..self.cols, out);
    }

    fn bytes(&self) -> usize {
        WeightFormat::bytes(self)
    }
}

/// `Wᵀ` `[in, out]`, as it is stored.
struct Forward<'a, T>(&'a Bf16<T>);

#[expect(clippy::misnamed_getters, reason = "the columns of the turned weight are its rows")]
impl<T: Tiles> Columns for Forward<'_, T> {
    fn is_packed(&self) -> bool {
        true
    }

    fn depth(&self) -> usize {
        self.0.cols
    }

    fn cols(&self) -> usize {
        self.0.rows
    }

    fn panel<'a>(&'a self, strips: Range<usize>, depth: Range<usize>, _: &'a mut [Tile]) -> Panel<'a> {
        let stride = self.0.depth();
        Panel { tiles: &self.0.tiles[strips.start * stride + depth.start..], stride }
    }

    fn runs(&self, strips: Range<usize>, depth: Range<usize>) -> Runs {
        Runs::of(&self.0.tiles, self.0.depth(), strips, depth)
    }
}

/// Strips between the tile that is turned and the one that is fetched.
const AHEAD: usize = 16;

/// `W` `[out, in]`, turned panel by panel.
struct InputGradient<'a, T>(&'a Bf16<T>);

impl<T: Tiles> Columns for InputGradient<'_, T> {
    fn depth(&self) -> usize {
        self.0.rows
    }

    fn cols(&self) -> usize {
        self.0.cols
    }

    fn panel<'a>(&'a self, strips: Range<usize>, depth: Range<usize>, scratch: &'a mut [Tile]) -> Panel<'a> {
        let mut past_the_end = Tile::ZERO;
        for pair in strips.clone().step_by(2) {
            let place = (pair - strips.start) * depth.len();
            for (at, outputs) in depth.clone().enumerate() {
                let (first, second) = (self.0.tile(2 * outputs, pair / 2), self.0.tile(2 * outputs + 1, pair / 2));
                prefetch_tiles(&self.0.tiles, (2 * outputs + AHEAD) * self.0.depth() + pair / 2, self.0.depth());
                let (low, high) = scratch[place..].split_at_mut(depth.len());
                let high = if pair + 1 < strips.end { &mut high[at] } else { &mut past_the_end };
                transpose(first, second, [&mut low[at], high]);
            }
        }
        Panel { tiles: scratch, stride: depth.len() }
    }

    fn runs(&self, strips: Range<usize>, depth: Range<usize>) -> Runs {
        let pair = strips.start / 2;
        Runs::of(&self.0.tiles, self.0.depth(), 2 * depth.start..2 * depth.end, pair..pair + 1)
    }
}
