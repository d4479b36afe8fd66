//! Activation functions, value by value.

use std::marker::PhantomData;
use std::sync::Arc;

use rayon::prelude::*;

use crate::kernels::{erf, exp, exp2_rough, reciprocal_rough, vectorised};
use crate::ops::{for_each_row_block, rows_per_task};
use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Precision, Tape, Var};

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x·Φ(x)` with the normal distribution function `Φ(x) = (1 + erf(x/√2))/2` (Hendrycks and Gimpel 2016, eq. 1).
    Gelu,
    /// `x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2` (Hendrycks and Gimpel 2016, eq. 2): `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// `x·σ(x)`, also called swish.
    Silu,
    /// `max(x, 0)`.
    Relu,
    /// `tanh(x)`.
    Tanh,
}

/// A function with its derivative, known when compiling so that loops over it vectorise.
pub(crate) trait Function: Copy + Send + Sync + 'static {
    fn value(x: f32) -> f32;
    /// The value and the derivative at `x`.
    fn value_and_slope(x: f32) -> (f32, f32);
    /// The value within 2e-5 of the larger of itself and 1: for products in bf16, which round it by far more.
    #[inline(always)]
    fn rough_value(x: f32) -> f32 {
        Self::value(x)
    }
    /// Both, as near.
    #[inline(always)]
    fn rough_value_and_slope(x: f32) -> (f32, f32) {
        Self::value_and_slope(x)
    }
}

/// A function's rough form.
#[derive(Clone, Copy)]
pub(crate) struct Rough<F>(PhantomData<F>);

impl<F: Function> Function for Rough<F> {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        F::rough_value(x)
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        F::rough_value_and_slope(x)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Gelu;
#[derive(Clone, Copy)]
pub(crate) struct GeluTanh;
#[derive(Clone, Copy)]
pub(crate) struct Silu;
#[derive(Clone, Copy)]
pub(crate) struct Relu;
#[derive(Clone, Copy)]
pub(crate) struct Tanh;

/// Calls `$work::<F>($arguments)` for the function `F` that `$activation` names.
macro_rules! with_function {
    ($activation:expr, $work:ident($($argument:expr),*)) => {
        match $activation {
            $crate::ops::activation::Activation::Gelu => $work::<$crate::ops::activation::Gelu>($($argument),*),
            $crate::ops::activation::Activation::GeluTanh => $work::<$crate::ops::activation::GeluTanh>($($argument),*),
            $crate::ops::activation::Activation::Silu => $work::<$crate::ops::activation::Silu>($($argument),*),
            $crate::ops::activation::Activation::Relu => $work::<$crate::ops::activation::Relu>($($argument),*),
            $crate::ops::activation::Activation::Tanh => $work::<$crate::ops::activation::Tanh>($($argument),*),
        }
    };
}
pub(crate) use with_function;

impl Function for Gelu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        const INVERSE_ROOT_OF_TAU: f32 = 0.398_942_3;
        let below = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
        (x * below, below + x * INVERSE_ROOT_OF_TAU * exp(-0.5 * x * x))
    }

    #[inline(always)]
    fn rough_value(x: f32) -> f32 {
        x * normal_rough(x).0
    }

    #[inline(always)]
    fn rough_value_and_slope(x: f32) -> (f32, f32) {
        let (below, density) = normal_rough(x);
        (x * below, x.mul_add(density, below))
    }
}

