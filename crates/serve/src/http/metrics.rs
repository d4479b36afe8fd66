//! `/metrics` for Prometheus, and `/v1/stats` for the page.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use super::AppState;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    route: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Named {
    adapter: String,
}

/// Adapters that get a label of their own; the rest share one.
const MOST_LABELS: usize = 200;

/// What is measured.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Route, Counter>,
    adapters: Family<Named, Counter>,
    adapter_tokens: Family<Named, Counter>,
    labels: Mutex<BTreeSet<String>>,
    queue: Histogram,
    first_token: Histogram,
    per_token: Histogram,
    total: Histogram,
    counters: [Counter; 9],
    gauges: [Gauge; 7],
}

const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
const TOKEN_SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0];

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("tunesmith");
        let this = Self {
            requests: Family::default(),
            adapters: Family::default(),
            adapter_tokens: Family::default(),
            labels: Mutex::default(),
            queue: Histogram::new(SECONDS),
            first_token: Histogram::new(SECONDS),
            per_token: Histogram::new(TOKEN_SECONDS),
            total: Histogram::new(SECONDS),
            counters: Default::default(),
            gauges: Default::default(),
            registry: Registry::default(),
        };
        registry.register("http_requests", "Requests by route and status", this.requests.clone());
        registry.register("adapter_requests", "Requests by adapter", this.adapters.clone());
        registry.register("adapter_generated_tokens", "Tokens generated, by adapter", this.adapter_tokens.clone());
        registry.register("queue_time_seconds", "From a request to its first pass", this.queue.clone());
        registry.register("time_to_first_token_seconds", "From a request to its first token", this.first_token.clone());
        registry.register("time_per_output_token_seconds", "Between tokens, a request's mean", this.per_token.clone());
        registry.register("request_seconds", "From a request to its last token", this.total.clone());
        let counters = [
            ("prompt_tokens", "Tokens of prompts"),
            ("generated_tokens", "Tokens generated"),
            ("prefix_tokens", "Prompt tokens whose keys and values were there"),
            ("passes", "Passes of the model"),
            ("failed_passes", "Passes that failed"),
            ("cancelled_requests", "Requests whose client went away"),
            ("adapter_loads", "Adapters loaded"),
            ("adapter_load_failures", "Adapters that could not be loaded"),
            ("adapter_evictions", "Adapters that left memory for others"),
        ];
        for ((name, help), counter) in counters.into_iter().zip(&this.counters) {
            registry.register(name, help, counter.clone());
        }
        let gauges = [
            ("requests_waiting", "Requests that have not begun"),
            ("sequences_running", "Sequences being generated"),
            ("cache_pages", "Pages of keys and values in use"),
            ("cache_page_limit", "Pages of keys and values at the most"),
            ("adapters_resident", "Adapters in memory"),
            ("adapter_resident_bytes", "Bytes of the adapters in memory"),
            ("adapters_known", "Names of adapters"),
        ];
        for ((name, help), gauge) in gauges.into_iter().zip(&this.gauges) {
            registry.register(name, help, gauge.clone());
        }
        Self { registry, ..this }
    }

    pub(super) fn count_request(&self, route: &str, status: u16) {
        self.requests.get_or_create(&Route { route: route.to_owned(), status }).inc();
    }

    pub(super) fn count_adapter(&self, name: &str) {
        self.adapters.get_or_create(&self.label(name)).inc();
    }

    /// A request has been answered.
    pub(super) fn observe(&self, model: &str, queue: Duration, first: Duration, total: Duration, tokens: usize) {
        self.queue.observe(queue.as_secs_f64());
        self.first_token.observe(first.as_secs_f64());
        self.total.observe(total.as_secs_f64());
        if tokens > 1 {
            self.per_token.observe(total.saturating_sub(first).as_secs_f64() / (tokens - 1) as f64);
        }
        self.adapter_tokens.get_or_create(&self.label(model)).inc_by(tokens as u64);
    }

    fn label(&self, name: &str) -> Named {
        let mut labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        let has_own = labels.contains(name) || labels.len() < MOST_LABELS;
        if has_own {
            labels.insert(name.to_owned());
        }
        Named { adapter: if has_own { name.to_owned() } else { "others".to_owned() } }
    }

    /// Takes over the counts that others keep.
    fn refresh(&self, state: &AppState) {
        let (engine, store) = (state.engine.snapshot(), state.adapters.totals());
        let counts = [
            engine.prompt_tokens,
            engine.new_tokens,
            engine.prefix_tokens,
            engine.passes,
            engine.failures,
            engine.cancelled,
            store.loads,
            store.failures,
            store.evictions,
        ];
        for (counter, count) in self.counters.iter().zip(counts) {
            counter.inner().store(count, Ordering::Relaxed);
        }
        let levels = [
            engine.waiting,
            engine.running,
            engine.pages,
            engine.page_limit,
            store.resident,
            store.resident_bytes,
            store.names,
        ];
        for (gauge, level) in self.gauges.iter().zip(levels) {
            gauge.set(level as i64);
        }
    }
}

pub(super) async fn metrics(State(state): State<Arc<AppState>>) -> Response {
    state.metrics.refresh(&state);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, &state.metrics.registry);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// The numbers that the page draws.
pub(super) async fn stats(State(state): State<Arc<AppState>>) -> Json<Value> {
    let (engine, store) = (state.engine.snapshot(), state.adapters.totals());
    Json(json!({
        "uptime_seconds": state.started.elapsed().as_secs_f64(),
        "waiting": engine.waiting, "running": engine.running, "passes": engine.passes, "rows": engine.rows,
        "prompt_tokens": engine.prompt_tokens, "generated_tokens": engine.new_tokens,
        "prefix_tokens": engine.prefix_tokens, "cache_pages": engine.pages, "cache_page_limit": engine.page_limit,
        "adapters_resident": store.resident, "adapter_resident_bytes": store.resident_bytes,
        "adapters_known": store.names,
    }))
}
