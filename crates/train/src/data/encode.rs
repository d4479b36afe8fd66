//! What the data needs of a tokenizer.

use tunesmith_models::{EncodedChat, Message, ModelError, TextTokenizer};

/// Turns texts and conversations into token ids.
pub trait Encode: Sync {
    /// The ids of a text. `add_special` adds what the tokenizer puts around a whole text, such as a
    /// beginning-of-sequence token.
    ///
    /// # Errors
    /// The tokenizer's.
    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, ModelError>;

    /// The token that ends a sequence and that generation stops at; without one, nothing is put after an example.
    fn eos(&self) -> Option<u32>;

    /// The ids of a conversation, and which of them the assistant says.
    ///
    /// # Errors
    /// The tokenizer's and the chat template's.
    fn encode_chat(&self, messages: &[Message]) -> Result<EncodedChat, ModelError>;

    /// A conversation up to where the assistant's next turn begins, as the chat template writes it.
    ///
    /// # Errors
    /// The chat template's.
    fn render_prompt(&self, messages: &[Message]) -> Result<String, ModelError>;
}

impl Encode for TextTokenizer {
    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, ModelError> {
        self.encode(text, add_special)
    }

    fn eos(&self) -> Option<u32> {
        self.eos()
    }

    fn encode_chat(&self, messages: &[Message]) -> Result<EncodedChat, ModelError> {
        self.encode_chat(messages)
    }

    fn render_prompt(&self, messages: &[Message]) -> Result<String, ModelError> {
        self.render(messages, true)
    }
}
