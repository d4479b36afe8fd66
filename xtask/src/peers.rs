//! Benchmarks against HF PEFT on PyTorch: the same work in turns, ours and theirs, as installed and tuned.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, bail, ensure};
use clap::Args;
use etcetera::BaseStrategy;
use serde_json::Value;

use crate::repository;
use crate::results::{Case, MEMORY, Results};

#[derive(Debug, Args)]
pub(crate) struct BenchPeers {
    /// A Hugging Face folder of a Llama-type model, which both read (`tunesmith merge` writes one)
    model: PathBuf,
    /// Rounds; each case runs once a round, ours and the peer's in turns
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Steps of a training run, of which the first is not counted
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Also full fine-tuning, prompt and prefix tuning and Houlsby's adapters
    #[arg(long)]
    methods: bool,
    /// Also the peer at its best: tcmalloc preloaded and compiled, which takes minutes
    #[arg(long)]
    tuned: bool,
    /// A virtual environment with torch, transformers and peft [default: one in the user's cache folder, made on demand]
    #[arg(long, value_name = "FOLDER")]
    venv: Option<PathBuf>,
}

/// A training run that both do.
#[derive(Clone, Copy)]
struct Training {
    name: &'static str,
    /// As both command lines name it.
    method: &'static str,
    precision: &'static str,
    peer_dtype: &'static str,
    checkpointing: bool,
    tuned: bool,
}

const BATCH: usize = 4;
const SEQUENCE: usize = 256;
const RANK: usize = 8;

pub(crate) fn run(arguments: &BenchPeers) -> anyhow::Result<()> {
    ensure!(arguments.rounds > 0 && arguments.steps > 1, "there must be a round, and a step after the first");
    let python = python(arguments.venv.as_deref())?;
    let ours = build()?;
    let tcmalloc = tcmalloc();
    if arguments.tuned && tcmalloc.is_none() {
        bail!("the peer's best needs libtcmalloc_minimal.so.4 (Debian: libtcmalloc-minimal4)");
    }
    let lora = Training {
        name: "LoRA",
        method: "lora",
        precision: "bf16",
        peer_dtype: "bf16",
        checkpointing: false,
        tuned: false,
    };
    let mut trainings = vec![
        Training { name: "LoRA, float32", precision: "float32", peer_dtype: "f32", ..lora },
        Training { name: "LoRA, bf16", ..lora },
        Training { name: "LoRA, bf16, gradient checkpointing", checkpointing: true, ..lora },
    ];
    if arguments.tuned {
        trainings.push(Training { name: "LoRA, bf16, peer tuned (tcmalloc, compiled)", tuned: true, ..lora });
    }
    if arguments.methods {
        trainings.extend([
            Training { name: "full fine-tuning, bf16", method: "full", ..lora },
            Training { name: "prompt tuning, bf16", method: "prompt_tuning", ..lora },
            Training { name: "prefix tuning, bf16", method: "prefix_tuning", ..lora },
            Training { name: "Houlsby adapters, bf16", method: "houlsby", ..lora },
        ]);
    }
    let mut measured: Vec<[Vec<Value>; 2]> = trainings.iter().map(|_| [Vec::new(), Vec::new()]).collect();
    for round in 1..=arguments.rounds {
        for (training, [ours_measured, peer_measured]) in trainings.iter().zip(&mut measured) {
            report(&format!("round {round}: {}", training.name));
            ours_measured.push(training.ours(&ours, arguments)?);
            peer_measured.push(training.peer(&python, tcmalloc.as_deref(), arguments)?);
        }
    }
    let mut cases = Vec::new();
    for (training, [ours, peer]) in trainings.iter().zip(&measured) {
        for (what, key, unit) in [("speed", "tokens_per_s", "tokens/s"), ("peak memory", "peak_rss_gb", MEMORY)] {
            let numbers = |runs: &[Value]| {
                let number = |run: &Value| run[key].as_f64().with_context(|| format!("no {key} in {run}"));
                runs.iter().map(number).collect::<anyhow::Result<Vec<f64>>>()
            };
            let name = format!("training step, {BATCH} × {SEQUENCE} tokens, {}: {what}", training.name);
            cases.push(Case::new(name, unit, &numbers(ours)?, &numbers(peer)?));
        }
    }
    let results = Results { date: today(), machine: machine(), peers: versions(&python)?, cases };
    let path = results.save(&repository())?;
    report(&format!("{}written to {}", results.table(), path.display()));
    Ok(())
}

