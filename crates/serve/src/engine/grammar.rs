//! Answers of a given form: JSON, or JSON of a schema. llguidance knows which tokens may come next.

use std::sync::{Arc, OnceLock};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, ParserFactory};
use serde_json::{Value, json};

use crate::base::BaseModel;

/// Why a form cannot be asked for.
#[derive(Debug, thiserror::Error)]
#[error("the schema cannot be used: {reason}")]
pub struct GrammarError {
    reason: String,
}

/// Compiles grammars for a model's vocabulary, which is read when the first one is asked for.
#[derive(Default)]
pub struct Grammars {
    factory: OnceLock<Result<Arc<ParserFactory>, String>>,
}

/// A compiled grammar.
#[derive(Clone)]
pub struct Grammar {
    factory: Arc<ParserFactory>,
    source: TopLevelGrammar,
}

/// Where an answer stands in its grammar.
pub(super) struct Matcher(llguidance::Matcher);

impl Grammars {
    /// Any JSON object.
    ///
    /// # Errors
    /// If the vocabulary cannot be used.
    pub fn json_object(&self, base: &BaseModel) -> Result<Grammar, GrammarError> {
        self.json_schema(base, json!({ "type": "object" }))
    }

    /// JSON that a schema describes.
    ///
    /// # Errors
    /// If the schema is none, or uses what cannot be enforced.
    pub fn json_schema(&self, base: &BaseModel, schema: Value) -> Result<Grammar, GrammarError> {
        let failed = |reason: String| GrammarError { reason };
        let factory = self.factory.get_or_init(|| factory(base)).clone().map_err(failed)?;
        if !schema.is_object() {
            return Err(failed("a schema is an object".to_owned()));
        }
        // White space without end would never be an answer.
        let options = JsonCompileOptions {
            whitespace_flexible: false,
            item_separator: ", ".to_owned(),
            key_separator: ": ".to_owned(),
            ..JsonCompileOptions::default()
        };
        let mut schema = schema;
        options.apply_to(&mut schema);
        let grammar = Grammar { factory, source: TopLevelGrammar::from_json_schema(schema) };
        let mut matcher = grammar.begin();
        match matcher.0.get_error().or_else(|| matcher.0.compute_mask().err().map(|error| error.to_string())) {
            Some(reason) => Err(failed(reason)),
            None => Ok(grammar),
        }
    }
}

/// The vocabulary as llguidance wants it.
fn factory(base: &BaseModel) -> Result<Arc<ParserFactory>, String> {
    let size = base.model().info().vocab_size;
    let ends = &base.pretrained.generation.eos_token_ids;
    let eos = ends.first().copied().or_else(|| base.pretrained.tokenizer.eos()).ok_or("the model has no end token")?;
    let bytes = base.pretrained.tokenizer.token_bytes(size);
    let words = bytes.into_iter().enumerate().map(|(id, bytes)| match bytes {
        Some(bytes) if !bytes.is_empty() && !ends.contains(&(id as u32)) => bytes,
        // No text has a byte like this, so a grammar never allows the token.
        _ => [&[0xff], format!("<|{id}|>").as_bytes()].concat(),
    });
    let words: Vec<Vec<u8>> = words.collect();
    let info = TokRxInfo::new(size as u32, eos);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
    let mut factory = ParserFactory::new_simple(&environment).map_err(|error| error.to_string())?;
    factory.quiet();
    Ok(Arc::new(factory))
}

impl Grammar {
    pub(super) fn begin(&self) -> Matcher {
        Matcher(llguidance::Matcher::new(self.factory.create_parser(self.source.clone())))
    }
}

impl Matcher {
    /// Leaves only the tokens that may come next; the ends where the grammar is complete.
    pub(super) fn restrict(&mut self, logits: &mut [f32], ends: &[u32]) -> Result<(), String> {
        let mask = self.0.compute_mask().map_err(|error| error.to_string())?;
        let may_end = self.0.is_accepting().map_err(|error| error.to_string())?;
        for (token, logit) in logits.iter_mut().enumerate() {
            let is_end = ends.contains(&(token as u32));
            if (is_end && !may_end) || (!is_end && !mask.is_allowed(token as u32)) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Goes on by a token. Returns whether nothing can follow.
    pub(super) fn advance(&mut self, token: u32) -> Result<bool, String> {
        self.0.consume_token(token).map_err(|error| error.to_string())?;
        Ok(self.0.is_stopped())
    }
}
