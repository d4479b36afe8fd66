//! Conversations as pieces of text, each the assistant's or not.

use super::Message;
use super::encode::Encode;

const ASSISTANT: &str = "assistant";

/// The text of a conversation in pieces; `true` marks what the assistant is to say.
///
/// The assistant's part of a turn is what the template adds to the conversation before it with the opening of an
/// assistant's turn: what generation would have to continue. So any template works that only ever appends.
pub(crate) fn pieces(messages: &[Message], tokenizer: &dyn Encode) -> Result<Vec<(String, bool)>, String> {
    let mut pieces = Vec::new();
    let mut done = String::new();
    let mut append = |done: &mut String, text: String, assistant: bool| {
        let added = text.strip_prefix(done.as_str()).map(str::to_owned).ok_or(
            "the chat template writes earlier turns anew when a turn follows, so the assistant's tokens cannot be told; \
             write the conversation as prompt and completion",
        )?;
        if !added.is_empty() {
            pieces.push((added, assistant));
        }
        *done = text;
        Ok::<_, String>(())
    };
    for (index, message) in messages.iter().enumerate() {
        if message.role == ASSISTANT {
            append(&mut done, tokenizer.render_chat(&messages[..index], true)?, false)?;
            append(&mut done, tokenizer.render_chat(&messages[..=index], false)?, true)?;
        }
    }
    if messages.last().is_some_and(|message| message.role != ASSISTANT) {
        append(&mut done, tokenizer.render_chat(messages, false)?, false)?;
    }
    Ok(pieces)
}

/// The text before the assistant's last turn, with that turn's opening, and the turn's content.
pub(crate) fn last_turn(messages: &[Message], tokenizer: &dyn Encode) -> Result<(String, String), String> {
    let last = messages.iter().rposition(|message| message.role == ASSISTANT);
    let last = last.ok_or("has no turn of the assistant")?;
    Ok((tokenizer.render_chat(&messages[..last], true)?, messages[last].content.clone()))
}
