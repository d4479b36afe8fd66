//! Rotary embeddings in `config.json`, in the older form and in that of transformers 5.

use serde_json::{Map, Value};

use crate::architectures::llama::rope::{Rope, RopeScaling};
use crate::fields::Fields;

impl Fields<'_> {
    /// `rope_parameters`, or the older `rope_theta` and `rope_scaling`, in transformers' order of precedence.
    pub(super) fn rope(&mut self, max_position_embeddings: usize) -> Rope {
        const DEFAULT_THETA: f64 = 10_000.0;
        let nothing = Map::new();
        let json = self.json;
        let filled = |key: &str| json.get(key).and_then(Value::as_object).filter(|object| !object.is_empty());
        let (name, parameters) = match (filled("rope_scaling"), filled("rope_parameters")) {
            (Some(scaling), _) => ("rope_scaling", scaling),
            (None, parameters) => ("rope_parameters", parameters.unwrap_or(&nothing)),
        };
        let theta = self.positive("rope_theta", DEFAULT_THETA);
        self.rope_of(name, parameters, theta, max_position_embeddings)
    }

    /// Gemma 3's two embeddings, of blocks that see everything and of those with a window: `rope_parameters` by layer
    /// type, or the older `rope_theta`, `rope_scaling` (of the former alone) and `rope_local_base_freq`.
    pub(super) fn gemma_ropes(&mut self, max_position_embeddings: usize) -> (Rope, Rope) {
        let nothing = Map::new();
        let json = self.json;
        let theta = self.positive("rope_theta", 1_000_000.0);
        let local_theta = self.positive("rope_local_base_freq", 10_000.0);
        let by_type = json.get("rope_parameters").and_then(Value::as_object);
        let scaling = json.get("rope_scaling").and_then(Value::as_object);
        let mut rope = |layer_type: &str, scaling: Option<&Map<String, Value>>, theta| {
            let own = by_type.and_then(|types| types.get(layer_type)).and_then(Value::as_object);
            let name = format!("rope_parameters.{layer_type}");
            self.rope_of(&name, scaling.or(own).unwrap_or(&nothing), theta, max_position_embeddings)
        };
        (rope("full_attention", scaling, theta), rope("sliding_attention", None, local_theta))
    }

    /// The embedding that one object describes; `theta` where it does not say.
    fn rope_of(&mut self, name: &str, parameters: &Map<String, Value>, theta: f64, max_positions: usize) -> Rope {
        let mut nested = Fields::new(parameters);
        let theta = nested.positive("rope_theta", theta);
        let old_name = nested.text("type", "default");
        let kind = nested.text("rope_type", &old_name);
        let partial = self.positive("partial_rotary_factor", 1.0);
        if nested.positive("partial_rotary_factor", partial) != 1.0 {
            nested.problems.push("partial_rotary_factor other than 1 is not supported".to_owned());
        }
        let scaling = match kind.as_str() {
            "default" => RopeScaling::Default,
            // It begins to differ beyond the context that the configuration allows, where nothing runs.
            "dynamic" => {
                nested.required("factor");
                RopeScaling::Default
            }
            "linear" => RopeScaling::Linear { factor: nested.required("factor") },
            "llama3" => {
                let original = nested.size("original_max_position_embeddings", max_positions);
                let scaling = RopeScaling::Llama3 {
                    factor: nested.required("factor"),
                    low_freq_factor: nested.required("low_freq_factor"),
                    high_freq_factor: nested.required("high_freq_factor"),
                    original_max_position_embeddings: self.size("original_max_position_embeddings", original),
                };
                if let RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. } = scaling
                    && high_freq_factor <= low_freq_factor
                    && nested.problems.is_empty()
                {
                    nested.problems.push("high_freq_factor must be greater than low_freq_factor".to_owned());
                }
                scaling
            }
            "yarn" => self.yarn(&mut nested, max_positions),
            other => {
                let known = "default, dynamic, linear, llama3, yarn";
                let problem = format!("rope_type {other:?} is not supported; known: {known}");
                nested.problems.push(problem);
                RopeScaling::Default
            }
        };
        self.problems.extend(nested.problems.into_iter().map(|problem| format!("{name}: {problem}")));
        Rope { theta, scaling }
    }

    /// YaRN's parameters, with transformers' defaults.
    fn yarn(&mut self, nested: &mut Fields<'_>, max_positions: usize) -> RopeScaling {
        let original = nested.size("original_max_position_embeddings", max_positions);
        let original = self.size("original_max_position_embeddings", original);
        let factor = nested.positive("factor", max_positions as f64 / original as f64);
        let scale = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
        let weights = ["mscale", "mscale_all_dim"].map(|key| nested.value(key).map(|_| nested.positive(key, 1.0)));
        let usual = match weights {
            [Some(weight), Some(all)] => scale(weight) / scale(all),
            _ => scale(1.0),
        };
        RopeScaling::Yarn {
            factor,
            attention_factor: nested.positive("attention_factor", usual),
            beta_fast: nested.positive("beta_fast", 32.0),
            beta_slow: nested.positive("beta_slow", 1.0),
            original_max_position_embeddings: original,
            truncate: nested.flag("truncate", true),
        }
    }
}
