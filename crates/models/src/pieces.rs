//! Texts as tokens with where each came from: pairs of texts, lists of words, and windows over a long text.

use tokenizers::{
    Encoding, PostProcessor, TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings,
};

use crate::error::ModelError;
use crate::tokenizer::TextTokenizer;

/// One or two texts as tokens, with the tokenizer's special tokens around them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Which text of a pair each belongs to, 0 or 1, as models are told (BERT's `token_type_ids`).
    pub token_type_ids: Vec<u32>,
    /// Where each came from; `None` for special tokens that the tokenizer added.
    pub origins: Vec<Option<Origin>>,
    /// How many tokens there would be without a limit.
    pub uncut: usize,
}

/// Where a token came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The first text, 0, or the second, 1.
    pub text: usize,
    /// The word among the words of that text, counted from 0, where the tokenizer knows words.
    pub word: Option<usize>,
    /// Its first character and the one after its last.
    pub characters: (usize, usize),
}

impl TextTokenizer {
    /// A text, or a pair. Beyond `max_length` tokens the longer text is cut at its end, token by token (transformers'
    /// `truncation=True`).
    ///
    /// # Errors
    /// If the tokenizer cannot encode a text, or gives a token that the model does not have.
    pub fn encode_pair(
        &self,
        first: &str,
        second: Option<&str>,
        max_length: Option<usize>,
    ) -> Result<Pieces, ModelError> {
        let first = self.raw(first)?;
        let second = second.map(|second| self.raw(second)).transpose()?;
        self.joined(first, second, max_length)
    }

    /// A text that is a list of words. Beyond `max_length` tokens the last are cut.
    ///
    /// # Errors
    /// As [`encode_pair`](Self::encode_pair).
    pub fn encode_words(&self, words: &[String], max_length: Option<usize>) -> Result<Pieces, ModelError> {
        let encoding = self.raw_words(words.to_vec())?;
        self.joined(encoding, None, max_length)
    }

    /// A pair whose second text is cut into windows, so that each has at most `max_length` tokens and repeats the last
    /// `stride` tokens of the window before it. `None` if the first text leaves no room for more than a repetition.
    ///
    /// # Errors
    /// As [`encode_pair`](Self::encode_pair).
    pub fn encode_windows(
        &self,
        first: &str,
        second: &str,
        max_length: usize,
        stride: usize,
    ) -> Result<Option<Vec<Pieces>>, ModelError> {
        let first = self.raw(first)?;
        let mut second = self.raw(second)?;
        let Some(room) = max_length.checked_sub(first.len() + self.added(true)).filter(|room| *room > stride) else {
            return Ok(None);
        };
        second.truncate(room, stride, TruncationDirection::Right);
        let rest = second.take_overflowing();
        let windows = std::iter::once(second).chain(rest);
        windows.map(|window| self.joined(first.clone(), Some(window), None)).collect::<Result<_, _>>().map(Some)
    }

    /// How many special tokens go around one text, or two.
    fn added(&self, is_pair: bool) -> usize {
        self.post_processor().map_or(0, |processor| processor.added_tokens(is_pair))
    }

