//! Reading requests: JSON of a limited size, within a limited time, without fields that nobody knows.

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;

use super::AppState;
use super::error::ApiError;

/// The value in a request's body.
pub(super) async fn read_json<T: DeserializeOwned>(
    state: &AppState,
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        let message = "the body's Content-Type must be application/json";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message));
    }
    let limit = state.options.body_bytes;
    let too_large = || {
        let message = format!("the body is larger than {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let bytes = match tokio::time::timeout(state.options.body_timeout, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => {
            let is_long = std::error::Error::source(&error).is_some_and(|source| source.to_string().contains("limit"));
            return Err(if is_long { too_large() } else { ApiError::invalid("the body ended too early") });
        }
        Err(_) => {
            let message = "the body did not arrive in time";
            return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout_error", message));
        }
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        let message = error.to_string();
        // serde names the field in backticks.
        let param = message.contains("field `").then(|| message.split('`').nth(1).map(str::to_owned)).flatten();
        ApiError { param, ..ApiError::invalid(format!("the body cannot be used: {message}")) }
    })
}
