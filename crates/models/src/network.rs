//! What architectures have in common as models: sites with their weights, and over the hidden states a head or the output
//! embedding. Each says what it consists of and how it runs; being a network makes it a [`Model`].

use serde_json::{Map, Value};
use tunesmith_tensor::{Base, CrossEntropy, Forward, FrozenWeight, Segments, Site, SiteId, Var};

use crate::cache::Cache;
use crate::head::Head;
use crate::model::{Inputs, Model, ModelInfo};
use crate::site_table::SiteTable;

/// What a network consists of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) info: ModelInfo,
    /// The configuration as it is saved.
    pub(crate) json: Map<String, Value>,
    pub(crate) table: SiteTable,
    /// The head, of a task that has one.
    pub(crate) head: Option<Head>,
    /// The output embedding of a language model, and a bias on its outputs that is never trained.
    pub(crate) lm_head: Option<SiteId>,
    pub(crate) output_bias: Option<FrozenWeight>,
}

impl Parts {
    /// Those of a decoder that is a language model. Its configuration is made untied where its files hold an output
    /// embedding of its own.
    pub(crate) fn language_model(
        info: ModelInfo,
        mut json: Map<String, Value>,
        table: SiteTable,
        lm_head: SiteId,
        is_said_to_be_tied: bool,
    ) -> Self {
        let tied = table.is_tied(lm_head);
        if is_said_to_be_tied && !tied {
            json.insert("tie_word_embeddings".to_owned(), Value::Bool(false));
        }
        let info = ModelInfo { tied, ..info };
        Self { info, json, table, head: None, lm_head: Some(lm_head), output_bias: None }
    }

    /// The hidden states that the head reads, without the rows of virtual tokens.
    pub(crate) fn pool(&self, forward: &mut Forward<'_>, hidden: Var, ids: &[u32]) -> Var {
        match &self.head {
            Some(head) => head.pool(forward, hidden, ids),
            None => forward.output(hidden),
        }
    }

    fn output(&self) -> Option<(SiteId, Base<'_>)> {
        let (site, base) = self.table.place(self.lm_head?);
        Some((site, Base { bias: self.output_bias.as_ref().or(base.bias), ..base }))
    }
}

/// A network over a table of sites.
pub(crate) trait Network: Send + Sync {
    /// What it consists of.
    fn parts(&self) -> &Parts;

    /// As [`Model::hidden_states`].
    fn run(&self, forward: &mut Forward<'_>, inputs: &Inputs<'_>, cache: Option<&mut Cache>) -> Var;

    /// As [`Model::untied_copies`].
    fn copies_when_untied(&self) -> Vec<String> {
        Vec::new()
    }
}

impl<T: Network> Model for T {
    fn info(&self) -> &ModelInfo {
        &self.parts().info
    }

    fn sites(&self) -> &[Site] {
        self.parts().table.sites()
    }

    fn base(&self, site: SiteId) -> Option<Base<'_>> {
        self.parts().table.get(site)
    }

    fn hidden_states(&self, forward: &mut Forward<'_>, inputs: &Inputs<'_>, cache: Option<&mut Cache>) -> Var {
        self.run(forward, inputs, cache)
    }

    fn logits(&self, forward: &mut Forward<'_>, hidden: &Var, rows: &Segments) -> Var {
        let parts = self.parts();
        match (&parts.head, parts.output()) {
            (Some(head), _) => head.logits(&parts.table, forward, hidden, rows),
            (None, Some((site, base))) => forward.linear_rows(site, base, hidden, rows),
            (None, None) => hidden.clone(),
        }
    }

    fn cross_entropy(&self, forward: &mut Forward<'_>, hidden: &Var, targets: &[u32]) -> CrossEntropy {
        if let Some((site, base)) = self.parts().output() {
            return forward.cross_entropy(site, base, hidden, targets);
        }
        let rows = Head::rows(self.parts().head.as_ref(), forward.segments());
        let logits = self.logits(forward, hidden, &rows);
        forward.tape().softmax_cross_entropy(&logits, targets)
    }

    fn config_json(&self) -> &Map<String, Value> {
        &self.parts().json
    }

    fn tensors(&self) -> Vec<(String, FrozenWeight, Vec<usize>)> {
        self.parts().table.tensors()
    }

    fn untied_copies(&self) -> Vec<String> {
        self.copies_when_untied()
    }
}
