//! Clients that misbehave, over real connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tunesmith_serve::{Connections, EngineOptions, ServerOptions, serve};

use crate::http::{Server, server};

/// A server on a port of its own.
struct Listening {
    server: Server,
    address: String,
    end: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn listen(options: ServerOptions, engine: EngineOptions, limits: Connections) -> Listening {
    let server = tokio::task::spawn_blocking(move || server(options, engine)).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (end, ended) = oneshot::channel();
    let app = server.app.clone();
    let task = tokio::spawn(async move {
        serve(listener, app, limits, async {
            let _ = ended.await;
        })
        .await
    });
    Listening { server, address, end, task }
}

fn head(path: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
}

/// A request over a connection of its own: its status and the rest.
async fn ask(address: &str, path: &str, body: &Value) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = body.to_string();
    stream.write_all((head(path, body.len()) + &body).as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let text = String::from_utf8_lossy(&answer).into_owned();
    (text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0), text)
}

fn short(model: &str) -> Value {
    json!({ "model": model, "prompt": "Hello", "max_tokens": 6, "temperature": 0, "ignore_eos": true })
}

fn answer(text: &str) -> Value {
    let body: Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap_or_default()).unwrap_or_default();
    body["choices"].clone()
}

/// Kilobytes that this process holds in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn quick() -> Connections {
    Connections {
        head_timeout: Duration::from_millis(600),
        write_timeout: Duration::from_millis(600),
        ..Connections::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_hang_go_away_or_drip_hurt_nobody() {
    let options = ServerOptions { body_timeout: Duration::from_millis(600), ..ServerOptions::default() };
    let Listening { address, end, task, server: _server } = listen(options, EngineOptions::default(), quick()).await;
    let (status, expected) = ask(&address, "/v1/completions", &short("lora")).await;
    assert_eq!(status, 200);
    let expected = answer(&expected);
    let mut bad = Vec::new();
    for number in 0..60 {
        let address = address.clone();
        bad.push(tokio::spawn(async move {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            let long =
                json!({ "model": "lora", "prompt": "Hello", "max_tokens": 900, "stream": true, "ignore_eos": true });
            let body = long.to_string();
            match number % 6 {
                // Says nothing.
                0 => {}
                // Half a head, byte by byte.
                1 => {
                    for byte in head("/v1/completions", 10).bytes().take(8) {
                        let _ = stream.write_all(&[byte]).await;
                        tokio::time::sleep(Duration::from_millis(150)).await;
                    }
                }
                // A body that never comes.
                2 => stream.write_all(head("/v1/completions", 1000).as_bytes()).await.unwrap(),
                // Goes away while it is answered.
                3 => {
                    stream.write_all((head("/v1/completions", body.len()) + &body).as_bytes()).await.unwrap();
                    let mut some = [0; 200];
                    let _ = stream.read(&mut some).await;
                    return;
                }
                // Never reads.
                4 => stream.write_all((head("/v1/completions", body.len()) + &body).as_bytes()).await.unwrap(),
                // Is no client at all.
                _ => {
                    let _ = stream.write_all(&[0xff; 5000]).await;
                }
            }
            // The server ends it, or forgets about it.
            let _ = tokio::time::timeout(Duration::from_secs(3), async {
                let mut some = [0; 16];
                tokio::time::sleep(Duration::from_secs(2)).await;
                let _ = stream.read(&mut some).await;
            })
            .await;
        }));
    }
    for model in ["lora", "prompt", "base", "team/houlsby"].into_iter().cycle().take(40) {
        let (status, text) = ask(&address, "/v1/completions", &short(model)).await;
        assert_eq!(status, 200, "{text}");
        if model == "lora" {
            assert_eq!(answer(&text), expected);
        }
    }
    for one in bad {
        one.await.unwrap();
    }
    end.send(()).unwrap();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replacing_and_deleting_files_under_load_fails_no_request() {
    let Listening { server, address, end, task } =
        listen(ServerOptions::default(), EngineOptions::default(), Connections::default()).await;
    let config = json!({ "peft_type": "LORA", "r": 3 });
    let Server { files, base, .. } = &server;
    files.write(base, "first", &config, 41);
    files.write(base, "second", &config, 42);
    let (status, text) = ask(&address, "/v1/adapters", &json!({ "name": "hot", "path": "first" })).await;
    assert_eq!(status, 201, "{text}");
    let expected: Vec<Value> = {
        let mut expected = Vec::new();
        for path in ["first", "second"] {
            let load = json!({ "lora_name": "hot", "lora_path": path, "load_inplace": true });
            assert_eq!(ask(&address, "/v1/load_lora_adapter", &load).await.0, 200);
            expected.push(answer(&ask(&address, "/v1/completions", &short("hot")).await.1));
        }
        expected
    };
    assert_ne!(expected[0], expected[1]);
    let count = if std::env::var_os("TUNESMITH_SLOW_TESTS").is_some() { 250 } else { 25 };
    let expected = Arc::new(expected);
    let clients = (0..4).map(|_| {
        let (address, expected) = (address.clone(), Arc::clone(&expected));
        tokio::spawn(async move {
            for _ in 0..count {
                let (status, text) = ask(&address, "/v1/completions", &short("hot")).await;
                assert_eq!(status, 200, "{text}");
                assert!(expected.contains(&answer(&text)), "an answer of neither generation: {text}");
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    let mut replaced = 0;
    while clients.iter().any(|client| !client.is_finished()) {
        let path = ["first", "second"][replaced % 2];
        let load = json!({ "lora_name": "hot", "lora_path": path, "load_inplace": true });
        let (status, text) = ask(&address, "/v1/load_lora_adapter", &load).await;
        assert_eq!(status, 200, "{text}");
        replaced += 1;
        if replaced == 8 {
            // What is in memory does not need its files.
            std::fs::remove_dir_all(files.adapters().join("first")).unwrap();
            break;
        }
    }
    for client in clients {
        client.await.unwrap();
    }
    assert!(replaced > 3);
    end.send(()).unwrap();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_told_to_end_finishes_what_it_began() {
    let limits = Connections { drain: Duration::from_secs(20), ..Connections::default() };
    let Listening { address, end, task, server: _server } =
        listen(ServerOptions::default(), EngineOptions::default(), limits).await;
    let long = json!({ "model": "prompt", "prompt": "Hello", "max_tokens": 300, "ignore_eos": true });
    let running: Vec<_> = (0..6)
        .map(|_| {
            let (address, long) = (address.clone(), long.clone());
            tokio::spawn(async move { ask(&address, "/v1/completions", &long).await.0 })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(150)).await;
    end.send(()).unwrap();
    for one in running {
        assert_eq!(one.await.unwrap(), 200);
    }
    task.await.unwrap().unwrap();
    assert!(TcpStream::connect(&address).await.is_err(), "nobody listens any more");

    let limits = Connections { drain: Duration::from_millis(100), ..Connections::default() };
    let engine = EngineOptions { running: 1, ..EngineOptions::default() };
    let Listening { address, end, task, server: _server } = listen(ServerOptions::default(), engine, limits).await;
    for _ in 0..8 {
        let (address, long) = (address.clone(), long.clone());
        tokio::spawn(async move {
            let _ = TcpStream::connect(&address)
                .await
                .unwrap()
                .write_all((head("/v1/completions", long.to_string().len()) + &long.to_string()).as_bytes())
                .await;
            tokio::time::sleep(Duration::from_secs(5)).await;
        });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let started = Instant::now();
    end.send(()).unwrap();
    task.await.unwrap().unwrap();
    assert!(started.elapsed() < Duration::from_secs(3), "a limit is a limit");
}

/// Connections of the test; 10,000 with TUNESMITH_SLOW_TESTS, where the system lets a process have them.
fn connections() -> usize {
    if std::env::var_os("TUNESMITH_SLOW_TESTS").is_some() { 10_000 } else { 400 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_and_no_leak() {
    let limits =
        Connections { most: connections() + 100, head_timeout: Duration::from_secs(60), ..Connections::default() };
    let Listening { address, end, task, server: _server } =
        listen(ServerOptions::default(), EngineOptions::default(), limits).await;
    let (_, first) = ask(&address, "/v1/completions", &short("lora")).await;
    let mut idle = Vec::new();
    for _ in 0..connections() {
        idle.push(TcpStream::connect(&address).await.unwrap());
    }
    let (status, text) = ask(&address, "/v1/completions", &short("lora")).await;
    assert_eq!((status, answer(&text)), (200, answer(&first)));
    drop(idle);
    let rounds = |count: usize| {
        let address = address.clone();
        async move {
            for number in 0..count {
                let model = ["lora", "prompt", "base"][number % 3];
                assert_eq!(ask(&address, "/v1/completions", &short(model)).await.0, 200);
            }
        }
    };
    rounds(60).await;
    let before = resident();
    rounds(200).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < 20_000, "{grown} kB more after 200 requests");
    end.send(()).unwrap();
    task.await.unwrap().unwrap();
}
