//! `tunesmith inspect`: a model's modules and sizes, an adapter's contents, or where a run stands.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use indexmap::IndexMap;
use indicatif::HumanBytes;
use safetensors::SafeTensors;
use serde_json::{Map, Value};
use tunesmith_methods::load_config;
use tunesmith_models::{LoadedModel, ModelKind, load_model};
use tunesmith_tensor::{Site, SiteKind};
use tunesmith_train::{LOG_FILE, STATE_FILE, TrainerState};

use crate::args::InspectArgs;
use crate::names::resolve;
use crate::plot::LossCurve;

pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let path = resolve(&args.target)?;
    let has = |file: &str| path.join(file).is_file();
    let mut out = io::stdout().lock();
    let mut known = false;
    if has(STATE_FILE) {
        checkpoint(&mut out, &path)?;
        known = true;
    }
    if has(LOG_FILE) {
        run_folder(&mut out, &path)?;
        known = true;
    }
    if has("adapter_config.json") {
        adapter(&mut out, &path, args.all)?;
        known = true;
    }
    if known { Ok(()) } else { model(&mut out, &path, args.all) }
}

fn line(out: &mut dyn Write, name: &str, value: impl std::fmt::Display) -> io::Result<()> {
    writeln!(out, "{name:<14}{value}")
}

/// A model's sizes, and the modules that methods can act on.
fn model(out: &mut dyn Write, path: &Path, all: bool) -> anyhow::Result<()> {
    let LoadedModel { model, format, .. } = load_model(path)?;
    let info = model.info();
    let tensors = model.tensors();
    let values: usize = tensors.iter().map(|(_, _, shape)| shape.iter().product::<usize>()).sum();
    let bytes: usize = tensors.iter().map(|(_, weight, _)| weight.bytes()).sum();
    line(out, "model", path.display())?;
    line(out, "model_type", &info.model_type)?;
    line(out, "parameters", values)?;
    line(out, "in memory", HumanBytes(bytes as u64))?;
    line(out, "stored as", if path.is_file() { "GGUF blocks" } else { format.torch_name() })?;
    line(out, "vocabulary", format!("{}{}", info.vocab_size, if info.tied { ", tied output" } else { "" }))?;
    line(out, "hidden size", info.hidden_size)?;
    match info.kind {
        ModelKind::EncoderDecoder { encoder_blocks, .. } => {
            line(out, "blocks", format!("{encoder_blocks} of the encoder, {} of the decoder", info.blocks))?;
        }
        _ => line(out, "blocks", info.blocks)?,
    }
    line(out, "heads", format!("{} of {}, {} for keys and values", info.heads, info.head_dim, info.kv_heads))?;
    let positions = info.max_positions;
    let context = if positions == u32::MAX as usize { "any".to_owned() } else { positions.to_string() };
    line(out, "context", format!("{context} tokens"))?;
    line(out, "task", info.head.task.name())?;
    if !info.head.labels.is_empty() {
        line(out, "labels", info.head.labels.join(", "))?;
    }
    let linears = model.sites().iter().filter(|site| site.kind == SiteKind::Linear);
    let mut names: Vec<&str> = linears.filter_map(|site| site.path.rsplit('.').next()).collect();
    names.sort_unstable();
    names.dedup();
    line(out, "linear layers", names.join(", "))?;
    writeln!(out, "\nmodules, as target_modules matches them:")?;
    let holders = model.sites().iter().filter(|site| site.kind.is_weight());
    counted(out, holders.map(|site| describe(site, all)))?;
    Ok(())
}

/// A module and its shape; of a block's module, the block's number is a star unless `all`.
fn describe(site: &Site, all: bool) -> String {
    let path = match site.block {
        Some(block) if !all => site.path.replacen(&format!(".{block}."), ".*.", 1),
        _ => site.path.clone(),
    };
    let bias = if site.has_bias { " + bias" } else { "" };
    let shape = match site.kind {
        SiteKind::Linear => format!("linear [{}, {}]", site.rows, site.cols),
        SiteKind::Embedding => format!("embedding [{}, {}]", site.rows, site.cols),
        _ => format!("norm [{}]", site.cols),
    };
    format!("{path:<44}{shape}{bias}")
}

/// Writes each distinct line once, with how often it occurs.
fn counted(out: &mut dyn Write, lines: impl Iterator<Item = String>) -> io::Result<()> {
    let mut counts: IndexMap<String, usize> = IndexMap::new();
    lines.for_each(|line| *counts.entry(line).or_default() += 1);
    for (line, count) in counts {
        let times = if count > 1 { format!(" × {count}") } else { String::new() };
        writeln!(out, "  {line}{times}")?;
    }
    Ok(())
}

