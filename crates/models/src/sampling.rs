//! From logits to the next token: penalties, filters and the draw, in the order of Hugging Face's `generate`.

use std::borrow::Cow;

use tunesmith_tensor::Stream;

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keeps the `k` likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the likeliest tokens that together reach this probability (Holtzman et al. 2020); 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive logits, and multiplies negative ones, of tokens already present (Keskar et al. 2019); 1 is off.
    pub repetition_penalty: f32,
    /// Forbids tokens that would repeat a run of this many tokens; 0 forbids nothing.
    pub no_repeat_ngram_size: usize,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, no_repeat_ngram_size: 0 }
    }
}

impl Sampling {
    /// What is wrong with the settings, each problem a sentence.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        require(self.temperature >= 0.0, format!("temperature is {}, but must not be negative", self.temperature));
        require(self.top_p > 0.0 && self.top_p <= 1.0, format!("top_p is {}, but must lie in (0, 1]", self.top_p));
        require((0.0..=1.0).contains(&self.min_p), format!("min_p is {}, but must lie in [0, 1]", self.min_p));
        let penalty = self.repetition_penalty;
        require(penalty > 0.0, format!("repetition_penalty is {penalty}, but must be positive"));
        problems
    }

    /// Chooses the next token. `seen` are the tokens of the prompt and those generated so far.
    pub fn choose(&self, logits: &[f32], seen: &[u32], stream: &mut Stream) -> u32 {
        let mut logits = Cow::Borrowed(logits);
        if self.penalises() {
            self.penalise(logits.to_mut(), seen);
        }
        if self.temperature == 0.0 {
            return likeliest(&logits);
        }
        let candidates = self.candidates(&logits);
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        let mut left = f64::from(stream.uniform()) * total;
        for (token, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return *token;
            }
        }
        candidates.last().expect("filters keep the likeliest token").0
    }

    /// Whether penalties change anything.
    fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0 || self.no_repeat_ngram_size > 0
    }

    /// Applies the penalties to logits or log-probabilities of the token that follows `seen`.
    pub(crate) fn penalise(&self, logits: &mut [f32], seen: &[u32]) {
        if self.repetition_penalty != 1.0 {
            let mut distinct = seen.to_vec();
            distinct.sort_unstable();
            distinct.dedup();
            for token in distinct {
                let logit = &mut logits[token as usize];
                let penalty = self.repetition_penalty;
                *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            }
        }
        let size = self.no_repeat_ngram_size;
        if size > 0 && seen.len() >= size {
            let last = &seen[seen.len() + 1 - size..];
            for run in seen.windows(size).filter(|run| run[..size - 1] == *last) {
                logits[run[size - 1] as usize] = f32::NEG_INFINITY;
            }
        }
    }

    /// The tokens that the filters keep, likeliest first where `top_k` or `top_p` asks for an order, with weights
    /// proportional to their probabilities.
    fn candidates(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if self.top_k > 0 && self.top_k < order.len() {
            order.select_nth_unstable_by(self.top_k - 1, likelier);
            order.truncate(self.top_k);
        }
        let max = f64::from(logits[likeliest(logits) as usize]);
        let weight = |token: u32| ((f64::from(logits[token as usize]) - max) / f64::from(self.temperature)).exp();
        if self.top_p < 1.0 {
            // The tokens that count are mostly few: they are looked for among the likeliest, and more only if need be.
            let total: f64 = order.iter().map(|token| weight(*token)).sum();
            let reach = f64::from(self.top_p) * total;
            let mut most = 256.min(order.len());
            loop {
                if most < order.len() {
                    order.select_nth_unstable_by(most - 1, likelier);
                }
                order[..most].sort_unstable_by(likelier);
                let mut before = 0.0;
                let kept = order[..most].iter().take_while(|token| {
                    let keep = before < reach;
                    before += weight(**token);
                    keep
                });
                let kept = kept.count();
                if kept < most || most == order.len() {
                    order.truncate(kept.max(1));
                    break;
                }
                most = (8 * most).min(order.len());
            }
        } else if order.len() < logits.len() {
            order.sort_unstable_by(likelier);
        }
        // The likeliest token's weight is 1.
        let candidates = order.into_iter().map(|token| (token, weight(token)));
        candidates.filter(|(_, weight)| *weight >= f64::from(self.min_p)).collect()
    }
}

