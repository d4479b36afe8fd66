//! Tests of the whole way from a file to examples, with a tokenizer whose tokens are bytes.

use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;
use tunesmith_models::{EncodedChat, Message, ModelError};
use tunesmith_tensor::IGNORED_TARGET;

use super::*;
use crate::TrainError;

const BEGIN: u32 = 1000;
const END: u32 = 1001;

/// Bytes as tokens; `<end>` is the token that ends a sequence, and the template writes it after every turn.
struct Bytes;

impl Encode for Bytes {
    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, ModelError> {
        if text.contains("<unknown>") {
            return Err(ModelError::NoChatTemplate { path: "tokenizer.json".into() });
        }
        let mut ids = if add_special { vec![BEGIN] } else { Vec::new() };
        for (index, part) in text.split("<end>").enumerate() {
            if index > 0 {
                ids.push(END);
            }
            ids.extend(part.bytes().map(u32::from));
        }
        Ok(ids)
    }

    fn eos(&self) -> Option<u32> {
        Some(END)
    }

    fn encode_chat(&self, messages: &[Message]) -> Result<EncodedChat, ModelError> {
        let mut chat = EncodedChat { ids: Vec::new(), is_assistant: Vec::new() };
        for Message { role, content, .. } in messages {
            let parts = [(format!("{role}: "), false), (format!("{content}<end>"), role == "assistant")];
            for (text, is_assistant) in parts {
                chat.ids.extend(self.encode(&text, false)?);
                chat.is_assistant.resize(chat.ids.len(), is_assistant);
            }
        }
        Ok(chat)
    }

    fn render_prompt(&self, messages: &[Message]) -> Result<String, ModelError> {
        let turns = messages.iter().map(|message| format!("{}: {}<end>", message.role, message.content));
        Ok(turns.chain(["assistant: ".to_owned()]).collect())
    }
}

fn file(name: &str, contents: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, contents).unwrap();
    (folder, path)
}

fn records(name: &str, contents: impl AsRef<[u8]>, options: &DataOptions) -> Result<Vec<Record>, TrainError> {
    let (_folder, path) = file(name, contents);
    Ok(read_records(&path, options)?.records.into_iter().map(|(_, record)| record).collect())
}

fn dataset(name: &str, contents: &str, options: &DataOptions) -> Result<Dataset, TrainError> {
    let (_folder, path) = file(name, contents);
    tokenize(&read_records(&path, options)?, options, &Bytes, 100)
}

/// The message, with the folder's name taken out.
fn message<T: std::fmt::Debug>(result: Result<T, TrainError>) -> String {
    let message = result.unwrap_err().to_string();
    let words = message.split_inclusive([' ', '\n']).map(|word| {
        let start = if word.starts_with('/') { word.rfind('/').map_or(0, |slash| slash + 1) } else { 0 };
        &word[start..]
    });
    words.collect()
}

fn pair(prompt: &str, completion: &str) -> Record {
    Record::PromptCompletion { prompt: prompt.to_owned(), completion: completion.to_owned() }
}

fn options(changes: serde_json::Value) -> DataOptions {
    let mut all = serde_json::to_value(DataOptions::default()).unwrap();
    for (name, value) in changes.as_object().unwrap() {
        all[name] = value.clone();
    }
    serde_json::from_value(all).unwrap()
}

fn none() -> DataOptions {
    DataOptions::default()
}

/// Ids as text, learned ones in capitals and unlearned ones as they are.
fn shown(example: &Example) -> String {
    assert_eq!(example.ids.len(), example.labels.len());
    let token = |(id, label): (&u32, &u32)| {
        assert!(*label == IGNORED_TARGET || label == id);
        let text = match *id {
            BEGIN => "[begin]".to_owned(),
            END => "[end]".to_owned(),
            byte => char::from(byte as u8).to_string(),
        };
        if *label == IGNORED_TARGET { text } else { text.to_uppercase() }
    };
    example.ids.iter().zip(&example.labels).map(token).collect()
}

