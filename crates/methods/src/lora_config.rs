//! Configuration of LoRA: PEFT's `LoraConfig`, key by key.

use std::sync::LazyLock;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};
use tunesmith_tensor::SiteKind;

use crate::MethodError;
use crate::common::{Bias, CommonConfig, Matters, Modules, OneOrMany, Purpose, Uninterpreted};
use crate::error::ConfigProblem;
use crate::pattern::Pattern;
use crate::placement::{self, Wanted};

/// Configuration of LoRA, with PEFT's field names and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraConfig {
    /// What every method's configuration has.
    #[serde(flatten)]
    pub common: CommonConfig,
    /// Rank of the update.
    pub r: usize,
    /// Numerator `alpha` of the scale.
    #[serde(serialize_with = "number")]
    pub lora_alpha: f64,
    /// The modules to tune; `None` takes the defaults of the model type.
    pub target_modules: Option<Modules>,
    /// Modules not to tune although `target_modules` match them.
    pub exclude_modules: Option<Modules>,
    /// Probability with which training zeroes a value of the input of `A`.
    pub lora_dropout: f64,
    /// Whether the base keeps its weights as `[in, out]`. Kept, not used: models bring weights into one layout.
    pub fan_in_fan_out: bool,
    /// Which biases are trained.
    pub bias: Bias,
    /// Whether the scale is `alpha/√r` in place of `alpha/r`.
    pub use_rslora: bool,
    /// Modules of which full copies are trained.
    pub modules_to_save: Option<Vec<String>>,
    /// Whether the lengths of the tuned weight's rows are trained apart from their directions (DoRA).
    pub use_dora: bool,
    /// Whether `B` has a bias.
    pub lora_bias: bool,
    /// Tokens whose embeddings are trained: of the input embedding, or of the embeddings named.
    pub trainable_token_indices: Option<TokenIndices>,
    /// How `A` and `B` begin.
    pub init_lora_weights: LoraInit,
    /// Restricts a list of targets to these layers.
    pub layers_to_transform: Option<OneOrMany<usize>>,
    /// Name of the list of layers, such as `layers` or `h`, for `layers_to_transform`.
    pub layers_pattern: Option<OneOrMany<String>>,
    /// Ranks of some modules: the first key that matches the end of a module's name counts.
    pub rank_pattern: IndexMap<String, usize>,
    /// `alpha` of some modules: the first key that matches the end of a module's name counts.
    #[serde(serialize_with = "numbers")]
    pub alpha_pattern: IndexMap<String, f64>,
    /// PEFT's other keys, as they were read.
    #[serde(flatten)]
    pub(crate) uninterpreted: Map<String, Value>,
}

/// How `A` and `B` begin. PEFT's `init_lora_weights`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "InitValue", into = "InitValue")]
pub enum LoraInit {
    /// `true`: `A ~ U(−1/√in, 1/√in)`, `B = 0`.
    #[default]
    Uniform,
    /// `"gaussian"`: `A ~ N(0, 1/r)` with standard deviation `1/r`, `B = 0`.
    Gaussian,
    /// `false`: `A ~ U(−1/√in, 1/√in)`, `B ~ U(−1/√r, 1/√r)`; not the base at first. For tests.
    Random,
    /// `"pissa"`, or `"pissa_niter_N"` with N iterations of the decomposition: the largest singular values of the weight.
    Pissa {
        /// N; without it until it has converged.
        iterations: Option<usize>,
    },
    /// `"olora"`: the first columns of the weight's QR decomposition.
    Olora,
    /// One of PEFT's other starts, of an adapter that was read. It has no part in using the adapter.
    Other(String),
}

/// `init_lora_weights` as it is written.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected true, false or \"gaussian\"")]
enum InitValue {
    Switch(bool),
    Name(String),
}

impl From<InitValue> for LoraInit {
    fn from(value: InitValue) -> Self {
        match value {
            InitValue::Switch(true) => Self::Uniform,
            InitValue::Switch(false) => Self::Random,
            InitValue::Name(name) if name.eq_ignore_ascii_case("gaussian") => Self::Gaussian,
            InitValue::Name(name) if name == "pissa" => Self::Pissa { iterations: None },
            InitValue::Name(name) if name.eq_ignore_ascii_case("olora") => Self::Olora,
            InitValue::Name(name) => match name.strip_prefix("pissa_niter_").and_then(|count| count.parse().ok()) {
                Some(iterations) => Self::Pissa { iterations: Some(iterations) },
                None => Self::Other(name),
            },
        }
    }
}

impl LoraInit {
    /// The configuration's word for it.
    pub(crate) fn name(&self) -> String {
        match InitValue::from(self.clone()) {
            InitValue::Switch(value) => value.to_string(),
            InitValue::Name(name) => name,
        }
    }

