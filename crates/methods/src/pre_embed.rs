//! PreEmbed (Hu et al. 2021, <https://arxiv.org/abs/2106.09685>, section 5.1, "prefix-embedding tuning"): trained embeddings
//! of `l_p` special tokens before the prompt and `l_i` after it. `|Θ| = d·(l_p + l_i)`.

use serde::{Deserialize, Serialize};

use crate::MethodError;
use crate::common::{CommonConfig, Purpose};
use crate::error::ConfigProblem;
use crate::method::{Built, Method, Place};
use crate::special_tokens::SpecialTokens;

/// Configuration of the method.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PreEmbedConfig {
    /// What every method's configuration has.
    #[serde(flatten)]
    pub common: CommonConfig,
    /// How many special tokens, and where.
    #[serde(flatten)]
    pub tokens: SpecialTokens,
}

impl Method for PreEmbedConfig {
    const PEFT_TYPE: &'static str = "PRE_EMBED";

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
        let adapter = self.tokens.at_input(place)?;
        Ok(Built { config: self.clone(), adapter, warnings: Vec::new(), routine: None })
    }
}
