//! Text to tokens and back, with the model's special tokens and chat template, from Hugging Face's files.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::{Encoding, PostProcessor, PostProcessorWrapper, Tokenizer};

use crate::chat::{ChatTemplate, Message, Turn};
use crate::error::ModelError;
use crate::json;

/// Hugging Face's file names.
const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// A tokenizer. Padding and truncation that its file asks for are off: there is no padding here, and nothing is cut
/// silently.
#[derive(Debug)]
pub struct TextTokenizer {
    path: PathBuf,
    /// Without its post-processor, which could move token offsets.
    tokenizer: Tokenizer,
    post_processor: Option<PostProcessorWrapper>,
    /// `tokenizer_config.json`.
    config: Map<String, Value>,
    /// The text in `chat_template.jinja`, where there is one.
    chat_file: Option<String>,
    /// The chat template, or why it does not parse, which matters only to those who need it.
    chat: Option<Result<ChatTemplate, String>>,
    /// Special tokens as they are spelled.
    special: Vec<String>,
    /// Token ids that the model knows lie below this.
    embeddings: Option<usize>,
}

/// A conversation as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedChat {
    /// All tokens.
    pub ids: Vec<u32>,
    /// For each token, whether the assistant says it: its replies with their end-of-turn tokens.
    pub is_assistant: Vec<bool>,
}

