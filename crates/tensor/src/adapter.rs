//! The table of tuners that a method makes for one model, kept beside the model and never inside it.

use std::collections::{BTreeMap, HashSet};

use crate::kernels::{LINE, fetch_lines};
use crate::ops::attention::ShiftedGroups;
use crate::parameter::Parameter;
use crate::shelf::Shelf;
use crate::site::SiteId;
use crate::site_map::SiteMap;
use crate::tuner::{AttentionTuner, Base, HiddenTuner, InputTuner, Stored, Trainable, WeightTuner};
use crate::{FrozenTuner, FrozenWeight, Matrix, Precision, Workspace};

/// The tuners of one adapter, by site. Without any it is the base model.
#[derive(Default)]
pub struct Adapter {
    weights: SiteMap<Box<dyn WeightTuner>>,
    hidden: SiteMap<Box<dyn HiddenTuner>>,
    attention: SiteMap<Box<dyn AttentionTuner>>,
    input: SiteMap<Box<dyn InputTuner>>,
    /// Which part a site's tuner came with; 0 for sites that are not here.
    parts: BTreeMap<SiteId, usize>,
    joined: usize,
    shifted_groups: Option<ShiftedGroups>,
}

impl Adapter {
    /// An adapter without tuners.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a tuner at a linear, embedding or norm; a tuner that was there is replaced.
    pub fn insert_weight(&mut self, site: SiteId, tuner: Box<dyn WeightTuner>) {
        self.weights.insert(site, tuner);
    }

    /// Puts a tuner at a hidden site; a tuner that was there is replaced.
    pub fn insert_hidden(&mut self, site: SiteId, tuner: Box<dyn HiddenTuner>) {
        self.hidden.insert(site, tuner);
    }

    /// Puts a tuner at an attention site; a tuner that was there is replaced.
    pub fn insert_attention(&mut self, site: SiteId, tuner: Box<dyn AttentionTuner>) {
        self.attention.insert(site, tuner);
    }

    /// Puts a tuner at the input; a tuner that was there is replaced.
    pub fn insert_input(&mut self, site: SiteId, tuner: Box<dyn InputTuner>) {
        self.input.insert(site, tuner);
    }

    /// Lets training use shifted sparse attention.
    #[must_use]
    pub fn with_shifted_groups(self, groups: ShiftedGroups) -> Self {
        Self { shifted_groups: Some(groups), ..self }
    }

    /// How training groups tokens for attention, if not whole sequences.
    pub fn shifted_groups(&self) -> Option<ShiftedGroups> {
        self.shifted_groups
    }

