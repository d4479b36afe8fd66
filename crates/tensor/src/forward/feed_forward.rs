//! The feed-forward of a block: its linear sites and what lies between them.

use super::Forward;
use crate::ops::feed_forward::FeedForwardLinears;
use crate::ops::updated_linear::UpdatedLinear;
use crate::tuner::Base;
use crate::{Activation, SiteId, Var};

/// The sites of a feed-forward, and what lies between them.
#[derive(Clone, Copy, Debug)]
pub struct FeedForwardSites<'a> {
    /// The linear whose activation multiplies `up`; without it `up` itself is activated.
    pub gate: Option<(SiteId, Base<'a>)>,
    /// The linear to the hidden features.
    pub up: (SiteId, Base<'a>),
    /// The linear from the hidden features.
    pub down: (SiteId, Base<'a>),
    /// Of the gate, or of `up` where there is none.
    pub activation: Activation,
    /// The probability that a hidden value is dropped in training.
    pub dropout: f32,
}

impl Forward<'_> {
    /// A feed-forward of `x` `[tokens, in]`, `[tokens, out]`: in one operation where its linears have low-rank updates at
    /// the most, or weights and biases of their own.
    pub fn feed_forward(&mut self, sites: &FeedForwardSites<'_>, x: Var) -> Var {
        let FeedForwardSites { gate, up, down, activation, dropout } = *sites;
        if let Some(linears) = self.fused(sites, x.rows()) {
            return self.tape.feed_forward(activation, &x, linears);
        }
        let hidden = match gate {
            None => {
                let hidden = self.linear(up.0, up.1, &x);
                self.tape.activation(activation, &hidden)
            }
            Some(gate) => {
                let [hidden, gate] = self.linears([up, gate], &x);
                self.tape.gated(activation, &gate, &hidden)
            }
        };
        drop(x);
        let hidden = self.tape.dropout(&hidden, dropout);
        self.linear(down.0, down.1, &hidden)
    }

    fn fused<'a>(&mut self, sites: &FeedForwardSites<'a>, rows: usize) -> Option<FeedForwardLinears<'a>> {
        let FeedForwardSites { gate, up, down, dropout, .. } = *sites;
        let weights: Vec<_> = [gate, Some(up), Some(down)].into_iter().flatten().map(|(_, base)| base.weight).collect();
        let drops = dropout > 0.0 && self.tape.is_training();
        if drops || !self.tape.has_feed_forward(rows, &weights, up.1.weight.rows()) {
            return None;
        }
        let gate = match gate {
            Some(gate) => Some(self.updated(gate)?),
            None => None,
        };
        Some(FeedForwardLinears { gate, up: self.updated(up)?, down: self.updated(down)? })
    }

    /// The linear of a site with its update, where tuners are low-rank at the most, or with what one tuner puts in the place
    /// of its weight or bias.
    pub(super) fn updated<'b>(&mut self, (site, base): (SiteId, Base<'b>)) -> Option<UpdatedLinear<'b>> {
        let tuners = self.weight_tuners(site, &self.segments);
        if let [(_, Some(tuner))] = &tuners[..]
            && let Some(replacement) = tuner.replacement(self.tape, base)
        {
            return Some(UpdatedLinear { base, update: None, replacement: Some(replacement) });
        }
        let update = self.block_update(&tuners).ok()?;
        Some(UpdatedLinear { base, update, replacement: None })
    }
}
