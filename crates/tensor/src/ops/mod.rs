//! The closed list of differentiable operations, one a file, each with its analytic backward. They are methods on
//! [`Tape`](crate::Tape). All but attention treat each row on its own.

pub(crate) mod add;
pub(crate) mod attention;
pub(crate) mod cross_entropy;
pub(crate) mod dropout;
pub(crate) mod embedding;
pub(crate) mod gated;
pub(crate) mod linear;
pub(crate) mod product;
pub(crate) mod rms_norm;
pub(crate) mod rotary;
pub(crate) mod rows;
pub(crate) mod transpose;

#[cfg(test)]
pub(crate) mod finite_differences;

use rayon::prelude::*;

use crate::kernels::vectorised;

/// Floats a task should at least have, so that spreading over threads pays.
const TASK_FLOATS: usize = 16 * 1024;

/// Rows a task gets for matrices of `cols` columns. Depends on the shape alone, never on the number of threads.
pub(crate) fn rows_per_task(cols: usize) -> usize {
    TASK_FLOATS.div_ceil(cols.max(1))
}

/// Calls `work(first_row, rows)` for blocks of whole rows of `data`, in parallel, each vectorised.
pub(crate) fn for_each_row_block(data: &mut [f32], cols: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = rows_per_task(cols);
    let block = (rows * cols).max(1);
    let run = |(block, chunk): (usize, &mut [f32])| {
        vectorised(
            #[inline(always)]
            || work(block * rows, chunk),
        )
    };
    if data.len() <= block {
        data.chunks_mut(block).enumerate().for_each(run);
    } else {
        data.par_chunks_mut(block).enumerate().for_each(run);
    }
}
