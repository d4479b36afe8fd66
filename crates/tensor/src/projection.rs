//! A linear projection as a sum of products over row ranges: what a tuned linear comes to when rows may belong to
//! different adapters.

use std::ops::Range;

use crate::tuner::{Base, Term};
use crate::{FrozenWeight, Matrix, Tape, Var};

/// `y = (input·W₀ᵀ + b₀ (if base) + Σ terms) ⊙ Π scales + Σ added + Σ biases`; each of them has its own range
/// of rows.
#[derive(Clone, Debug)]
pub struct Projection {
    pub(crate) base: Option<FrozenProduct>,
    pub(crate) terms: Vec<(Range<usize>, Term)>,
    /// Factors of columns. With any, the base has no bias of its own.
    pub(crate) scales: Vec<(Range<usize>, Var)>,
    /// Whole values `[rows, columns]`.
    pub(crate) added: Vec<(Range<usize>, Var)>,
    pub(crate) biases: Vec<(Range<usize>, Var)>,
    rows: usize,
    cols: usize,
}

/// The product with the frozen weight.
#[derive(Clone, Debug)]
pub(crate) struct FrozenProduct {
    pub(crate) input: Var,
    pub(crate) weight: FrozenWeight,
    pub(crate) bias: Option<FrozenWeight>,
}

impl Projection {
    /// The frozen linear alone, for `x` `[tokens, in]`.
    pub fn frozen(x: &Var, base: Base<'_>) -> Self {
        let product = FrozenProduct { input: x.clone(), weight: base.weight.clone(), bias: base.bias.cloned() };
        Self { base: Some(product), ..Self::empty(x.rows(), base.weight.rows()) }
    }

    /// No product yet.
    pub(crate) fn empty(rows: usize, cols: usize) -> Self {
        Self { base: None, terms: Vec::new(), scales: Vec::new(), added: Vec::new(), biases: Vec::new(), rows, cols }
    }

    /// Number of rows of the result.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns of the result.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

impl Tape {
    /// The projection's result `[rows, columns]`.
    pub fn project(&mut self, projection: Projection) -> Var {
        let Projection { base, mut terms, scales, added, biases, rows, cols } = projection;
        let mut y = match base {
            Some(base) => self.linear(&base.input, &base.weight, base.bias.as_ref()),
            None if terms.first().is_some_and(|(range, term)| *range == (0..rows) && term.scale == 1.0) => {
                let (_, term) = terms.remove(0);
                self.matmul_nt(&term.input, &term.weight)
            }
            None => self.constant(Matrix::zeros_in(self.workspace(), rows, cols)),
        };
        for (range, term) in terms {
            y = self.add_product(y, range, &term.input, &term.weight, term.scale);
        }
        for (range, scale) in scales {
            y = self.scale_columns(y, range, &scale);
        }
        for (range, value) in added {
            let value = self.between(rows, range, value);
            y = self.add(&value, y);
        }
        for (range, bias) in biases {
            y = self.add_bias(y, range, &bias);
        }
        y
    }

    /// `value` as rows `range` of `rows` rows, the others zero.
    fn between(&mut self, rows: usize, range: Range<usize>, value: Var) -> Var {
        let before = self.constant(Matrix::zeros(range.start, value.cols()));
        let after = self.constant(Matrix::zeros(rows - range.end, value.cols()));
        if range == (0..rows) { value } else { self.concat_rows(&[before, value, after]) }
    }
}
