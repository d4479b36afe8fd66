//! Speed of attention, forward and backward, with SmolLM2-135M's heads: short sequences, and 64k tokens.
//!
//! `cargo bench -p tunesmith-tensor --bench attention -- [float32|bf16]`

#![allow(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::time::Instant;

use tunesmith_tensor::{Attention, Gradients, Matrix, Parameter, Precision, Seed, Segments, Tape, Workspace};

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let options =
        Attention { heads: 9, kv_heads: 3, head_dim: 64, scale: 0.125, causal: true, window: None, dropout: 0.0 };
    for (name, precision) in Precision::NAMED {
        if wanted.first().is_some_and(|wanted| wanted != name) {
            continue;
        }
        let workspace = Workspace::with_precision(precision);
        for (sequences, length, repeats) in [(4, 256, 30), (32, 2048, 1), (8, 8192, 1)] {
            let rows = sequences * length;
            let random = |cols: usize, index| {
                let mut stream = Seed(1).stream("attention", index);
                Matrix::from_vec(rows, cols, (0..rows * cols).map(|_| stream.uniform_between(-1.0, 1.0)).collect())
            };
            let inputs = [(576, 0), (192, 1), (192, 2)].map(|(cols, index)| Parameter::new("x", random(cols, index)));
            let gradient = random(576, 3);
            let segments = Segments::from_lengths(vec![length; sequences]);
            let mut best = [f64::INFINITY; 2];
            for _ in 0..3 {
                let mut seconds = [0.0; 2];
                for _ in 0..repeats {
                    workspace.run(|| {
                        let mut tape = Tape::differentiating(&workspace);
                        let [query, keys, values] = [0, 1, 2].map(|place: usize| tape.parameter(&inputs[place]));
                        let start = Instant::now();
                        let y = tape.attention(&options, &query, &segments, &keys, &values, &segments, None, None);
                        seconds[0] += start.elapsed().as_secs_f64();
                        let gradient = gradient.clone();
                        let start = Instant::now();
                        tape.backward(y, gradient, &mut Gradients::new(&workspace));
                        seconds[1] += start.elapsed().as_secs_f64();
                    });
                }
                best = [0, 1].map(|way: usize| best[way].min(seconds[way]));
            }
            let [forward, backward] = best.map(|seconds| seconds * 1e3);
            println!(
                "{name}: {repeats} × {sequences} × {length} tokens: forward {forward:.1} ms, backward {backward:.1} ms"
            );
        }
    }
}