impl TextTokenizer {
    /// Reads `tokenizer.json` and, beside it, `tokenizer_config.json`, `special_tokens_map.json` and
    /// `chat_template.jinja`, where they are. `path` is the folder or the `tokenizer.json` itself.
    ///
    /// # Errors
    /// If there is no `tokenizer.json`, or a file is damaged.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = if path.is_dir() { path.join(TOKENIZER) } else { path.to_path_buf() };
        if !file.is_file() {
            return Err(ModelError::Tokenizer { path: path.to_path_buf(), reason: no_tokenizer(path) });
        }
        let folder = file.parent().unwrap_or(Path::new("."));
        let bytes = fs::read(&file).map_err(|source| ModelError::Read { path: file.clone(), source })?;
        let tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| damaged(&file, &error))?;
        let mut config = json::read_object_if_any(&folder.join(CONFIG))?.unwrap_or_default();
        for (key, value) in json::read_object_if_any(&folder.join(SPECIAL_TOKENS))?.unwrap_or_default() {
            config.entry(key).or_insert(value);
        }
        let chat_path = folder.join(CHAT_TEMPLATE);
        let chat_file = chat_path.is_file().then(|| read_text(&chat_path)).transpose()?;
        Self::new(file, tokenizer, config, chat_file)
    }

    /// A tokenizer from its parts: `config` is the content of `tokenizer_config.json`, `chat_file` the text of
    /// `chat_template.jinja`, which wins over a template in `config`.
    pub(crate) fn new(
        path: PathBuf,
        mut tokenizer: Tokenizer,
        config: Map<String, Value>,
        chat_file: Option<String>,
    ) -> Result<Self, ModelError> {
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| damaged(&path, &error))?;
        let post_processor = tokenizer.get_post_processor().cloned();
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        let added = tokenizer.get_added_tokens_decoder().into_values();
        let mut special: Vec<String> = added.filter(|token| token.special).map(|token| token.content).collect();
        special.sort_unstable();
        let (chat, embeddings) = (None, None);
        let mut this = Self { path, tokenizer, post_processor, config, chat_file, chat, special, embeddings };
        this.chat = this.chat_source().map(|source| ChatTemplate::new(&this.path, source, this.special_tokens()));
        Ok(this)
    }

    /// Replaces the chat template by the Jinja template in a file.
    ///
    /// # Errors
    /// If the file cannot be read or the template does not parse.
    pub fn with_chat_template(mut self, path: &Path) -> Result<Self, ModelError> {
        let source = read_text(path)?;
        let chat = ChatTemplate::new(path, &source, self.special_tokens())
            .map_err(|reason| ModelError::ChatTemplate { path: path.to_path_buf(), reason })?;
        self.chat = Some(Ok(chat));
        self.chat_file = Some(source);
        Ok(self)
    }

    /// Makes texts with token ids that a model of `embeddings` token embeddings does not have an error.
    pub(crate) fn for_embeddings(self, embeddings: usize) -> Self {
        Self { embeddings: Some(embeddings), ..self }
    }

    /// The tokens of a text. Special tokens written in it are recognised; with `add_special`, those that the tokenizer
    /// puts around a text (such as a beginning-of-sequence token) are added.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text, or gives a token that the model does not have.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, ModelError> {
        let mut encoding = self.tokenizer.encode_fast(text, false).map_err(|error| damaged(&self.path, &error))?;
        if add_special && let Some(post_processor) = &self.post_processor {
            encoding = post_processor.process(encoding, None, true).map_err(|error| damaged(&self.path, &error))?;
        }
        self.checked(encoding.get_ids().to_vec())
    }

    /// The tokens of a text with where they lie in it, in characters, and without special tokens.
    pub(crate) fn raw(&self, text: &str) -> Result<Encoding, ModelError> {
        self.tokenizer.encode_char_offsets(text, false).map_err(|error| self.failed(&error))
    }

    /// The same of a list of words.
    pub(crate) fn raw_words(&self, words: Vec<String>) -> Result<Encoding, ModelError> {
        self.tokenizer.encode_char_offsets(words, false).map_err(|error| self.failed(&error))
    }

    pub(crate) fn post_processor(&self) -> Option<&PostProcessorWrapper> {
        self.post_processor.as_ref()
    }

    pub(crate) fn failed(&self, error: &tokenizers::Error) -> ModelError {
        damaged(&self.path, error)
    }

    /// The text of tokens; with `skip_special`, without special tokens. Ids without a token are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        // Decoding fails only if the file's decoder does; the tokens as they are spelled are then the best there is.
        self.tokenizer
            .decode(ids, skip_special)
            .unwrap_or_else(|_| ids.iter().filter_map(|id| self.tokenizer.id_to_token(*id)).collect())
    }

    /// The bytes that each token below `count` stands for in a text, as grammars need them; `None` for special tokens and
    /// ids without a token.
    pub fn token_bytes(&self, count: usize) -> Vec<Option<Vec<u8>>> {
        let decoder = self.tokenizer.get_decoder().and_then(|decoder| serde_json::to_string(decoder).ok());
        let is_byte_level = decoder.is_some_and(|decoder| decoder.contains("ByteLevel"));
        let bytes: std::collections::HashMap<char, u8> = byte_characters().zip(0..=255).collect();
        let spelled = |token: &str| -> Vec<u8> {
            let mapped: Option<Vec<u8>> = token.chars().map(|letter| bytes.get(&letter).copied()).collect();
            if let Some(mapped) = mapped.filter(|_| is_byte_level) {
                return mapped;
            }
            let hexadecimal = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
            match hexadecimal.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            }
        };
        let token = |id: usize| {
            let token = self.tokenizer.id_to_token(u32::try_from(id).ok()?)?;
            (!self.special.contains(&token)).then(|| spelled(&token))
        };
        (0..count).map(token).collect()
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The id of a token as it is spelled in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.token_id(self.special_token("bos_token")?)
    }

    /// The end-of-sequence token.
    pub fn eos(&self) -> Option<u32> {
        self.token_id(self.special_token("eos_token")?)
    }

    /// Whether there is a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.chat.is_some()
    }

    /// A conversation as text; with `add_generation_prompt`, up to where the assistant's next reply begins. Encode it
    /// without adding special tokens: the template writes them.
    ///
    /// # Errors
    /// If there is no chat template, or it refuses the conversation.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, ModelError> {
        self.chat_template()?.render(messages, add_generation_prompt)
    }

    /// A conversation cut into what the assistant says (its replies with their end-of-turn tokens) and the rest.
    ///
    /// # Errors
    /// As [`render`](Self::render); and if the template writes earlier messages differently depending on later ones,
    /// so that a reply has no place of its own.
    pub fn turns(&self, messages: &[Message]) -> Result<Vec<Turn>, ModelError> {
        self.chat_template()?.turns(messages, |text| self.special.iter().any(|token| text.ends_with(token)))
    }

    /// A conversation as tokens, for training on the assistant's replies.
    ///
    /// # Errors
    /// As [`turns`](Self::turns) and [`encode`](Self::encode).
    pub fn encode_chat(&self, messages: &[Message]) -> Result<EncodedChat, ModelError> {
        let turns = self.turns(messages)?;
        let text: String = turns.iter().map(|turn| turn.text.as_str()).collect();
        let encoding = self.tokenizer.encode(text, false).map_err(|error| damaged(&self.path, &error))?;
        let mut end = 0;
        let ends: Vec<(usize, bool)> = turns
            .iter()
            .map(|turn| {
                end += turn.text.len();
                (end, turn.is_assistant)
            })
            .collect();
        let says = |start: usize| ends.iter().find(|(end, _)| start < *end).is_some_and(|(_, assistant)| *assistant);
        let is_assistant = encoding.get_offsets().iter().map(|(start, _)| says(*start)).collect();
        Ok(EncodedChat { ids: self.checked(encoding.get_ids().to_vec())?, is_assistant })
    }

    /// Writes Hugging Face's tokenizer files into a folder.
    pub(crate) fn files(&self) -> Result<Vec<(&'static str, Vec<u8>)>, ModelError> {
        let mut tokenizer = self.tokenizer.clone();
        tokenizer.with_post_processor(self.post_processor.clone());
        let tokenizer = tokenizer.to_string(true).map_err(|error| damaged(&self.path, &error))?;
        let mut files = vec![(TOKENIZER, tokenizer.into_bytes()), (CONFIG, json::to_bytes(&self.config))];
        files.extend(self.chat_file.as_ref().map(|text| (CHAT_TEMPLATE, text.clone().into_bytes())));
        Ok(files)
    }

    pub(crate) fn checked(&self, ids: Vec<u32>) -> Result<Vec<u32>, ModelError> {
        let Some(embeddings) = self.embeddings else { return Ok(ids) };
        match ids.iter().find(|id| **id as usize >= embeddings) {
            None => Ok(ids),
            Some(id) => {
                let token = self.tokenizer.id_to_token(*id).unwrap_or_default();
                let reason = format!(
                    "token {token:?} has id {id}, but the model has {embeddings} token embeddings; the tokenizer is \
                     of another model"
                );
                Err(ModelError::Tokenizer { path: self.path.clone(), reason })
            }
        }
    }

    fn chat_template(&self) -> Result<&ChatTemplate, ModelError> {
        match &self.chat {
            Some(Ok(chat)) => Ok(chat),
            Some(Err(reason)) => Err(ModelError::ChatTemplate {
                path: self.path.clone(),
                reason: format!("it does not parse: {reason}"),
            }),
            None => Err(ModelError::NoChatTemplate { path: self.path.clone() }),
        }
    }

    /// The chat template's text. `tokenizer_config.json` holds one, or a list of named ones of which `default` counts.
    fn chat_source(&self) -> Option<&str> {
        if let Some(text) = &self.chat_file {
            return Some(text);
        }
        match self.config.get("chat_template")? {
            Value::String(text) => Some(text),
            Value::Array(named) => named.iter().find(|entry| entry["name"] == "default")?["template"].as_str(),
            _ => None,
        }
    }

    /// A special token by its key in `tokenizer_config.json`, where it stands as text or as an object.
    fn special_token(&self, key: &str) -> Option<&str> {
        let value = self.config.get(key)?;
        value.as_str().or_else(|| value.get("content")?.as_str())
    }

    fn special_tokens(&self) -> Vec<(&'static str, String)> {
        ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"]
            .into_iter()
            .filter_map(|key| Some((key, self.special_token(key)?.to_owned())))
            .collect()
    }
}

