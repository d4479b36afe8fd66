//! 4-bit weights as files hold them: what bitsandbytes writes for a weight, and what its configuration says.

use safetensors::Dtype;
use serde_json::{Map, Value, json};
use tunesmith_tensor::{Absmax, FourBitOptions, FourBitType, FourBitWeight};

use crate::number_format::NumberFormat;

/// A tensor of a file, as bytes.
pub(crate) struct Part {
    /// What stands behind the weight's name; nothing for the codes.
    pub(crate) suffix: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// The tensors of a 4-bit weight whose values were of `format` before.
pub(crate) fn parts(weight: &FourBitWeight, format: NumberFormat) -> Vec<Part> {
    let floats = |suffix: &str, values: &[f32]| Part {
        suffix: suffix.to_owned(),
        dtype: Dtype::F32,
        shape: vec![values.len()],
        bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    let bytes = |suffix: &str, shape, bytes: &[u8]| Part {
        suffix: suffix.to_owned(),
        dtype: Dtype::U8,
        shape,
        bytes: bytes.to_vec(),
    };
    let kind = quant_type(weight).name();
    let (rows, cols) = weight.shape();
    let mut state = json!({
        "quant_type": kind,
        "blocksize": weight.block_size(),
        "dtype": format.torch_name(),
        "shape": [rows, cols],
    });
    let mut parts = vec![bytes("", vec![weight.codes().len(), 1], weight.codes())];
    match weight.absmax() {
        Absmax::Float(absmax) => parts.push(floats(".absmax", absmax)),
        Absmax::Nested(nested) => {
            parts.push(bytes(".absmax", vec![nested.codes.len()], &nested.codes));
            parts.push(floats(".nested_absmax", &nested.absmax));
            parts.push(floats(".nested_quant_map", &nested.quant_map[..]));
            state["nested_blocksize"] = nested.block_size.into();
            state["nested_dtype"] = "float32".into();
            state["nested_offset"] = f64::from(nested.offset).into();
        }
    }
    parts.push(floats(".quant_map", weight.quant_map()));
    let state = state.to_string();
    parts.push(bytes(&format!(".quant_state.bitsandbytes__{kind}"), vec![state.len()], state.as_bytes()));
    parts
}

/// The type whose values the weight has.
fn quant_type(weight: &FourBitWeight) -> FourBitType {
    let is = |kind: &FourBitType| kind.quant_map() == *weight.quant_map();
    [FourBitType::Nf4, FourBitType::Fp4].into_iter().find(is).unwrap_or(FourBitType::Nf4)
}

/// `quantization_config` of `config.json`, as transformers writes it.
pub(crate) fn config(options: FourBitOptions, format: NumberFormat) -> Map<String, Value> {
    let config = json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": format.torch_name(),
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": options.quant_type.name(),
        "bnb_4bit_use_double_quant": options.double_quant,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes",
    });
    config.as_object().cloned().unwrap_or_default()
}
