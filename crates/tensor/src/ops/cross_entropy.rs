//! A projection onto the vocabulary and its cross-entropy in one, in chunks of rows: `[tokens, vocabulary]` is never
//! stored, and rows without a label never meet the vocabulary. In bf16 not even a chunk's logits are.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use crate::kernels::bf16::{RowResults, TrainedVocabulary, vocabulary_gradient};
use crate::kernels::{View, ViewMut, exp, vectorised};
use crate::ops::linear::add_frozen_row;
use crate::projection::{FrozenProduct, Projection};
use crate::tape::{Backward, Flow, NodeId};
use crate::{FrozenWeight, Matrix, Precision, Tape, Term, Var, Workspace};

/// The target of a row that has no label.
pub const IGNORED_TARGET: u32 = u32::MAX;

/// Rows whose logits exist at one time. Fewer rows would read the vocabulary's weight more often than it pays.
const CHUNK: usize = 512;

/// Partial sums of a row, so that it vectorises.
const LANES: usize = 16;

/// The outcome of a projection with cross-entropy.
#[derive(Clone, Debug)]
pub struct CrossEntropy {
    /// `[1, 1]`: the sum over rows of `−log softmax(logits)[target]`.
    pub sum: Var,
    /// The terms of that sum, row by row.
    pub per_row: Vec<f32>,
}

impl Tape {
    /// `Σ −log softmax(logits)[target]` for `logits = projection`, one target a row. The gradients of the inputs are
    /// computed on the way forward, while a chunk's logits exist, and only scaled on the way back:
    /// `dlogits = softmax(logits) − onehot(target)`.
    ///
    /// # Panics
    /// If there is not one target a row, or a target is outside the vocabulary.
    pub fn cross_entropy(&mut self, projection: &Projection, targets: &[u32]) -> CrossEntropy {
        assert_eq!(projection.rows(), targets.len(), "there is a target for each row");
        let is_sum = projection.scales.is_empty() && projection.added.is_empty();
        assert!(is_sum, "a projection that is more than products and biases is given as a whole weight");
        let workspace = self.workspace().clone();
        if let Some((per_row, part, weight)) = projection.without_logits(&workspace, targets) {
            return self.cross_entropy_of(per_row, vec![part], weight);
        }
        let mut parts = projection.parts(&workspace);
        let mut per_row = vec![0.0; targets.len()];
        let needs_gradient = parts.iter().any(|part| part.node.is_some());
        for start in (0..targets.len()).step_by(CHUNK) {
            let rows = start..targets.len().min(start + CHUNK);
            let mut logits = projection.chunk(&workspace, rows.clone());
            softmax(&mut logits, &targets[rows.clone()], &mut per_row[rows.clone()], needs_gradient);
            if needs_gradient {
                projection.chunk_gradients(&workspace, rows, &logits, &mut parts);
            }
        }
        self.cross_entropy_of(per_row, parts, None)
    }

    /// What is known of each row, the inputs with their gradients, and a weight whose gradient is left for the way back.
    fn cross_entropy_of(&mut self, per_row: Vec<f32>, parts: Vec<Part>, weight: Option<TrainedWeight>) -> CrossEntropy {
        let sum: f64 = per_row.iter().map(|value| f64::from(*value)).sum();
        let of_weight = weight.iter().map(|weight| weight.node);
        let nodes: Vec<_> = parts.iter().map(|part| part.node).chain(of_weight).collect();
        let sum = Matrix::from_vec(1, 1, vec![sum as f32]);
        let sum = self.output(sum, &nodes, || CrossEntropyBackward { parts, weight });
        CrossEntropy { sum, per_row }
    }
}

/// An input of a projection and its gradient, accumulated chunk by chunk.
pub(crate) struct Part {
    pub(crate) node: Option<NodeId>,
    pub(crate) gradient: Matrix,
}

/// A projection's trained weight, and what its gradient is computed from on the way back.
pub(crate) struct TrainedWeight {
    x: Arc<Matrix>,
    value: Arc<Matrix>,
    node: Option<NodeId>,
    log_sums: Vec<f32>,
    targets: Vec<u32>,
}

struct CrossEntropyBackward {
    parts: Vec<Part>,
    weight: Option<TrainedWeight>,
}

