//! One head of keys and values in pieces, and the query heads that share it: scores, softmax, and weighted sums.

use super::page_rows::PageRows;
#[cfg(target_arch = "x86_64")]
use super::page_tiles::{HeadRows, PageTiles};
use super::page_vectors::{Scores, Weighted};
use super::pages::{Fetching, Part};
use super::scores::{exponentials, largest};
use super::{Attention, Bias};
use crate::Workspace;
#[cfg(target_arch = "x86_64")]
use crate::kernels::bf16::Unit;
use crate::kernels::vectorised;

/// Query heads that are worked on together, at the most.
pub(super) const MOST_MEMBERS: usize = 16;

/// How a thread attends to keys and values in bf16, one head after the other.
pub(super) struct Attending {
    #[cfg(target_arch = "x86_64")]
    tiles: Option<PageTiles>,
    #[cfg(target_arch = "x86_64")]
    has_tiles: bool,
}

impl Attending {
    /// By the unit that the workspace's products in bf16 use.
    pub(super) fn new(workspace: &Workspace) -> Self {
        #[cfg(target_arch = "x86_64")]
        return Self { tiles: None, has_tiles: workspace.kernels().unit() == Unit::Amx };
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = workspace;
            Self {}
        }
    }

    /// At most [`MOST_MEMBERS`] query heads, from `first_head` on, that share one head of keys and values: `query` and `output`
    /// `[heads, head_dim]`.
    pub(super) fn head(
        &mut self,
        options: &Attention,
        parts: &[Part<'_>],
        bias: Option<Bias<'_>>,
        (query, output): (&[f32], &mut [f32]),
        first_head: usize,
        (scores, next): (&mut [f32], &mut Fetching<'_>),
    ) {
        let columns: usize = parts.iter().map(|part| part.range.len()).sum();
        output.fill(0.0);
        if columns == 0 {
            return;
        }
        let (kv_head, size) = (first_head / options.group(), options.head_dim);
        let scores = &mut scores[..query.len() / size * columns];
        if parts.iter().any(|part| matches!(part.rows, PageRows::Bf16(_))) {
            self.take_query(query, size);
        }
        let mut column = 0;
        for part in parts {
            self.scores(Scores { options, part, kv_head, query, scores, columns, column }, next);
            if let Some(bias) = bias {
                for (member, scores) in scores.chunks_exact_mut(columns).enumerate() {
                    let scores = &mut scores[column..column + part.range.len()];
                    let values = bias.row(first_head + member, part.distance, scores.len());
                    scores.iter_mut().zip(values).for_each(|(score, value)| *score += value);
                }
            }
            column += part.range.len();
        }
        let mut factors = [0.0; MOST_MEMBERS];
        vectorised(
            #[inline(always)]
            || {
                for (factor, scores) in factors.iter_mut().zip(scores.chunks_exact_mut(columns)) {
                    let max = largest(scores);
                    *factor = 1.0 / exponentials(scores, max);
                }
            },
        );
        column = 0;
        for part in parts {
            self.add_weighted(Weighted { options, part, kv_head, weights: scores, columns, column, output }, next);
            column += part.range.len();
        }
        for (output, factor) in output.chunks_exact_mut(size).zip(factors) {
            output.iter_mut().for_each(|value| *value *= factor);
        }
    }

    fn take_query(&mut self, query: &[f32], size: usize) {
        #[cfg(target_arch = "x86_64")]
        if self.has_tiles {
            let members = query.len() / size;
            if self.tiles.as_ref().is_some_and(|tiles| tiles.members() != members) {
                self.tiles = None;
            }
            self.tiles.get_or_insert_with(|| PageTiles::configure(members)).take_query(query);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (query, size);
    }

    fn scores(&mut self, work: Scores<'_>, next: &mut Fetching<'_>) {
        #[cfg(target_arch = "x86_64")]
        if let (Some(tiles), PageRows::Bf16(page)) = (&mut self.tiles, work.part.rows) {
            let Scores { options, part, kv_head, columns, column, .. } = work;
            let rows = HeadRows { page, size: options.head_dim, head: kv_head, range: part.range.clone() };
            tiles.scores(&rows, options.scale, &mut work.scores[column..], columns, |scores| next.fetch(scores));
            return;
        }
        work.write(next);
    }

    fn add_weighted(&mut self, work: Weighted<'_>, next: &mut Fetching<'_>) {
        #[cfg(target_arch = "x86_64")]
        if let (Some(tiles), PageRows::Bf16(page)) = (&mut self.tiles, work.part.rows) {
            let Weighted { options, part, kv_head, columns, column, .. } = work;
            let rows = HeadRows { page, size: options.head_dim, head: kv_head, range: part.range.clone() };
            tiles.add_weighted(&rows, &work.weights[column..], columns, work.output, |weights| next.fetch(weights));
            return;
        }
        work.add(next);
    }
}