/// The normal distribution function and its density, within 1e-5 (Abramowitz and Stegun 1964, 7.1.26).
#[inline(always)]
fn normal_rough(x: f32) -> (f32, f32) {
    const INVERSE_ROOT_OF_TAU: f32 = 0.398_942_3;
    const P: f32 = 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2;
    const SERIES: [f32; 4] = [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
    let size = x.abs();
    let t = reciprocal_rough(size.mul_add(P, 1.0));
    let power = exp2_rough(x * x * (-0.5 * std::f32::consts::LOG2_E));
    let mut series = 1.061_405_4_f32;
    for coefficient in SERIES {
        series = series.mul_add(t, coefficient);
    }
    let beyond = 0.5 * series * t * power;
    (if x < 0.0 { beyond } else { 1.0 - beyond }, INVERSE_ROOT_OF_TAU * power)
}

/// `√(2/π)`.
const ROOT: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

impl Function for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        0.5 * x * (1.0 + tanh(ROOT * (x + CUBIC * x * x * x)))
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let t = tanh(ROOT * (x + CUBIC * x * x * x));
        let below = 0.5 * (1.0 + t);
        (x * below, below + 0.5 * x * (1.0 - t * t) * ROOT * (1.0 + 3.0 * CUBIC * x * x))
    }

    // (1 + tanh y)/2 = σ(2y).
    #[inline(always)]
    fn rough_value(x: f32) -> f32 {
        x * sigmoid_rough(2.0 * ROOT * (CUBIC * (x * x)).mul_add(x, x))
    }

    #[inline(always)]
    fn rough_value_and_slope(x: f32) -> (f32, f32) {
        let square = x * x;
        let below = sigmoid_rough(2.0 * ROOT * (CUBIC * square).mul_add(x, x));
        let slope = 2.0 * ROOT * (3.0 * CUBIC).mul_add(square, 1.0);
        (x * below, (x * below * (1.0 - below)).mul_add(slope, below))
    }
}

impl Function for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(x)
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let sigma = sigmoid(x);
        (x * sigma, sigma * (1.0 + x * (1.0 - sigma)))
    }

    #[inline(always)]
    fn rough_value(x: f32) -> f32 {
        x * sigmoid_rough(x)
    }

    #[inline(always)]
    fn rough_value_and_slope(x: f32) -> (f32, f32) {
        let sigma = sigmoid_rough(x);
        (x * sigma, sigma * x.mul_add(1.0 - sigma, 1.0))
    }
}

impl Function for Relu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        // `f32::max` would turn NaN into 0.
        if x <= 0.0 { 0.0 } else { x }
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        (Self::value(x), if x <= 0.0 { 0.0 } else { 1.0 })
    }
}

impl Function for Tanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        tanh(x)
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let t = tanh(x);
        (t, 1.0 - t * t)
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Within 1e-5 relative for `x` from -80 on, and then at most 2⁻¹¹⁵.
#[inline(always)]
fn sigmoid_rough(x: f32) -> f32 {
    const FARTHEST: f32 = 115.0;
    let power = x * -std::f32::consts::LOG2_E;
    let power = if power > FARTHEST { FARTHEST } else { power };
    reciprocal_rough(1.0 + exp2_rough(power))
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    // Beyond ±9.1 the result rounds to ±1; the bound keeps the exponential finite. NaN passes through `clamp`.
    let doubled = exp(2.0 * x.clamp(-10.0, 10.0));
    (doubled - 1.0) / (doubled + 1.0)
}

impl Tape {
    /// `activation` of every value of `x` `[tokens, features]`. Backward: `dx = dy·f′(x)`.
    pub fn activation(&mut self, activation: Activation, x: &Var) -> Var {
        with_function!(activation, activate(self, x))
    }
}

fn activate<F: Function>(tape: &mut Tape, x: &Var) -> Var {
    match tape.workspace().kernels().precision() {
        Precision::Float32 => activate_by::<F>(tape, x),
        Precision::Bf16 => activate_by::<Rough<F>>(tape, x),
    }
}

fn activate_by<F: Function>(tape: &mut Tape, x: &Var) -> Var {
    let cols = x.cols();
    let mut y = Matrix::uninitialised(tape.workspace(), x.rows(), cols);
    for_each_row_block(
        y.data_mut(),
        cols,
        #[inline(always)]
        |first, rows| {
            let input = &x.value().data()[first * cols..first * cols + rows.len()];
            rows.iter_mut().zip(input).for_each(|(out, x)| *out = F::value(*x));
        },
    );
    tape.output(y, &[x.node()], || Activated::<F> { x: x.shared(), node: x.node(), function: PhantomData })
}

struct Activated<F> {
    x: Arc<Matrix>,
    node: Option<NodeId>,
    function: PhantomData<F>,
}

