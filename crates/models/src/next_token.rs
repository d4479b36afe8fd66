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
    let is_fresh = |sequence: usize| cache.length(sequence) == 0;
    let fresh = |(number, sequence): (usize, &Sequence<'_>)| {
        let new = if is_fresh(number) { 0 } else { sequence.tokens.len() - 1 };
        sequence.tokens[new..].to_vec()
    };
    let inputs: Vec<Vec<u32>> = sequences.iter().enumerate().map(fresh).collect();
    let ids = inputs.concat();
    let segments = Segments::from_lengths(inputs.iter().map(Vec::len));
    let last_rows = segments.ranges().map(|range| range.end - 1).collect();
    let encodes = matches!(model.info().kind, ModelKind::EncoderDecoder { .. });
    let sources: Vec<&[u32]> = sequences
        .iter()
        .enumerate()
        .map(|(number, sequence)| if is_fresh(number) { sequence.source } else { &[] })
        .collect();
    let source = sources.concat();
    let adapters: Vec<_> = sequences.iter().map(|sequence| sequence.adapter).collect();
    workspace.run(|| {
        let mut tape = Tape::evaluating(workspace);
        let decoder = DecoderInputs { ids: &ids, segments: &segments };
        let (inputs, first_segments) = if encodes {
            let lengths = sources.iter().map(|source| source.len());
            let inputs = Inputs { ids: &source, token_type_ids: &[], decoder: Some(decoder) };
            (inputs, Segments::from_lengths(lengths))
        } else {
            (Inputs::tokens(&ids), segments.clone())
        };
        let mut forward = Forward::mixed(&mut tape, first_segments, &adapters);
        let hidden = model.hidden_states(&mut forward, &inputs, Some(cache));
        let hidden = forward.tape().gather_rows(&hidden, last_rows);
        let one_each = Segments::from_lengths(adapters.iter().map(|_| 1));
        model.logits(&mut forward, &hidden, &one_each)
    })
}
