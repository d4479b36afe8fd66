//! From float32 matrices to tiles, and from one order of tiles to the other.

use std::ops::Range;

use super::tile::{DEPTH, LANES, Tile, from_bf16, to_bf16};
use crate::kernels::{View, prefetch};

/// A corner of a matrix that becomes a tile: up to 16 lanes by up to 32 places of the inner dimension; the rest of the
/// tile is zero.
#[derive(Clone, Copy)]
pub(crate) struct Corner<'a> {
    /// From the corner's first value on.
    pub(crate) data: &'a [f32],
    /// At most [`LANES`].
    pub(crate) lanes: usize,
    /// At most [`DEPTH`].
    pub(crate) depth: usize,
    pub(crate) lane_stride: usize,
    pub(crate) depth_stride: usize,
    /// Every value is multiplied by it before rounding.
    pub(crate) scale: f32,
}

/// The order of a tile's values; see [`Tile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Rows,
    Pairs,
}

/// Fills `tile` from a corner of a matrix.
pub(crate) fn pack(corner: Corner<'_>, order: Order, tile: &mut Tile) {
    let Corner { data, lanes, depth, lane_stride, depth_stride, .. } = corner;
    assert!(lanes <= LANES && depth <= DEPTH, "a corner fits its tile");
    if lanes == 0 || depth == 0 {
        *tile = Tile::ZERO;
        return;
    }
    assert!((lanes - 1) * lane_stride + (depth - 1) * depth_stride < data.len(), "a corner lies in its data");
    #[cfg(target_arch = "x86_64")]
    if super::avx512::is_supported() && (lane_stride == 1 || depth_stride == 1) {
        #[allow(unsafe_code)]
        // SAFETY: the processor has the instructions; the corner lies in its data.
        unsafe {
            super::avx512_pack::pack(corner, order, tile);
        }
        return;
    }
    *tile = Tile::ZERO;
    for lane in 0..lanes {
        for place in 0..depth {
            let value = to_bf16(data[lane * lane_stride + place * depth_stride] * corner.scale);
            tile.0[index(order, lane, place)] = value;
        }
    }
}

/// Fills `tiles` with the values of `lanes`, at most 16 rows of `matrix` `[lanes, depth]`, from column `start` on.
pub(crate) fn pack_strip(
    matrix: View<'_>,
    lanes: Range<usize>,
    start: usize,
    scale: f32,
    order: Order,
    tiles: &mut [Tile],
) {
    assert!(lanes.len() <= LANES && lanes.end <= matrix.rows, "a strip's lanes are rows of its matrix");
    #[cfg(target_arch = "x86_64")]
    if order == Order::Rows && matrix.col_stride == 1 && !lanes.is_empty() && super::avx512::is_supported() {
        let end = matrix.cols.min(start + tiles.len() * DEPTH);
        assert!((lanes.end - 1) * matrix.row_stride + end <= matrix.data.len(), "a strip lies in its data");
        #[allow(unsafe_code)]
        // SAFETY: the processor has the instructions; the strip lies in its data.
        unsafe {
            let first = matrix.data.as_ptr().add(lanes.start * matrix.row_stride);
            super::avx512_pack::rows::<false>(first, lanes.len(), matrix.row_stride, start..end, scale, tiles);
        }
        return;
    }
    for (place, tile) in tiles.iter_mut().enumerate() {
        let first = start + place * DEPTH;
        let corner = Corner {
            data: &matrix.data[lanes.start * matrix.row_stride + first * matrix.col_stride..],
            lanes: lanes.len(),
            depth: DEPTH.min(matrix.cols - first),
            lane_stride: matrix.row_stride,
            depth_stride: matrix.col_stride,
            scale,
        };
        pack(corner, order, tile);
    }
}

/// Fills `tile`, in rows order, with the columns `32·block..` of `values`, 16 rows of floats, past the caches: for tiles that
/// are read much later. It may be read once the [`Written`] is gone.
///
/// # Panics
/// If there are no such columns.
pub(crate) fn keep(values: &[f32], block: usize, tile: &mut Tile, _: &Written) {
    let (width, columns) = (values.len() / LANES, block * DEPTH..(block + 1) * DEPTH);
    assert!(values.len() == LANES * width && columns.end <= width, "16 rows have so many columns");
    let tiles = std::slice::from_mut(tile);
    #[cfg(target_arch = "x86_64")]
    if super::avx512::is_supported() {
        #[allow(unsafe_code)]
        // SAFETY: the processor has the instructions; the rows have these columns.
        unsafe {
            super::avx512_pack::rows::<true>(values.as_ptr(), LANES, width, columns, 1.0, tiles);
        }
        return;
    }
    pack_strip(View::rows_of(values, LANES, width, width), 0..LANES, columns.start, 1.0, Order::Rows, tiles);
}

