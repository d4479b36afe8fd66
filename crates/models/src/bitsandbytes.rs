//! 4-bit weights in the layout of bitsandbytes: beside `NAME` (two codes a byte) lie `NAME.absmax`, `NAME.quant_map`, with
//! double quantisation `NAME.nested_absmax` and `NAME.nested_quant_map`, and JSON as bytes in
//! `NAME.quant_state.bitsandbytes__nf4` (or `__fp4`).

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde::Deserialize;
use serde_json::{Map, Value};
use tunesmith_tensor::{Absmax, FourBitType, FourBitWeight, FrozenWeight, NestedAbsmax};

use crate::error::ModelError;
use crate::number_format::NumberFormat;
use crate::safetensors::Safetensors;
use crate::weights::{StoredTensor, WeightSource};

const STATE: &str = ".quant_state.bitsandbytes__";
const PARTS: [&str; 4] = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"];

/// What is in `quant_state`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    /// The numbers the weight had before.
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

/// A checkpoint some of whose weights may be 4-bit codes; these appear under their own names and shapes.
#[derive(Debug)]
pub(crate) struct FourBitCheckpoint {
    source: Safetensors,
    stored: BTreeMap<String, StoredTensor>,
    states: BTreeMap<String, QuantState>,
}

impl FourBitCheckpoint {
    /// Finds the 4-bit weights of a checkpoint.
    ///
    /// # Errors
    /// [`ModelError::Damaged`] naming every 4-bit weight whose parts are missing or make no sense.
    pub(crate) fn over(source: Safetensors) -> Result<Self, ModelError> {
        let mut stored = source.stored().clone();
        let (mut states, mut problems) = (BTreeMap::new(), Vec::new());
        let keys: Vec<String> = stored.keys().filter(|name| name.contains(STATE)).cloned().collect();
        for key in keys {
            let Some((name, _)) = key.split_once(STATE) else { continue };
            stored.remove(&key);
            let (_, bytes) = source.bytes(&key)?;
            let state = match serde_json::from_slice::<QuantState>(&bytes) {
                Ok(state) => state,
                Err(error) => {
                    problems.push(format!("{key} is not what bitsandbytes writes ({error})"));
                    continue;
                }
            };
            let nested = state.nested_blocksize.is_some();
            let missing: Vec<&str> = PARTS
                .into_iter()
                .filter(|part| nested || !part.starts_with("nested"))
                .filter(|part| !stored.contains_key(&format!("{name}.{part}")))
                .collect();
            for part in PARTS {
                stored.remove(&format!("{name}.{part}"));
            }
            if !missing.is_empty() {
                problems.push(format!("{name} lacks {}", missing.join(", ")));
            }
            if FourBitType::of_name(&state.quant_type).is_none() {
                problems.push(format!("{name}: quant_type {:?} is neither nf4 nor fp4", state.quant_type));
            }
            let values = state.shape.iter().try_fold(1usize, |values, size| values.checked_mul(*size));
            if state.shape.len() != 2 || values.is_none() {
                problems.push(format!("{name}: the shape {:?} is not that of a matrix", state.shape));
            }
            match stored.get_mut(name) {
                None => problems.push(format!("{name} is missing, only its quantisation state is there")),
                Some(tensor) => {
                    tensor.shape.clone_from(&state.shape);
                    tensor.unsupported = None;
                }
            }
            states.insert(name.to_owned(), state);
        }
        if !problems.is_empty() {
            let reason = format!("its 4-bit weights cannot be read: {}; fetch it again", problems.join("; "));
            return Err(ModelError::Damaged { path: source.path().to_path_buf(), reason });
        }
        Ok(Self { source, stored, states })
    }

    /// The numbers that weights are or, where they are quantised, were stored in.
    pub(crate) fn format(&self) -> NumberFormat {
        let written = self.states.values().next().and_then(|state| NumberFormat::of_torch_name(&state.dtype));
        written.unwrap_or_else(|| self.source.format())
    }

    fn four_bit(&mut self, name: &str, state: &QuantState) -> Result<FourBitWeight, ModelError> {
        let path = self.stored.get(name).map_or_else(|| self.path().to_path_buf(), |tensor| tensor.file.clone());
        let damaged = |reason: String| ModelError::Damaged { path: path.clone(), reason };
        let (_, codes) = self.source.bytes(name)?;
        let part = |part: &str| format!("{name}.{part}");
        let map: [f32; 16] = self
            .source
            .read(&part("quant_map"))?
            .try_into()
            .map_err(|map: Vec<f32>| damaged(format!("{} has {} values, not 16", part("quant_map"), map.len())))?;
        let absmax = match self.source.bytes(&part("absmax"))? {
            (Dtype::U8, codes) => {
                let quant_map = self.source.read(&part("nested_quant_map"))?.into_boxed_slice().try_into();
                let quant_map = quant_map.map_err(|map: Box<[f32]>| {
                    damaged(format!("{} has {} values, not 256", part("nested_quant_map"), map.len()))
                })?;
                let (Some(block_size), Some(offset)) = (state.nested_blocksize, state.nested_offset) else {
                    return Err(damaged(format!("{name}: the scales are bytes, but no nested_blocksize is given")));
                };
                let absmax = self.source.read(&part("nested_absmax"))?;
                Absmax::Nested(NestedAbsmax { codes, absmax, quant_map, offset: offset as f32, block_size })
            }
            _ => Absmax::Float(self.source.read(&part("absmax"))?),
        };
        let shape = (state.shape[0], state.shape[1]);
        FourBitWeight::from_parts(shape, codes.into(), absmax, state.blocksize, map)
            .map_err(|error| damaged(format!("tensor {name}: {error}")))
    }
}

impl WeightSource for FourBitCheckpoint {
    fn path(&self) -> &Path {
        self.source.path()
    }

    fn stored(&self) -> &BTreeMap<String, StoredTensor> {
        &self.stored
    }

    fn supported_formats(&self) -> &'static str {
        self.source.supported_formats()
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>, ModelError> {
        let Some(state) = self.states.get(name).cloned() else { return self.source.read(name) };
        let weight = self.four_bit(name, &state)?;
        let mut values = vec![0.0; state.shape.iter().product()];
        weight.dequantize(0, &mut values);
        Ok(values)
    }

    fn encoded(&mut self, name: &str) -> Result<Option<FrozenWeight>, ModelError> {
        let Some(state) = self.states.get(name).cloned() else { return Ok(None) };
        Ok(Some(self.four_bit(name, &state)?.into()))
    }
}

/// Takes a `quantization_config` out of `config.json` that is about 4-bit weights of bitsandbytes, whose files say the
/// rest; any other is left for the model to refuse.
pub(crate) fn take_config(json: &mut Map<String, Value>) {
    let is_four_bit = json.get("quantization_config").is_some_and(|config| {
        let flag = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
        let method = config.get("quant_method").and_then(Value::as_str).unwrap_or("bitsandbytes");
        method == "bitsandbytes" && (flag("load_in_4bit") || flag("_load_in_4bit"))
    });
    if is_four_bit {
        json.remove("quantization_config");
    }
}
