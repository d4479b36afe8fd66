//! What the machine can do at most: arithmetic of its units, and reading and writing memory.

use std::time::Instant;

use crate::kernels::{Parallelism, View, ViewMut};
use crate::{Kernels, Matrix, Workspace};

/// Rates that no program on this machine exceeds, on all threads of the pool together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MachinePeaks {
    /// Threads of the pool.
    pub threads: usize,
    /// float32 products, in GFLOP/s: the rate of one product of two large matrices.
    pub float32: f64,
    /// bf16 products of the tile unit, in GFLOP/s, on tiles that never leave their registers; `None` without such a unit.
    pub bf16: Option<f64>,
    /// Reading memory that no cache of a core holds, in GB/s.
    pub read: f64,
    /// Writing it.
    pub write: f64,
}

impl MachinePeaks {
    /// Measures them: about a second.
    pub fn measure() -> Self {
        let threads = rayon::current_num_threads();
        Self {
            threads,
            float32: float32_peak(),
            bf16: tile_unit_peak(threads),
            read: read_peak(threads),
            write: write_peak(threads),
        }
    }
}

/// The most work of `times` trials a second.
fn best(times: usize, work: f64, mut trial: impl FnMut()) -> f64 {
    let rate = |()| {
        let start = Instant::now();
        trial();
        work / start.elapsed().as_secs_f64() / 1e9
    };
    std::iter::repeat_n((), times).map(rate).fold(0.0, f64::max)
}

fn float32_peak() -> f64 {
    const SIZE: usize = 1536;
    let workspace = Workspace::new();
    let filled = |value: f32| Matrix::from_vec(SIZE, SIZE, vec![value; SIZE * SIZE]);
    let (a, b, mut c) = (filled(0.5), filled(0.25), filled(0.0));
    let kernels = Kernels::detect();
    workspace.run(|| {
        best(5, 2.0 * (SIZE * SIZE * SIZE) as f64, || {
            kernels.gemm(ViewMut::of(&mut c), 0.0, 1.0, View::of(&a), View::of(&b), Parallelism::Pool);
        })
    })
}

/// Bytes that each thread reads or writes: more than its share of any cache but the largest.
const STRETCH: usize = 128 << 20;

fn read_peak(threads: usize) -> f64 {
    let memory: Vec<Vec<u64>> = (0..threads).map(|_| vec![1; STRETCH / 8]).collect();
    best(4, (threads * STRETCH) as f64, || {
        std::thread::scope(|scope| {
            for part in &memory {
                scope.spawn(|| std::hint::black_box(part.iter().fold(0u64, |sum, word| sum.wrapping_add(*word))));
            }
        });
    })
}

fn write_peak(threads: usize) -> f64 {
    let mut memory: Vec<Vec<u8>> = (0..threads).map(|_| vec![1; STRETCH]).collect();
    let mut value = 1u8;
    best(4, (threads * STRETCH) as f64, || {
        value = value.wrapping_add(1);
        std::thread::scope(|scope| {
            for part in &mut memory {
                scope.spawn(|| std::hint::black_box(part).fill(value));
            }
        });
    })
}

/// GFLOP/s of `threads` threads that multiply tiles in registers; `None` where the processor has no tile unit.
pub fn tile_unit_peak(threads: usize) -> Option<f64> {
    const PRODUCTS: usize = 4_000_000;
    /// Multiplications and additions of a 16 × 32 by 32 × 16 product.
    const OPERATIONS: usize = 2 * 16 * 16 * 32;
    Kernels::amx()?;
    Some(best(5, (threads * PRODUCTS * OPERATIONS) as f64, || {
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(|| multiply(PRODUCTS)))));
    }))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_a_computer() {
        let peaks = MachinePeaks::measure();
        assert!(peaks.float32 > 0.1 && peaks.read > 0.1 && peaks.write > 0.1, "{peaks:?}");
        assert!(peaks.float32 < 1e5 && peaks.read < 1e5 && peaks.write < 1e5, "{peaks:?}");
        assert_eq!(peaks.bf16.is_some(), Kernels::amx().is_some());
        assert!(peaks.bf16.is_none_or(|bf16| bf16 > peaks.float32), "{peaks:?}");
    }
}
