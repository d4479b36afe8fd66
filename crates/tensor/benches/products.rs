//! Speed of matrix products with frozen weights on the shapes of SmolLM2-135M, and of Llama-7B in 4 bits, forward and back
//! to the input, packing of activations included.
//!
//! `cargo bench -p tunesmith-tensor --bench products [-- ROWS... NAMES...]`. For each number of rows (default 1024, 256, 16
//! and 1) and each weight (whose name holds one of `NAMES`, if there are any): GFLOP/s in bf16 (in float32 on processors without a bf16 unit), and the share of the tile unit's
//! peak, which is measured in the same run by dot products of tiles that never leave their registers.

#![allow(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::time::Instant;

use tunesmith_tensor::{
    FourBitOptions, FourBitType, FourBitWeight, FrozenWeight, Matrix, Precision, Seed, Workspace, tile_unit_peak,
};

/// `(name, out, in, in 4 bits)`.
const WEIGHTS: [(&str, usize, usize, bool); 8] = [
    ("q_proj, o_proj", 576, 576, false),
    ("k_proj, v_proj", 192, 576, false),
    ("gate_proj, up_proj", 1536, 576, false),
    ("down_proj", 576, 1536, false),
    ("lm_head", 49_152, 576, false),
    ("7B q_proj", 4096, 4096, false),
    ("7B q_proj, NF4", 4096, 4096, true),
    ("7B down_proj, NF4", 4096, 11_008, true),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let (rows, names): (Vec<_>, Vec<_>) = arguments.into_iter().partition(|argument| argument.parse::<usize>().is_ok());
    let rows: Vec<usize> = rows.iter().filter_map(|argument| argument.parse().ok()).collect();
    let rows = if rows.is_empty() { vec![1024, 256, 16, 1] } else { rows };
    let threads = rayon::current_num_threads();
    let precision = Precision::detect();
    let workspace = Workspace::with_precision(precision);
    let peak = tile_unit_peak(threads);
    match peak {
        Some(peak) => println!("{threads} threads, peak of the tile unit {peak:.0} GFLOP/s"),
        None => println!("{threads} threads, no tile unit, products in {}", precision.name()),
    }
    println!("{:>5}  {:<20} {:>12} {:>10} {:>7}", "rows", "weight", "direction", "GFLOP/s", "peak");
    for rows in rows {
        for (name, out, input, four_bit) in WEIGHTS {
            if !names.is_empty() && !names.iter().any(|part| name.contains(part.as_str())) {
                continue;
            }
            let values = random(out, input, 0);
            let weight = if four_bit { nf4(&values) } else { FrozenWeight::in_precision(values, precision) };
            let (x, dy) = (random(rows, input, 1), random(rows, out, 2));
            let operations = 2.0 * (rows * out * input) as f64;
            let report = |direction: &str, seconds: f64| {
                let speed = operations / seconds / 1e9;
                let share = peak.map_or(String::new(), |peak| format!("{:.0} %", 100.0 * speed / peak));
                println!("{rows:>5}  {name:<20} {direction:>12} {speed:>10.0} {share:>7}");
            };
            report("forward", median(&workspace, || drop(weight.product(&workspace, &x))));
            report("back", median(&workspace, || drop(weight.product_gradient(&workspace, &dy))));
        }
    }
}

fn nf4(values: &Matrix) -> FrozenWeight {
    let options = FourBitOptions { quant_type: FourBitType::Nf4, double_quant: true };
    let weight = FourBitWeight::quantize(values.data(), values.shape(), options).expect("numbers can be quantised");
    weight.into()
}

fn random(rows: usize, cols: usize, index: u64) -> Matrix {
    let mut stream = Seed(0).stream("bench", index);
    // Drawing is slow, and a few thousand different numbers are as good.
    let drawn: Vec<f32> = (0..4099).map(|_| stream.uniform_between(-1.0, 1.0)).collect();
    let values = drawn.into_iter().cycle().take(rows * cols);
    Matrix::from_vec(rows, cols, values.collect())
}

/// Seconds of one call, the median over some hundredths of a second.
fn median(workspace: &Workspace, work: impl Fn() + Sync) -> f64 {
    workspace.run(|| {
        work();
        let begin = Instant::now();
        let mut seconds = Vec::new();
        while seconds.len() < 9 || (begin.elapsed().as_secs_f64() < 0.1 && seconds.len() < 5000) {
            let start = Instant::now();
            work();
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    })
}