/// The characters by which byte-level vocabularies spell the bytes from 0 on: those that can be seen stand for themselves,
/// the others for the characters from 256 on (GPT-2's `bytes_to_unicode`).
fn byte_characters() -> impl Iterator<Item = char> {
    let is_seen = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut unseen = 256u32..;
    (0..256u32).map(move |byte| {
        let code = if is_seen(&byte) { byte } else { unseen.next().unwrap_or(byte) };
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
}

fn read_text(path: &Path) -> Result<String, ModelError> {
    fs::read_to_string(path).map_err(|source| ModelError::Read { path: path.to_path_buf(), source })
}

fn damaged(path: &Path, error: &tokenizers::Error) -> ModelError {
    ModelError::Tokenizer { path: path.to_path_buf(), reason: format!("the tokenizer cannot be used: {error}") }
}

fn no_tokenizer(path: &Path) -> String {
    let option = "or give another with tokenizer_name_or_path (a tokenizer.json, or a folder that holds one)";
    let older = ["tokenizer.model", "vocab.json", "spiece.model", "vocab.txt", "sentencepiece.bpe.model"];
    if older.iter().any(|file| path.join(file).is_file()) {
        return format!(
            "it has tokenizer files of an older kind but no {TOKENIZER}; make one: python -c \"from transformers \
             import AutoTokenizer as T; T.from_pretrained('{0}').save_pretrained('{0}')\", {option}",
            path.display()
        );
    }
    format!("there is no {TOKENIZER}; fetch it with the model, {option}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures::GgufFile;
    use crate::gguf::{Gguf, tokenizer as gguf_tokenizer};

    const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}<pad>{{ m.role }}\n\n{{ m.content + eos_token }}\n\n\
                            {% endfor %}{% if add_generation_prompt %}<pad>assistant\n\n{% endif %}";

    /// Files of a tokenizer of bytes, in a folder.
    fn folder() -> tempfile::TempDir {
        let gguf = Gguf::open(&GgufFile::llama().with_tokenizer("gpt-2").written().path).unwrap();
        let folder = tempfile::tempdir().unwrap();
        write(&gguf_tokenizer::from_gguf(&gguf).unwrap(), folder.path());
        folder
    }

    fn write(tokenizer: &TextTokenizer, folder: &Path) {
        for (name, bytes) in tokenizer.files().unwrap() {
            fs::write(folder.join(name), bytes).unwrap();
        }
    }

    fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut Value)) {
        let path = folder.join(file);
        let mut value = fs::read(&path).map_or(json!({}), |bytes| serde_json::from_slice(&bytes).unwrap());
        change(&mut value);
        fs::write(path, value.to_string()).unwrap();
    }

    #[test]
    fn files_written_and_read_again_make_the_same_tokenizer() {
        let folder = folder();
        fs::write(folder.path().join(CHAT_TEMPLATE), TEMPLATE).unwrap();
        edit(folder.path(), TOKENIZER, |json| {
            json["post_processor"] = json!({
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
            });
        });
        let first = TextTokenizer::open(folder.path()).unwrap();
        let copy = tempfile::tempdir().unwrap();
        write(&first, copy.path());
        let second = TextTokenizer::open(&copy.path().join(TOKENIZER)).unwrap();
        let text = "hello </s> two words";
        assert_eq!(second.encode(text, true).unwrap()[0], 0);
        assert_eq!(first.encode(text, true).unwrap(), second.encode(text, true).unwrap());
        assert_eq!((second.bos(), second.eos()), (Some(0), Some(1)));
        let messages = [Message::new("user", "hi")];
        assert_eq!(second.render(&messages, true).unwrap(), "<s><pad>user\n\nhi</s>\n\n<pad>assistant\n\n");
    }

    /// The tokenizer that T5's SentencePiece model becomes in `tokenizer.json`.
    #[test]
    fn pieces_of_a_sentencepiece_model_are_found_and_joined() {
        let folder = tempfile::tempdir().unwrap();
        let pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), ("▁he", -2.0), ("llo", -2.5)];
        let more = [("▁world", -2.0), ("w", -6.0), ("o", -6.0), ("▁hell", -9.0)];
        let vocab: Vec<Value> =
            pieces.iter().chain(&more).map(|(piece, score): &(&str, f64)| json!([piece, score])).collect();
        let special = |id: usize, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        };
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [special(0, "<pad>"), special(1, "</s>"), special(2, "<unk>")],
            "pre_tokenizer": metaspace, "decoder": metaspace,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}},
                         {"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
            },
            "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": false},
        });
        fs::write(folder.path().join(TOKENIZER), json.to_string()).unwrap();
        let tokenizer = TextTokenizer::open(folder.path()).unwrap();
        assert_eq!(tokenizer.encode("hello world", true).unwrap(), [4, 5, 6, 1]);
        assert_eq!(tokenizer.decode(&[4, 5, 6, 1], true), "hello world");
        let copy = tempfile::tempdir().unwrap();
        write(&tokenizer, copy.path());
        let again = TextTokenizer::open(copy.path()).unwrap();
        assert_eq!(again.encode("world hello", true).unwrap(), [6, 4, 5, 1]);
        let text = tokenizer.for_embeddings(6).encode("world", true).unwrap_err().to_string();
        assert!(text.contains("the model has 6 token embeddings"), "{text}");
    }

    #[test]
    fn the_assistants_tokens_are_marked_even_if_the_tokenizer_moves_offsets() {
        let folder = folder();
        fs::write(folder.path().join(CHAT_TEMPLATE), TEMPLATE).unwrap();
        edit(folder.path(), TOKENIZER, |json| {
            json["post_processor"] =
                json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        });
        let tokenizer = TextTokenizer::open(folder.path()).unwrap();
        let messages = [
            Message::new("user", "hel"),
            Message::new("assistant", "he\n\n"),
            Message::new("user", "é"),
            Message::new("assistant", "\nhel"),
        ];
        let chat = tokenizer.encode_chat(&messages).unwrap();
        let said = chat.ids.iter().zip(&chat.is_assistant).filter(|(_, said)| **said).map(|(id, _)| *id);
        let newline = tokenizer.token_id("Ċ").unwrap();
        assert_eq!(said.collect::<Vec<_>>(), [260, newline, newline, 1, newline, 261, 1]);
        let text = tokenizer.render(&messages, false).unwrap();
        assert_eq!(chat.ids, tokenizer.encode(&text, false).unwrap());
    }

    #[test]
    fn padding_and_truncation_of_the_file_are_off() {
        let folder = folder();
        edit(folder.path(), TOKENIZER, |json| {
            json["truncation"] =
                json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
            json["padding"] = json!({
                "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 2,
                "pad_type_id": 0, "pad_token": "<pad>",
            });
        });
        let tokenizer = TextTokenizer::open(folder.path()).unwrap();
        assert_eq!(tokenizer.encode("hehehe", true).unwrap(), [260, 260, 260]);
    }

    #[test]
    fn special_tokens_stand_as_texts_objects_or_in_their_own_file() {
        let folder = folder();
        edit(folder.path(), CONFIG, |json| {
            *json = json!({"eos_token": {"content": "<pad>", "lstrip": false}});
        });
        edit(folder.path(), SPECIAL_TOKENS, |json| *json = json!({"bos_token": "<s>", "eos_token": "</s>"}));
        let tokenizer = TextTokenizer::open(folder.path()).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), Some(2)));
    }

    #[test]
    fn a_chat_template_matters_only_to_those_who_need_it() {
        let folder = folder();
        let messages = [Message::new("user", "hi")];
        let tokenizer = TextTokenizer::open(folder.path()).unwrap();
        let text = tokenizer.render(&messages, true).unwrap_err().to_string();
        assert!(text.contains("no chat template; give one with chat_template"), "{text}");

        edit(folder.path(), CONFIG, |json| {
            json["chat_template"] = json!([
                {"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ messages[0].content }}"},
            ]);
        });
        assert_eq!(TextTokenizer::open(folder.path()).unwrap().render(&messages, false).unwrap(), "hi");

        edit(folder.path(), CONFIG, |json| json["chat_template"] = json!("{% broken"));
        let tokenizer = TextTokenizer::open(folder.path()).unwrap();
        assert!(tokenizer.render(&messages, false).unwrap_err().to_string().contains("does not parse"));
        let own = folder.path().join("own.jinja");
        fs::write(&own, "{{ messages[0].role }}").unwrap();
        assert_eq!(tokenizer.with_chat_template(&own).unwrap().render(&messages, false).unwrap(), "user");
        fs::write(&own, "{% broken").unwrap();
        assert!(TextTokenizer::open(folder.path()).unwrap().with_chat_template(&own).is_err());
    }

    #[test]
    fn a_token_that_the_model_does_not_have_is_an_error() {
        let tokenizer = TextTokenizer::open(folder().path()).unwrap().for_embeddings(261);
        assert_eq!(tokenizer.encode("he", true).unwrap(), [260]);
        let text = tokenizer.encode("hel", true).unwrap_err().to_string();
        assert!(text.contains("\"hel\" has id 261, but the model has 261 token embeddings"), "{text}");
    }

    #[test]
    fn missing_and_damaged_files_are_errors_that_say_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = || TextTokenizer::open(folder.path()).unwrap_err().to_string();
        let text = refusal();
        assert!(text.contains("no tokenizer.json") && text.contains("tokenizer_name_or_path"), "{text}");
        fs::write(folder.path().join("tokenizer.model"), "").unwrap();
        assert!(refusal().contains("save_pretrained"));
        fs::write(folder.path().join(TOKENIZER), "{\"version\": \"1.0\", \"model\"").unwrap();
        assert!(refusal().contains("cannot be used"));
    }
}
