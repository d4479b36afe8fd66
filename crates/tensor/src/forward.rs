//! One forward pass: the tape, the sequences, and which adapter each sequence uses. A model asks here at each of its
//! sites; whatever method answers, it never knows.

use std::ops::Range;

use crate::ops::attention::{Attention, DistanceBias, KeyValueRows, Prefix};
use crate::ops::cross_entropy::{CrossEntropy, IGNORED_TARGET};
use crate::projection::Projection;
use crate::tuner::{Affine, Base, Tuned, WeightTuner};
use crate::{Adapter, Matrix, Segments, SiteId, Tape, Var};

/// A forward pass over a batch. Sequences of one adapter lie next to each other.
pub struct Forward<'a> {
    tape: &'a mut Tape,
    segments: Segments,
    groups: Vec<Group<'a>>,
    /// Rows that input tuners put before each sequence; empty where none did.
    virtual_rows: Vec<usize>,
}

/// Consecutive sequences that share an adapter, or the base alone.
struct Group<'a> {
    adapter: Option<&'a Adapter>,
    sequences: Range<usize>,
}

impl<'a> Forward<'a> {
    /// A batch whose sequences all use `adapter`, or the base alone.
    pub fn new(tape: &'a mut Tape, segments: Segments, adapter: Option<&'a Adapter>) -> Self {
        let groups = vec![Group { adapter, sequences: 0..segments.len() }];
        Self { tape, segments, groups, virtual_rows: Vec::new() }
    }

