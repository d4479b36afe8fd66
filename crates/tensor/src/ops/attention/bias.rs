//! A bias on attention's scores that depends on how far a key lies from the query (relative positions: Raffel et al.
//! 2020, section 2.1).

use std::sync::Arc;

use crate::tape::NodeId;
use crate::{Matrix, Var};

/// What is added to a head's score of a key for the key's distance from the query. Rows of a prefix lie before their
/// sequence's own keys.
#[derive(Clone, Debug)]
pub struct DistanceBias {
    /// One table or several, `[tables · heads, distances]`.
    pub values: Var,
    /// The table of each sequence; empty where all use the first.
    pub tables: Vec<usize>,
    /// The column of distance 0: column `zero + d` is for keys `d` places after the query, `zero − d` for those before.
    pub zero: usize,
}

/// The bias of one sequence outside the tape.
#[derive(Clone, Copy)]
pub(super) struct Bias<'a> {
    pub(super) values: &'a Matrix,
    /// The row of the first head.
    pub(super) first: usize,
    pub(super) zero: usize,
}

impl<'a> Bias<'a> {
    /// The values of `count` keys one after the other, the first of which lies `distance` places after the query.
    pub(super) fn row(&self, head: usize, distance: isize, count: usize) -> &'a [f32] {
        &self.values.row(self.first + head)[self.column(distance)..][..count]
    }

    /// The column of a distance.
    pub(super) fn column(&self, distance: isize) -> usize {
        self.zero.checked_add_signed(distance).expect("the bias reaches as far as the keys lie from the queries")
    }
}

/// A bias of several sequences, kept for backward.
pub(super) struct KeptBias {
    pub(super) values: Arc<Matrix>,
    tables: Vec<usize>,
    zero: usize,
    pub(super) node: Option<NodeId>,
}

impl KeptBias {
    pub(super) fn new(bias: &DistanceBias) -> Self {
        let values = bias.values.shared();
        Self { values, tables: bias.tables.clone(), zero: bias.zero, node: bias.values.node() }
    }

