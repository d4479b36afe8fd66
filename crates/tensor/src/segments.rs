//! Where each sequence of a batch begins and ends.

use std::ops::Range;

/// The sequences of a batch, laid end to end in one matrix: sequence `i` owns rows `range(i)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    /// `starts[i]` is the first row of sequence `i`; one more entry holds the total.
    starts: Vec<usize>,
}

impl Segments {
    /// Segments of the given lengths, in order. A length of zero is a sequence without rows.
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut starts = vec![0];
        let mut total = 0;
        for length in lengths {
            total += length;
            starts.push(total);
        }
        Self { starts }
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there are no sequences.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows of all sequences together.
    pub fn total(&self) -> usize {
        self.starts[self.len()]
    }

    /// The rows of one sequence.
    pub fn range(&self, sequence: usize) -> Range<usize> {
        self.starts[sequence]..self.starts[sequence + 1]
    }

    /// Length of one sequence, in rows.
    pub fn length(&self, sequence: usize) -> usize {
        self.range(sequence).len()
    }

    /// The rows of consecutive sequences.
    pub fn rows(&self, sequences: &Range<usize>) -> Range<usize> {
        if sequences.is_empty() {
            return 0..0;
        }
        self.range(sequences.start).start..self.range(sequences.end - 1).end
    }

    /// Length of each sequence, in order.
    pub fn lengths(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.ranges().map(|range| range.len())
    }

    /// The row ranges of all sequences, in order.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        self.starts.windows(2).map(|pair| pair[0]..pair[1])
    }
}
