//! Models without a forward pass: sites and frozen weights.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;
use tunesmith_methods::{ModelDescription, TaskType};
use tunesmith_tensor::{Base, FrozenWeight, Matrix, Role, Seed, Site, SiteId, SiteKind};

/// Sites with their weights.
pub(crate) struct Model {
    pub(crate) model_type: String,
    pub(crate) sites: Vec<Site>,
    weights: Vec<(FrozenWeight, Option<FrozenWeight>)>,
}

impl Model {
    /// A model with the sites of a model in `targets.json`, and random weights.
    pub(crate) fn from_sites(model: &Value) -> Self {
        let mut new =
            Self { model_type: model["model_type"].as_str().unwrap().to_owned(), sites: vec![], weights: vec![] };
        for site in model["sites"].as_array().unwrap() {
            let shape: Vec<usize> = serde_json::from_value(site["shape"].clone()).unwrap();
            let count = shape.iter().product();
            let mut stream = Seed(3).stream(site["path"].as_str().unwrap(), 0);
            let mut random = |count: usize| (0..count).map(|_| stream.normal()).collect::<Vec<f32>>();
            let weight = random(count);
            let bias = site["bias"].as_bool().unwrap().then(|| random(shape[0]));
            new.add(site["path"].as_str().unwrap(), &shape, weight, bias);
        }
        new
    }

    /// The base model of the fixtures of an architecture.
    pub(crate) fn of_fixtures(architecture: &str) -> Self {
        let bytes = std::fs::read(fixture(architecture).join("model/model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut names = tensors.names();
        names.sort_unstable();
        let mut model = Self { model_type: architecture.to_owned(), sites: vec![], weights: vec![] };
        for path in names.iter().filter_map(|name| name.strip_suffix(".weight")) {
            let weight = tensors.tensor(&format!("{path}.weight")).unwrap();
            let bias = tensors.tensor(&format!("{path}.bias")).ok().map(|bias| floats(bias.data()));
            model.add(path, weight.shape(), floats(weight.data()), bias);
        }
        if !names.contains(&"lm_head.weight") {
            let (embedding, _) = model.weights[model.index("model.embed_tokens")].clone();
            let (rows, cols) = embedding.shape();
            model.add("lm_head", &[rows, cols], vec![0.0; rows * cols], None);
            model.weights.last_mut().unwrap().0 = embedding;
        }
        model
    }

    /// A model of the given sites, with weights that only have the right shapes.
    pub(crate) fn of_sites(model_type: &str, sites: Vec<Site>) -> Self {
        let mut shapes: Vec<FrozenWeight> = Vec::new();
        let mut zeros = |rows: usize, cols: usize| {
            let known = shapes.iter().find(|weight| weight.shape() == (rows, cols)).cloned();
            known.unwrap_or_else(|| {
                shapes.push(FrozenWeight::float32(Matrix::zeros(rows, cols)));
                shapes.last().unwrap().clone()
            })
        };
        let bias = |site: &Site| if site.kind == SiteKind::Norm { site.cols } else { site.rows };
        let weights = sites
            .iter()
            .map(|site| {
                (zeros(site.rows, site.cols), site.has_bias.then(|| FrozenWeight::vector(vec![0.0; bias(site)])))
            })
            .collect();
        Self { model_type: model_type.to_owned(), sites, weights }
    }

    fn add(&mut self, path: &str, shape: &[usize], weight: Vec<f32>, bias: Option<Vec<f32>>) {
        let (rows, cols) = if let [rows, cols] = *shape { (rows, cols) } else { (1, shape[0]) };
        let (kind, role) = match path.rsplit('.').next().unwrap() {
            "embed_tokens" => (SiteKind::Embedding, Role::TokenEmbedding),
            "lm_head" => (SiteKind::Linear, Role::OutputEmbedding),
            _ if shape.len() == 1 => (SiteKind::Norm, Role::BlockNorm),
            _ => (SiteKind::Linear, Role::Query),
        };
        let has_bias = bias.is_some();
        self.sites.push(Site {
            path: path.to_owned(),
            kind,
            role,
            block: path.split('.').find_map(|part| part.parse().ok()),
            rows,
            cols,
            has_bias,
            stored_transposed: false,
        });
        let weight = FrozenWeight::float32(Matrix::from_vec(rows, cols, weight));
        self.weights.push((weight, bias.map(FrozenWeight::vector)));
    }

    /// Index of the site at `path`.
    pub(crate) fn index(&self, path: &str) -> usize {
        self.sites.iter().position(|site| site.path == path).unwrap()
    }

    /// The frozen weight at `path`.
    pub(crate) fn weight(&self, path: &str) -> Matrix {
        self.weights[self.index(path)].0.to_matrix()
    }

    /// Lets `test` see the model as methods do.
    pub(crate) fn describe<T>(&self, test: impl FnOnce(&ModelDescription<'_>) -> T) -> T {
        let base = |site: SiteId| {
            let (weight, bias) = self.weights.get(site.0)?;
            Some(Base { weight, bias: bias.as_ref() })
        };
        test(&ModelDescription {
            rope_factor: 1.0,
            model_type: &self.model_type,
            name_or_path: Some("tiny/model"),
            task_type: TaskType::CausalLm,
            heads: 4,
            key_value_heads: 2,
            tokenize: None,
            keys_and_values: None,
            sites: &self.sites,
            base: &base,
        })
    }
}

/// The fixtures of an architecture.
pub(crate) fn fixture(architecture: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(architecture)
}

/// Little-endian float32 values.
pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect()
}
