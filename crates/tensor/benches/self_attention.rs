//! Speed of the self-attentions of SmolLM2-135M's blocks, forward and back to the input, in bf16, alone and with low-rank
//! updates of rank 8: four sequences.
//!
//! `cargo bench -p tunesmith-tensor --bench self_attention [-- LENGTHS...]`, lengths from 65 to 512. Weights of 30
//! blocks, so that they come from beyond the caches as they do in a model.

#![allow(clippy::print_stdout, reason = "a benchmark prints its result")]

mod updates;

use std::time::Instant;

use tunesmith_tensor::{
    Adapter, Attention, Base, Forward, FrozenWeight, Gradients, Matrix, Parameter, Precision, Rotary, Segments,
    SelfAttentionSites, SiteId, Tape, Workspace,
};
use updates::{random, updates};

const BLOCKS: usize = 30;
const WIDTH: usize = 576;
const SEQUENCES: usize = 4;
const OPTIONS: Attention =
    Attention { heads: 9, kv_heads: 3, head_dim: 64, scale: 0.125, causal: true, window: None, dropout: 0.0 };
/// `(out, in)` of query, keys, values and output.
const SHAPES: [(usize, usize); 4] = [(WIDTH, WIDTH), (192, WIDTH), (192, WIDTH), (WIDTH, WIDTH)];

fn main() {
    let lengths: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let lengths = if lengths.is_empty() { vec![256, 128] } else { lengths };
    let weights: Vec<[FrozenWeight; 4]> = (0..BLOCKS)
        .map(|_| [0, 1, 2, 3].map(|at| FrozenWeight::bf16(&random(SHAPES[at].0, SHAPES[at].1, at as u64))))
        .collect();
    let workspace = Workspace::with_precision(Precision::Bf16);
    let updates = updates(BLOCKS, &SHAPES);
    for length in lengths {
        for (name, adapter) in [("alone", None), ("updated", Some(&updates))] {
            let x = Parameter::new("x", random(SEQUENCES * length, WIDTH, 3));
            let gradient = random(SEQUENCES * length, WIDTH, 4);
            let mut best = [f64::INFINITY; 2];
            for _ in 0..10 {
                let seconds = workspace.run(|| pass(&workspace, &weights, adapter, &x, &gradient));
                best = [0, 1].map(|way: usize| best[way].min(seconds[way]));
            }
            for (way, seconds) in [("forward", best[0]), ("back", best[1])] {
                println!("{SEQUENCES} × {length:>4} rows {name:>8} {way:>8} {:>7.1} ms", seconds * 1e3);
            }
        }
    }
}

/// Seconds of the way through all blocks and of the way back.
fn pass(
    workspace: &Workspace,
    weights: &[[FrozenWeight; 4]],
    adapter: Option<&Adapter>,
    x: &Parameter,
    gradient: &Matrix,
) -> [f64; 2] {
    let length = gradient.rows() / SEQUENCES;
    let positions: Vec<usize> = (0..SEQUENCES).flat_map(|_| 0..length).collect();
    let frequencies: Vec<f32> = (0..32).map(|feature| 1e4f32.powf(-(feature as f32) / 32.0)).collect();
    let rotary = Rotary::new(&frequencies, &positions, 1.0);
    let mut tape = Tape::differentiating(workspace);
    let input = tape.parameter(x);
    let mut forward = Forward::new(&mut tape, Segments::from_lengths([length; SEQUENCES]), adapter);
    let start = Instant::now();
    let mut hidden = input;
    for (block, weights) in (0..).step_by(4).zip(weights) {
        let site = |at: usize| (SiteId(block + at), Base { weight: &weights[at], bias: None });
        let (query, keys, values, output) = (site(0), site(1), site(2), site(3));
        let sites = SelfAttentionSites { query, keys, values, attention: SiteId(usize::MAX), output };
        let attended = forward.self_attention(&sites, &OPTIONS, Some(&rotary), &hidden).expect("lengths are 65 to 512");
        hidden = forward.hidden(SiteId(usize::MAX), &hidden, attended);
    }
    let there = start.elapsed().as_secs_f64();
    let start = Instant::now();
    tape.backward(hidden, gradient.clone(), &mut Gradients::new(workspace));
    [there, start.elapsed().as_secs_f64()]
}
