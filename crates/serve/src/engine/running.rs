//! A generation that has begun.

use std::time::Duration;

use tunesmith_models::{SequenceCache, TextStream};
use tunesmith_tensor::Stream;

use super::choose::choose;
use super::grammar::Matcher;
use super::prefixes::Edge;
use super::request::{Event, FinishReason, Generation, TokenInfo, Usage, key, tuners};
use crate::base::BaseModel;

/// Tokens of a prompt that are cut off together, as many as a page has. Where a prompt is cut decides how its rows are
/// computed, so it depends on the prompt alone: attention goes through blocks that begin at multiples of this.
pub(super) const PIECE: usize = tunesmith_models::PAGE_TOKENS;
/// Rows of a prompt's last piece that are too few to be computed as the whole ones are.
const FEW: usize = 8;

/// A generation with its keys and values.
pub(super) struct Running<'a> {
    pub(super) generation: Box<Generation>,
    /// The key of its adapter's generation.
    pub(super) key: String,
    /// Gone while a pass has it.
    pub(super) cache: Option<SequenceCache>,
    /// What an encoder still has to read.
    pub(super) source: Vec<u32>,
    /// The prompt and what has been generated; of an encoder-decoder the token it begins with and what followed.
    pub(super) tokens: Vec<u32>,
    /// How many of the tokens were not generated.
    pub(super) prompt: usize,
    /// Tokens whose keys and values are in the cache.
    pub(super) done: usize,
    /// Whether the adapter's virtual tokens are still to be put in, in a pass of their own.
    pub(super) needs_virtual: bool,
    /// Whether the prompt is read in one piece, because virtual tokens follow it.
    pub(super) is_whole: bool,
    /// Pages that are reserved for it and that it has not given to the prefixes.
    pub(super) reserved: usize,
    /// Where its next whole page goes in the tree of prefixes; `None` where nothing is kept.
    pub(super) place: Option<(Edge, u64)>,
    /// Whole pages of the prompt that the tree has.
    pub(super) kept: usize,
    pub(super) order: u64,
    ends: Vec<u32>,
    text: TextStream<'a>,
    stream: Stream,
    matcher: Option<Matcher>,
    /// Tokens that have not been told yet.
    untold: Vec<TokenInfo>,
    cached: usize,
    queue: Duration,
    first_token: Option<Duration>,
}

/// What a sequence adds to a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Tokens from `done` on.
    pub(super) tokens: usize,
    /// Whether logits are wanted.
    pub(super) answers: bool,
}

impl<'a> Running<'a> {
    pub(super) fn new(base: &'a BaseModel, generation: Box<Generation>, cache: SequenceCache) -> Self {
        let begin = match base.model().info().kind {
            tunesmith_models::ModelKind::EncoderDecoder { decoder_start_token_id, .. } => Some(decoder_start_token_id),
            _ => None,
        };
        let (source, tokens) = match begin {
            Some(begin) => (generation.prompt.clone(), vec![begin]),
            None => (Vec::new(), generation.prompt.clone()),
        };
        let adapter = tuners(generation.adapter.as_ref());
        let input = adapter.map_or((0, 0), |adapter| adapter.input_lengths());
        let ends = match generation.ignores_eos {
            true => Vec::new(),
            false => base.pretrained.generation.eos_token_ids.clone(),
        };
        let (seed, index) = generation.seed;
        Self {
            key: key(generation.adapter.as_ref()),
            cache: Some(cache),
            prompt: tokens.len(),
            source,
            tokens,
            done: 0,
            needs_virtual: begin.is_none() && input.0 > 0 && input.1 == 0,
            is_whole: begin.is_none() && input.1 > 0,
            reserved: 0,
            place: None,
            kept: 0,
            order: 0,
            ends,
            text: TextStream::new(&base.pretrained.tokenizer, &generation.stop),
            stream: seed.stream("sampling", index),
            matcher: generation.grammar.as_ref().map(super::Grammar::begin),
            untold: Vec::new(),
            cached: 0,
            queue: generation.asked.elapsed(),
            first_token: None,
            generation,
        }
    }

    /// Begins after tokens whose keys and values are there.
    pub(super) fn skip(&mut self, tokens: usize) {
        (self.done, self.cached, self.kept) = (tokens, tokens, tokens / PIECE);
    }

    /// Whether its prompt has been read.
    pub(super) fn decodes(&self) -> bool {
        self.done + 1 == self.tokens.len() && self.done >= self.prompt
    }

