//! `tunesmith serve`: many adapters over one base, by HTTP.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tunesmith_serve::{
    AdapterLimits, Adapters, BaseModel, Connections, Engine, EngineOptions, ServerOptions, app, serve,
};

use crate::base::Base;
use crate::failure::Misuse;
use crate::serve_args::ServeArgs;
use crate::terminal;

pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log).map_err(|error| Misuse(format!("--log {}: {error}", args.log)))?;
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(io::stderr).init();
    let keys = keys(args.key_file.as_deref(), "TUNESMITH_KEY")?;
    let admin_keys = keys_of_admins(args)?;
    if keys.is_empty() && admin_keys.is_empty() && !args.host.is_loopback() {
        let reason = format!("{} can be reached by others: give keys with --key-file", args.host);
        return Err(Misuse(reason).into());
    }
    let (base, _) = Base::from_args(&args.model, args.arithmetic.precision())?;
    let name = args.served_name.clone().unwrap_or_else(|| short(&base.name));
    let base = Arc::new(BaseModel::new(name, base.pretrained));
    let limits = AdapterLimits {
        file_bytes: args.adapter_size << 20,
        resident_bytes: args.adapter_memory << 20,
        ..AdapterLimits::default()
    };
    let adapters = Arc::new(Adapters::new(Arc::clone(&base), args.adapters.as_deref(), limits)?);
    for name in &args.pin {
        adapters.pin(name, true).with_context(|| format!("cannot load the adapter '{name}'"))?;
    }
    let options = EngineOptions {
        running: args.max_running.max(1),
        waiting: args.max_waiting.max(1),
        prompt_rows: args.prompt_rows.max(1),
        cache_bytes: args.cache << 20,
        keeps_prefixes: !args.no_prefixes,
    };
    let engine = Arc::new(Engine::start(Arc::clone(&base), options));
    let server = ServerOptions {
        keys,
        admin_keys,
        concurrent_per_key: args.concurrent_per_key,
        per_minute_per_key: args.per_minute_per_key,
        request_timeout: Duration::from_secs(args.request_timeout),
        ..ServerOptions::default()
    };
    let connections = Connections {
        most: args.max_connections.max(1),
        drain: Duration::from_secs(args.drain),
        ..Connections::default()
    };
    let count = adapters.list().len();
    let app = app(engine, adapters, server);
    // The engine has threads of its own; these only pass messages on.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let address = SocketAddr::new(args.host, args.port);
        let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        let address = listener.local_addr()?;
        terminal::note(format_args!("{} with {count} adapters at http://{address}", base.name));
        let mut terminated = signal(SignalKind::terminate())?;
        let end = async move {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        };
        serve(listener, app, connections, end).await.context("the server failed")
    })
}

fn keys_of_admins(args: &ServeArgs) -> anyhow::Result<Vec<String>> {
    keys(args.admin_key_file.as_deref(), "TUNESMITH_ADMIN_KEY")
}

/// The keys of a file, a line each, and of an environment variable.
fn keys(file: Option<&Path>, variable: &str) -> anyhow::Result<Vec<String>> {
    let mut keys = Vec::new();
    if let Some(file) = file {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        keys.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
        if keys.is_empty() {
            return Err(Misuse(format!("{} holds no key", file.display())).into());
        }
    }
    keys.extend(std::env::var(variable).ok().filter(|key| !key.is_empty()));
    if let Some(key) = keys.iter().find(|key| key.len() < 8) {
        return Err(Misuse(format!("a key of {} characters is too short: use 8 or more", key.len())).into());
    }
    Ok(keys)
}

/// The last part of a name or path, without an extension.
fn short(name: &str) -> String {
    let last = Path::new(name).file_name().map_or(name.into(), |last| last.to_string_lossy().into_owned());
    last.strip_suffix(".gguf").map(str::to_owned).unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_is_called_by_the_last_part_of_its_path() {
        assert_eq!(short("/models/SmolLM2.gguf"), "SmolLM2");
        assert_eq!(short("org/name"), "name");
        assert_eq!(short("smollm2-135m-instruct"), "smollm2-135m-instruct");
    }
}
