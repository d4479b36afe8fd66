//! How a run keeps the base model's weights in memory, under the names of transformers' `BitsAndBytesConfig`.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use tunesmith_models::QuantizationOptions;
use tunesmith_tensor::{FourBitOptions, FourBitType};

/// Keys of a run about the storage of frozen weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct QuantizationKeys {
    /// Whether the base's linears, but for its output and heads, are quantised to 4 bits while loading. Default false.
    pub(crate) load_in_4bit: bool,
    /// The 16 values: `nf4` or `fp4`. Default `nf4`.
    pub(crate) bnb_4bit_quant_type: Option<QuantType>,
    /// Whether the scales are quantised as well. Default true, as in the paper of QLoRA.
    pub(crate) bnb_4bit_use_double_quant: Option<bool>,
    /// Arithmetic over 4-bit weights: another name of `precision`. Default: that.
    pub(crate) bnb_4bit_compute_dtype: Option<ComputeDtype>,
    /// Linears to leave in floats: beginnings or ends of module paths. Default none.
    pub(crate) llm_int8_skip_modules: Option<Vec<String>>,
    /// Whether weights that the files hold quantised are expanded to floats. Default: GGUF blocks that are slower than
    /// floats, where all comes to at most 2 GiB; 4-bit weights of bitsandbytes never.
    pub(crate) dequantize: Option<bool>,
}

/// The same on a command line.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Storage of the base's weights")]
pub(crate) struct QuantizationArgs {
    /// Quantise the base's linears to 4 bits while loading, as a run with load_in_4bit did
    #[arg(long, alias = "load_in_4bit")]
    pub(crate) load_in_4bit: bool,
    /// The 16 values of 4-bit weights [default: nf4]
    #[arg(long, alias = "bnb_4bit_quant_type", value_enum, requires = "load_in_4bit")]
    bnb_4bit_quant_type: Option<QuantType>,
    /// Whether the scales of 4-bit weights are quantised as well [default: true]
    #[arg(long, alias = "bnb_4bit_use_double_quant", value_name = "BOOL", requires = "load_in_4bit")]
    bnb_4bit_use_double_quant: Option<bool>,
    /// Linears to leave in floats: beginnings or ends of module paths
    #[arg(
        long,
        alias = "llm_int8_skip_modules",
        value_name = "NAMES",
        value_delimiter = ',',
        requires = "load_in_4bit"
    )]
    llm_int8_skip_modules: Option<Vec<String>>,
    /// Whether weights that the files hold quantised are expanded to floats
    #[arg(long, value_name = "BOOL")]
    dequantize: Option<bool>,
}

impl QuantizationArgs {
    /// What the command line asks for.
    pub(crate) fn keys(&self) -> QuantizationKeys {
        QuantizationKeys {
            load_in_4bit: self.load_in_4bit,
            bnb_4bit_quant_type: self.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant: self.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype: None,
            llm_int8_skip_modules: self.llm_int8_skip_modules.clone(),
            dequantize: self.dequantize,
        }
    }

    /// The same as a run's configuration has it, unless the command line says something.
    pub(crate) fn or(self, keys: QuantizationKeys) -> Self {
        if self.load_in_4bit || self.dequantize.is_some() {
            return self;
        }
        Self {
            load_in_4bit: keys.load_in_4bit,
            bnb_4bit_quant_type: keys.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant: keys.bnb_4bit_use_double_quant,
            llm_int8_skip_modules: keys.llm_int8_skip_modules,
            dequantize: keys.dequantize,
        }
    }
}

/// The 16 values of 4-bit weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum QuantType {
    Nf4,
    Fp4,
}

/// Arithmetic over 4-bit weights, in PyTorch's words: the run's precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ComputeDtype {
    #[serde(alias = "torch.float32")]
    Float32,
    #[serde(alias = "bf16", alias = "torch.bfloat16")]
    Bfloat16,
}