    /// Whether a product is taken out of the base weight.
    pub(crate) fn changes_base(&self) -> bool {
        matches!(self, Self::Pissa { .. } | Self::Olora)
    }
}

/// Tokens by id: of the input embedding, or by the name of an embedding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a list of token ids, or a mapping from names of embeddings to such lists")]
pub enum TokenIndices {
    /// Of the input embedding.
    Input(Vec<u32>),
    /// Of the embeddings named.
    Named(IndexMap<String, Vec<u32>>),
}

impl From<LoraInit> for InitValue {
    fn from(init: LoraInit) -> Self {
        match init {
            LoraInit::Uniform => Self::Switch(true),
            LoraInit::Gaussian => Self::Name("gaussian".to_owned()),
            LoraInit::Random => Self::Switch(false),
            LoraInit::Pissa { iterations: None } => Self::Name("pissa".to_owned()),
            LoraInit::Pissa { iterations: Some(count) } => Self::Name(format!("pissa_niter_{count}")),
            LoraInit::Olora => Self::Name("olora".to_owned()),
            LoraInit::Other(name) => Self::Name(name),
        }
    }
}

/// Other starts that PEFT has, and what each would need. The second part says whether an adapter that began so can be
/// used without it.
const OTHER_INITS: &[(&str, bool, &str)] = &[
    ("eva", true, "EVA takes A from singular vectors of the layers' inputs"),
    ("orthogonal", true, "it starts from orthogonal A and B"),
    ("mica", false, "MiCA freezes B"),
    ("corda", false, "CorDA changes the base weights by a decomposition that needs data"),
    ("lora_ga", false, "LoRA-GA changes the base weights by a decomposition of gradients"),
    ("loftq", false, "LoftQ quantises the base weights"),
];

/// PEFT's keys whose effect this version does not have.
pub(crate) static UNINTERPRETED: [Uninterpreted; 17] = {
    const fn row(key: &'static str, default: &'static str, matters: Matters, reason: &'static str) -> Uninterpreted {
        Uninterpreted { key, default, matters, reason }
    }
    use Matters::{Always, Never, ToTraining};
    [
        row("layer_replication", "null", Always, "the model would keep its own stack of layers"),
        row("target_parameters", "null", Always, "parameters outside linear modules cannot be tuned"),
        row("alora_invocation_tokens", "null", Always, "the adapter would act before its invocation too (aLoRA)"),
        row("use_qalora", "false", Always, "QALoRA pools the inputs of A, for GPTQ weights only"),
        row("qalora_group_size", "16", Never, ""),
        row("use_bdlora", "null", Always, "block-diagonal A or B (BD-LoRA) would be taken for full ones"),
        row("arrow_config", "null", Always, "Arrow routes between adapters"),
        row("kasa_config", "null", Always, "KaSA changes the base weights and has a diagonal of its own"),
        row("monteclora_config", "null", Always, "MonteCLoRA has variational parameters of its own"),
        row("velora_config", "null", ToTraining, "VeLoRA's compressed gradients are not computed"),
        row("ensure_weight_tying", "false", Always, "adapters of tied modules would not be tied"),
        row("megatron_config", "null", Always, "there are no Megatron layers"),
        row("megatron_core", "\"megatron.core\"", Never, ""),
        row("loftq_config", "{}", ToTraining, "LoftQ is not among the starts"),
        row("eva_config", "null", ToTraining, "EVA is not among the starts"),
        row("corda_config", "null", ToTraining, "CorDA is not among the starts"),
        row("lora_ga_config", "null", ToTraining, "LoRA-GA is not among the starts"),
    ]
};

static DEFAULT_UNINTERPRETED: LazyLock<Map<String, Value>> =
    LazyLock::new(|| UNINTERPRETED.iter().map(|row| (row.key.to_owned(), row.default())).collect());

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            common: CommonConfig::default(),
            r: 8,
            lora_alpha: 8.0,
            target_modules: None,
            exclude_modules: None,
            lora_dropout: 0.0,
            fan_in_fan_out: false,
            bias: Bias::None,
            use_rslora: false,
            modules_to_save: None,
            use_dora: false,
            lora_bias: false,
            trainable_token_indices: None,
            init_lora_weights: LoraInit::Uniform,
            layers_to_transform: None,
            layers_pattern: None,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            uninterpreted: DEFAULT_UNINTERPRETED.clone(),
        }
    }
}

