//! What a model is asked to generate in an evaluation, and what it should say.

use std::collections::HashMap;

use tunesmith_models::Message;

use super::encode::Encode;
use super::problems::Problems;
use super::records::{Record, Records};
use crate::TrainError;

/// A prompt with everything that the data set says may follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationCase {
    /// The text to continue.
    pub prompt: String,
    /// Its tokens, as in training.
    pub prompt_ids: Vec<u32>,
    /// The completions of this prompt, in file order.
    pub references: Vec<String>,
}

/// The distinct prompts of a file, in file order. Of a conversation, the assistant's last turn is what should follow.
///
/// # Errors
/// [`TrainError::Data`] with all records that have no prompt or that the tokenizer or the chat template refuses.
pub fn generation_cases(records: &Records, tokenizer: &dyn Encode) -> Result<Vec<GenerationCase>, TrainError> {
    let mut problems = Problems::default();
    let mut cases: Vec<GenerationCase> = Vec::new();
    let mut by_prompt: HashMap<String, usize> = HashMap::new();
    for (line, record) in &records.records {
        let split = match record {
            Record::PromptCompletion { prompt, completion } => Ok((prompt.clone(), completion.clone())),
            Record::Text(_) => Err("is a text without a prompt to continue".to_owned()),
            Record::Messages(messages) => last_turn(messages, tokenizer),
        };
        let (prompt, reference) = match split {
            Ok(split) => split,
            Err(problem) => {
                problems.add(*line, problem);
                continue;
            }
        };
        if let Some(known) = by_prompt.get(&prompt) {
            cases[*known].references.push(reference);
            continue;
        }
        // A chat template writes the special tokens itself.
        let special = !matches!(record, Record::Messages(_));
        match tokenizer.encode(&prompt, special) {
            Ok(prompt_ids) => {
                by_prompt.insert(prompt.clone(), cases.len());
                cases.push(GenerationCase { prompt, prompt_ids, references: vec![reference] });
            }
            Err(problem) => problems.add(*line, problem.to_string()),
        }
    }
    problems.into_result(&records.path)?;
    Ok(cases)
}

/// What the chat template writes before the assistant's last turn, and that turn's content.
fn last_turn(messages: &[Message], tokenizer: &dyn Encode) -> Result<(String, String), String> {
    let last = messages.iter().rposition(|message| message.role == "assistant");
    let last = last.ok_or("has no turn of the assistant")?;
    let prompt = tokenizer.render_prompt(&messages[..last]).map_err(|error| error.to_string())?;
    Ok((prompt, messages[last].content.clone()))
}
