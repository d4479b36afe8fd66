//! Lays out the sites of a BART and reads its weights.

use tunesmith_tensor::{Role, SiteId};

use crate::architectures::bart::config::{BartConfig, StackConfig};
use crate::architectures::bart::{Bart, Layer, Stack};
use crate::encoder_decoder::Attending;
use crate::error::ModelError;
use crate::head::Head;
use crate::model::{ModelInfo, ModelKind};
use crate::network::Parts;
use crate::renamed::Renamed;
use crate::site_table::{Layout, NewHeads};
use crate::task::{HeadInfo, Task};
use crate::weights::WeightSource;

/// Rows of the table of positions before that of the first.
pub(super) const FIRST_POSITION: usize = 2;
const FINAL_LOGITS_BIAS: &str = "final_logits_bias";

impl Bart {
    /// Reads the weights that `config` asks for. A language model whose files hold another output embedding than its
    /// token embedding is read as untied.
    pub(super) fn from_source(mut config: BartConfig, source: &mut dyn WeightSource) -> Result<Self, ModelError> {
        let mut layout = Layout::default();
        let hidden = config.d_model;
        let input = layout.input(config.path("encoder"), Role::Input, hidden);
        let mut words = |path| layout.embedding(config.path(path), Role::TokenEmbedding, config.vocab_size, hidden);
        let [encoder_words, decoder_words] = if config.tie_word_embeddings {
            [words("shared"); 2]
        } else {
            ["encoder.embed_tokens", "decoder.embed_tokens"].map(words)
        };
        if !config.tie_word_embeddings {
            // It is stored all the same.
            layout.keep(config.path("shared.weight"), vec![config.vocab_size, hidden]);
        }
        let encoder = stack(&config, &mut layout, "encoder", config.encoder, encoder_words);
        let decoder = stack(&config, &mut layout, "decoder", config.decoder, decoder_words);
        let lm_head = (config.head_info.task == Task::Seq2SeqLm).then(|| {
            let path = "lm_head".to_owned();
            let site = layout.linear_without_bias(path, Role::OutputEmbedding, None, config.vocab_size, hidden);
            if config.tie_word_embeddings {
                layout.tie(site, decoder_words);
            }
            layout.keep(FINAL_LOGITS_BIAS.to_owned(), vec![1, config.vocab_size]);
            site
        });
        let head = config.head.as_ref().map(|plan| Head::lay_out(plan, hidden, &mut layout));
        let new = NewHeads::of(&config.head_options, config.init_std);
        let table = layout.read(&mut Renamed::new(source, |name| rename(&config, name)), &new)?;
        let heads = config.decoder.heads;
        let info = ModelInfo {
            model_type: "bart".to_owned(),
            kind: ModelKind::EncoderDecoder {
                encoder_blocks: config.encoder.layers,
                decoder_start_token_id: config.decoder_start_token_id,
            },
            vocab_size: config.vocab_size,
            hidden_size: hidden,
            blocks: config.decoder.layers,
            heads,
            kv_heads: heads,
            head_dim: hidden / heads,
            max_positions: config.max_position_embeddings,
            tied: lm_head.is_some_and(|site| table.is_tied(site)),
            head: HeadInfo { new_modules: table.new_modules().to_vec(), ..config.head_info.clone() },
        };
        let output_bias = table.kept(FINAL_LOGITS_BIAS).cloned();
        let json = std::mem::take(&mut config.json);
        let parts = Parts { info, json, table, head, lm_head, output_bias };
        Ok(Self { parts, config, input, encoder, decoder })
    }
}

/// The sites of one stack, in the order in which the forward pass meets them.
fn stack(config: &BartConfig, layout: &mut Layout, name: &str, sizes: StackConfig, words: SiteId) -> Stack {
    let hidden = config.d_model;
    let path = |part: &str| config.path(&format!("{name}.{part}"));
    let rows = config.max_position_embeddings + FIRST_POSITION;
    let embed_positions = layout.embedding(path("embed_positions"), Role::PositionEmbedding, rows, hidden);
    let layernorm_embedding = layout.layer_norm(path("layernorm_embedding"), Role::EmbeddingNorm, None, hidden);
    let is_decoder = name == "decoder";
    let own = if is_decoder { Role::SelfAttention } else { Role::EncoderAttention };
    let layers = (0..sizes.layers)
        .map(|block| {
            let at = Some(block);
            let path = |part: &str| path(&format!("layers.{block}.{part}"));
            let mut attending = |name: &str, kind, after| attending(layout, &path(name), kind, after, block, hidden);
            let self_attention = attending("self_attn", own, Role::AfterAttention);
            let cross_attention =
                is_decoder.then(|| attending("encoder_attn", Role::CrossAttention, Role::AfterCrossAttention));
            Layer {
                self_attention,
                cross_attention,
                fc1: layout.linear(path("fc1"), Role::FeedForwardUp, at, sizes.inner_size, hidden),
                fc2: layout.linear(path("fc2"), Role::FeedForwardDown, at, hidden, sizes.inner_size),
                after_feed_forward: layout.hidden(path("fc2"), Role::AfterFeedForward, block, hidden),
                final_layer_norm: layout.layer_norm(path("final_layer_norm"), Role::BlockNorm, at, hidden),
            }
        })
        .collect();
    Stack { heads: sizes.heads, words, embed_positions, layernorm_embedding, layers }
}

fn attending(layout: &mut Layout, path: &str, kind: Role, after: Role, block: usize, hidden: usize) -> Attending {
    let mut linear = |part: &str, role| layout.linear(format!("{path}.{part}"), role, Some(block), hidden, hidden);
    let [query, key, value] = [("q_proj", Role::Query), ("k_proj", Role::Key), ("v_proj", Role::Value)]
        .map(|(part, role)| linear(part, role));
    let attention = layout.attention(path.to_owned(), kind, block, hidden);
    let output = layout.linear(format!("{path}.out_proj"), Role::AttentionOutput, Some(block), hidden, hidden);
    let after = layout.hidden(path.to_owned(), after, block, hidden);
    let layer_norm = layout.layer_norm(format!("{path}_layer_norm"), Role::BlockNorm, Some(block), hidden);
    Attending { layer_norm, query, key, value, output, attention, after }
}

/// The name that this model has for a tensor of a checkpoint; `None` for those that are not needed: copies of the shared
/// embedding, and other heads.
fn rename(config: &BartConfig, name: &str) -> Option<String> {
    let bare = name.strip_prefix("model.").unwrap_or(name);
    match bare {
        "encoder.embed_tokens.weight" | "decoder.embed_tokens.weight" | "shared.weight"
            if config.tie_word_embeddings =>
        {
            Some(config.path("shared.weight"))
        }
        "lm_head.weight" | FINAL_LOGITS_BIAS => (config.head_info.task == Task::Seq2SeqLm).then(|| bare.to_owned()),
        // What a checkpoint of 2019 wrote for its own bookkeeping.
        "encoder.version" | "decoder.version" => None,
        _ if ["encoder.", "decoder.", "shared."].iter().any(|part| bare.starts_with(part)) => Some(config.path(bare)),
        _ => config.head.as_ref().filter(|head| head.has_tensor(bare)).map(|_| bare.to_owned()),
    }
}
