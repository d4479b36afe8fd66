//! Speed and memory of QLoRA on a model of Llama-7B's shape: random 4-bit codes and scales (NF4, double quantisation),
//! bf16 embeddings, LoRA on all linears, AdamW, gradient checkpointing. The model never exists in floats.
//!
//! `cargo bench -p tunesmith-train --bench qlora_7b -- [LAYERS [SEQUENCE [RANK [STEPS [PRECISION]]]]]` (32, 512, 16, 3,
//! the processor's). Fewer layers scale: all are alike. Prints the slowest operations and one line of JSON.

#![allow(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tunesmith_models::llama::LlamaConfig;
use tunesmith_models::{Llama, Model, ModelError, StoredTensor, WeightSource};
use tunesmith_tensor::{
    Absmax, BLOCK_SIZE, FourBitType, FourBitWeight, FrozenWeight, Matrix, NESTED_BLOCK_SIZE, NestedAbsmax, Precision,
    Seed, Workspace, dynamic_map,
};
use tunesmith_train::{StepBenchmark, peak_memory};

const HIDDEN: usize = 4096;
const INNER: usize = 11_008;
const VOCABULARY: usize = 32_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let number = |place: usize, default: usize| {
        arguments.get(place).map_or(default, |text| text.parse().expect("sizes are whole numbers"))
    };
    let (layers, sequence, rank, steps) = (number(0, 32), number(1, 512), number(2, 16), number(3, 3));
    let precision = arguments.get(4).map_or_else(Precision::detect, |name| {
        let named = Precision::NAMED.into_iter().find(|(known, _)| known == name);
        named.expect("a precision is float32 or bf16").1
    });
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "vocab_size": VOCABULARY,
        "num_hidden_layers": layers, "num_attention_heads": 32, "max_position_embeddings": 2048,
        "tie_word_embeddings": false,
    });
    let Value::Object(config) = config else { unreachable!("the literal above is an object") };
    let config = LlamaConfig::from_json(config, Path::new("7b")).expect("the configuration is valid");
    let model = Llama::from_source(config, &mut RandomSource::new(layers)).expect("the weights fit");
    let bytes: usize = model.tensors().iter().map(|(_, weight, _)| weight.bytes()).sum();
    let loaded = peak_memory();

    let peft = json!({"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": "all-linear"});
    let benchmark = StepBenchmark { adapters: 1, batch: 1, sequence, steps, peft };
    let measured =
        benchmark.run(&model, &Workspace::with_precision(precision).checkpointing(true)).expect("the adapter fits");
    for operation in measured.operations.iter().take(12) {
        let (name, direction) = (operation.name, format!("{:?}", operation.direction));
        println!("{name:24} {direction:9} {:9.1} ms {:7.1} calls", operation.seconds * 1e3, operation.calls);
    }
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let result = json!({
        "layers": layers, "seq": sequence, "rank": rank, "precision": precision.name(),
        "threads": rayon::current_num_threads(), "trainable": measured.trainable,
        "model_gb": gb(bytes as u64), "loaded_peak_gb": loaded.map(gb), "peak_rss_gb": measured.peak_memory.map(gb),
        "tokens_per_s": measured.tokens_per_second(), "steps_s": measured.seconds,
    });
    println!("{result}");
}

/// Random weights, made as they are asked for.
struct RandomSource {
    stored: BTreeMap<String, StoredTensor>,
    /// Random bytes that all codes are cut from.
    bytes: Vec<u8>,
}

impl RandomSource {
    fn new(layers: usize) -> Self {
        let mut stored = BTreeMap::new();
        let mut add = |name: String, shape: &[usize]| {
            stored.insert(name, StoredTensor { shape: shape.to_vec(), file: "7b".into(), unsupported: None });
        };
        add("model.embed_tokens.weight".to_owned(), &[VOCABULARY, HIDDEN]);
        add("lm_head.weight".to_owned(), &[VOCABULARY, HIDDEN]);
        add("model.norm.weight".to_owned(), &[HIDDEN]);
        for layer in 0..layers {
            for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                add(format!("model.layers.{layer}.self_attn.{name}.weight"), &[HIDDEN, HIDDEN]);
            }
            for name in ["gate_proj", "up_proj"] {
                add(format!("model.layers.{layer}.mlp.{name}.weight"), &[INNER, HIDDEN]);
            }
            add(format!("model.layers.{layer}.mlp.down_proj.weight"), &[HIDDEN, INNER]);
            for name in ["input_layernorm", "post_attention_layernorm"] {
                add(format!("model.layers.{layer}.{name}.weight"), &[HIDDEN]);
            }
        }
        let mut stream = Seed(7).stream("codes", 0);
        let bytes = (0..1 << 17).flat_map(|_| stream.next_u64().to_le_bytes()).collect();
        Self { stored, bytes }
    }

    fn random_bytes(&self, count: usize) -> Vec<u8> {
        self.bytes.iter().copied().cycle().take(count).collect()
    }
}

impl WeightSource for RandomSource {
    fn path(&self) -> &Path {
        Path::new("7b")
    }

    fn stored(&self) -> &BTreeMap<String, StoredTensor> {
        &self.stored
    }

    fn supported_formats(&self) -> &'static str {
        "NF4"
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>, ModelError> {
        let shape = &self.stored[name].shape;
        if shape.len() == 1 {
            return Ok(vec![1.0; shape[0]]);
        }
        let mut stream = Seed(8).stream(name, 0);
        Ok((0..shape.iter().product()).map(|_| stream.uniform_between(-0.03, 0.03)).collect())
    }

    fn encoded(&mut self, name: &str) -> Result<Option<FrozenWeight>, ModelError> {
        let shape = &self.stored[name].shape;
        if !name.contains(".layers.") {
            return Ok(None);
        }
        let shape = (shape[0], shape[1]);
        let scales = (shape.0 * shape.1).div_ceil(BLOCK_SIZE);
        let absmax = Absmax::Nested(NestedAbsmax {
            codes: self.random_bytes(scales),
            absmax: vec![0.02; scales.div_ceil(NESTED_BLOCK_SIZE)],
            quant_map: Box::new(dynamic_map()),
            offset: 0.05,
            block_size: NESTED_BLOCK_SIZE,
        });
        let codes = self.random_bytes(shape.0 * shape.1 / 2).into();
        let weight = FourBitWeight::from_parts(shape, codes, absmax, BLOCK_SIZE, FourBitType::Nf4.quant_map());
        Ok(Some(weight.expect("the parts fit").into()))
    }

    fn keep(&self, _: &str, matrix: Matrix) -> Result<FrozenWeight, ModelError> {
        Ok(FrozenWeight::bf16(&matrix))
    }
}
