//! Language models over the training core: loading from Hugging Face folders and GGUF files, tokenizers, chat
//! templates, generation, and saving. Only this crate knows Hugging Face's and GGUF's names and layouts.

mod architectures;
pub mod atomic;
mod attending;
mod beam_search;
mod bitsandbytes;
mod cache;
mod chat;
mod decoder_head;
mod encoder;
mod encoder_decoder;
mod error;
mod fields;
#[cfg(test)]
mod fixtures;
mod generate;
mod generation_defaults;
mod gguf;
mod head;
mod json;
mod load;
mod model;
mod network;
mod next_token;
mod number_format;
mod pieces;
mod python_json;
mod quantization;
mod renamed;
mod safetensors;
mod sampling;
mod save;
mod save_four_bit;
mod shifted;
mod site_table;
mod task;
mod text_stream;
mod tokenizer;
mod weights;

pub use architectures::gpt2::{Gpt2, Gpt2Config};
pub use architectures::llama::{self, Llama, rope_factor};
pub use beam_search::{BeamSearch, EarlyStopping, Hypothesis, beam_search, search};
pub use cache::{Cache, PAGE_TOKENS, Page, PageBuffers, SequenceCache};
pub use chat::{Message, Turn};
pub use error::{ModelError, TensorProblem};
pub use generate::{FinishReason, Generated, GenerationOptions, generate};
pub use generation_defaults::GenerationDefaults;
pub use gguf::Gguf;
pub use load::{
    LoadOptions, LoadedModel, Pretrained, load, load_model, load_model_in, load_model_quantized, load_model_with,
};
pub use model::{DecoderInputs, Inputs, Model, ModelInfo, ModelKind};
pub use next_token::{Addition, add_tokens};
pub use number_format::NumberFormat;
pub use pieces::{Origin, Pieces};
pub use quantization::QuantizationOptions;
pub use safetensors::Safetensors;
pub use sampling::Sampling;
pub use save::{QuantizationError, save_folder, save_four_bit_folder};
pub use task::{HeadInfo, HeadOptions, ProblemType, Task};
pub use text_stream::TextStream;
pub use tokenizer::{EncodedChat, TextTokenizer};
pub use weights::{StoredTensor, WeightSource};
