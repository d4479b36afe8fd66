//! Load on the serving engine: tokens a second and latencies with many adapters, uniform and Zipf, against the base alone
//! and, if asked for, against HF PEFT's mixed batches or llama.cpp's server.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tunesmith_methods::{MethodConfig, build, save_adapter};
use tunesmith_models::{LoadOptions, Sampling, load};
use tunesmith_serve::{AdapterLimits, Adapters, BaseModel, Engine, EngineOptions, Event, Generation, Resident};
use tunesmith_tensor::{Precision, Seed, Stream};

use crate::peers::{machine, report, result, today, versions};
use crate::repository;
use crate::results::{Case, Results};

#[derive(Debug, Args)]
pub(crate) struct BenchServe {
    /// A Hugging Face folder or GGUF file of a decoder
    model: PathBuf,
    /// How many adapters; each count is a case
    #[arg(long, value_delimiter = ',', default_value = "1,8,100")]
    adapters: Vec<usize>,
    /// Exponents of Zipf's law for adapters' popularity beside the uniform one
    #[arg(long, value_delimiter = ',', default_value = "1.0")]
    zipf: Vec<f64>,
    /// Modules that LoRA tunes: all-linear, or names with + between them
    #[arg(long, default_value = "all-linear")]
    targets: String,
    /// Texts that are asked for at one time
    #[arg(long, default_value_t = 32)]
    clients: usize,
    /// Texts in all, a case
    #[arg(long, default_value_t = 96)]
    requests: usize,
    /// Tokens of a prompt
    #[arg(long, default_value_t = 64)]
    prompt: usize,
    /// New tokens of a text
    #[arg(long, default_value_t = 64)]
    new: usize,
    /// LoRA's rank
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// Also six methods in one batch
    #[arg(long)]
    methods: bool,
    /// Also how long an adapter takes from the disk to its first token, and to be replaced
    #[arg(long)]
    loading: bool,
    /// A python with torch, transformers and peft, for the peer
    #[arg(long, value_name = "PYTHON")]
    python: Option<PathBuf>,
    /// llama.cpp's server, as the peer in place of PEFT; the model is a GGUF file then
    #[arg(long, value_name = "PROGRAM", requires_all = ["llama_cpp", "hf", "python"])]
    llama_server: Option<PathBuf>,
    /// llama.cpp's source, whose script converts adapters for it
    #[arg(long, value_name = "FOLDER", requires = "llama_server")]
    llama_cpp: Option<PathBuf>,
    /// The Hugging Face folder of the GGUF file's model, which that script reads the configuration of
    #[arg(long, value_name = "FOLDER", requires = "llama_server")]
    hf: Option<PathBuf>,
    /// Write bench/results/serve-DATE.json, or serve-llama-DATE.json where that is the peer
    #[arg(long)]
    save: bool,
}

/// What was measured of one mix.
struct Measured {
    tokens_per_second: f64,
    /// Milliseconds to the first token, and between tokens, each at the median, 95 % and 99 %.
    first: [f64; 3],
    between: [f64; 3],
}

/// Distinct adapters on disk; more names are links to them, which are loaded each for itself.
const DISTINCT: usize = 8;

struct Bench<'a> {
    arguments: &'a BenchServe,
    base: Arc<BaseModel>,
    folder: PathBuf,
}