#[test]
fn every_kind_of_file_gives_the_same_records() {
    let expected = vec![pair("a, b", "say \"c\""), pair("d", "é")];
    let jsonl = "{\"prompt\": \"a, b\", \"completion\": \"say \\\"c\\\"\", \"id\": 1}\n\n{\"prompt\":\"d\",\"completion\":\"\\u00e9\"}";
    for ending in ["data.jsonl", "data.ndjson", "data.json", "DATA.JSONL"] {
        assert_eq!(records(ending, jsonl, &none()).unwrap(), expected);
    }
    let csv = "\u{feff}completion,id,prompt\r\n\"say \"\"c\"\"\",1,\"a, b\"\r\né,2,d\r\n";
    assert_eq!(records("data.csv", csv, &none()).unwrap(), expected);
    let tsv = "prompt\tcompletion\na, b\tsay \"c\"\nd\té\n";
    assert_eq!(records("data.tsv", tsv, &none()).unwrap(), expected);
    let txt = "a, b||say \"c\"\r\n\r\nd||é";
    let named = options(serde_json::json!({"columns": ["prompt", "completion"], "delimiter": "||"}));
    assert_eq!(records("data.txt", txt, &named).unwrap(), expected);
    let headless = options(serde_json::json!({"columns": ["prompt", "completion"], "delimiter": ";"}));
    assert_eq!(records("data.csv", "\"a, b\";\"say \"\"c\"\"\"\nd;é\n", &headless).unwrap(), expected);
}

#[test]
fn columns_of_other_names_choose_the_kind_of_record() {
    let jsonl = r#"{"mr": "x", "ref": "y", "text": "z", "log": [{"role": "user", "content": "u", "n": 1}]}"#;
    let read = |changes| records("data.jsonl", jsonl, &options(changes)).unwrap();
    assert_eq!(read(serde_json::json!({"prompt_column": "mr", "completion_column": "ref"})), [pair("x", "y")]);
    assert_eq!(read(serde_json::json!({"text_column": "ref"})), [Record::Text("y".to_owned())]);
    assert_eq!(read(serde_json::json!({})), [Record::Text("z".to_owned())]);
    let mut turn = Message::new("user", "u");
    turn.other.insert("n".to_owned(), 1.into());
    assert_eq!(read(serde_json::json!({"messages_column": "log"})), [Record::Messages(vec![turn])]);
}

#[test]
fn a_null_is_an_absent_key() {
    let jsonl = "{\"text\": null, \"prompt\": \"p\", \"completion\": \"c\"}";
    assert_eq!(records("data.jsonl", jsonl, &none()).unwrap(), [pair("p", "c")]);
}

#[test]
fn e2e_lines_become_prompt_newline_completion_end() {
    let e2e = options(serde_json::json!({
        "columns": ["prompt", "completion"], "delimiter": "||", "trim_whitespace": true, "prompt_suffix": "\n"
    }));
    let made = dataset("e2e.txt", "name : X | area : y ||x is in y . \n", &e2e).unwrap();
    assert_eq!(shown(&made.examples[0]), "[begin]name : X | area : y\nX IS IN Y .[END]");
    assert_eq!((made.tokens(), made.labelled(), made.lengths()), (33, 12, vec![33]));
}

