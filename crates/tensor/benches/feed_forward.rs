//! Speed of the feed-forwards of SmolLM2-135M's blocks, forward and back to the input, in bf16, alone and with low-rank
//! updates of rank 8.
//!
//! `cargo bench -p tunesmith-tensor --bench feed_forward [-- ROWS...]`. Weights of 30 blocks, so that they come from beyond
//! the caches as they do in a model.

#![allow(clippy::print_stdout, reason = "a benchmark prints its result")]

mod updates;

use std::time::Instant;

use tunesmith_tensor::{
    Activation, Adapter, Base, FeedForwardSites, Forward, FrozenWeight, Gradients, Matrix, Parameter, Precision,
    Segments, SiteId, Tape, Workspace,
};
use updates::{random, updates};

const BLOCKS: usize = 30;
const WIDTH: usize = 576;
const HIDDEN: usize = 1536;
/// `(out, in)` of gate, up and down.
const SHAPES: [(usize, usize); 3] = [(HIDDEN, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN)];

fn main() {
    let rows: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let rows = if rows.is_empty() { vec![1024, 256] } else { rows };
    let weights: Vec<[FrozenWeight; 3]> = (0..BLOCKS)
        .map(|_| [0, 1, 2].map(|at| FrozenWeight::bf16(&random(SHAPES[at].0, SHAPES[at].1, at as u64))))
        .collect();
    let workspace = Workspace::with_precision(Precision::Bf16);
    let updates = updates(BLOCKS, &SHAPES);
    for rows in rows {
        for (name, adapter) in [("alone", None), ("updated", Some(&updates))] {
            let x = Parameter::new("x", random(rows, WIDTH, 3));
            let gradient = random(rows, WIDTH, 4);
            let mut best = [f64::INFINITY; 2];
            for _ in 0..10 {
                let seconds = workspace.run(|| pass(&workspace, &weights, adapter, &x, &gradient));
                best = [0, 1].map(|way: usize| best[way].min(seconds[way]));
            }
            let operations = (2 * 3 * BLOCKS * rows * WIDTH * HIDDEN) as f64;
            for (way, seconds) in [("forward", best[0]), ("back", best[1])] {
                let (ms, speed) = (seconds * 1e3, operations / seconds / 1e9);
                println!("{rows:>5} rows {name:>8} {way:>8} {ms:>7.1} ms {speed:>6.0} GFLOP/s");
            }
        }
    }
}

/// Seconds of the way through all blocks and of the way back.
fn pass(
    workspace: &Workspace,
    weights: &[[FrozenWeight; 3]],
    adapter: Option<&Adapter>,
    x: &Parameter,
    gradient: &Matrix,
) -> [f64; 2] {
    let mut tape = Tape::differentiating(workspace);
    let input = tape.parameter(x);
    let mut forward = Forward::new(&mut tape, Segments::from_lengths([input.rows()]), adapter);
    let start = Instant::now();
    let mut hidden = input;
    for (block, weights) in (0..).step_by(3).zip(weights) {
        let site = |at: usize| (SiteId(block + at), Base { weight: &weights[at], bias: None });
        let (gate, up, down) = (Some(site(0)), site(1), site(2));
        let sites = FeedForwardSites { gate, up, down, activation: Activation::Silu, dropout: 0.0 };
        let fed = forward.feed_forward(&sites, hidden.clone());
        hidden = forward.hidden(SiteId(usize::MAX), &hidden, fed);
    }
    let there = start.elapsed().as_secs_f64();
    let start = Instant::now();
    tape.backward(hidden, gradient.clone(), &mut Gradients::new(workspace));
    [there, start.elapsed().as_secs_f64()]
}
