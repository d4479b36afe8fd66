//! The HTTP server: OpenAI's routes, those of adapters, and what operators need.

mod admin;
mod body;
mod completions;
mod connections;
mod error;
mod features;
mod keys;
mod metrics;
mod models;
mod page;
mod parameters;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;

pub use connections::{Connections, serve};

use crate::adapters::{Adapters, Resident};
use crate::base::BaseModel;
use crate::engine::{Engine, Grammars};
use error::ApiError;
use keys::Keys;
use metrics::Metrics;

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Keys of those who may ask. Without any key, of either kind, everybody may do everything.
    pub keys: Vec<String>,
    /// Keys of those who may also load and unload adapters.
    pub admin_keys: Vec<String>,
    /// Requests of a key at one time; 0 is any number.
    pub concurrent_per_key: usize,
    /// Requests of a key a minute; 0 is any number.
    pub per_minute_per_key: usize,
    /// Bytes of a body at the most.
    pub body_bytes: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// Answers to one prompt, or prompts of one request, at the most.
    pub choices: usize,
    /// Texts of one request for features or classes at the most.
    pub inputs: usize,
    /// New tokens of an answer where the request does not say how many.
    pub default_max_tokens: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            admin_keys: Vec::new(),
            concurrent_per_key: 0,
            per_minute_per_key: 0,
            body_bytes: 4 << 20,
            body_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(600),
            choices: 64,
            inputs: 512,
            default_max_tokens: 1024,
        }
    }
}

/// What the routes share.
pub(crate) struct AppState {
    engine: Arc<Engine>,
    adapters: Arc<Adapters>,
    options: ServerOptions,
    keys: Keys,
    grammars: Grammars,
    metrics: Metrics,
    is_draining: AtomicBool,
    requests: AtomicU64,
    started: Instant,
}

/// A server's routes, and the switch that makes it refuse new work.
#[derive(Clone)]
pub struct App {
    /// The routes.
    pub router: Router,
    state: Arc<AppState>,
}

impl App {
    /// From now on health checks fail and new requests are refused; what runs goes on.
    pub fn drain(&self) {
        self.state.is_draining.store(true, Ordering::Relaxed);
        self.state.engine.close();
    }

    /// Ends what still runs.
    pub fn abort(&self) {
        self.state.engine.abort();
    }
}

/// The server over an engine and its adapters.
pub fn app(engine: Arc<Engine>, adapters: Arc<Adapters>, options: ServerOptions) -> App {
    let Options { keys, admin_keys, concurrent_per_key, per_minute_per_key, .. } = &options;
    let keys = Keys::new(keys, admin_keys, *concurrent_per_key, *per_minute_per_key);
    let state = Arc::new(AppState {
        engine,
        adapters,
        keys,
        options,
        grammars: Grammars::default(),
        metrics: Metrics::new(),
        is_draining: AtomicBool::new(false),
        requests: AtomicU64::new(0),
        started: Instant::now(),
    });
    let guarded = Router::new()
        .route("/", get(page::page))
        .route("/metrics", get(metrics::metrics))
        .route("/v1/stats", get(metrics::stats))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::one))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/chat/completions", post(completions::chat))
        .route("/v1/embeddings", post(features::embed))
        .route("/v1/classify", post(features::classify))
        .route("/v1/tokenize", post(models::tokenize))
        .route("/v1/detokenize", post(models::detokenize))
        .route("/v1/load_lora_adapter", post(admin::load_lora))
        .route("/v1/unload_lora_adapter", post(admin::unload_lora))
        .route("/v1/adapters", get(admin::list).post(admin::load))
        .route("/v1/adapters/{*name}", get(admin::one).patch(admin::change).delete(admin::unload))
        .layer(middleware::from_fn_with_state(Arc::clone(&state), keys::check));
    let router = Router::new()
        .route("/health", get(health))
        .merge(guarded)
        .fallback(|| async { ApiError::not_found("there is no such route") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", "this route has another method")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&state), observe))
        .with_state(Arc::clone(&state));
    App { router, state }
}

type Options = ServerOptions;

async fn health(State(state): State<Arc<AppState>>) -> Response {
    if state.is_draining.load(Ordering::Relaxed) || !state.engine.is_open() {
        return (StatusCode::SERVICE_UNAVAILABLE, axum::Json(json!({ "status": "draining" }))).into_response();
    }
    axum::Json(json!({ "status": "ok" })).into_response()
}

/// The number of a request, which its answer and the log say.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) String);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Numbers, counts and logs every request; never what it says.
async fn observe(State(state): State<Arc<AppState>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let given = request.headers().get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let is_plain = |id: &&str| !id.is_empty() && id.len() <= 64 && id.chars().all(|c| c.is_ascii_graphic());
    let id = given.filter(is_plain).map_or_else(|| state.new_id("req"), str::to_owned);
    request.extensions_mut().insert(RequestId(id.clone()));
    let method = request.method().clone();
    let route = request.extensions().get::<axum::extract::MatchedPath>();
    let route = route.map_or_else(|| "other".to_owned(), |route| route.as_str().to_owned());
    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    state.metrics.count_request(&route, status);
    let milliseconds = started.elapsed().as_millis() as u64;
    tracing::info!(request_id = id, %method, route, status, milliseconds, "request");
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

impl AppState {
    fn base(&self) -> &Arc<BaseModel> {
        self.engine.base()
    }

    /// An id that this server gives once.
    fn new_id(&self, kind: &str) -> String {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        format!("{kind}-{:x}-{number:x}", self.base().created)
    }

    /// The adapter that a request's `model` means; none for the base.
    async fn adapter(
        self: &Arc<Self>,
        model: &str,
        generation: Option<String>,
    ) -> Result<Option<Arc<Resident>>, ApiError> {
        if model == self.base().name {
            return match generation {
                None => Ok(None),
                Some(_) => Err(ApiError::invalid("the base model has no generations").about("adapter_generation")),
            };
        }
        if !self.adapters.knows(model) {
            return Err(ApiError::not_found(format!("The model '{model}' does not exist")).about("model"));
        }
        let (state, name) = (Arc::clone(self), model.to_owned());
        let found = tokio::task::spawn_blocking(move || {
            let found = state.adapters.get(&name, generation.as_deref());
            state.adapters.count(&name);
            state.metrics.count_adapter(&name);
            found
        });
        let found = found.await.map_err(|_| ApiError::internal("loading the adapter failed"))?;
        Ok(Some(found.map_err(|error| ApiError::from(error).about("model"))?))
    }
}
