//! Attention of a few queries to keys and values that lie in pieces, as in the pages of a cache: what generation does at
//! every step. What is computed is float32, whatever they lie as; a query's result depends on its own sequence alone.

use std::ops::Range;

use super::page_head::{Attending, MOST_MEMBERS};
use super::page_rows::{KeyValuePages, PageRows};
use super::{Attention, Bias, KeyValueRows};
use crate::kernels::{LINE, chunks_in_turn, prefetch_for_later};
use crate::{Segments, Workspace};

/// Sequences with fewer queries than this in a batch take the way of this file, whatever else is in the batch.
pub(super) const FEW: usize = 8;

/// All that the queries of one sequence may see.
pub(super) struct PagedSequence<'a> {
    pub(super) prefix: KeyValueRows<'a>,
    pub(super) own: &'a KeyValuePages<'a>,
    pub(super) bias: Option<Bias<'a>>,
}

/// A run of columns of the scores: rows of one piece.
pub(super) struct Part<'a> {
    pub(super) rows: PageRows<'a>,
    pub(super) range: Range<usize>,
    /// How far the first of them lies behind the query.
    pub(super) distance: isize,
}

/// Writes the outputs of the queries of `sequences` that `chosen` names to `output`, both laid out as `segments` says.
pub(super) fn attend(
    workspace: &Workspace,
    options: &Attention,
    query: &[f32],
    output: &mut [f32],
    segments: &Segments,
    sequences: &[PagedSequence<'_>],
    chosen: &[bool],
) {
    let width = options.heads * options.head_dim;
    let mut tasks = Vec::new();
    let mut rest = output;
    for ((range, sequence), chosen) in segments.ranges().zip(sequences).zip(chosen) {
        let (own, after) = rest.split_at_mut(range.len() * width);
        rest = after;
        if *chosen {
            let query = &query[range.start * width..range.end * width];
            tasks.push(Task { sequence, heads: 0..options.heads, query, output: own });
        }
    }
    let pieces = PIECES * rayon::current_num_threads();
    if tasks.len() < pieces && rayon::current_num_threads() > 1 {
        tasks = tasks.into_iter().flat_map(|task| task.by_heads(options)).collect();
    }
    // Sequences of a task follow one another: while one is worked on, the next one's keys and values are fetched.
    let piece = tasks.len().div_ceil(pieces).max(1);
    chunks_in_turn(&mut tasks, piece, |_, tasks| {
        let order: Vec<(&PagedSequence<'_>, usize)> =
            tasks.iter().map(|task| (task.sequence, task.heads.start)).collect();
        let mut attending = Attending::new(workspace);
        for (number, task) in tasks.iter_mut().enumerate() {
            let next = order.get(number + 1).filter(|(_, first_head)| *first_head == 0);
            task.run(&mut attending, workspace, options, next.map(|(sequence, _)| *sequence));
        }
    });
}

/// Queries of some heads of one sequence, and their outputs.
struct Task<'a> {
    sequence: &'a PagedSequence<'a>,
    heads: Range<usize>,
    query: &'a [f32],
    output: &'a mut [f32],
}

impl<'a> Task<'a> {
    /// A task for each few heads that are worked on together, where there is a single query; their outputs lie side by side.
    fn by_heads(self, options: &Attention) -> Vec<Self> {
        let Self { sequence, heads, query, output } = self;
        if query.len() > heads.len() * options.head_dim {
            return vec![Self { sequence, heads, query, output }];
        }
        let together = together(options);
        let floats = together * options.head_dim;
        let parts = query.chunks(floats).zip(output.chunks_mut(floats));
        heads
            .step_by(together)
            .zip(parts)
            .map(|(head, (query, output))| Self {
                sequence,
                heads: head..head + query.len() / options.head_dim,
                query,
                output,
            })
            .collect()
    }

    /// Computes the outputs, while the keys and values of `next` are fetched.
    fn run(
        &mut self,
        attending: &mut Attending,
        workspace: &Workspace,
        options: &Attention,
        next: Option<&PagedSequence<'_>>,
    ) {
        let Self { sequence, ref heads, query, ref mut output } = *self;
        let (together, size) = (together(options), options.head_dim);
        let width = heads.len() * size;
        let count = sequence.own.count(options);
        let queries = query.len() / width;
        let columns = sequence.prefix.count(options) + count;
        let mut scores = workspace.take(together.min(heads.len()) * columns);
        let mut next = Fetching::of(next, columns * heads.len() * queries);
        for (number, (query, output)) in query.chunks_exact(width).zip(output.chunks_exact_mut(width)).enumerate() {
            let position = count as isize - queries as isize + number as isize;
            let parts = parts(options, sequence, position, count);
            let members = query.chunks(together * size).zip(output.chunks_mut(together * size));
            for (first_head, (query, output)) in heads.clone().step_by(together).zip(members) {
                attending.head(options, &parts, sequence.bias, (query, output), first_head, (&mut scores, &mut next));
            }
        }
    }
}

/// Query heads that are worked on together: they share a head of keys and values.
fn together(options: &Attention) -> usize {
    let group = options.group();
    (1..=MOST_MEMBERS.min(group)).rev().find(|heads| group.is_multiple_of(*heads)).unwrap_or(1)
}

/// Pieces that the sequences of a thread are cut into, so that threads end together.
const PIECES: usize = 2;

/// Keys and values on their way into the second-level cache, a little at a time: memory is busy then while something is
/// computed, and both take as long as the longer of them.
pub(super) struct Fetching<'a> {
    /// What is left, side by side.
    sides: std::vec::IntoIter<&'a [u8]>,
    side: &'a [u8],
    /// Bytes that go with a score.
    rate: f32,
    /// Bytes that should have been fetched.
    due: f32,
}

