//! Beam search as transformers 5 does it (`GenerationMixin._beam_search`): the most probable continuations of each prompt,
//! with a penalty of length, several ways of stopping early, and the cache following its beams.
//!
//! Prompts of different lengths and adapters run together, and no prompt's result depends on the others.

use std::cmp::Ordering;

use tunesmith_tensor::{Adapter, Workspace};

use crate::cache::Cache;
use crate::generate::{FinishReason, Generated, GenerationOptions, leave_only};
use crate::model::Model;
use crate::next_token::{Sequence, begin, longest, next_logits};
use crate::tokenizer::TextTokenizer;

/// Whether the tokens of a text hold what ends it.
type Stopped<'a> = &'a dyn Fn(&[u32]) -> bool;

/// Prompt tokens that go through the model in one pass, so that memory stays bounded for any number of prompts.
const PREFILL_TOKENS: usize = 2048;

/// How beams are kept and ranked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BeamSearch {
    /// Beams of each prompt.
    pub num_beams: usize,
    /// Exponent of the length by which a finished continuation's log-probability is divided. Above 0 it favours long
    /// ones.
    pub length_penalty: f64,
    /// When a prompt with as many finished continuations as beams is done.
    pub early_stopping: EarlyStopping,
    /// Continuations of each prompt, best first; at most the number of beams.
    pub num_return_sequences: usize,
}

/// When a prompt with as many finished continuations as beams is done (`early_stopping`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyStopping {
    /// At once (`true`).
    AtOnce,
    /// When no running beam, ranked as if it finished now, is better than the worst finished one (`false`).
    Heuristic,
    /// When no running beam can become better than that at any length (`"never"`).
    Never,
}

impl BeamSearch {
    /// With transformers' defaults.
    pub fn new(num_beams: usize) -> Self {
        Self { num_beams, length_penalty: 1.0, early_stopping: EarlyStopping::Heuristic, num_return_sequences: 1 }
    }

    /// What is wrong with the settings, each problem a sentence.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.num_beams == 0 {
            problems.push("num_beams is 0, but must be at least 1".to_owned());
        }
        if self.num_return_sequences == 0 {
            problems.push("num_return_sequences is 0, but must be at least 1".to_owned());
        }
        if self.num_return_sequences > self.num_beams {
            problems.push(format!(
                "num_return_sequences is {}, but there are only {} beams: raise num_beams",
                self.num_return_sequences, self.num_beams
            ));
        }
        if !self.length_penalty.is_finite() {
            problems.push(format!("length_penalty is {}, but must be a number", self.length_penalty));
        }
        problems
    }
}

/// A continuation found by beam search.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// The new tokens, without the one that ended it.
    pub ids: Vec<u32>,
    /// Its log-probability, divided by its length (with the token that ended it) to the power of the length penalty.
    pub score: f32,
    /// Why it ended.
    pub finish: FinishReason,
}

/// The best continuations of each prompt as texts, best first. `options.sampling` gives the penalties; there is no drawing.
///
/// # Panics
/// As [`search`].
pub fn beam_search(
    model: &dyn Model,
    tokenizer: &TextTokenizer,
    workspace: &Workspace,
    prompts: &[Vec<u32>],
    adapters: &[Option<&Adapter>],
    options: &GenerationOptions,
    beams: &BeamSearch,
) -> Vec<Vec<(Generated, f32)>> {
    let text = |ids: &[u32]| tokenizer.decode(ids, true);
    let has_stop = |ids: &[u32]| {
        let text = text(ids);
        options.stop.iter().any(|stop| !stop.is_empty() && text.contains(stop))
    };
    let stopped: Option<Stopped<'_>> = if options.stop.is_empty() { None } else { Some(&has_stop) };
    let generated = |hypothesis: Hypothesis| {
        let mut text = text(&hypothesis.ids);
        if let Some(end) = options.stop.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| text.find(stop)).min()
        {
            text.truncate(end);
        }
        (Generated { ids: hypothesis.ids, text, finish: hypothesis.finish }, hypothesis.score)
    };
    let found = search(model, workspace, prompts, adapters, options, beams, stopped);
    found.into_iter().map(|found| found.into_iter().map(generated).collect()).collect()
}

