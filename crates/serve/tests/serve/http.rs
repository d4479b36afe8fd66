//! The routes, without sockets.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;
use tunesmith_models::Task;
use tunesmith_serve::{AdapterLimits, App, Engine, EngineOptions, ServerOptions, app};
use tunesmith_tensor::Precision;

use crate::model::Files;

/// A server with an adapter of each of three methods.
pub(crate) struct Server {
    pub(crate) files: Files,
    pub(crate) app: App,
    pub(crate) base: Arc<tunesmith_serve::BaseModel>,
}

pub(crate) fn server(options: ServerOptions, engine: EngineOptions) -> Server {
    of(Files::new("llama", Precision::Bf16), options, engine)
}

pub(crate) fn of(files: Files, options: ServerOptions, engine: EngineOptions) -> Server {
    let base = files.base();
    let configs = [
        ("lora", json!({ "peft_type": "LORA", "r": 3 })),
        ("prompt", json!({ "peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5 })),
        ("team/houlsby", json!({ "peft_type": "HOULSBY", "reduction_factor": 4 })),
    ];
    for (number, (name, config)) in configs.iter().enumerate() {
        files.write(&base, name, config, number as u64);
    }
    let store = files.store(&base, AdapterLimits::default());
    let app = app(Arc::new(Engine::start(Arc::clone(&base), engine)), store, options);
    Server { files, app, base }
}

pub(crate) fn plain() -> Server {
    server(ServerOptions::default(), EngineOptions::default())
}

async fn send(router: &Router, request: Request<Body>) -> (StatusCode, String) {
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

async fn get(router: &Router, path: &str) -> (StatusCode, Value) {
    let (status, text) = send(router, Request::get(path).body(Body::empty()).unwrap()).await;
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

async fn post(router: &Router, path: &str, body: Value) -> (StatusCode, Value) {
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    let (status, text) = send(router, request.body(Body::from(body.to_string())).unwrap()).await;
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

fn message(body: &Value) -> &str {
    body["error"]["message"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn models_name_their_parent_method_and_generation() {
    let Server { app, files: _files, .. } = plain();
    let (status, models) = get(&app.router, "/v1/models").await;
    assert_eq!(status, StatusCode::OK);
    let ids: Vec<&str> = models["data"].as_array().unwrap().iter().filter_map(|card| card["id"].as_str()).collect();
    assert_eq!(ids, ["base", "lora", "prompt", "team/houlsby"]);
    assert_eq!(models["data"][1]["parent"], "base");
    assert_eq!(models["data"][1]["state"], "on_disk");
    let ask = json!({ "model": "lora", "prompt": "Hello", "max_tokens": 2 });
    assert_eq!(post(&app.router, "/v1/completions", ask).await.0, StatusCode::OK);
    let (_, card) = get(&app.router, "/v1/models/lora").await;
    assert_eq!((&card["state"], &card["type"], &card["rank"]), (&json!("loaded"), &json!("LORA"), &json!(3)));
    assert_eq!(card["generation"].as_str().unwrap().len(), 64);
    assert_eq!(get(&app.router, "/v1/models/team/houlsby").await.0, StatusCode::OK);
    assert_eq!(get(&app.router, "/v1/models/nobody").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn completions_answer_as_openai_does() {
    let Server { app, files: _files, .. } = plain();
    let ask = json!({ "model": "lora", "prompt": ["Hello", "World"], "max_tokens": 5, "temperature": 0, "n": 2,
        "logprobs": 2, "echo": false, "ignore_eos": true, "seed": 1, "user": "me" });
    let (status, body) = post(&app.router, "/v1/completions", ask.clone()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["object"], "text_completion");
    assert_eq!(body["usage"]["prompt_tokens"], 10);
    assert_eq!(body["usage"]["completion_tokens"], 20);
    let choices = body["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    assert_eq!(choices[0]["text"], choices[1]["text"], "greedy answers to one prompt are the same");
    assert_eq!(choices[3]["index"], 3);
    assert_eq!(choices[0]["finish_reason"], "length");
    let logprobs = &choices[0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 5);
    let best = logprobs["top_logprobs"][0].as_object().unwrap().values().filter_map(Value::as_f64).fold(-1e9, f64::max);
    assert_eq!(logprobs["token_logprobs"][0].as_f64().unwrap(), best, "greedy takes the likeliest");
    let mut again = ask;
    again["echo"] = json!(true);
    again["logprobs"] = Value::Null;
    let (_, echoed) = post(&app.router, "/v1/completions", again).await;
    let text = |body: &Value| body["choices"][2]["text"].as_str().unwrap().to_owned();
    assert_eq!(text(&echoed), format!("World{}", text(&body)));
}

#[tokio::test]
async fn a_stream_says_what_the_whole_answer_says() {
    let Server { app, files: _files, .. } = plain();
    for (path, ask) in [
        ("/v1/completions", json!({ "model": "prompt", "prompt": "Hello", "max_tokens": 12, "seed": 3 })),
        (
            "/v1/chat/completions",
            json!({ "model": "team/houlsby", "messages": [{ "role": "user", "content": "Hi" }],
            "max_tokens": 12, "seed": 3 }),
        ),
    ] {
        let (status, whole) = post(&app.router, path, ask.clone()).await;
        assert_eq!(status, StatusCode::OK, "{whole}");
        let is_chat = path.contains("chat");
        let place = if is_chat { "/choices/0/message/content" } else { "/choices/0/text" };
        let expected = whole.pointer(place).unwrap().as_str().unwrap();
        let mut ask = ask;
        ask["stream"] = json!(true);
        ask["stream_options"] = json!({ "include_usage": true });
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        let (status, text) = send(&app.router, request.body(Body::from(ask.to_string())).unwrap()).await;
        assert_eq!(status, StatusCode::OK);
        let events: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        assert_eq!(events.last(), Some(&"[DONE]"));
        let chunks: Vec<Value> =
            events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
        let place = if is_chat { "/choices/0/delta/content" } else { "/choices/0/text" };
        let pieces = chunks.iter().filter_map(|chunk| chunk.pointer(place).and_then(Value::as_str));
        assert_eq!(pieces.collect::<String>(), expected);
        let last = chunks.last().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"], whole["usage"]);
    }
}

#[tokio::test]
async fn parameters_do_what_they_say() {
    let Server { app, files: _files, .. } = plain();
    let base = json!({ "model": "base", "prompt": "Hello", "max_tokens": 20, "temperature": 0, "ignore_eos": true });
    let ask = async |more: Value| {
        let mut ask = base.clone();
        ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, body) = post(&app.router, "/v1/completions", ask).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        (body["choices"][0]["text"].as_str().unwrap().to_owned(), body["choices"][0]["finish_reason"].clone())
    };
    let (plain, _) = ask(json!({})).await;
    let middle = &plain[7..9];
    let (stopped, reason) = ask(json!({ "stop": middle })).await;
    assert_eq!(stopped, plain[..plain.find(middle).unwrap()]);
    assert_eq!(reason, "stop");
    let (biased, _) = ask(json!({ "logit_bias": { "36": 100 } })).await;
    assert_eq!(biased, "A".repeat(20), "token 36 is the letter A");
    let (ended, _) = ask(json!({ "stop_token_ids": [36], "logit_bias": { "36": 100 } })).await;
    assert_eq!(ended, "");
    let (later, _) = ask(json!({ "stop_token_ids": [36], "logit_bias": { "36": 100 }, "min_tokens": 4 })).await;
    assert_eq!(later.len(), 4);
    let penalised = ask(json!({ "frequency_penalty": 2.0, "presence_penalty": 2.0 })).await.0;
    let most = |text: &str| text.chars().map(|a| text.chars().filter(|b| *b == a).count()).max().unwrap();
    assert!(most(&penalised) < most(&plain), "{plain:?} {penalised:?}");
    let warm = json!({ "temperature": 1.0, "seed": 5 });
    assert_eq!(ask(warm.clone()).await, ask(warm.clone()).await, "a seed gives one text");
    let other = ask(json!({ "temperature": 1.0, "seed": 6 })).await;
    assert_ne!(ask(warm).await, other);
    assert_eq!(ask(json!({ "temperature": 1.0, "top_k": 1 })).await.0, plain);
    assert_eq!(ask(json!({ "temperature": 1.0, "min_p": 1.0 })).await.0, plain);
    assert_eq!(ask(json!({ "temperature": 1.0, "top_p": 1e-6 })).await.0, plain);
}

#[tokio::test]
async fn json_is_json_of_the_schema() {
    let Server { app, files: _files, .. } = plain();
    let schema = json!({ "type": "object", "properties": { "name": { "type": "string", "maxLength": 5 },
        "age": { "type": "integer", "minimum": 0, "maximum": 99 }, "kind": { "enum": ["a", "b"] } },
        "required": ["name", "age", "kind"], "additionalProperties": false });
    for (model, seed) in [("base", 1), ("lora", 2), ("prompt", 3)] {
        let ask = json!({ "model": model, "messages": [{ "role": "user", "content": [{ "type": "text", "text": "Hi" }] }],
            "max_tokens": 200, "seed": seed, "response_format": { "type": "json_schema",
            "json_schema": { "name": "person", "schema": schema, "strict": true } } });
        let (status, body) = post(&app.router, "/v1/chat/completions", ask).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!(body["choices"][0]["finish_reason"], "stop", "{body}");
        let text = body["choices"][0]["message"]["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(value["name"].is_string() && value["age"].as_u64().unwrap() < 100, "{text}");
        assert!(["a", "b"].contains(&value["kind"].as_str().unwrap()), "{text}");
    }
    let bad = json!({ "model": "base", "prompt": "x", "response_format": { "type": "json_schema",
        "json_schema": { "name": "bad", "schema": { "type": "nonsense" } } } });
    let (status, body) = post(&app.router, "/v1/completions", bad).await;
    assert_eq!((status, &body["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("response_format")), "{body}");
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said() {
    let Server { app, files: _files, .. } = plain();
    let base = json!({ "model": "base", "prompt": "Hello", "max_tokens": 4 });
    let cases = [
        (json!({ "model": "nobody" }), StatusCode::NOT_FOUND, "model"),
        (json!({ "model": "../lora" }), StatusCode::NOT_FOUND, "model"),
        (json!({ "temprature": 1 }), StatusCode::BAD_REQUEST, "temprature"),
        (json!({ "temperature": -1 }), StatusCode::BAD_REQUEST, "temperature"),
        (json!({ "top_p": 0 }), StatusCode::BAD_REQUEST, "top_p"),
        (json!({ "n": 0 }), StatusCode::BAD_REQUEST, "n"),
        (json!({ "n": 100_000 }), StatusCode::BAD_REQUEST, "n"),
        (json!({ "max_tokens": 0 }), StatusCode::BAD_REQUEST, "max_tokens"),
        (json!({ "max_tokens": 5000 }), StatusCode::BAD_REQUEST, "max_tokens"),
        (json!({ "prompt": [5, 96] }), StatusCode::BAD_REQUEST, "prompt"),
        (json!({ "logprobs": 99 }), StatusCode::BAD_REQUEST, "logprobs"),
        (json!({ "stop": [""] }), StatusCode::BAD_REQUEST, "stop"),
        (json!({ "logit_bias": { "x": 1 } }), StatusCode::BAD_REQUEST, "logit_bias"),
        (json!({ "adapter_generation": "00" }), StatusCode::BAD_REQUEST, "adapter_generation"),
    ];
    for (change, status, param) in cases {
        let mut ask = base.clone();
        ask.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let (found, body) = post(&app.router, "/v1/completions", ask).await;
        assert_eq!((found, &body["error"]["param"]), (status, &json!(param)), "{change}: {body}");
        assert!(!message(&body).is_empty());
        assert_eq!(body["error"]["code"], status.as_u16());
    }
    let raw = async |body: Vec<u8>, kind: &str| {
        let request = Request::post("/v1/completions").header(header::CONTENT_TYPE, kind);
        send(&app.router, request.body(Body::from(body)).unwrap()).await.0
    };
    assert_eq!(raw(b"{\"model\": ".to_vec(), "application/json").await, StatusCode::BAD_REQUEST);
    assert_eq!(raw(b"{\"model\": \"\xff\xfe\"}".to_vec(), "application/json").await, StatusCode::BAD_REQUEST);
    assert_eq!(raw(vec![b'['; 100_000], "application/json").await, StatusCode::BAD_REQUEST);
    assert_eq!(raw(vec![b' '; 5 << 20], "application/json").await, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(raw(b"{}".to_vec(), "text/plain").await, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(get(&app.router, "/v1/nothing").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get(&app.router, "/v1/completions").await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(
        post(&app.router, "/v1/classify", json!({ "model": "base", "input": "x" })).await.0,
        StatusCode::BAD_REQUEST
    );
}

#[tokio::test]
async fn keys_open_what_they_are_for() {
    let options = ServerOptions {
        keys: vec!["user-key".into()],
        admin_keys: vec!["admin-key".into()],
        ..ServerOptions::default()
    };
    let Server { app, files: _files, .. } = server(options, EngineOptions::default());
    let with = async |method: &str, path: &str, key: Option<&str>, body: Value| {
        let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
        let request =
            key.iter().fold(request, |request, key| request.header(header::AUTHORIZATION, format!("Bearer {key}")));
        send(&app.router, request.body(Body::from(body.to_string())).unwrap()).await.0
    };
    let routes = [
        ("GET", "/"),
        ("GET", "/metrics"),
        ("GET", "/v1/stats"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/base"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/classify"),
        ("POST", "/v1/tokenize"),
        ("POST", "/v1/detokenize"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("GET", "/v1/adapters"),
        ("POST", "/v1/adapters"),
        ("GET", "/v1/adapters/lora"),
        ("PATCH", "/v1/adapters/lora"),
        ("DELETE", "/v1/adapters/lora"),
    ];
    for (method, path) in routes {
        for key in [None, Some("wrong-key"), Some("")] {
            assert_eq!(with(method, path, key, json!({})).await, StatusCode::UNAUTHORIZED, "{method} {path} {key:?}");
        }
    }
    assert_eq!(with("GET", "/health", None, json!({})).await, StatusCode::OK);
    assert_eq!(with("GET", "/v1/models", Some("user-key"), json!({})).await, StatusCode::OK);
    for (method, path) in routes.iter().filter(|(method, path)| path.contains("adapter") && *method != "GET") {
        assert_eq!(with(method, path, Some("user-key"), json!({})).await, StatusCode::FORBIDDEN, "{method} {path}");
    }
    let pin = with("PATCH", "/v1/adapters/lora", Some("admin-key"), json!({ "pinned": true })).await;
    assert_eq!(pin, StatusCode::OK);
}

#[tokio::test]
async fn adapters_are_loaded_replaced_and_unloaded() {
    let Server { files, app, base } = plain();
    let ask = async |model: &str| {
        let ask = json!({ "model": model, "prompt": "Hello", "max_tokens": 8, "temperature": 0, "ignore_eos": true });
        let (status, body) = post(&app.router, "/v1/completions", ask).await;
        (status, body["choices"][0]["text"].clone(), body["adapter_generation"].clone())
    };
    let lora = |seed| files.write(&base, "lora", &json!({ "peft_type": "LORA", "r": 3 }), seed);
    let first = ask("lora").await;
    lora(77);
    assert_eq!(ask("lora").await, first, "files that change are taken over when that is asked for");
    let load = |name: &str, path: &str, more: Value| {
        let mut body = json!({ "lora_name": name, "lora_path": path });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let (status, body) = post(&app.router, "/v1/load_lora_adapter", load("lora", "lora", json!({}))).await;
    assert_eq!((status, &body["error"]["type"]), (StatusCode::BAD_REQUEST, &json!("InvalidUserInput")), "{body}");
    let replace = load("lora", "lora", json!({ "load_inplace": true }));
    let (status, body) = post(&app.router, "/v1/load_lora_adapter", replace).await;
    assert_eq!((status, body), (StatusCode::OK, json!("Success: LoRA adapter 'lora' added successfully.")));
    let second = ask("lora").await;
    assert_ne!((&second.1, &second.2), (&first.1, &first.2));
    let pinned = json!({ "model": "lora", "prompt": "x", "adapter_generation": first.2 });
    assert_eq!(post(&app.router, "/v1/completions", pinned).await.0, StatusCode::CONFLICT);
    let (status, body) =
        post(&app.router, "/v1/adapters", json!({ "name": "copy", "path": "lora", "pinned": true })).await;
    assert_eq!((status, &body["pinned"]), (StatusCode::CREATED, &json!(true)), "{body}");
    assert_eq!(ask("copy").await, second, "the same files are the same generation");
    let (status, _) = post(&app.router, "/v1/unload_lora_adapter", json!({ "lora_name": "copy" })).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(ask("copy").await.0, StatusCode::NOT_FOUND);
    assert_eq!(
        post(&app.router, "/v1/unload_lora_adapter", json!({ "lora_name": "copy" })).await.0,
        StatusCode::NOT_FOUND
    );
    for (path, status) in
        [("../model", StatusCode::FORBIDDEN), ("/etc", StatusCode::FORBIDDEN), ("nobody", StatusCode::NOT_FOUND)]
    {
        let (found, body) = post(&app.router, "/v1/load_lora_adapter", load("new", path, json!({}))).await;
        assert_eq!(found, status, "{path}: {body}");
    }
    let bad_names = ["", "base", "a b", "../x", "a//b"];
    for name in bad_names {
        let (found, body) = post(&app.router, "/v1/load_lora_adapter", load(name, "lora", json!({}))).await;
        assert_eq!(found, StatusCode::BAD_REQUEST, "{name:?}: {body}");
    }
}

#[tokio::test]
async fn broken_adapter_files_hurt_nobody() {
    let Server { files, app, .. } = plain();
    let weights = files.adapters().join("lora/adapter_model.safetensors");
    let config = files.adapters().join("lora/adapter_config.json");
    let (good, good_config) = (std::fs::read(&weights).unwrap(), std::fs::read(&config).unwrap());
    let load = async || {
        let body = json!({ "name": "lora", "replace": true });
        post(&app.router, "/v1/adapters", body).await
    };
    assert_eq!(load().await.0, StatusCode::CREATED);
    let ask = json!({ "model": "lora", "prompt": "Hello", "max_tokens": 8, "temperature": 0 });
    let (_, before) = post(&app.router, "/v1/completions", ask.clone()).await;
    for cut in [0, 1, 7, 8, 9, 100, good.len() / 2, good.len() - 1] {
        std::fs::write(&weights, &good[..cut]).unwrap();
        let (status, body) = load().await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "cut to {cut}: {body}");
    }
    let mut nan = good.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, &nan).unwrap();
    let (status, body) = load().await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(message(&body).contains("not finite"), "{body}");
    let mut huge = good.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&weights, &huge).unwrap();
    assert_eq!(load().await.0, StatusCode::UNPROCESSABLE_ENTITY, "a header of any length");
    std::fs::write(&weights, &good).unwrap();
    for text in ["", "{", "[]", "{\"peft_type\": \"NOTHING\"}", "{\"peft_type\": \"LORA\", \"r\": 1000000000}"] {
        std::fs::write(&config, text).unwrap();
        let (status, body) = load().await;
        assert!(status.is_client_error(), "{text}: {status} {body}");
    }
    std::fs::remove_file(&config).unwrap();
    assert_eq!(load().await.0, StatusCode::NOT_FOUND);
    let (status, after) = post(&app.router, "/v1/completions", ask).await;
    assert_eq!((status, &after["choices"]), (StatusCode::OK, &before["choices"]), "what was loaded is served on");
    std::fs::write(&config, good_config).unwrap();
    assert_eq!(load().await.0, StatusCode::CREATED);
}

#[tokio::test]
async fn embeddings_classes_and_tokens() {
    let Server { app, files: _files, .. } = plain();
    let ask = json!({ "model": "lora", "input": ["Hello", "World"] });
    let (status, body) = post(&app.router, "/v1/embeddings", ask).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let vector: Vec<f64> = serde_json::from_value(body["data"][1]["embedding"].clone()).unwrap();
    assert_eq!(vector.len(), 32);
    assert!((vector.iter().map(|value| value * value).sum::<f64>() - 1.0).abs() < 1e-5);
    let ask = json!({ "model": "lora", "input": "World", "encoding_format": "base64" });
    let (_, coded) = post(&app.router, "/v1/embeddings", ask).await;
    use base64::Engine as _;
    let bytes = base64::prelude::BASE64_STANDARD.decode(coded["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let decoded: Vec<f64> =
        bytes.chunks(4).map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap()))).collect();
    assert!(decoded.iter().zip(&vector).all(|(a, b)| (a - b).abs() < 1e-6));
    let (_, tokens) = post(&app.router, "/v1/tokenize", json!({ "prompt": "AB" })).await;
    assert_eq!(tokens["tokens"], json!([36, 37]));
    let (_, text) = post(&app.router, "/v1/detokenize", json!({ "tokens": [36, 37] })).await;
    assert_eq!(text["prompt"], "AB");

    let files = Files::for_task("llama", Precision::Bf16, Some(Task::SeqCls));
    let Server { app, files: _files, .. } = of(files, ServerOptions::default(), EngineOptions::default());
    let (status, body) = post(&app.router, "/v1/classify", json!({ "model": "lora", "input": ["Hello", "Hi"] })).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert!(["no", "yes"].contains(&body["data"][0]["label"].as_str().unwrap()), "{body}");
    let probabilities: Vec<f64> = serde_json::from_value(body["data"][1]["probs"].clone()).unwrap();
    assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-5);
    assert_eq!(
        post(&app.router, "/v1/completions", json!({ "model": "base", "prompt": "x" })).await.0,
        StatusCode::BAD_REQUEST
    );
}

#[tokio::test]
async fn metrics_count_what_happens() {
    let Server { app, files: _files, .. } = plain();
    for model in ["lora", "lora", "base"] {
        let ask = json!({ "model": model, "prompt": "Hello", "max_tokens": 3, "ignore_eos": true });
        assert_eq!(post(&app.router, "/v1/completions", ask).await.0, StatusCode::OK);
    }
    let (_, metrics) = get(&app.router, "/metrics").await;
    let text = metrics.as_str().unwrap();
    for line in [
        "tunesmith_http_requests_total{route=\"/v1/completions\",status=\"200\"} 3",
        "tunesmith_adapter_requests_total{adapter=\"lora\"} 2",
        "tunesmith_adapter_generated_tokens_total{adapter=\"lora\"} 6",
        "tunesmith_generated_tokens_total 9",
        "tunesmith_adapters_resident 1",
        "tunesmith_time_to_first_token_seconds_count 3",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    let (_, page) = get(&app.router, "/").await;
    let page = page.as_str().unwrap();
    assert!(page.contains("Playground") && !page.contains("http://") && !page.contains("https://"));
}

#[tokio::test]
async fn a_full_queue_refuses_and_a_draining_server_does_too() {
    let engine = EngineOptions { running: 1, waiting: 2, ..EngineOptions::default() };
    let Server { app, files: _files, .. } = server(ServerOptions::default(), engine);
    let ask = json!({ "model": "base", "prompt": "Hello", "max_tokens": 400, "ignore_eos": true });
    let mut running = Vec::new();
    for _ in 0..12 {
        let (router, ask) = (app.router.clone(), ask.clone());
        running.push(tokio::spawn(async move { post(&router, "/v1/completions", ask).await.0 }));
    }
    let mut found = Vec::new();
    for one in running {
        found.push(one.await.unwrap());
    }
    assert!(found.contains(&StatusCode::TOO_MANY_REQUESTS), "{found:?}");
    assert!(found.contains(&StatusCode::OK), "{found:?}");
    assert!(found.iter().all(|status| [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS].contains(status)), "{found:?}");
    assert_eq!(get(&app.router, "/health").await.0, StatusCode::OK);
    let (router, last) = (app.router.clone(), ask.clone());
    let last = tokio::spawn(async move { post(&router, "/v1/completions", last).await.0 });
    tokio::time::sleep(Duration::from_millis(30)).await;
    app.drain();
    assert_eq!(get(&app.router, "/health").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(post(&app.router, "/v1/completions", ask).await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(last.await.unwrap(), StatusCode::OK, "what had begun is finished");
}
