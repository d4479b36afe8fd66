//! Byte-level BPE tokenizers from GGUF metadata, built as the `tokenizer.json` that Hugging Face would hold.
//!
//! GGUF names the way text is cut before the merges (`tokenizer.ggml.pre`) without describing it; the names known here
//! are those of llama.cpp, the patterns those of the models' own tokenizers.

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::{Fields, Gguf};
use crate::error::ModelError;
use crate::tokenizer::TextTokenizer;

/// `tokenizer.ggml.token_type` of tokens that only the template or the program writes.
const CONTROL: i64 = 3;
/// `tokenizer.ggml.token_type` of whole words that were added to the vocabulary.
const USER_DEFINED: i64 = 4;

/// How text is cut before the merges, and what else comes with a name in `tokenizer.ggml.pre`.
struct Splitting {
    /// llama.cpp's names.
    names: &'static [&'static str],
    pattern: Pattern,
    /// Whether a piece that is a token stays whole, whatever the merges say.
    ignore_merges: bool,
    /// Whether a beginning-of-sequence token comes first where the file does not say.
    add_bos: bool,
    /// Whether text is normalised to composed characters.
    composed: bool,
}

enum Pattern {
    /// GPT-2's.
    Gpt2,
    /// Every digit alone, then GPT-2's.
    DigitsThenGpt2,
    /// A regular expression.
    Split(&'static str),
}

const SPLITTINGS: [Splitting; 5] = [
    Splitting {
        names: &["gpt-2", "default", "phi-2"],
        pattern: Pattern::Gpt2,
        ignore_merges: false,
        add_bos: false,
        composed: false,
    },
    Splitting {
        names: &["smollm", "starcoder", "refact", "codeshell"],
        pattern: Pattern::DigitsThenGpt2,
        ignore_merges: false,
        add_bos: false,
        composed: false,
    },
    Splitting {
        names: &["llama-bpe", "llama3", "llama-v3"],
        pattern: Pattern::Split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ignore_merges: true,
        add_bos: true,
        composed: false,
    },
    Splitting {
        names: &["tekken"],
        pattern: Pattern::Split(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ignore_merges: true,
        add_bos: true,
        composed: false,
    },
    Splitting {
        names: &["qwen2", "deepseek-r1-qwen"],
        pattern: Pattern::Split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ignore_merges: false,
        add_bos: false,
        composed: true,
    },
];

/// The tokenizer in a GGUF file.
///
/// # Errors
/// If its kind is not known; the message says how to give the model's own `tokenizer.json`.
pub(crate) fn from_gguf(gguf: &Gguf) -> Result<TextTokenizer, ModelError> {
    let metadata = gguf.metadata();
    let wrong = |reason: String| ModelError::Tokenizer { path: metadata.path().to_path_buf(), reason };
    let vocabulary = Vocabulary::read(&metadata)?;
    let json = vocabulary.tokenizer_json();
    let tokenizer: Tokenizer = serde_json::from_value(json)
        .map_err(|error| wrong(format!("the tokenizer in its metadata is damaged: {error}; {OPTION}")))?;
    let config = vocabulary.config_json(&metadata, gguf.config().max_position_embeddings)?;
    TextTokenizer::new(metadata.path().to_path_buf(), tokenizer, config, None)
}

const OPTION: &str = "give the model's own tokenizer with tokenizer_name_or_path (a tokenizer.json, or a folder that \
                      holds one)";

/// What a GGUF file says about its tokenizer.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<i64>,
    merges: Vec<[&'a str; 2]>,
    splitting: &'static Splitting,
    /// Ids put before every text.
    first: Option<u32>,
    /// Ids put after every text.
    last: Option<u32>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &Fields<'a>) -> Result<Self, ModelError> {
        let wrong = |reason: String| ModelError::Tokenizer { path: metadata.path().to_path_buf(), reason };
        match metadata.text("tokenizer.ggml.model")? {
            Some("gpt2") => {}
            Some(other) => {
                return Err(wrong(format!(
                    "its tokenizer is of kind {other:?}; only \"gpt2\" (byte-level BPE) can be built from a GGUF \
                     file; {OPTION}"
                )));
            }
            None => return Err(wrong(format!("it has no tokenizer; {OPTION}"))),
        }
        let name = metadata.text("tokenizer.ggml.pre")?.unwrap_or("default");
        let splitting = SPLITTINGS.iter().find(|splitting| splitting.names.contains(&name)).ok_or_else(|| {
            let known: Vec<&str> = SPLITTINGS.iter().flat_map(|splitting| splitting.names).copied().collect();
            wrong(format!("its pre-tokenizer {name:?} is not known (known: {}); {OPTION}", known.join(", ")))
        })?;
        let missing = |key: &str| wrong(format!("its metadata lack {key}; {OPTION}"));
        let tokens = metadata.texts("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
        let merges = metadata.texts("tokenizer.ggml.merges")?.ok_or_else(|| missing("tokenizer.ggml.merges"))?;
        let merges = merges
            .into_iter()
            .map(|merge| match merge.split_once(' ') {
                Some((left, right)) => Ok([left, right]),
                None => Err(wrong(format!("its merge {merge:?} is not a pair; {OPTION}"))),
            })
            .collect::<Result<_, _>>()?;
        let types = metadata.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
        let around = |add: &str, token: &str, default: bool| -> Result<Option<u32>, ModelError> {
            let add = metadata.flag(&format!("tokenizer.ggml.{add}"))?.unwrap_or(default);
            if add { token_id(metadata, token, tokens.len()) } else { Ok(None) }
        };
        let first = around("add_bos_token", "bos", splitting.add_bos)?;
        let last = around("add_eos_token", "eos", false)?;
        Ok(Self { tokens, types, merges, splitting, first, last })
    }

    fn tokenizer_json(&self) -> Value {
        let mut vocabulary = Map::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            vocabulary.entry(*token).or_insert(Value::from(id));
        }
        let added: Vec<Value> = self
            .tokens
            .iter()
            .zip(&self.types)
            .enumerate()
            .filter(|(id, (token, kind))| matches!(**kind, CONTROL | USER_DEFINED) && vocabulary[**token] == *id)
            .map(|(id, (token, kind))| {
                json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *kind == CONTROL,
                })
            })
            .collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": self.splitting.composed.then(|| json!({"type": "NFC"})),
            "pre_tokenizer": self.splitting.pattern.json(),
            "post_processor": self.post_processor(),
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": self.splitting.ignore_merges,
                "vocab": vocabulary,
                "merges": self.merges,
            },
        })
    }

    /// Puts the first and last token around a text (and around each text of a pair).
    fn post_processor(&self) -> Value {
        if self.first.is_none() && self.last.is_none() {
            return Value::Null;
        }
        let spelled = |id: u32| self.tokens[id as usize];
        let around = |text: &str, type_id: u32| -> Vec<Value> {
            let special = |id: u32| json!({"SpecialToken": {"id": spelled(id), "type_id": type_id}});
            let text = json!({"Sequence": {"id": text, "type_id": type_id}});
            self.first.map(special).into_iter().chain([text]).chain(self.last.map(special)).collect()
        };
        let special: Map<String, Value> = [self.first, self.last]
            .into_iter()
            .flatten()
            .map(|id| {
                let token = spelled(id);
                (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}))
            })
            .collect();
        let pair: Vec<Value> = around("A", 0).into_iter().chain(around("B", 1)).collect();
        json!({"type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": special})
    }

    /// `tokenizer_config.json`.
    fn config_json(&self, metadata: &Fields<'_>, context: usize) -> Result<Map<String, Value>, ModelError> {
        let mut config = Map::new();
        for (key, name) in
            [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
        {
            if let Some(id) = token_id(metadata, name, self.tokens.len())? {
                config.insert(key.to_owned(), self.tokens[id as usize].into());
            }
        }
        config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
        config.insert("model_max_length".to_owned(), context.into());
        config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
        if let Some(template) = metadata.text("tokenizer.chat_template")? {
            config.insert("chat_template".to_owned(), template.into());
        }
        Ok(config)
    }
}

