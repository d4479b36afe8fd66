//! What a decoder reads where it is given nothing of its own: the encoder's tokens, one place later.

use tunesmith_tensor::Segments;

use crate::model::DecoderInputs;

/// The tokens of all sequences, each moved one place to the right behind a token to begin with.
pub(crate) struct ShiftedIds {
    ids: Vec<u32>,
    segments: Segments,
}

impl ShiftedIds {
    pub(crate) fn new(ids: &[u32], segments: &Segments, start: u32) -> Self {
        let shifted = segments.ranges().flat_map(|range| {
            let before = range.clone().take(range.len().saturating_sub(1)).map(|row| ids[row]);
            std::iter::once(start).chain(before).take(range.len())
        });
        Self { ids: shifted.collect(), segments: segments.clone() }
    }

    pub(crate) fn inputs(&self) -> DecoderInputs<'_> {
        DecoderInputs { ids: &self.ids, segments: &self.segments }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sequence_begins_anew() {
        let shifted = ShiftedIds::new(&[5, 6, 7, 8], &Segments::from_lengths([3, 0, 1]), 2);
        assert_eq!(shifted.inputs().ids, [2, 5, 6, 2]);
    }
}