/// The token with the largest logit, the first of equals. In lanes, because comparing one after the other takes as long as
/// a block of a small model.
fn likeliest(logits: &[f32]) -> u32 {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let larger = |best: &mut f32, logit: f32| *best = if logit > *best { logit } else { *best };
    let chunks = logits.as_chunks::<LANES>();
    for chunk in chunks.0 {
        lanes.iter_mut().zip(chunk).for_each(|(best, logit)| larger(best, *logit));
    }
    let mut best = f32::NEG_INFINITY;
    lanes.iter().chain(chunks.1).for_each(|logit| larger(&mut best, *logit));
    logits.iter().position(|logit| *logit == best).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use tunesmith_tensor::Seed;

    const LOGITS: [f32; 4] = [1.0, 3.0, 2.0, -1.0];

    fn kept(sampling: Sampling) -> Vec<u32> {
        let mut candidates = sampling.candidates(&LOGITS);
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1));
        candidates.into_iter().map(|(token, _)| token).collect()
    }

    #[test]
    fn a_nucleus_of_many_tokens_is_found() {
        let logits: Vec<f32> = (0..5000).map(|token| ((token * 7919) % 5000) as f32 * 1e-4).collect();
        let sampling = Sampling { temperature: 1.0, top_p: 0.5, ..Sampling::default() };
        let kept = sampling.candidates(&logits);
        let mut sorted: Vec<f64> = logits.iter().map(|logit| f64::from(*logit).exp()).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let total: f64 = sorted.iter().sum();
        let mut before = 0.0;
        let expected = sorted.iter().take_while(|weight| {
            let keep = before < 0.5f32 as f64 * total;
            before += **weight;
            keep
        });
        assert_eq!(kept.len(), expected.count());
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        let mut stream = Seed(0).stream("sampling", 0);
        assert_eq!(Sampling::default().choose(&LOGITS, &[], &mut stream), 1);
        assert_eq!(Sampling::default().choose(&[2.0, 2.0], &[], &mut stream), 0);
        assert_eq!(Sampling::default().choose(&[f32::NEG_INFINITY; 40], &[], &mut stream), 0);
        for place in 0..40 {
            let mut logits = [0.5; 40];
            logits[place..place + 1].fill(1.5);
            logits[place / 2] = -1.0;
            let expected = if place == 0 { 1 } else { place };
            assert_eq!(Sampling::default().choose(&logits, &[], &mut stream), expected as u32);
        }
    }

    #[test]
    fn filters_keep_what_they_say() {
        let warm = Sampling { temperature: 1.0, ..Sampling::default() };
        assert_eq!(kept(warm.clone()), [1, 2, 0, 3]);
        assert_eq!(kept(Sampling { top_k: 2, ..warm.clone() }), [1, 2]);
        // Probabilities: 0.657, 0.242, 0.089, 0.012.
        assert_eq!(kept(Sampling { top_p: 0.65, ..warm.clone() }), [1]);
        assert_eq!(kept(Sampling { top_p: 0.7, ..warm.clone() }), [1, 2]);
        assert_eq!(kept(Sampling { min_p: 0.13, ..warm }), [1, 2, 0]);
    }

    #[test]
    fn a_penalty_moves_logits_away_from_what_was_seen() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        let mut logits = LOGITS;
        sampling.penalise(&mut logits, &[1, 1, 3]);
        assert_eq!(logits, [1.0, 1.5, 2.0, -2.0]);
        assert_eq!(sampling.choose(&LOGITS, &[1], &mut Seed(0).stream("sampling", 0)), 2);
    }

    #[test]
    fn runs_of_tokens_are_not_repeated() {
        let after = |size: usize, seen: &[u32]| {
            let mut logits = [0.0; 4];
            Sampling { no_repeat_ngram_size: size, ..Sampling::default() }.penalise(&mut logits, seen);
            (0..4).filter(|token| logits[*token as usize] == f32::NEG_INFINITY).collect::<Vec<u32>>()
        };
        assert_eq!(after(2, &[0, 1, 0, 2, 0]), [1, 2]);
        assert_eq!(after(3, &[0, 1, 2, 3, 0, 1]), [2]);
        assert_eq!(after(1, &[0, 3]), [0, 3]);
        assert!(after(3, &[0, 1]).is_empty());
        assert!(after(0, &[0, 0, 0]).is_empty());
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        let mut stream = Seed(0).stream("sampling", 0);
        let mut counts = [0.0; 4];
        for _ in 0..20_000 {
            counts[sampling.choose(&LOGITS, &[], &mut stream) as usize] += 1.0 / 20_000.0;
        }
        let total: f64 = LOGITS.iter().map(|logit| f64::from(*logit).exp()).sum();
        for (count, logit) in counts.iter().zip(LOGITS) {
            assert!((count - f64::from(logit).exp() / total).abs() < 0.01, "{counts:?}");
        }
    }
}