impl Backward for CrossEntropyBackward {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let scale = gradient.data()[0];
        for Part { node, mut gradient } in self.parts {
            gradient.data_mut().iter_mut().for_each(|value| *value *= scale);
            flow.add(node, gradient);
        }
        let Some(TrainedWeight { x, value, node, log_sums, targets }) = self.weight else { return };
        flow.accumulate(node, value.shape(), |workspace, dw, beta| {
            let (x, weight) = (View::of(&x), View::of(&value));
            let vocabulary = TrainedVocabulary { x, weight, log_sums: &log_sums, targets: &targets };
            vocabulary_gradient(workspace.kernels().unit(), workspace, ViewMut::of(dw), beta, scale, &vocabulary);
        });
    }
}

/// Writes each row's `−log softmax[target]` and, if `differentiate`, turns the logits into `softmax − onehot(target)`.
fn softmax(logits: &mut Matrix, targets: &[u32], losses: &mut [f32], differentiate: bool) {
    let cols = logits.cols();
    logits.data_mut().par_chunks_exact_mut(cols).zip(targets).zip(losses).for_each(|((row, target), loss)| {
        let target = *target as usize;
        assert!(target < cols, "target {target} is outside the vocabulary of {cols}");
        *loss = vectorised(
            #[inline(always)]
            || softmax_row(row, target, differentiate),
        );
    });
}

#[inline(always)]
fn softmax_row(row: &mut [f32], target: usize, differentiate: bool) -> f32 {
    let target_logit = row[target];
    let mut largest = [f32::NEG_INFINITY; LANES];
    for (place, value) in row.iter().enumerate() {
        let lane = &mut largest[place % LANES];
        *lane = if *value > *lane { *value } else { *lane };
    }
    let max = largest.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut lanes = [0.0f32; LANES];
    let mut chunks = row.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *value = exp(*value - max);
            *lane += *value;
        }
    }
    let mut total: f64 = lanes.iter().map(|lane| f64::from(*lane)).sum();
    for value in chunks.into_remainder() {
        *value = exp(*value - max);
        total += f64::from(*value);
    }
    if differentiate {
        let scale = (1.0 / total) as f32;
        row.iter_mut().for_each(|value| *value *= scale);
        row[target] -= 1.0;
    }
    (total.ln() - f64::from(target_logit - max)) as f32
}

impl Projection {
    /// The inputs that a gradient may flow to, in a fixed order: the base's input, then each term's input and weight,
    /// then each bias.
    fn parts(&self, workspace: &Workspace) -> Vec<Part> {
        let inputs = self.base.iter().map(|base| &base.input);
        let terms = self.terms.iter().flat_map(|(_, term)| [&term.input, &term.weight]);
        let biases = self.biases.iter().map(|(_, bias)| bias);
        let zeros = |var: &Var| {
            let (rows, cols) = if var.needs_gradient() { var.value().shape() } else { (0, 0) };
            Part { node: var.node(), gradient: Matrix::zeros_in(workspace, rows, cols) }
        };
        inputs.chain(terms).chain(biases).map(zeros).collect()
    }

    /// A projection with one weight and no bias in one go, where products are bf16: each row's loss, the input with its
    /// gradient, and the weight where it is trained. `None` for other projections.
    fn without_logits(
        &self,
        workspace: &Workspace,
        targets: &[u32],
    ) -> Option<(Vec<f32>, Part, Option<TrainedWeight>)> {
        let (input, weight, trained) = match (&self.base, &self.terms[..]) {
            (Some(FrozenProduct { input, weight, bias: None }), []) => (input, weight.clone(), None),
            (None, [(rows, Term { input, weight, scale: 1.0 })])
                if *rows == (0..self.rows()) && workspace.kernels().precision() == Precision::Bf16 =>
            {
                (input, FrozenWeight::for_a_pass(workspace, weight.value()), Some(weight))
            }
            _ => return None,
        };
        if !self.biases.is_empty() {
            return None;
        }
        let x = input.value();
        let node = input.node();
        let (mut per_row, mut log_sums) = (vec![0.0; targets.len()], vec![0.0; targets.len()]);
        let rows = if node.is_some() { x.rows() } else { 0 };
        let mut gradient = Matrix::uninitialised(workspace, rows, x.cols());
        let dx = node.is_some().then(|| gradient.data_mut());
        let results = RowResults { losses: &mut per_row, log_sums: &mut log_sums, dx };
        if !weight.cross_entropy(workspace, x, targets, results) {
            return None;
        }
        let trained = trained.filter(|weight| weight.needs_gradient()).map(|weight| TrainedWeight {
            x: input.shared(),
            value: weight.shared(),
            node: weight.node(),
            log_sums,
            targets: targets.to_vec(),
        });
        Some((per_row, Part { node, gradient }, trained))
    }