#[test]
fn the_loss_counts_completions_texts_and_assistant_turns_unless_told_otherwise() {
    let whole = options(serde_json::json!({"train_on_prompt": true}));
    let prompt = r#"{"prompt": "p ", "completion": "c"}"#;
    assert_eq!(shown(&dataset("d.jsonl", prompt, &none()).unwrap().examples[0]), "[begin]p C[END]");
    assert_eq!(shown(&dataset("d.jsonl", prompt, &whole).unwrap().examples[0]), "[BEGIN]P C[END]");

    let prefixed = options(serde_json::json!({"prompt_prefix": "q:", "prompt_suffix": "a:"}));
    assert_eq!(shown(&dataset("d.jsonl", prompt, &prefixed).unwrap().examples[0]), "[begin]q:p a:C[END]");

    let text = "{\"text\": \"t\"}\n{\"text\": \"t<end>\"}";
    let made = dataset("d.jsonl", text, &none()).unwrap();
    assert_eq!(made.examples.iter().map(shown).collect::<Vec<_>>(), ["[BEGIN]T[END]", "[BEGIN]T[END]"]);

    let chat = r#"{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "w"}]}"#
        .replace('\n', " ");
    assert_eq!(
        shown(&dataset("d.jsonl", &chat, &none()).unwrap().examples[0]),
        "user: u[end]assistant: A[END]user: v[end]assistant: B[END]user: w[end]"
    );
    assert_eq!(
        shown(&dataset("d.jsonl", &chat, &whole).unwrap().examples[0]),
        "USER: U[END]ASSISTANT: A[END]USER: V[END]ASSISTANT: B[END]USER: W[END]"
    );
}

#[test]
fn what_the_tokenizer_refuses_is_named_with_its_line() {
    let jsonl = "{\"text\": \"t\"}\n{\"text\": \"<unknown>\"}";
    let refused = message(dataset("d.jsonl", jsonl, &none()));
    assert!(refused.starts_with("d.jsonl has 1 record that cannot be used:\n  d.jsonl:2: "), "{refused}");
}

#[test]
fn too_long_is_an_error_unless_cutting_is_asked_for() {
    let jsonl = "{\"prompt\": \"12345\", \"completion\": \"abc\"}\n{\"prompt\": \"1\", \"completion\": \"a\"}\n\
                 {\"prompt\": \"123456789\", \"completion\": \"abc\"}";
    let short = options(serde_json::json!({"max_length": 8}));
    assert_eq!(
        message(dataset("d.jsonl", jsonl, &short)),
        "d.jsonl has 2 records that cannot be used:\n  \
         d.jsonl:1: has 10 tokens, more than 8: shorten it, or set truncate: true to cut it\n  \
         d.jsonl:3: has 14 tokens, more than 8: shorten it, or set truncate: true to cut it"
    );
    let cut = options(serde_json::json!({"max_length": 8, "truncate": true}));
    assert_eq!(
        message(dataset("d.jsonl", jsonl, &cut)),
        "d.jsonl has 1 record that cannot be used:\n  \
         d.jsonl:3: has nothing to learn once it is cut to 8 tokens: every label is masked"
    );
    let fits = jsonl.lines().take(2).collect::<Vec<_>>().join("\n");
    let made = dataset("d.jsonl", &fits, &cut).unwrap();
    assert_eq!(made.truncated, 1);
    assert_eq!(made.examples.iter().map(shown).collect::<Vec<_>>(), ["[begin]12345AB", "[begin]1A[END]"]);
    let context = message(dataset("d.jsonl", jsonl, &options(serde_json::json!({"max_length": 101}))));
    assert!(context.contains("max_length is 101, must be at most the model's context, 100 tokens"), "{context}");
}

#[test]
fn examples_without_anything_to_learn_are_errors() {
    let chat = r#"{"messages": [{"role": "user", "content": "u"}]}"#;
    assert_eq!(
        message(dataset("d.jsonl", chat, &none())),
        "d.jsonl has 1 record that cannot be used:\n  d.jsonl:1: has nothing to learn: every label is masked"
    );
    let lone = Example { ids: vec![5], labels: vec![5] };
    assert_eq!(lone.labelled(), 0, "nothing predicts the first token");
}

