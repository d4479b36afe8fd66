//! A tiny model with a tokenizer of characters, and adapters of every method for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tunesmith_methods::{MethodConfig, build, save_adapter};
use tunesmith_models::{HeadOptions, LoadOptions, Sampling, Task, load};
use tunesmith_serve::{
    AdapterLimits, Adapters, BaseModel, Engine, EngineOptions, Event, FinishReason, Generation, Resident,
};
use tunesmith_tensor::{Precision, Seed};

/// A path below the repository's `fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

/// Tokens that end a text, pad it and begin it, and one for each character.
fn tokenizer() -> Value {
    let mut vocabulary = json!({ "<pad>": 0, "<s>": 1, "</s>": 2 });
    let characters = (32u8..127).map(char::from).filter(|letter| !"`~".contains(*letter));
    for (place, letter) in characters.enumerate() {
        vocabulary[letter.to_string()] = json!(place + 3);
    }
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false })
    };
    json!({
        "version": "1.0",
        "added_tokens": [special(0, "<pad>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": null,
        "pre_tokenizer": { "type": "Split", "pattern": { "Regex": "." }, "behavior": "Isolated", "invert": false },
        "post_processor": null,
        "decoder": { "type": "Fuse" },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<pad>" },
    })
}

const CHAT: &str =
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}";

/// A folder with a model of the fixtures, room for long texts where positions allow it, and adapters beside it.
pub(crate) struct Files {
    pub(crate) folder: tempfile::TempDir,
    precision: Precision,
    task: Option<Task>,
}

impl Files {
    pub(crate) fn new(architecture: &str, precision: Precision) -> Self {
        Self::for_task(architecture, precision, None)
    }

