//! `tunesmith bench`: what this machine can do, and what training and generation make of it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};
use tunesmith_models::{GenerationOptions, HeadOptions, LoadOptions, Model, Task, generate};
use tunesmith_tensor::{Direction, MachinePeaks, Matrix, Precision, Seed, SiteKind, Workspace};
use tunesmith_train::{StepBenchmark, StepMeasurement};

use crate::args::BenchArgs;
use crate::base::Base;
use crate::terminal;

/// Tokens of a prompt, and new ones of a continuation.
const PROMPT: usize = 64;
const NEW: usize = 32;
/// Times that generation is measured, of which the best counts.
const ROUNDS: usize = 5;
/// Rows that products are measured with, at most.
const PRODUCT_ROWS: usize = 1024;

pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    if let Some(threads) = args.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build_global().context("cannot set the number of threads")?;
    }
    let precision = args.precision.map_or_else(Precision::detect, Precision::from);
    let quantization = args.quantization.keys().options();
    let mut options = LoadOptions { precision, quantization, ..LoadOptions::default() };
    let mut base = Base::load(&args.model, &options)?;
    if base.model().info().head.task != Task::CausalLm {
        options.head = HeadOptions { ignore_mismatched_sizes: true, ..HeadOptions::for_task(Task::SeqCls) };
        options.head.labels = Some(vec!["0".to_owned(), "1".to_owned()]);
        base = Base::load(&args.model, &options)?;
    }
    let workspace = Workspace::with_precision(precision).checkpointing(args.gradient_checkpointing);
    terminal::note("measuring the machine …");
    let peaks = MachinePeaks::measure();
    terminal::note("measuring products …");
    // Buffers of their own, and few rows: the step's memory is the largest that the process has had.
    let rows = PRODUCT_ROWS.min(args.batch * args.seq);
    let products = products(base.model(), &Workspace::with_precision(precision), rows);
    terminal::note("measuring training …");
    let peft = peft(&args.method, args.rank);
    let benchmark = StepBenchmark {
        adapters: args.adapters,
        batch: args.batch,
        sequence: args.seq,
        steps: args.steps.max(2),
        peft,
    };
    let step = benchmark.run(base.model(), &workspace)?;
    let mut generation = Vec::new();
    if !args.no_generation && base.model().info().head.task == Task::CausalLm {
        terminal::note("measuring generation …");
        for batch in [1, 32] {
            generation.push(Generation::measure(&base, &workspace, batch));
        }
    }
    let result = Outcome { args, precision, peaks, products, step, generation };
    let mut out = io::stdout();
    if args.json {
        writeln!(out, "{}", result.json())?;
    } else {
        write!(out, "{}", result.text())?;
    }
    Ok(())
}

/// The method as a run file gives it.
fn peft(method: &str, rank: usize) -> Value {
    let mut peft = json!({"peft_type": method.to_uppercase()});
    if method.eq_ignore_ascii_case("lora") {
        peft["r"] = rank.into();
        peft["lora_alpha"] = (2 * rank).into();
        peft["target_modules"] = "all-linear".into();
    }
    if ["prompt_tuning", "p_tuning", "prefix_tuning"].iter().any(|name| method.eq_ignore_ascii_case(name)) {
        peft["num_virtual_tokens"] = 20.into();
    }
    peft
}

/// Products with the weights of one shape.
struct Product {
    name: String,
    rows: usize,
    cols: usize,
    /// GFLOP/s.
    forward: f64,
    backward: f64,
}

/// Measures a product with a weight of each shape that the model's linears have, for `tokens` rows.
fn products(model: &dyn Model, workspace: &Workspace, tokens: usize) -> Vec<Product> {
    let mut shapes = BTreeMap::new();
    for (index, site) in model.sites().iter().enumerate() {
        if site.kind == SiteKind::Linear {
            let name = site.path.rsplit('.').next().unwrap_or(&site.path);
            let entry = shapes.entry((site.rows, site.cols)).or_insert((index, Vec::<String>::new()));
            if !entry.1.iter().any(|known| known == name) {
                entry.1.push(name.to_owned());
            }
        }
    }
    let measured = shapes.into_iter().filter_map(|((rows, cols), (index, names))| {
        let base = model.base(tunesmith_tensor::SiteId(index))?;
        let (x, dy) = (ones(tokens, cols), ones(tokens, rows));
        let rate = |work: &(dyn Fn() + Sync)| {
            let seconds = workspace.run(|| {
                work();
                let trial = |_| {
                    let start = Instant::now();
                    work();
                    start.elapsed().as_secs_f64()
                };
                (0..7).map(trial).fold(f64::INFINITY, f64::min)
            });
            2.0 * (tokens * rows * cols) as f64 / seconds / 1e9
        };
        let forward = rate(&|| drop(base.weight.product(workspace, &x)));
        let backward = rate(&|| drop(base.weight.product_gradient(workspace, &dy)));
        Some(Product { name: names.join(", "), rows, cols, forward, backward })
    });
    measured.collect()
}

fn ones(rows: usize, cols: usize) -> Matrix {
    Matrix::from_vec(rows, cols, vec![1.0; rows * cols])
}

/// Speed of generation, in tokens a second of all sequences together.
struct Generation {
    batch: usize,
    prompt: f64,
    decode: f64,
}

