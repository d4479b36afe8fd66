//! Linear sites: frozen products with what the adapters of a batch add to them, alone or under a cross-entropy.

use std::ops::Range;

use super::Forward;
use crate::kernels::blocks::ScaledBlock;
use crate::ops::cross_entropy::{CrossEntropy, IGNORED_TARGET};
use crate::ops::updated_linear::BlockUpdate;
use crate::projection::Projection;
use crate::tuner::{Affine, Base, LowRankUpdate, WeightTuner};
use crate::{Matrix, Segments, SiteId, Var};

/// Rows, and what tunes a site for them.
pub(super) type WithRows<'a> = (Range<usize>, Option<&'a dyn WeightTuner>);

/// Tuners that are more than low-rank, or too many.
pub(super) struct NotLowRank;

impl Forward<'_> {
    /// A linear site: `x` `[tokens, in]` to `[tokens, out]`.
    pub fn linear(&mut self, site: SiteId, base: Base<'_>, x: &Var) -> Var {
        let segments = self.segments.clone();
        self.linear_rows(site, base, x, &segments)
    }

    /// Linear sites of one input `x` `[tokens, in]`, each to `[tokens, out]`: what [`Forward::linear`] makes of each.
    pub fn linears<const SITES: usize>(&mut self, sites: [(SiteId, Base<'_>); SITES], x: &Var) -> [Var; SITES] {
        if self.tape.is_inferring() {
            let segments = self.segments.clone();
            return self.infer_rows(sites, x, &segments);
        }
        sites.map(|(site, base)| self.linear(site, base, x))
    }

    /// A linear site for a choice of rows: `segments` says which rows of `x` belong to which sequence.
    pub fn linear_rows(&mut self, site: SiteId, base: Base<'_>, x: &Var, segments: &Segments) -> Var {
        if self.tape.is_inferring() {
            let [y] = self.infer_rows([(site, base)], x, segments);
            return y;
        }
        let tuners = self.weight_tuners(site, segments);
        if let Ok(Some(update)) = self.block_update(&tuners) {
            return self.tape.linear_block_update(x, base, &update);
        }
        let affines = self.affines(site, base, x, segments);
        let projections = self.projections(base, x, affines);
        let parts: Vec<Var> = projections.into_iter().map(|projection| self.tape.project(projection)).collect();
        self.tape.concat_rows(&parts)
    }

    /// The tuners of a site as one update, where all are low-rank at the most: their factors side by side make one thin
    /// product, in whose middle each row keeps what its own factors made of it. `Err` where they are not; `None` where no row
    /// is tuned.
    pub(super) fn block_update(&mut self, tuners: &[WithRows<'_>]) -> Result<Option<BlockUpdate>, NotLowRank> {
        /// The middle's columns, at the most: rows are multiplied with the factors of all, not only with their own.
        const WIDEST: usize = 128;
        let mut updates = Vec::new();
        for (rows, tuner) in tuners {
            if let Some(tuner) = tuner {
                updates.push((rows.clone(), tuner.low_rank(self.tape).ok_or(NotLowRank)?));
            }
        }
        if tuners.len() == 1 {
            return Ok(updates.pop().map(|(_, factors)| BlockUpdate { factors, blocks: Vec::new() }));
        }
        let (mut blocks, mut width) = (Vec::new(), 0);
        for (rows, LowRankUpdate { a, scale, .. }) in &updates {
            let columns = width..width + a.rows();
            width = columns.end;
            blocks.push(ScaledBlock { rows: rows.clone(), columns, scale: *scale });
        }
        if width > WIDEST {
            return Err(NotLowRank);
        }
        if updates.is_empty() {
            return Ok(None);
        }
        let (a, b): (Vec<Var>, Vec<Var>) = updates.into_iter().map(|(_, update)| (update.a, update.b)).unzip();
        let (a, b) = (self.tape.concat_rows(&a), self.tape.concat_columns(&b));
        Ok(Some(BlockUpdate { factors: LowRankUpdate { a, b, scale: 1.0 }, blocks }))
    }

    /// A linear site with cross-entropy, on the rows of `x` whose target is not [`IGNORED_TARGET`]. `per_row` of the
    /// result has an entry for each of those rows, in order.
    pub fn cross_entropy(&mut self, site: SiteId, base: Base<'_>, x: &Var, targets: &[u32]) -> CrossEntropy {
        let labelled: Vec<usize> = (0..targets.len()).filter(|row| targets[*row] != IGNORED_TARGET).collect();
        let targets: Vec<u32> = labelled.iter().map(|row| targets[*row]).collect();
        let counts = self.segments.ranges().map(|range| {
            labelled.partition_point(|row| *row < range.end) - labelled.partition_point(|row| *row < range.start)
        });
        let segments = Segments::from_lengths(counts.collect::<Vec<_>>());
        let x = self.tape.gather_rows(x, labelled);
        let mut total: Option<CrossEntropy> = None;
        let mut start = 0;
        let mut affines = self.affines(site, base, &x, &segments);
        let tuners = self.weight_tuners(site, &segments);
        for ((rows, affine), (_, tuner)) in affines.iter_mut().zip(tuners) {
            // The fused operation knows products and biases; a scaled sum takes the long way, over the tuned weight.
            if let (Some(tuner), true) =
                (tuner, affine.as_ref().is_some_and(|affine| affine.scale.is_some() || affine.plus.is_some()))
            {
                let tuned = tuner.tuned(self.tape, base);
                *affine = Some(Affine::of(&self.tape.slice_rows(&x, rows.clone()), tuned));
            }
        }
        for projection in self.projections(base, &x, affines) {
            let end = start + projection.rows();
            let part = self.tape.cross_entropy(&projection, &targets[start..end]);
            start = end;
            total = Some(match total {
                None => part,
                Some(mut total) => {
                    total.per_row.extend(part.per_row);
                    CrossEntropy { sum: self.tape.add(&total.sum, part.sum), per_row: total.per_row }
                }
            });
        }
        total.unwrap_or_else(|| CrossEntropy { sum: self.tape.constant(Matrix::zeros(1, 1)), per_row: Vec::new() })
    }

    /// What each group computes at a linear site, with its rows.
    fn affines(
        &mut self,
        site: SiteId,
        base: Base<'_>,
        x: &Var,
        segments: &Segments,
    ) -> Vec<(Range<usize>, Option<Affine>)> {
        let tuners = self.weight_tuners(site, segments).into_iter();
        let affines = tuners.map(|(rows, tuner)| {
            let affine = tuner.map(|tuner| {
                let x = self.tape.slice_rows(x, rows.clone());
                tuner.affine(self.tape, base, &x)
            });
            (rows, affine)
        });
        affines.collect()
    }

    /// What a linear site computes, as projections of consecutive rows. A single one wherever all adapters build on
    /// the frozen product, so that it runs once for the whole batch.
    fn projections(
        &mut self,
        base: Base<'_>,
        x: &Var,
        affines: Vec<(Range<usize>, Option<Affine>)>,
    ) -> Vec<Projection> {
        if affines.iter().all(|(_, affine)| affine.as_ref().is_none_or(|affine| affine.base)) {
            return vec![self.projection(base, x, affines)];
        }
        let split = affines.into_iter().map(|(rows, affine)| {
            let x = self.tape.slice_rows(x, rows.clone());
            let all = 0..rows.len();
            self.projection(base, &x, vec![(all, affine)])
        });
        split.collect()
    }

    fn projection(&mut self, base: Base<'_>, x: &Var, affines: Vec<(Range<usize>, Option<Affine>)>) -> Projection {
        let on_base = affines.iter().all(|(_, affine)| affine.as_ref().is_none_or(|affine| affine.base));
        let changes_bias = affines
            .iter()
            .any(|(_, affine)| affine.as_ref().is_some_and(|affine| affine.bias.is_some() || affine.scale.is_some()));
        let input = if on_base { self.frozen_input(x, &affines) } else { x.clone() };
        let mut projection =
            if on_base { Projection::frozen(&input, base) } else { Projection::empty(x.rows(), base.weight.rows()) };
        let frozen_bias = if changes_bias || !on_base { base.bias } else { None };
        if let Some(product) = projection.base.as_mut().filter(|_| changes_bias) {
            product.bias = None;
        }
        for (rows, affine) in affines {
            let Affine { terms, scale, plus, bias, .. } = affine.unwrap_or_else(Affine::frozen);
            projection.terms.extend(terms.into_iter().map(|term| (rows.clone(), term)));
            projection.scales.extend(scale.map(|scale| (rows.clone(), scale)));
            projection.added.extend(plus.map(|plus| (rows.clone(), plus)));
            let bias = bias.or_else(|| frozen_bias.map(|bias| self.tape.constant(bias.to_matrix())));
            projection.biases.extend(bias.map(|bias| (rows, bias)));
        }
        projection
    }

    /// What goes into the frozen product: `x`, but for the rows of tuners that change it.
    fn frozen_input(&mut self, x: &Var, affines: &[(Range<usize>, Option<Affine>)]) -> Var {
        let input = |affine: &Option<Affine>| affine.as_ref().and_then(|affine| affine.input.clone());
        if affines.iter().all(|(_, affine)| input(affine).is_none()) {
            return x.clone();
        }
        let parts: Vec<Var> = affines
            .iter()
            .map(|(rows, affine)| input(affine).unwrap_or_else(|| self.tape.slice_rows(x, rows.clone())))
            .collect();
        self.tape.concat_rows(&parts)
    }
}
