//! Clients that others wrote, in Python environments of their own: the official `openai` package, and a browser on the page.
//! TUNESMITH_PYTHON_CLIENTS names the folder that the environments are made in; TUNESMITH_CHROMIUM the browser.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tokio::net::TcpListener;
use tunesmith_serve::{Connections, EngineOptions, ServerOptions, serve};

use crate::http::server;

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
}

/// Runs a script with a package installed, against a server whose address comes first.
async fn against_a_server(package: &'static str, script: &'static str, keys: Vec<String>, more: Vec<PathBuf>) {
    let Some(folder) = std::env::var_os("TUNESMITH_PYTHON_CLIENTS").map(PathBuf::from) else { return };
    let options = ServerOptions { keys, ..ServerOptions::default() };
    let server = tokio::task::spawn_blocking(|| server(options, EngineOptions::default())).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let app = server.app.clone();
    let limits = Connections { drain: Duration::from_secs(1), ..Connections::default() };
    let task = tokio::spawn(async move {
        serve(listener, app, limits, async {
            let _ = ended.await;
        })
        .await
    });
    tokio::task::spawn_blocking(move || {
        let environment = folder.join(package);
        let python = environment.join("bin/python");
        if !python.exists() {
            run(Command::new("python3").args(["-m", "venv"]).arg(&environment));
            run(Command::new(&python).args(["-m", "pip", "install", "--quiet", package]));
        }
        let more = more.iter().map(|path| path.as_os_str());
        run(Command::new(&python).args([OsStr::new("-c"), script.as_ref(), address.as_ref()]).args(more));
    })
    .await
    .unwrap();
    end.send(()).unwrap();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_client_is_content() {
    against_a_server("openai", include_str!("openai.py"), vec!["user-key".into()], Vec::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_uses_the_page() {
    let Some(chromium) = std::env::var_os("TUNESMITH_CHROMIUM").map(PathBuf::from) else { return };
    let shots = tempfile::tempdir().unwrap();
    let more = vec!["lora".into(), shots.path().to_owned(), chromium];
    against_a_server("playwright", include_str!("page.py"), Vec::new(), more).await;
    assert!(shots.path().join("loaded.png").is_file());
}
