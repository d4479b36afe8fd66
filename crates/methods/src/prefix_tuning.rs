//! Prefix tuning (Li and Liang 2021, <https://arxiv.org/abs/2101.00190>, section 4): trained keys and values before those
//! of every attention.
//!
//! ```text
//! Attention(Q, [Pₖ; K], [Pᵥ; V]),   P trained as it is, or P = W₂·tanh(W₀·E) with E trained (`prefix_projection`)
//! ```
//!
//! An encoder-decoder gets three prefixes: for the encoder's and the decoder's self-attention and for the attention
//! between them. PEFT knows a prefix of the decoder's self-attention only, in an order of its own; its files are read so.
//! Files hold `P` alone; checkpoints keep the network.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tunesmith_tensor::{
    Activation, Adapter, AttentionTuner, Matrix, Parameter, Role, Seed, Stored, Tape, Trainable, Var, Workspace,
};

use crate::common::{CommonConfig, Purpose};
use crate::error::ConfigProblem;
use crate::method::{Built, Method, Place};
use crate::prefix_start;
use crate::virtual_tokens::{STORED, VirtualTokens, attention_sites, filled, linear_start};
use crate::{MethodError, ModelDescription};

/// Configuration of prefix tuning, with PEFT's keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefixTuningConfig {
    /// What every method's configuration has.
    #[serde(flatten)]
    pub common: CommonConfig,
    /// How many virtual tokens.
    #[serde(flatten)]
    pub tokens: VirtualTokens,
    /// Whether the prefix comes out of a network while it is trained.
    pub prefix_projection: bool,
    /// Width of the network; that of the keys where it is not set. The paper has 512 and 800.
    pub encoder_hidden_size: Option<usize>,
    /// `zero` lets the prefix begin with zeros.
    pub init_weights: Option<PrefixStart>,
    /// Lets the prefix begin as the keys and values that the model, a decoder, computes for the tokens of this text,
    /// repeated or cut to the number of virtual tokens (section 7.4 of the paper).
    pub prefix_init_text: Option<String>,
    /// Which attentions of an encoder-decoder get a prefix. A new adapter gets all three where neither this nor
    /// `num_transformer_submodules` is set; a file without this key is PEFT's.
    pub prefix_attention: Option<Vec<PrefixPlace>>,
}

/// What a prefix begins as, other than random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrefixStart {
    /// Zeros.
    Zero,
}

/// An attention of an encoder-decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrefixPlace {
    /// The encoder's self-attention.
    Encoder,
    /// The decoder's self-attention.
    Decoder,
    /// The decoder's attention to the encoder.
    Cross,
}

/// The prefix of a stack of attentions: what its tuners share. Column `slot·width + i` of `P` `[length, slots·width]` is
/// feature `i` of the keys or values that `slot` names.
#[derive(Clone, Debug)]
struct PrefixSet {
    /// Key in the file.
    stored: String,
    length: usize,
    /// Width of keys and of values.
    width: usize,
    /// `P`; or the embedding `E`, `W₀` and its bias, `W₂` and its bias.
    parameters: Vec<Parameter>,
}

/// How a set is shaped and starts.
struct Start {
    slots: usize,
    /// Width of the network, if there is one.
    hidden: Option<usize>,
    zero: bool,
    /// What `P` begins as, where it is neither random nor zero.
    values: Option<Matrix>,
}

