//! How a run keeps the base model's weights in memory, under the names of transformers' `BitsAndBytesConfig`.

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
    /// Linears to leave in floats: beginnings or ends of module paths. Default none.
    pub(crate) llm_int8_skip_modules: Option<Vec<String>>,
    /// Whether weights that the files hold quantised are expanded to floats: faster, and larger. Default: GGUF blocks
    /// where that comes to at most 2 GiB, 4-bit weights of bitsandbytes never.
    pub(crate) dequantize: Option<bool>,
}

/// The 16 values of 4-bit weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum QuantType {
    Nf4,
    Fp4,
}

impl QuantizationKeys {
    /// What loading needs of it.
    pub(crate) fn options(&self) -> QuantizationOptions {
        let four_bit = FourBitOptions {
            quant_type: match self.bnb_4bit_quant_type {
                None | Some(QuantType::Nf4) => FourBitType::Nf4,
                Some(QuantType::Fp4) => FourBitType::Fp4,
            },
            double_quant: self.bnb_4bit_use_double_quant.unwrap_or(true),
        };
        QuantizationOptions {
            load_in_4bit: self.load_in_4bit.then_some(four_bit),
            skip_modules: self.llm_int8_skip_modules.clone().unwrap_or_default(),
            dequantize: self.dequantize,
        }
    }

    /// The first key that says how to quantise although nothing is quantised.
    pub(crate) fn without_effect(&self) -> Option<&'static str> {
        let given = [
            ("bnb_4bit_quant_type", self.bnb_4bit_quant_type.is_some()),
            ("bnb_4bit_use_double_quant", self.bnb_4bit_use_double_quant.is_some()),
            ("llm_int8_skip_modules", self.llm_int8_skip_modules.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given && !self.load_in_4bit).map(|(key, _)| key)
    }
}