    /// The projection of rows `rows` alone.
    fn chunk(&self, workspace: &Workspace, rows: Range<usize>) -> Matrix {
        let cols = self.cols();
        let mut y = Matrix::uninitialised(workspace, rows.len(), cols);
        match &self.base {
            Some(base) => {
                let x = view_of_rows(base.input.value(), &rows);
                base.weight.forward(workspace, ViewMut::of(&mut y), 0.0, 1.0, x);
                if let Some(bias) = &base.bias {
                    add_frozen_row(&mut y, bias);
                }
            }
            None => y.data_mut().fill(0.0),
        }
        for (term_rows, term) in &self.terms {
            let Some((inside, own)) = overlap(term_rows, &rows) else { continue };
            let x = view_of_rows(term.input.value(), &own);
            let weight = View::of(term.weight.value()).transposed();
            let y = view_of_rows_mut(&mut y, &inside);
            workspace.kernels().product(workspace, y, 1.0, term.scale, x, weight);
        }
        for (bias_rows, bias) in &self.biases {
            let Some((inside, _)) = overlap(bias_rows, &rows) else { continue };
            for row in y.data_mut()[inside.start * cols..inside.end * cols].chunks_exact_mut(cols) {
                row.iter_mut().zip(bias.value().data()).for_each(|(out, bias)| *out += bias);
            }
        }
        y
    }

    /// Adds what rows `rows`, whose logits have the gradient `dy`, contribute to the gradients of `parts`.
    fn chunk_gradients(&self, workspace: &Workspace, rows: Range<usize>, dy: &Matrix, parts: &mut [Part]) {
        let mut parts = parts.iter_mut();
        let mut next = || parts.next().expect("parts list every input in this order");
        if let Some(base) = &self.base {
            let dx = next();
            if dx.node.is_some() {
                let dx = view_of_rows_mut(&mut dx.gradient, &rows);
                base.weight.input_gradient(workspace, dx, 0.0, 1.0, View::of(dy));
            }
        }
        for (term_rows, term) in &self.terms {
            let (dx, dw) = (next(), next());
            let Some((inside, own)) = overlap(term_rows, &rows) else { continue };
            let dy = view_of_rows(dy, &inside);
            if dx.node.is_some() {
                let dx = view_of_rows_mut(&mut dx.gradient, &own);
                workspace.kernels().product(workspace, dx, 0.0, term.scale, dy, View::of(term.weight.value()));
            }
            if dw.node.is_some() {
                let x = view_of_rows(term.input.value(), &own);
                let dw = ViewMut::of(&mut dw.gradient);
                workspace.kernels().product(workspace, dw, 1.0, term.scale, dy.transposed(), x);
            }
        }
        for (bias_rows, _) in &self.biases {
            let bias = next();
            let Some((inside, _)) = overlap(bias_rows, &rows) else { continue };
            if bias.node.is_some() {
                for row in inside {
                    bias.gradient.data_mut().iter_mut().zip(dy.row(row)).for_each(|(sum, value)| *sum += value);
                }
            }
        }
    }
}

/// Where `part` meets `chunk`: the rows counted within the chunk, and the same rows counted within the part.
fn overlap(part: &Range<usize>, chunk: &Range<usize>) -> Option<(Range<usize>, Range<usize>)> {
    let (start, end) = (part.start.max(chunk.start), part.end.min(chunk.end));
    (start < end).then(|| (start - chunk.start..end - chunk.start, start - part.start..end - part.start))
}

fn view_of_rows<'a>(matrix: &'a Matrix, rows: &Range<usize>) -> View<'a> {
    let cols = matrix.cols();
    View::rows_of(&matrix.data()[rows.start * cols..rows.end * cols], rows.len(), cols, cols)
}

