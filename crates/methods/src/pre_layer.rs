//! PreLayer (Hu et al. 2021, <https://arxiv.org/abs/2106.09685>, section 5.1, "prefix-layer tuning"): as PreEmbed, and what
//! the blocks compute for special tokens is replaced by trained activations after each block. `|Θ| = L·d·(l_p + l_i)`: the
//! inputs of all `L` blocks, because nothing reads the tokens after the last.

use serde::{Deserialize, Serialize};
use tunesmith_tensor::{Role, SiteId};

use crate::MethodError;
use crate::common::{CommonConfig, Purpose};
use crate::error::ConfigProblem;
use crate::method::{Built, Method, Place};
use crate::special_tokens::{ActivationsTuner, SpecialTokens};
use crate::virtual_tokens::blocks;

/// Configuration of the method.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PreLayerConfig {
    /// What every method's configuration has.
    #[serde(flatten)]
    pub common: CommonConfig,
    /// How many special tokens, and where.
    #[serde(flatten)]
    pub tokens: SpecialTokens,
}

impl Method for PreLayerConfig {
    const PEFT_TYPE: &'static str = "PRE_LAYER";

    fn common(&self) -> &CommonConfig {
        &self.common
    }

    fn common_mut(&mut self) -> &mut CommonConfig {
        &mut self.common
    }

    fn problems(&self, _purpose: Purpose) -> Vec<ConfigProblem> {
        self.tokens.problems()
    }

    fn build(&self, place: &Place<'_, '_>) -> Result<Built<Self>, MethodError> {
        let Place { model, seed, .. } = *place;
        let mut adapter = self.tokens.at_input(place)?;
        let sites = model.sites.iter().enumerate().filter(|(_, site)| site.role == Role::AfterFeedForward);
        for (block, (index, site)) in sites.enumerate().take(blocks(model).saturating_sub(1)) {
            let name = format!("activations.{block}");
            let tuner = ActivationsTuner::new(&name, self.tokens.start(&name, site.cols, seed));
            adapter.insert_hidden(SiteId(index), Box::new(tuner));
        }
        Ok(Built { config: self.clone(), adapter, warnings: Vec::new(), routine: None })
    }
}
