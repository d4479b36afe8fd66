//! What virtual tokens must come to, whatever the reference's numbers: closed forms, and generation with a cache and in
//! batches that mix adapters.

use std::sync::{Arc, Mutex};

use tunesmith_methods::{ActivationsTuner, PrefixTuner, PromptTuner, SpecialTokens, SpecialTokensTuner};
use tunesmith_models::{Cache, Inputs, Model};
use tunesmith_tensor::{
    Adapter, Forward, HiddenTuner, Matrix, Parameter, Precision, Role, Segments, SiteId, SubLayer, Tape, Trainable,
    Var, Workspace,
};

use crate::case::{load, load_base};
use crate::compare::relative_error;
use crate::fixture;

const ARCHITECTURES: [&str; 5] = ["llama", "mistral", "qwen2", "gpt2", "gemma3"];
const REAL: [u32; 4] = [7, 21, 4, 50];
const TEXT: [u32; 5] = [9, 33, 3, 60, 12];

fn models() -> Vec<Arc<dyn Model>> {
    let folders = ARCHITECTURES.map(|name| fixture::root().join(name).join("model"));
    let models: Vec<_> = folders.iter().filter(|folder| folder.exists()).map(|folder| load_base(folder)).collect();
    assert!(!models.is_empty(), "there are decoders among the fixtures");
    models
}

/// Logits `[tokens, vocabulary]` of one sequence, or those of a batch with an adapter a sequence.
fn logits(model: &dyn Model, sequences: &[&[u32]], adapters: &[Option<&Adapter>], cache: Option<&mut Cache>) -> Matrix {
    let segments = Segments::from_lengths(sequences.iter().map(|ids| ids.len()));
    let mut tape = Tape::evaluating(&Workspace::new());
    let mut forward = Forward::mixed(&mut tape, segments.clone(), adapters);
    let hidden = model.hidden_states(&mut forward, &Inputs::tokens(&sequences.concat()), cache);
    model.logits(&mut forward, &hidden, &segments).value().clone()
}

/// The last rows of the model's logits for the real tokens and the text after them.
fn literal(model: &dyn Model) -> Vec<f32> {
    let all = logits(model, &[&[&REAL[..], &TEXT].concat()], &[None], None);
    all.data()[REAL.len() * all.cols()..].to_vec()
}

fn site(model: &dyn Model, role: Role) -> SiteId {
    sites(model, role)[0]
}

fn sites(model: &dyn Model, role: Role) -> Vec<SiteId> {
    let sites = model.sites().iter().enumerate().filter(|(_, site)| site.role == role);
    sites.map(|(index, _)| SiteId(index)).collect()
}

/// The model's embeddings of the real tokens. Gemma scales them after looking them up, at its own border.
fn embeddings(model: &dyn Model, ids: &[u32]) -> Matrix {
    let mut tape = Tape::evaluating(&Workspace::new());
    let table = site(model, Role::TokenEmbedding);
    let mut forward = Forward::new(&mut tape, Segments::from_lengths([ids.len()]), None);
    let rows = forward.embedding(table, model.base(table).expect("embeddings"), ids).value().clone();
    let factor = if model.info().model_type.starts_with("gemma") { (rows.cols() as f32).sqrt() } else { 1.0 };
    Matrix::from_vec(rows.rows(), rows.cols(), rows.data().iter().map(|value| value * factor).collect())
}

fn close(found: &[f32], expected: &[f32], what: &str) {
    let error = relative_error(found, expected);
    assert!(error < 1e-5, "{what}: {error:.1e}");
}

#[test]
fn a_prompt_of_real_embeddings_is_the_literal_text() {
    for model in models() {
        let mut adapter = Adapter::new();
        let prompt = PromptTuner::new(embeddings(&*model, &REAL), REAL.len());
        adapter.insert_input(site(&*model, Role::Input), Box::new(prompt));
        let found = logits(&*model, &[&TEXT], &[Some(&adapter)], None);
        close(found.data(), &literal(&*model), &model.info().model_type);
    }
}

#[test]
fn a_prefix_of_recorded_keys_and_values_is_the_literal_text() {
    for model in models() {
        let mut cache = Cache::new(1, model.info(), Precision::Float32);
        logits(&*model, &[&REAL], &[None], Some(&mut cache));
        let mut adapter = Adapter::new();
        for (block, site) in sites(&*model, Role::SelfAttention).into_iter().enumerate() {
            let (keys, values) = cache.keys_and_values(0, block);
            adapter.insert_attention(site, Box::new(PrefixTuner::new(&keys, &values)));
        }
        let found = logits(&*model, &[&TEXT], &[Some(&adapter)], None);
        close(found.data(), &literal(&*model), &model.info().model_type);
    }
}

/// Changes nothing and keeps the stream.
struct Recorder(Arc<Mutex<Vec<Matrix>>>);

impl Trainable for Recorder {
    fn parameters(&self) -> Vec<&Parameter> {
        Vec::new()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        Vec::new()
    }
}