impl<F: Function> Backward for Activated<F> {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        // The gradient's buffer becomes that of the input.
        let mut dx = flow.owned(gradient);
        let block = (rows_per_task(dx.cols()) * dx.cols()).max(1);
        (dx.data_mut().par_chunks_mut(block), self.x.data().par_chunks(block)).into_par_iter().for_each(|(dx, x)| {
            vectorised(
                #[inline(always)]
                || dx.iter_mut().zip(x).for_each(|(dx, x)| *dx *= F::value_and_slope(*x).1),
            );
        });
        flow.add(self.node, dx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Workspace;
    use crate::ops::finite_differences::{check, random};

    const ALL: [Activation; 5] =
        [Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Relu, Activation::Tanh];

    /// The function in double precision.
    fn exact(activation: Activation, x: f64) -> f64 {
        match activation {
            // The normal distribution function by Simpson's rule.
            Activation::Gelu => {
                let density = |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
                const STEPS: i32 = 2000;
                let step = x / f64::from(STEPS);
                let weighted = (0..=STEPS).map(|place| {
                    let weight = if place == 0 || place == STEPS { 1.0 } else { f64::from(2 + 2 * (place % 2)) };
                    weight * density(f64::from(place) * step)
                });
                x * (0.5 + step / 3.0 * weighted.sum::<f64>())
            }
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
            }
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Relu => x.max(0.0),
            Activation::Tanh => x.tanh(),
        }
    }

    #[test]
    fn equal_their_definitions() {
        let values: Vec<f32> = (-600..=600).map(|step| step as f32 / 50.0).collect();
        for activation in ALL {
            let mut tape = Tape::evaluating(&Workspace::new());
            let x = tape.constant(Matrix::from_vec(1, values.len(), values.clone()));
            let y = tape.activation(activation, &x);
            for (x, y) in values.iter().zip(y.value().data()) {
                let exact = exact(activation, f64::from(*x));
                let error = (f64::from(*y) - exact).abs();
                assert!(error < 1e-6 * exact.abs().max(1.0), "{activation:?}({x}) is {y}, not {exact}");
            }
        }
    }

    fn rough_forms_are_near<F: Function>() {
        for step in -6000..=6000 {
            let x = step as f32 / 100.0;
            let ((value, slope), (rough, rough_slope)) = (F::value_and_slope(x), F::rough_value_and_slope(x));
            assert_eq!(rough, F::rough_value(x), "at {x}");
            for (exact, rough) in [(value, rough), (slope, rough_slope)] {
                let error = (exact - rough).abs();
                assert!(error <= 2e-5 * exact.abs().max(1.0), "{exact} at {x}, not {rough}");
            }
        }
        assert!(F::rough_value(f32::NAN).is_nan(), "NaN is not hidden");
        let (low, high) = (F::rough_value(-1e4), F::rough_value(1e4));
        assert!((low - F::value(-1e4)).abs() < 1e-20 && high == F::value(1e4), "{low}, {high}");
    }

    #[test]
    fn rough_forms_are_near_their_functions() {
        for activation in ALL {
            with_function!(activation, rough_forms_are_near());
        }
    }

    #[test]
    fn extremes() {
        for activation in ALL {
            let mut tape = Tape::evaluating(&Workspace::new());
            let x = tape.constant(Matrix::from_vec(1, 3, vec![-1e4, 1e4, f32::NAN]));
            let y = tape.activation(activation, &x);
            let (low, high) = if activation == Activation::Tanh { (-1.0, 1.0) } else { (0.0, 1e4) };
            assert!(y.value().data()[0] == low && y.value().data()[1] == high, "{activation:?} {y:?}");
            assert!(y.value().data()[2].is_nan(), "{activation:?} hides NaN");
        }
    }

    #[test]
    fn gradients() {
        // Values clear of ReLU's corner, which differences would step across.
        let mut x = random(5, 9, 0);
        x.data_mut().iter_mut().for_each(|x| *x += if *x < 0.0 { -0.1 } else { 0.1 });
        for activation in ALL {
            check(&[x.clone()], |tape, inputs| tape.activation(activation, &inputs[0]));
        }
    }
}