impl LoraConfig {
    /// The rank of the module `path`: that of the first key of `rank_pattern` that matches its name, else `r`.
    ///
    /// # Errors
    /// [`MethodError::Pattern`].
    pub fn rank(&self, path: &str) -> Result<usize, MethodError> {
        Ok(lookup("rank_pattern", &self.rank_pattern, path)?.unwrap_or(self.r))
    }

    /// `alpha` of the module `path`: that of the first key of `alpha_pattern` that matches its name, else `lora_alpha`.
    ///
    /// # Errors
    /// [`MethodError::Pattern`].
    pub fn alpha(&self, path: &str) -> Result<f64, MethodError> {
        Ok(lookup("alpha_pattern", &self.alpha_pattern, path)?.unwrap_or(self.lora_alpha))
    }

    /// The scale of the update of the module `path`: `alpha/r`, or `alpha/√r` (rsLoRA, Kalajdzievski 2023).
    ///
    /// # Errors
    /// [`MethodError::Pattern`].
    pub fn scaling(&self, path: &str) -> Result<f64, MethodError> {
        let (r, alpha) = (self.rank(path)? as f64, self.alpha(path)?);
        Ok(if self.use_rslora { alpha / r.sqrt() } else { alpha / r })
    }

    /// The keys that say where.
    pub(crate) fn wanted(&self) -> Wanted<'_> {
        Wanted {
            target_modules: self.target_modules.as_ref(),
            kinds: &[SiteKind::Linear, SiteKind::Embedding],
            exclude_modules: self.exclude_modules.as_ref(),
            layers_to_transform: self.layers_to_transform.as_ref(),
            layers_pattern: self.layers_pattern.as_ref(),
            modules_to_save: self.modules_to_save.as_deref(),
            bias: self.bias,
            ..Wanted::default()
        }
    }

    /// Everything that is wrong with the fields, apart from any model.
    pub(crate) fn problems(&self, purpose: Purpose) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        let mut add = |key: &str, reason: String| {
            problems.push(ConfigProblem::Value { key: key.to_owned(), reason });
        };
        if self.r == 0 {
            add("r", "a rank must be at least 1".into());
        }
        for (key, _) in self.rank_pattern.iter().filter(|(_, rank)| **rank == 0) {
            add("rank_pattern", format!("the rank of '{key}' must be at least 1"));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            add("lora_dropout", format!("a probability from 0 to below 1 is needed, not {}", self.lora_dropout));
        }
        let changes_base = self.init_lora_weights.changes_base();
        if self.lora_bias && self.use_dora {
            add("lora_bias", "it does not go together with use_dora".into());
        }
        if self.lora_bias && !matches!(self.init_lora_weights, LoraInit::Uniform | LoraInit::Random) {
            add("lora_bias", "it goes together with init_lora_weights: true or false only".into());
        }
        if self.use_dora && changes_base {
            let init = self.init_lora_weights.name();
            add(
                "use_dora",
                format!("it does not go together with init_lora_weights: {init}, which changes the base; use true"),
            );
        }
        if changes_base && purpose == Purpose::Loading {
            let name = self.init_lora_weights.name();
            problems.push(ConfigProblem::Unsupported {
                key: "init_lora_weights".to_owned(),
                value: format!("\"{name}\""),
                reason: "its A and B belong to a base weight with a part taken out. Save it as plain LoRA first: \
                         save_pretrained(..., path_initial_model_for_weight_conversion=...) in PEFT",
            });
        }
        problems.extend(placement::problems(&self.wanted()));
        if let LoraInit::Other(name) = &self.init_lora_weights {
            problems.extend(init_problem(name, purpose));
        }
        problems
    }
}

fn init_problem(name: &str, purpose: Purpose) -> Option<ConfigProblem> {
    let key = "init_lora_weights".to_owned();
    let row = OTHER_INITS.iter().find(|(init, ..)| name == *init);
    let Some((_, usable, reason)) = row else {
        return Some(ConfigProblem::Value {
            key,
            reason: format!("expected true, false or \"gaussian\", not \"{name}\""),
        });
    };
    let refused = purpose == Purpose::Training || !usable;
    refused.then(|| ConfigProblem::Unsupported { key, value: format!("\"{name}\""), reason })
}