impl Training {
    fn ours(&self, program: &Path, arguments: &BenchPeers) -> anyhow::Result<Value> {
        let mut command = Command::new(program);
        command.arg("bench").arg(&arguments.model).args(["--json", "--no-generation", "--precision", self.precision]);
        command.args(["--batch", &BATCH.to_string(), "--seq", &SEQUENCE.to_string(), "--rank", &RANK.to_string()]);
        command.args(["--steps", &arguments.steps.to_string(), "--method", self.method]);
        if self.checkpointing {
            command.arg("--gradient-checkpointing");
        }
        result(&mut command)
    }

    fn peer(&self, python: &Path, tcmalloc: Option<&Path>, arguments: &BenchPeers) -> anyhow::Result<Value> {
        let mut command = Command::new(python);
        command.arg(repository().join("xtask/peers/bench_peft_train.py")).arg(&arguments.model);
        command.args(["--dtype", self.peer_dtype, "--steps", &arguments.steps.to_string(), "--method", self.method]);
        command.args(["--batch", &BATCH.to_string(), "--seq", &SEQUENCE.to_string(), "--rank", &RANK.to_string()]);
        if self.checkpointing {
            command.arg("--checkpointing");
        }
        if self.tuned {
            command.arg("--compile");
            if let Some(library) = tcmalloc {
                command.env("LD_PRELOAD", library);
            }
        }
        result(&mut command)
    }
}

/// The JSON on the last line of what a command prints.
pub(crate) fn result(command: &mut Command) -> anyhow::Result<Value> {
    let Output { status, stdout, stderr } = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&stderr));
    let text = String::from_utf8(stdout).context("the output is no text")?;
    let last = text.lines().rev().find(|line| line.starts_with('{'));
    serde_json::from_str(last.with_context(|| format!("{command:?} printed no result"))?)
        .context("the result is damaged")
}

/// The date, as `YYYY-MM-DD`.
pub(crate) fn today() -> String {
    jiff::Timestamp::now().to_string().chars().take(10).collect()
}

/// Builds the program, with all the rest: alone it would be built with other features, and everything again.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--workspace"]).current_dir(repository());
    ensure!(build.status().context("cannot run cargo")?.success(), "the program cannot be built");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    Ok(target.join("release/tunesmith"))
}

/// The Python of a virtual environment that has the peers.
pub(crate) fn python(venv: Option<&Path>) -> anyhow::Result<PathBuf> {
    let folder = match venv {
        Some(folder) => folder.to_path_buf(),
        None => {
            etcetera::choose_base_strategy().context("there is no home folder")?.cache_dir().join("tunesmith/peers")
        }
    };
    let python = folder.join("bin/python");
    if python.is_file() {
        return Ok(python);
    }
    ensure!(venv.is_none(), "{} is no virtual environment", folder.display());
    report(&format!("installing torch, transformers and peft into {}", folder.display()));
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    let made = Command::new("python3").args(["-m", "venv"]).arg(&folder).status().context("cannot run python3")?;
    ensure!(made.success(), "cannot make a virtual environment");
    let installed = Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "torch", "transformers", "peft"])
        .status()
        .context("cannot run pip")?;
    ensure!(installed.success(), "cannot install the peers");
    Ok(python)
}

pub(crate) fn versions(python: &Path) -> anyhow::Result<String> {
    let code = "import peft, torch, transformers; \
                print(f'PEFT {peft.__version__} on transformers {transformers.__version__} and PyTorch {torch.__version__}')";
    let output = Command::new(python).args(["-c", code]).output().context("cannot run python")?;
    ensure!(output.status.success(), "the peers are not installed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn tcmalloc() -> Option<PathBuf> {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    folders.iter().map(|folder| Path::new(folder).join("libtcmalloc_minimal.so.4")).find(|path| path.is_file())
}

/// Processor, its number of cores, and what it has for matrix products.
pub(crate) fn machine() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let flags = field("flags").unwrap_or_default();
    let units = [("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512"), ("avx2", "AVX2")];
    let unit = units.iter().find(|(flag, _)| flags.split(' ').any(|known| known == *flag)).map(|(_, unit)| *unit);
    let name = field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    format!("{cores} cores of {name}{}", unit.map_or(String::new(), |unit| format!(" with {unit}")))
}

#[expect(clippy::print_stderr, reason = "progress belongs on standard error")]
pub(crate) fn report(text: &str) {
    eprintln!("{text}");
}
