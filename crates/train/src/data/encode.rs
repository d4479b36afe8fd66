//! What the data needs of a tokenizer.

use super::Message;

/// Turns text into token ids.
pub trait Encode: Sync {
    /// The ids of a text. `add_special_tokens` adds what the tokenizer puts around a whole text, such as a
    /// beginning-of-sequence token.
    ///
    /// # Errors
    /// The tokenizer's reason.
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, String>;

    /// The token that ends a sequence and that generation stops at; without one, nothing is put after an example.
    fn eos(&self) -> Option<u32>;

    /// A conversation as the model's chat template writes it; `add_generation_prompt` adds the opening of an assistant's
    /// turn.
    ///
    /// # Errors
    /// The template's reason, or that there is no template.
    fn render_chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, String>;
}
