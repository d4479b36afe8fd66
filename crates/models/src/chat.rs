//! Chat templates: Jinja, with what Hugging Face's `apply_chat_template` offers to them.

use std::path::{Path, PathBuf};

use jiff::{Timestamp, tz::TimeZone};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::error::ModelError;
use crate::python_json::dumps;

const NAME: &str = "chat";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or another role that the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Other keys, which reach the template as they are.
    #[serde(flatten)]
    pub other: Map<String, serde_json::Value>,
}

impl Message {
    /// A message with nothing but a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), other: Map::new() }
    }

    fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }
}

/// A stretch of a rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Its text.
    pub text: String,
    /// Whether the assistant says it: a reply with its end-of-turn token.
    pub is_assistant: bool,
}

/// A compiled chat template.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    path: PathBuf,
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Compiles a template; `special_tokens` become variables.
    ///
    /// # Errors
    /// Why it does not parse.
    pub(crate) fn new(path: &Path, source: &str, special_tokens: Vec<(&'static str, String)>) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
            let now = Timestamp::now().to_zoned_datetime(TimeZone::UTC);
            jiff::fmt::strtime::format(&format, &now)
                .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
        });
        for (key, token) in special_tokens {
            environment.add_global(key, token);
        }
        for absent in ["tools", "documents"] {
            environment.add_global(absent, Value::from(()));
        }
        let source = without_generation_tags(source);
        environment.add_template_owned(NAME, source).map_err(|error| error.to_string())?;
        Ok(Self { path: path.to_path_buf(), environment })
    }

    pub(crate) fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, ModelError> {
        let template = self.environment.get_template(NAME).expect("the template was added when this was made");
        let context = minijinja::context! { messages => Value::from(Serde(messages)), add_generation_prompt };
        let refused = |error: Error| ModelError::ChatTemplate { path: self.path.clone(), reason: error.to_string() };
        template.render(context).map_err(refused)
    }

    /// Cuts a rendered conversation into the assistant's replies and the rest. A reply begins where the generation
    /// prompt after the messages before it ends, and ends where the conversation up to it ends; white space after a
    /// closing special token (`ends_in_special` knows them) is no longer part of it, because nothing generates it.
    pub(crate) fn turns(
        &self,
        messages: &[Message],
        ends_in_special: impl Fn(&str) -> bool,
    ) -> Result<Vec<Turn>, ModelError> {
        let whole = self.render(messages, false)?;
        let mut turns = Vec::new();
        let mut done = 0;
        for (index, _) in messages.iter().enumerate().filter(|(_, message)| message.is_assistant()) {
            let before = self.render(&messages[..index], true)?;
            let after = self.render(&messages[..=index], false)?;
            if !whole.starts_with(&after) || !after.starts_with(&before) || before.len() < done {
                let reason = format!(
                    "message {index}, a reply of the assistant, has no place of its own in the rendered conversation: \
                     the template writes earlier messages differently when others follow; give the data as prompt \
                     and completion, or another template with chat_template"
                );
                return Err(ModelError::ChatTemplate { path: self.path.clone(), reason });
            }
            let reply = &after[before.len()..];
            let closed = reply.trim_end();
            let reply = if ends_in_special(closed) { closed } else { reply };
            push(&mut turns, &whole[done..before.len()], false);
            push(&mut turns, reply, true);
            done = before.len() + reply.len();
        }
        push(&mut turns, &whole[done..], false);
        Ok(turns)
    }
}

fn push(turns: &mut Vec<Turn>, text: &str, is_assistant: bool) {
    if !text.is_empty() {
        turns.push(Turn { text: text.to_owned(), is_assistant });
    }
}

/// `tojson` as transformers defines it: `json.dumps` without escaping for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let wrong = |error: serde_json::Error| {
        Error::new(ErrorKind::InvalidOperation, format!("cannot write this as JSON: {error}"))
    };
    let mut json = serde_json::to_value(value).map_err(wrong)?;
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    if options.get::<Option<bool>>("sort_keys")?.unwrap_or(false) {
        json.sort_all_objects();
    }
    if options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson(ensure_ascii=true) is not supported"));
    }
    options.assert_all_used()?;
    let separators = match separators.as_deref() {
        None => None,
        Some([item, key]) => Some((item.clone(), key.clone())),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson needs two separators")),
    };
    Ok(Value::from_safe_string(dumps(&json, indent, separators)))
}

