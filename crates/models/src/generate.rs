//! Generation with a cache, for batches of prompts of different lengths.

use std::borrow::Cow;

use tunesmith_tensor::{Adapter, Seed, Stream, Workspace};

use crate::cache::Cache;
use crate::generation_defaults::GenerationDefaults;
use crate::model::Model;
use crate::next_token::{Sequence, begin, longest, next_logits};
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
    /// The token that the first new one is (`forced_bos_token_id`), of an encoder-decoder.
    pub forced_bos_token_id: Option<u32>,
    /// The token that the last possible one is (`forced_eos_token_id`).
    pub forced_eos_token_id: Option<u32>,
    /// Prompt `i` draws from stream `i` of this seed, whatever else is in the batch.
    pub seed: Seed,
}

impl GenerationOptions {
    /// The likeliest token each time, with the ends and forced tokens that a model's files name.
    pub fn greedy(max_new_tokens: usize, defaults: &GenerationDefaults) -> Self {
        Self {
            max_new_tokens,
            sampling: Sampling::default(),
            stop: Vec::new(),
            eos_token_ids: defaults.eos_token_ids.clone(),
            forced_bos_token_id: defaults.forced_bos_token_id,
            forced_eos_token_id: defaults.forced_eos_token_id,
            seed: Seed(0),
        }
    }

    /// The token that has to come after `length` ones where there may be `longest`.
    pub(crate) fn forced(&self, length: usize, longest: usize) -> Option<u32> {
        let first = self.forced_bos_token_id.filter(|_| length == 1);
        let last = self.forced_eos_token_id.filter(|_| length + 1 == longest);
        last.or(first)
    }
}

/// Makes `token` the only one that can be chosen.
pub(crate) fn leave_only(token: u32, logits: &mut [f32]) {
    logits.fill(f32::NEG_INFINITY);
    logits[token as usize] = 0.0;
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
    let mut running: Vec<Running<'_>> = prompts
        .iter()
        .enumerate()
        .map(|(index, prompt)| {
            let (source, tokens) = begin(model, prompt);
            let longest = (tokens.len() + options.max_new_tokens).min(longest(model, adapters[index]));
            Running {
                index,
                adapter: adapters[index],
                prompt: tokens.len(),
                source,
                tokens,
                longest,
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
        let mut part = Cache::new(batch.len(), model.info(), workspace.kernels().precision());
        step(model, workspace, batch, &mut part, options, &mut on_text);
        cache.append(part);
        prefilled = end;
    }
    retire(&mut running, &mut cache, &mut done);
    while !running.is_empty() {
        step(model, workspace, &mut running, &mut cache, options, &mut on_text);
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
    /// How many it may become.
    longest: usize,
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
    on_text: &mut impl FnMut(usize, &str),
) {
    let sequences =
        running.iter().map(|run| Sequence { adapter: run.adapter, source: &run.source, tokens: &run.tokens });
    let sequences: Vec<Sequence<'_>> = sequences.collect();
    let logits = next_logits(model, workspace, &sequences, cache);
    drop(sequences);
    for (row, run) in running.iter_mut().enumerate() {
        let mut logits = Cow::Borrowed(logits.value().row(row));
        if let Some(token) = options.forced(run.tokens.len(), run.longest) {
            leave_only(token, logits.to_mut());
        }
        let token = options.sampling.choose(&logits, &run.tokens, &mut run.stream);
        run.finish = run.accept(token, options, on_text);
    }
}

impl Running<'_> {
    /// Adds a token, and says whether it ends the continuation.
    fn accept(
        &mut self,
        token: u32,
        options: &GenerationOptions,
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
        if self.tokens.len() >= self.longest {
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
