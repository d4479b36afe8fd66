//! Single rows of an embedding that are trained as they are: `trainable_token_indices`, and PEFT's `TRAINABLE_TOKENS`.
//!
//! ```text
//! W[i] = delta[i] for the chosen tokens, W₀[i] for all others
//! ```
//!
//! An output embedding that is tied to the input embedding shares the rows and stays tied.

use std::collections::BTreeMap;

use tunesmith_tensor::{
    Adapter, Affine, Base, Matrix, Parameter, Role, SiteId, SiteKind, Stored, Tape, Term, Trainable, Tuned, Var,
    WeightTuner,
};

use crate::build::parameter_name;
use crate::lora_config::TokenIndices;
use crate::{MethodError, ModelDescription};

/// Replaces rows of one embedding, or of the output embedding that is tied to it.
#[derive(Debug)]
pub struct TokenRowsTuner {
    /// `[tokens, width]`.
    rows: Parameter,
    /// The place in `rows` of each token that has one.
    places: BTreeMap<u32, usize>,
    /// Whether another tuner saves the rows.
    is_tied: bool,
}

impl TokenRowsTuner {
    /// A tuner that begins with the embedding's own rows; `name` is the tensor's key.
    fn new(name: String, tokens: &[u32], base: Base<'_>) -> Self {
        let mut rows = Matrix::zeros(tokens.len(), base.weight.cols());
        for (place, token) in tokens.iter().enumerate() {
            base.weight.read_row(*token as usize, rows.row_mut(place));
        }
        let places = tokens.iter().enumerate().map(|(place, token)| (*token, place)).collect();
        Self { rows: Parameter::new(name, rows), places, is_tied: false }
    }

    /// The same rows at a tied weight.
    fn tied(&self) -> Self {
        Self { rows: self.rows.clone(), places: self.places.clone(), is_tied: true }
    }
}

impl Trainable for TokenRowsTuner {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.rows]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.rows]
    }

    fn stored(&self) -> Vec<Stored> {
        if self.is_tied { Vec::new() } else { vec![Stored::from(&self.rows)] }
    }
}

impl WeightTuner for TokenRowsTuner {
    fn tuned(&self, tape: &mut Tape, base: Base<'_>) -> Tuned {
        let count = base.weight.rows();
        let frozen = tape.constant(base.weight.to_matrix());
        let rows = tape.parameter(&self.rows);
        let all = tape.concat_rows(&[frozen, rows]);
        let from = (0..count).map(|row| self.places.get(&(row as u32)).map_or(row, |place| count + place)).collect();
        let weight = tape.gather_rows(&all, from);
        Tuned { weight, bias: base.bias.map(|bias| tape.constant(bias.to_matrix())) }
    }

    /// The logits of the chosen tokens, with their own rows in place of the frozen ones: `y + S·(rows − W₀[tokens])·x`, where
    /// `S` puts each into its column.
    fn affine(&self, tape: &mut Tape, base: Base<'_>, x: &Var) -> Affine {
        let (mut negative, mut selection) = (
            Matrix::zeros(self.places.len(), base.weight.cols()),
            Matrix::zeros(base.weight.rows(), self.places.len()),
        );
        for (token, place) in &self.places {
            base.weight.read_row(*token as usize, negative.row_mut(*place));
            selection.row_mut(*token as usize)[*place] = 1.0;
        }
        negative.data_mut().iter_mut().for_each(|value| *value = -*value);
        let rows = tape.parameter(&self.rows);
        let negative = tape.constant(negative);
        let difference = tape.add(&rows, negative);
        let input = tape.matmul_nt(x, &difference);
        let weight = tape.constant(selection);
        Affine { terms: vec![Term { input, weight, scale: 1.0 }], ..Affine::frozen() }
    }

    fn embedding(&self, tape: &mut Tape, base: Base<'_>, ids: &[u32]) -> Var {
        let frozen = tape.embedding(ids, base.weight);
        let rows = tape.parameter(&self.rows);
        let all = tape.concat_rows(&[frozen, rows]);
        let from = |(row, id): (usize, &u32)| self.places.get(id).map_or(row, |place| ids.len() + place);
        tape.gather_rows(&all, ids.iter().enumerate().map(from).collect())
    }
}

/// Adds the tuners of `tokens` to the embeddings that they mean.
///
/// # Errors
/// [`MethodError::Impossible`] for an embedding that does not exist or is tuned already, or a token outside of it.
pub(crate) fn add_tuners(
    adapter: &mut Adapter,
    tokens: &TokenIndices,
    model: &ModelDescription<'_>,
) -> Result<(), MethodError> {
    add_named(adapter, tokens, "token_adapter.trainable_tokens_delta", model)
}

/// The same with another last part of the tensors' keys.
pub(crate) fn add_named(
    adapter: &mut Adapter,
    tokens: &TokenIndices,
    suffix: &str,
    model: &ModelDescription<'_>,
) -> Result<(), MethodError> {
    let impossible =
        |why: String, instead: String| MethodError::Impossible { what: "trainable_token_indices".into(), why, instead };
    let embeddings = || model.weight_sites().filter(|(_, site)| site.kind == SiteKind::Embedding);
    let wanted: Vec<(SiteId, &[u32])> = match tokens {
        TokenIndices::Input(tokens) => {
            let input = embeddings().find(|(_, site)| site.role == Role::TokenEmbedding);
            let (id, _) = input.ok_or_else(|| {
                impossible("this model announces no input embedding".into(), "Use modules_to_save".into())
            })?;
            vec![(id, tokens.as_slice())]
        }
        TokenIndices::Named(named) => {
            let mut wanted = Vec::new();
            for (name, tokens) in named {
                let means = |path: &str| path == name || path.ends_with(&format!(".{name}"));
                let found: Vec<SiteId> = embeddings().filter(|(_, site)| means(&site.path)).map(|(id, _)| id).collect();
                if found.is_empty() {
                    let paths: Vec<&str> = embeddings().map(|(_, site)| site.path.as_str()).collect();
                    let instead = format!("The embeddings are {}", paths.join(", "));
                    return Err(impossible(format!("no embedding of this model is named {name}"), instead));
                }
                wanted.extend(found.into_iter().map(|id| (id, tokens.as_slice())));
            }
            wanted
        }
    };
    for (id, tokens) in wanted {
        let site = &model.sites[id.0];
        let base = model.base(id)?;
        let outside: Vec<u32> = tokens.iter().copied().filter(|token| *token as usize >= site.rows).collect();
        if tokens.is_empty() || !outside.is_empty() {
            let why = format!("{} has {} embeddings; outside of it or missing: {outside:?}", site.path, site.rows);
            return Err(impossible(why, "Name tokens by their ids in the tokenizer".into()));
        }
        if adapter.weight(id).is_some() {
            let why = format!("{} is tuned as a whole already", site.path);
            return Err(impossible(why, "Leave it out of target_modules and modules_to_save".into()));
        }
        let mut distinct = tokens.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        // The order is the configuration's, which files keep.
        let tokens = if distinct.len() == tokens.len() { tokens } else { &distinct };
        let tuner = TokenRowsTuner::new(parameter_name(&site.path, suffix), tokens, base);
        for (other, other_site) in model.weight_sites().filter(|(other, _)| *other != id) {
            let is_tied = other_site.kind != SiteKind::Norm && model.base(other)?.weight.is_same(base.weight);
            if is_tied && adapter.weight(other).is_none() {
                adapter.insert_weight(other, Box::new(tuner.tied()));
            }
        }
        adapter.insert_weight(id, Box::new(tuner));
    }
    Ok(())
}
