//! The options of `tunesmith serve`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use crate::args::{ModelArgs, PrecisionArgs};

pub(crate) const SERVE_EXAMPLES: &str = "\
Examples:
  tunesmith serve -m smollm2-135m-instruct --adapters runs                 every adapter below runs/, by its path there
  tunesmith serve -m smollm2-135m-instruct --adapters runs --host 0.0.0.0 --key-file keys --admin-key-file admins
  tunesmith serve -a runs/mrpc --adapters runs                             the base and head of an adapter, for /v1/classify
  curl localhost:8080/v1/completions -H 'Content-Type: application/json' \\
      -d '{\"model\": \"first\", \"prompt\": \"Once\", \"max_tokens\": 20}'

Key files hold a key a line; TUNESMITH_KEY and TUNESMITH_ADMIN_KEY are taken too. Without keys only this machine is
served. The page at / shows adapters, answers side by side, and load.";

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) arithmetic: PrecisionArgs,
    /// The folder below which adapters lie; nothing outside of it is ever read
    #[arg(long, value_name = "FOLDER")]
    pub(crate) adapters: Option<PathBuf>,
    /// What requests call the base [default: its name, or the last part of its path]
    #[arg(long, value_name = "NAME")]
    pub(crate) served_name: Option<String>,
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
    /// The port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    pub(crate) port: u16,
    /// A file with the keys of those who may ask
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// A file with the keys of those who may also load and unload adapters
    #[arg(long, value_name = "FILE")]
    pub(crate) admin_key_file: Option<PathBuf>,
    /// Requests of a key at one time; 0 is any number
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) concurrent_per_key: usize,
    /// Requests of a key a minute; 0 is any number
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) per_minute_per_key: usize,
    /// Sequences that are generated together
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) max_running: usize,
    /// Requests that wait; more are refused
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub(crate) max_waiting: usize,
    /// Prompt tokens that are read in one pass
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) prompt_rows: usize,
    /// Memory for keys and values, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    pub(crate) cache: usize,
    /// Memory for adapters, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    pub(crate) adapter_memory: usize,
    /// Size of an adapter's files at the most, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub(crate) adapter_size: u64,
    /// Adapters that are loaded at once and stay in memory
    #[arg(long, value_name = "NAME")]
    pub(crate) pin: Vec<String>,
    /// Keep no keys and values of prompts' beginnings for other requests
    #[arg(long)]
    pub(crate) no_prefixes: bool,
    /// Seconds that a request may take
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) request_timeout: u64,
    /// Seconds that requests may go on when the server is told to end
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) drain: u64,
    /// Connections at one time
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    pub(crate) max_connections: usize,
    /// What is logged: error, warn, info, debug
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log: String,
}
