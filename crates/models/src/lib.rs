//! Language models over the training core: loading from Hugging Face folders and GGUF files, tokenizers, chat
//! templates, generation, and saving. Only this crate knows Hugging Face's and GGUF's names and layouts.

mod cache;
mod error;
mod json;
pub mod llama;
mod model;
mod safetensors;
mod weights;

pub use cache::Cache;
pub use error::{ModelError, TensorProblem};
pub use llama::Llama;
pub use model::{Model, ModelInfo};
pub use safetensors::Safetensors;
pub use weights::{StoredTensor, WeightSource};
