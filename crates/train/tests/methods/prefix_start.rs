//! A prefix that begins from real words is those words.

use serde_json::json;
use tunesmith_methods::BuiltAdapter;
use tunesmith_models::{Inputs, ModelKind};
use tunesmith_tensor::{Adapter, Forward, Segments, Tape, Workspace};

use crate::scene::{Scene, scenes, words};

const WORDS: &str = "name";
const TEXT: [u32; 5] = [9, 33, 3, 30, 12];

fn logits(scene: &Scene, ids: &[u32], adapter: Option<&Adapter>) -> Vec<f32> {
    let segments = Segments::from_lengths([ids.len()]);
    let mut tape = Tape::evaluating(&Workspace::new());
    let mut forward = Forward::new(&mut tape, segments.clone(), adapter);
    let hidden = scene.model.hidden_states(&mut forward, &Inputs::tokens(ids), None);
    let all = scene.model.logits(&mut forward, &hidden, &segments).value().clone();
    all.data()[(ids.len() - TEXT.len()) * all.cols()..].to_vec()
}

#[test]
fn a_prefix_that_begins_from_words_is_these_words() {
    let config = |projected| {
        json!({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "prefix_init_text": WORDS,
            "prefix_projection": projected})
    };
    for scene in scenes() {
        if scene.model.info().kind != ModelKind::Decoder {
            let refusal = scene.build(&config(false)).err().unwrap().to_string();
            assert!(refusal.contains("this ") && refusal.contains("Leave it out"), "{refusal}");
            continue;
        }
        let words = words(WORDS);
        let expected = logits(&scene, &[&words[..], &TEXT].concat(), None);
        let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        for projected in [false, true] {
            let BuiltAdapter { adapter, .. } = scene.build(&config(projected)).unwrap();
            let found = logits(&scene, &TEXT, Some(&adapter));
            for (found, expected) in found.iter().zip(&expected) {
                let error = (found - expected).abs() / largest;
                assert!(error < 1e-4, "{} {projected}: {found} {expected}", scene.name);
            }
        }
    }
}

#[test]
fn a_network_too_narrow_for_the_words_is_refused() {
    let config = json!({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "prefix_init_text": WORDS,
        "prefix_projection": true, "encoder_hidden_size": 3});
    let refusal = Scene::new("llama/model").build(&config).err().unwrap().to_string();
    assert!(refusal.contains("Set encoder_hidden_size: 4 or more"), "{refusal}");
}