/// The value of the first key that matches the end of `path`, at a dot: `re.match(r"(.*\.)?(KEY)$", path)`.
fn lookup<T: Copy>(name: &'static str, patterns: &IndexMap<String, T>, path: &str) -> Result<Option<T>, MethodError> {
    for (key, value) in patterns {
        if key_pattern(name, key)?.matches(path)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// What a key of `rank_pattern` or `alpha_pattern` matches.
pub(crate) fn key_pattern(name: &'static str, key: &str) -> Result<Pattern, MethodError> {
    Pattern::start(name, key, &format!(r"(.*\.)?({key})$"))
}

/// Writes whole numbers without a fraction, as they are mostly given.
pub(crate) fn number<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    as_number(*value).serialize(serializer)
}

fn numbers<S: Serializer>(values: &IndexMap<String, f64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(values.iter().map(|(key, value)| (key, as_number(*value))))
}

pub(crate) fn as_number(value: f64) -> Value {
    const EXACT: f64 = (1u64 << 53) as f64;
    if value.fract() == 0.0 && value.abs() < EXACT { Value::from(value as i64) } else { Value::from(value) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::MethodConfig;

    fn lora(value: Value) -> LoraConfig {
        MethodConfig::from_run_file(&value).unwrap().get::<LoraConfig>().unwrap().clone()
    }

    #[test]
    fn scale_is_alpha_over_r_or_its_root() {
        let config = lora(json!({"peft_type": "LORA", "r": 4, "lora_alpha": 10, "rank_pattern": {"k_proj": 16}}));
        assert_eq!(config.scaling("model.q_proj").unwrap(), 2.5);
        assert_eq!(config.scaling("model.k_proj").unwrap(), 0.625);
        assert_eq!(LoraConfig { use_rslora: true, ..config }.scaling("model.k_proj").unwrap(), 2.5);
    }

    #[test]
    fn the_first_key_that_matches_counts() {
        let config = lora(json!({"peft_type": "LORA", "rank_pattern": {
            "^model.layers.0.q_proj": 1, "layers.0.*": 2, "(q|v)_proj": 3, "proj": 4,
        }}));
        let rank = |path| config.rank(path).unwrap();
        assert_eq!(rank("model.layers.0.q_proj"), 1);
        assert_eq!(rank("other.model.layers.0.q_proj"), 2);
        assert_eq!(rank("model.layers.1.v_proj"), 3);
        assert_eq!(rank("model.layers.1.k_proj"), 8);
    }

    #[test]
    fn numbers_are_written_as_they_were_given() {
        let config = lora(json!({"peft_type": "LORA", "lora_alpha": 16, "alpha_pattern": {"k": 0.5, "q": 2}}));
        let text = MethodConfig::new(config).to_adapter_config();
        assert!(text.contains("\"lora_alpha\": 16,"), "{text}");
        assert!(text.contains("\"k\": 0.5,\n    \"q\": 2\n"), "{text}");
    }

    #[test]
    fn starts_that_change_the_base_are_refused_and_others_only_for_training() {
        let read = |init: &str| {
            MethodConfig::from_adapter_config(&json!({"peft_type": "LORA", "init_lora_weights": init}), "file")
        };
        assert!(read("eva").is_ok() && read("orthogonal").is_ok() && read("gaussian").is_ok());
        for init in ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "loftq", "mica"] {
            let text = read(init).unwrap_err().to_string();
            assert!(text.contains(&format!("init_lora_weights: \"{init}\" is not supported")), "{text}");
        }
        assert!(read("xavier").unwrap_err().to_string().contains("not \"xavier\""));
        let train = MethodConfig::from_run_file(&json!({"peft_type": "LORA", "init_lora_weights": "eva"}));
        assert!(train.unwrap_err().to_string().contains("EVA"));
    }

    #[test]
    fn every_uninterpreted_key_that_matters_is_refused() {
        for row in UNINTERPRETED.iter().filter(|row| row.matters != Matters::Never) {
            let value = if row.default == "false" { json!(true) } else { json!({"some": 1}) };
            let config = json!({"peft_type": "LORA", row.key: value});
            let text = MethodConfig::from_run_file(&config).unwrap_err().to_string();
            assert!(text.contains(row.key) && text.contains(row.reason), "{text}");
            let loads = MethodConfig::from_adapter_config(&config, "file").is_ok();
            assert_eq!(loads, row.matters == Matters::ToTraining, "{}", row.key);
        }
    }

    #[test]
    fn contradictions_are_found() {
        let problems = |value: Value| MethodConfig::from_run_file(&value).unwrap_err().to_string();
        let text = problems(json!({
            "peft_type": "LORA", "target_modules": "all-linear", "layers_to_transform": 1, "layers_pattern": "layers",
        }));
        assert!(text.contains("layers_to_transform: it works") && text.contains("layers_pattern: it works"), "{text}");
        let text = problems(json!({"peft_type": "LORA", "layers_pattern": ["h"], "r": 0, "rank_pattern": {"a": 0}}));
        assert!(text.contains("layers_pattern: it says") && text.contains("r: a rank") && text.contains("of 'a'"));
        assert!(problems(json!({"peft_type": "LORA", "modules_to_save": [""]})).contains("an empty name"));
    }
}
