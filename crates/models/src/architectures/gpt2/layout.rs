//! Lays out the sites of a GPT-2 and reads its weights. Checkpoints of the bare model, without `transformer.` before their
//! names, are read like those with it; models are always saved with it.

use tunesmith_tensor::Role;

use crate::architectures::gpt2::{Gpt2, Gpt2Block, Gpt2Config};
use crate::error::ModelError;
use crate::model::{ModelInfo, ModelKind};
use crate::network::Parts;
use crate::renamed::Renamed;
use crate::site_table::{Layout, NewHeads};
use crate::task::{HeadInfo, Task};
use crate::weights::WeightSource;

const PREFIX: &str = "transformer.";
const LM_HEAD: &str = "lm_head.weight";

impl Gpt2 {
    /// Reads the weights that `config` asks for.
    ///
    /// A tied model whose files hold another output embedding is read as untied, as transformers does.
    ///
    /// # Errors
    /// [`ModelError::Tensors`] with every tensor that is missing, misshapen, unexpected or of an unsupported format;
    /// or a reading error.
    pub fn from_source(config: Gpt2Config, source: &mut dyn WeightSource) -> Result<Self, ModelError> {
        let mut layout = Layout::default();
        let (hidden, vocabulary) = (config.n_embd, config.vocab_size);
        let input = layout.input("transformer".to_owned(), Role::Input, hidden);
        let wte = layout.embedding("transformer.wte".to_owned(), Role::TokenEmbedding, vocabulary, hidden);
        let wpe = layout.embedding("transformer.wpe".to_owned(), Role::PositionEmbedding, config.n_positions, hidden);
        let blocks = (0..config.n_layer).map(|number| block(&config, &mut layout, number)).collect();
        let ln_f = layout.layer_norm("transformer.ln_f".to_owned(), Role::FinalNorm, None, hidden);
        let path = "lm_head".to_owned();
        let lm_head = layout.linear_without_bias(path, Role::OutputEmbedding, None, vocabulary, hidden);
        if config.tie_word_embeddings {
            layout.tie(lm_head, wte);
        }
        let is_bare = !source.stored().keys().any(|name| name.starts_with(PREFIX));
        let rename = |name: &str| {
            // Old checkpoints keep the causal mask beside the weights.
            let is_mask = name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
            let prefix = if is_bare && name != LM_HEAD { PREFIX } else { "" };
            (!is_mask).then(|| format!("{prefix}{name}"))
        };
        let table = layout.read(&mut Renamed::new(source, rename), &NewHeads::none())?;
        let info = ModelInfo {
            model_type: "gpt2".to_owned(),
            kind: ModelKind::Decoder,
            vocab_size: vocabulary,
            hidden_size: hidden,
            blocks: config.n_layer,
            heads: config.n_head,
            kv_heads: config.n_head,
            head_dim: hidden / config.n_head,
            max_positions: config.n_positions,
            tied: config.tie_word_embeddings,
            head: HeadInfo::language_model(Task::CausalLm),
        };
        let parts = Parts::language_model(info, config.json.clone(), table, lm_head, config.tie_word_embeddings);
        Ok(Self { parts, config, input, wte, wpe, blocks, ln_f })
    }
}

