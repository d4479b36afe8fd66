//! Lays out the sites of a T5 and reads its weights.

use tunesmith_tensor::Role;

use crate::architectures::t5::config::T5Config;
use crate::architectures::t5::{Block, FeedForward, Stack, T5};
use crate::encoder_decoder::Attending;
use crate::error::ModelError;
use crate::head::Head;
use crate::model::{ModelInfo, ModelKind};
use crate::network::Parts;
use crate::renamed::Renamed;
use crate::site_table::{Layout, NewHeads};
use crate::task::{HeadInfo, Task};
use crate::weights::WeightSource;

/// Positions are relative, so there is no end of them.
const MAX_POSITIONS: usize = u32::MAX as usize;

impl T5 {
    /// Reads the weights that `config` asks for. A language model whose files hold another output embedding than its
    /// token embedding is read as untied.
    pub(super) fn from_source(mut config: T5Config, source: &mut dyn WeightSource) -> Result<Self, ModelError> {
        let mut layout = Layout::default();
        let hidden = config.d_model;
        let input = layout.input(config.path("encoder"), Role::Input, hidden);
        let shared = layout.embedding(config.path("shared"), Role::TokenEmbedding, config.vocab_size, hidden);
        let encoder = stack(&config, &mut layout, "encoder", config.num_layers);
        let decoder =
            (!config.is_encoder_only).then(|| stack(&config, &mut layout, "decoder", config.num_decoder_layers));
        let lm_head = (config.head_info.task == Task::Seq2SeqLm).then(|| {
            let path = "lm_head".to_owned();
            let site = layout.linear_without_bias(path, Role::OutputEmbedding, None, config.vocab_size, hidden);
            layout.tie(site, shared);
            site
        });
        let head = config.head.as_ref().map(|plan| Head::lay_out(plan, hidden, &mut layout));
        let new = NewHeads::of(&config.head_options, config.head_deviation);
        let table = layout.read(&mut Renamed::new(source, |name| rename(&config, name)), &new)?;
        let info = ModelInfo {
            model_type: config.model_type.clone(),
            kind: if config.is_encoder_only {
                ModelKind::Encoder
            } else {
                ModelKind::EncoderDecoder {
                    encoder_blocks: config.num_layers,
                    decoder_start_token_id: config.decoder_start_token_id,
                }
            },
            vocab_size: config.vocab_size,
            hidden_size: hidden,
            blocks: if config.is_encoder_only { config.num_layers } else { config.num_decoder_layers },
            heads: config.num_heads,
            kv_heads: config.num_heads,
            head_dim: config.d_kv,
            max_positions: MAX_POSITIONS,
            tied: lm_head.is_some_and(|site| table.is_tied(site)),
            head: HeadInfo { new_modules: table.new_modules().to_vec(), ..config.head_info.clone() },
        };
        let json = std::mem::take(&mut config.json);
        let parts = Parts { info, json, table, head, lm_head, output_bias: None };
        Ok(Self { parts, config, input, shared, encoder, decoder })
    }
}

/// The sites of one stack, in the order in which the forward pass meets them.
fn stack(config: &T5Config, layout: &mut Layout, name: &str, blocks: usize) -> Stack {
    let (hidden, heads) = (config.d_model, config.num_heads);
    let path = |part: &str| config.path(&format!("{name}.{part}"));
    let relative_attention_bias = layout.embedding(
        path("block.0.layer.0.SelfAttention.relative_attention_bias"),
        Role::RelativeBias,
        config.buckets,
        heads,
    );
    let is_decoder = name == "decoder";
    let is_first_of_two = !is_decoder && !config.is_encoder_only;
    let own = if is_first_of_two { Role::EncoderAttention } else { Role::SelfAttention };
    let blocks = (0..blocks)
        .map(|block| {
            let layer = |number: usize| path(&format!("block.{block}.layer.{number}"));
            let roles = (own, Role::AfterAttention);
            let self_attention = attending(config, layout, &layer(0), "SelfAttention", roles, block);
            let roles = (Role::CrossAttention, Role::AfterCrossAttention);
            let cross_attention =
                is_decoder.then(|| attending(config, layout, &layer(1), "EncDecAttention", roles, block));
            let last = layer(if is_decoder { 2 } else { 1 });
            let feed_forward = feed_forward(config, layout, &last, block);
            Block { self_attention, cross_attention, feed_forward }
        })
        .collect();
    let final_layer_norm = layout.rms_norm(path("final_layer_norm"), Role::FinalNorm, None, hidden);
    Stack { relative_attention_bias, blocks, final_layer_norm }
}