    fn joined(
        &self,
        first: Encoding,
        second: Option<Encoding>,
        max_length: Option<usize>,
    ) -> Result<Pieces, ModelError> {
        let added = self.added(second.is_some());
        let uncut = first.len() + second.as_ref().map_or(0, Encoding::len) + added;
        let (mut first, mut second) = match max_length {
            Some(max_length) if uncut > max_length => {
                let params = TruncationParams {
                    max_length: max_length.saturating_sub(added),
                    strategy: TruncationStrategy::LongestFirst,
                    ..TruncationParams::default()
                };
                truncate_encodings(first, second, &params).map_err(|error| self.failed(&error))?
            }
            _ => (first, second),
        };
        let both = match self.post_processor() {
            Some(processor) => processor.process(first, second, true).map_err(|error| self.failed(&error))?,
            None => {
                first.set_sequence_id(0);
                if let Some(second) = &mut second {
                    second.set_sequence_id(1);
                }
                Encoding::merge(std::iter::once(first).chain(second), false)
            }
        };
        let places = both.get_sequence_ids().into_iter().zip(both.get_word_ids()).zip(both.get_offsets());
        let special = both.get_special_tokens_mask().iter();
        let origins = places.zip(special).map(|(((text, word), characters), special)| {
            let text = text.filter(|_| *special == 0)?;
            Some(Origin { text, word: word.map(|word| word as usize), characters: *characters })
        });
        Ok(Pieces {
            origins: origins.collect(),
            token_type_ids: both.get_type_ids().to_vec(),
            ids: self.checked(both.get_ids().to_vec())?,
            uncut,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A tokenizer of letters with BERT's special tokens.
    fn tokenizer() -> TextTokenizer {
        let folder = tempfile::tempdir().unwrap();
        let vocab: Vec<String> = ["[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "##a", "##b", "##c"]
            .iter()
            .enumerate()
            .map(|(id, token)| format!("\"{token}\": {id}"))
            .collect();
        let special = |id: u32, token: &str| {
            format!(
                "{{\"id\": {id}, \"content\": \"{token}\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \
                 \"normalized\": false, \"special\": true}}"
            )
        };
        let text = format!(
            "{{\"version\": \"1.0\", \"truncation\": null, \"padding\": null, \"added_tokens\": [{}, {}], \
             \"normalizer\": null, \"pre_tokenizer\": {{\"type\": \"Whitespace\"}}, \
             \"post_processor\": {{\"type\": \"BertProcessing\", \"sep\": [\"[SEP]\", 1], \"cls\": [\"[CLS]\", 0]}}, \
             \"decoder\": null, \"model\": {{\"type\": \"WordPiece\", \"unk_token\": \"[UNK]\", \
             \"continuing_subword_prefix\": \"##\", \"max_input_chars_per_word\": 100, \"vocab\": {{{}}}}}}}",
            special(0, "[CLS]"),
            special(1, "[SEP]"),
            vocab.join(", ")
        );
        let file = folder.path().join("tokenizer.json");
        std::fs::write(&file, text).unwrap();
        TextTokenizer::open(Path::new(&file)).unwrap()
    }

    #[test]
    fn a_pair_has_types_and_origins() {
        let pieces = tokenizer().encode_pair("ab c", Some("ä b"), None).unwrap();
        assert_eq!(pieces.ids, [0, 3, 7, 5, 1, 2, 4, 1]);
        assert_eq!(pieces.token_type_ids, [0, 0, 0, 0, 0, 1, 1, 1]);
        let origin = |text, word, characters| Some(Origin { text, word: Some(word), characters });
        assert_eq!(
            pieces.origins,
            [
                None,
                origin(0, 0, (0, 1)),
                origin(0, 0, (1, 2)),
                origin(0, 1, (3, 4)),
                None,
                origin(1, 0, (0, 1)),
                origin(1, 1, (2, 3)),
                None
            ]
        );
        assert_eq!(pieces.uncut, 8);
    }

    #[test]
    fn the_longer_text_of_a_pair_is_cut() {
        let pieces = tokenizer().encode_pair("a b c a b c", Some("a b"), Some(7)).unwrap();
        assert_eq!((&pieces.ids[..], pieces.uncut), (&[0, 3, 4, 1, 3, 4, 1][..], 11));
        assert_eq!(tokenizer().encode_pair("a b c", None, Some(4)).unwrap().ids, [0, 3, 4, 1]);
    }

    #[test]
    fn pieces_of_words_know_their_word() {
        let words = ["ab".to_owned(), "c".to_owned()];
        let pieces = tokenizer().encode_words(&words, None).unwrap();
        let words: Vec<_> = pieces.origins.iter().map(|origin| origin.and_then(|origin| origin.word)).collect();
        assert_eq!(words, [None, Some(0), Some(0), Some(1), None]);
    }

    #[test]
    fn windows_overlap_and_cover_the_text() {
        let windows = tokenizer().encode_windows("a", "a b c a b", 7, 1).unwrap().unwrap();
        let ids: Vec<&[u32]> = windows.iter().map(|window| &window.ids[..]).collect();
        assert_eq!(ids, [&[0, 3, 1, 3, 4, 5, 1][..], &[0, 3, 1, 5, 3, 4, 1][..]]);
        let second = windows[1].origins[3].unwrap();
        assert_eq!((second.text, second.characters), (1, (4, 5)));
        assert_eq!(tokenizer().encode_windows("a b c", "a", 7, 1).unwrap(), None);
    }
}
