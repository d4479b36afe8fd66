//! The sites of a network with their frozen weights: laid out once by its architecture, then read, asked and saved the
//! same way for all.

use std::collections::BTreeMap;

use tunesmith_tensor::{Base, Forward, FrozenWeight, Matrix, Role, Seed, Segments, Site, SiteId, SiteKind, Var};

use crate::error::ModelError;
use crate::task::HeadOptions;
use crate::weights::{WeightSource, take, transposed};

/// Sites on their way into a network.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// How many sites of another part of the network come before these.
    before: usize,
    sites: Vec<Site>,
    /// Sites whose weight is that of another.
    tied: BTreeMap<SiteId, SiteId>,
    /// Sites that start random where the files lack them.
    heads: Vec<SiteId>,
    /// Tensors that are kept for saving but are no part of the network.
    kept: Vec<(String, Vec<usize>)>,
}

impl Layout {
    /// A layout that goes on after `before` sites of another part of the network.
    pub(crate) fn after(before: usize) -> Self {
        Self { before, ..Self::default() }
    }

    pub(crate) fn linear(
        &mut self,
        path: String,
        role: Role,
        block: Option<usize>,
        rows: usize,
        cols: usize,
    ) -> SiteId {
        self.add(path, SiteKind::Linear, role, block, (rows, cols), true)
    }

    pub(crate) fn linear_without_bias(
        &mut self,
        path: String,
        role: Role,
        block: Option<usize>,
        rows: usize,
        cols: usize,
    ) -> SiteId {
        self.add(path, SiteKind::Linear, role, block, (rows, cols), false)
    }

    /// A linear with or without a bias.
    pub(crate) fn linear_where(
        &mut self,
        path: String,
        role: Role,
        block: Option<usize>,
        (rows, cols): (usize, usize),
        has_bias: bool,
    ) -> SiteId {
        self.add(path, SiteKind::Linear, role, block, (rows, cols), has_bias)
    }

    /// A linear that files keep as `[in, out]` (Hugging Face's `Conv1D`).
    pub(crate) fn conv1d(&mut self, path: String, role: Role, block: usize, (rows, cols): (usize, usize)) -> SiteId {
        let site = self.add(path, SiteKind::Linear, role, Some(block), (rows, cols), true);
        self.sites[site.0 - self.before].stored_transposed = true;
        site
    }

    pub(crate) fn embedding(&mut self, path: String, role: Role, rows: usize, cols: usize) -> SiteId {
        self.add(path, SiteKind::Embedding, role, None, (rows, cols), false)
    }

    pub(crate) fn layer_norm(&mut self, path: String, role: Role, block: Option<usize>, width: usize) -> SiteId {
        self.add(path, SiteKind::Norm, role, block, (1, width), true)
    }

    pub(crate) fn rms_norm(&mut self, path: String, role: Role, block: Option<usize>, width: usize) -> SiteId {
        self.add(path, SiteKind::Norm, role, block, (1, width), false)
    }

    pub(crate) fn hidden(&mut self, path: String, role: Role, block: usize, width: usize) -> SiteId {
        self.add(path, SiteKind::Hidden, role, Some(block), (width, width), false)
    }

    pub(crate) fn attention(&mut self, path: String, role: Role, block: usize, width: usize) -> SiteId {
        self.add(path, SiteKind::Attention, role, Some(block), (width, width), false)
    }

    pub(crate) fn input(&mut self, path: String, role: Role, width: usize) -> SiteId {
        self.add(path, SiteKind::Input, role, None, (width, width), false)
    }

    /// Lets a site have the weight of an earlier one, unless the files hold another for it.
    pub(crate) fn tie(&mut self, site: SiteId, to: SiteId) {
        self.tied.insert(site, to);
    }

    /// Lets a linear start random where the files lack it.
    pub(crate) fn may_be_new(&mut self, site: SiteId) {
        self.heads.push(site);
    }

    /// Keeps a tensor of the files, where they have it, for saving.
    pub(crate) fn keep(&mut self, name: String, shape: Vec<usize>) {
        self.kept.push((name, shape));
    }

    fn add(
        &mut self,
        path: String,
        kind: SiteKind,
        role: Role,
        block: Option<usize>,
        (rows, cols): (usize, usize),
        has_bias: bool,
    ) -> SiteId {
        self.sites.push(Site { path, kind, role, block, rows, cols, has_bias, stored_transposed: false });
        SiteId(self.before + self.sites.len() - 1)
    }