/// What is written past the caches while this lives can be read by every thread that learns of its end.
pub(crate) struct Written(());

impl Written {
    pub(crate) fn begin() -> Self {
        Self(())
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 processor has the instruction; it orders stores and touches no memory.
        #[allow(unsafe_code)]
        unsafe {
            std::arch::x86_64::_mm_sfence();
        }
    }
}

/// Writes the rows of `tile`, which is in rows order, as floats, `stride` apart, to `out`.
///
/// # Panics
/// If `out` ends within a row.
pub(crate) fn unpack(tile: &Tile, out: &mut [f32], stride: usize) {
    assert!(out.len() >= (LANES - 1) * stride + DEPTH, "a tile's rows lie in the output");
    #[cfg(target_arch = "x86_64")]
    if super::avx512::is_supported() {
        #[allow(unsafe_code)]
        // SAFETY: the processor has the instructions; all rows lie in the output.
        unsafe {
            super::avx512_pack::unpack(tile, out.as_mut_ptr(), stride);
        }
        return;
    }
    for (source, row) in tile.0.chunks_exact(DEPTH).zip(out.chunks_mut(stride)) {
        row.iter_mut().zip(source).for_each(|(out, value)| *out = from_bf16(*value));
    }
}

/// Where a tile in `order` has the value of `lane` and `depth`.
#[inline(always)]
pub(crate) fn index(order: Order, lane: usize, depth: usize) -> usize {
    match order {
        Order::Rows => lane * DEPTH + depth,
        Order::Pairs => depth / 2 * (2 * LANES) + lane * 2 + depth % 2,
    }
}

/// Exchanges lanes and inner dimension of 32 × 32 values: `first` and `second` in pairs order are lanes 0–15 and 16–31 of
/// a square; `out` is that square's transpose, again as two tiles in pairs order.
pub(crate) fn transpose(first: &Tile, second: &Tile, out: [&mut Tile; 2]) {
    #[cfg(target_arch = "x86_64")]
    if super::avx512::is_supported() {
        #[allow(unsafe_code)]
        // SAFETY: the processor has the instructions.
        unsafe {
            super::avx512_pack::transpose(first, second, out);
        }
        return;
    }
    for (half, source) in [first, second].into_iter().enumerate() {
        for lane in 0..LANES {
            for depth in 0..DEPTH {
                let value = source.0[index(Order::Pairs, lane, depth)];
                out[depth / LANES].0[index(Order::Pairs, depth % LANES, half * LANES + lane)] = value;
            }
        }
    }
}

/// Exchanges lanes and inner dimension: `first` and `second` in rows order are places 0–15 and 16–31 of the inner dimension,
/// and of each the values from `half` on, 0 or 16, are the lanes of `tile`.
pub(crate) fn turn(first: &Tile, second: &Tile, half: usize, order: Order, tile: &mut Tile) {
    assert!(half == 0 || half == LANES, "a tile is turned into two");
    #[cfg(target_arch = "x86_64")]
    if super::avx512::is_supported() {
        #[allow(unsafe_code)]
        // SAFETY: the processor has the instructions; `half` is 0 or 16.
        unsafe {
            super::avx512_pack::turn(first, second, half, order, tile);
        }
        return;
    }
    for lane in 0..LANES {
        for depth in 0..DEPTH {
            let source = if depth < LANES { first } else { second };
            tile.0[index(order, lane, depth)] = source.0[depth % LANES * DEPTH + half + lane];
        }
    }
}

