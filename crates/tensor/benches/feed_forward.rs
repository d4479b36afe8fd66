//! Speed of the feed-forwards of SmolLM2-135M's blocks, forward and back to the input, in bf16.
//!
//! `cargo bench -p tunesmith-tensor --bench feed_forward [-- ROWS...]`. Weights of 30 blocks, so that they come from beyond
//! the caches as they do in a model.

#![allow(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::time::Instant;

use tunesmith_tensor::{
    Activation, Base, FeedForwardSites, Forward, FrozenWeight, Gradients, Matrix, Parameter, Precision, Seed, Segments,
    SiteId, Tape, Workspace,
};

const BLOCKS: usize = 30;
const WIDTH: usize = 576;
const HIDDEN: usize = 1536;

fn main() {
    let rows: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let rows = if rows.is_empty() { vec![1024, 256] } else { rows };
    let weights: Vec<[FrozenWeight; 3]> = (0..BLOCKS)
        .map(|_| {
            [(HIDDEN, WIDTH, 0), (HIDDEN, WIDTH, 1), (WIDTH, HIDDEN, 2)]
                .map(|(out, input, index)| FrozenWeight::bf16(&random(out, input, index)))
        })
        .collect();
    let workspace = Workspace::with_precision(Precision::Bf16);
    for rows in rows {
        let x = Parameter::new("x", random(rows, WIDTH, 3));
        let gradient = random(rows, WIDTH, 4);
        let mut best = [f64::INFINITY; 2];
        for _ in 0..10 {
            let mut seconds = [0.0; 2];
            workspace.run(|| {
                let mut tape = Tape::differentiating(&workspace);
                let input = tape.parameter(&x);
                let mut forward = Forward::new(&mut tape, Segments::from_lengths([rows]), None);
                let start = Instant::now();
                let mut hidden = input;
                for [gate, up, down] in &weights {
                    let site = |weight| (SiteId(0), Base { weight, bias: None });
                    let sites = FeedForwardSites {
                        gate: Some(site(gate)),
                        up: site(up),
                        down: site(down),
                        activation: Activation::Silu,
                        dropout: 0.0,
                    };
                    hidden = forward.feed_forward(&sites, hidden);
                }
                seconds[0] = start.elapsed().as_secs_f64();
                let start = Instant::now();
                tape.backward(hidden, gradient.clone(), &mut Gradients::new(&workspace));
                seconds[1] = start.elapsed().as_secs_f64();
            });
            best = [0, 1].map(|way: usize| best[way].min(seconds[way]));
        }
        let operations = (2 * 3 * BLOCKS * rows * WIDTH * HIDDEN) as f64;
        for (name, seconds) in [("forward", best[0]), ("back", best[1])] {
            println!("{rows:>5} rows {name:>8} {:>7.1} ms {:>6.0} GFLOP/s", seconds * 1e3, operations / seconds / 1e9);
        }
    }
}

/// Small numbers, so that values stay finite through all blocks.
fn random(rows: usize, cols: usize, index: u64) -> Matrix {
    let mut stream = Seed(0).stream("bench", index);
    let bound = 1.0 / (cols as f32).sqrt();
    let drawn: Vec<f32> = (0..4099).map(|_| stream.uniform_between(-bound, bound)).collect();
    Matrix::from_vec(rows, cols, drawn.into_iter().cycle().take(rows * cols).collect())
}