#[test]
fn json_problems_are_listed_with_their_lines_and_counted() {
    let jsonl = [
        r#"{"prompt": "a", "completion": "b"}"#,
        r#"{"prompt": "a", "completion": "b""#,
        r#"{"prompt": "a"}"#,
        r#"{"prompt": "a", "completion": 3}"#,
        r#"["a", "b"]"#,
        r#"{"text": "t"}"#,
        r#"{"question": "a", "answer": "b"}"#,
        r#"{"prompt": "a", "completion": "b", "text": "c"}"#,
        r#"{}"#,
    ];
    assert_eq!(
        message(records("d.jsonl", jsonl.join("\n"), &none())),
        "d.jsonl has 8 records that cannot be used:\n  \
         d.jsonl:2: is not valid JSON: EOF while parsing an object at column 33\n  \
         d.jsonl:3: has no `completion` (it has `prompt`)\n  \
         d.jsonl:4: `completion` is a number, must be a string\n  \
         d.jsonl:5: is a list, must be a JSON object\n  \
         d.jsonl:6: holds a text, but the file began with a prompt and a completion\n  \
         d.jsonl:7: has neither `prompt` and `completion`, nor `text`, nor `messages` (it has `question`, `answer`): \
         name your columns with prompt_column and completion_column, or text_column, or messages_column\n  \
         d.jsonl:8: holds a prompt and a completion and also a text: choose with prompt_column and \
         completion_column, or text_column, or messages_column\n  \
         d.jsonl:9: has neither `prompt` and `completion`, nor `text`, nor `messages` (it has nothing): name your \
         columns with prompt_column and completion_column, or text_column, or messages_column"
    );

    let many = message(records("d.jsonl", "{\"prompt\": 1}\n".repeat(25), &none()));
    assert!(many.starts_with("d.jsonl has 25 records") && many.ends_with("\n  … and 15 more"), "{many}");
    assert_eq!(many.lines().count(), 12);

    let array = message(records("d.json", "[\n {\"text\": \"t\"}\n]", &none()));
    assert!(array.contains("d.json:1: begins a JSON array: write one object a line instead"), "{array}");
}

#[test]
fn messages_are_checked_one_by_one() {
    let jsonl = [
        r#"{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": null}]}"#,
        r#"{"messages": [{"content": "u"}]}"#,
        r#"{"messages": []}"#,
        r#"{"messages": "u"}"#,
    ];
    assert_eq!(
        message(records("d.jsonl", jsonl.join("\n"), &none())),
        "d.jsonl has 4 records that cannot be used:\n  \
         d.jsonl:1: `messages[1].content` is null, must be a string\n  \
         d.jsonl:2: `messages[0]` has no `role`\n  \
         d.jsonl:3: `messages` is empty\n  \
         d.jsonl:4: `messages` is a string, must be a list of messages"
    );
}

#[test]
fn table_problems_are_listed_with_their_lines_and_missing_columns_once() {
    let csv = "prompt,completion\na,\"b\nb\"\nc\nd,e,f\n\n,g\n";
    assert_eq!(
        message(records("d.csv", csv, &none())),
        "d.csv has 2 records that cannot be used:\n  \
         d.csv:4: its number of columns is 1, must be 2 (prompt, completion)\n  \
         d.csv:5: its number of columns is 3, must be 2 (prompt, completion)"
    );
    let renamed = message(records("d.csv", "mr,ref\na,b\nc,d\n", &none()));
    assert!(renamed.starts_with("d.csv has 1 record that cannot be used:\n  d.csv:2: has neither"), "{renamed}");
    let twice = message(records("d.csv", "prompt,prompt\na,b\n", &none()));
    assert!(twice.contains("d.csv:1: names the column `prompt` twice"), "{twice}");
    let wide = options(serde_json::json!({"delimiter": "||"}));
    assert!(message(records("d.csv", csv, &wide)).contains("must be a single ASCII character"));
    assert!(message(records("d.txt", csv, &none())).contains("columns must name the columns of a .txt file"));
    let named = options(serde_json::json!({"columns": ["prompt", "completion"], "delimiter": "||"}));
    let split = message(records("d.txt", "a||b\na|b\na||b||c", &named));
    assert!(
        split.contains(
            "d.txt:2: its number of columns is 1, must be 2 (prompt, completion)\n  d.txt:3: its number of columns is 3"
        ),
        "{split}"
    );
}

