//! Dropout of attention's weights in training, after the softmax, as transformers does it for BERT and its kind: each weight
//! is zeroed with probability `p`, the others are multiplied by `1/(1 − p)`. The mask is a function of a key and the weight's
//! place, so it is never stored, and is the same on the way back.

use crate::kernels::vectorised;
use crate::random::{RowMask, drop_values};
use crate::{Segments, Tape};

use super::Attention;

/// The masks of one attention.
pub(super) struct Dropout {
    key: u64,
    p: f32,
    /// The first row and the count of each sequence's queries.
    queries: Vec<(usize, usize)>,
}

/// The mask of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Mask {
    key: u64,
    p: f32,
    heads: usize,
    /// The head that counts as the first.
    first_head: usize,
    /// The row of the batch that stands at position 0 among the sequence's keys; negative where there are more keys before.
    origin: isize,
}

impl Dropout {
    /// `None` outside training, and where nothing is to be dropped.
    ///
    /// # Panics
    /// If the probability is not in `[0, 1)`.
    pub(super) fn draw(tape: &mut Tape, options: &Attention, query_segments: &Segments) -> Option<Self> {
        let p = options.dropout;
        assert!((0.0..1.0).contains(&p), "a dropout probability lies in [0, 1)");
        if p == 0.0 {
            return None;
        }
        let queries = query_segments.ranges().map(|range| (range.start, range.len())).collect();
        Some(Self { key: tape.next_dropout()?, p, queries })
    }

    /// The mask of sequence `number`, which has `keys` keys of its own.
    pub(super) fn of(&self, number: usize, keys: usize, options: &Attention) -> Mask {
        let (first, count) = self.queries[number];
        let origin = first as isize + count as isize - keys as isize;
        Mask { key: self.key, p: self.p, heads: options.heads, first_head: 0, origin }
    }
}

impl Mask {
    /// The mask of the heads from number `first_head` on.
    pub(super) fn of_heads(self, first_head: usize) -> Self {
        Self { first_head, ..self }
    }

    /// Multiplies the weights of the query at key position `position` for the keys from number `first` on, those of the prefix
    /// counted, by the mask.
    pub(super) fn apply(&self, position: isize, head: usize, first: usize, weights: &mut [f32]) {
        let row = self.row(position, head);
        vectorised(
            #[inline(always)]
            || drop_values(self.key, row, first as u32, self.p, weights),
        );
    }

    fn row(&self, position: isize, head: usize) -> u64 {
        let row = self.origin.saturating_add(position) as u64;
        row.wrapping_mul(self.heads as u64).wrapping_add((self.first_head + head) as u64)
    }

    /// The weights that the query at key position `position` drops: a place is a key's number, those of the prefix counted.
    pub(super) fn of_row(&self, position: isize, head: usize) -> RowMask {
        RowMask::new(self.key, self.row(position, head), self.p)
    }

    /// What the weights that stay are multiplied by.
    pub(super) fn scale(&self) -> f32 {
        1.0 / (1.0 - self.p)
    }
}

#[cfg(test)]
mod tests {
    use super::super::definition::{Case, dirty_workspace, widen};
    use crate::ops::finite_differences::random;
    use crate::{Gradients, Kernels, Matrix, Parameter, Seed, Tape, Var, Workspace};

    const P: f32 = 0.3;

    fn case(mut case: Case) -> Case {
        case.options.dropout = P;
        case
    }

    fn run(case: &Case, inputs: &[Matrix; 5]) -> Matrix {
        let mut tape = Tape::training(&dirty_workspace(), Seed(5));
        let vars = inputs.clone().map(|input| tape.constant(input));
        case.run(&mut tape, &vars).value().clone()
    }

    /// The factor of each query's weight of each key, `[query][head][key]`, prefix first: what comes out where the values of
    /// a sequence's keys are the unit vectors is the masked weights themselves.
    fn factors(case: &Case, inputs: &[Matrix; 5]) -> Vec<Vec<Vec<f64>>> {
        let (head_dim, heads) = (case.options.head_dim, case.options.heads);
        let prefix = case.prefix.first().map_or(0, |range| range.len());
        let unit = |values: &mut Matrix, row: usize, place: usize| {
            values.row_mut(row).fill(0.0);
            values.row_mut(row).chunks_exact_mut(head_dim).for_each(|head| head[place] = 1.0);
        };
        let mut inputs = inputs.clone();
        (0..inputs[4].rows()).for_each(|row| unit(&mut inputs[4], row, row));
        let mut row = 0;
        for keys in &case.keys {
            (0..*keys).for_each(|key| unit(&mut inputs[2], row + key, prefix + key));
            row += keys;
        }
        let output = run(case, &inputs);
        let factor = |weight: &f32| if *weight == 0.0 { 0.0 } else { 1.0 / (1.0 - f64::from(P)) };
        let of_row = |row: usize| {
            let heads = output.row(row).chunks_exact(head_dim).take(heads);
            heads.map(|weights| weights.iter().map(factor).collect()).collect()
        };
        (0..output.rows()).map(of_row).collect()
    }