    pub(crate) fn for_task(architecture: &str, precision: Precision, task: Option<Task>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        fs::create_dir_all(&model).unwrap();
        for entry in fixture(architecture).join("model").read_dir().unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
        }
        let config = model.join("config.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        if ["llama", "qwen2", "mistral"].contains(&architecture) {
            json["max_position_embeddings"] = json!(1024);
        }
        fs::write(config, json.to_string()).unwrap();
        fs::write(model.join("tokenizer.json"), tokenizer().to_string()).unwrap();
        let tokens = json!({ "bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT });
        fs::write(model.join("tokenizer_config.json"), tokens.to_string()).unwrap();
        fs::create_dir_all(folder.path().join("adapters")).unwrap();
        Self { folder, precision, task }
    }

    /// The same weights of a GPT-2 with one head, which is as wide as all were.
    pub(crate) fn with_one_head(self) -> Self {
        let config = self.folder.path().join("model/config.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        json["n_head"] = json!(1);
        fs::write(config, json.to_string()).unwrap();
        self
    }

    pub(crate) fn adapters(&self) -> PathBuf {
        self.folder.path().join("adapters")
    }

    pub(crate) fn base(&self) -> Arc<BaseModel> {
        let labels = self.task.filter(|task| task.has_labels()).map(|_| vec!["no".to_owned(), "yes".to_owned()]);
        let head = HeadOptions { task: self.task, labels, ignore_mismatched_sizes: true, ..HeadOptions::default() };
        let options = LoadOptions { precision: self.precision, head, ..LoadOptions::default() };
        Arc::new(BaseModel::new("base", load(&self.folder.path().join("model"), &options).unwrap()))
    }

    pub(crate) fn store(&self, base: &Arc<BaseModel>, limits: AdapterLimits) -> Arc<Adapters> {
        Arc::new(Adapters::new(Arc::clone(base), Some(&self.adapters()), limits).unwrap())
    }

    /// Writes an adapter of random values.
    pub(crate) fn write(&self, base: &BaseModel, name: &str, config: &Value, seed: u64) {
        write(base, &self.adapters().join(name), config, seed);
    }
}

/// Writes an adapter of random values into a folder.
pub(crate) fn write(base: &BaseModel, folder: &Path, config: &Value, seed: u64) {
    base.describe(|description| {
        let method = MethodConfig::from_run_file(config).unwrap_or_else(|error| panic!("{config}: {error}"));
        let mut built = build(&method, description, Seed(seed)).unwrap_or_else(|error| panic!("{config}: {error}"));
        for parameter in built.adapter.parameters_mut() {
            let mut stream = Seed(seed).stream(parameter.name(), 1);
            parameter.value_mut().data_mut().iter_mut().for_each(|value| *value += 0.3 * stream.normal());
        }
        save_adapter(folder, &built).unwrap();
    });
}

/// A configuration of every method, with a name for each.
pub(crate) fn methods() -> Vec<(&'static str, Value)> {
    vec![
        ("lora", json!({ "peft_type": "LORA", "r": 3, "target_modules": "all-linear" })),
        ("lora-bias", json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "all" })),
        ("dora", json!({ "peft_type": "LORA", "r": 4, "use_dora": true })),
        ("lora-embedding", json!({ "peft_type": "LORA", "r": 3, "target_modules": ["q_proj", "embed_tokens"] })),
        ("tokens", json!({ "peft_type": "TRAINABLE_TOKENS", "token_indices": [33, 40, 50] })),
        ("adalora", json!({ "peft_type": "ADALORA", "init_r": 4, "target_r": 2, "total_step": 10 })),
        ("dylora", json!({ "peft_type": "DYLORA", "r": 4, "rank": 3 })),
        ("vera", json!({ "peft_type": "VERA", "r": 5 })),
        ("ia3", json!({ "peft_type": "IA3" })),
        ("ln", json!({ "peft_type": "LN_TUNING", "target_modules": ["input_layernorm", "norm"] })),
        ("full", json!({ "peft_type": "FULL" })),
        ("intrinsic", json!({ "peft_type": "INTRINSIC", "intrinsic_dimension": 50 })),
        ("prompt", json!({ "peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5 })),
        ("p-tuning", json!({ "peft_type": "P_TUNING", "num_virtual_tokens": 9, "encoder_hidden_size": 16 })),
        ("prefix", json!({ "peft_type": "PREFIX_TUNING", "num_virtual_tokens": 7 })),
        ("houlsby", json!({ "peft_type": "HOULSBY", "reduction_factor": 4 })),
        ("pfeiffer", json!({ "peft_type": "PFEIFFER", "reduction_factor": 4 })),
        ("parallel", json!({ "peft_type": "PARALLEL", "reduction_factor": 2 })),
        (
            "several",
            json!([{ "peft_type": "LORA", "target_modules": ["q_proj"] }, { "peft_type": "IA3",
            "target_modules": ["v_proj"], "feedforward_modules": [] }]),
        ),
    ]
}

/// An engine of few pages, which therefore has to give some up.
pub(crate) fn engine(base: &Arc<BaseModel>, options: EngineOptions) -> Engine {
    Engine::start(Arc::clone(base), options)
}

/// A request for `new` tokens.
pub(crate) fn request(adapter: Option<Arc<Resident>>, prompt: &[u32], new: usize, temperature: f32) -> Generation {
    Generation {
        adapter,
        prompt: prompt.to_vec(),
        max_tokens: new,
        min_tokens: 0,
        sampling: Sampling { temperature, ..Sampling::default() },
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: Vec::new(),
        stop: Vec::new(),
        stop_token_ids: Vec::new(),
        ignores_eos: true,
        seed: (Seed(7), 0),
        logprobs: Some(2),
        grammar: None,
        cache_salt: String::new(),
        choice: 0,
        asked: Instant::now(),
        events: unbounded_channel().0,
    }
}

pub(crate) type Events = UnboundedReceiver<(usize, Event)>;

/// Hands a request over.
pub(crate) fn submit(engine: &Engine, mut generation: Generation) -> Events {
    let (sender, receiver) = unbounded_channel();
    generation.events = sender;
    engine.generate(generation).unwrap();
    receiver
}

/// The ids and the bits of the log-probabilities of an answer, and why it ended.
pub(crate) type Answer = (Vec<(u32, u32)>, FinishReason);

/// Waits for an answer.
pub(crate) fn answer(mut events: Events) -> Answer {
    let mut tokens = Vec::new();
    loop {
        match events.blocking_recv().expect("an answer ends").1 {
            Event::Text { tokens: new, .. } => {
                tokens.extend(new.iter().map(|token| (token.id, token.logprob.to_bits())));
                for token in new {
                    tokens.extend(token.top.iter().map(|(id, logprob)| (*id, logprob.to_bits())));
                }
            }
            Event::Finished { reason, .. } => return (tokens, reason),
            Event::Failed(reason) => panic!("{reason}"),
        }
    }
}

/// A prompt of random tokens.
pub(crate) fn prompt(length: usize, seed: u64) -> Vec<u32> {
    let mut stream = Seed(seed).stream("prompt", length as u64);
    (0..length).map(|_| 3 + (stream.uniform() * 93.0) as u32).collect()
}