/// The sites of one block, in the order in which the forward pass meets them.
fn block(config: &Gpt2Config, layout: &mut Layout, block: usize) -> Gpt2Block {
    let (hidden, inner) = (config.n_embd, config.n_inner);
    let path = |part: &str| format!("transformer.h.{block}.{part}");
    Gpt2Block {
        ln_1: layout.layer_norm(path("ln_1"), Role::BlockNorm, Some(block), hidden),
        c_attn: layout.conv1d(path("attn.c_attn"), Role::QueryKeyValue, block, (3 * hidden, hidden)),
        c_proj: layout.conv1d(path("attn.c_proj"), Role::AttentionOutput, block, (hidden, hidden)),
        attention: layout.attention(path("attn"), Role::SelfAttention, block, hidden),
        after_attention: layout.hidden(path("attn"), Role::AfterAttention, block, hidden),
        ln_2: layout.layer_norm(path("ln_2"), Role::BlockNorm, Some(block), hidden),
        c_fc: layout.conv1d(path("mlp.c_fc"), Role::FeedForwardUp, block, (inner, hidden)),
        mlp_c_proj: layout.conv1d(path("mlp.c_proj"), Role::FeedForwardDown, block, (hidden, inner)),
        after_feed_forward: layout.hidden(path("mlp"), Role::AfterFeedForward, block, hidden),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use safetensors::tensor::{SafeTensors, TensorView, serialize_to_file};

    use crate::fixtures::{copied, path};
    use crate::model::Model;
    use crate::safetensors::Safetensors;
    use crate::weights::WeightSource;
    use crate::{GenerationDefaults, NumberFormat, load_model, save_folder};

    #[test]
    fn linears_are_turned_on_reading_and_turned_back_on_saving() {
        let model = load_model(&path("gpt2/model")).unwrap().model;
        let mut source = Safetensors::open(&path("gpt2/model")).unwrap();
        let name = "transformer.h.1.attn.c_attn.weight";
        assert_eq!(source.stored()[name].shape, [32, 96]);
        let stored = source.read(name).unwrap();
        let (_, weight, shape) = model.tensors().into_iter().find(|(other, ..)| other == name).unwrap();
        assert_eq!((weight.shape(), &shape[..]), ((96, 32), &[32, 96][..]));
        let weight = weight.to_matrix();
        assert!((0..96).all(|out| (0..32).all(|input| weight.row(out)[input] == stored[input * 96 + out])));

        let folder = tempfile::tempdir().unwrap();
        let replaced = BTreeMap::from([("transformer.h.0.mlp.c_fc.weight".to_owned(), doubled(&*model))]);
        let defaults = GenerationDefaults::default();
        save_folder(folder.path(), &*model, None, &defaults, &replaced, NumberFormat::F32).unwrap();
        let mut saved = Safetensors::open(folder.path()).unwrap();
        assert_eq!(saved.stored().keys().collect::<Vec<_>>(), source.stored().keys().collect::<Vec<_>>());
        for name in source.stored().keys().cloned().collect::<Vec<_>>() {
            let factor = if replaced.contains_key(&name) { 2.0 } else { 1.0 };
            let expected: Vec<f32> = source.read(&name).unwrap().iter().map(|value| factor * value).collect();
            assert_eq!(saved.read(&name).unwrap(), expected, "{name}");
        }
    }

    /// Twice the first feed-forward weight of a model, `[out, in]`.
    fn doubled(model: &dyn Model) -> tunesmith_tensor::Matrix {
        let name = "transformer.h.0.mlp.c_fc.weight";
        let mut matrix = model.tensors().into_iter().find(|(other, ..)| other == name).unwrap().1.to_matrix();
        matrix.data_mut().iter_mut().for_each(|value| *value *= 2.0);
        matrix
    }

    #[test]
    fn checkpoints_of_the_bare_model_load() {
        let folder = copied("gpt2");
        let file = folder.path().join("model.safetensors");
        let bytes = fs::read(&file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mask = [1.0f32; 4].iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let bare = tensors.iter().map(|(name, view)| (name.strip_prefix("transformer.").unwrap().to_owned(), view));
        let mask = TensorView::new(safetensors::Dtype::F32, vec![1, 1, 2, 2], &mask).unwrap();
        serialize_to_file(bare.chain([("h.0.attn.bias".to_owned(), mask)]), None, &file).unwrap();
        let bare = load_model(folder.path()).unwrap().model;
        let whole = load_model(&path("gpt2/model")).unwrap().model;
        for ((name, left, _), (other, right, _)) in bare.tensors().iter().zip(whole.tensors()) {
            assert_eq!((name, left.to_matrix()), (&other, right.to_matrix()));
        }
    }

    #[test]
    fn a_missing_tensor_is_named() {
        let folder = copied("gpt2");
        let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
        fs::write(folder.path().join("config.json"), config.replace("\"n_layer\": 2", "\"n_layer\": 3")).unwrap();
        let text = load_model(folder.path()).map(|_| ()).unwrap_err().to_string();
        assert!(text.contains("transformer.h.2.attn.c_attn.weight") && text.contains("[32, 96]"), "{text}");
    }
}
