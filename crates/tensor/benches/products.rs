//! Speed of matrix products with frozen weights on the shapes of SmolLM2-135M, forward and back to the input, packing of
//! activations included.
//!
//! `cargo bench -p tunesmith-tensor --bench products [-- ROWS...]`. For each number of rows (default 1024, 256, 16 and 1)
//! and each weight: GFLOP/s in bf16 (in float32 on processors without a bf16 unit), and the share of the tile unit's
//! peak, which is measured in the same run by dot products of tiles that never leave their registers.

#![allow(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::time::Instant;

use tunesmith_tensor::{FrozenWeight, Kernels, Matrix, Precision, Seed, Workspace};

/// `(name, out, in)`.
const WEIGHTS: [(&str, usize, usize); 5] = [
    ("q_proj, o_proj", 576, 576),
    ("k_proj, v_proj", 192, 576),
    ("gate_proj, up_proj", 1536, 576),
    ("down_proj", 576, 1536),
    ("lm_head", 49_152, 576),
];

fn main() {
    let rows: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let rows = if rows.is_empty() { vec![1024, 256, 16, 1] } else { rows };
    let threads = rayon::current_num_threads();
    let precision = Precision::detect();
    let workspace = Workspace::with_precision(precision);
    let peak = if Kernels::amx().is_some() { Some(peak(threads)) } else { None };
    match peak {
        Some(peak) => println!("{threads} threads, peak of the tile unit {peak:.0} GFLOP/s"),
        None => println!("{threads} threads, no tile unit, products in {}", precision.name()),
    }
    println!("{:>5}  {:<20} {:>12} {:>10} {:>7}", "rows", "weight", "direction", "GFLOP/s", "peak");
    for rows in rows {
        for (name, out, input) in WEIGHTS {
            let weight = FrozenWeight::in_precision(random(out, input, 0), precision);
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

/// GFLOP/s of `threads` threads that multiply tiles in registers: the most any product can reach.
fn peak(threads: usize) -> f64 {
    const PRODUCTS: usize = 4_000_000;
    /// Multiplications and additions of a 16 × 32 by 32 × 16 product.
    const OPERATIONS: usize = 2 * 16 * 16 * 32;
    let best = (0..5).map(|_| {
        let start = Instant::now();
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(|| multiply(PRODUCTS)))));
        (threads * PRODUCTS * OPERATIONS) as f64 / start.elapsed().as_secs_f64() / 1e9
    });
    best.fold(0.0, f64::max)
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn multiply(products: usize) {
    use std::arch::asm;
    #[repr(align(64))]
    struct Configuration([u8; 64]);
    let mut configuration = Configuration([0; 64]);
    configuration.0[0] = 1;
    for tile in 0..8 {
        configuration.0[16 + 2 * tile] = 64;
        configuration.0[48 + tile] = 16;
    }
    // SAFETY: `Kernels::amx` found the tile unit and was allowed to use it; the tiles hold nothing of anybody's.
    unsafe {
        asm!(
            "ldtilecfg [{configuration}]",
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "sub {left}, 4",
            "jnz 2b",
            "tilerelease",
            configuration = in(reg) configuration.0.as_ptr(),
            left = inout(reg) products => _,
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply(_: usize) {}