pub(crate) fn run(arguments: &BenchServe) -> anyhow::Result<()> {
    let with_peft = arguments.python.is_some() && arguments.llama_server.is_none();
    ensure!(!with_peft || arguments.model.is_dir(), "the peer reads Hugging Face folders alone");
    let has_peer_mix = arguments.adapters.contains(&DISTINCT);
    ensure!(
        arguments.llama_server.is_none() || has_peer_mix,
        "the peer's mix is of {DISTINCT} adapters: add that count"
    );
    let options = LoadOptions { precision: Precision::detect(), ..LoadOptions::default() };
    let base = Arc::new(BaseModel::new("base", load(&arguments.model, &options)?));
    let folder = std::env::temp_dir().join(format!("tunesmith-bench-serve-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let done = Bench { arguments, base, folder: folder.clone() }.run();
    fs::remove_dir_all(&folder)?;
    done
}

impl Bench<'_> {
    fn run(&self) -> anyhow::Result<()> {
        let arguments = self.arguments;
        let (clients, prompt, new) = (arguments.clients, arguments.prompt, arguments.new);
        let shape = format!("{clients} at one time, {prompt} + {new} tokens");
        let mut cases = Vec::new();
        let mut case = |name: String, unit: &str, ours: f64, peer: f64| {
            let case = Case::new(name, unit, &[ours], &[peer]);
            report(&format!("{}: {} against {} {} ({:.3})", case.case, case.ours, case.peer, case.unit, ours / peer));
            cases.push(case);
        };
        let limits = AdapterLimits { resident_bytes: usize::MAX, ..AdapterLimits::default() };
        let most = arguments.adapters.iter().copied().max().unwrap_or(1);
        self.write_loras(most)?;
        let store = Adapters::new(Arc::clone(&self.base), Some(&self.folder), limits)?;
        let loaded = Instant::now();
        let residents: Vec<Arc<Resident>> =
            (0..most).map(|number| store.get(&format!("lora-{number}"), None)).collect::<Result<_, _>>()?;
        report(&format!("{most} adapters loaded in {:.1} s", loaded.elapsed().as_secs_f64()));
        let bytes = residents.first().map_or((0, 0), |resident| (resident.bytes, resident.file_bytes));
        case("memory of a resident adapter, against its file".into(), "MB", bytes.0 as f64 / 1e6, bytes.1 as f64 / 1e6);
        // Once to warm up; and once more at the end, so that a drift shows.
        self.measure(&[None], None);
        let first = self.measure(&[None], None);
        let mut one = None;
        let mut mixed_eight = None;
        for count in &arguments.adapters {
            let those: Vec<_> = residents[..*count].iter().map(|resident| Some(Arc::clone(resident))).collect();
            let uniform = self.measure(&those, None);
            let one = *one.get_or_insert(uniform.tokens_per_second);
            let name = |law: &str| {
                format!("{count} LoRA adapters (r = {}, {}), {law}, {shape}", arguments.rank, arguments.targets)
            };
            case(name("uniform, against base"), "tokens/s", uniform.tokens_per_second, first.tokens_per_second);
            case(name("uniform, against the fewest"), "tokens/s", uniform.tokens_per_second, one);
            if *count == 8 {
                mixed_eight = Some(uniform.tokens_per_second);
            }
            report(&uniform.latencies());
            for exponent in arguments.zipf.iter().filter(|_| *count > 1) {
                let zipf = self.measure(&those, Some(*exponent));
                let law = format!("Zipf {exponent}, against base");
                case(name(&law), "tokens/s", zipf.tokens_per_second, first.tokens_per_second);
                report(&zipf.latencies());
            }
        }
        let last = self.measure(&[None], None);
        case(format!("base alone, again, {shape}"), "tokens/s", last.tokens_per_second, first.tokens_per_second);
        report(&first.latencies());
        if arguments.methods {
            let lora: Vec<_> = residents.iter().take(6).map(|resident| Some(Arc::clone(resident))).collect();
            let mixed = self.six_methods()?;
            let (six, one) = (self.measure(&mixed, None), self.measure(&lora, None));
            let name = format!("six methods mixed, against six LoRA adapters, {shape}");
            case(name, "tokens/s", six.tokens_per_second, one.tokens_per_second);
        }
        if arguments.loading {
            let (load, replace) = self.loading(&store)?;
            case("adapter from disk to first token, against 50 ms".into(), "ms", load, 50.0);
            case("replacing an adapter, against 50 ms".into(), "ms", replace, 50.0);
        }
        let mut peers = String::new();
        if let Some(python) = &arguments.python {
            let (peer, [base, mixed]) = match &arguments.llama_server {
                None => {
                    peers = versions(python)?;
                    (self.peft(python)?, ["PEFT's generate in bf16", "PEFT's mixed batch in bf16"])
                }
                Some(server) => {
                    let peer = self.llama(python, server)?;
                    peers = format!("llama.cpp's server, {}", peer["version"].as_str().unwrap_or_default());
                    (peer, ["llama.cpp's server", "llama.cpp's server with an adapter a request"])
                }
            };
            let number = |key: &str| peer[key].as_f64().with_context(|| format!("no {key} in {peer}"));
            case(format!("base, against {base}, {shape}"), "tokens/s", first.tokens_per_second, number("base")?);
            if let Some(ours) = mixed_eight {
                let name = format!("8 LoRA adapters mixed, against {mixed}, {shape}");
                case(name, "tokens/s", ours, number("mixed")?);
            }
        }
        if arguments.save {
            let name = if arguments.llama_server.is_some() { "serve-llama" } else { "serve" };
            let results = Results { date: today(), machine: machine(), peers, cases };
            let path = results.save_as(&repository(), &format!("{name}-{}", results.date))?;
            report(&format!("written to {}", path.display()));
        }
        Ok(())
    }

    fn config(&self) -> Value {
        let targets = match self.arguments.targets.as_str() {
            "all-linear" => json!("all-linear"),
            names => json!(names.split('+').collect::<Vec<_>>()),
        };
        let rank = self.arguments.rank;
        json!({ "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets })
    }

    /// Writes LoRA adapters of random values.
    fn write_loras(&self, count: usize) -> anyhow::Result<()> {
        for number in 0..count {
            let folder = self.folder.join(format!("lora-{number}"));
            if number < DISTINCT {
                self.write(&folder, &self.config(), number as u64)?;
                continue;
            }
            fs::create_dir_all(&folder)?;
            for file in ["adapter_config.json", "adapter_model.safetensors"] {
                let original = self.folder.join(format!("lora-{}", number % DISTINCT)).join(file);
                fs::hard_link(original, folder.join(file))?;
            }
        }
        Ok(())
    }

    fn write(&self, folder: &Path, config: &Value, seed: u64) -> anyhow::Result<()> {
        let method = MethodConfig::from_run_file(config)?;
        let mut built = self.base.describe(|description| build(&method, description, Seed(seed)))?;
        for parameter in built.adapter.parameters_mut() {
            let mut stream = Seed(seed).stream(parameter.name(), 1);
            parameter.value_mut().data_mut().iter_mut().for_each(|value| *value += 0.01 * stream.normal());
        }
        Ok(save_adapter(folder, &built)?)
    }

    /// One adapter of each of six methods.
    fn six_methods(&self) -> anyhow::Result<Vec<Option<Arc<Resident>>>> {
        let configs = [
            ("lora", self.config()),
            ("prompt", json!({ "peft_type": "PROMPT_TUNING", "num_virtual_tokens": 20 })),
            ("prefix", json!({ "peft_type": "PREFIX_TUNING", "num_virtual_tokens": 20 })),
            ("ia3", json!({ "peft_type": "IA3" })),
            ("dora", json!({ "peft_type": "LORA", "r": self.arguments.rank, "use_dora": true })),
            ("houlsby", json!({ "peft_type": "HOULSBY", "reduction_factor": 16 })),
        ];
        for (number, (name, config)) in configs.iter().enumerate() {
            self.write(&self.folder.join("six").join(name), config, number as u64)?;
        }
        let limits = AdapterLimits::default();
        let store = Adapters::new(Arc::clone(&self.base), Some(&self.folder), limits)?;
        configs.iter().map(|(name, _)| Ok(Some(store.get(&format!("six/{name}"), None)?))).collect()
    }

    fn generation(
        &self,
        adapter: Option<Arc<Resident>>,
        client: usize,
        prompts: &mut Stream,
        events: &UnboundedSender<(usize, Event)>,
    ) -> Generation {
        let vocabulary = self.base.model().info().vocab_size as f32;
        let mut token = || ((prompts.uniform() * vocabulary) as u32).min(vocabulary as u32 - 1);
        Generation {
            adapter,
            prompt: (0..self.arguments.prompt).map(|_| token()).collect(),
            max_tokens: self.arguments.new,
            min_tokens: 0,
            sampling: Sampling::default(),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignores_eos: true,
            seed: (Seed(0), 0),
            logprobs: None,
            grammar: None,
            cache_salt: String::new(),
            choice: client,
            asked: Instant::now(),
            events: events.clone(),
        }
    }

    /// Texts with adapters drawn from `adapters`, uniformly or by Zipf's law.
    fn measure(&self, adapters: &[Option<Arc<Resident>>], zipf: Option<f64>) -> Measured {
        let BenchServe { clients, requests, new, .. } = *self.arguments;
        let options = EngineOptions { running: clients, ..EngineOptions::default() };
        let engine = Engine::start(Arc::clone(&self.base), options);
        let mut prompts = Seed(3).stream("prompts", adapters.len() as u64);
        let mut draws = Seed(4).stream("adapters", 0);
        let weights: Vec<f64> =
            (0..adapters.len()).map(|rank| (rank as f64 + 1.0).powf(-zipf.unwrap_or(0.0))).collect();
        let total: f64 = weights.iter().sum();
        let mut turn = 0;
        let mut next = || {
            turn += 1;
            if zipf.is_none() {
                return adapters[turn % adapters.len()].clone();
            }
            let mut left = f64::from(draws.uniform()) * total;
            let place = weights.iter().position(|weight| {
                left -= weight;
                left < 0.0
            });
            adapters[place.unwrap_or(0)].clone()
        };
        let (sender, mut events) = unbounded_channel();
        let started = Instant::now();
        let mut asked = 0;
        let mut begun = vec![Instant::now(); clients];
        let mut first_at: Vec<Option<Instant>> = vec![None; clients];
        let (mut first, mut between) = (Vec::new(), Vec::new());
        let mut submit = |client: usize, begun: &mut Vec<Instant>| {
            begun[client] = Instant::now();
            // The queue is longer than there are clients.
            engine.generate(self.generation(next(), client, &mut prompts, &sender)).is_ok()
        };
        for client in 0..clients.min(requests) {
            asked += usize::from(submit(client, &mut begun));
        }
        let mut done = 0;
        while done < requests {
            let Some((client, event)) = events.blocking_recv() else { break };
            match event {
                Event::Text { .. } => {
                    first_at[client].get_or_insert_with(Instant::now);
                }
                Event::Finished { usage, .. } => {
                    first.push(usage.first_token.as_secs_f64() * 1e3);
                    let writing = begun[client].elapsed().saturating_sub(usage.first_token);
                    between.push(writing.as_secs_f64() * 1e3 / (new.max(2) - 1) as f64);
                    first_at[client] = None;
                    done += 1;
                    if asked < requests {
                        asked += usize::from(submit(client, &mut begun));
                    }
                }
                Event::Failed(reason) => {
                    report(&reason);
                    break;
                }
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let tokens = engine.snapshot().new_tokens;
        Measured {
            tokens_per_second: tokens as f64 / seconds,
            first: percentiles(first),
            between: percentiles(between),
        }
    }

    /// Milliseconds from the disk to the first token, and to replace an adapter: medians of a few.
    fn loading(&self, store: &Adapters) -> anyhow::Result<(f64, f64)> {
        let engine = Engine::start(Arc::clone(&self.base), EngineOptions::default());
        let (mut loads, mut replacements) = (Vec::new(), Vec::new());
        let mut prompts = Seed(5).stream("prompts", 0);
        for number in 0..7 {
            let (sender, mut events) = unbounded_channel();
            let started = Instant::now();
            let resident = store.load(&format!("fresh-{number}"), "lora-0", false)?;
            let mut generation = self.generation(Some(resident), 0, &mut prompts, &sender);
            generation.prompt.truncate(16);
            generation.logprobs = Some(0);
            generation.max_tokens = 1;
            engine.generate(generation).context("the engine refuses")?;
            events.blocking_recv().context("the engine has ended")?;
            loads.push(started.elapsed().as_secs_f64() * 1e3);
            let started = Instant::now();
            store.load(&format!("fresh-{number}"), "lora-0", true)?;
            replacements.push(started.elapsed().as_secs_f64() * 1e3);
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok((percentiles(loads)[0], percentiles(replacements)[0]))
    }

    fn llama(&self, python: &Path, server: &Path) -> anyhow::Result<Value> {
        let BenchServe { clients, requests, prompt, new, model, llama_cpp, hf, .. } = self.arguments;
        let mut command = std::process::Command::new(python);
        command.arg(repository().join("xtask/peers/bench_llama_server.py"));
        command.args(llama_cpp).arg(server).arg(model).args(hf);
        command.args((0..DISTINCT).map(|number| self.folder.join(format!("lora-{number}"))));
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let numbers =
            [("clients", clients), ("requests", requests), ("prompt", prompt), ("new", new), ("threads", &threads)];
        command.args(numbers.map(|(name, number)| format!("--{name}={number}")));
        result(&mut command)
    }

    fn peft(&self, python: &Path) -> anyhow::Result<Value> {
        let BenchServe { clients, prompt, new, rank, model, .. } = self.arguments;
        let mut command = std::process::Command::new(python);
        command.arg(repository().join("xtask/peers/bench_peft_serve.py")).arg(model);
        command.args(["--dtype", "bf16", "--adapters", "8", "--batch", &clients.to_string()]);
        command.args(["--prompt", &prompt.to_string(), "--new", &new.to_string(), "--rank", &rank.to_string()]);
        result(&mut command)
    }
}

impl Measured {
    fn latencies(&self) -> String {
        let line = |values: [f64; 3]| values.map(|value| format!("{value:.1}")).join(" / ");
        format!("  first token {} ms, between tokens {} ms (50 / 95 / 99 %)", line(self.first), line(self.between))
    }
}

/// The median, 95 % and 99 %.
fn percentiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [0.5, 0.95, 0.99].map(|share| {
        let place = (share * values.len() as f64) as usize;
        values.get(place.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        assert_eq!(percentiles((1..=100).rev().map(f64::from).collect()), [51.0, 96.0, 100.0]);
        assert_eq!(percentiles(vec![3.0]), [3.0; 3]);
    }
}