/// An adapter's method and tensors.
fn adapter(out: &mut dyn Write, folder: &Path, all: bool) -> anyhow::Result<()> {
    let (config, warnings) = load_config(folder)?;
    let values: Map<String, Value> = serde_json::from_str(&config.to_adapter_config())?;
    line(out, "adapter", folder.display())?;
    for key in ["peft_type", "base_model_name_or_path", "task_type", "r", "lora_alpha", "use_rslora", "bias"] {
        if let Some(value) = values.get(key).filter(|value| !value.is_null()) {
            writeln!(out, "{key:<25} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))?;
        }
    }
    for key in ["target_modules", "modules_to_save", "rank_pattern", "alpha_pattern"] {
        let is_set = |value: &&Value| !value.is_null() && **value != Value::Object(Map::new());
        if let Some(value) = values.get(key).filter(is_set) {
            writeln!(out, "{key:<25} {value}")?;
        }
    }
    for warning in warnings {
        crate::terminal::warn(warning);
    }
    let file = folder.join("adapter_model.safetensors");
    if !file.is_file() {
        bail!("{} holds a configuration, but no adapter_model.safetensors", folder.display());
    }
    let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let tensors = SafeTensors::deserialize(&bytes).with_context(|| format!("{} is damaged", file.display()))?;
    let mut named: Vec<_> = tensors.iter().map(|(name, view)| (name, view.shape().to_vec(), view.dtype())).collect();
    named.sort_by(|left, right| left.0.cmp(right.0));
    let count: usize = named.iter().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
    writeln!(out, "\n{} tensors, {count} values, {}", named.len(), HumanBytes(bytes.len() as u64))?;
    let lines = named.iter().map(|(name, shape, dtype)| {
        let name = if all { (*name).to_owned() } else { without_numbers(name) };
        format!("{name:<62} {dtype:?} {shape:?}")
    });
    counted(out, lines)?;
    Ok(())
}

/// A tensor's name with the numbers between dots as stars.
fn without_numbers(name: &str) -> String {
    let part = |part: &str| if part.parse::<usize>().is_ok() { "*".to_owned() } else { part.to_owned() };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// Where a run stood when a checkpoint was written.
fn checkpoint(out: &mut dyn Write, folder: &Path) -> anyhow::Result<()> {
    let state = TrainerState::load(folder)?;
    line(out, "checkpoint", folder.display())?;
    line(out, "step", format!("{} of {}", state.global_step, state.max_steps))?;
    line(out, "epoch", format!("{}, {} updates into it", state.epoch, state.step_in_epoch))?;
    line(out, "tokens seen", state.num_input_tokens_seen)?;
    if let (Some(metric), Some(step)) = (state.best_metric, state.best_global_step) {
        line(out, "best so far", format!("{metric:.4} after step {step}"))?;
    }
    for key in ["model_name_or_path", "train_file", "learning_rate", "seed"] {
        if let Some(value) = state.config.get(key) {
            line(out, key, value.as_str().map_or_else(|| value.to_string(), str::to_owned))?;
        }
    }
    writeln!(out)?;
    Ok(())
}

/// What a run has written so far.
fn run_folder(out: &mut dyn Write, folder: &Path) -> anyhow::Result<()> {
    let curve = LossCurve::read(&folder.join(LOG_FILE))?;
    line(out, "run", folder.display())?;
    if let Some((step, loss)) = curve.train.last() {
        line(out, "logged until", format!("step {step}, loss {loss:.4}"))?;
        line(out, "loss", curve.sparkline(48))?;
    }
    if let Some((step, loss)) = curve.eval.iter().min_by(|left, right| left.1.total_cmp(&right.1)) {
        line(out, "validation", format!("best loss {loss:.4}, after step {step}"))?;
    }
    for (step, path) in checkpoints(folder) {
        line(out, "checkpoint", format!("step {step}: {}", path.display()))?;
    }
    writeln!(out)?;
    Ok(())
}

/// The checkpoints in a run's folder, by step.
fn checkpoints(folder: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter(|entry| entry.path().join(STATE_FILE).is_file())
        .filter_map(|entry| Some((TrainerState::load(&entry.path()).ok()?.global_step, entry.path())))
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use tunesmith_tensor::Role;

    use super::*;

    #[test]
    fn modules_of_all_blocks_are_one_line() {
        let site = |block: Option<usize>, path: &str| Site {
            path: path.to_owned(),
            kind: SiteKind::Linear,
            role: Role::Query,
            block,
            rows: 4,
            cols: 4,
            has_bias: false,
            stored_transposed: false,
        };
        let sites = [site(Some(0), "layers.0.attn.q"), site(Some(1), "layers.1.attn.q"), site(None, "head")];
        let mut out = Vec::new();
        counted(&mut out, sites.iter().map(|site| describe(site, false))).unwrap();
        let text = String::from_utf8(out).unwrap();
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words.join(" "), "layers.*.attn.q linear [4, 4] × 2 head linear [4, 4]");
        assert!(describe(&sites[1], true).starts_with("layers.1.attn.q "));
        assert_eq!(without_numbers("a.12.b.0"), "a.*.b.*");
    }
}
