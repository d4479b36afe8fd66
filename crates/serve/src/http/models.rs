//! `/v1/models`, and texts to tokens and back.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use tunesmith_models::Message;

use super::AppState;
use super::body::read_json;
use super::error::ApiError;
use crate::adapters::AdapterStatus;

/// The base as a model.
fn base_card(state: &AppState) -> Value {
    let base = state.base();
    let info = base.model().info();
    json!({
        "id": base.name, "object": "model", "created": base.created, "owned_by": "tunesmith", "root": base.name,
        "parent": null, "max_model_len": info.max_positions, "task": base.task().name(), "model_type": info.model_type,
    })
}

/// An adapter as a model. Where its files lie is nobody's business.
pub(super) fn card(state: &AppState, status: &AdapterStatus) -> Value {
    let mut card = json!({
        "id": status.name, "object": "model", "created": state.base().created, "owned_by": "tunesmith",
        "root": status.name, "parent": state.base().name, "max_model_len": null,
        "state": if status.resident.is_some() { "loaded" } else { "on_disk" },
        "pinned": status.is_pinned, "requests": status.requests,
    });
    if let Some(resident) = &status.resident {
        card["created"] = json!(resident.loaded);
        card["type"] = json!(resident.method);
        card["rank"] = json!(resident.rank);
        card["generation"] = json!(resident.generation);
        card["file_bytes"] = json!(resident.file_bytes);
        card["bytes"] = json!(resident.bytes);
        card["load_milliseconds"] = json!(resident.load_time.as_secs_f64() * 1e3);
    }
    card
}

pub(super) async fn list(State(state): State<Arc<AppState>>) -> Json<Value> {
    let adapters = state.adapters.list();
    let cards = adapters.iter().map(|status| card(&state, status));
    let data: Vec<Value> = std::iter::once(base_card(&state)).chain(cards).collect();
    Json(json!({ "object": "list", "data": data }))
}

pub(super) async fn one(State(state): State<Arc<AppState>>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    if name == state.base().name {
        return Ok(Json(base_card(&state)));
    }
    let status = state.adapters.status(&name);
    let status = status.ok_or_else(|| ApiError::not_found(format!("The model '{name}' does not exist")))?;
    Ok(Json(card(&state, &status)))
}

/// A text or a chat to be turned into tokens.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenizeBody {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DetokenizeBody {
    model: Option<String>,
    tokens: Vec<u32>,
}

impl AppState {
    /// Makes sure that a name means something; all adapters share one tokenizer.
    fn check_model(&self, model: Option<&str>) -> Result<(), ApiError> {
        match model {
            Some(model) if model != self.base().name && !self.adapters.knows(model) => {
                Err(ApiError::not_found(format!("The model '{model}' does not exist")).about("model"))
            }
            _ => Ok(()),
        }
    }
}

pub(super) async fn tokenize(
    State(state): State<Arc<AppState>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let body: TokenizeBody = read_json(&state, &headers, body).await?;
    state.check_model(body.model.as_deref())?;
    let tokenizer = &state.base().pretrained.tokenizer;
    let refused = |error: tunesmith_models::ModelError| ApiError::invalid(error.to_string());
    let tokens = match (body.prompt, body.messages) {
        (Some(prompt), None) => tokenizer.encode(&prompt, body.add_special_tokens.unwrap_or(true)).map_err(refused)?,
        (None, Some(messages)) => {
            let text = tokenizer.render(&messages, body.add_generation_prompt.unwrap_or(true)).map_err(refused)?;
            tokenizer.encode(&text, body.add_special_tokens.unwrap_or(false)).map_err(refused)?
        }
        _ => return Err(ApiError::invalid("give either a prompt or messages").about("prompt")),
    };
    let longest = state.base().model().info().max_positions;
    Ok(Json(json!({ "count": tokens.len(), "max_model_len": longest, "tokens": tokens })))
}

pub(super) async fn detokenize(
    State(state): State<Arc<AppState>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let body: DetokenizeBody = read_json(&state, &headers, body).await?;
    state.check_model(body.model.as_deref())?;
    Ok(Json(json!({ "prompt": state.base().pretrained.tokenizer.decode(&body.tokens, false) })))
}