    #[track_caller]
    fn check(case: &Case) {
        const STEP: f64 = 1e-4;
        let inputs = case.inputs();
        let factors = factors(case, &inputs);
        let keep = |query: usize, head: usize, key: usize| factors[query][head][key];
        let output = run(case, &inputs);
        let mut wide = widen(&inputs);
        for (value, expected) in output.data().iter().zip(case.masked_definition(&wide, keep)) {
            assert!((f64::from(*value) - expected).abs() <= 3e-6, "{value} is {expected} by the definition: {case:?}");
        }
        let weighting = random(output.rows(), output.cols(), 99);
        let loss = |inputs: &[Vec<f64>; 5]| -> f64 {
            case.masked_definition(inputs, keep).iter().zip(weighting.data()).map(|(y, w)| y * f64::from(*w)).sum()
        };
        let workspace = dirty_workspace();
        let parameters = inputs.map(|input| Parameter::new("input", input));
        let mut tape = Tape::training(&workspace, Seed(5));
        let vars: [Var; 5] = std::array::from_fn(|input| tape.parameter(&parameters[input]));
        let output = case.run(&mut tape, &vars);
        let mut gradients = Gradients::new(&workspace);
        tape.backward(output, weighting.clone(), &mut gradients);
        for (input, parameter) in parameters.iter().enumerate() {
            let Some(gradient) = gradients.get(parameter.id()) else { continue };
            for (place, value) in gradient.data().iter().enumerate() {
                let middle = wide[input][place];
                let mut at = |x: f64| {
                    wide[input][place] = x;
                    loss(&wide)
                };
                let expected = (at(middle + STEP) - at(middle - STEP)) / (2.0 * STEP);
                wide[input][place] = middle;
                let error = (f64::from(*value) - expected).abs();
                assert!(error <= 5e-6, "input {input}, place {place}: {value}, by differences {expected}: {case:?}");
            }
        }
    }

    #[test]
    fn output_and_gradients_are_those_of_the_masked_definition() {
        check(&case(Case::bidirectional(&[5, 3], &[5, 3])));
        check(&case(Case::causal(&[6, 1]).prefix(&[0..2, 0..2])));
        check(&case(Case::bidirectional(&[1, 4], &[6, 2]).heads(4, 4)));
    }

    /// The same mask, and all else within what bf16 keeps.
    #[test]
    fn tiles_drop_the_same_weights() {
        let cases = [
            Case::bidirectional(&[140, 13], &[140, 13]).heads(4, 4),
            Case::causal(&[300, 20]).heads(4, 2).prefix(&[0..5, 2..40]),
        ];
        for case in cases.map(case) {
            let inputs = case.inputs();
            let weighting = random(inputs[0].rows(), inputs[0].cols(), 99);
            let pass = |workspace: &Workspace| {
                let parameters = inputs.clone().map(|input| Parameter::new("input", input));
                let mut tape = Tape::training(workspace, Seed(5));
                let vars: [Var; 5] = std::array::from_fn(|input| tape.parameter(&parameters[input]));
                let output = case.run(&mut tape, &vars);
                let mut values = vec![output.value().clone()];
                let mut gradients = Gradients::new(workspace);
                tape.backward(output, weighting.clone(), &mut gradients);
                values.extend(parameters.iter().filter_map(|parameter| gradients.get(parameter.id()).cloned()));
                values
            };
            let expected = pass(&Workspace::new());
            for kernels in
                [Kernels::amx(), Kernels::avx512_bf16(), Some(Kernels::bf16_in_float32())].into_iter().flatten()
            {
                for (which, (found, expected)) in
                    pass(&Workspace::with_kernels(kernels)).iter().zip(&expected).enumerate()
                {
                    let largest = expected.data().iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                    let pairs = found.data().iter().zip(expected.data());
                    let worst = pairs.fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
                    assert!(worst <= 0.03 * largest, "{kernels:?}, {which}: {worst} of {largest}: {case:?}");
                }
            }
        }
    }

    #[test]
    fn weights_are_dropped_at_the_rate_and_each_on_its_own() {
        let mut case = case(Case::bidirectional(&[90, 90], &[8, 8]));
        case.options.scale = 0.01;
        let factors = factors(&case, &case.inputs());
        let rows: Vec<&Vec<f64>> = factors.iter().flatten().collect();
        let zeros = rows.iter().flat_map(|row| row.iter()).filter(|factor| **factor == 0.0).count();
        let rate = zeros as f64 / (rows.len() * 8) as f64;
        assert!((rate - f64::from(P)).abs() < 0.02, "{rate}");
        for (other, what) in [(1, "heads"), (4, "queries"), (360, "sequences")] {
            let same = rows.iter().zip(&rows[other..]).filter(|(a, b)| a == b).count();
            assert!(same * 5 < rows.len(), "{same} of {} masks are the same between {what}", rows.len());
        }
    }

    #[test]
    fn nothing_is_dropped_outside_training() {
        let dropping = case(Case::bidirectional(&[5], &[5]));
        let plain = Case::bidirectional(&[5], &[5]);
        let inputs = plain.inputs();
        assert_eq!(dropping.output(&dirty_workspace(), &inputs), plain.output(&dirty_workspace(), &inputs));
    }
}
