//! `/v1/completions` and `/v1/chat/completions`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;
use tokio::sync::mpsc::unbounded_channel;
use tunesmith_models::Message;

use super::body::read_json;
use super::error::ApiError;
use super::parameters::{Checked, Parameters, ResponseFormat, Stop, StreamOptions};
use super::stream::{Answering, Form};
use super::{AppState, RequestId};
use crate::adapters::Resident;
use crate::engine::{Generation, Grammar};

/// A prompt as text or as tokens, one or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

/// The body of `/v1/completions`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CompletionBody {
    model: String,
    prompt: Prompt,
    max_tokens: Option<usize>,
    min_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    stop: Option<Stop>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    seed: Option<i64>,
    n: Option<usize>,
    logprobs: Option<usize>,
    echo: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    response_format: Option<ResponseFormat>,
    adapter_generation: Option<String>,
    cache_salt: Option<String>,
    /// Who asks on whose behalf; nothing is done with it.
    #[serde(rename = "user")]
    _user: Option<String>,
}

/// A message of a chat, whose content may come in parts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChatMessage {
    role: String,
    content: Content,
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Part {
    Text { text: String },
}

/// The body of `/v1/chat/completions`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChatBody {
    model: String,
    messages: Vec<ChatMessage>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    min_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    stop: Option<Stop>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    seed: Option<i64>,
    n: Option<usize>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    response_format: Option<ResponseFormat>,
    adapter_generation: Option<String>,
    cache_salt: Option<String>,
    /// Who asks on whose behalf; nothing is done with it.
    #[serde(rename = "user")]
    _user: Option<String>,
}

/// Likeliest tokens that may be told.
const MOST_LOGPROBS: usize = 20;

/// What both routes come to.
struct Wanted {
    model: String,
    prompts: Vec<Vec<u32>>,
    parameters: Parameters,
    max_tokens: Option<usize>,
    min_tokens: usize,
    stop_token_ids: Vec<u32>,
    ignores_eos: bool,
    logprobs: Option<usize>,
    response_format: ResponseFormat,
    adapter_generation: Option<String>,
    cache_salt: String,
    stream: bool,
    include_usage: bool,
    form: Form,
}

pub(super) async fn complete(
    State(state): State<Arc<AppState>>,
    Extension(RequestId(request)): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let body: CompletionBody = read_json(&state, &headers, body).await?;
    let tokenizer = &state.base().pretrained.tokenizer;
    let encode = |text: &String| {
        let mut ids = tokenizer.encode(text, true).map_err(|error| ApiError::invalid(error.to_string()))?;
        if ids.is_empty() {
            ids.extend(state.base().pretrained.generation.bos_token_id);
        }
        Ok::<_, ApiError>(ids)
    };
    let (prompts, texts) = match body.prompt {
        Prompt::Text(text) => (vec![encode(&text)?], vec![text]),
        Prompt::Texts(texts) => (texts.iter().map(encode).collect::<Result<_, _>>()?, texts),
        Prompt::Tokens(ids) => (vec![ids.clone()], vec![tokenizer.decode(&ids, true)]),
        Prompt::TokenLists(lists) => {
            let texts = lists.iter().map(|ids| tokenizer.decode(ids, true)).collect();
            (lists, texts)
        }
    };
    let echo = if body.echo.unwrap_or(false) { texts } else { Vec::new() };
    if !echo.is_empty() && body.logprobs.is_some() {
        return Err(ApiError::invalid("log-probabilities of an echoed prompt are not computed").about("echo"));
    }
    let wanted = Wanted {
        model: body.model,
        prompts,
        parameters: Parameters {
            temperature: body.temperature,
            top_p: body.top_p,
            top_k: body.top_k,
            min_p: body.min_p,
            repetition_penalty: body.repetition_penalty,
            presence_penalty: body.presence_penalty,
            frequency_penalty: body.frequency_penalty,
            logit_bias: body.logit_bias,
            stop: body.stop,
            seed: body.seed,
            n: body.n,
        },
        max_tokens: Some(body.max_tokens.unwrap_or(16)),
        min_tokens: body.min_tokens.unwrap_or(0),
        stop_token_ids: body.stop_token_ids.unwrap_or_default(),
        ignores_eos: body.ignore_eos.unwrap_or(false),
        logprobs: body.logprobs,
        response_format: body.response_format.unwrap_or_default(),
        adapter_generation: body.adapter_generation,
        cache_salt: body.cache_salt.unwrap_or_default(),
        stream: body.stream.unwrap_or(false),
        include_usage: body.stream_options.unwrap_or_default().include_usage,
        form: Form::Completion { echo },
    };
    run(state, request, wanted).await
}

