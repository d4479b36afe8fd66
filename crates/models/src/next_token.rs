//! One pass of generation: the logits of the token that follows each sequence.

use tunesmith_tensor::{Adapter, Forward, Segments, Tape, Var, Workspace};

use crate::cache::Cache;
use crate::model::{DecoderInputs, Inputs, Model, ModelKind};

/// A sequence to be continued.
#[derive(Clone, Copy)]
pub(crate) struct Sequence<'a> {
    pub(crate) adapter: Option<&'a Adapter>,
    /// What the encoder reads, where there is one.
    pub(crate) source: &'a [u32],
    /// The prompt and what has been generated; of an encoder-decoder the token it begins with and what followed.
    pub(crate) tokens: &'a [u32],
}

/// Where generation begins: what an encoder reads, and the tokens of the decoder, for a prompt.
pub(crate) fn begin(model: &dyn Model, prompt: &[u32]) -> (Vec<u32>, Vec<u32>) {
    match model.info().kind {
        ModelKind::EncoderDecoder { decoder_start_token_id, .. } => (prompt.to_vec(), vec![decoder_start_token_id]),
        _ => (Vec::new(), prompt.to_vec()),
    }
}

/// Tokens that a sequence of a model may have, virtual ones of its adapter not counted.
pub(crate) fn longest(model: &dyn Model, adapter: Option<&Adapter>) -> usize {
    let virtual_tokens = adapter.map_or(0, Adapter::virtual_tokens);
    model.info().max_positions.saturating_sub(virtual_tokens)
}

/// Logits `[sequences, vocabulary]` of the next token of each sequence. Runs what each one's cache has not seen.
pub(crate) fn next_logits(
    model: &dyn Model,
    workspace: &Workspace,
    sequences: &[Sequence<'_>],
    cache: &mut Cache,
) -> Var {
    let additions = sequences.iter().enumerate().map(|(number, sequence)| {
        let is_fresh = cache.length(number) == 0;
        Addition {
            adapter: sequence.adapter,
            source: if is_fresh { sequence.source } else { &[] },
            tokens: if is_fresh { sequence.tokens } else { &sequence.tokens[sequence.tokens.len() - 1..] },
            answers: true,
        }
    });
    let additions: Vec<Addition<'_>> = additions.collect();
    add_tokens(model, workspace, &additions, cache)
}

/// What a pass adds to a sequence with a cache.
#[derive(Clone, Copy)]
pub struct Addition<'a> {
    /// The sequence's adapter; `None` is the base alone. Sequences of one adapter lie next to each other.
    pub adapter: Option<&'a Adapter>,
    /// What the encoder reads, where there is one and it has not run yet.
    pub source: &'a [u32],
    /// The tokens. An empty cache gets the adapter's virtual tokens before them; there may be no others.
    pub tokens: &'a [u32],
    /// Whether the logits of what follows the last token are wanted.
    pub answers: bool,
}

/// Runs the tokens that are added to sequences and keeps their keys and values in `cache`, an entry a sequence. Returns the
/// logits `[answers, vocabulary]` of what follows each addition that answers, in order.
///
/// # Panics
/// If there is not one cache an addition, or an addition without tokens answers.
pub fn add_tokens(model: &dyn Model, workspace: &Workspace, additions: &[Addition<'_>], cache: &mut Cache) -> Var {
    assert_eq!(additions.len(), cache.len(), "each sequence has its cache");
    let concat = |part: fn(&Addition<'_>) -> Vec<u32>| -> (Vec<u32>, Segments) {
        let parts: Vec<Vec<u32>> = additions.iter().map(part).collect();
        (parts.concat(), Segments::from_lengths(parts.iter().map(Vec::len)))
    };
    let (ids, segments) = concat(|addition| addition.tokens.to_vec());
    let answering = segments.ranges().zip(additions).filter(|(_, addition)| addition.answers);
    let last_rows: Vec<usize> = answering.map(|(range, _)| range.end - 1).collect();
    let adapters: Vec<_> = additions.iter().map(|addition| addition.adapter).collect();
    workspace.run(|| {
        let mut tape = Tape::evaluating(workspace);
        let decoder = DecoderInputs { ids: &ids, segments: &segments };
        let (source, source_segments) = concat(|addition| addition.source.to_vec());
        let (inputs, first_segments) = if matches!(model.info().kind, ModelKind::EncoderDecoder { .. }) {
            (Inputs { ids: &source, token_type_ids: &[], decoder: Some(decoder) }, source_segments)
        } else {
            (Inputs::tokens(&ids), segments.clone())
        };
        let mut forward = Forward::mixed(&mut tape, first_segments, &adapters);
        let hidden = model.hidden_states(&mut forward, &inputs, Some(cache));
        let hidden = forward.tape().gather_rows(&hidden, last_rows);
        let one_each = Segments::from_lengths(additions.iter().map(|addition| usize::from(addition.answers)));
        model.logits(&mut forward, &hidden, &one_each)
    })
}
