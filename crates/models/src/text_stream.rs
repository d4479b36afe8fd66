//! Text from tokens as they come: holds back what a later token may still change, and looks for stop texts.

use crate::tokenizer::TextTokenizer;

/// The text of one generation, growing token by token.
pub(crate) struct TextStream<'a> {
    tokenizer: &'a TextTokenizer,
    stop: &'a [String],
    ids: Vec<u32>,
    text: String,
    /// Bytes of `text` that have been given out.
    shown: usize,
}

impl<'a> TextStream<'a> {
    pub(crate) fn new(tokenizer: &'a TextTokenizer, stop: &'a [String]) -> Self {
        Self { tokenizer, stop, ids: Vec::new(), text: String::new(), shown: 0 }
    }

    /// Adds a token. Returns the text that is now certain, and whether a stop text has appeared (the text then ends
    /// before it).
    pub(crate) fn push(&mut self, token: u32) -> (String, bool) {
        self.ids.push(token);
        self.text = self.tokenizer.decode(&self.ids, true);
        let found = self.stop.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| self.text.find(stop.as_str()));
        if let Some(place) = found.min() {
            self.text.truncate(place);
            return (self.show_to(place), true);
        }
        let certain = self.certain();
        (self.show_to(certain), false)
    }

    /// No token comes any more: the rest of the text.
    pub(crate) fn finish(&mut self) -> String {
        self.show_to(self.text.len())
    }

    /// All of the text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Bytes of the text that no later token changes: not a character cut in the middle, not the start of a stop text.
    fn certain(&self) -> usize {
        let whole = self.text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        let could_stop = |at: &usize| self.stop.iter().any(|stop| stop.starts_with(&whole[*at..]));
        whole.char_indices().map(|(at, _)| at).find(could_stop).unwrap_or(whole.len())
    }

    fn show_to(&mut self, end: usize) -> String {
        let piece = self.text.get(self.shown..end).unwrap_or_default().to_owned();
        self.shown = self.shown.max(end);
        piece
    }
}
