//! Checks an operation's analytic gradients against central differences.

use crate::{Gradients, Kernels, Matrix, Parameter, Seed, Tape, Var, Workspace};

/// A matrix of standard normal values.
pub(crate) fn random(rows: usize, cols: usize, index: u64) -> Matrix {
    let mut stream = Seed(7).stream("test", index);
    Matrix::from_vec(rows, cols, (0..rows * cols).map(|_| stream.normal()).collect())
}

/// Checks the gradients of every value of every input, for a loss that is a random weighting of the output.
#[track_caller]
pub(crate) fn check(inputs: &[Matrix], operation: impl Fn(&mut Tape, &[Var]) -> Var) {
    check_scaled(inputs, 1.0, operation);
}

/// The same with the loss multiplied by `scale`.
#[track_caller]
pub(crate) fn check_scaled(inputs: &[Matrix], scale: f32, operation: impl Fn(&mut Tape, &[Var]) -> Var) {
    let workspace = Workspace::with_kernels(Kernels::plain());
    let parameters: Vec<Parameter> = inputs.iter().map(|input| Parameter::new("input", input.clone())).collect();
    let mut tape = Tape::differentiating(&workspace);
    let vars: Vec<Var> = parameters.iter().map(|parameter| tape.parameter(parameter)).collect();
    let output = operation(&mut tape, &vars);
    drop(vars);
    let (rows, cols) = output.value().shape();
    let mut weighting = random(rows, cols, 99);
    weighting.data_mut().iter_mut().for_each(|value| *value *= scale);
    let mut gradients = Gradients::new(&workspace);
    tape.backward(output, weighting.clone(), &mut gradients);

    let loss = |inputs: &[Matrix]| -> f64 {
        let mut tape = Tape::evaluating(&workspace);
        let vars: Vec<Var> = inputs.iter().map(|input| tape.constant(input.clone())).collect();
        let output = operation(&mut tape, &vars);
        output.value().data().iter().zip(weighting.data()).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum()
    };
    const STEP: f32 = 1e-2;
    let mut moved: Vec<Matrix> = inputs.to_vec();
    for (number, (input, parameter)) in inputs.iter().zip(&parameters).enumerate() {
        let zeros = Matrix::zeros(input.rows(), input.cols());
        let gradient = gradients.get(parameter.id()).unwrap_or(&zeros);
        let largest = gradient.data().iter().fold(1e-3f32, |largest, value| largest.max(value.abs()));
        for place in 0..input.data().len() {
            let original = input.data()[place];
            moved[number].data_mut()[place] = original + STEP;
            let above = loss(&moved);
            moved[number].data_mut()[place] = original - STEP;
            let below = loss(&moved);
            moved[number].data_mut()[place] = original;
            let difference = ((above - below) / f64::from(2.0 * STEP)) as f32;
            let analytic = gradient.data()[place];
            assert!(
                (difference - analytic).abs() <= 3e-3 * largest,
                "input {number}, value {place}: analytic {analytic}, by differences {difference}"
            );
        }
    }
}