fn view_of_rows_mut<'a>(matrix: &'a mut Matrix, rows: &Range<usize>) -> ViewMut<'a> {
    let cols = matrix.cols();
    ViewMut::rows_of(&mut matrix.data_mut()[rows.start * cols..rows.end * cols], rows.len(), cols, cols)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check_scaled, random};
    use crate::{Base, Gradients, Kernels, Parameter};

    #[test]
    fn equals_its_definition() {
        let mut tape = Tape::evaluating(&Workspace::new());
        let x = tape.constant(random(3, 4, 0));
        let weight = FrozenWeight::float32(random(21, 4, 1));
        let projection = Projection::frozen(&x, Base { weight: &weight, bias: None });
        let logits = tape.project(projection.clone());
        let targets = [7, 0, 20];
        let entropy = tape.cross_entropy(&projection, &targets);
        for (row, target) in targets.iter().enumerate() {
            let row_logits = logits.value().row(row);
            let total: f64 = row_logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            let expected = total.ln() - f64::from(row_logits[*target as usize]);
            assert!((f64::from(entropy.per_row[row]) - expected).abs() < 1e-6);
        }
        let sum: f32 = entropy.per_row.iter().sum();
        assert!((entropy.sum.value().data()[0] - sum).abs() < 1e-5);
    }

    #[test]
    fn gradients_over_several_chunks_and_terms() {
        let rows = CHUNK + 9;
        let targets: Vec<u32> = (0..rows as u32).map(|row| row % 5).collect();
        let weight = FrozenWeight::float32(random(5, 3, 1));
        let inputs = [random(rows, 3, 2), random(rows - 10, 2, 3), random(5, 2, 4), random(1, 5, 5)];
        check_scaled(&inputs, 1.0 / rows as f32, |tape, inputs| {
            let mut projection = Projection::frozen(&inputs[0], Base { weight: &weight, bias: None });
            let term = Term { input: inputs[1].clone(), weight: inputs[2].clone(), scale: 0.7 };
            projection.terms.push((4..rows - 6, term));
            projection.biases.push((2..rows, inputs[3].clone()));
            tape.cross_entropy(&projection, &targets).sum
        });
    }

    /// Values that bf16 holds.
    fn rounded(rows: usize, cols: usize, index: u64) -> Matrix {
        FrozenWeight::bf16(&random(rows, cols, index)).to_matrix()
    }

    /// The way without logits against the one through them, for one and several stretches of tokens.
    #[test]
    fn gradients_of_a_trained_weight_in_bf16() {
        for (rows, size, width) in [(1, 5, 3), (40, 300, 33), (600, 530, 96)] {
            let targets: Vec<u32> = (0..rows).map(|row| (row * 7 % size) as u32).collect();
            let parameters =
                [Parameter::new("x", rounded(rows, width, 1)), Parameter::new("w", rounded(size, width, 2))];
            let run = |kernels: Kernels| {
                let workspace = Workspace::with_kernels(kernels);
                let mut tape = Tape::differentiating(&workspace);
                let [x, weight] = [0, 1].map(|place| tape.parameter(&parameters[place]));
                let mut projection = Projection::empty(rows, size);
                projection.terms.push((0..rows, Term { input: x, weight, scale: 1.0 }));
                let entropy = tape.cross_entropy(&projection, &targets);
                let mut gradients = Gradients::new(&workspace);
                tape.backward_scalar(entropy.sum, 0.25, &mut gradients);
                let losses = Matrix::from_vec(1, rows, entropy.per_row);
                let found = parameters.each_ref().map(|parameter| gradients.get(parameter.id()).unwrap().clone());
                [losses].into_iter().chain(found).collect::<Vec<_>>()
            };
            let exact = run(Kernels::detect());
            for kernels in [Kernels::amx(), Kernels::avx512_bf16(), Some(Kernels::bf16_in_float32())] {
                let Some(kernels) = kernels else { continue };
                for (place, (found, exact)) in run(kernels).iter().zip(&exact).enumerate() {
                    let largest = exact.data().iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                    for (found, exact) in found.data().iter().zip(exact.data()) {
                        // Probabilities are rounded, each by up to 2⁻⁸ of its size.
                        let error = (found - exact).abs();
                        assert!(
                            error <= largest / 64.0,
                            "{rows} × {size} × {width}, result {place}: {found}, not {exact}"
                        );
                    }
                }
            }
        }
    }
}