/// Turns transformers' own tags `{% generation %}` and `{% endgeneration %}` into tags that every engine knows.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let name = tag.trim_matches(|c: char| "{%-+} ".contains(c) || c.is_whitespace());
        match name {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use serde_json::Value as Json;

    use super::*;
    use crate::fixtures;

    fn reference() -> Json {
        serde_json::from_slice(&fs::read(fixtures::path("chat/templates.json")).unwrap()).unwrap()
    }

    fn template(name: &str) -> ChatTemplate {
        let reference = reference();
        let special = ["bos_token", "eos_token", "unk_token", "pad_token"]
            .map(|key| (key, reference["special_tokens"][key].as_str().unwrap().to_owned()));
        let source = reference["templates"][name].as_str().unwrap();
        ChatTemplate::new(Path::new("chat_template.jinja"), source, special.to_vec()).unwrap()
    }

    fn is_special(text: &str) -> bool {
        ["<|im_end|>", "</s>", "<|eot_id|>"].iter().any(|token| text.ends_with(token))
    }

    fn talk() -> Vec<Message> {
        [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye"), ("assistant", "See you.\n")]
            .map(|(role, content)| Message::new(role, content))
            .to_vec()
    }

    fn replies(turns: &[Turn]) -> Vec<&str> {
        turns.iter().filter(|turn| turn.is_assistant).map(|turn| turn.text.as_str()).collect()
    }

    #[test]
    fn conversations_render_as_in_transformers() {
        for case in reference()["cases"].as_array().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let name = case["template"].as_str().unwrap();
            let text = template(name).render(&messages, case["add_generation_prompt"].as_bool().unwrap()).unwrap();
            assert_eq!(text, case["text"].as_str().unwrap(), "{name}");
        }
    }

    #[test]
    fn replies_end_with_their_end_of_turn_token() {
        let turns = |name: &str| template(name).turns(&talk(), is_special).unwrap();
        assert_eq!(replies(&turns("chatml")), ["Hello!<|im_end|>", "See you.\n<|im_end|>"]);
        assert_eq!(replies(&turns("headers")), ["Hello!<|eot_id|>", "See you.<|eot_id|>"]);
        assert_eq!(replies(&turns("bracketed")), [" Hello!</s>", " See you.</s>"]);
        let chatml = turns("chatml");
        assert_eq!(chatml.last().unwrap(), &Turn { text: "\n".to_owned(), is_assistant: false });
    }

    #[test]
    fn a_template_that_rewrites_earlier_turns_is_refused() {
        let text = template("thinking").turns(&talk(), is_special).unwrap_err().to_string();
        assert!(text.contains("message 2, a reply of the assistant") && text.contains("chat_template"), "{text}");
        let one_reply = [Message::new("user", "Hi"), Message::new("assistant", "Hello!")];
        assert!(template("thinking").turns(&one_reply, is_special).is_ok());
    }

    #[test]
    fn a_template_refuses_in_its_own_words() {
        let messages = [Message::new("assistant", "Hello!")];
        let text = template("bracketed").render(&messages, true).unwrap_err().to_string();
        assert!(text.contains("Roles must alternate user/assistant"), "{text}");
        let wrong = ChatTemplate::new(Path::new("t"), "{% for %}", Vec::new()).unwrap_err();
        assert!(wrong.contains("syntax error"), "{wrong}");
    }

    #[test]
    fn the_date_can_be_written() {
        let source = "{{ strftime_now('%d %b %Y') }}";
        let template = ChatTemplate::new(Path::new("t"), source, Vec::new()).unwrap();
        let text = template.render(&[], false).unwrap();
        let parts: Vec<&str> = text.split(' ').collect();
        assert_eq!((parts.len(), parts[0].len(), parts[1].len()), (3, 2, 3), "{text}");
        assert!(parts[2].parse::<u32>().unwrap() >= 2024, "{text}");
    }

    #[test]
    fn smollm2_renders_as_the_reference() {
        let Some(model) = fixtures::real_smollm2() else { return };
        let reference = &fixtures::smollm2()["chat"];
        let messages: Vec<Message> = serde_json::from_value(reference["messages"].clone()).unwrap();
        let text = model.tokenizer.render(&messages, true).unwrap();
        assert_eq!(text, reference["text"].as_str().unwrap());
        assert_eq!(serde_json::json!(model.tokenizer.encode(&text, false).unwrap()), reference["ids"]);
    }

    proptest! {
        #[test]
        fn turns_make_up_the_conversation(
            contents in proptest::collection::vec("(\\PC|\n| ){0,12}", 1..6),
            first_is_assistant in any::<bool>(),
            name in prop_oneof![Just("chatml"), Just("headers")],
        ) {
            let offset = usize::from(first_is_assistant);
            let role = |index: usize| if (index + offset).is_multiple_of(2) { "user" } else { "assistant" };
            let mut messages = vec![Message::new("system", "s")];
            messages.extend(contents.iter().enumerate().map(|(index, content)| Message::new(role(index), content.as_str())));
            let template = template(name);
            let turns = template.turns(&messages, is_special).unwrap();
            let text: String = turns.iter().map(|turn| turn.text.as_str()).collect();
            prop_assert_eq!(text, template.render(&messages, false).unwrap());
            let count = messages.iter().filter(|message| message.is_assistant()).count();
            prop_assert_eq!(turns.iter().filter(|turn| turn.is_assistant).count(), count);
        }
    }
}