impl HiddenTuner for Recorder {
    fn forward(&self, tape: &mut Tape, sub_layer: SubLayer<'_>) -> Var {
        let stream = sub_layer.stream(tape);
        self.0.lock().expect("no other thread failed").push(stream.value().clone());
        stream
    }
}

#[test]
fn special_tokens_with_recorded_activations_are_the_literal_text() {
    for model in models() {
        let recorded = Arc::new(Mutex::new(Vec::new()));
        let mut recorder = Adapter::new();
        let after = sites(&*model, Role::AfterFeedForward);
        for site in &after {
            recorder.insert_hidden(*site, Box::new(Recorder(Arc::clone(&recorded))));
        }
        // Two of the real tokens stand before the text and two after its first three tokens.
        let (first, last) = TEXT.split_at(3);
        let whole = [&REAL[..2], first, &REAL[2..], last].concat();
        let expected = logits(&*model, &[&whole], &[Some(&recorder)], None);
        let special = |rows: &Matrix| {
            let rows = [0, 1, 5, 6].map(|row| rows.row(row).to_vec());
            Matrix::from_vec(4, rows[0].len(), rows.concat())
        };
        let tokens = SpecialTokens { prefix_tokens: 2, infix_tokens: 2 };
        let mut adapter = Adapter::new();
        let start = special(&embeddings(&*model, &whole));
        let input = SpecialTokensTuner::new("input", tokens, start);
        adapter.insert_input(site(&*model, Role::Input), Box::new(input));
        let streams = recorded.lock().unwrap();
        for (site, stream) in after.iter().zip(streams.iter()).take(after.len() - 1) {
            adapter.insert_hidden(*site, Box::new(ActivationsTuner::new("after", special(stream))));
        }
        let mut tape = Tape::evaluating(&Workspace::new());
        let segments = Segments::from_lengths([TEXT.len()]);
        let mut forward = Forward::new(&mut tape, segments.clone(), Some(&adapter)).with_prompts(vec![3]);
        let hidden = model.hidden_states(&mut forward, &Inputs::tokens(&TEXT), None);
        let found = model.logits(&mut forward, &hidden, &segments).value().clone();
        // The last special token speaks for the third token of the text.
        let kept = [2, 3, 6, 7, 8].map(|row| expected.row(row).to_vec()).concat();
        close(found.data(), &kept, &model.info().model_type);
    }
}

/// Greedy continuations of a batch with a cache, `steps` tokens each.
fn continued(model: &dyn Model, prompts: &[&[u32]], adapters: &[Option<&Adapter>], steps: usize) -> Vec<Vec<f32>> {
    let mut cache = Cache::new(prompts.len(), model.info(), Precision::Float32);
    let mut inputs: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.to_vec()).collect();
    let mut seen = vec![Vec::new(); prompts.len()];
    for _ in 0..steps {
        let slices: Vec<&[u32]> = inputs.iter().map(Vec::as_slice).collect();
        let found = logits(model, &slices, adapters, Some(&mut cache));
        let segments = Segments::from_lengths(inputs.iter().map(Vec::len));
        for (sequence, range) in segments.ranges().enumerate() {
            let row = found.row(range.end - 1);
            let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).expect("a vocabulary").0;
            seen[sequence].extend_from_slice(row);
            inputs[sequence] = vec![best as u32];
        }
    }
    seen
}

#[test]
fn a_batch_of_several_methods_generates_what_each_does_alone_and_without_a_cache() {
    for arch in ["llama", "mistral", "gpt2"] {
        let folder = fixture::root().join(arch);
        if !folder.exists() {
            continue;
        }
        let model = load_base(&folder.join("model"));
        let adapter = |name: &str| load(&folder.join(name), &*model).adapter;
        let names = ["prompt-tuning", "prefix-tuning", "houlsby/adapter", "lora", "p-tuning"];
        let adapters: Vec<Adapter> =
            names.iter().filter(|name| folder.join(name).exists()).map(|name| adapter(name)).collect();
        let mut all: Vec<Option<&Adapter>> = adapters.iter().map(Some).collect();
        all.push(None);
        let prompts = [&TEXT[..], &TEXT[1..], &REAL, &TEXT[..2], &REAL[..1], &TEXT];
        let prompts = &prompts[prompts.len() - all.len()..];
        let together = continued(&*model, prompts, &all, 6);
        for ((prompt, adapter), together) in prompts.iter().zip(&all).zip(&together) {
            let alone = &continued(&*model, &[prompt], &[*adapter], 6)[0];
            close(together, alone, arch);
            let mut ids = prompt.to_vec();
            for row in alone.chunks_exact(model.info().vocab_size) {
                let found = logits(&*model, &[&ids], &[*adapter], None);
                close(found.row(ids.len() - 1), row, &format!("{arch} without a cache"));
                let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).expect("a vocabulary").0;
                ids.push(best as u32);
            }
        }
    }
}
