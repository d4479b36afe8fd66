//! Answers: whole, or as server-sent events while they come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc::{Sender, UnboundedReceiver, channel};
use tokio::time::timeout_at;
use tokio_stream::wrappers::ReceiverStream;

use super::AppState;
use super::error::ApiError;
use crate::base::now;
use crate::engine::{Event, FinishReason, TokenInfo, Usage};

/// Which of the two routes answers.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// `/v1/completions`, with the texts of the prompts where they are echoed.
    Completion { echo: Vec<String> },
    /// `/v1/chat/completions`.
    Chat,
}

/// A request whose texts are being written.
pub(super) struct Answering {
    pub(super) state: Arc<AppState>,
    pub(super) id: String,
    pub(super) request: String,
    pub(super) model: String,
    pub(super) generation: Option<String>,
    pub(super) form: Form,
    /// Texts in all, and for each prompt.
    pub(super) choices: usize,
    pub(super) per_prompt: usize,
    pub(super) prompt_tokens: usize,
    pub(super) with_logprobs: bool,
    pub(super) include_usage: bool,
    pub(super) deadline: tokio::time::Instant,
    pub(super) asked: Instant,
    pub(super) events: UnboundedReceiver<(usize, Event)>,
}

/// One text as far as it has come.
#[derive(Default)]
struct Choice {
    text: String,
    tokens: Vec<TokenInfo>,
    finish: Option<FinishReason>,
}

/// What was used in all.
#[derive(Default)]
struct Totals {
    completion: usize,
    cached: usize,
    queue: Duration,
    first_token: Duration,
}

impl Totals {
    fn add(&mut self, usage: &Usage) {
        self.completion += usage.completion;
        self.cached += usage.cached;
        self.queue = self.queue.max(usage.queue);
        self.first_token = self.first_token.max(usage.first_token);
    }
}

/// How often a stream without news shows that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Pieces of a stream that may wait for a client; with more, the engine's events wait, which are few and short.
const UNSENT: usize = 16;

impl Answering {
    /// Waits for all of it.
    pub(super) async fn whole(mut self) -> Result<Response, ApiError> {
        let mut choices: Vec<Choice> = (0..self.choices).map(|_| Choice::default()).collect();
        let mut totals = Totals::default();
        let mut left = self.choices;
        while left > 0 {
            let event = timeout_at(self.deadline, self.events.recv()).await.map_err(|_| ApiError::timeout())?;
            let Some((number, event)) = event else { return Err(ApiError::internal("the engine has ended")) };
            let choice = &mut choices[number];
            match event {
                Event::Text { text, tokens } => {
                    choice.text += &text;
                    choice.tokens.extend(tokens);
                }
                Event::Finished { reason, usage } => {
                    choice.finish = Some(reason);
                    totals.add(&usage);
                    left -= 1;
                }
                Event::Failed(reason) => return Err(ApiError::internal(reason)),
            }
        }
        self.observe(&totals);
        let choices: Vec<Value> =
            choices.iter().enumerate().map(|(number, choice)| self.choice(number, choice)).collect();
        let mut body = self.head("");
        body["choices"] = json!(choices);
        body["usage"] = self.usage(&totals);
        let mut response = Json(body).into_response();
        self.describe(&mut response);
        let millis = |duration: Duration| HeaderValue::from(duration.as_millis() as u64);
        let headers = response.headers_mut();
        headers.insert(HeaderName::from_static("x-queue-time"), millis(totals.queue));
        headers.insert(HeaderName::from_static("x-time-to-first-token"), millis(totals.first_token));
        Ok(response)
    }

