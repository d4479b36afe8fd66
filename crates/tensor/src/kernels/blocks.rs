//! Blocks of a thin product's middle: what lets rows of several adapters share one product.

use std::ops::Range;

/// Rows, the columns that they keep, and what those are multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ScaledBlock {
    pub(crate) rows: Range<usize>,
    pub(crate) columns: Range<usize>,
    pub(crate) scale: f32,
}

/// Multiplies in each of `rows`, which are `stride` values apart and of which the first is number `first`, the columns of its
/// block by the block's scale, and zeroes its other values up to column `cols`. Without `blocks` all stays as it is.
pub(crate) fn keep_blocks(rows: &mut [f32], stride: usize, cols: usize, first: usize, blocks: &[ScaledBlock]) {
    if blocks.is_empty() {
        return;
    }
    for (place, row) in rows.chunks_mut(stride).enumerate() {
        let row = &mut row[..cols];
        match blocks.iter().find(|block| block.rows.contains(&(first + place))) {
            None => row.fill(0.0),
            Some(ScaledBlock { columns, scale, .. }) => {
                row[..columns.start].fill(0.0);
                row[columns.end..].fill(0.0);
                row[columns.clone()].iter_mut().for_each(|value| *value *= scale);
            }
        }
    }
}

/// Which of `rows`, the first of all being number `first`, share which columns of a middle of `rank`: those of each block, or
/// all of both without blocks.
pub(crate) fn shares(
    blocks: &[ScaledBlock],
    first: usize,
    rows: Range<usize>,
    rank: usize,
) -> Vec<(Range<usize>, Range<usize>)> {
    if blocks.is_empty() {
        return vec![(rows, 0..rank)];
    }
    let share = |block: &ScaledBlock| {
        let place = |row: usize| row.saturating_sub(first).clamp(rows.start, rows.end);
        (place(block.rows.start)..place(block.rows.end), block.columns.clone())
    };
    blocks.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_keeps_its_blocks_columns_and_nothing_else() {
        let blocks = [
            ScaledBlock { rows: 0..2, columns: 0..2, scale: 2.0 },
            ScaledBlock { rows: 3..4, columns: 2..3, scale: -0.5 },
        ];
        let ones = || vec![1.0; 12];
        let mut rows = ones();
        keep_blocks(&mut rows, 4, 3, 1, &blocks);
        assert_eq!(rows, [2.0, 2.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, -0.5, 1.0]);
        let mut rows = ones();
        keep_blocks(&mut rows, 4, 3, 1, &[]);
        assert_eq!(rows, ones());
        assert_eq!(shares(&blocks, 1, 0..3, 3), [(0..1, 0..2), (2..3, 2..3)]);
        assert_eq!(shares(&blocks, 0, 1..2, 3), [(1..2, 0..2), (2..2, 2..3)]);
        assert_eq!(shares(&[], 5, 1..2, 3), [(1..2, 0..3)]);
    }
}