impl Generation {
    fn measure(base: &Base, workspace: &Workspace, batch: usize) -> Self {
        let vocabulary = base.model().info().vocab_size as u64;
        let mut stream = Seed(1).stream("prompts", 0);
        let prompts: Vec<Vec<u32>> =
            (0..batch).map(|_| (0..PROMPT).map(|_| stream.below(vocabulary) as u32).collect()).collect();
        let seconds = |new: usize| {
            let mut options = GenerationOptions::greedy(new, &base.pretrained.generation);
            options.eos_token_ids.clear();
            let start = Instant::now();
            let tokenizer = &base.pretrained.tokenizer;
            generate(base.model(), tokenizer, workspace, &prompts, &vec![None; batch], &options, |_, _| ());
            start.elapsed().as_secs_f64()
        };
        seconds(1);
        // Their difference is what counts, so neither may be the one that something else slowed down.
        let (mut first, mut all) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..ROUNDS {
            first = first.min(seconds(1));
            all = all.min(seconds(1 + NEW));
        }
        let decode = (batch * NEW) as f64 / (all - first).max(f64::MIN_POSITIVE);
        Self { batch, prompt: (batch * PROMPT) as f64 / first, decode }
    }
}

struct Outcome<'a> {
    args: &'a BenchArgs,
    precision: Precision,
    peaks: MachinePeaks,
    products: Vec<Product>,
    step: StepMeasurement,
    generation: Vec<Generation>,
}

impl Outcome<'_> {
    /// The most that products can reach.
    fn peak(&self) -> f64 {
        match self.precision {
            Precision::Bf16 => self.peaks.bf16.unwrap_or(self.peaks.float32),
            Precision::Float32 => self.peaks.float32,
        }
    }

    fn json(&self) -> Value {
        let Self { args, peaks, step, .. } = self;
        let products = self.products.iter().map(|product| {
            json!({
                "modules": product.name, "out": product.rows, "in": product.cols,
                "forward_gflops": product.forward, "backward_gflops": product.backward,
                "forward_of_peak": product.forward / self.peak(), "backward_of_peak": product.backward / self.peak(),
            })
        });
        let operations = step.operations.iter().map(|operation| {
            json!({
                "operation": operation.name, "backward": operation.direction == Direction::Backward,
                "ms": operation.seconds * 1e3, "calls": operation.calls,
            })
        });
        let generation = self.generation.iter().map(|generation| {
            json!({
                "batch": generation.batch, "prompt_tokens_per_s": generation.prompt,
                "decode_tokens_per_s": generation.decode,
            })
        });
        json!({
            "model": args.model, "precision": self.precision.name(), "threads": peaks.threads, "batch": args.batch,
            "seq": args.seq, "method": args.method, "rank": args.rank,
            "gradient_checkpointing": args.gradient_checkpointing,
            "tokens_per_s": step.tokens_per_second(), "steps_s": step.seconds, "trainable": step.trainable,
            "peak_rss_gb": step.peak_memory.map(|bytes| bytes as f64 / 1e9), "page_faults": step.page_faults,
            "machine": {
                "float32_gflops": peaks.float32, "bf16_gflops": peaks.bf16, "read_gb_s": peaks.read,
                "write_gb_s": peaks.write,
            },
            "products": products.collect::<Vec<_>>(),
            "operations": operations.collect::<Vec<_>>(),
            "generation": generation.collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let Self { args, peaks, step, .. } = self;
        let mut text = String::new();
        let mut line = |arguments: std::fmt::Arguments<'_>| {
            text += &arguments.to_string();
            text.push('\n');
        };
        let bf16 = peaks.bf16.map_or("no bf16 tile unit".to_owned(), |rate| format!("bf16 {rate:.0} GFLOP/s"));
        line(format_args!(
            "machine     {} threads, float32 {:.0} GFLOP/s, {bf16}, memory read {:.1} and written {:.1} GB/s",
            peaks.threads, peaks.float32, peaks.read, peaks.write
        ));
        for Product { name, rows, cols, forward, backward } in &self.products {
            let share = |rate: f64| 100.0 * rate / self.peak();
            line(format_args!(
                "product     {:<26} {forward:6.0} GFLOP/s ({:2.0} % of peak), gradient {backward:6.0} ({:2.0} %)",
                format!("{name} {rows}×{cols}"),
                share(*forward),
                share(*backward),
            ));
        }
        let median = step.tokens as f64 / step.tokens_per_second();
        line(format_args!(
            "step        {} × {} tokens, {} ({} trained values), {}: {:.0} ms",
            args.batch,
            args.seq,
            args.method,
            step.trainable,
            self.precision.name(),
            median * 1e3
        ));
        for operation in &step.operations {
            let direction = if operation.direction == Direction::Forward { "forward" } else { "backward" };
            line(format_args!(
                "            {:<20} {direction:<9} {:8.2} ms {:4.0} % {:6.0} calls",
                operation.name,
                operation.seconds * 1e3,
                100.0 * operation.seconds / median,
                operation.calls
            ));
        }
        let memory = step.peak_memory.map_or("unknown".to_owned(), |bytes| format!("{:.2} GB", bytes as f64 / 1e9));
        let faults = step.page_faults.map_or("unknown".to_owned(), |faults| faults.to_string());
        line(format_args!("memory      peak {memory}, fresh pages a step {faults}"));
        line(format_args!("training    {:.0} tokens/s", step.tokens_per_second()));
        for Generation { batch, prompt, decode } in &self.generation {
            line(format_args!(
                "generation  batch {batch}: prompts {prompt:.0} tokens/s, decoding {decode:.1} tokens/s"
            ));
        }
        text
    }
}
