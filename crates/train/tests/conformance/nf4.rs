//! The 4-bit codec against bitsandbytes: codes, scales and dequantised values to the bit.

use std::path::Path;

use tunesmith_tensor::{Absmax, BLOCK_SIZE, FourBitOptions, FourBitType, FourBitWeight};

use crate::Outcome;
use crate::compare::Errors;
use crate::fixture::{Tensor, tensors};

/// Every shape of `tensors.safetensors`, quantised here, and the reference's own parts dequantised here.
pub(crate) fn codec(folder: &Path) -> Outcome {
    let tensors = tensors(&folder.join("tensors.safetensors"));
    let mut errors = Errors::default();
    let mut same = |name: &str, found: &[f32], reference: &Tensor| {
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        errors.require(bits(found) == bits(&reference.values), &format!("{name}: the bits differ"));
    };
    same("code", &FourBitType::Nf4.quant_map(), &tensors["code"]);
    let shapes: Vec<&str> = tensors.keys().filter_map(|name| name.strip_suffix(".weight")).collect();
    let as_floats = |bytes: &[u8]| bytes.iter().map(|byte| f32::from(*byte)).collect::<Vec<f32>>();
    for shape in &shapes {
        let of = |part: &str| &tensors[&format!("{shape}.{part}")];
        let weight = of("weight");
        let size = (weight.shape[0], weight.shape[1]);
        let quantized = |double_quant| {
            let options = FourBitOptions { quant_type: FourBitType::Nf4, double_quant };
            FourBitWeight::quantize(&weight.values, size, options).expect("the weights are finite")
        };
        let dequantized = |weight: &FourBitWeight| {
            let mut values = vec![0.0; size.0 * size.1];
            weight.dequantize(0, &mut values);
            values
        };
        let mut same = |part: &str, found: &[f32]| same(&format!("{shape}.{part}"), found, of(part));
        let (plain, double) = (quantized(false), quantized(true));
        same("packed", &as_floats(plain.codes()));
        same("packed", &as_floats(double.codes()));
        let scales: Vec<f32> = (0..plain.absmax().len()).map(|block| plain.absmax().of_block(block)).collect();
        same("absmax", &scales);
        same("dequantized", &dequantized(&plain));
        let Absmax::Nested(nested) = double.absmax() else { panic!("double quantisation nests scales") };
        same("dq_absmax_codes", &as_floats(&nested.codes));
        same("dq_nested_absmax", &nested.absmax);
        same("dq_nested_code", &nested.quant_map[..]);
        same("dq_offset", &[nested.offset]);
        same("dq_dequantized", &dequantized(&double));
        let packed: Vec<u8> = of("packed").values.iter().map(|byte| *byte as u8).collect();
        let absmax = Absmax::Float(of("absmax").values.clone());
        let read = FourBitWeight::from_parts(size, packed.into(), absmax, BLOCK_SIZE, FourBitType::Nf4.quant_map());
        same("dequantized", &dequantized(&read.expect("the reference's parts fit")));
    }
    errors.require(!shapes.is_empty(), "there are no weights");
    errors.passed_as(format!("{} shapes equal to the bit", shapes.len()))
}
