//! Generation with a cache, for batches of prompts of different lengths.

use tunesmith_tensor::{Adapter, Forward, Seed, Segments, Stream, Tape, Workspace};

use crate::cache::Cache;
use crate::model::{DecoderInputs, Inputs, Model, ModelKind};
use crate::sampling::Sampling;
use crate::text_stream::TextStream;
use crate::tokenizer::TextTokenizer;

/// Prompt tokens that go through the model in one pass, so that memory stays bounded for any number of prompts.
const PREFILL_TOKENS: usize = 2048;

/// What to generate, and when to stop.
#[derive(Clone, Debug)]
pub struct GenerationOptions {
    /// Tokens at the most, for each prompt.
    pub max_new_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Texts that end a generation; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end a generation; they are not part of it.
    pub eos_token_ids: Vec<u32>,
    /// Prompt `i` draws from stream `i` of this seed, whatever else is in the batch.
    pub seed: Seed,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model gave an end-of-sequence token.
    EndOfSequence,
    /// A stop text appeared.
    Stop,
    /// `max_new_tokens`, or the model's last position, was reached.
    Length,
}

/// One prompt's continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The new tokens, without the one that ended it.
    pub ids: Vec<u32>,
    /// Their text, without a stop text.
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
}

/// Continues each prompt (token ids, not empty), with an adapter or the base alone; an encoder-decoder reads the prompt
/// and writes a text of its own. `on_text(prompt, piece)` gets text as soon as it is certain.
///
/// # Panics
/// If a prompt is empty, or there is not one adapter entry a prompt.
pub fn generate(
    model: &dyn Model,
    tokenizer: &TextTokenizer,
    workspace: &Workspace,
    prompts: &[Vec<u32>],
    adapters: &[Option<&Adapter>],
    options: &GenerationOptions,
    mut on_text: impl FnMut(usize, &str),
) -> Vec<Generated> {
    assert_eq!(prompts.len(), adapters.len(), "each prompt names its adapter");
    let limit = model.info().max_positions;
    let mut running: Vec<Running<'_>> = prompts
        .iter()
        .enumerate()
        .map(|(index, prompt)| {
            let (source, tokens) = match model.info().kind {
                ModelKind::EncoderDecoder { decoder_start_token_id, .. } => {
                    (prompt.clone(), vec![decoder_start_token_id])
                }
                _ => (Vec::new(), prompt.clone()),
            };
            Running {
                index,
                adapter: adapters[index],
                prompt: tokens.len(),
                source,
                tokens,
                text: TextStream::new(tokenizer, &options.stop),
                stream: options.seed.stream("sampling", index as u64),
                finish: (options.max_new_tokens == 0).then_some(FinishReason::Length),
            }
        })
        .collect();
    let mut done: Vec<Option<Generated>> = vec![None; prompts.len()];
    retire(&mut running, &mut Cache::default(), &mut done);

    let mut cache = Cache::default();
    let mut prefilled = 0;
    while prefilled < running.len() {
        let end = prefill_end(&running, prefilled);
        let batch = &mut running[prefilled..end];
        let mut part = Cache::new(batch.len(), model.info());
        step(model, workspace, batch, &mut part, options, limit, &mut on_text);
        cache.append(part);
        prefilled = end;
    }
    retire(&mut running, &mut cache, &mut done);
    while !running.is_empty() {
        step(model, workspace, &mut running, &mut cache, options, limit, &mut on_text);
        retire(&mut running, &mut cache, &mut done);
    }
    done.into_iter().map(|generated| generated.expect("every prompt finishes")).collect()
}

/// A prompt whose continuation is not finished.
struct Running<'a> {
    index: usize,
    adapter: Option<&'a Adapter>,
    /// What the encoder reads, where there is one.
    source: Vec<u32>,
    /// The prompt and what has been generated; of an encoder-decoder the token it begins with and what followed.
    tokens: Vec<u32>,
    /// How many of the tokens were not generated.
    prompt: usize,
    text: TextStream<'a>,
    stream: Stream,
    finish: Option<FinishReason>,
}

/// Takes as many prompts as fit one pass, and at least one.
fn prefill_end(running: &[Running<'_>], start: usize) -> usize {
    let mut tokens = 0;
    let fits = running[start..].iter().take_while(|run| {
        tokens += run.source.len() + run.tokens.len();
        tokens <= PREFILL_TOKENS
    });
    start + fits.count().max(1)
}

/// Runs what each sequence's cache has not seen, and chooses its next token.
fn step(
    model: &dyn Model,
    workspace: &Workspace,
    running: &mut [Running<'_>],
    cache: &mut Cache,
    options: &GenerationOptions,
    limit: usize,
    on_text: &mut impl FnMut(usize, &str),
) {
    let fresh = |(sequence, run): (usize, &Running<'_>)| {
        let new = if cache.length(sequence) == 0 { 0 } else { run.tokens.len() - 1 };
        run.tokens[new..].to_vec()
    };
    let inputs: Vec<Vec<u32>> = running.iter().enumerate().map(fresh).collect();
    let ids = inputs.concat();
    let segments = Segments::from_lengths(inputs.iter().map(Vec::len));
    let last_rows = segments.ranges().map(|range| range.end - 1).collect();
    let encodes = matches!(model.info().kind, ModelKind::EncoderDecoder { .. });
    let sources: Vec<&[u32]> = running
        .iter()
        .enumerate()
        .map(|(sequence, run)| if cache.length(sequence) == 0 { &run.source[..] } else { &[] })
        .collect();
    let source = sources.concat();
    let adapters: Vec<_> = running.iter().map(|run| run.adapter).collect();
    let logits = workspace.run(|| {
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
    });
    for (row, run) in running.iter_mut().enumerate() {
        let token = options.sampling.choose(logits.value().row(row), &run.tokens, &mut run.stream);
        run.finish = run.accept(token, options, limit, on_text);
    }
}

impl Running<'_> {
    /// Adds a token, and says whether it ends the continuation.
    fn accept(
        &mut self,
        token: u32,
        options: &GenerationOptions,
        limit: usize,
        on_text: &mut impl FnMut(usize, &str),
    ) -> Option<FinishReason> {
        let index = self.index;
        let mut show = |piece: &str| {
            if !piece.is_empty() {
                on_text(index, piece);
            }
        };
        if options.eos_token_ids.contains(&token) {
            show(&self.text.finish());
            return Some(FinishReason::EndOfSequence);
        }
        self.tokens.push(token);
        let (piece, stopped) = self.text.push(token);
        show(&piece);
        if stopped {
            return Some(FinishReason::Stop);
        }
        if self.tokens.len() - self.prompt == options.max_new_tokens || self.tokens.len() >= limit {
            show(&self.text.finish());
            return Some(FinishReason::Length);
        }
        None
    }
}

/// Moves finished sequences out of the batch.
fn retire(running: &mut Vec<Running<'_>>, cache: &mut Cache, done: &mut [Option<Generated>]) {
    let keep: Vec<bool> = running.iter().map(|run| run.finish.is_none()).collect();
    if cache.len() == keep.len() {
        cache.retain(&keep);
    }
    running.retain(|run| {
        let Some(finish) = run.finish else { return true };
        let ids = run.tokens[run.prompt..].to_vec();
        done[run.index] = Some(Generated { ids, text: run.text.text().to_owned(), finish });
        false
    });
}
