//! Low-rank updates for the linears of many blocks, and random matrices.

use tunesmith_tensor::{
    Adapter, Base, LowRankUpdate, Matrix, Parameter, Seed, SiteId, Tape, Trainable, Tuned, WeightTuner,
};

const RANK: usize = 8;

/// `A` and `B`.
struct LowRank([Parameter; 2]);

impl Trainable for LowRank {
    fn parameters(&self) -> Vec<&Parameter> {
        self.0.iter().collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.0.iter_mut().collect()
    }
}

impl WeightTuner for LowRank {
    fn tuned(&self, _: &mut Tape, _: Base<'_>) -> Tuned {
        unreachable!("operations in one ask for the update")
    }

    fn low_rank(&self, tape: &mut Tape) -> Option<LowRankUpdate> {
        let [a, b] = self.0.each_ref().map(|factor| tape.parameter(factor));
        Some(LowRankUpdate { a, b, scale: 0.02 })
    }
}

/// An update for each of the linears, shaped `(out, in)`, of so many blocks; their sites are numbered block by block.
pub(crate) fn updates(blocks: usize, shapes: &[(usize, usize)]) -> Adapter {
    let mut adapter = Adapter::new();
    for (site, (out, width)) in shapes.iter().cycle().take(blocks * shapes.len()).enumerate() {
        let factors = [Parameter::new("A", random(RANK, *width, 5)), Parameter::new("B", random(*out, RANK, 6))];
        adapter.insert_weight(SiteId(site), Box::new(LowRank(factors)));
    }
    adapter
}

/// Small numbers, so that values stay finite through all blocks.
pub(crate) fn random(rows: usize, cols: usize, index: u64) -> Matrix {
    let mut stream = Seed(0).stream("bench", index);
    let bound = 1.0 / (cols as f32).sqrt();
    let drawn: Vec<f32> = (0..4099).map(|_| stream.uniform_between(-bound, bound)).collect();
    Matrix::from_vec(rows, cols, drawn.into_iter().cycle().take(rows * cols).collect())
}
