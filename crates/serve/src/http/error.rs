//! Errors as OpenAI's clients know them: `{"error": {"message", "type", "param", "code"}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::adapters::AdapterError;
use crate::engine::{GrammarError, SubmitError};

/// What went wrong with a request, and whose fault it was.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) kind: &'static str,
    pub(super) message: String,
    pub(super) param: Option<String>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None }
    }

    /// A request that cannot be served as it is.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    pub(super) fn about(self, param: &str) -> Self {
        Self { param: Some(param.to_owned()), ..self }
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFoundError", message)
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    pub(super) fn timeout() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", "the request took longer than this server allows")
    }

    pub(super) fn json(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.status.as_u16(),
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::Full { .. } => Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded_error", message),
            SubmitError::Ending => Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message),
            SubmitError::Task { .. } => Self::invalid(message).about("model"),
            SubmitError::Long { .. } | SubmitError::Memory => Self::invalid(message).about("max_tokens"),
            SubmitError::Empty => Self::invalid(message).about("prompt"),
        }
    }
}

impl From<GrammarError> for ApiError {
    fn from(error: GrammarError) -> Self {
        Self::invalid(error.to_string()).about("response_format")
    }
}

impl From<AdapterError> for ApiError {
    fn from(error: AdapterError) -> Self {
        let message = error.to_string();
        let (status, kind) = match &error {
            AdapterError::Unknown { .. } | AdapterError::Missing { .. } => (StatusCode::NOT_FOUND, "NotFoundError"),
            AdapterError::Loaded { .. } | AdapterError::Name { .. } => (StatusCode::BAD_REQUEST, "InvalidUserInput"),
            AdapterError::Outside { .. } | AdapterError::NoFolder => (StatusCode::FORBIDDEN, "PermissionError"),
            AdapterError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "BadRequestError"),
            AdapterError::Implausible { .. } | AdapterError::NotFinite { .. } | AdapterError::Method(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "BadRequestError")
            }
            AdapterError::Generation { .. } | AdapterError::TooMany { .. } => (StatusCode::CONFLICT, "ConflictError"),
            AdapterError::Read { .. } => (StatusCode::SERVICE_UNAVAILABLE, "StorageError"),
        };
        Self::new(status, kind, message)
    }
}
