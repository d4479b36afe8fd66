//! The closed list of differentiable operations, one a file, each with its analytic backward. They are methods on
//! [`Tape`](crate::Tape). All but attention treat each row on its own.

pub(crate) mod activation;
pub(crate) mod add;
pub(crate) mod attention;
pub(crate) mod binary_cross_entropy;
pub(crate) mod columns;
pub(crate) mod cross_entropy;
pub(crate) mod dropout;
pub(crate) mod embedding;
pub(crate) mod fastfood;
pub(crate) mod feed_forward;
pub(crate) mod gated;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod low_rank;
pub(crate) mod lstm;
pub(crate) mod pooling;
pub(crate) mod product;
pub(crate) mod reshape;
pub(crate) mod rms_norm;
pub(crate) mod rotary;
pub(crate) mod rows;
pub(crate) mod scale;
pub(crate) mod scale_columns;
pub(crate) mod self_attention;
pub(crate) mod shift;
pub(crate) mod softmax_cross_entropy;
pub(crate) mod span_cross_entropy;
pub(crate) mod sparse_product;
pub(crate) mod squared_error;
pub(crate) mod transpose;
pub(crate) mod updated_linear;

#[cfg(test)]
pub(crate) mod finite_differences;

use crate::kernels::{chunks_in_turn, vectorised};

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
    let run = |block: usize, chunk: &mut [f32]| {
        vectorised(
            #[inline(always)]
            || work(block * rows, chunk),
        )
    };
    chunks_in_turn(data, block, run);
}

#[cfg(test)]
mod tests {
    use super::finite_differences::random;
    use crate::{Activation, Base, FrozenWeight, Gradients, Parameter, Projection, Rotary, Seed, Tape, Workspace};

    /// A small model's worth of operations, large enough that every one of them is shared between threads: its loss and
    /// all gradients as bits.
    fn pass() -> Vec<u32> {
        const ROWS: usize = 300;
        let workspace = Workspace::new();
        let weight = FrozenWeight::float32(random(256, 128, 0));
        let head = FrozenWeight::float32(random(1000, 128, 1));
        let shapes = [(ROWS, 128), (1, 128), (16, 128), (256, 16), (128, 256), (1, 128)];
        let parameters: Vec<Parameter> = shapes
            .iter()
            .enumerate()
            .map(|(index, (rows, cols))| Parameter::new("parameter", random(*rows, *cols, 2 + index as u64)))
            .collect();
        let mut tape = Tape::training(&workspace, Seed(1));
        let [x, norm, a, b, down, shift] = [0, 1, 2, 3, 4, 5].map(|index| tape.parameter(&parameters[index]));
        let normed = tape.rms_norm(&x, &norm, 1e-5);
        let dropped = tape.dropout(&normed, 0.1);
        let low = tape.matmul_nt(&dropped, &a);
        let wide = tape.linear(&normed, &weight, None);
        let wide = tape.add_product(wide, 0..ROWS, &low, &b, 0.5);
        let positions: Vec<usize> = (0..ROWS).collect();
        let turned = tape.rotary(wide.clone(), &Rotary::new(&[1.0, 0.1, 0.01, 0.001], &positions, 1.0));
        let gated = tape.gated(Activation::Silu, &turned, &wide);
        let fed = tape.matmul_nt(&gated, &down);
        let fed = tape.layer_norm(&fed, &norm, &shift, 1e-5);
        let fed = tape.activation(Activation::Gelu, &fed);
        let sum = tape.add(&x, fed);
        let targets: Vec<u32> = (0..ROWS as u32).map(|row| row * 3).collect();
        let projection = Projection::frozen(&sum, Base { weight: &head, bias: None });
        let loss = tape.cross_entropy(&projection, &targets).sum;
        let mut bits = vec![loss.value().data()[0].to_bits()];
        let mut gradients = Gradients::new(&workspace);
        tape.backward_scalar(loss, 1.0, &mut gradients);
        for parameter in &parameters {
            let gradient = gradients.get(parameter.id()).expect("every parameter is reached");
            bits.extend(gradient.data().iter().map(|value| value.to_bits()));
        }
        bits
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let with = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(pass);
        let one = with(1);
        for threads in [2, 3, 5] {
            assert_eq!(with(threads), one, "{threads} threads");
        }
    }
}
