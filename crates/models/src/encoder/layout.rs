//! Lays out the sites of a post-norm encoder and reads its weights, under whatever names a checkpoint has.

use tunesmith_tensor::Role;

use crate::encoder::config::EncoderConfig;
use crate::encoder::{Encoder, EncoderLayer};
use crate::error::ModelError;
use crate::head::Head;
use crate::model::{ModelInfo, ModelKind};
use crate::network::Parts;
use crate::renamed::Renamed;
use crate::site_table::{Layout, NewHeads};
use crate::task::HeadInfo;
use crate::weights::WeightSource;

impl Encoder {
    /// Reads the weights that `config` asks for.
    pub(super) fn from_source(mut config: EncoderConfig, source: &mut dyn WeightSource) -> Result<Self, ModelError> {
        let (hidden, inner) = (config.hidden_size, config.inner_size);
        let mut layout = Layout::default();
        let path = |part: &str| config.path(part);
        let input = layout.input(path("embeddings"), Role::Input, hidden);
        let word_embeddings =
            layout.embedding(path("embeddings.word_embeddings"), Role::TokenEmbedding, config.vocab_size, hidden);
        let token_type_embeddings = config.token_types.map(|rows| {
            layout.embedding(path("embeddings.token_type_embeddings"), Role::TokenTypeEmbedding, rows, hidden)
        });
        let position_embeddings = layout.embedding(
            path("embeddings.position_embeddings"),
            Role::PositionEmbedding,
            config.position_rows,
            hidden,
        );
        let embedding_norm = layout.layer_norm(path("embeddings.LayerNorm"), Role::EmbeddingNorm, None, hidden);
        let mut layers = Vec::with_capacity(config.blocks);
        for block in 0..config.blocks {
            let names = &config.names;
            let path = |part: &str| path(&format!("{}.{block}.{part}", names.layer));
            let at = Some(block);
            layers.push(EncoderLayer {
                query: layout.linear(path(names.query), Role::Query, at, hidden, hidden),
                key: layout.linear(path(names.key), Role::Key, at, hidden, hidden),
                value: layout.linear(path(names.value), Role::Value, at, hidden, hidden),
                attention: layout.attention(path(names.attention), Role::SelfAttention, block, hidden),
                attention_output: layout.linear(
                    path(names.attention_output),
                    Role::AttentionOutput,
                    at,
                    hidden,
                    hidden,
                ),
                after_attention: layout.hidden(path(names.after_attention), Role::AfterAttention, block, hidden),
                attention_norm: layout.layer_norm(path(names.attention_norm), Role::BlockNorm, at, hidden),
                up: layout.linear(path(names.up), Role::FeedForwardUp, at, inner, hidden),
                down: layout.linear(path(names.down), Role::FeedForwardDown, at, hidden, inner),
                after_feed_forward: layout.hidden(
                    path(names.after_feed_forward),
                    Role::AfterFeedForward,
                    block,
                    hidden,
                ),
                output_norm: layout.layer_norm(path(names.output_norm), Role::BlockNorm, at, hidden),
            });
        }
        let head = config.head.as_ref().map(|plan| Head::lay_out(plan, hidden, &mut layout));
        if let (None, Some(pooler)) = (&config.head, config.names.pooler) {
            layout.keep(format!("{pooler}.weight"), vec![hidden, hidden]);
            layout.keep(format!("{pooler}.bias"), vec![hidden]);
        }
        let new = NewHeads::of(&config.head_options, config.initializer_range);
        let table = layout.read(&mut Renamed::new(source, |name| rename(&config, name)), &new)?;
        let info = ModelInfo {
            model_type: config.model_type.clone(),
            kind: ModelKind::Encoder,
            vocab_size: config.vocab_size,
            hidden_size: hidden,
            blocks: config.blocks,
            heads: config.heads,
            kv_heads: config.heads,
            head_dim: hidden / config.heads,
            max_positions: config.position_rows - config.first_position,
            tied: false,
            head: HeadInfo { new_modules: table.new_modules().to_vec(), ..config.head_info.clone() },
        };
        let json = std::mem::take(&mut config.json);
        let parts = Parts { info, json, table, head, lm_head: None, output_bias: None };
        Ok(Self {
            parts,
            config,
            input,
            word_embeddings,
            token_type_embeddings,
            position_embeddings,
            embedding_norm,
            layers,
        })
    }
}

/// The name that this model has for a tensor of a checkpoint; `None` for those of other heads.
fn rename(config: &EncoderConfig, name: &str) -> Option<String> {
    let (module, last) = name.rsplit_once('.')?;
    // What TensorFlow called them, in checkpoints of 2018 and 2019.
    let last = match last {
        "gamma" => "weight",
        "beta" => "bias",
        last => last,
    };
    if last == "position_ids" {
        return None;
    }
    let module = match config.names.prefix.split('.').next().and_then(|prefix| module.strip_prefix(prefix)) {
        Some(rest) if rest.starts_with('.') => &rest[1..],
        _ => module,
    };
    let layers = config.names.layer.split('.').next().unwrap_or_default();
    let is_pooler = Some(module) == config.names.pooler;
    let in_body = module.starts_with("embeddings.") || module.starts_with(&format!("{layers}.layer."));
    if in_body {
        return Some(format!("{}.{last}", config.path(module)));
    }
    let Some(head) = &config.head else { return is_pooler.then(|| format!("{module}.{last}")) };
    let full = format!("{}.{last}", if is_pooler { config.path(module) } else { module.to_owned() });
    head.has_tensor(&full).then_some(full)
}
