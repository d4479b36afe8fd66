//! float32 products through the `gemm` crate, which picks its micro-kernel by the processor at run time.

use super::{Factors, Gemm, Parallelism, ViewMut};

#[derive(Debug)]
pub(super) struct Blocked;

impl Gemm for Blocked {
    fn gemm(&self, mut c: ViewMut<'_>, beta: f32, sum: &[Factors<'_>], parallelism: Parallelism) {
        for (number, factors) in sum.iter().enumerate() {
            product(c.reborrow(), if number == 0 { beta } else { 1.0 }, *factors, parallelism);
        }
    }
}

#[allow(unsafe_code)]
fn product(c: ViewMut<'_>, beta: f32, factors: Factors<'_>, parallelism: Parallelism) {
    let Factors { alpha, a, b } = factors;
    let parallelism = match parallelism {
        Parallelism::Pool => gemm::Parallelism::Rayon(0),
        Parallelism::Single => gemm::Parallelism::None,
    };
    let c_data: *mut [f32] = c.data;
    // SAFETY: the constructors of `View` and `ViewMut` checked that (rows, columns, strides) stay inside the slices;
    // `c` is borrowed mutably, so it overlaps neither `a` nor `b`; `Kernels::gemm` checked that the sizes agree.
    unsafe {
        gemm::gemm(
            c.rows,
            c.cols,
            a.cols,
            c_data.cast(),
            1,
            c.row_stride as isize,
            beta != 0.0,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            beta,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}