    /// Reads every weight. Everything that does not fit is reported at once.
    ///
    /// # Errors
    /// [`ModelError::Tensors`], [`ModelError::HeadMismatch`], or a reading error.
    pub(crate) fn read(mut self, source: &mut dyn WeightSource, new: &NewHeads) -> Result<SiteTable, ModelError> {
        let new_sites = self.new_sites(source, new)?;
        self.check(source, &new_sites)?;
        let mut weights: Vec<Option<SiteBase>> = Vec::with_capacity(self.sites.len());
        for (index, site) in self.sites.iter().enumerate() {
            let id = SiteId(self.before + index);
            let base = if !site.kind.is_weight() {
                None
            } else if let Some(other) = self.tied.get(&id).copied() {
                let shared = weights[other.0 - self.before].clone();
                let own = own_weight(source, site)?;
                let differs = |own: &FrozenWeight| shared.as_ref().is_none_or(|shared| !is_equal(own, &shared.weight));
                match own.filter(differs) {
                    None => shared,
                    Some(weight) => {
                        self.tied.remove(&id);
                        Some(SiteBase { weight, bias: None })
                    }
                }
            } else if new_sites.contains(&id) {
                Some(new.draw(site))
            } else {
                let [weight, bias] = tensors_of(site);
                let weight = if site.stored_transposed {
                    let stored = Matrix::from_vec(site.cols, site.rows, source.read(&weight.0)?);
                    source.keep(&weight.0, transposed(&stored))?
                } else {
                    take(source, &weight.0, &weight.1)?
                };
                let bias = site.has_bias.then(|| take(source, &bias.0, &bias.1)).transpose()?;
                Some(SiteBase { weight, bias })
            };
            weights.push(base);
        }
        let mut kept = Vec::new();
        for (name, shape) in self.kept {
            if source.stored().contains_key(&name) {
                let is_vector = shape.len() == 1 || shape[0] == 1;
                let weight =
                    if is_vector { FrozenWeight::vector(source.read(&name)?) } else { take(source, &name, &shape)? };
                kept.push((name, weight, shape));
            }
        }
        let new_modules = new_sites.iter().map(|id| self.sites[id.0 - self.before].path.clone()).collect();
        Ok(SiteTable { before: self.before, sites: self.sites, weights, tied: self.tied, kept, new_modules })
    }

    /// The heads that the files lack, or have in another size where that may be.
    fn new_sites(&self, source: &dyn WeightSource, new: &NewHeads) -> Result<Vec<SiteId>, ModelError> {
        let mut sites = Vec::new();
        for id in &self.heads {
            let site = &self.sites[id.0 - self.before];
            let [(name, shape), _] = tensors_of(site);
            match source.stored().get(&name) {
                None => sites.push(*id),
                Some(stored) if stored.shape != shape && new.ignore_mismatched_sizes => sites.push(*id),
                Some(stored) if stored.shape != shape && site.role == Role::Head => {
                    return Err(ModelError::HeadMismatch {
                        path: stored.file.clone(),
                        name,
                        stored: stored.shape.clone(),
                        expected: shape,
                    });
                }
                Some(_) => {}
            }
        }
        Ok(sites)
    }

    fn check(&self, source: &dyn WeightSource, new_sites: &[SiteId]) -> Result<(), ModelError> {
        let mut expected = Vec::new();
        let mut may_be_there: Vec<String> = Vec::new();
        for (index, site) in self.sites.iter().enumerate().filter(|(_, site)| site.kind.is_weight()) {
            let id = SiteId(self.before + index);
            let [weight, bias] = tensors_of(site);
            let bias = site.has_bias.then_some(bias);
            if self.tied.contains_key(&id) || new_sites.contains(&id) {
                may_be_there.extend([Some(weight), bias].into_iter().flatten().map(|(name, _)| name));
            } else {
                expected.push(weight);
                expected.extend(bias);
            }
        }
        let there = self.kept.iter().filter(|(name, _)| source.stored().contains_key(name));
        expected.extend(there.cloned());
        crate::weights::check(source, &expected, |name| may_be_there.iter().any(|other| other == name))
    }
}

/// How heads that the files lack come to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewHeads {
    /// What they are drawn from.
    pub(crate) seed: Seed,
    /// Standard deviation of their weights (`initializer_range`); their biases are zero.
    pub(crate) deviation: f32,
    /// Whether a stored head of another size counts as none.
    pub(crate) ignore_mismatched_sizes: bool,
}

impl NewHeads {
    /// For layouts without heads that may be new.
    pub(crate) fn none() -> Self {
        Self { seed: Seed(0), deviation: 0.0, ignore_mismatched_sizes: false }
    }

    /// As the options say, with weights of a standard deviation.
    pub(crate) fn of(options: &HeadOptions, deviation: f32) -> Self {
        Self { seed: options.seed(), deviation, ignore_mismatched_sizes: options.ignore_mismatched_sizes }
    }

    fn draw(&self, site: &Site) -> SiteBase {
        let mut stream = self.seed.stream(&site.path, 0);
        let values = (0..site.rows * site.cols).map(|_| self.deviation * stream.normal()).collect();
        let weight = FrozenWeight::float32(Matrix::from_vec(site.rows, site.cols, values));
        SiteBase { weight, bias: site.has_bias.then(|| FrozenWeight::vector(vec![0.0; site.rows])) }
    }
}

