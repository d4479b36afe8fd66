//! One forward pass: the tape, the sequences, and which adapter each sequence uses. A model asks here at each of its
//! sites; whatever method answers, it never knows.

use std::ops::Range;

use crate::checkpoint::Begin;
use crate::ops::attention::{Attention, DistanceBias, KeyValueRows, Prefix, ShiftedGroups};
use crate::ops::cross_entropy::{CrossEntropy, IGNORED_TARGET};
use crate::projection::Projection;
use crate::tuner::{Affine, Base, SubLayer, Tuned, WeightTuner};
use crate::{Adapter, Matrix, Segments, SiteId, Tape, Var};

/// A forward pass over a batch. Sequences of one adapter lie next to each other.
pub struct Forward<'a> {
    tape: &'a mut Tape,
    segments: Segments,
    groups: Vec<Group<'a>>,
    /// Length of each sequence's prompt, in tokens; `None` where whole sequences are prompts.
    prompts: Option<Vec<usize>>,
    /// The virtual rows of each sequence; empty where there are none.
    virtual_rows: Vec<VirtualRows>,
}

/// Rows that an input tuner put into one sequence.
#[derive(Clone, Debug, Default)]
struct VirtualRows {
    /// How many, before the sequence.
    prefix: usize,
    /// How many, after its prompt.
    infix: usize,
    /// Length of the prompt.
    prompt: usize,
}