impl Pattern {
    fn json(&self) -> Value {
        let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let parts = match self {
            Self::Gpt2 => return byte_level(true),
            Self::DigitsThenGpt2 => vec![json!({"type": "Digits", "individual_digits": true}), byte_level(true)],
            Self::Split(pattern) => {
                let split =
                    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
                vec![split, byte_level(false)]
            }
        };
        json!({"type": "Sequence", "pretokenizers": parts})
    }
}

/// The id of a special token that lies within the vocabulary.
fn token_id(metadata: &Fields<'_>, name: &str, tokens: usize) -> Result<Option<u32>, ModelError> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    match metadata.unsigned(&key)? {
        None => Ok(None),
        Some(id) if (id as usize) < tokens => Ok(Some(id as u32)),
        Some(id) => Err(ModelError::Tokenizer {
            path: metadata.path().to_path_buf(),
            reason: format!("{key} is {id}, but it has {tokens} tokens; {OPTION}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use candle_core::quantized::gguf_file::Value as Metadata;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

    use super::*;
    use crate::fixtures::{self, GgufFile};

    fn tokenizer(file: GgufFile) -> Result<TextTokenizer, ModelError> {
        from_gguf(&Gguf::open(&file.written().path).unwrap())
    }

    #[test]
    fn text_is_cut_as_by_the_reference() {
        let cases = fs::read(fixtures::path("gguf/pre_tokenizers.json")).unwrap();
        let cases: Vec<Value> = serde_json::from_slice(&cases).unwrap();
        assert_eq!(cases.len(), 40);
        for case in cases {
            let (pre, text) = (case["pre"].as_str().unwrap(), case["text"].as_str().unwrap());
            let splitting = SPLITTINGS.iter().find(|splitting| splitting.names.contains(&pre)).unwrap();
            let cut: PreTokenizerWrapper = serde_json::from_value(splitting.pattern.json()).unwrap();
            let mut pieces = PreTokenizedString::from(text);
            cut.pre_tokenize(&mut pieces).unwrap();
            let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
            let pieces: Vec<&str> = splits
                .iter()
                .map(|(_, (start, end), _)| &text[*start..*end])
                .filter(|piece| !piece.is_empty())
                .collect();
            assert_eq!(json!(pieces), case["pieces"], "{pre}: {text:?}");
        }
    }

    #[test]
    fn bytes_merges_and_added_tokens_round_trip() {
        let tokenizer = tokenizer(GgufFile::llama().with_tokenizer("gpt-2")).unwrap();
        let (he, hel, two_words) = (260, 261, 3);
        let byte = |byte: &str| tokenizer.token_id(byte).unwrap();
        let ids = tokenizer.encode("<s>he hello two words</s>", true).unwrap();
        let (space, l, o) = (byte("Ġ"), byte("l"), byte("o"));
        assert_eq!(ids, [0, he, space, hel, l, o, space, two_words, 1]);
        assert_eq!(tokenizer.decode(&ids, false), "<s>he hello two words</s>");
        assert_eq!(tokenizer.decode(&ids, true), "he hello two words");
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (Some(0), Some(1), 262));
        let text = "naïve 東京 🙂\r\n";
        assert_eq!(tokenizer.decode(&tokenizer.encode(text, true).unwrap(), true), text);
    }

    #[test]
    fn a_first_token_is_added_where_the_file_or_its_kind_says_so() {
        let ids = |file: GgufFile| tokenizer(file).unwrap().encode("he", true).unwrap();
        let with = |pre: &str, key: &str, value: bool| {
            let mut file = GgufFile::llama().with_tokenizer(pre);
            file.set(&format!("tokenizer.ggml.{key}"), Metadata::Bool(value));
            file
        };
        assert_eq!(ids(GgufFile::llama().with_tokenizer("smollm")), [260]);
        assert_eq!(ids(GgufFile::llama().with_tokenizer("llama-bpe")), [0, 260]);
        assert_eq!(ids(with("llama-bpe", "add_bos_token", false)), [260]);
        assert_eq!(ids(with("qwen2", "add_eos_token", true)), [260, 1]);
        assert_eq!(ids(with("qwen2", "add_bos_token", true)), [0, 260]);
        let tokenizer = tokenizer(with("qwen2", "add_bos_token", true)).unwrap();
        assert_eq!(tokenizer.encode("he", false).unwrap(), [260]);
    }

    #[test]
    fn what_is_not_known_is_refused_with_the_way_out() {
        let refusal = |key: &str, value: Option<Metadata>| {
            let mut file = GgufFile::llama().with_tokenizer("gpt-2");
            file.unset(key);
            if let Some(value) = value {
                file.set(key, value);
            }
            let text = tokenizer(file).unwrap_err().to_string();
            assert!(text.contains("tokenizer_name_or_path"), "{text}");
            text
        };
        let text = refusal("tokenizer.ggml.pre", Some(Metadata::String("viking".to_owned())));
        assert!(text.contains("\"viking\" is not known (known: gpt-2, default"), "{text}");
        let text = refusal("tokenizer.ggml.model", Some(Metadata::String("llama".to_owned())));
        assert!(text.contains("of kind \"llama\""), "{text}");
        assert!(refusal("tokenizer.ggml.model", None).contains("no tokenizer"));
        assert!(refusal("tokenizer.ggml.tokens", None).contains("lack tokenizer.ggml.tokens"));
        let text = refusal("tokenizer.ggml.merges", Some(Metadata::Array(vec![Metadata::String("qq zz".to_owned())])));
        assert!(text.contains("damaged"), "{text}");
        assert!(refusal("tokenizer.ggml.eos_token_id", Some(Metadata::U32(900))).contains("is 900"));
    }

    #[test]
    fn smollm2_encodes_as_the_reference() {
        let Some(gguf) = fixtures::real_gguf() else { return };
        let tokenizer = from_gguf(&Gguf::open(&gguf).unwrap()).unwrap();
        for case in fixtures::smollm2()["tokenizer"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(json!(ids), case["ids"], "{text:?}");
            assert_eq!(tokenizer.decode(&ids, false), text);
        }
    }
}
