//! The recurrence of a long short-term memory (Hochreiter and Schmidhuber 1997), with PyTorch's order of gates.

use std::sync::Arc;

use crate::tape::{Backward, Flow, NodeId};
use crate::{Matrix, Tape, Var};

impl Tape {
    /// Hidden states `[tokens, hidden]` of one sequence from its gates' inputs `x` `[tokens, 4·hidden]`, which hold the
    /// projections of the tokens and both biases, and the recurrent `weight` `[4·hidden, hidden]`. With
    /// `(i, f, g, o) = xₜ + weight·hₜ₋₁`: `cₜ = σ(f)·cₜ₋₁ + σ(i)·tanh(g)`, `hₜ = σ(o)·tanh(cₜ)`, from zeros. `reverse` runs
    /// from the last token to the first. Backward: through time, along the kept gates and cells.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn lstm(&mut self, x: &Var, weight: &Var, reverse: bool) -> Var {
        let hidden = weight.cols();
        assert_eq!(weight.rows(), 4 * hidden, "the recurrent weight is [4·hidden, hidden]");
        assert_eq!(x.cols(), 4 * hidden, "the gates' inputs are 4·hidden wide");
        let tokens = x.rows();
        let mut gates = x.value().copy_in(self.workspace());
        let mut cells = Matrix::zeros_in(self.workspace(), tokens, hidden);
        let mut states = Matrix::zeros_in(self.workspace(), tokens, hidden);
        let mut before: Option<usize> = None;
        for token in order(tokens, reverse) {
            let row = gates.row_mut(token);
            if let Some(before) = before {
                add_product(row, weight.value(), states.row(before));
            }
            let (sigmoids, rest) = row.split_at_mut(2 * hidden);
            let (tangents, outputs) = rest.split_at_mut(hidden);
            sigmoids.iter_mut().chain(outputs).for_each(|gate| *gate = sigmoid(*gate));
            tangents.iter_mut().for_each(|gate| *gate = gate.tanh());
            for unit in 0..hidden {
                let [input, forget, candidate, output] = gates_of(gates.row(token), hidden, unit);
                let cell = forget * before.map_or(0.0, |before| cells.row(before)[unit]) + input * candidate;
                cells.row_mut(token)[unit] = cell;
                states.row_mut(token)[unit] = output * cell.tanh();
            }
            before = Some(token);
        }
        let states = Arc::new(states);
        let (x_node, weight_node) = (x.node(), weight.node());
        self.output(Arc::clone(&states), &[x_node, weight_node], || Lstm {
            gates,
            cells,
            states,
            weight: weight.shared(),
            x_node,
            weight_node,
            reverse,
        })
    }
}

/// The tokens in the order in which they are run through.
fn order(tokens: usize, reverse: bool) -> impl DoubleEndedIterator<Item = usize> {
    (0..tokens).map(move |token| if reverse { tokens - 1 - token } else { token })
}

/// The four gates of one unit.
fn gates_of(row: &[f32], hidden: usize, unit: usize) -> [f32; 4] {
    std::array::from_fn(|gate| row[gate * hidden + unit])
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `row ← row + matrix·x`.
fn add_product(row: &mut [f32], matrix: &Matrix, x: &[f32]) {
    for (place, out) in row.iter_mut().enumerate() {
        *out += matrix.row(place).iter().zip(x).map(|(weight, x)| weight * x).sum::<f32>();
    }
}

struct Lstm {
    /// After their functions, `[tokens, 4·hidden]`.
    gates: Matrix,
    cells: Matrix,
    states: Arc<Matrix>,
    weight: Arc<Matrix>,
    x_node: Option<NodeId>,
    weight_node: Option<NodeId>,
    reverse: bool,
}

impl Backward for Lstm {
    fn backward(self: Box<Self>, gradient: Arc<Matrix>, flow: &mut Flow<'_>) {
        let (tokens, hidden) = self.cells.shape();
        let mut dx = Matrix::zeros_in(flow.workspace(), tokens, 4 * hidden);
        let mut dweight = Matrix::zeros_in(flow.workspace(), 4 * hidden, hidden);
        let mut dstate = vec![0.0; hidden];
        let mut dcell = vec![0.0; hidden];
        let order: Vec<usize> = order(tokens, self.reverse).collect();
        for (place, token) in order.iter().copied().enumerate().rev() {
            let before = place.checked_sub(1).map(|place| order[place]);
            let row = dx.row_mut(token);
            for unit in 0..hidden {
                let [input, forget, candidate, output] = gates_of(self.gates.row(token), hidden, unit);
                let tangent = self.cells.row(token)[unit].tanh();
                let dh = gradient.row(token)[unit] + dstate[unit];
                let dc = dcell[unit] + dh * output * (1.0 - tangent * tangent);
                let earlier = before.map_or(0.0, |before| self.cells.row(before)[unit]);
                row[unit] = dc * candidate * input * (1.0 - input);
                row[hidden + unit] = dc * earlier * forget * (1.0 - forget);
                row[2 * hidden + unit] = dc * input * (1.0 - candidate * candidate);
                row[3 * hidden + unit] = dh * tangent * output * (1.0 - output);
                dcell[unit] = dc * forget;
            }
            dstate.fill(0.0);
            let Some(before) = before else { continue };
            for (gate, slope) in dx.row(token).iter().enumerate() {
                dstate.iter_mut().zip(self.weight.row(gate)).for_each(|(sum, weight)| *sum += slope * weight);
                let state = self.states.row(before);
                dweight.row_mut(gate).iter_mut().zip(state).for_each(|(sum, state)| *sum += slope * state);
            }
        }
        flow.add(self.x_node, dx);
        flow.add(self.weight_node, dweight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Workspace;
    use crate::ops::finite_differences::{check, random};

    #[test]
    fn gradients_in_both_directions() {
        for reverse in [false, true] {
            check(&[random(4, 12, 0), random(12, 3, 1)], |tape, inputs| tape.lstm(&inputs[0], &inputs[1], reverse));
        }
        check(&[random(1, 8, 0), random(8, 2, 1)], |tape, inputs| tape.lstm(&inputs[0], &inputs[1], false));
    }

    /// Made with `torch.nn.LSTMCell` from the same values: gates' inputs `(t·4 + j + 1)/10 − 0.5`, weight
    /// `[0.1, −0.2, 0.3, −0.4]`, two tokens, one unit.
    #[test]
    fn equals_the_reference() {
        let mut tape = Tape::evaluating(&Workspace::new());
        let x = tape.constant(Matrix::from_vec(2, 4, (1..9).map(|place| place as f32 / 10.0 - 0.5).collect()));
        let weight = tape.constant(Matrix::from_vec(4, 1, vec![0.1, -0.2, 0.3, -0.4]));
        let found = tape.lstm(&x, &weight, false);
        let expected = [-0.037_547_506, 0.029_663_661];
        for (found, expected) in found.value().data().iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} and {expected}");
        }
    }

    #[test]
    fn the_reverse_is_the_forward_of_the_sequence_turned_round() {
        let (x, weight) = (random(5, 8, 0), random(8, 2, 1));
        let turned = Matrix::from_vec(5, 8, (0..5).rev().flat_map(|row| x.row(row).to_vec()).collect());
        let mut tape = Tape::evaluating(&Workspace::new());
        let (x, turned, weight) = (tape.constant(x), tape.constant(turned), tape.constant(weight));
        let (backward, forward) = (tape.lstm(&x, &weight, true), tape.lstm(&turned, &weight, false));
        for row in 0..5 {
            assert_eq!(backward.value().row(row), forward.value().row(4 - row));
        }
    }
}