/// Fetches two tiles, `stride` apart from `first` on, into the cache; nothing where they don't exist.
#[inline]
pub(crate) fn prefetch_tiles(tiles: &[Tile], first: usize, stride: usize) {
    for tile in [first, first + stride].into_iter().filter_map(|place| tiles.get(place)) {
        prefetch(&tile.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::bf16::tile::VALUES;
    use crate::ops::finite_differences::random;

    /// The definition of [`pack`].
    fn packed(corner: Corner<'_>, order: Order) -> Tile {
        let mut tile = Tile::ZERO;
        for lane in 0..corner.lanes {
            for depth in 0..corner.depth {
                let value = corner.data[lane * corner.lane_stride + depth * corner.depth_stride];
                tile.0[index(order, lane, depth)] = to_bf16(value * corner.scale);
            }
        }
        tile
    }

    #[test]
    fn unpacks_what_was_packed() {
        let matrix = random(LANES, DEPTH, 0);
        let mut tile = Tile::ZERO;
        pack_strip(View::of(&matrix), 0..LANES, 0, 1.0, Order::Rows, std::slice::from_mut(&mut tile));
        let mut out = vec![7.0; 15 * 40 + DEPTH];
        unpack(&tile, &mut out, 40);
        for (place, value) in out.iter().enumerate() {
            let (row, col) = (place / 40, place % 40);
            let expected = if col < DEPTH { from_bf16(to_bf16(matrix.row(row)[col])) } else { 7.0 };
            assert_eq!(*value, expected, "{row} {col}");
        }
    }

    #[test]
    fn keeps_what_packing_makes() {
        let matrix = random(LANES, 3 * DEPTH, 0);
        let mut packed = vec![Tile::ZERO; 3];
        pack_strip(View::of(&matrix), 0..LANES, 0, 1.0, Order::Rows, &mut packed);
        let mut kept = vec![Tile([7; VALUES]); 3];
        let written = Written::begin();
        kept.iter_mut().enumerate().for_each(|(block, tile)| keep(matrix.data(), block, tile, &written));
        drop(written);
        assert_eq!(kept, packed);
    }

    #[test]
    fn packs_every_corner_in_both_orders() {
        let matrix = random(40, 45, 0);
        for (lanes, depth) in [(16, 32), (1, 1), (15, 31), (16, 17), (7, 16), (3, 2), (16, 1), (1, 32)] {
            for (lane_stride, depth_stride) in [(45, 1), (1, 45), (2, 45), (45, 2)] {
                if (lanes - 1) * lane_stride + (depth - 1) * depth_stride >= matrix.data().len() {
                    continue;
                }
                for order in [Order::Rows, Order::Pairs] {
                    let corner = Corner { data: matrix.data(), lanes, depth, lane_stride, depth_stride, scale: 0.75 };
                    let mut tile = Tile([7; VALUES]);
                    pack(corner, order, &mut tile);
                    assert_eq!(tile, packed(corner, order), "{lanes} × {depth}, {lane_stride}, {order:?}");
                }
            }
        }
    }

    #[test]
    fn transposing_exchanges_lanes_and_depth() {
        let tile = |start: u16| Tile(std::array::from_fn(|place| start + place as u16));
        let (first, second) = (tile(0), tile(5000));
        let mut out = [Tile::ZERO; 2];
        let [low, high] = &mut out;
        transpose(&first, &second, [low, high]);
        for lane in 0..LANES {
            for depth in 0..DEPTH {
                let place = |half: usize| index(Order::Pairs, depth % LANES, half * LANES + lane);
                let source = index(Order::Pairs, lane, depth);
                assert_eq!(out[depth / LANES].0[place(0)], first.0[source]);
                assert_eq!(out[depth / LANES].0[place(1)], second.0[source]);
            }
        }
        let mut back = [Tile::ZERO; 2];
        let [low, high] = &mut back;
        transpose(&out[0], &out[1], [low, high]);
        assert_eq!(back, [first, second]);
    }

    #[test]
    fn rounds_to_the_nearest_and_ties_to_even() {
        assert_eq!(to_bf16(1.0), 0x3f80);
        assert_eq!(to_bf16(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(to_bf16(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(to_bf16(f32::from_bits(0x3f80_8001)), 0x3f81);
        assert_eq!(to_bf16(-1e-40), 0x8000);
        assert_eq!(to_bf16(f32::INFINITY), 0x7f80);
        assert_eq!(to_bf16(f32::MAX), 0x7f80);
        assert_eq!(to_bf16(f32::NAN) & 0x7fff, 0x7fc0);
    }
}
