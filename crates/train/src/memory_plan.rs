//! How much memory a training step takes, and whether it runs blocks again to take less.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tunesmith_models::Model;
use tunesmith_tensor::SiteKind;

use crate::TrainError;

/// Whether backward runs each block of the model again, in place of keeping what the block computed (`transformers`
/// writes `true` and `false`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GradientCheckpointing {
    /// Keeps everything: fastest.
    #[default]
    None,
    /// Keeps the inputs of blocks: a step takes up to a third longer. Gradients are the same.
    Blocks,
    /// `blocks` where a step would otherwise take more than `memory_budget`.
    Auto,
}

impl<'de> Deserialize<'de> for GradientCheckpointing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Flag(bool),
            Name(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Flag(false) => Ok(Self::None),
            Written::Flag(true) => Ok(Self::Blocks),
            Written::Name(name) => match name.as_str() {
                "none" => Ok(Self::None),
                "blocks" => Ok(Self::Blocks),
                "auto" => Ok(Self::Auto),
                _ => Err(de::Error::custom(format!("'{name}' is not one of none, blocks, auto"))),
            },
        }
    }
}

/// A number of bytes, written as one, or like `4GB`, `1.5 GB`, `800MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

impl std::str::FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        let unit = UNITS.iter().find_map(|(unit, bytes)| Some((trimmed.strip_suffix(unit)?, *bytes)));
        let (number, bytes) = unit.unwrap_or((trimmed, 1));
        match number.trim().parse::<f64>() {
            Ok(number) if number.is_finite() && number > 0.0 => Ok(Self((number * bytes as f64) as u64)),
            _ => Err(format!("'{text}' is not an amount of memory; write bytes, or a number with KB, MB, GB or TB")),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 1_000_000_000 => write!(f, "{:.2} GB", bytes as f64 / 1e9),
            bytes => write!(f, "{:.0} MB", bytes as f64 / 1e6),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(Self(bytes)),
            Written::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

/// What a training step takes, in bytes: an estimate from above, by the shapes of the model's linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The frozen weights, and the values, gradients and optimiser states of the trained ones.
    pub weights: u64,
    /// What blocks compute and backward needs, all of it kept.
    pub activations: u64,
    /// The same where blocks run again.
    pub checkpointed_activations: u64,
    /// Buffers of the operation under way, logits, and the program itself.
    pub working: u64,
}

impl MemoryEstimate {
    /// For a batch of `tokens` tokens and `trained` trained values.
    pub fn new(model: &dyn Model, trained: usize, tokens: usize) -> Self {
        /// Value, gradient and AdamW's two means.
        const TRAINED_BYTES: usize = 16;
        /// Rows whose logits exist at one time, with what becomes of them.
        const LOGIT_ROWS: usize = 512;
        const PROGRAM: usize = 60_000_000;
        let info = model.info();
        // A linear layer keeps its input for its tuner, and what it gives out for the operation after it.
        let mut blocks: Vec<usize> = Vec::new();
        for site in model.sites().iter().filter(|site| site.kind == SiteKind::Linear) {
            let Some(block) = site.block else { continue };
            blocks.resize(blocks.len().max(block + 1), 0);
            blocks[block] += site.rows + site.cols;
        }
        let float = size_of::<f32>();
        let largest = blocks.iter().max().copied().unwrap_or(0);
        let row = |floats: usize| (tokens * floats * float) as u64;
        let frozen: usize = model.tensors().iter().map(|(_, weight, _)| weight.bytes()).sum();
        Self {
            weights: (frozen + trained * TRAINED_BYTES) as u64,
            activations: row(blocks.iter().sum()),
            checkpointed_activations: row(blocks.len() * info.hidden_size + largest),
            working: row(4 * info.hidden_size + largest / 2)
                + (LOGIT_ROWS.min(tokens) * info.vocab_size * float + PROGRAM) as u64,
        }
    }

    /// All of it, with or without running blocks again.
    pub fn total(&self, checkpointing: bool) -> ByteSize {
        let activations = if checkpointing { self.checkpointed_activations } else { self.activations };
        ByteSize(self.weights + activations + self.working)
    }

    /// Whether to run blocks again.
    ///
    /// # Errors
    /// [`TrainError::InvalidArguments`] if the step would take more than the budget.
    pub fn plan(&self, choice: GradientCheckpointing, budget: Option<ByteSize>) -> Result<bool, TrainError> {
        let fits = |checkpointing| budget.is_none_or(|budget| self.total(checkpointing) <= budget);
        let checkpointing = match choice {
            GradientCheckpointing::None => false,
            GradientCheckpointing::Blocks => true,
            GradientCheckpointing::Auto => !fits(false),
        };
        let Some(budget) = budget.filter(|_| !fits(checkpointing)) else { return Ok(checkpointing) };
        let advice = if fits(true) {
            format!("with gradient_checkpointing: blocks it takes about {}", self.total(true))
        } else {
            "take smaller batches or shorter sequences, or a larger budget".to_owned()
        };
        let needed = self.total(checkpointing);
        let problem =
            format!("memory_budget is {budget}, and a step of the largest batch takes about {needed}: {advice}");
        Err(TrainError::InvalidArguments { problems: vec![problem] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_numbers_with_units() {
        for (text, bytes) in [
            ("4GB", 4_000_000_000),
            ("1.5 GB", 1_500_000_000),
            ("800MiB", 800 << 20),
            ("123", 123),
            ("7 KB", 7000),
            ("9B", 9),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GB", "-1GB", "4 gigabytes", "nan"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        assert_eq!(serde_json::from_str::<ByteSize>("\"2GB\"").unwrap(), ByteSize(2_000_000_000));
        assert_eq!(serde_json::from_str::<ByteSize>("77").unwrap(), ByteSize(77));
        assert_eq!(ByteSize(1_234_000_000).to_string(), "1.23 GB");
    }

    #[test]
    fn choices_are_names_or_the_flags_of_transformers() {
        let read = |text: &str| serde_json::from_str::<GradientCheckpointing>(text);
        assert_eq!(read("\"auto\"").unwrap(), GradientCheckpointing::Auto);
        assert_eq!(read("true").unwrap(), GradientCheckpointing::Blocks);
        assert_eq!(read("false").unwrap(), GradientCheckpointing::None);
        assert!(read("\"block\"").unwrap_err().to_string().contains("none, blocks, auto"));
    }

    #[test]
    fn the_budget_is_kept_or_refused_with_the_estimate() {
        use GradientCheckpointing::{Auto, Blocks, None as Nothing};
        let estimate =
            MemoryEstimate { weights: 1_000_000_000, activations: 3 << 30, checkpointed_activations: 0, working: 0 };
        let plan = |choice, gigabytes: u64| estimate.plan(choice, Some(ByteSize(gigabytes * 1_000_000_000)));
        assert!(!estimate.plan(Auto, None).unwrap());
        assert!(!plan(Auto, 5).unwrap());
        assert!(plan(Auto, 2).unwrap());
        assert!(plan(Blocks, 2).unwrap());
        assert!(!plan(Nothing, 5).unwrap());
        let refused = plan(Nothing, 2).unwrap_err().to_string();
        assert!(refused.contains("takes about 4.22 GB: with gradient_checkpointing: blocks"), "{refused}");
        let tight = estimate.plan(Auto, Some(ByteSize(900_000_000))).unwrap_err().to_string();
        assert!(tight.contains("memory_budget is 900 MB") && tight.contains("about 1.00 GB"), "{tight}");
    }
}