/// The frozen weight and bias of a site.
#[derive(Clone, Debug)]
struct SiteBase {
    weight: FrozenWeight,
    bias: Option<FrozenWeight>,
}

/// The weight that the files hold for a tied site, if it can be read.
fn own_weight(source: &mut dyn WeightSource, site: &Site) -> Result<Option<FrozenWeight>, ModelError> {
    let [(name, shape), _] = tensors_of(site);
    let stored = source.stored().get(&name);
    let readable = stored.is_some_and(|stored| stored.shape == shape && stored.unsupported.is_none());
    readable.then(|| take(source, &name, &shape)).transpose()
}

/// Whether two weights hold the same values; row by row, so that neither lies in memory as a whole.
fn is_equal(left: &FrozenWeight, right: &FrozenWeight) -> bool {
    let mut rows = [vec![0.0; left.cols()], vec![0.0; right.cols()]];
    left.shape() == right.shape()
        && (0..left.rows()).all(|row| {
            left.read_row(row, &mut rows[0]);
            right.read_row(row, &mut rows[1]);
            rows[0] == rows[1]
        })
}

/// Names and shapes of a weight site's weight and bias in a checkpoint.
fn tensors_of(site: &Site) -> [(String, Vec<usize>); 2] {
    let (weight, bias) = if site.kind == SiteKind::Norm {
        (vec![site.cols], site.cols)
    } else if site.stored_transposed {
        (vec![site.cols, site.rows], site.rows)
    } else {
        (vec![site.rows, site.cols], site.rows)
    };
    [(format!("{}.weight", site.path), weight), (format!("{}.bias", site.path), vec![bias])]
}

/// The sites of a network with their weights.
#[derive(Debug)]
pub(crate) struct SiteTable {
    before: usize,
    sites: Vec<Site>,
    weights: Vec<Option<SiteBase>>,
    tied: BTreeMap<SiteId, SiteId>,
    kept: Vec<(String, FrozenWeight, Vec<usize>)>,
    new_modules: Vec<String>,
}

impl SiteTable {
    pub(crate) fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// The frozen weight and bias of a weight site; `None` for other sites.
    pub(crate) fn get(&self, site: SiteId) -> Option<Base<'_>> {
        let base = self.weights.get(site.0.checked_sub(self.before)?)?.as_ref()?;
        Some(Base { weight: &base.weight, bias: base.bias.as_ref() })
    }

    /// The frozen weight and bias of a site that its architecture laid out as a weight.
    pub(crate) fn base(&self, site: SiteId) -> Base<'_> {
        self.get(site).expect("the site was laid out with a weight")
    }

    /// Hugging Face paths of the modules that started random.
    pub(crate) fn new_modules(&self) -> &[String] {
        &self.new_modules
    }

    /// Whether a site has the weight of another.
    pub(crate) fn is_tied(&self, site: SiteId) -> bool {
        self.tied.contains_key(&site)
    }

    /// A tensor that is no site's.
    pub(crate) fn kept(&self, name: &str) -> Option<&FrozenWeight> {
        self.kept.iter().find(|(other, ..)| other == name).map(|(_, weight, _)| weight)
    }

    /// All tensors of a checkpoint; see [`Model::tensors`](crate::Model::tensors).
    pub(crate) fn tensors(&self) -> Vec<(String, FrozenWeight, Vec<usize>)> {
        let mut tensors = Vec::new();
        for (index, (site, base)) in self.sites.iter().zip(&self.weights).enumerate() {
            let Some(base) = base.as_ref().filter(|_| !self.tied.contains_key(&SiteId(self.before + index))) else {
                continue;
            };
            let [weight, bias] = tensors_of(site);
            tensors.push((weight.0, base.weight.clone(), weight.1));
            tensors.extend(base.bias.clone().map(|value| (bias.0, value, bias.1)));
        }
        tensors.extend(self.kept.iter().cloned());
        tensors
    }

    pub(crate) fn linear(&self, forward: &mut Forward<'_>, site: SiteId, x: &Var) -> Var {
        forward.linear(site, self.base(site), x)
    }

    pub(crate) fn linears<const SITES: usize>(
        &self,
        forward: &mut Forward<'_>,
        sites: [SiteId; SITES],
        x: &Var,
    ) -> [Var; SITES] {
        forward.linears(sites.map(|site| self.place(site)), x)
    }

    /// The site with its weight.
    pub(crate) fn place(&self, site: SiteId) -> (SiteId, Base<'_>) {
        (site, self.base(site))
    }

    pub(crate) fn linear_rows(&self, forward: &mut Forward<'_>, site: SiteId, x: &Var, rows: &Segments) -> Var {
        forward.linear_rows(site, self.base(site), x, rows)
    }

    pub(crate) fn embedding(&self, forward: &mut Forward<'_>, site: SiteId, ids: &[u32]) -> Var {
        forward.embedding(site, self.base(site), ids)
    }
}