impl PrefixSet {
    fn new(scope: &str, length: usize, width: usize, start: &Start, seed: Seed) -> Self {
        let stored = format!("{scope}{STORED}");
        let out = start.slots * width;
        let mut stream = seed.stream(&stored, 0);
        let name = |name: &str| format!("{scope}prompt_encoder.{name}");
        let parameters = match start.hidden {
            None if start.values.is_some() => {
                start.values.iter().map(|p| Parameter::new(&*stored, p.clone())).collect()
            }
            None if start.zero => vec![Parameter::new(stored.clone(), Matrix::zeros(length, out))],
            None => vec![Parameter::new(stored.clone(), filled(length, out, || stream.normal()))],
            Some(hidden) => {
                let embedding = filled(length, width, || stream.normal());
                let (first, first_bias) = linear_start(hidden, width, &mut stream);
                let (mut last, mut last_bias) = linear_start(out, hidden, &mut stream);
                if start.zero {
                    last.data_mut().fill(0.0);
                    last_bias.data_mut().fill(0.0);
                }
                if let Some(values) = &start.values {
                    let network = [&embedding, &first, &first_bias, &last, &last_bias];
                    last = prefix_start::last_layer(network, values);
                }
                vec![
                    Parameter::new(name("embedding.weight"), embedding),
                    Parameter::new(name("transform.0.weight"), first),
                    Parameter::vector(name("transform.0.bias"), first_bias),
                    Parameter::new(name("transform.2.weight"), last),
                    Parameter::vector(name("transform.2.bias"), last_bias),
                ]
            }
        };
        Self { stored, length, width, parameters }
    }

    /// `P` `[length, slots·width]`.
    fn prefix(&self, tape: &mut Tape) -> Var {
        let all: Vec<Var> = self.parameters.iter().map(|parameter| tape.parameter(parameter)).collect();
        let [embedding, first, first_bias, last, last_bias] = all.as_slice() else { return all[0].clone() };
        let x = tape.matmul_nt(embedding, first);
        let x = tape.add_bias(x, 0..self.length, first_bias);
        let x = tape.activation(Activation::Tanh, &x);
        let x = tape.matmul_nt(&x, last);
        tape.add_bias(x, 0..self.length, last_bias)
    }
}

/// The prefix of one attention.
#[derive(Debug)]
pub struct PrefixTuner {
    set: PrefixSet,
    key_slot: usize,
    value_slot: usize,
}

impl PrefixTuner {
    /// A prefix of fixed size from `keys` and `values` `[length, width]`, such as those that a model has computed for
    /// real tokens.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn new(keys: &Matrix, values: &Matrix) -> Self {
        assert_eq!(keys.shape(), values.shape(), "each key has its value");
        let (length, width) = keys.shape();
        let rows = (0..length).flat_map(|row| [keys.row(row), values.row(row)].concat());
        let prefix = Parameter::new(STORED, Matrix::from_vec(length, 2 * width, rows.collect()));
        let set = PrefixSet { stored: STORED.to_owned(), length, width, parameters: vec![prefix] };
        Self { set, key_slot: 0, value_slot: 1 }
    }
}

impl Trainable for PrefixTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        self.set.parameters.iter().collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.set.parameters.iter_mut().collect()
    }

    fn stored(&self) -> Vec<Stored> {
        // The tuners of a set store the same; one is enough.
        if self.key_slot != 0 {
            return Vec::new();
        }
        let value = self.set.prefix(&mut Tape::evaluating(&Workspace::new())).value().clone();
        let (rows, cols) = value.shape();
        vec![Stored { name: self.set.stored.clone(), shape: vec![rows, cols], value: Arc::new(value) }]
    }
}

impl AttentionTuner for PrefixTuner {
    fn length(&self) -> usize {
        self.set.length
    }

    fn prefix(&self, tape: &mut Tape) -> (Var, Var) {
        let set = &self.set;
        let prefix = tape.shared(set.parameters[0].id(), |tape| vec![set.prefix(tape)])[0].clone();
        let columns = |slot: usize| slot * set.width..(slot + 1) * set.width;
        let keys = tape.slice_columns(&prefix, columns(self.key_slot));
        (keys, tape.slice_columns(&prefix, columns(self.value_slot)))
    }
}

impl Method for PrefixTuningConfig {
    const PEFT_TYPE: &'static str = "PREFIX_TUNING";