impl QuantizationKeys {
    /// What loading needs of it.
    pub(crate) fn options(&self) -> QuantizationOptions {
        QuantizationOptions {
            load_in_4bit: self.load_in_4bit.then_some(self.four_bit()),
            skip_modules: self.llm_int8_skip_modules.clone().unwrap_or_default(),
            dequantize: self.dequantize,
        }
    }

    /// How 4-bit weights are made.
    pub(crate) fn four_bit(&self) -> FourBitOptions {
        FourBitOptions {
            quant_type: match self.bnb_4bit_quant_type {
                None | Some(QuantType::Nf4) => FourBitType::Nf4,
                Some(QuantType::Fp4) => FourBitType::Fp4,
            },
            double_quant: self.bnb_4bit_use_double_quant.unwrap_or(true),
        }
    }

    /// The first key that says how to quantise although nothing is quantised.
    pub(crate) fn without_effect(&self) -> Option<&'static str> {
        let given = [
            ("bnb_4bit_quant_type", self.bnb_4bit_quant_type.is_some()),
            ("bnb_4bit_use_double_quant", self.bnb_4bit_use_double_quant.is_some()),
            ("bnb_4bit_compute_dtype", self.bnb_4bit_compute_dtype.is_some()),
            ("llm_int8_skip_modules", self.llm_int8_skip_modules.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given && !self.load_in_4bit).map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        quantization: QuantizationArgs,
    }

    #[test]
    fn keys_mean_what_they_mean_to_transformers() {
        let keys = |value| serde_json::from_value::<QuantizationKeys>(value).unwrap();
        let written = |values: serde_json::Value| {
            let mut all = serde_json::to_value(QuantizationKeys::default()).unwrap();
            all.as_object_mut().unwrap().extend(values.as_object().unwrap().clone());
            keys(all)
        };
        assert_eq!(written(json!({})).options(), QuantizationOptions::default());
        let four_bit = written(json!({"load_in_4bit": true})).options().load_in_4bit.unwrap();
        assert_eq!(four_bit, FourBitOptions { quant_type: FourBitType::Nf4, double_quant: true });
        let fp4 = json!({"load_in_4bit": true, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": false,
            "llm_int8_skip_modules": ["lm_head"]});
        let options = written(fp4).options();
        let expected = FourBitOptions { quant_type: FourBitType::Fp4, double_quant: false };
        assert_eq!((options.load_in_4bit, options.skip_modules), (Some(expected), vec!["lm_head".to_owned()]));
        for (key, value) in [
            ("bnb_4bit_quant_type", json!("nf4")),
            ("bnb_4bit_use_double_quant", json!(true)),
            ("bnb_4bit_compute_dtype", json!("bfloat16")),
            ("llm_int8_skip_modules", json!([])),
        ] {
            assert_eq!(written(json!({key: value})).without_effect(), Some(key));
        }
        assert_eq!(written(json!({"dequantize": true})).without_effect(), None);
    }

    #[test]
    fn a_command_line_has_the_same_keys_and_comes_before_a_run() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["x"], args].concat()).map(|cli| cli.quantization);
        let given = parse(&["--load_in_4bit", "--bnb-4bit-quant-type", "fp4", "--bnb_4bit_use_double_quant=false"]);
        let expected = FourBitOptions { quant_type: FourBitType::Fp4, double_quant: false };
        assert_eq!(given.as_ref().unwrap().keys().options().load_in_4bit, Some(expected));
        assert!(parse(&["--bnb-4bit-quant-type", "fp4"]).is_err());
        let run = QuantizationKeys { load_in_4bit: true, ..QuantizationKeys::default() };
        assert_eq!(given.unwrap().or(run.clone()).keys().options().load_in_4bit, Some(expected));
        let nf4 = FourBitOptions { quant_type: FourBitType::Nf4, double_quant: true };
        assert_eq!(parse(&[]).unwrap().or(run).keys().options().load_in_4bit, Some(nf4));
    }
}
