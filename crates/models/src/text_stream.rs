//! Text from tokens as they come: holds back what a later token may still change, and looks for stop texts.

use crate::tokenizer::TextTokenizer;

/// The text of one generation, growing token by token.
pub struct TextStream<'a> {
    tokenizer: &'a TextTokenizer,
    stop: Vec<String>,
    ids: Vec<u32>,
    text: String,
    /// Bytes of `text` that no later token changes, and the tokens that they come from: those before `read`. What comes is
    /// decoded together with the tokens from `start` on, because a token's text can depend on the one before.
    settled: usize,
    start: usize,
    read: usize,
    /// Bytes of `text` that have been given out.
    shown: usize,
}

impl<'a> TextStream<'a> {
    /// An empty text, which ends before one of the texts `stop`.
    pub fn new(tokenizer: &'a TextTokenizer, stop: &[String]) -> Self {
        let (stop, text) = (stop.to_vec(), String::new());
        Self { tokenizer, stop, ids: Vec::new(), text, settled: 0, start: 0, read: 0, shown: 0 }
    }

    /// Adds a token. Returns the text that is now certain, and whether a stop text has appeared (the text then ends
    /// before it).
    pub fn push(&mut self, token: u32) -> (String, bool) {
        self.ids.push(token);
        let before = self.tokenizer.decode(&self.ids[self.start..self.read], true);
        let all = self.tokenizer.decode(&self.ids[self.start..], true);
        self.text.truncate(self.settled);
        self.text += all.get(before.len()..).unwrap_or_default();
        if !all.ends_with(char::REPLACEMENT_CHARACTER) {
            (self.settled, self.start, self.read) = (self.text.len(), self.read, self.ids.len());
        }
        let found = self.stop.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| self.text.find(stop.as_str()));
        if let Some(place) = found.min() {
            self.text.truncate(place);
            return (self.show_to(place), true);
        }
        let certain = self.certain();
        (self.show_to(certain), false)
    }

    /// No token comes any more: the rest of the text.
    pub fn finish(&mut self) -> String {
        self.show_to(self.text.len())
    }

    /// All of the text.
    pub fn text(&self) -> &str {
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