    fn own_keys() -> &'static [&'static str] {
        &["prefix_attention", "prefix_init_text"]
    }

    fn common(&self) -> &CommonConfig {
        &self.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.common
    }

    fn problems(&self, _purpose: Purpose) -> Vec<ConfigProblem> {
        let mut problems = self.tokens.problems();
        if self.encoder_hidden_size == Some(0) {
            let reason = "it must be at least 1".to_owned();
            problems.push(ConfigProblem::Value { key: "encoder_hidden_size".into(), reason });
        }
        if self.prefix_attention.as_ref().is_some_and(Vec::is_empty) {
            let reason = "it must name at least one of encoder, decoder and cross".to_owned();
            problems.push(ConfigProblem::Value { key: "prefix_attention".into(), reason });
        }
        if self.prefix_init_text.is_some() && self.init_weights.is_some() {
            let reason = "init_weights says what the prefix begins as, too: keep one".to_owned();
            problems.push(ConfigProblem::Value { key: "prefix_init_text".into(), reason });
        }
        problems
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        let Place { model, seed, purpose, .. } = *place;
        let mut config = self.clone();
        let decoder = attention_sites(model, Role::SelfAttention);
        let no_site =
            || MethodError::NoSite { model_type: model.model_type.to_owned(), what: "attention for a prefix" };
        let first = decoder.first().ok_or_else(no_site)?;
        let width = model.sites[first.0].cols;
        let has_encoder = !attention_sites(model, Role::EncoderAttention).is_empty();
        let is_new = purpose == Purpose::Training && self.tokens.num_transformer_submodules.is_none();
        if is_new && has_encoder && config.prefix_attention.is_none() {
            config.prefix_attention = Some(vec![PrefixPlace::Encoder, PrefixPlace::Decoder, PrefixPlace::Cross]);
        }
        config.tokens = self.tokens.resolved(width, model.key_value_heads, place);
        let hidden = *config.encoder_hidden_size.get_or_insert(width);
        let hidden = (self.prefix_projection && purpose == Purpose::Training).then_some(hidden);
        let zero = self.init_weights == Some(PrefixStart::Zero);
        let length = config.tokens.length();
        let text = self.prefix_init_text.as_deref().filter(|_| purpose == Purpose::Training);
        let values = text.map(|text| prefix_start::recorded(text, length, hidden, model)).transpose()?;
        let mut adapter = Adapter::new();
        match &config.prefix_attention {
            Some(places) if has_encoder => {
                for place in places {
                    let sites = sites_of(*place, model);
                    let start = Start { slots: 2 * sites.len(), hidden, zero, values: None };
                    let set = PrefixSet::new(scope(*place), length, width, &start, seed);
                    for (block, site) in sites.into_iter().enumerate() {
                        let (key_slot, value_slot) = (2 * block, 2 * block + 1);
                        adapter
                            .insert_attention(site, Box::new(PrefixTuner { set: set.clone(), key_slot, value_slot }));
                    }
                }
            }
            _ => {
                let slots = 2 * config.tokens.num_layers.unwrap_or(decoder.len());
                let set = PrefixSet::new("", length, width, &Start { slots, hidden, zero, values }, seed);
                let doubled = config.tokens.num_transformer_submodules == Some(2);
                for (block, site) in decoder.into_iter().enumerate() {
                    // With two submodules PEFT repeats the slots and takes two of every four.
                    let key_slot = if doubled { 4 * block % slots } else { 2 * block };
                    let tuner = PrefixTuner { set: set.clone(), key_slot, value_slot: key_slot + 1 };
                    adapter.insert_attention(site, Box::new(tuner));
                }
            }
        }
        config.tokens.add_saved(&mut adapter, model, purpose)?;
        Ok(Built { config, adapter, warnings: Vec::new(), routine: None })
    }
}

fn sites_of(place: PrefixPlace, model: &ModelDescription<'_>) -> Vec<tunesmith_tensor::SiteId> {
    let role = match place {
        PrefixPlace::Encoder => Role::EncoderAttention,
        PrefixPlace::Decoder => Role::SelfAttention,
        PrefixPlace::Cross => Role::CrossAttention,
    };
    attention_sites(model, role)
}

/// Before the names of a place's tensors.
fn scope(place: PrefixPlace) -> &'static str {
    match place {
        PrefixPlace::Encoder => "encoder.",
        PrefixPlace::Decoder => "decoder.",
        PrefixPlace::Cross => "cross.",
    }
}
