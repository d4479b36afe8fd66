//! A long random schedule: requests come, go away, share beginnings; adapters leave memory and are replaced. Every answer
//! must be the one that the request gets alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tunesmith_serve::{AdapterLimits, EngineOptions, Resident};
use tunesmith_tensor::{Precision, Seed};

use crate::model::{Answer, Files, answer, engine, methods, prompt, request, submit};

/// Requests of the schedule; more with TUNESMITH_SLOW_TESTS.
fn requests() -> usize {
    if std::env::var_os("TUNESMITH_SLOW_TESTS").is_some() { 20_000 } else { 600 }
}

#[test]
fn answers_of_a_random_schedule_are_those_of_requests_alone() {
    let files = Files::new("llama", Precision::Bf16);
    let base = files.base();
    let configs: Vec<_> =
        methods().into_iter().filter(|(_, config)| !config.to_string().contains("\"bias\"")).collect();
    for (number, (name, config)) in configs.iter().enumerate() {
        files.write(&base, name, config, number as u64);
    }
    // Room for a few adapters and some pages, so that both are given up again and again.
    let store = files.store(&base, AdapterLimits { resident_bytes: 60_000, ..AdapterLimits::default() });
    let page = 2 * 2 * 64 * 16 * size_of::<f32>();
    let options = EngineOptions { running: 12, prompt_rows: 200, cache_bytes: 40 * page, ..EngineOptions::default() };
    let busy = engine(&base, options);
    let quiet = EngineOptions { keeps_prefixes: false, ..EngineOptions::default() };
    let mut alone: HashMap<(String, usize, usize), Answer> = HashMap::new();
    let mut stream = Seed(11).stream("schedule", 0);
    let mut below = |count: usize| ((stream.uniform() * count as f32) as usize).min(count - 1);
    let lengths = [3, 40, 64, 66, 130, 200];
    let mut pending = Vec::new();
    let mut generations = 0u64;
    for number in 0..requests() {
        if number % 50 == 49 {
            // Another generation of some adapter, while the one before is in use.
            let (name, config) = &configs[below(configs.len())];
            generations += 1;
            files.write(&base, name, config, 100 + generations);
            store.load(name, name, true).unwrap();
        }
        let place = below(configs.len() + 1);
        let adapter: Option<Arc<Resident>> = configs.get(place).map(|(name, _)| store.get(name, None).unwrap());
        let (length, new) = (lengths[below(lengths.len())], 1 + below(5));
        let text = prompt(length, 1 + below(2) as u64);
        let key = (adapter.as_ref().map_or_else(String::new, |adapter| adapter.generation.clone()), length, new);
        let temperature = if new % 2 == 0 { 0.8 } else { 0.0 };
        let key = (format!("{} {text:?}", key.0), key.1, key.2);
        if !alone.contains_key(&key) {
            let solo = engine(&base, quiet);
            alone.insert(key.clone(), answer(submit(&solo, request(adapter.clone(), &text, new, temperature))));
        }
        let mut asked = request(adapter, &text, new, temperature);
        asked.asked = std::time::Instant::now();
        let events = submit(&busy, asked);
        if below(10) == 0 {
            drop(events);
        } else {
            pending.push((key, events));
        }
        if pending.len() > 30 {
            let (key, events) = pending.swap_remove(below(30));
            assert_eq!(answer(events), alone[&key], "request {number}: {key:?}");
        }
    }
    for (key, events) in pending {
        assert_eq!(answer(events), alone[&key], "{key:?}");
    }
    let counts = busy.snapshot();
    assert!(counts.prefix_tokens > 0, "some beginnings were shared");
    assert!(counts.cancelled > 0, "some requests went away");
    assert!(store.totals().evictions > 0, "some adapters left memory");
    for _ in 0..100 {
        if busy.snapshot().running == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let idle = busy.snapshot();
    assert_eq!((idle.running, idle.waiting), (0, 0));
    assert!(idle.pages <= idle.page_limit);
}
