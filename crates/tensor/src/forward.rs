//! One forward pass: the tape, the sequences, and which adapter each sequence uses. A model asks here at each of its
//! sites; whatever method answers, it never knows.

mod attention;
mod feed_forward;
mod inference;
mod linear;
mod self_attention;

pub use feed_forward::FeedForwardSites;
pub use self_attention::SelfAttentionSites;

use std::ops::Range;

use crate::checkpoint::Begin;
use crate::tuner::{Base, SubLayer, Tuned, WeightTuner};
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
        if !self.has_hidden(site) {
            self.tape.add(residual, output)
        } else if self.tape.is_inferring() {
            self.infer_hidden(site, residual, output)
        } else {
            self.hidden_groups(site, residual, output, None)
        }
    }

    /// The same outside of training: only rows that have a tuner are taken apart.
    fn infer_hidden(&mut self, site: SiteId, residual: &Var, output: Var) -> Var {
        let mut tuned = Vec::new();
        for group in &self.groups {
            if let Some(tuner) = group.adapter.and_then(|adapter| adapter.hidden(site)) {
                let rows = self.segments.rows(&group.sequences);
                let virtual_rows = self.virtual_rows_of(group);
                let sub_layer = SubLayer {
                    residual: self.tape.slice_rows(residual, rows.clone()),
                    output: self.tape.slice_rows(&output, rows.clone()),
                    norm: None,
                    virtual_rows: &virtual_rows,
                };
                tuned.push((rows, tuner.forward(self.tape, sub_layer)));
            }
        }
        let mut stream = self.tape.add(residual, output).into_matrix(self.tape.workspace());
        let cols = stream.cols();
        for (rows, own) in tuned {
            stream.data_mut()[rows.start * cols..rows.end * cols].copy_from_slice(own.value().data());
        }
        self.tape.constant(stream)
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
            let rows = self.segments.rows(&group.sequences);
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
        let first = self.segments.rows(&group.sequences).start;
        let sequences =
            group.sequences.clone().zip(self.virtual_rows.get(group.sequences.clone()).into_iter().flatten());
        let rows = sequences.flat_map(|(sequence, VirtualRows { prefix, infix, prompt })| {
            let start = self.segments.range(sequence).start - first;
            (start..start + prefix).chain(start + prefix + prompt..start + prefix + prompt + infix)
        });
        rows.collect()
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
    fn weight_tuners(&self, site: SiteId, segments: &Segments) -> Tuners<'a> {
        /// Sites that are asked for before the one whose tuners are fetched.
        const AHEAD: usize = 4;
        let tuners = self.groups.iter().map(|group| {
            let tuner = group.adapter.and_then(|adapter| {
                adapter.prefetch_weight(SiteId(site.0 + AHEAD));
                adapter.weight(site)
            });
            (segments.rows(&group.sequences), tuner)
        });
        let tuners: Vec<_> = tuners.collect();
        if tuners.iter().all(|(_, tuner)| tuner.is_none()) { vec![(0..segments.total(), None)] } else { tuners }
    }
}

/// The tuners of rows that follow one another.
type Tuners<'a> = Vec<(Range<usize>, Option<&'a dyn WeightTuner>)>;

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