    /// A batch with an adapter for each sequence; `None` is the base alone.
    ///
    /// # Panics
    /// If there is not one entry a sequence.
    pub fn mixed(tape: &'a mut Tape, segments: Segments, adapters: &[Option<&'a Adapter>]) -> Self {
        assert_eq!(segments.len(), adapters.len(), "each sequence names its adapter");
        let address = |adapter: Option<&Adapter>| adapter.map(std::ptr::from_ref);
        let mut groups: Vec<Group<'a>> = Vec::new();
        for (sequence, adapter) in adapters.iter().enumerate() {
            match groups.last_mut() {
                Some(last) if address(last.adapter) == address(*adapter) => last.sequences.end = sequence + 1,
                _ => groups.push(Group { adapter: *adapter, sequences: sequence..sequence + 1 }),
            }
        }
        Self { tape, segments, groups, virtual_rows: Vec::new() }
    }

    /// The tape.
    pub fn tape(&mut self) -> &mut Tape {
        self.tape
    }

    /// Goes on with other rows of the same sequences: an encoder-decoder passes from the encoder's tokens to the
    /// decoder's, which lie as `segments` says.
    ///
    /// # Panics
    /// If there is not one segment a sequence.
    pub fn begin(&mut self, segments: Segments) {
        assert_eq!(segments.len(), self.segments.len(), "each sequence has its rows");
        self.segments = segments;
        self.virtual_rows = Vec::new();
    }

    /// The sequences as rows of the batch, virtual tokens included.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    /// A linear site: `x` `[tokens, in]` to `[tokens, out]`.
    pub fn linear(&mut self, site: SiteId, base: Base<'_>, x: &Var) -> Var {
        let segments = self.segments.clone();
        self.linear_rows(site, base, x, &segments)
    }

    /// A linear site for a choice of rows: `segments` says which rows of `x` belong to which sequence.
    pub fn linear_rows(&mut self, site: SiteId, base: Base<'_>, x: &Var, segments: &Segments) -> Var {
        let projections = self.projections(site, base, x, segments);
        let parts: Vec<Var> = projections.into_iter().map(|projection| self.tape.project(projection)).collect();
        self.tape.concat_rows(&parts)
    }

    /// A linear site with cross-entropy, on the rows of `x` whose target is not [`IGNORED_TARGET`]. `per_row` of the
    /// result has an entry for each of those rows, in order.
    pub fn cross_entropy(&mut self, site: SiteId, base: Base<'_>, x: &Var, targets: &[u32]) -> CrossEntropy {
        let labelled: Vec<usize> = (0..targets.len()).filter(|row| targets[*row] != IGNORED_TARGET).collect();
        let targets: Vec<u32> = labelled.iter().map(|row| targets[*row]).collect();
        let counts = self.segments.ranges().map(|range| {
            labelled.partition_point(|row| *row < range.end) - labelled.partition_point(|row| *row < range.start)
        });
        let segments = Segments::from_lengths(counts.collect::<Vec<_>>());
        let x = self.tape.gather_rows(x, labelled);
        let mut total: Option<CrossEntropy> = None;
        let mut start = 0;
        for projection in self.projections(site, base, &x, &segments) {
            let end = start + projection.rows();
            let part = self.tape.cross_entropy(&projection, &targets[start..end]);
            start = end;
            total = Some(match total {
                None => part,
                Some(mut total) => {
                    total.per_row.extend(part.per_row);
                    CrossEntropy { sum: self.tape.add(&total.sum, part.sum), per_row: total.per_row }
                }
            });
        }
        total.unwrap_or_else(|| CrossEntropy { sum: self.tape.constant(Matrix::zeros(1, 1)), per_row: Vec::new() })
    }

    /// An embedding site: rows `ids` of the table, `[tokens, width]`.
    pub fn embedding(&mut self, site: SiteId, base: Base<'_>, ids: &[u32]) -> Var {
        let parts: Vec<Var> = self
            .weight_tuners(site, &self.segments)
            .into_iter()
            .map(|(rows, tuner)| match tuner {
                None => self.tape.embedding(&ids[rows], base.weight),
                Some(tuner) => {
                    let table = tuner.tuned(self.tape, base).weight;
                    self.tape.embedding_in(&ids[rows], &table)
                }
            })
            .collect();
        self.tape.concat_rows(&parts)
    }

    /// An RMS norm site.
    pub fn rms_norm(&mut self, site: SiteId, base: Base<'_>, x: &Var, epsilon: f32) -> Var {
        let parts: Vec<Var> = self
            .weight_tuners(site, &self.segments)
            .into_iter()
            .map(|(rows, tuner)| {
                let weight = match tuner {
                    None => self.tape.constant(base.weight.to_matrix()),
                    Some(tuner) => tuner.tuned(self.tape, base).weight,
                };
                let x = self.tape.slice_rows(x, rows);
                self.tape.rms_norm(&x, &weight, epsilon)
            })
            .collect();
        self.tape.concat_rows(&parts)
    }

    /// An RMS norm site whose weight is kept as its difference from one (Gemma): `y = x / √(mean(x²) + ε) · (1 + w)`.
    pub fn centred_rms_norm(&mut self, site: SiteId, base: Base<'_>, x: &Var, epsilon: f32) -> Var {
        let parts: Vec<Var> = self
            .weight_tuners(site, &self.segments)
            .into_iter()
            .map(|(rows, tuner)| {
                let weight = match tuner {
                    None => self.tape.constant(base.weight.to_matrix()),
                    Some(tuner) => tuner.tuned(self.tape, base).weight,
                };
                let weight = self.tape.shift(weight, 1.0);
                let x = self.tape.slice_rows(x, rows);
                self.tape.rms_norm(&x, &weight, epsilon)
            })
            .collect();
        self.tape.concat_rows(&parts)
    }

    /// A layer norm site; its bias may be absent.
    pub fn layer_norm(&mut self, site: SiteId, base: Base<'_>, x: &Var, epsilon: f32) -> Var {
        let parts: Vec<Var> = self
            .weight_tuners(site, &self.segments)
            .into_iter()
            .map(|(rows, tuner)| {
                let Tuned { weight, bias } = match tuner {
                    None => {
                        let weight = self.tape.constant(base.weight.to_matrix());
                        Tuned { weight, bias: base.bias.map(|bias| self.tape.constant(bias.to_matrix())) }
                    }
                    Some(tuner) => tuner.tuned(self.tape, base),
                };
                let bias = bias.unwrap_or_else(|| self.tape.constant(Matrix::zeros(1, weight.cols())));
                let x = self.tape.slice_rows(x, rows);
                self.tape.layer_norm(&x, &weight, &bias, epsilon)
            })
            .collect();
        self.tape.concat_rows(&parts)
    }

    /// A hidden site: a sub-layer's `input` and `output`, both `[tokens, hidden]`, to the output to use.
    pub fn hidden(&mut self, site: SiteId, input: &Var, output: Var) -> Var {
        if self.groups.iter().all(|group| group.adapter.and_then(|adapter| adapter.hidden(site)).is_none()) {
            return output;
        }
        let mut parts = Vec::new();
        for group in &self.groups {
            let rows = rows_of(&self.segments, &group.sequences);
            let part = self.tape.slice_rows(&output, rows.clone());
            parts.push(match group.adapter.and_then(|adapter| adapter.hidden(site)) {
                None => part,
                Some(tuner) => {
                    let input = self.tape.slice_rows(input, rows);
                    tuner.forward(self.tape, &input, part)
                }
            });
        }
        self.tape.concat_rows(&parts)
    }

    /// An attention site over the batch's own keys and values.
    pub fn attention(&mut self, site: SiteId, options: &Attention, query: &Var, keys: &Var, values: &Var) -> Var {
        self.biased_attention(site, options, None, query, keys, values)
    }

    /// The same with a bias on the scores.
    pub fn biased_attention(
        &mut self,
        site: SiteId,
        options: &Attention,
        bias: Option<&DistanceBias>,
        query: &Var,
        keys: &Var,
        values: &Var,
    ) -> Var {
        let prefix = self.prefix(site, keys.cols());
        let segments = &self.segments;
        self.tape.attention(options, query, segments, keys, values, segments, prefix.as_ref(), bias)
    }

    /// An attention site over other sequences' keys and values, one for each of the batch: `key_segments` says where
    /// they lie.
    pub fn cross_attention(
        &mut self,
        site: SiteId,
        options: &Attention,
        query: &Var,
        keys: &Var,
        values: &Var,
        key_segments: &Segments,
    ) -> Var {
        let prefix = self.prefix(site, keys.cols());
        self.tape.attention(options, query, &self.segments, keys, values, key_segments, prefix.as_ref(), None)
    }

    /// An attention site over keys and values in a cache, one entry a sequence. Outside differentiation only.
    pub fn attention_over(&mut self, site: SiteId, options: &Attention, query: &Var, rows: &[KeyValueRows<'_>]) -> Var {
        self.biased_attention_over(site, options, None, query, rows)
    }

    /// The same with a bias on the scores.
    pub fn biased_attention_over(
        &mut self,
        site: SiteId,
        options: &Attention,
        bias: Option<&DistanceBias>,
        query: &Var,
        rows: &[KeyValueRows<'_>],
    ) -> Var {
        let prefix = self.prefix(site, options.kv_heads * options.head_dim);
        self.tape.attention_over(options, query, &self.segments, rows, prefix.as_ref(), bias)
    }

    /// The keys and values that adapters put before each sequence at an attention site.
    fn prefix(&mut self, site: SiteId, cols: usize) -> Option<Prefix> {
        let mut ranges = vec![0..0; self.segments.len()];
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut rows = 0;
        for group in &self.groups {
            let Some(tuner) = group.adapter.and_then(|adapter| adapter.attention(site)) else { continue };
            let (key, value) = tuner.prefix(self.tape);
            assert!(key.cols() == cols && value.cols() == cols, "a prefix is as wide as the keys");
            ranges[group.sequences.clone()].fill(rows..rows + key.rows());
            rows += key.rows();
            keys.push(key);
            values.push(value);
        }
        (rows > 0).then(|| Prefix {
            keys: self.tape.concat_rows(&keys),
            values: self.tape.concat_rows(&values),
            ranges,
        })
    }

    /// How far prefixes shift the positions of each sequence.
    pub fn position_offsets(&self) -> Vec<usize> {
        let mut offsets = vec![0; self.segments.len()];
        for group in &self.groups {
            offsets[group.sequences.clone()].fill(group.adapter.map_or(0, Adapter::prefix_length));
        }
        offsets
    }

    /// The input site: puts virtual tokens before the sequences that `fresh` marks as beginning here. From here until
    /// [`Forward::output`] they are rows of the batch.
    pub fn input(&mut self, site: SiteId, embedded: Var, fresh: &[bool]) -> Var {
        let tuner = |group: &Group<'a>| group.adapter.and_then(|adapter| adapter.input(site));
        if self.groups.iter().all(|group| tuner(group).is_none()) {
            return embedded;
        }
        let mut parts = Vec::new();
        let mut virtual_rows = vec![0; self.segments.len()];
        for group in &self.groups {
            let virtual_tokens = tuner(group).map(|tuner| tuner.embeddings(self.tape));
            for sequence in group.sequences.clone() {
                if let Some(virtual_tokens) = virtual_tokens.as_ref().filter(|_| fresh[sequence]) {
                    virtual_rows[sequence] = virtual_tokens.rows();
                    parts.push(virtual_tokens.clone());
                }
                parts.push(self.tape.slice_rows(&embedded, self.segments.range(sequence)));
            }
        }
        let lengths = (0..self.segments.len()).map(|sequence| virtual_rows[sequence] + self.segments.length(sequence));
        self.segments = Segments::from_lengths(lengths.collect::<Vec<_>>());
        self.virtual_rows = virtual_rows;
        self.tape.concat_rows(&parts)
    }

    /// The end of the blocks: takes the rows of virtual tokens out again.
    pub fn output(&mut self, hidden: Var) -> Var {
        let virtual_rows = std::mem::take(&mut self.virtual_rows);
        if virtual_rows.iter().all(|rows| *rows == 0) {
            return hidden;
        }
        let ranges = self.segments.ranges().zip(&virtual_rows);
        let kept: Vec<Range<usize>> = ranges.map(|(range, rows)| range.start + rows..range.end).collect();
        self.segments = Segments::from_lengths(kept.iter().map(ExactSizeIterator::len));
        self.tape.gather_rows(&hidden, kept.into_iter().flatten().collect())
    }

    /// The tuner of each group at a weight site, with the group's rows. One entry for all rows where no group has one.
    fn weight_tuners(&self, site: SiteId, segments: &Segments) -> Vec<(Range<usize>, Option<&'a dyn WeightTuner>)> {
        let tuners = self.groups.iter().map(|group| {
            let tuner = group.adapter.and_then(|adapter| adapter.weight(site));
            (rows_of(segments, &group.sequences), tuner)
        });
        let tuners: Vec<_> = tuners.collect();
        if tuners.iter().all(|(_, tuner)| tuner.is_none()) { vec![(0..segments.total(), None)] } else { tuners }
    }

    /// What a linear site computes, as projections of consecutive rows. A single one wherever all adapters build on
    /// the frozen product, so that it runs once for the whole batch.
    fn projections(&mut self, site: SiteId, base: Base<'_>, x: &Var, segments: &Segments) -> Vec<Projection> {
        let mut affines: Vec<(Range<usize>, Option<Affine>)> = Vec::new();
        for (rows, tuner) in self.weight_tuners(site, segments) {
            let affine = tuner.map(|tuner| {
                let x = self.tape.slice_rows(x, rows.clone());
                tuner.affine(self.tape, base, &x)
            });
            affines.push((rows, affine));
        }
        if affines.iter().all(|(_, affine)| affine.as_ref().is_none_or(|affine| affine.base)) {
            return vec![self.projection(base, x, affines)];
        }
        let split = affines.into_iter().map(|(rows, affine)| {
            let x = self.tape.slice_rows(x, rows.clone());
            let all = 0..rows.len();
            self.projection(base, &x, vec![(all, affine)])
        });
        split.collect()
    }

    fn projection(&self, base: Base<'_>, x: &Var, affines: Vec<(Range<usize>, Option<Affine>)>) -> Projection {
        let on_base = affines.iter().all(|(_, affine)| affine.as_ref().is_none_or(|affine| affine.base));
        let mut projection =
            if on_base { Projection::frozen(x, base) } else { Projection::empty(x.rows(), base.weight.rows()) };
        let tunes_bias = affines.iter().any(|(_, affine)| affine.as_ref().is_some_and(|affine| affine.bias.is_some()));
        let frozen_bias = if tunes_bias || !on_base { base.bias } else { None };
        if let Some(product) = projection.base.as_mut().filter(|_| tunes_bias) {
            product.bias = None;
        }
        for (rows, affine) in affines {
            let (terms, bias) = affine.map_or((Vec::new(), None), |affine| (affine.terms, affine.bias));
            projection.terms.extend(terms.into_iter().map(|term| (rows.clone(), term)));
            let bias = bias.or_else(|| frozen_bias.map(|bias| self.tape.constant(bias.to_matrix())));
            projection.biases.extend(bias.map(|bias| (rows, bias)));
        }
        projection
    }
}

fn rows_of(segments: &Segments, sequences: &Range<usize>) -> Range<usize> {
    if sequences.is_empty() {
        return 0..0;
    }
    segments.range(sequences.start).start..segments.range(sequences.end - 1).end
}
