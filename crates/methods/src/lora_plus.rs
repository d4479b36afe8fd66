//! LoRA+ (Hayou et al. 2024, <https://arxiv.org/abs/2402.12354>): `B` learns faster than `A`,
//! `η_B = ratio·η_A`, and embeddings have a rate of their own. An option of the optimiser, not of the adapter: nothing of
//! it is saved.

use serde::{Deserialize, Serialize};
use tunesmith_tensor::Parameter;

/// The options of PEFT's `create_loraplus_optimizer`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraPlus {
    /// Learning rate of `B` as a multiple of that of `A`; at least 1 makes sense, the paper takes 16.
    pub loraplus_lr_ratio: f64,
    /// Weight decay, in place of the optimiser's own.
    #[serde(default)]
    pub loraplus_weight_decay: f64,
    /// Learning rate of both factors of LoRA at embeddings; 1e-6 in PEFT and in the authors' code.
    #[serde(default = "default_embedding_rate")]
    pub loraplus_lr_embedding: f64,
}

/// The learning rate of embeddings, where none is given.
fn default_embedding_rate() -> f64 {
    LoraPlus::LR_EMBEDDING
}

impl LoraPlus {
    /// PEFT's default of `loraplus_lr_embedding`.
    pub const LR_EMBEDDING: f64 = 1e-6;

    /// The factor on the run's `learning_rate` for a parameter: the ratio for `B`, for biases and for the weights of norms;
    /// what makes it the rate of embeddings for LoRA's factors there; 1 for the others.
    pub fn learning_rate_scale(&self, parameter: &Parameter, learning_rate: f64) -> f64 {
        if parameter.name().contains("lora_embedding_") {
            return if learning_rate > 0.0 { self.loraplus_lr_embedding / learning_rate } else { 1.0 };
        }
        let is_fast = parameter.name().contains("lora_B") || parameter.is_vector();
        if is_fast { self.loraplus_lr_ratio } else { 1.0 }
    }

    /// The weight decay of a parameter: none for biases and for the weights of norms.
    pub fn weight_decay(&self, parameter: &Parameter) -> f64 {
        if parameter.is_vector() { 0.0 } else { self.loraplus_weight_decay }
    }
}