#[test]
fn text_that_is_not_utf8_is_named_with_its_line() {
    for (name, contents) in [
        ("d.jsonl", &b"{\"text\": \"a\"}\n{\"text\": \"\xe9\"}"[..]),
        ("d.csv", b"text\na\xe9\n"),
        ("d.tsv", b"text\na\xe9\n"),
    ] {
        let told = message(records(name, contents, &none()));
        assert!(told.contains(&format!("{name}:2: is not UTF-8 text (after ")), "{told}");
    }
}

#[test]
fn empty_and_unknown_files_are_errors() {
    assert_eq!(message(records("d.jsonl", "\n \n", &none())), "d.jsonl holds no examples");
    assert_eq!(message(records("d.csv", "prompt,completion\n", &none())), "d.csv holds no examples");
    assert!(message(records("d.parquet", "PAR1", &none())).starts_with("d.parquet is not a known kind of data file"));
    let absent = read_records(std::path::Path::new("/nowhere/d.csv"), &none());
    assert!(message(absent).starts_with("cannot read d.csv: "));
}

#[test]
fn options_that_contradict_each_other_are_all_reported() {
    let wrong = options(serde_json::json!({
        "columns": ["a", "a"], "delimiter": "", "text_column": "a", "prompt_column": "b", "max_length": 0
    }));
    let Err(TrainError::InvalidDataOptions { problems }) = wrong.validate(100) else { panic!() };
    assert_eq!(problems.len(), 4);
    let error = serde_json::from_str::<DataOptions>(r#"{"train_file": "a", "promt_column": "b"}"#).unwrap_err();
    assert!(error.to_string().contains("unknown field `promt_column`, expected one of `train_file`"));
}

#[test]
fn equal_prompts_are_one_case_with_all_their_references() {
    let csv = "prompt,completion\na,1\nb,2\na,3\n";
    let (_folder, path) = file("d.csv", csv);
    let cases = generation_cases(&read_records(&path, &none()).unwrap(), &Bytes).unwrap();
    let case = |prompt: &str, references: &[&str]| GenerationCase {
        prompt: prompt.to_owned(),
        prompt_ids: vec![BEGIN, u32::from(prompt.as_bytes()[0])],
        references: references.iter().map(|text| (*text).to_owned()).collect(),
    };
    assert_eq!(cases, [case("a", &["1", "3"]), case("b", &["2"])]);

    let chat = r#"{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}"#;
    let (_folder, path) = file("d.jsonl", chat);
    let cases = generation_cases(&read_records(&path, &none()).unwrap(), &Bytes).unwrap();
    assert_eq!((cases[0].prompt.as_str(), cases[0].references[0].as_str()), ("user: u<end>assistant: ", "a"));
    assert_eq!(cases[0].prompt_ids[0], u32::from(b'u'));

    let (_folder, path) = file("d.jsonl", "{\"text\": \"t\"}");
    let refused = message(generation_cases(&read_records(&path, &none()).unwrap(), &Bytes));
    assert!(refused.contains("d.jsonl:1: is a text without a prompt to continue"));
}

proptest! {
    #[test]
    fn what_is_written_as_csv_or_json_lines_is_read_back(pairs in prop::collection::vec((".*", ".*"), 1..8)) {
        let expected: Vec<Record> = pairs.iter().map(|(prompt, completion)| pair(prompt, completion)).collect();
        let lines: Vec<String> = pairs
            .iter()
            .map(|(prompt, completion)| serde_json::json!({"prompt": prompt, "completion": completion}).to_string())
            .collect();
        prop_assert_eq!(&records("d.jsonl", lines.join("\n"), &none()).unwrap(), &expected);

        let mut csv = csv::WriterBuilder::new().from_writer(Vec::new());
        csv.write_record(["prompt", "completion"]).unwrap();
        pairs.iter().for_each(|(prompt, completion)| csv.write_record([prompt, completion]).unwrap());
        prop_assert_eq!(&records("d.csv", csv.into_inner().unwrap(), &none()).unwrap(), &expected);
    }
}