pub(super) async fn chat(
    State(state): State<Arc<AppState>>,
    Extension(RequestId(request)): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let body: ChatBody = read_json(&state, &headers, body).await?;
    if body.messages.is_empty() {
        return Err(ApiError::invalid("there are no messages").about("messages"));
    }
    let messages = body.messages.into_iter().map(|message| {
        let text = match message.content {
            Content::Text(text) => text,
            Content::Parts(parts) => parts.into_iter().map(|Part::Text { text }| text).collect(),
        };
        let mut made = Message::new(message.role, text);
        made.other.extend(message.name.map(|name| ("name".to_owned(), name.into())));
        made
    });
    let messages: Vec<Message> = messages.collect();
    let tokenizer = &state.base().pretrained.tokenizer;
    let refused = |error: tunesmith_models::ModelError| ApiError::invalid(error.to_string()).about("messages");
    let text = tokenizer.render(&messages, true).map_err(refused)?;
    let prompt = tokenizer.encode(&text, false).map_err(refused)?;
    let wants_logprobs = body.logprobs.unwrap_or(false);
    if body.top_logprobs.is_some() && !wants_logprobs {
        return Err(ApiError::invalid("top_logprobs needs logprobs").about("top_logprobs"));
    }
    let wanted = Wanted {
        model: body.model,
        prompts: vec![prompt],
        parameters: Parameters {
            temperature: body.temperature,
            top_p: body.top_p,
            top_k: body.top_k,
            min_p: body.min_p,
            repetition_penalty: body.repetition_penalty,
            presence_penalty: body.presence_penalty,
            frequency_penalty: body.frequency_penalty,
            logit_bias: body.logit_bias,
            stop: body.stop,
            seed: body.seed,
            n: body.n,
        },
        max_tokens: body.max_completion_tokens.or(body.max_tokens),
        min_tokens: body.min_tokens.unwrap_or(0),
        stop_token_ids: body.stop_token_ids.unwrap_or_default(),
        ignores_eos: body.ignore_eos.unwrap_or(false),
        logprobs: wants_logprobs.then(|| body.top_logprobs.unwrap_or(0)),
        response_format: body.response_format.unwrap_or_default(),
        adapter_generation: body.adapter_generation,
        cache_salt: body.cache_salt.unwrap_or_default(),
        stream: body.stream.unwrap_or(false),
        include_usage: body.stream_options.unwrap_or_default().include_usage,
        form: Form::Chat,
    };
    run(state, request, wanted).await
}

/// Hands everything that is wanted to the engine, and answers.
async fn run(state: Arc<AppState>, request: String, wanted: Wanted) -> Result<Response, ApiError> {
    let asked = Instant::now();
    let base = Arc::clone(state.base());
    let vocabulary = base.model().info().vocab_size;
    if wanted.logprobs.is_some_and(|count| count > MOST_LOGPROBS) {
        let message = format!("up to {MOST_LOGPROBS} of the likeliest tokens can be told");
        return Err(ApiError::invalid(message).about("logprobs"));
    }
    if wanted.prompts.iter().flatten().chain(&wanted.stop_token_ids).any(|id| *id as usize >= vocabulary) {
        return Err(ApiError::invalid(format!("token ids must lie below {vocabulary}")).about("prompt"));
    }
    if wanted.max_tokens == Some(0) {
        return Err(ApiError::invalid("max_tokens must be at least 1").about("max_tokens"));
    }
    let checked = wanted.parameters.clone().check(state.options.choices, vocabulary)?;
    let count = wanted.prompts.len() * checked.n;
    if count == 0 || count > state.options.choices {
        let message = format!("{count} texts are asked for, but 1 to {} are answered", state.options.choices);
        return Err(ApiError::invalid(message).about("n"));
    }
    let adapter = state.adapter(&wanted.model, wanted.adapter_generation.clone()).await?;
    let grammar = match &wanted.response_format {
        ResponseFormat::Text => None,
        ResponseFormat::JsonObject => Some(state.grammars.json_object(&base)?),
        ResponseFormat::JsonSchema { json_schema } => {
            Some(state.grammars.json_schema(&base, json_schema.schema.clone())?)
        }
    };
    let (sender, events) = unbounded_channel();
    let mut prompt_tokens = 0;
    for (number, prompt) in wanted.prompts.iter().enumerate() {
        prompt_tokens += prompt.len();
        for index in 0..checked.n {
            let choice = number * checked.n + index;
            let mut generation =
                generation(&state, &wanted, &checked, adapter.as_ref(), prompt, grammar.clone(), asked);
            generation.seed = (checked.seed, index as u64);
            generation.choice = choice;
            generation.events.clone_from(&sender);
            // Those of this request that were handed over are cancelled with the channel.
            state.engine.generate(generation)?;
        }
    }
    drop(sender);
    let answering = Answering {
        state: Arc::clone(&state),
        id: state.new_id(if matches!(wanted.form, Form::Chat) { "chatcmpl" } else { "cmpl" }),
        request,
        model: wanted.model,
        generation: adapter.map(|resident| resident.generation.clone()),
        form: wanted.form,
        choices: count,
        per_prompt: checked.n,
        prompt_tokens,
        with_logprobs: wanted.logprobs.is_some(),
        include_usage: wanted.include_usage,
        deadline: tokio::time::Instant::now() + state.options.request_timeout,
        asked,
        events,
    };
    if wanted.stream { Ok(answering.stream()) } else { answering.whole().await }
}

fn generation(
    state: &AppState,
    wanted: &Wanted,
    checked: &Checked,
    adapter: Option<&Arc<Resident>>,
    prompt: &[u32],
    grammar: Option<Grammar>,
    asked: Instant,
) -> Generation {
    let info = state.base().model().info();
    let virtual_tokens = adapter.map_or(0, |resident| resident.adapter.virtual_tokens());
    let taken = if state.base().encodes() { 1 } else { prompt.len() + virtual_tokens };
    let left = info.max_positions.saturating_sub(taken).max(1);
    let max_tokens = wanted.max_tokens.unwrap_or_else(|| left.min(state.options.default_max_tokens));
    Generation {
        adapter: adapter.cloned(),
        prompt: prompt.to_vec(),
        max_tokens,
        min_tokens: wanted.min_tokens.min(max_tokens),
        sampling: checked.sampling.clone(),
        presence_penalty: checked.presence_penalty,
        frequency_penalty: checked.frequency_penalty,
        logit_bias: checked.logit_bias.clone(),
        stop: checked.stop.clone(),
        stop_token_ids: wanted.stop_token_ids.clone(),
        ignores_eos: wanted.ignores_eos,
        seed: (checked.seed, 0),
        logprobs: wanted.logprobs,
        grammar,
        cache_salt: wanted.cache_salt.clone(),
        choice: 0,
        asked,
        events: unbounded_channel().0,
    }
}
