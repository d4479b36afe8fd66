//! The parameters that completions and chat share. All of them are checked together, and what is wrong is said of the
//! parameter.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;
use tunesmith_models::Sampling;
use tunesmith_tensor::Seed;

use super::error::ApiError;

/// Texts that end an answer: one or several.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(untagged)]
pub(super) enum Stop {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

/// What a stream tells beside its texts.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamOptions {
    #[serde(default)]
    pub(super) include_usage: bool,
}

/// The form of an answer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum ResponseFormat {
    #[default]
    Text,
    JsonObject,
    JsonSchema {
        json_schema: NamedSchema,
    },
}

/// A schema with what OpenAI puts around it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NamedSchema {
    pub(super) schema: Value,
    #[serde(default, rename = "name")]
    _name: Option<String>,
    #[serde(default, rename = "description")]
    _description: Option<String>,
    /// Schemas are always enforced.
    #[serde(default, rename = "strict")]
    _strict: Option<bool>,
}

/// Parameters as they are given.
#[derive(Clone, Debug, Default)]
pub(super) struct Parameters {
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) top_k: Option<i64>,
    pub(super) min_p: Option<f32>,
    pub(super) repetition_penalty: Option<f32>,
    pub(super) presence_penalty: Option<f32>,
    pub(super) frequency_penalty: Option<f32>,
    pub(super) logit_bias: Option<BTreeMap<String, f32>>,
    pub(super) stop: Option<Stop>,
    pub(super) seed: Option<i64>,
    pub(super) n: Option<usize>,
}

/// Parameters that have been checked.
pub(super) struct Checked {
    pub(super) sampling: Sampling,
    pub(super) presence_penalty: f32,
    pub(super) frequency_penalty: f32,
    pub(super) logit_bias: Vec<(u32, f32)>,
    pub(super) stop: Vec<String>,
    pub(super) seed: Seed,
    pub(super) n: usize,
}

/// Texts that may end an answer at the most.
const MOST_STOPS: usize = 16;

impl Parameters {
    pub(super) fn check(self, most_choices: usize, vocabulary: usize) -> Result<Checked, ApiError> {
        let within = |name: &str, value: Option<f32>, default: f32, range: std::ops::RangeInclusive<f32>| {
            let value = value.unwrap_or(default);
            if range.contains(&value) {
                return Ok(value);
            }
            let message = format!("{name} is {value}, but must lie between {} and {}", range.start(), range.end());
            Err(ApiError::invalid(message).about(name))
        };
        let top_k = match self.top_k.unwrap_or(0) {
            -1 => 0,
            top_k => usize::try_from(top_k)
                .map_err(|_| ApiError::invalid(format!("top_k is {top_k}, but must not be negative")).about("top_k"))?,
        };
        let sampling = Sampling {
            temperature: within("temperature", self.temperature, 1.0, 0.0..=100.0)?,
            top_k,
            top_p: within("top_p", self.top_p, 1.0, f32::MIN_POSITIVE..=1.0)?,
            min_p: within("min_p", self.min_p, 0.0, 0.0..=1.0)?,
            repetition_penalty: within("repetition_penalty", self.repetition_penalty, 1.0, 0.01..=100.0)?,
            no_repeat_ngram_size: 0,
        };
        let n = self.n.unwrap_or(1);
        if n == 0 || n > most_choices {
            return Err(ApiError::invalid(format!("n is {n}, but must lie between 1 and {most_choices}")).about("n"));
        }
        let bias = self.logit_bias.unwrap_or_default().into_iter().map(|(token, bias)| {
            let id = token.parse::<u32>().ok().filter(|id| (*id as usize) < vocabulary);
            match id {
                Some(id) if (-100.0..=100.0).contains(&bias) => Ok((id, bias)),
                Some(_) => Err(format!("the bias of token {token} is {bias}, but must lie between -100 and 100")),
                None => Err(format!("'{token}' is no token id of this model")),
            }
        });
        let logit_bias =
            bias.collect::<Result<_, String>>().map_err(|message| ApiError::invalid(message).about("logit_bias"))?;
        let stop = match self.stop.unwrap_or_default() {
            Stop::None => Vec::new(),
            Stop::One(text) => vec![text],
            Stop::Many(texts) => texts,
        };
        if stop.len() > MOST_STOPS || stop.iter().any(String::is_empty) {
            let message = format!("stop may hold up to {MOST_STOPS} texts, none of them empty");
            return Err(ApiError::invalid(message).about("stop"));
        }
        Ok(Checked {
            sampling,
            presence_penalty: within("presence_penalty", self.presence_penalty, 0.0, -2.0..=2.0)?,
            frequency_penalty: within("frequency_penalty", self.frequency_penalty, 0.0, -2.0..=2.0)?,
            logit_bias,
            stop,
            seed: Seed(self.seed.map_or_else(any_seed, |seed| seed as u64)),
            n,
        })
    }
}

/// A seed for those who do not care: another one each time.
fn any_seed() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_nanos() as u64);
    time ^ COUNT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