fn attending(
    config: &T5Config,
    layout: &mut Layout,
    layer: &str,
    name: &str,
    (kind, after): (Role, Role),
    block: usize,
) -> Attending {
    let (hidden, inner, at) = (config.d_model, config.num_heads * config.d_kv, Some(block));
    let path = |part: &str| format!("{layer}.{name}.{part}");
    Attending {
        layer_norm: layout.rms_norm(format!("{layer}.layer_norm"), Role::BlockNorm, at, hidden),
        query: layout.linear_without_bias(path("q"), Role::Query, at, inner, hidden),
        key: layout.linear_without_bias(path("k"), Role::Key, at, inner, hidden),
        value: layout.linear_without_bias(path("v"), Role::Value, at, inner, hidden),
        attention: layout.attention(format!("{layer}.{name}"), kind, block, inner),
        output: layout.linear_without_bias(path("o"), Role::AttentionOutput, at, hidden, inner),
        after: layout.hidden(layer.to_owned(), after, block, hidden),
    }
}

fn feed_forward(config: &T5Config, layout: &mut Layout, layer: &str, block: usize) -> FeedForward {
    let (hidden, inner, at) = (config.d_model, config.d_ff, Some(block));
    let path = |part: &str| format!("{layer}.DenseReluDense.{part}");
    let linear = |layout: &mut Layout, part: &str, role, rows, cols| {
        layout.linear_without_bias(path(part), role, at, rows, cols)
    };
    let layer_norm = layout.rms_norm(format!("{layer}.layer_norm"), Role::BlockNorm, at, hidden);
    let gate = config.is_gated.then(|| linear(layout, "wi_0", Role::FeedForwardGate, inner, hidden));
    let up = linear(layout, if config.is_gated { "wi_1" } else { "wi" }, Role::FeedForwardUp, inner, hidden);
    let down = linear(layout, "wo", Role::FeedForwardDown, hidden, inner);
    let after = layout.hidden(layer.to_owned(), Role::AfterFeedForward, block, hidden);
    FeedForward { layer_norm, gate, up, down, after }
}

/// The name that this model has for a tensor of a checkpoint; `None` for those that are not needed: copies of the shared
/// embedding, other heads, a decoder where the encoder stands alone, and a table that old checkpoints have in the attention to the encoder.
fn rename(config: &T5Config, name: &str) -> Option<String> {
    let bare = name.strip_prefix("transformer.").unwrap_or(name);
    let is_embedding = bare == "encoder.embed_tokens.weight" || bare == "decoder.embed_tokens.weight";
    if bare == "shared.weight" || is_embedding {
        return Some(config.path("shared.weight"));
    }
    let is_unused = config.is_encoder_only && bare.starts_with("decoder.");
    if is_unused || bare.ends_with("EncDecAttention.relative_attention_bias.weight") {
        return None;
    }
    if bare.starts_with("encoder.") || bare.starts_with("decoder.") {
        return Some(config.path(bare));
    }
    if bare == "lm_head.weight" {
        return (config.head_info.task == Task::Seq2SeqLm).then(|| bare.to_owned());
    }
    let head = config.head.as_ref()?;
    head.has_tensor(bare).then(|| bare.to_owned())
}
