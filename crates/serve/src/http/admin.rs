//! Adapters as a resource, and vLLM's two routes for loading and unloading.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};

use super::AppState;
use super::body::read_json;
use super::error::ApiError;
use super::keys::{Caller, require_admin};
use super::models::card;

/// vLLM's body.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadLora {
    lora_name: Option<String>,
    lora_path: Option<String>,
    load_inplace: Option<bool>,
}

/// vLLM's body.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnloadLora {
    lora_name: Option<String>,
    /// vLLM's number of the adapter, which there is none of here.
    #[serde(rename = "lora_int_id")]
    _lora_int_id: Option<u64>,
}

/// An adapter to be loaded.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Load {
    name: String,
    /// A folder, whole or below the folder of adapters; the name, if nothing is said.
    path: Option<String>,
    replace: Option<bool>,
    pinned: Option<bool>,
}

/// What can be changed of an adapter.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    pinned: bool,
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    state: &Arc<AppState>,
    work: impl FnOnce(&AppState) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let state = Arc::clone(state);
    let done = tokio::task::spawn_blocking(move || work(&state)).await;
    done.map_err(|_| ApiError::internal("loading the adapter failed"))?
}

fn status(state: &AppState, name: &str) -> Result<Value, ApiError> {
    let status = state.adapters.status(name);
    let status = status.ok_or_else(|| ApiError::not_found(format!("The adapter '{name}' does not exist")))?;
    Ok(card(state, &status))
}

pub(super) async fn load_lora(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<String, ApiError> {
    require_admin(caller)?;
    let body: LoadLora = read_json(&state, &headers, body).await?;
    let (Some(name), Some(path)) = (body.lora_name, body.lora_path) else {
        let message = "Both 'lora_name' and 'lora_path' must be provided.";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "InvalidUserInput", message));
    };
    let replace = body.load_inplace.unwrap_or(false);
    blocking(&state, move |state| {
        state.adapters.load(&name, &path, replace)?;
        Ok(format!("Success: LoRA adapter '{name}' added successfully."))
    })
    .await
}

pub(super) async fn unload_lora(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<String, ApiError> {
    require_admin(caller)?;
    let body: UnloadLora = read_json(&state, &headers, body).await?;
    let Some(name) = body.lora_name else {
        let message = "'lora_name' needs to be provided to unload a LoRA adapter.";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "InvalidUserInput", message));
    };
    state.adapters.unload(&name)?;
    Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
}

pub(super) async fn list(State(state): State<Arc<AppState>>) -> Json<Value> {
    let data: Vec<Value> = state.adapters.list().iter().map(|status| card(&state, status)).collect();
    Json(json!({ "object": "list", "data": data }))
}

pub(super) async fn one(State(state): State<Arc<AppState>>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    status(&state, &name).map(Json)
}

pub(super) async fn load(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    require_admin(caller)?;
    let Load { name, path, replace, pinned } = read_json(&state, &headers, body).await?;
    blocking(&state, move |state| {
        state.adapters.load(&name, path.as_deref().unwrap_or(&name), replace.unwrap_or(false))?;
        if let Some(pinned) = pinned {
            state.adapters.pin(&name, pinned)?;
        }
        Ok((StatusCode::CREATED, Json(status(state, &name)?)))
    })
    .await
}

pub(super) async fn change(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    require_admin(caller)?;
    let Change { pinned } = read_json(&state, &headers, body).await?;
    blocking(&state, move |state| {
        state.adapters.pin(&name, pinned)?;
        status(state, &name).map(Json)
    })
    .await
}

pub(super) async fn unload(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    require_admin(caller)?;
    state.adapters.unload(&name)?;
    Ok(StatusCode::NO_CONTENT)
}