    /// What it adds to a pass that has room for `room` rows; at least one piece of it.
    pub(super) fn next(&self, room: usize) -> Step {
        if self.needs_virtual {
            return Step { tokens: 0, answers: false };
        }
        let left = self.tokens.len() - self.done;
        if left <= 1 || self.is_whole {
            return Step { tokens: left, answers: true };
        }
        piece(left, room)
    }

    /// Takes the logits of the next token. Returns why the text has ended, if it has.
    pub(super) fn accept(&mut self, logits: &[f32]) -> Result<Option<FinishReason>, String> {
        let Self { generation, matcher, stream, .. } = self;
        let info = choose(logits, &self.tokens, self.prompt, generation, matcher.as_mut(), &self.ends, stream)?;
        self.first_token.get_or_insert_with(|| self.generation.asked.elapsed());
        let token = info.id;
        if self.ends.contains(&token) || self.generation.stop_token_ids.contains(&token) {
            self.tokens.push(token);
            let text = self.text.finish();
            self.tell(text);
            return Ok(Some(FinishReason::Stop));
        }
        self.tokens.push(token);
        self.untold.push(info);
        let is_complete = match &mut self.matcher {
            Some(matcher) => matcher.advance(token)?,
            None => false,
        };
        let (piece, stopped) = self.text.push(token);
        let is_long = self.tokens.len() - self.prompt >= self.generation.max_tokens;
        let ended = match (stopped, is_complete, is_long) {
            (true, _, _) => Some(FinishReason::Stop),
            (false, true, _) => Some(FinishReason::Stop),
            (false, false, true) => Some(FinishReason::Length),
            _ => None,
        };
        let rest = if ended.is_some() && !stopped { self.text.finish() } else { String::new() };
        let text = piece + &rest;
        // A token without text is told with the next one that has some, unless somebody wants to know each.
        if !text.is_empty() || ended.is_some() || self.generation.logprobs.is_some() {
            self.tell(text);
        }
        Ok(ended)
    }

    fn tell(&mut self, text: String) {
        let tokens = std::mem::take(&mut self.untold);
        if !text.is_empty() || !tokens.is_empty() {
            // A client that has gone away is noticed before the next pass.
            let _ = self.generation.events.send((self.generation.choice, Event::Text { text, tokens }));
        }
    }

    /// Tells why it ended.
    pub(super) fn finish(&self, reason: FinishReason) {
        let usage = Usage {
            prompt: self.generation.prompt.len(),
            cached: self.cached,
            completion: self.tokens.len() - self.prompt,
            queue: self.queue,
            first_token: self.first_token.unwrap_or_default(),
        };
        let _ = self.generation.events.send((self.generation.choice, Event::Finished { reason, usage }));
    }

    /// Tells that it failed.
    pub(super) fn fail(&self, reason: String) {
        let _ = self.generation.events.send((self.generation.choice, Event::Failed(reason)));
    }
}

/// Whole pieces of a prompt, as many as there is room for and at least one; with the rest, where that is computed as whole
/// pieces are; otherwise the rest alone.
fn piece(left: usize, room: usize) -> Step {
    let (whole, rest) = (left / PIECE * PIECE, left % PIECE);
    let is_like_whole = rest == 0 || rest >= FEW;
    if whole == 0 || (is_like_whole && left <= room) {
        return Step { tokens: left, answers: true };
    }
    let tokens = whole.min((room / PIECE * PIECE).max(PIECE));
    Step { tokens, answers: tokens == left }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_prompt_is_cut_depends_on_the_prompt_alone() {
        for length in 2..400usize {
            let mut blocks: Option<Vec<(usize, usize, bool)>> = None;
            for room in [1, 64, 100, 128, 200, 512] {
                let (mut done, mut cut) = (0, Vec::new());
                while done < length {
                    let step =
                        if length - done == 1 { Step { tokens: 1, answers: true } } else { piece(length - done, room) };
                    assert_eq!(step.answers, done + step.tokens == length);
                    // Blocks of queries, and whether they go the way of few.
                    for start in (0..step.tokens).step_by(PIECE) {
                        cut.push((done + start, PIECE.min(step.tokens - start), step.tokens < FEW));
                    }
                    done += step.tokens;
                }
                assert_eq!(*blocks.get_or_insert_with(|| cut.clone()), cut, "{length} tokens, room for {room}");
            }
        }
    }
}