impl<'a> Fetching<'a> {
    /// All of a sequence's own pages, while `scores` scores are computed and as many weights used.
    fn of(sequence: Option<&PagedSequence<'a>>, scores: usize) -> Self {
        /// Half of a second-level cache.
        const MOST: usize = 1 << 20;
        let pages = sequence.map_or(&[][..], |sequence| &sequence.own.pages);
        let mut left = MOST;
        let mut sides: Vec<&[u8]> = pages.iter().flat_map(PageRows::bytes).collect();
        for side in &mut sides {
            *side = &side[..side.len().min(left)];
            left -= side.len();
        }
        Self { sides: sides.into_iter(), side: &[], rate: (MOST - left) as f32 / (2 * scores).max(1) as f32, due: 0.0 }
    }

    /// Fetches what goes with `scores` more scores or weights.
    #[inline(always)]
    pub(super) fn fetch(&mut self, scores: usize) {
        self.due += self.rate * scores as f32;
        while self.due >= LINE as f32 {
            if self.side.is_empty() {
                match self.sides.next() {
                    Some(side) => self.side = side,
                    None => return self.rate = 0.0,
                }
            }
            let (now, after) = self.side.split_at(self.side.len().min(self.due as usize / LINE * LINE));
            prefetch_for_later(now, 0..now.len());
            self.due -= now.len().max(1) as f32;
            self.side = after;
        }
    }
}