    /// Answers with events. The client's going away ends the request.
    pub(super) fn stream(self) -> Response {
        let (sender, receiver) = channel::<Result<Bytes, std::convert::Infallible>>(UNSENT);
        let mut response = Body::from_stream(ReceiverStream::new(receiver)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        self.describe(&mut response);
        tokio::spawn(self.send_all(sender));
        response
    }

    async fn send_all(mut self, sender: Sender<Result<Bytes, std::convert::Infallible>>) {
        // A failed sending means that the client has gone; what is dropped then cancels the rest.
        let send = async |value: String| sender.send(Ok(Bytes::from(format!("data: {value}\n\n")))).await.is_ok();
        let mut offsets = vec![0; self.choices];
        if let Form::Chat = self.form {
            for number in 0..self.choices {
                let delta =
                    json!({ "index": number, "delta": { "role": "assistant", "content": "" }, "finish_reason": null });
                if !send(self.chunk(json!([delta])).to_string()).await {
                    return;
                }
            }
        }
        if let Form::Completion { echo } = self.form.clone() {
            for (number, offset) in offsets.iter_mut().enumerate().filter(|_| !echo.is_empty()) {
                let text = &echo[number / self.per_prompt];
                *offset = text.len();
                let piece = json!({ "index": number, "text": text, "logprobs": null, "finish_reason": null });
                if !send(self.chunk(json!([piece])).to_string()).await {
                    return;
                }
            }
        }
        let mut totals = Totals::default();
        let mut left = self.choices;
        while left > 0 {
            let event = tokio::select! {
                event = timeout_at(self.deadline, self.events.recv()) => event,
                () = sender.closed() => return,
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    if sender.send(Ok(Bytes::from_static(b": still here\n\n"))).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let (number, event) = match event {
                Ok(Some(event)) => event,
                Ok(None) => {
                    send(ApiError::internal("the engine has ended").json().to_string()).await;
                    return;
                }
                Err(_) => {
                    send(ApiError::timeout().json().to_string()).await;
                    return;
                }
            };
            let piece = match event {
                Event::Text { text, tokens } => {
                    let logprobs = self.logprobs(&tokens, offsets[number]);
                    offsets[number] += text.len();
                    match self.form {
                        Form::Completion { .. } => {
                            json!({ "index": number, "text": text, "logprobs": logprobs, "finish_reason": null })
                        }
                        Form::Chat => {
                            json!({ "index": number, "delta": { "content": text }, "logprobs": logprobs, "finish_reason": null })
                        }
                    }
                }
                Event::Finished { reason, usage } => {
                    totals.add(&usage);
                    left -= 1;
                    match self.form {
                        Form::Completion { .. } => {
                            json!({ "index": number, "text": "", "logprobs": null, "finish_reason": name(reason) })
                        }
                        Form::Chat => {
                            json!({ "index": number, "delta": {}, "logprobs": null, "finish_reason": name(reason) })
                        }
                    }
                }
                Event::Failed(reason) => {
                    send(ApiError::internal(reason).json().to_string()).await;
                    return;
                }
            };
            if !send(self.chunk(json!([piece])).to_string()).await {
                return;
            }
        }
        self.observe(&totals);
        if self.include_usage {
            let mut last = self.chunk(json!([]));
            last["usage"] = self.usage(&totals);
            if !send(last.to_string()).await {
                return;
            }
        }
        send("[DONE]".to_owned()).await;
    }

    fn observe(&self, totals: &Totals) {
        let (queue, first) = (totals.queue, totals.first_token);
        self.state.metrics.observe(&self.model, queue, first, self.asked.elapsed(), totals.completion);
        tracing::info!(
            request_id = self.request,
            model = self.model,
            prompt_tokens = self.prompt_tokens,
            completion_tokens = totals.completion,
            "answered"
        );
    }

    fn head(&self, kind: &str) -> Value {
        let object = match self.form {
            Form::Completion { .. } => "text_completion".to_owned(),
            Form::Chat => format!("chat.completion{kind}"),
        };
        let mut head = json!({ "id": self.id, "object": object, "created": now(), "model": self.model });
        if let Some(generation) = &self.generation {
            head["adapter_generation"] = json!(generation);
        }
        head
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = self.head(".chunk");
        chunk["choices"] = choices;
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn choice(&self, number: usize, choice: &Choice) -> Value {
        let finish = choice.finish.map(name);
        match &self.form {
            Form::Completion { echo } => {
                let before = echo.get(number / self.per_prompt).map_or("", String::as_str);
                let logprobs = self.logprobs(&choice.tokens, before.len());
                let text = format!("{before}{}", choice.text);
                json!({ "index": number, "text": text, "logprobs": logprobs, "finish_reason": finish })
            }
            Form::Chat => {
                let message = json!({ "role": "assistant", "content": choice.text });
                let logprobs = self.logprobs(&choice.tokens, 0);
                json!({ "index": number, "message": message, "logprobs": logprobs, "finish_reason": finish })
            }
        }
    }

    /// What is told of tokens, the text of which begins at `offset`.
    fn logprobs(&self, tokens: &[TokenInfo], offset: usize) -> Value {
        if !self.with_logprobs {
            return Value::Null;
        }
        let tokenizer = &self.state.base().pretrained.tokenizer;
        let text = |id: u32| tokenizer.decode(&[id], false);
        match self.form {
            Form::Completion { .. } => {
                let mut place = offset;
                let mut offsets = Vec::new();
                for token in tokens {
                    offsets.push(place);
                    place += text(token.id).len();
                }
                let top = tokens.iter().map(|token| {
                    let top = token.top.iter().map(|(id, logprob)| (text(*id), json!(logprob)));
                    top.collect::<serde_json::Map<String, Value>>()
                });
                json!({
                    "tokens": tokens.iter().map(|token| text(token.id)).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
                    "top_logprobs": top.collect::<Vec<_>>(),
                    "text_offset": offsets,
                })
            }
            Form::Chat => {
                let told = |id: u32, logprob: f32| {
                    let text = text(id);
                    json!({ "token": text, "logprob": logprob, "bytes": text.as_bytes() })
                };
                let content = tokens.iter().map(|token| {
                    let mut one = told(token.id, token.logprob);
                    one["top_logprobs"] = token.top.iter().map(|(id, logprob)| told(*id, *logprob)).collect();
                    one
                });
                json!({ "content": content.collect::<Vec<_>>() })
            }
        }
    }

    fn usage(&self, totals: &Totals) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": totals.completion,
            "total_tokens": self.prompt_tokens + totals.completion,
            "prompt_tokens_details": { "cached_tokens": totals.cached },
        })
    }

    /// Says which adapter answers.
    fn describe(&self, response: &mut Response) {
        if let Some(generation) = self.generation.as_deref().and_then(|hash| HeaderValue::from_str(hash).ok()) {
            response.headers_mut().insert(HeaderName::from_static("x-adapter-generation"), generation);
        }
    }
}

fn name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}