    /// Makes the tuners of linears and of hidden states into what they come to once training has ended: small, quick where
    /// a batch mixes many adapters, and each row's result independent of the other rows. `base` gives the frozen weight of
    /// the linear at a site, and `None` for other sites. Nothing can be trained or saved afterwards.
    pub fn freeze<'b>(&mut self, workspace: &Workspace, base: impl Fn(SiteId) -> Option<Base<'b>>) {
        let values = self.trainable_values();
        let floats = if workspace.kernels().precision() == Precision::Bf16 { values.div_ceil(2) } else { values };
        // Factors lie in the order in which a pass reads them; their last vectors may not be full.
        let mut shelf = Shelf::new(floats + floats / 16);
        for (site, tuner) in self.weights.iter_mut() {
            let frozen = base(site).and_then(|base| FrozenTuner::of(workspace, tuner.as_ref(), base, &mut shelf));
            if let Some(frozen) = frozen {
                *tuner = Box::new(frozen);
            }
        }
        for tuner in self.hidden.values_mut() {
            let mut frozen = |weight: &Matrix| FrozenWeight::on(&mut shelf, weight, workspace.kernels().precision());
            if let Some(frozen) = tuner.freeze(&mut frozen) {
                *tuner = frozen;
            }
        }
    }

    /// Bytes of its tensors in memory; tensors that several tuners share count once.
    pub fn bytes(&self) -> usize {
        let linears = self.weights.values().filter_map(|tuner| tuner.frozen()).map(FrozenTuner::bytes);
        let hidden = self.hidden.values().map(|tuner| tuner.frozen_bytes());
        linears.chain(hidden).sum::<usize>() + self.trainable_values() * size_of::<f32>()
    }

    /// The tuner at a weight site.
    pub fn weight(&self, site: SiteId) -> Option<&dyn WeightTuner> {
        self.weights.get(site).map(AsRef::as_ref)
    }

    /// Fetches the tuner at a weight site, which is asked for soon: with many adapters in a batch all of them lie far away.
    #[inline]
    pub(crate) fn prefetch_weight(&self, site: SiteId) {
        if let Some(tuner) = self.weight(site) {
            fetch_lines(std::ptr::from_ref(tuner).cast::<u8>(), size_of_val(tuner).div_ceil(LINE));
        }
    }

    /// The tuner at a hidden site.
    pub fn hidden(&self, site: SiteId) -> Option<&dyn HiddenTuner> {
        self.hidden.get(site).map(AsRef::as_ref)
    }

    /// The tuner at an attention site.
    pub fn attention(&self, site: SiteId) -> Option<&dyn AttentionTuner> {
        self.attention.get(site).map(AsRef::as_ref)
    }

    /// The tuner at the input.
    pub fn input(&self, site: SiteId) -> Option<&dyn InputTuner> {
        self.input.get(site).map(AsRef::as_ref)
    }

    /// Weight sites that have a tuner, in site order.
    pub fn weight_sites(&self) -> impl Iterator<Item = SiteId> + '_ {
        self.weights.sites()
    }

    /// Rows that attention tuners put before each sequence; positions count from there.
    pub fn prefix_length(&self) -> usize {
        self.attention.values().next().map_or(0, |tuner| tuner.length())
    }

    /// Virtual tokens that the input tuner puts before a sequence, and after its prompt.
    pub fn input_lengths(&self) -> (usize, usize) {
        self.input.values().next().map_or((0, 0), |tuner| (tuner.length(), tuner.infix_length()))
    }

    /// Positions that virtual tokens and prefixes take of each sequence's.
    pub fn virtual_tokens(&self) -> usize {
        let (before, after) = self.input_lengths();
        self.prefix_length() + before + after
    }

    /// Whether every tuner acts on a weight, so that the adapter can be merged into the base.
    pub fn is_mergeable(&self) -> bool {
        self.hidden.is_empty() && self.attention.is_empty() && self.input.is_empty()
    }

    /// Takes in the tuners of another adapter, as its next part: the adapter itself is part 0.
    ///
    /// # Errors
    /// The sites that both have a tuner at; nothing is taken then.
    pub fn join(&mut self, other: Self) -> Result<(), Vec<SiteId>> {
        let clashes: Vec<SiteId> = other.sites().filter(|site| self.sites().any(|own| own == *site)).collect();
        if !clashes.is_empty() {
            return Err(clashes);
        }
        self.joined += 1;
        self.shifted_groups = self.shifted_groups.or(other.shifted_groups);
        self.parts.extend(other.sites().map(|site| (site, self.joined)));
        self.weights.extend(other.weights);
        self.hidden.extend(other.hidden);
        self.attention.extend(other.attention);
        self.input.extend(other.input);
        Ok(())
    }

    /// All sites that have a tuner.
    fn sites(&self) -> impl Iterator<Item = SiteId> + '_ {
        let (weights, hidden) = (self.weights.sites(), self.hidden.sites());
        weights.chain(hidden).chain(self.attention.sites()).chain(self.input.sites())
    }

    fn tuners(&self) -> impl Iterator<Item = (SiteId, &dyn Trainable)> {
        let weights = self.weights.iter().map(|(site, tuner)| (site, tuner.as_ref() as &dyn Trainable));
        let hidden = self.hidden.iter().map(|(site, tuner)| (site, tuner.as_ref() as &dyn Trainable));
        let attention = self.attention.iter().map(|(site, tuner)| (site, tuner.as_ref() as &dyn Trainable));
        let input = self.input.iter().map(|(site, tuner)| (site, tuner.as_ref() as &dyn Trainable));
        weights.chain(hidden).chain(attention).chain(input)
    }

    /// All trainable tensors, in a fixed order. One that several tuners share is listed once.
    pub fn parameters(&self) -> Vec<&Parameter> {
        let mut seen = HashSet::new();
        self.tuners().flat_map(|(_, tuner)| tuner.parameters()).filter(|tensor| seen.insert(tensor.id())).collect()
    }

    /// All trainable tensors, in the same order, for updating.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let weights = self.weights.values_mut().flat_map(|tuner| tuner.parameters_mut());
        let hidden = self.hidden.values_mut().flat_map(|tuner| tuner.parameters_mut());
        let attention = self.attention.values_mut().flat_map(|tuner| tuner.parameters_mut());
        let input = self.input.values_mut().flat_map(|tuner| tuner.parameters_mut());
        let mut seen = HashSet::new();
        weights.chain(hidden).chain(attention).chain(input).filter(|tensor| seen.insert(tensor.id())).collect()
    }

    /// The tensors of the adapter file of a part, each once.
    pub fn stored(&self, part: usize) -> Vec<Stored> {
        let of_part = self.tuners().filter(|(site, _)| self.parts.get(site).copied().unwrap_or(0) == part);
        let mut seen = HashSet::new();
        of_part.flat_map(|(_, tuner)| tuner.stored()).filter(|tensor| seen.insert(tensor.name.clone())).collect()
    }

    /// Number of trainable values.
    pub fn trainable_values(&self) -> usize {
        self.parameters().iter().map(|parameter| parameter.value().data().len()).sum()
    }
}
