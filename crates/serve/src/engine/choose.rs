//! From logits to a token of an answer. In this order: log-probabilities are taken; what a grammar forbids, and ends
//! that come too early, get no chance; `logit_bias` is added; presence and frequency penalties are taken off; then
//! [`Sampling`](tunesmith_models::Sampling) applies the repetition penalty, the filters and the temperature.

use std::borrow::Cow;

use tunesmith_tensor::Stream;

use super::grammar::Matcher;
use super::request::{Generation, TokenInfo};

/// Chooses the token that follows `tokens`, of which the first `prompt` are the prompt. `ends` are the tokens that end a
/// text.
pub(super) fn choose(
    logits: &[f32],
    tokens: &[u32],
    prompt: usize,
    generation: &Generation,
    matcher: Option<&mut Matcher>,
    ends: &[u32],
    stream: &mut Stream,
) -> Result<TokenInfo, String> {
    let mut changed = Cow::Borrowed(logits);
    let is_early = tokens.len() - prompt < generation.min_tokens;
    if let Some(matcher) = matcher {
        matcher.restrict(changed.to_mut(), ends)?;
    }
    if is_early {
        let ends = ends.iter().chain(&generation.stop_token_ids);
        let changed = changed.to_mut();
        ends.for_each(|end| set(changed, *end, f32::NEG_INFINITY));
    }
    for (token, bias) in &generation.logit_bias {
        if let Some(logit) = changed.to_mut().get_mut(*token as usize) {
            *logit += bias;
        }
    }
    let (presence, frequency) = (generation.presence_penalty, generation.frequency_penalty);
    if presence != 0.0 || frequency != 0.0 {
        let mut generated = tokens[prompt..].to_vec();
        generated.sort_unstable();
        for run in generated.chunk_by(|a, b| a == b) {
            if let Some(logit) = changed.to_mut().get_mut(run[0] as usize) {
                *logit -= presence + frequency * run.len() as f32;
            }
        }
    }
    if changed.iter().all(|logit| *logit == f32::NEG_INFINITY) {
        return Err("no token is allowed here: logit_bias, min_tokens and the grammar forbid all of them".to_owned());
    }
    let id = generation.sampling.choose(&changed, tokens, stream);
    Ok(match generation.logprobs {
        None => TokenInfo { id, logprob: 0.0, top: Vec::new() },
        Some(count) => with_logprobs(logits, id, count),
    })
}

fn set(logits: &mut [f32], token: u32, value: f32) {
    if let Some(logit) = logits.get_mut(token as usize) {
        *logit = value;
    }
}

/// A token with its log-probability and those of the `count` likeliest tokens.
fn with_logprobs(logits: &[f32], id: u32, count: usize) -> TokenInfo {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    let logprob = |token: u32| (f64::from(logits[token as usize] - max) - sum.ln()) as f32;
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if count > 0 && count < order.len() {
        order.select_nth_unstable_by(count - 1, likelier);
    }
    order.truncate(count);
    order.sort_unstable_by(likelier);
    TokenInfo { id, logprob: logprob(id), top: order.into_iter().map(|token| (token, logprob(token))).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logits = [1.0f32, 3.0, 2.0, -1.0];
        let found = with_logprobs(&logits, 0, 2);
        let total: f32 = logits.iter().map(|logit| logit.exp()).sum();
        assert!((found.logprob - (1.0 - total.ln())).abs() < 1e-5);
        assert_eq!(found.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 2]);
        assert!(with_logprobs(&logits, 0, 0).top.is_empty());
        assert_eq!(with_logprobs(&logits, 0, 9).top.len(), 4);
    }
}
