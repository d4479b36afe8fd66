//! `/v1/embeddings` and `/v1/classify`: texts that are read and not continued.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tunesmith_models::{ProblemType, Task};

use super::AppState;
use super::body::read_json;
use super::error::ApiError;
use crate::engine::Pooled;

/// Texts or tokens, one or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

/// How the numbers of an embedding are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    #[default]
    Float,
    Base64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EmbeddingBody {
    model: String,
    input: Input,
    encoding_format: Option<Encoding>,
    adapter_generation: Option<String>,
    /// Who asks on whose behalf; nothing is done with it.
    #[serde(rename = "user")]
    _user: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassifyBody {
    model: String,
    input: Input,
    adapter_generation: Option<String>,
}

/// The rows of outputs of each text, and how many tokens there were.
async fn run(
    state: &Arc<AppState>,
    model: &str,
    input: Input,
    generation: Option<String>,
) -> Result<(Vec<Vec<Vec<f32>>>, Vec<Vec<u32>>), ApiError> {
    let vocabulary = state.base().model().info().vocab_size;
    let tokenizer = &state.base().pretrained.tokenizer;
    let encode = |text: &String| tokenizer.encode(text, true).map_err(|error| ApiError::invalid(error.to_string()));
    let tokens: Vec<Vec<u32>> = match input {
        Input::Text(text) => vec![encode(&text)?],
        Input::Texts(texts) => texts.iter().map(encode).collect::<Result<_, _>>()?,
        Input::Tokens(ids) => vec![ids],
        Input::TokenLists(lists) => lists,
    };
    if tokens.is_empty() || tokens.len() > state.options.inputs {
        let message = format!("{} inputs are given, but 1 to {} are taken", tokens.len(), state.options.inputs);
        return Err(ApiError::invalid(message).about("input"));
    }
    if tokens.iter().flatten().any(|id| *id as usize >= vocabulary) {
        return Err(ApiError::invalid(format!("token ids must lie below {vocabulary}")).about("input"));
    }
    let adapter = state.adapter(model, generation).await?;
    let mut answers = Vec::new();
    for tokens in &tokens {
        let (answer, receiver) = oneshot::channel();
        state.engine.pool(Pooled { adapter: adapter.clone(), tokens: tokens.clone(), answer })?;
        answers.push(receiver);
    }
    let deadline = tokio::time::Instant::now() + state.options.request_timeout;
    let mut outputs = Vec::new();
    for answer in answers {
        let rows = tokio::time::timeout_at(deadline, answer).await.map_err(|_| ApiError::timeout())?;
        outputs.push(rows.map_err(|_| ApiError::internal("the engine failed on this input"))?);
    }
    Ok((outputs, tokens))
}

fn usage(tokens: &[Vec<u32>]) -> Value {
    let count: usize = tokens.iter().map(Vec::len).sum();
    json!({ "prompt_tokens": count, "total_tokens": count })
}

pub(super) async fn embed(
    State(state): State<Arc<AppState>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let body: EmbeddingBody = read_json(&state, &headers, body).await?;
    if !matches!(state.base().task(), Task::CausalLm | Task::FeatureExtraction) {
        return Err(state.engine.not_for("give embeddings").into());
    }
    let (outputs, tokens) = run(&state, &body.model, body.input, body.adapter_generation).await?;
    let data: Vec<Value> = outputs
        .into_iter()
        .enumerate()
        .map(|(index, rows)| {
            let vector = normalised(rows.into_iter().next().unwrap_or_default());
            let embedding = match body.encoding_format.unwrap_or_default() {
                Encoding::Float => json!(vector),
                Encoding::Base64 => {
                    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                    json!(BASE64_STANDARD.encode(bytes))
                }
            };
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        })
        .collect();
    Ok(Json(json!({ "object": "list", "data": data, "model": body.model, "usage": usage(&tokens) })))
}

/// The vector of length one in the same direction.
fn normalised(vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if length == 0.0 { vector } else { vector.into_iter().map(|value| (f64::from(value) / length) as f32).collect() }
}

pub(super) async fn classify(
    State(state): State<Arc<AppState>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let body: ClassifyBody = read_json(&state, &headers, body).await?;
    let head = &state.base().model().info().head;
    if !matches!(head.task, Task::SeqCls | Task::TokenCls) {
        return Err(state.engine.not_for("classify").into());
    }
    let (outputs, tokens) = run(&state, &body.model, body.input, body.adapter_generation).await?;
    let judge = |row: &Vec<f32>| {
        let probabilities = match head.problem() {
            ProblemType::Regression => row.clone(),
            ProblemType::MultiLabelClassification => row.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
            ProblemType::SingleLabelClassification => softmax(row),
        };
        let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0);
        json!({ "label": head.labels.get(best), "probs": probabilities, "num_classes": row.len() })
    };
    let data: Vec<Value> = outputs
        .iter()
        .zip(&tokens)
        .enumerate()
        .map(|(index, (rows, ids))| {
            if head.task == Task::SeqCls {
                let mut judged = rows.first().map(judge).unwrap_or_default();
                judged["index"] = json!(index);
                return judged;
            }
            let tokenizer = &state.base().pretrained.tokenizer;
            let judged = rows.iter().zip(ids).map(|(row, id)| {
                let mut judged = judge(row);
                judged["token"] = json!(tokenizer.decode(&[*id], false));
                judged
            });
            json!({ "index": index, "tokens": judged.collect::<Vec<_>>() })
        })
        .collect();
    Ok(Json(json!({ "object": "list", "data": data, "model": body.model, "usage": usage(&tokens) })))
}

fn softmax(row: &[f32]) -> Vec<f32> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = row.iter().map(|logit| (logit - max).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}