/// The best continuations of each prompt (token ids, not empty), best first. `stopped` says whether new tokens end a
/// continuation, beside the ids that do; `options.stop` is not looked at.
///
/// # Panics
/// If a prompt is empty, there is not one adapter entry a prompt, or the settings have [`BeamSearch::problems`].
pub fn search(
    model: &dyn Model,
    workspace: &Workspace,
    prompts: &[Vec<u32>],
    adapters: &[Option<&Adapter>],
    options: &GenerationOptions,
    beams: &BeamSearch,
    stopped: Option<Stopped<'_>>,
) -> Vec<Vec<Hypothesis>> {
    assert_eq!(prompts.len(), adapters.len(), "each prompt names its adapter");
    assert!(beams.problems().is_empty(), "beam search needs settings that make sense: {:?}", beams.problems());
    let mut searches: Vec<Search<'_>> = prompts
        .iter()
        .zip(adapters)
        .map(|(prompt, adapter)| {
            assert!(!prompt.is_empty(), "a prompt has tokens");
            Search::new(model, prompt, *adapter, options, beams)
        })
        .collect();
    let mut cache = Cache::default();
    let mut prefilled = 0;
    while prefilled < searches.len() {
        let mut tokens = 0;
        let fits = searches[prefilled..].iter().take_while(|search| {
            tokens += search.source.len() + search.beams.iter().map(|beam| beam.tokens.len()).sum::<usize>();
            tokens <= PREFILL_TOKENS
        });
        let end = prefilled + fits.count().max(1);
        let batch = &mut searches[prefilled..end];
        let mut part = Cache::new(
            batch.iter().map(|search| search.beams.len()).sum(),
            model.info(),
            workspace.kernels().precision(),
        );
        step(model, workspace, batch, &mut part, options, stopped);
        cache.append(part);
        prefilled = end;
    }
    while searches.iter().any(|search| !search.beams.is_empty()) {
        step(model, workspace, &mut searches, &mut cache, options, stopped);
    }
    searches.into_iter().map(Search::into_hypotheses).collect()
}

/// The state of one prompt.
struct Search<'a> {
    settings: &'a BeamSearch,
    adapter: Option<&'a Adapter>,
    source: Vec<u32>,
    /// How many tokens of a beam were not generated.
    prompt: usize,
    /// New tokens at the most.
    max_new_tokens: usize,
    /// What goes on, best first; nothing once the prompt is done.
    beams: Vec<Beam>,
    /// The best finished continuations, best first.
    finished: Vec<Hypothesis>,
}

/// A continuation that is not finished.
#[derive(Clone)]
struct Beam {
    /// The prompt and what has been generated.
    tokens: Vec<u32>,
    /// The log-probability of what has been generated.
    score: f32,
}

/// A beam with one more token.
struct Candidate {
    beam: usize,
    token: u32,
    score: f32,
}