/// The layer norm after a sub-layer's addition in a post-norm block.
#[derive(Clone, Copy, Debug)]
pub struct PostNorm<'a> {
    /// The norm's site.
    pub site: SiteId,
    /// Its frozen weight and bias.
    pub base: Base<'a>,
    /// Added to the variance.
    pub epsilon: f32,
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
        Self { tape, segments, groups, prompts: None, virtual_rows: Vec::new() }
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
        Self { tape, segments, groups, prompts: None, virtual_rows: Vec::new() }
    }

    /// The same with the length of each sequence's prompt, in tokens: virtual tokens that belong after a prompt go
    /// there. Without this they go after the whole sequence.
    ///
    /// # Panics
    /// If there is not one entry a sequence.
    #[must_use]
    pub fn with_prompts(mut self, lengths: Vec<usize>) -> Self {
        assert_eq!(lengths.len(), self.segments.len(), "each sequence has a prompt");
        self.prompts = Some(lengths);
        self
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
        self.prompts = None;
        self.virtual_rows = Vec::new();
    }

    /// One of the model's blocks: `run` computes its output, shaped as the first of `inputs`, from `inputs`, which are all
    /// the values of this pass that it uses. A tape may keep only the inputs and run the block again on the way back
    /// ([`Tape::checkpointing`]).
    pub fn block(&mut self, inputs: &[&Var], run: impl FnOnce(&mut Self, &[Var]) -> Var) -> Var {
        match self.tape.begin_block(inputs) {
            Begin::Skip(output) => output,
            Begin::Run(inputs, begun) => {
                let output = run(self, &inputs);
                self.tape.end_block(begun, output)
            }
        }
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
        if let [(_, Some(tuner))] = self.weight_tuners(site, segments)[..]
            && let Some(update) = tuner.low_rank(self.tape)
        {
            return self.tape.linear_low_rank(x, base, &update);
        }
        let affines = self.affines(site, base, x, segments);
        let projections = self.projections(base, x, affines);
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
        let mut affines = self.affines(site, base, &x, &segments);
        let tuners = self.weight_tuners(site, &segments);
        for ((rows, affine), (_, tuner)) in affines.iter_mut().zip(tuners) {
            // The fused operation knows products and biases; a scaled sum takes the long way, over the tuned weight.
            if let (Some(tuner), true) =
                (tuner, affine.as_ref().is_some_and(|affine| affine.scale.is_some() || affine.plus.is_some()))
            {
                let tuned = tuner.tuned(self.tape, base);
                *affine = Some(Affine::of(&self.tape.slice_rows(&x, rows.clone()), tuned));
            }
        }
        for projection in self.projections(base, &x, affines) {
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
        if self.tape.is_replaying() {
            // Blocks that run again have their inputs; only shapes matter here.
            let values = Matrix::uninitialised(self.tape.workspace(), ids.len(), base.weight.cols());
            return self.tape.constant(values);
        }
        let parts: Vec<Var> = self
            .weight_tuners(site, &self.segments)
            .into_iter()
            .map(|(rows, tuner)| match tuner {
                None => self.tape.embedding(&ids[rows], base.weight),
                Some(tuner) => tuner.embedding(self.tape, base, &ids[rows]),
            })
            .collect();
        self.tape.concat_rows(&parts)
    }

    /// An RMS norm site; a weight that is narrower than `x` norms each head of a row on its own.
    pub fn rms_norm(&mut self, site: SiteId, base: Base<'_>, x: &Var, epsilon: f32) -> Var {
        self.norm(site, base, x, |tape, x, tuned| tape.rms_norm(x, &tuned.weight, epsilon))
    }

    /// An RMS norm site whose weight is kept as its difference from one (Gemma): `y = x / √(mean(x²) + ε) · (1 + w)`.
    pub fn centred_rms_norm(&mut self, site: SiteId, base: Base<'_>, x: &Var, epsilon: f32) -> Var {
        self.norm(site, base, x, |tape, x, tuned| {
            let weight = tape.shift(tuned.weight.clone(), 1.0);
            tape.rms_norm(x, &weight, epsilon)
        })
    }

    /// A layer norm site; its bias may be absent.
    pub fn layer_norm(&mut self, site: SiteId, base: Base<'_>, x: &Var, epsilon: f32) -> Var {
        self.norm(site, base, x, |tape, x, tuned| layer_norm(tape, x, tuned, epsilon))
    }

    /// A norm site: the norm of the rows of each adapter with its tuned weight and bias.
    fn norm(&mut self, site: SiteId, base: Base<'_>, x: &Var, norm: impl Fn(&mut Tape, &Var, &Tuned) -> Var) -> Var {
        let parts: Vec<Var> = self
            .weight_tuners(site, &self.segments)
            .into_iter()
            .map(|(rows, tuner)| {
                let tuned = tuned(self.tape, base, tuner);
                let x = self.tape.slice_rows(x, rows);
                norm(self.tape, &x, &tuned)
            })
            .collect();
        self.tape.concat_rows(&parts)
    }

    /// A hidden site of a pre-norm block: the residual stream after a sub-layer, from the stream before it and what the
    /// sub-layer computed, all `[tokens, hidden]`.
    pub fn hidden(&mut self, site: SiteId, residual: &Var, output: Var) -> Var {
        if self.has_hidden(site) {
            self.hidden_groups(site, residual, output, None)
        } else {
            self.tape.add(residual, output)
        }
    }

    /// A hidden site of a post-norm block: the same, normed.
    pub fn hidden_post_norm(&mut self, site: SiteId, residual: &Var, output: Var, norm: PostNorm<'_>) -> Var {
        if self.has_hidden(site) {
            return self.hidden_groups(site, residual, output, Some(norm));
        }
        let sum = self.tape.add(residual, output);
        self.layer_norm(norm.site, norm.base, &sum, norm.epsilon)
    }

    fn has_hidden(&self, site: SiteId) -> bool {
        self.groups.iter().any(|group| group.adapter.is_some_and(|adapter| adapter.hidden(site).is_some()))
    }

    /// A hidden site, group by group.
    fn hidden_groups(&mut self, site: SiteId, residual: &Var, output: Var, norm: Option<PostNorm<'_>>) -> Var {
        let mut parts = Vec::new();
        for group in &self.groups {
            let rows = rows_of(&self.segments, &group.sequences);
            let virtual_rows = self.virtual_rows_of(group);
            let tuned = norm.map(|norm| {
                let tuner = group.adapter.and_then(|adapter| adapter.weight(norm.site));
                (tuned(self.tape, norm.base, tuner), norm.epsilon)
            });
            let apply =
                tuned.as_ref().map(|(tuned, epsilon)| |tape: &mut Tape, x: &Var| layer_norm(tape, x, tuned, *epsilon));
            let sub_layer = SubLayer {
                residual: self.tape.slice_rows(residual, rows.clone()),
                output: self.tape.slice_rows(&output, rows),
                norm: apply.as_ref().map(|norm| norm as &dyn Fn(&mut Tape, &Var) -> Var),
                virtual_rows: &virtual_rows,
            };
            parts.push(match group.adapter.and_then(|adapter| adapter.hidden(site)) {
                None => sub_layer.stream(self.tape),
                Some(tuner) => tuner.forward(self.tape, sub_layer),
            });
        }
        self.tape.concat_rows(&parts)
    }

    /// Rows of virtual tokens among the rows of a group.
    fn virtual_rows_of(&self, group: &Group<'_>) -> Vec<usize> {
        let first = rows_of(&self.segments, &group.sequences).start;
        let sequences =
            group.sequences.clone().zip(self.virtual_rows.get(group.sequences.clone()).into_iter().flatten());
        let rows = sequences.flat_map(|(sequence, VirtualRows { prefix, infix, prompt })| {
            let start = self.segments.range(sequence).start - first;
            (start..start + prefix).chain(start + prefix + prompt..start + prefix + prompt + infix)
        });
        rows.collect()
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
        if let (Some(groups), None, None) = (self.shifted_groups(options), &prefix, bias) {
            return self.tape.shifted_attention(options, &groups, query, keys, values, segments);
        }
        if let Some(prefix) = prefix.as_ref().filter(|_| options.window.is_some()) {
            let (keys, values, key_segments) = self.behind_prefix(prefix, keys, values);
            let segments = &self.segments;
            return self.tape.attention(options, query, segments, &keys, &values, &key_segments, None, bias);
        }
        self.tape.attention(options, query, segments, keys, values, segments, prefix.as_ref(), bias)
    }

    /// A table `[buckets, heads]` at an embedding site as a bias on attention's scores: `buckets[zero + d]` is the bucket
    /// of keys `d` places after the query.
    pub fn distance_bias(&mut self, site: SiteId, base: Base<'_>, buckets: &[usize], zero: usize) -> DistanceBias {
        let mut tuners: Vec<Option<&dyn WeightTuner>> = Vec::new();
        let mut tables = vec![0; self.segments.len()];
        for group in &self.groups {
            let tuner = group.adapter.and_then(|adapter| adapter.weight(site));
            let address = |tuner: &Option<&dyn WeightTuner>| tuner.map(|tuner| std::ptr::from_ref(tuner).cast::<()>());
            let known = tuners.iter().position(|other| address(other) == address(&tuner));
            tables[group.sequences.clone()].fill(known.unwrap_or(tuners.len()));
            if known.is_none() {
                tuners.push(tuner);
            }
        }
        let values: Vec<Var> = tuners
            .into_iter()
            .map(|tuner| {
                let table = tuned(self.tape, base, tuner).weight;
                let by_distance = self.tape.gather_rows(&table, buckets.to_vec());
                self.tape.transpose(&by_distance)
            })
            .collect();
        DistanceBias { values: self.tape.concat_rows(&values), tables, zero }
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
        if let Some(prefix) = prefix.as_ref().filter(|_| options.window.is_some()) {
            let joined: Vec<[Vec<f32>; 2]> = rows
                .iter()
                .zip(&prefix.ranges)
                .map(|(rows, range)| {
                    let join = |prefix: &Var, own: &[f32]| {
                        let cols = prefix.cols();
                        [&prefix.value().data()[range.start * cols..range.end * cols], own].concat()
                    };
                    [join(&prefix.keys, rows.keys), join(&prefix.values, rows.values)]
                })
                .collect();
            let rows: Vec<KeyValueRows<'_>> =
                joined.iter().map(|[keys, values]| KeyValueRows { keys, values }).collect();
            return self.tape.attention_over(options, query, &self.segments, &rows, None, bias);
        }
        self.tape.attention_over(options, query, &self.segments, rows, prefix.as_ref(), bias)
    }

    /// How the batch's adapter groups tokens, where this is training and attention is causal over whole sequences.
    fn shifted_groups(&self, options: &Attention) -> Option<ShiftedGroups> {
        let [group] = self.groups.as_slice() else { return None };
        let groups = group.adapter.and_then(Adapter::shifted_groups);
        groups.filter(|_| self.tape.is_training() && options.causal && options.window.is_none())
    }

    /// Keys and values with those of a prefix before each sequence, and where they lie. Within a sliding window the rows
    /// of a prefix count as positions, as in transformers.
    fn behind_prefix(&mut self, prefix: &Prefix, keys: &Var, values: &Var) -> (Var, Var, Segments) {
        let ranges: Vec<_> = self.segments.ranges().zip(prefix.ranges.iter().cloned()).collect();
        let mut join = |prefix: &Var, own: &Var| {
            let parts: Vec<Var> = ranges
                .iter()
                .flat_map(|(rows, range)| [(prefix, range), (own, rows)])
                .filter(|(_, rows)| !rows.is_empty())
                .map(|(side, rows)| self.tape.slice_rows(side, rows.clone()))
                .collect();
            self.tape.concat_rows(&parts)
        };
        let (keys, values) = (join(&prefix.keys, keys), join(&prefix.values, values));
        (keys, values, Segments::from_lengths(ranges.iter().map(|(rows, range)| rows.len() + range.len())))
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

    /// The input site: puts virtual tokens into the sequences that `fresh` marks as beginning here. From here until
    /// [`Forward::output`] they are rows of the batch.
    pub fn input(&mut self, site: SiteId, embedded: Var, fresh: &[bool]) -> Var {
        let tuner = |group: &Group<'a>| group.adapter.and_then(|adapter| adapter.input(site));
        if self.groups.iter().all(|group| tuner(group).is_none()) {
            return embedded;
        }
        let mut parts = Vec::new();
        let mut virtual_rows = vec![VirtualRows::default(); self.segments.len()];
        for group in &self.groups {
            let tuner = tuner(group);
            let embeddings = tuner.map(|tuner| (tuner.length(), tuner.infix_length(), tuner.embeddings(self.tape)));
            for sequence in group.sequences.clone() {
                let rows = self.segments.range(sequence);
                let Some((prefix, infix, embeddings)) = embeddings.as_ref().filter(|_| fresh[sequence]) else {
                    parts.push(self.tape.slice_rows(&embedded, rows));
                    continue;
                };
                assert_eq!(embeddings.rows(), prefix + infix, "each virtual token has its embedding");
                let prompt = self.prompts.as_ref().map_or(rows.len(), |prompts| prompts[sequence].min(rows.len()));
                virtual_rows[sequence] = VirtualRows { prefix: *prefix, infix: *infix, prompt };
                let split = if *infix == 0 { rows.end } else { rows.start + prompt };
                let pieces = [
                    self.tape.slice_rows(embeddings, 0..*prefix),
                    self.tape.slice_rows(&embedded, rows.start..split),
                    self.tape.slice_rows(embeddings, *prefix..prefix + infix),
                    self.tape.slice_rows(&embedded, split..rows.end),
                ];
                parts.extend(pieces.into_iter().filter(|piece| piece.rows() > 0));
            }
        }
        let lengths =
            self.segments.ranges().zip(&virtual_rows).map(|(rows, added)| rows.len() + added.prefix + added.infix);
        self.segments = Segments::from_lengths(lengths.collect::<Vec<_>>());
        self.virtual_rows = virtual_rows;
        self.tape.concat_rows(&parts)
    }

    /// One value for each of the batch's rows, from one for each token: virtual tokens get `filling`.
    ///
    /// # Panics
    /// If there is not one value a token.
    pub fn spread<T: Copy>(&self, values: &[T], filling: T) -> Vec<T> {
        let nothing = VirtualRows::default();
        let mut spread = Vec::with_capacity(self.segments.total());
        let mut rest = values;
        for sequence in 0..self.segments.len() {
            let VirtualRows { prefix, infix, prompt } = self.virtual_rows.get(sequence).unwrap_or(&nothing);
            let (own, after) = rest.split_at(self.segments.length(sequence) - prefix - infix);
            rest = after;
            let split = if *infix == 0 { own.len() } else { *prompt };
            spread.extend(std::iter::repeat_n(filling, *prefix));
            spread.extend_from_slice(&own[..split]);
            spread.extend(std::iter::repeat_n(filling, *infix));
            spread.extend_from_slice(&own[split..]);
        }
        assert!(rest.is_empty(), "each token has one value");
        spread
    }

    /// The end of the blocks: takes the rows of virtual tokens out again. Where virtual tokens follow a prompt, the last
    /// of them stands for the prompt's last token, because what comes next follows it.
    pub fn output(&mut self, hidden: Var) -> Var {
        let virtual_rows = std::mem::take(&mut self.virtual_rows);
        if virtual_rows.iter().all(|rows| rows.prefix + rows.infix == 0) {
            return hidden;
        }
        let mut kept = Vec::new();
        let mut lengths = Vec::new();
        for (range, VirtualRows { prefix, infix, prompt }) in self.segments.ranges().zip(&virtual_rows) {
            let before = kept.len();
            kept.extend(range.start + prefix..(range.start + prefix + prompt).min(range.end));
            if let Some(last) = kept[before..].last_mut() {
                *last += infix;
            }
            kept.extend(range.start + prefix + prompt + infix..range.end);
            lengths.push(kept.len() - before);
        }
        self.segments = Segments::from_lengths(lengths);
        self.tape.gather_rows(&hidden, kept)
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

    /// What each group computes at a linear site, with its rows.
    fn affines(
        &mut self,
        site: SiteId,
        base: Base<'_>,
        x: &Var,
        segments: &Segments,
    ) -> Vec<(Range<usize>, Option<Affine>)> {
        let tuners = self.weight_tuners(site, segments).into_iter();
        let affines = tuners.map(|(rows, tuner)| {
            let affine = tuner.map(|tuner| {
                let x = self.tape.slice_rows(x, rows.clone());
                tuner.affine(self.tape, base, &x)
            });
            (rows, affine)
        });
        affines.collect()
    }

    /// What a linear site computes, as projections of consecutive rows. A single one wherever all adapters build on
    /// the frozen product, so that it runs once for the whole batch.
    fn projections(
        &mut self,
        base: Base<'_>,
        x: &Var,
        affines: Vec<(Range<usize>, Option<Affine>)>,
    ) -> Vec<Projection> {
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

    fn projection(&mut self, base: Base<'_>, x: &Var, affines: Vec<(Range<usize>, Option<Affine>)>) -> Projection {
        let on_base = affines.iter().all(|(_, affine)| affine.as_ref().is_none_or(|affine| affine.base));
        let changes_bias = affines
            .iter()
            .any(|(_, affine)| affine.as_ref().is_some_and(|affine| affine.bias.is_some() || affine.scale.is_some()));
        let input = if on_base { self.frozen_input(x, &affines) } else { x.clone() };
        let mut projection =
            if on_base { Projection::frozen(&input, base) } else { Projection::empty(x.rows(), base.weight.rows()) };
        let frozen_bias = if changes_bias || !on_base { base.bias } else { None };
        if let Some(product) = projection.base.as_mut().filter(|_| changes_bias) {
            product.bias = None;
        }
        for (rows, affine) in affines {
            let Affine { terms, scale, plus, bias, .. } = affine.unwrap_or_else(Affine::frozen);
            projection.terms.extend(terms.into_iter().map(|term| (rows.clone(), term)));
            projection.scales.extend(scale.map(|scale| (rows.clone(), scale)));
            projection.added.extend(plus.map(|plus| (rows.clone(), plus)));
            let bias = bias.or_else(|| frozen_bias.map(|bias| self.tape.constant(bias.to_matrix())));
            projection.biases.extend(bias.map(|bias| (rows, bias)));
        }
        projection
    }

    /// What goes into the frozen product: `x`, but for the rows of tuners that change it.
    fn frozen_input(&mut self, x: &Var, affines: &[(Range<usize>, Option<Affine>)]) -> Var {
        let input = |affine: &Option<Affine>| affine.as_ref().and_then(|affine| affine.input.clone());
        if affines.iter().all(|(_, affine)| input(affine).is_none()) {
            return x.clone();
        }
        let parts: Vec<Var> = affines
            .iter()
            .map(|(rows, affine)| input(affine).unwrap_or_else(|| self.tape.slice_rows(x, rows.clone())))
            .collect();
        self.tape.concat_rows(&parts)
    }
}

/// The weight and bias of a site, tuned or not.
fn tuned(tape: &mut Tape, base: Base<'_>, tuner: Option<&dyn WeightTuner>) -> Tuned {
    match tuner {
        Some(tuner) => tuner.tuned(tape, base),
        None => Tuned {
            weight: tape.constant(base.weight.to_matrix()),
            bias: base.bias.map(|bias| tape.constant(bias.to_matrix())),
        },
    }
}

/// A layer norm with a tuned weight and bias; a bias that is absent is zero.
fn layer_norm(tape: &mut Tape, x: &Var, tuned: &Tuned, epsilon: f32) -> Var {
    let bias = match &tuned.bias {
        Some(bias) => bias.clone(),
        None => tape.constant(Matrix::zeros(1, tuned.weight.cols())),
    };
    tape.layer_norm(x, &tuned.weight, &bias, epsilon)
}

fn rows_of(segments: &Segments, sequences: &Range<usize>) -> Range<usize> {
    if sequences.is_empty() {
        return 0..0;
    }
    segments.range(sequences.start).start..segments.range(sequences.end - 1).end
}