    /// The bias of one sequence.
    pub(super) fn of(&self, sequence: usize, heads: usize) -> Bias<'_> {
        Bias { values: &self.values, first: self.table(sequence) * heads, zero: self.zero }
    }

    /// The table of one sequence.
    pub(super) fn table(&self, sequence: usize) -> usize {
        if self.tables.is_empty() { 0 } else { self.tables[sequence] }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::super::{Attention, KeyValueRows, Prefix};
    use super::DistanceBias;
    use crate::ops::finite_differences::{check, random};
    use crate::{Matrix, Segments, Tape, Var, Workspace};

    /// An attention with a bias for distances from −`zero` on.
    struct Case {
        options: Attention,
        queries: Vec<usize>,
        keys: Vec<usize>,
        prefix: Vec<Range<usize>>,
        tables: Vec<usize>,
        zero: usize,
    }

    impl Case {
        fn new(queries: &[usize], keys: &[usize], zero: usize) -> Self {
            let options =
                Attention { heads: 4, kv_heads: 2, head_dim: 4, scale: 0.7, causal: false, window: None, dropout: 0.0 };
            Self {
                options,
                queries: queries.to_vec(),
                keys: keys.to_vec(),
                prefix: Vec::new(),
                tables: Vec::new(),
                zero,
            }
        }

        /// Queries, keys, values, bias, prefix keys, prefix values.
        fn inputs(&self, distances: usize) -> Vec<Matrix> {
            let (queries, keys): (usize, usize) = (self.queries.iter().sum(), self.keys.iter().sum());
            let prefix = self.prefix.iter().map(|range| range.end).max().unwrap_or(0);
            let tables = self.tables.iter().max().map_or(1, |most| most + 1);
            let shapes = [(queries, 16), (keys, 8), (keys, 8), (tables * 4, distances), (prefix, 8), (prefix, 8)];
            let shapes = shapes.into_iter().enumerate().filter(|(_, (rows, _))| *rows > 0);
            shapes.map(|(index, (rows, cols))| random(rows, cols, index as u64)).collect()
        }

        fn run(&self, tape: &mut Tape, inputs: &[Var]) -> Var {
            let segments = |lengths: &[usize]| Segments::from_lengths(lengths.iter().copied());
            let bias = DistanceBias { values: inputs[3].clone(), tables: self.tables.clone(), zero: self.zero };
            let prefix = (inputs.len() > 4).then(|| Prefix {
                keys: inputs[4].clone(),
                values: inputs[5].clone(),
                ranges: self.prefix.clone(),
            });
            let (query_segments, key_segments) = (segments(&self.queries), segments(&self.keys));
            let [query, keys, values] = [&inputs[0], &inputs[1], &inputs[2]];
            let options = &self.options;
            tape.attention(options, query, &query_segments, keys, values, &key_segments, prefix.as_ref(), Some(&bias))
        }

        /// Every output by the definition, one score at a time.
        fn definition(&self, inputs: &[Matrix]) -> Vec<f64> {
            let mut output = Vec::new();
            let (mut first_query, mut first_key) = (0, 0);
            for (sequence, (queries, keys)) in self.queries.iter().zip(&self.keys).enumerate() {
                let prefix = self.prefix.get(sequence).cloned().unwrap_or(0..0);
                for query in 0..*queries {
                    for head in 0..4 {
                        let position = query as isize + *keys as isize - *queries as isize;
                        let before = prefix
                            .clone()
                            .enumerate()
                            .map(|(place, row)| (place as isize - prefix.len() as isize, &inputs[4], &inputs[5], row));
                        let own = (0..*keys).map(|key| (key as isize, &inputs[1], &inputs[2], first_key + key));
                        let seen: Vec<_> = before
                            .chain(own)
                            .filter(|(place, ..)| !self.options.causal || *place <= position || *place < 0)
                            .collect();
                        let columns = head * 4..head * 4 + 4;
                        let kv = head / 2 * 4..head / 2 * 4 + 4;
                        let weight = |(place, keys, _, row): &(isize, &Matrix, &Matrix, usize)| -> f64 {
                            let query = &inputs[0].row(first_query + query)[columns.clone()];
                            let key = &keys.row(*row)[kv.clone()];
                            let product: f64 = query.iter().zip(key).map(|(q, k)| f64::from(q * k)).sum();
                            let column = self.zero as isize + place - position;
                            let table = self.tables.get(sequence).map_or(0, |table| table * 4);
                            (product * 0.7 + f64::from(inputs[3].row(table + head)[column as usize])).exp()
                        };
                        let weights: Vec<f64> = seen.iter().map(weight).collect();
                        let total: f64 = weights.iter().sum();
                        output.extend(kv.clone().map(|column| {
                            let values = seen.iter().map(|(_, _, values, row)| f64::from(values.row(*row)[column]));
                            values.zip(&weights).map(|(value, weight)| value * weight / total).sum::<f64>()
                        }));
                    }
                }
                (first_query, first_key) = (first_query + queries, first_key + keys);
            }
            output
        }

        #[track_caller]
        fn check_output(&self, distances: usize) {
            let inputs = self.inputs(distances);
            let mut tape = Tape::evaluating(&Workspace::new());
            let vars: Vec<Var> = inputs.iter().map(|input| tape.constant(input.clone())).collect();
            let output = self.run(&mut tape, &vars);
            for (value, expected) in output.value().data().iter().zip(self.definition(&inputs)) {
                assert!((f64::from(*value) - expected).abs() < 1e-5, "{value}, by the definition {expected}");
            }
        }

        #[track_caller]
        fn check_gradients(&self, distances: usize) {
            check(&self.inputs(distances), |tape, inputs| self.run(tape, inputs));
        }
    }

    fn causal(lengths: &[usize], zero: usize) -> Case {
        let mut case = Case::new(lengths, lengths, zero);
        case.options.causal = true;
        case
    }

    #[test]
    fn equals_its_definition() {
        Case::new(&[5, 3], &[5, 3], 4).check_output(9);
        Case::new(&[70, 1], &[70, 1], 75).check_output(160);
        causal(&[6, 2], 7).check_output(14);
        Case::new(&[1, 2], &[5, 2], 4).check_output(7);
        let mut prefixed = causal(&[4, 2], 8);
        prefixed.prefix = vec![0..3, 1..2];
        prefixed.check_output(13);
        let mut tables = Case::new(&[3, 2, 4], &[3, 2, 4], 3);
        tables.tables = vec![1, 0, 1];
        tables.check_output(7);
    }

    #[test]
    fn gradients_reach_queries_keys_values_and_the_bias() {
        Case::new(&[3, 2], &[3, 2], 3).check_gradients(6);
        causal(&[4, 1], 3).check_gradients(7);
        let mut prefixed = causal(&[3, 2], 5);
        prefixed.prefix = vec![0..2, 1..2];
        prefixed.check_gradients(8);
        let mut tables = Case::new(&[3, 2, 2], &[3, 2, 2], 2);
        tables.tables = vec![1, 0, 1];
        tables.check_gradients(5);
    }

    #[test]
    fn over_a_cache_it_is_the_tail_of_the_whole() {
        let case = causal(&[6], 5);
        let inputs = case.inputs(11);
        let mut tape = Tape::evaluating(&Workspace::new());
        let vars: Vec<Var> = inputs.iter().map(|input| tape.constant(input.clone())).collect();
        let whole = case.run(&mut tape, &vars);
        let rows = [KeyValueRows { keys: inputs[1].data(), values: inputs[2].data() }.into()];
        let last = tape.slice_rows(&vars[0], 5..6);
        let bias = DistanceBias { values: vars[3].clone(), tables: Vec::new(), zero: 5 };
        let one = Segments::from_lengths([1]);
        let found = tape.attention_over(&case.options, &last, &one, &rows, None, Some(&bias));
        for (found, expected) in found.value().data().iter().zip(whole.value().row(5)) {
            assert!((found - expected).abs() < 1e-6, "{found} and {expected}");
        }
    }

    #[test]
    #[should_panic(expected = "the bias reaches as far")]
    fn a_bias_must_reach_all_keys() {
        Case::new(&[3], &[3], 1).check_output(6);
    }
}