/// One more token for all prompts that are not done, whose beams are the cache's sequences.
fn step(
    model: &dyn Model,
    workspace: &Workspace,
    searches: &mut [Search<'_>],
    cache: &mut Cache,
    options: &GenerationOptions,
    stopped: Option<Stopped<'_>>,
) {
    let sequences: Vec<Sequence<'_>> = searches
        .iter()
        .flat_map(|search| {
            search.beams.iter().map(|beam| Sequence {
                adapter: search.adapter,
                source: &search.source,
                tokens: &beam.tokens,
            })
        })
        .collect();
    if sequences.is_empty() {
        return;
    }
    let logits = next_logits(model, workspace, &sequences, cache);
    drop(sequences);
    let (mut first, mut kept) = (0, Vec::new());
    for search in searches.iter_mut() {
        let rows = first..first + search.beams.len();
        let log_probabilities = rows.clone().zip(&search.beams).map(|(row, beam)| {
            let mut scores = log_softmax(logits.value().row(row));
            options.sampling.penalise(&mut scores, &beam.tokens);
            if let Some(token) = options.forced(beam.tokens.len(), search.prompt + search.max_new_tokens) {
                leave_only(token, &mut scores);
            }
            scores
        });
        let log_probabilities: Vec<Vec<f32>> = log_probabilities.collect();
        let parents = search.advance(&log_probabilities, options, stopped);
        kept.extend(parents.into_iter().map(|beam| first + beam));
        first = rows.end;
    }
    cache.select(&kept);
}

impl<'a> Search<'a> {
    fn new(
        model: &dyn Model,
        prompt: &[u32],
        adapter: Option<&'a Adapter>,
        options: &GenerationOptions,
        settings: &'a BeamSearch,
    ) -> Self {
        let (source, tokens) = begin(model, prompt);
        let prompt = tokens.len();
        let max_new_tokens = options.max_new_tokens.min(longest(model, adapter).saturating_sub(prompt));
        let mut finished = Vec::new();
        let mut beams = vec![Beam { tokens, score: 0.0 }];
        if max_new_tokens == 0 {
            beams.clear();
            finished.resize(
                settings.num_return_sequences,
                Hypothesis { ids: Vec::new(), score: 0.0, finish: FinishReason::Length },
            );
        }
        Self { settings, adapter, source, prompt, max_new_tokens, beams, finished }
    }

    /// Chooses the next beams by the log-probabilities `[vocabulary]` of each beam's next token; the places that the
    /// new ones had among the old.
    fn advance(
        &mut self,
        log_probabilities: &[Vec<f32>],
        options: &GenerationOptions,
        stopped: Option<Stopped<'_>>,
    ) -> Vec<usize> {
        if self.beams.is_empty() {
            return Vec::new();
        }
        let width = self.settings.num_beams;
        // With this many, enough go on even if the best of every beam end.
        let count = (1 + options.eos_token_ids.len()).max(2) * width;
        let candidates = self.best(log_probabilities, count);
        let length = self.beams[0].tokens.len() + 1 - self.prompt;
        let mut next = Vec::with_capacity(width);
        let mut parents = Vec::with_capacity(width);
        for (rank, Candidate { beam, token, score }) in candidates.into_iter().enumerate() {
            let mut tokens = self.beams[beam].tokens.clone();
            tokens.push(token);
            let finish = if options.eos_token_ids.contains(&token) {
                Some(FinishReason::EndOfSequence)
            } else if stopped.is_some_and(|stopped| stopped(&tokens[self.prompt..])) {
                Some(FinishReason::Stop)
            } else {
                (length == self.max_new_tokens).then_some(FinishReason::Length)
            };
            match finish {
                // Those further down only stand by to go on.
                Some(finish) if rank < width => self.finish(tokens, score, length, finish),
                Some(_) => {}
                None if next.len() < width => {
                    next.push(Beam { tokens, score });
                    parents.push(beam);
                }
                None => {}
            }
        }
        self.beams = next;
        if !self.can_improve(length) {
            self.beams.clear();
            parents.clear();
        }
        parents
    }

    /// The `count` best continuations by one token, best first; of equals that of the earlier beam and smaller token.
    fn best(&self, log_probabilities: &[Vec<f32>], count: usize) -> Vec<Candidate> {
        let candidates = self.beams.iter().zip(log_probabilities).enumerate().flat_map(|(beam, (state, scores))| {
            let tokens = scores.iter().enumerate();
            tokens.map(move |(token, score)| Candidate { beam, token: token as u32, score: state.score + score })
        });
        let mut candidates: Vec<Candidate> = candidates.collect();
        let better = |a: &Candidate, b: &Candidate| -> Ordering {
            b.score.total_cmp(&a.score).then(a.beam.cmp(&b.beam)).then(a.token.cmp(&b.token))
        };
        if count < candidates.len() {
            candidates.select_nth_unstable_by(count, better);
            candidates.truncate(count);
        }
        candidates.sort_unstable_by(better);
        candidates
    }

    /// Notes a finished continuation of `length` new tokens, if it is among the best.
    fn finish(&mut self, mut tokens: Vec<u32>, score: f32, length: usize, finish: FinishReason) {
        if finish == FinishReason::EndOfSequence {
            tokens.pop();
        }
        let score = score / self.penalty(length);
        let place = self.finished.partition_point(|other| other.score >= score);
        self.finished.insert(place, Hypothesis { ids: tokens[self.prompt..].to_vec(), score, finish });
        self.finished.truncate(self.settings.num_beams);
    }

    /// What a score is divided by.
    fn penalty(&self, length: usize) -> f32 {
        (length as f64).powf(self.settings.length_penalty) as f32
    }

    /// Whether a running beam may still come to be among the best, `length` tokens having been generated.
    fn can_improve(&self, length: usize) -> bool {
        let Some(best) = self.beams.first() else { return false };
        if self.finished.len() < self.settings.num_beams {
            return true;
        }
        let length = match self.settings.early_stopping {
            EarlyStopping::AtOnce => return false,
            EarlyStopping::Never if self.settings.length_penalty > 0.0 => self.max_new_tokens,
            EarlyStopping::Never | EarlyStopping::Heuristic => length,
        };
        let worst = self.finished.last().map_or(f32::NEG_INFINITY, |hypothesis| hypothesis.score);
        best.score / self.penalty(length) > worst
    }

    fn into_hypotheses(mut self) -> Vec<Hypothesis> {
        self.finished.truncate(self.settings.num_return_sequences);
        self.finished
    }
}

/// `x − log Σ eˣ`.
fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    let shift = f64::from(max) + sum.ln();
    logits.iter().map(|logit| (f64::from(*logit) - shift) as f32).collect()
}