/// The keys that the query at `position` sees.
fn parts<'a>(options: &Attention, sequence: &PagedSequence<'a>, position: isize, count: usize) -> Vec<Part<'a>> {
    let visible = options.visible(position, count);
    let prefixed = sequence.prefix.count(options);
    let mut parts = Vec::with_capacity(1 + sequence.own.pages.len());
    if prefixed > 0 {
        let distance = -(prefixed as isize) - position;
        parts.push(Part { rows: PageRows::Float32(sequence.prefix), range: 0..prefixed, distance });
    }
    let mut start = 0;
    for page in &sequence.own.pages {
        let rows = page.count(options);
        let range = visible.start.clamp(start, start + rows) - start..visible.end.clamp(start, start + rows) - start;
        if !range.is_empty() {
            let distance = (start + range.start) as isize - position;
            parts.push(Part { rows: *page, range, distance });
        }
        start += rows;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::bf16::{from_bf16, to_bf16};
    use crate::ops::attention::{KeyValuePairs, Prefix};
    use crate::ops::finite_differences::random;
    use crate::{Kernels, Matrix, Tape};

    /// Pages of some rows each, with the memory that they name.
    struct Stored {
        floats: Vec<[Vec<f32>; 2]>,
        pairs: Vec<[Vec<u32>; 2]>,
        width: usize,
    }

    impl Stored {
        /// `rows` rows of rounded values.
        fn random(rows: &[usize], width: usize, index: u64) -> Self {
            let side = |rows: usize, index: u64| -> Vec<f32> {
                random(rows, width, index).data().iter().map(|value| from_bf16(to_bf16(*value))).collect()
            };
            let floats: Vec<[Vec<f32>; 2]> = (index..)
                .step_by(2)
                .zip(rows)
                .map(|(index, rows)| [side(*rows, index), side(*rows, index + 1)])
                .collect();
            let stored = |[keys, values]: &[Vec<f32>; 2]| {
                let rows = keys.len() / width;
                // What earlier rows left there.
                let (mut key_pairs, mut value_pairs) = (vec![0; keys.len() / 2], vec![!0; rows.div_ceil(2) * width]);
                KeyValuePairs::store_keys(keys, &mut key_pairs);
                let (first, after) = values.split_at(rows.min(3) * width);
                KeyValuePairs::store_values(first, width, 0, &mut value_pairs);
                KeyValuePairs::store_values(after, width, rows.min(3), &mut value_pairs);
                [key_pairs, value_pairs]
            };
            let pairs = floats.iter().map(stored).collect();
            Self { floats, pairs, width }
        }

        fn pages(&self, in_pairs: bool) -> KeyValuePages<'_> {
            let floats = self.floats.iter().map(|[keys, values]| PageRows::Float32(KeyValueRows { keys, values }));
            let pairs = self
                .pairs
                .iter()
                .map(|[keys, values]| PageRows::Bf16(KeyValuePairs { width: self.width, keys, values }));
            KeyValuePages { pages: if in_pairs { pairs.collect() } else { floats.collect() } }
        }
    }

    #[test]
    fn pages_in_bf16_are_what_their_values_are_in_float32() {
        for (head_dim, group, window, queries) in [
            (64, 3, None, [1, 1]),
            (32, 1, None, [2, 1]),
            (64, 5, None, [1, 1]),
            (32, 4, None, [1, 1]),
            (96, 2, Some(40), [1, 3]),
            (64, 3, None, [20, 1]),
            (32, 20, None, [1, 1]),
            (160, 1, Some(33), [1, 2]),
        ] {
            let kv_heads = 2;
            let options = Attention {
                heads: kv_heads * group,
                kv_heads,
                head_dim,
                scale: 0.3,
                causal: true,
                window,
                dropout: 0.0,
            };
            let width = options.key_width();
            let all = [Stored::random(&[64, 7], width, 1), Stored::random(&[30], width, 20)];
            let floats = all.iter().flat_map(|stored| stored.floats.iter().flatten().flatten());
            let largest = floats.fold(0.0f32, |largest, value| largest.max(value.abs()));
            let mut query = random(queries.iter().sum(), options.heads * head_dim, 40);
            query.data_mut().iter_mut().for_each(|value| *value = from_bf16(to_bf16(*value)));
            // By vectors float32 throughout; by tiles weights, which sum to one, are rounded.
            let kernels = [(Some(Kernels::bf16_in_float32()), 1e-5), (Kernels::amx(), largest / 256.0)];
            let kernels = kernels.iter().filter_map(|(kernels, error)| kernels.map(|kernels| (kernels, *error)));
            for ((kernels, error), prefixed) in kernels.flat_map(|kernels| [(kernels, false), (kernels, true)]) {
                let workspace = Workspace::with_kernels(kernels);
                let tape = Tape::evaluating(&workspace);
                let prefix = prefixed.then(|| Prefix {
                    keys: tape.constant(random(5, width, 50)),
                    values: tape.constant(random(5, width, 51)),
                    ranges: vec![0..5, 2..4],
                });
                let output = |in_pairs: bool| -> Matrix {
                    let rows = all.each_ref().map(|stored| stored.pages(in_pairs));
                    let segments = Segments::from_lengths(queries);
                    let query = tape.constant(query.clone());
                    tape.attention_over(&options, &query, &segments, &rows, prefix.as_ref(), None).value().clone()
                };
                let (found, expected) = (output(true), output(false));
                for (place, (found, expected)) in found.data().iter().zip(expected.data()).enumerate() {
                    let off = (found - expected).abs();
                    assert!(
                        off <= error,
                        "{kernels:?}, {options:?}, {queries:?}, value {place}: {found} and {expected}"
                    );
                }
            }
        }
    }
}
