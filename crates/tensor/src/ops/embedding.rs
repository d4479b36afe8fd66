//! Embedding lookup, in a frozen table or one on the tape.

use crate::{FrozenWeight, Matrix, Tape, Var};

impl Tape {
    /// `y[tokens, width]`: row `ids[t]` of the frozen `table` `[vocabulary, width]` for each token.
    ///
    /// # Panics
    /// If an id is outside the table.
    pub fn embedding(&mut self, ids: &[u32], table: &FrozenWeight) -> Var {
        let mut y = Matrix::uninitialised(self.workspace(), ids.len(), table.cols());
        for (row, id) in ids.iter().enumerate() {
            table.read_row(*id as usize, y.row_mut(row));
        }
        self.constant(y)
    }

    /// The same with a `table` on the tape: backward adds each row's gradient to its table row.
    ///
    /// # Panics
    /// If an id is outside the table.
    pub fn embedding_in(&mut self, ids: &[u32], table: &Var) -> Var {
        self.gather_rows(table, ids.iter().map(|id| *id as usize).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_differences::{check, random};

    #[test]
    fn looks_up_rows() {
        let table = random(4, 3, 0);
        let mut tape = Tape::evaluating(&crate::Workspace::new());
        let y = tape.embedding(&[2, 0], &FrozenWeight::float32(table.clone()));
        assert_eq!(y.value().row(0), table.row(2));
        assert_eq!(y.value().row(1), table.row(0));
    }

    #[test]
    fn gradient_of_the_table() {
        check(&[random(4, 3, 0)], |tape, inputs| tape.embedding_in(&[2, 0, 2], &inputs[0]));
    }
}
